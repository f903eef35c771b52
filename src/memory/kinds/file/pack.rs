//! Between memories on a backend and those of a file.

use burn::module::Module;
use burn::tensor::backend::Backend;
use burn::tensor::{DType, Element, Tensor};
use sha2::{Digest, Sha256};

use super::super::value::Shapes;
use super::super::{Layout, Memory};
use super::matrix::Matrix;
use super::{MemoryFile, MemoryFloat, Origin, Written};
use crate::error::Error;
use crate::model::weights;
use crate::support::fs::hex;

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

/// A model's memories as files: `files` of [`GradMem`](crate::memory::GradMem::files) and of the baselines. The model's
/// fingerprint, a hash of all weights, is computed once for all of them.
#[derive(Clone, Debug)]
pub struct MemoryFiles<B: Backend> {
    /// What wrote the memories that are packed, and may alone read those that are unpacked.
    origin: Origin,
    layout: Layout,
    device: B::Device,
}

impl<B: Backend> MemoryFiles<B> {
    /// Of the method and model that `origin` names, with memories of this layout on this device.
    pub(crate) fn new(origin: Origin, layout: Layout, device: B::Device) -> Self {
        Self {
            origin,
            layout,
            device,
        }
    }

    /// Takes memories out of the backend, to be described further and saved, with the WRITE losses where WRITE began (of contexts
    /// in chunks, of the first chunk).
    ///
    /// # Errors
    ///
    /// If they are of another shape than this model's or hold non-finite numbers.
    pub fn pack(&self, memory: &Memory<B>) -> Result<MemoryFile, Error> {
        memory.check(&self.layout)?;
        let n = memory.len();
        let parts = memory.parts();
        let matrices = self.layout.names.iter().enumerate().map(|(matrix, name)| {
            let chunks = parts.iter().map(|part| part[matrix].clone());
            let data = Tensor::cat(chunks.collect(), 1).to_data();
            let each = data.num_elements() / n.max(1);
            // In the 32 bits of a file.
            let wrong = data.iter::<f32>().position(|value| !value.is_finite());
            match wrong {
                None => Ok(Matrix::of_floats(name, data)),
                Some(at) => Err(Error::Failed(format!(
                    "memory {} of {n} holds non-finite numbers: it is not saved",
                    at / each.max(1)
                ))),
            }
        });
        let losses: Vec<f64> = match memory.losses.first() {
            Some(losses) => losses.to_data().iter::<f64>().collect(),
            None => Vec::new(),
        };
        let several = parts.len() > 1;
        let samples = memory.counts().enumerate().map(|(at, chunks)| Written {
            loss_before: losses.get(at).copied(),
            chunks: several.then_some(chunks),
            ..Written::default()
        });
        let file = MemoryFile {
            origin: self.origin.clone(),
            samples: samples.collect(),
            kind: self.layout.kind.into(),
            chunks: parts.len(),
            matrices: matrices.collect::<Result<_, _>>()?,
            path: "the memory".into(),
        };
        Ok(file.with_float(MemoryFloat::F32))
    }

    /// Memories that this model wrote, back on its backend.
    ///
    /// # Errors
    ///
    /// If another method or model wrote them, with both fingerprints named, or they are of another shape.
    pub fn unpack(&self, file: &MemoryFile) -> Result<Memory<B>, Error> {
        file.check()?;
        self.check_origin(file)?;
        let problem = |problem: String| Err(Error::file(&file.path, problem));
        if let Err(wrong) = file.check_chunks() {
            return problem(wrong);
        }
        // In the order of the layout, not of the names.
        let reads = &self.layout;
        let mut matrices: Vec<Matrix> = file.matrices.iter().map(Matrix::in_f32).collect();
        let place = |name: &String| reads.names.iter().position(|other| other == name);
        matrices.sort_by_key(|matrix| place(&matrix.name).unwrap_or(usize::MAX));
        let chunks = file.chunks.max(1);
        let shapes = matrices.iter().map(|matrix| {
            let [_, rows, columns] = matrix.shape();
            [rows / chunks, columns]
        });
        if let Some(wrong) = reads.problem(&Shapes(shapes.collect()), chunks) {
            return problem(wrong);
        }
        let names = matrices.iter().map(|matrix| &matrix.name);
        if let Some((found, expected)) = names.zip(&reads.names).find(|(a, b)| a != b) {
            return problem(format!(
                "holds `{found}` where this model reads `{expected}`"
            ));
        }
        let dtype = <B::FloatElem as Element>::dtype();
        let tensors: Vec<Tensor<B, 3>> = matrices
            .into_iter()
            .map(|matrix| {
                let numbers = matrix.numbers.convert_dtype(dtype);
                Tensor::from_data(numbers, (&self.device, dtype))
            })
            .collect();
        let parts = (0..chunks).map(|chunk| {
            let part = tensors.iter().map(|tensor| {
                let rows = tensor.dims()[1] / chunks;
                tensor.clone().narrow(1, chunk * rows, rows)
            });
            part.collect()
        });
        let counts = file
            .samples
            .iter()
            .map(|sample| sample.chunks.unwrap_or(chunks));
        Ok(Memory::from_parts(parts.collect(), Some(counts.collect())))
    }

    /// Fails unless this method and model wrote the file, with memories of this kind.
    fn check_origin(&self, file: &MemoryFile) -> Result<(), Error> {
        let (theirs, ours) = (&file.origin, &self.origin);
        let problem = if theirs.method != ours.method {
            format!(
                "was written by {}, but this model reads by {}",
                theirs.method, ours.method
            )
        } else if theirs.model != ours.model {
            format!(
                "was written by model {}, but this is model {}",
                theirs.model, ours.model
            )
        } else if file.kind != self.layout.kind {
            format!(
                "has memories of kind `{}`, but this model reads kind `{}`",
                file.kind, self.layout.kind
            )
        } else {
            return Ok(());
        };
        Err(Error::file(&file.path, problem))
    }
}
