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

/// A memory outside of its backend.
pub(crate) fn pack<B: Backend>(
    memory: &Memory<B>,
    origin: Origin,
    layout: &Layout,
) -> Result<MemoryFile, Error> {
    let n = memory.len();
    let parts = memory.parts();
    let matrices = layout.names.iter().enumerate().map(|(matrix, name)| {
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
        origin,
        samples: samples.collect(),
        kind: layout.kind.into(),
        chunks: parts.len(),
        matrices: matrices.collect::<Result<_, _>>()?,
        path: "the memory".into(),
    };
    Ok(file.with_float(MemoryFloat::F32))
}

/// The memories of a file on a backend, for a method and model of these names that read memories of this
/// layout.
pub(crate) fn unpack<B: Backend>(
    file: &MemoryFile,
    [method, model]: [&str; 2],
    reads: &Layout,
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
    if file.kind != reads.kind {
        let (theirs, ours) = (&file.kind, reads.kind);
        return problem(format!(
            "has memories of kind `{theirs}`, but this model reads kind `{ours}`"
        ));
    }
    if let Err(wrong) = file.check_chunks() {
        return problem(wrong);
    }
    // In the order of the layout, not of the names.
    let mut matrices: Vec<Matrix> = file.matrices.iter().map(Matrix::in_f32).collect();
    let place = |name: &String| reads.names.iter().position(|other| other == name);
    matrices.sort_by_key(|matrix| place(&matrix.name).unwrap_or(usize::MAX));
    let chunks = file.chunks.max(1);
    let shapes = matrices.iter().map(|matrix| {
        let [_, rows, columns] = matrix.shape();
        [rows / chunks, columns]
    });
    if let Some(wrong) = reads.problem(&Shapes(shapes.collect())) {
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
        .map(|matrix| Tensor::from_data(matrix.numbers.convert_dtype(dtype), (device, dtype)))
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
