//! Memories as a file: their vectors, what wrote them, and how well.
//!
//! A `.safetensors` file holds the tensor `memory` `[n, memory_tokens, d_model]` of n contexts, with
//! [`MemProj::PerSample`](crate::memory::MemProj::PerSample) also `projection.weight` `[n, d_model, d_model]` and `projection.bias`
//! `[n, 1, d_model]`, and in its metadata, under `gradmem_memory`, one object of JSON: a format version,
//! an [`Origin`] and n [`Written`]. Everything is checked when a file is opened, except for what only the model
//! knows: that is checked by `unpack`.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use burn::module::Module;
use burn::tensor::backend::Backend;
use burn::tensor::{DType, Element, Tensor, TensorData};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{Layout, Memory, check_indices};
use crate::error::Error;
use crate::model::weights::{self, Tensors};
use crate::support::fs::{hex, write_atomically};

/// The tensors: the vectors, and each sample's own projection if it has one.
const TENSORS: [&str; 3] = ["memory", "projection.weight", "projection.bias"];
/// The metadata's entry. One, because the order of several would change from one writing to the next.
const ENTRY: &str = "gradmem_memory";
/// The version of the format that is written, and the only one that is understood.
const VERSION: u64 = 1;

/// What wrote a file's memories.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Origin {
    /// The method: `gradmem` or `rmt`.
    pub method: String,
    /// The [fingerprint](crate::memory::GradMem::fingerprint) of the model and all else that reads them.
    pub model: String,
    /// K: WRITE steps, or passes of RMT.
    pub write_steps: usize,
    /// α: the step size of WRITE, if there is one.
    pub write_lr: Option<f64>,
    /// The [fingerprint](crate::data::tokenizer_fingerprint) of the tokenizer that made tokens of the contexts.
    pub tokenizer: Option<String>,
}

/// What is known of one memory and its context. Nothing here is needed to read it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Written {
    /// What it is called.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Tokens of the context.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens: Option<usize>,
    /// The WRITE loss at M0, in nats a token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss_before: Option<f64>,
    /// The WRITE loss at M_K.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss_after: Option<f64>,
    /// Bytes that the model would keep of the context instead: its key-value cache.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_bytes: Option<usize>,
    /// SHA-256 of the context's text, as hexadecimal digits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub context_sha256: Option<String>,
    /// The context itself, if whoever wrote it asked for that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub context: Option<String>,
}

impl Written {
    /// Sets the hash of the context, by which [`Written::is_of`] compares texts later.
    pub fn with_hash_of(mut self, context: &str) -> Self {
        self.context_sha256 = Some(hex(&Sha256::digest(context)));
        self
    }

    /// Whether this was written from `context`; `None` if its hash was not kept.
    pub fn is_of(&self, context: &str) -> Option<bool> {
        let hash = self.context_sha256.as_ref()?;
        Some(*hash == hex(&Sha256::digest(context)))
    }
}

/// The metadata's entry.
#[derive(Serialize, Deserialize)]
struct Header {
    version: u64,
    #[serde(flatten)]
    origin: Origin,
    samples: Vec<Written>,
}

/// How a file holds its numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum MemoryFloat {
    /// As they are.
    #[default]
    F32,
    /// In half the room, with 8 bits of precision.
    Bf16,
}

/// Memories of n contexts outside of any backend: made by [`GradMem::pack`](crate::memory::GradMem::pack) or opened from a file, and
/// given back to the model that wrote them by [`GradMem::unpack`](crate::memory::GradMem::unpack).
#[derive(Clone, Debug)]
#[must_use]
pub struct MemoryFile {
    /// What wrote them.
    pub origin: Origin,
    /// What is known of each. As many as there are memories.
    pub samples: Vec<Written>,
    /// One to three of [`TENSORS`], each with the samples as first of three dimensions.
    tensors: Vec<TensorData>,
    /// Where they were read from, for messages.
    path: PathBuf,
}

impl MemoryFile {
    /// Opens a memory file.
    ///
    /// # Errors
    ///
    /// If it cannot be read, is no memory file or a damaged one, is of another format version, its tensors
    /// are inconsistent with each other or its metadata, or it holds non-finite numbers.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        let problem = |problem: String| Error::file(path, problem);
        let file = Tensors::open(path)?;
        let entry = file.metadata().get(ENTRY);
        let entry = entry.ok_or_else(|| problem("is not a memory file".into()))?;
        let damaged = |e| problem(format!("says in its metadata what cannot be read: {e}"));
        let entry: serde_json::Value = serde_json::from_str(entry).map_err(damaged)?;
        match entry.get("version").and_then(serde_json::Value::as_u64) {
            Some(VERSION) => {}
            Some(version) => {
                return Err(problem(format!(
                    "is a memory file of format version {version}, but version {VERSION} is what this \
                     program understands"
                )));
            }
            None => return Err(problem("is a memory file without a format version".into())),
        }
        let Header {
            origin, samples, ..
        } = serde_json::from_value(entry).map_err(damaged)?;

        if let Some(name) = file.names().find(|name| !TENSORS.contains(name)) {
            return Err(problem(format!(
                "holds `{name}`, which is no part of a memory"
            )));
        }
        let count = file.names().count().max(1);
        if count == 2 {
            return Err(problem(
                "holds half of a projection: a weight and a bias belong together".into(),
            ));
        }
        let tensors = TENSORS[..count].iter().map(|name| file.get(name));
        let tensors = tensors.collect::<Result<Vec<_>, _>>()?;
        let n = samples.len();
        let shape = &tensors[0].shape;
        if shape.num_dims() != 3 || shape[0] != n || shape.num_elements() == 0 {
            let shape = shape.as_slice();
            return Err(problem(format!(
                "`memory` is {shape:?}, not [{n}, memory_tokens, d_model] for the {n} contexts of its metadata"
            )));
        }
        let d = shape[2];
        let expected = [[n, shape[1], d], [n, d, d], [n, 1, d]];
        for ((name, data), expected) in TENSORS.iter().zip(&tensors).zip(expected) {
            if data.shape.as_slice() != expected {
                let found = data.shape.as_slice();
                return Err(problem(format!("`{name}` is {found:?}, not {expected:?}")));
            }
            if !data.dtype.is_float() {
                let found = data.dtype;
                return Err(problem(format!("`{name}` holds {found:?}, not floats")));
            }
            if data.iter::<f64>().any(|value| !value.is_finite()) {
                return Err(problem("holds non-finite numbers".into()));
            }
        }
        Ok(Self {
            origin,
            samples,
            tensors,
            path: path.into(),
        })
    }

    /// Writes a memory file. The same memories make the same bytes.
    ///
    /// # Errors
    ///
    /// If `samples` are not as many as the memories, or it cannot be written; what was there before then
    /// stays.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<(), Error> {
        self.check()?;
        let header = Header {
            version: VERSION,
            origin: self.origin.clone(),
            samples: self.samples.clone(),
        };
        let header = serde_json::to_string(&header)
            .map_err(|e| Error::Failed(format!("a memory's metadata cannot be saved: {e}")))?;
        let metadata = HashMap::from([(ENTRY.to_string(), header)]);
        let names = TENSORS.iter().map(|name| name.to_string());
        let tensors: Vec<_> = names.zip(self.tensors.iter().cloned()).collect();
        write_atomically(path, &weights::encode(&tensors, metadata)?)
    }

    /// How many memories there are.
    pub fn len(&self) -> usize {
        self.shape()[0]
    }

    /// Fails unless there is one of `samples` to each memory: anybody may change them.
    fn check(&self) -> Result<(), Error> {
        let (memories, samples) = (self.len(), self.samples.len());
        match memories == samples {
            true => Ok(()),
            false => Err(Error::Input(format!(
                "there are {memories} memories, but {samples} descriptions of them"
            ))),
        }
    }

    /// Whether there are none, which no file has.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// `[n, memory_tokens, d_model]`
    pub fn shape(&self) -> [usize; 3] {
        [0, 1, 2].map(|at| self.tensors[0].shape[at])
    }

    /// How its numbers are held.
    pub fn dtype(&self) -> DType {
        self.tensors[0].dtype
    }

    /// Bytes of one memory's numbers.
    pub fn bytes_each(&self) -> usize {
        let all: usize = self.tensors.iter().map(|data| data.bytes.len()).sum();
        all / self.len().max(1)
    }

    /// The same numbers held in another way.
    pub fn with_float(mut self, float: MemoryFloat) -> Self {
        let dtype = match float {
            MemoryFloat::F32 => DType::F32,
            MemoryFloat::Bf16 => DType::BF16,
        };
        let tensors = self.tensors.into_iter();
        self.tensors = tensors.map(|data| data.convert_dtype(dtype)).collect();
        self
    }

    /// The memories of these indices, in this order.
    ///
    /// # Errors
    ///
    /// An index beyond them, or none; `samples` that are not as many as the memories.
    pub fn select(&self, indices: &[usize]) -> Result<Self, Error> {
        self.check()?;
        let n = self.len();
        check_indices(indices, n)?;
        let tensors = self.tensors.iter().map(|data| {
            let each = data.bytes.len() / n;
            let bytes: Vec<u8> = indices
                .iter()
                .flat_map(|index| &data.bytes[index * each..(index + 1) * each])
                .copied()
                .collect();
            let shape = [indices.len(), data.shape[1], data.shape[2]];
            TensorData::from_bytes_vec(bytes, shape.to_vec(), data.dtype)
        });
        Ok(Self {
            origin: self.origin.clone(),
            samples: indices.iter().map(|i| self.samples[*i].clone()).collect(),
            tensors: tensors.collect(),
            path: self.path.clone(),
        })
    }

    /// Checks that the contexts went through the tokenizer of this fingerprint. A file that does not say
    /// which it was passes.
    ///
    /// # Errors
    ///
    /// If they went through another one; both are named.
    pub fn check_tokenizer(&self, ours: &str) -> Result<(), Error> {
        match self.origin.tokenizer.as_deref() {
            Some(theirs) if theirs != ours => Err(Error::file(
                &self.path,
                format!("was written through tokenizer {theirs}, but this is tokenizer {ours}"),
            )),
            _ => Ok(()),
        }
    }
}

/// A short hash of what reads a memory: all weights by name, shape and value, and the `settings` of the
/// model. Values count as f32, so that a backend of another precision reads the same file.
pub(crate) fn fingerprint<B: Backend, M: Module<B>>(module: &M, settings: &str) -> String {
    let mut hash = Sha256::new();
    hash.update(settings.as_bytes());
    for (name, data) in weights::parameters(module) {
        hash.update(format!("{name} {:?}", data.shape.as_slice()));
        hash.update(&*data.convert_dtype(DType::F32).bytes);
    }
    hex(&hash.finalize()[..8])
}

/// A memory outside of its backend.
pub(crate) fn pack<B: Backend>(memory: &Memory<B>, origin: Origin) -> Result<MemoryFile, Error> {
    let tensors: Vec<_> = memory.fast().iter().map(Tensor::to_data).collect();
    let n = memory.len();
    for data in &tensors {
        let each = data.num_elements() / n.max(1);
        let wrong = data.iter::<f64>().position(|value| !value.is_finite());
        if let Some(at) = wrong {
            return Err(Error::Failed(format!(
                "memory {} of {n} holds non-finite numbers: it is not saved",
                at / each.max(1)
            )));
        }
    }
    let losses: Vec<f64> = match memory.losses.first() {
        Some(losses) => losses.to_data().iter::<f64>().collect(),
        None => Vec::new(),
    };
    let sample = |at: usize| Written {
        loss_before: losses.get(at).copied(),
        ..Written::default()
    };
    let file = MemoryFile {
        origin,
        samples: (0..n).map(sample).collect(),
        tensors,
        path: "the memory".into(),
    };
    Ok(file.with_float(MemoryFloat::F32))
}

/// The memories of a file on a backend, for a method and model of these names that read memories of this
/// layout.
pub(crate) fn unpack<B: Backend>(
    file: &MemoryFile,
    [method, model]: [&str; 2],
    reads: Layout,
    device: &B::Device,
) -> Result<Memory<B>, Error> {
    let problem = |problem: String| Err(Error::file(&file.path, problem));
    let origin = &file.origin;
    if origin.method != method {
        let theirs = &origin.method;
        return problem(format!(
            "was written by {theirs}, but this model reads by {method}"
        ));
    }
    if origin.model != model {
        let theirs = &origin.model;
        return problem(format!(
            "was written by model {theirs}, but this is model {model}"
        ));
    }
    let ([_, rows, width], [m, d]) = (file.shape(), reads.vectors);
    if [rows, width] != [m, d] {
        return problem(format!(
            "has memories of {rows} vectors of width {width}, but this model reads {m} of width {d}"
        ));
    }
    match (file.tensors.len() > 1, reads.own_projection) {
        (false, true) => {
            return problem(
                "has no projections of its memories' own, which this model reads".into(),
            );
        }
        (true, false) => {
            return problem(
                "has projections of its memories' own, which this model does not read".into(),
            );
        }
        _ => {}
    }
    let dtype = <B::FloatElem as Element>::dtype();
    let tensors = file.tensors.iter().cloned().map(|data| {
        let data = data.convert_dtype(dtype);
        Tensor::from_data(data, (device, dtype))
    });
    Ok(Memory::from_fast(tensors.collect()))
}
