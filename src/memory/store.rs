//! A memory as a file: its vectors, and what wrote them.

use std::collections::HashMap;
use std::path::Path;

use burn::module::Module;
use burn::tensor::backend::Backend;
use burn::tensor::{Element, Tensor};
use sha2::{Digest, Sha256};

use super::{GradMem, MemProj, Memory};
use crate::error::Error;
use crate::files::{hex, write_atomically};
use crate::model::CausalLm;
use crate::model::weights::{self, Tensors};

/// The tensor that holds the vectors, `[batch, memory_tokens, d_model]`.
const VECTORS: &str = "memory";
/// Each sample's own projection, if it has one: weight and bias.
const PROJECTION: [&str; 2] = ["projection.weight", "projection.bias"];
/// The method's name in a file.
const GRADMEM: &str = "gradmem";
const FORMAT: &str = "gradmem-memory-1";

/// A short hash of all weights of a module: their names, shapes and bytes, not its settings.
pub(crate) fn fingerprint<B: Backend, M: Module<B>>(module: &M) -> String {
    let mut hash = Sha256::new();
    for (name, data) in weights::parameters(module) {
        hash.update(name.as_bytes());
        hash.update(format!("{:?}", data.shape).as_bytes());
        hash.update(&*data.bytes);
    }
    let digest = hash.finalize();
    hex(&digest[..8])
}

/// Saves a memory as `.safetensors`, with the fingerprint of the module that wrote it and `about` how.
pub(crate) fn save<B: Backend, M: Module<B>>(
    module: &M,
    memory: &Memory<B>,
    method: &str,
    about: &[(&str, String)],
    path: &Path,
) -> Result<(), Error> {
    let finite = |x: &Tensor<B, 3>| x.to_data().iter::<f64>().all(f64::is_finite);
    if !memory.fast().iter().all(finite) {
        return Err(Error::Failed(
            "the memory holds numbers that are not finite: it is not saved".into(),
        ));
    }
    let fixed = [
        ("format", FORMAT.to_string()),
        ("method", method.to_string()),
        ("model", fingerprint(module)),
    ];
    let metadata: HashMap<_, _> = fixed
        .iter()
        .chain(about)
        .map(|(key, value)| (key.to_string(), value.clone()))
        .collect();
    let names = [VECTORS, PROJECTION[0], PROJECTION[1]].map(String::from);
    let data = memory.fast().into_iter().map(|x| x.to_data());
    let tensors: Vec<_> = names.into_iter().zip(data).collect();
    write_atomically(path, &weights::encode(&tensors, metadata)?)
}

/// Loads a memory that `module` wrote: `m` vectors of width `d` a sample, and its own projection if it
/// `projects`.
pub(crate) fn load<B: Backend, M: Module<B>>(
    module: &M,
    method: &str,
    [m, d]: [usize; 2],
    projects: bool,
    path: &Path,
    device: &B::Device,
) -> Result<Memory<B>, Error> {
    let file = Tensors::open(path)?;
    let metadata = file.metadata();
    if metadata.get("format").map(String::as_str) != Some(FORMAT) {
        return Err(Error::file(path, "is not a memory file"));
    }
    // Files without a method were written before there was another one.
    let theirs = metadata.get("method").map_or(GRADMEM, String::as_str);
    if theirs != method {
        let problem = format!("was written by {theirs}, but this model reads by {method}");
        return Err(Error::file(path, problem));
    }
    let (ours, theirs) = (fingerprint(module), metadata.get("model"));
    if theirs != Some(&ours) {
        let theirs = theirs.map_or("unknown", String::as_str);
        return Err(Error::file(
            path,
            format!("was written by model {theirs}, but this is model {ours}"),
        ));
    }
    let shapes = [
        (VECTORS, [m, d]),
        (PROJECTION[0], [d, d]),
        (PROJECTION[1], [1, d]),
    ];
    let count = if projects { shapes.len() } else { 1 };
    if file.contains(PROJECTION[0]) != projects {
        let problem = match projects {
            true => "has no projections of its memories' own, which this model reads",
            false => "has projections of its memories' own, which this model does not read",
        };
        return Err(Error::file(path, problem));
    }
    let dtype = <B::FloatElem as Element>::dtype();
    let mut fast: Vec<Tensor<B, 3>> = Vec::new();
    for (name, [rows, width]) in shapes.into_iter().take(count) {
        let data = file.get(name)?;
        let batch = fast.first().map(|vectors| vectors.dims()[0]);
        let fits = data.shape.num_dims() == 3
            && data.shape[1..] == [rows, width]
            && batch.is_none_or(|batch| data.shape[0] == batch);
        if !fits {
            let batch = batch.map_or("batch".into(), |batch| batch.to_string());
            let problem = format!(
                "`{name}` is {:?}, not [{batch}, {rows}, {width}]",
                data.shape
            );
            return Err(Error::file(path, problem));
        }
        if data.iter::<f64>().any(|value| !value.is_finite()) {
            return Err(Error::file(path, "holds numbers that are not finite"));
        }
        fast.push(Tensor::from_data(
            data.convert_dtype(dtype),
            (device, dtype),
        ));
    }
    Ok(Memory::from_fast(fast))
}

impl<B: Backend, M: CausalLm<B>> GradMem<B, M> {
    /// A short hash of all weights; a memory can only be read by the model that wrote it.
    pub fn fingerprint(&self) -> String {
        fingerprint(self)
    }

    /// Saves a memory as `.safetensors`, with this model's fingerprint, K and α.
    ///
    /// # Errors
    ///
    /// If the file cannot be written; what was there before then stays.
    pub fn save_memory(&self, memory: &Memory<B>, path: impl AsRef<Path>) -> Result<(), Error> {
        let about = [
            ("write_steps", self.config.write_steps.to_string()),
            ("write_lr", self.config.write_lr.to_string()),
        ];
        save(self, memory, GRADMEM, &about, path.as_ref())
    }

    /// Loads a memory this model wrote.
    ///
    /// # Errors
    ///
    /// If the file is no memory, is damaged, or was written by another model.
    pub fn load_memory(&self, path: impl AsRef<Path>) -> Result<Memory<B>, Error> {
        let shape = [self.config.memory_tokens, self.model.d_model()];
        let projects = self.config.mem_proj == MemProj::PerSample;
        load(
            self,
            GRADMEM,
            shape,
            projects,
            path.as_ref(),
            &self.mem.val().device(),
        )
    }
}
