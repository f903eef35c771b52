//! Memories as a file: their matrices, what wrote them, and how well.
//!
//! A `.safetensors` file holds of n memories a tensor `[n, rows, columns]` for each of their matrices: of a prefix `memory`
//! `[n, memory_tokens, d_model]`, with [`MemProj::PerSample`](crate::memory::MemProj::PerSample) also `projection.weight`
//! `[n, d_model, d_model]` and `projection.bias` `[n, 1, d_model]`; of LoRA `lora_mem_A.layer0` and so on, of keys and values
//! `kv_mem_K.0` and so on; of ARMT `W_mem.0` and `z.0` and so on. Memories of several chunks stand one behind the other in the rows. In bytes ([`MemoryFloat::Int8`])
//! each row has a number in `memory.scale` and so on that they are multiplied with.
//!
//! Its metadata has, under `gradmem_memory`, one object of JSON: a format version, an [`Origin`], n [`Written`], and, in
//! version 2, the kind and the number of chunks. What version 1 can say is written as version 1. Everything is checked when
//! a file is opened, except for what only the model knows: that is checked by `unpack`.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use burn::module::Module;
use burn::tensor::backend::Backend;
use burn::tensor::{DType, Element, Tensor, TensorData};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::value::{PREFIX, Shapes};
use super::{Layout, Memory, check_indices};
use crate::error::Error;
use crate::model::weights::{self, Tensors};
use crate::support::fs::{hex, write_atomically};

/// The tensors of a prefix: the vectors, and each sample's own projection if it has one.
const TENSORS: [&str; 3] = ["memory", "projection.weight", "projection.bias"];
/// The metadata's entry. One, because the order of several would change from one writing to the next.
const ENTRY: &str = "gradmem_memory";
/// The version of the format that prefixes are written in, and the newest.
const FIRST: u64 = 1;
const VERSION: u64 = 2;
/// Behind the name of a tensor of bytes: its rows' scales.
const SCALE: &str = ".scale";

/// What wrote a file's memories.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Origin {
    /// The method: `gradmem`, `rmt` or `armt`.
    pub method: String,
    /// The [fingerprint](crate::memory::GradMem::fingerprint) of the model and all else that reads them.
    pub model: String,
    /// K: WRITE steps, or passes of RMT; of ARMT 1.
    pub write_steps: usize,
    /// α: the step size of WRITE, if there is one.
    pub write_lr: Option<f64>,
    /// The fingerprint (`data::tokenizer_fingerprint`) of the tokenizer that made tokens of the contexts.
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
    /// Steps of Adam, if it was optimised for its context ([`GradMem::cram`](crate::memory::GradMem::cram)).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adam_steps: Option<usize>,
    /// The share of the context's tokens that are told right, each after those before it, if it was looked at.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub told: Option<f64>,
    /// Bytes that the model would keep of the context instead: its key-value cache.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_bytes: Option<usize>,
    /// SHA-256 of the context's text, as hexadecimal digits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub context_sha256: Option<String>,
    /// The context itself, if whoever wrote it asked for that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub context: Option<String>,
    /// Chunks whose memories READ is given, if they are several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chunks: Option<usize>,
    /// How many texts were written on behind the first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub appended: Option<usize>,
    /// The WRITE loss of the numbers as they are stored, if they were rounded to bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss_stored: Option<f64>,
    /// The root mean square of what rounding to bytes changed, over that of the numbers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rounding: Option<f64>,
}

impl Written {
    /// Sets the hash of the context, by which [`Written::is_of`] compares texts later.
    pub fn with_hash_of(mut self, context: &str) -> Self {
        self.context_sha256 = Some(hex(&Sha256::digest(context)));
        self
    }

    /// Adds a text that was written behind the others: the hash of a part alone is that of no text.
    pub fn append(&mut self, context: &str, tokens: usize) {
        self.tokens = self.tokens.map(|before| before.saturating_add(tokens));
        self.appended = Some(self.appended.unwrap_or(0).saturating_add(1));
        self.context_sha256 = None;
        if let Some(before) = &mut self.context {
            before.push('\n');
            before.push_str(context);
        }
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
    #[serde(default = "prefix", skip_serializing_if = "is_prefix")]
    kind: String,
    #[serde(default = "one", skip_serializing_if = "is_one")]
    chunks: usize,
}

fn prefix() -> String {
    PREFIX.into()
}

fn is_prefix(kind: &str) -> bool {
    kind == PREFIX
}

fn one() -> usize {
    1
}

fn is_one(chunks: &usize) -> bool {
    *chunks == 1
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
    /// In a quarter of the room: each row as whole numbers from −127 to 127 times one number of its own.
    Int8,
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
    kind: String,
    /// How many chunks' memories stand one behind the other.
    chunks: usize,
    /// The matrices by name, each with the samples as first of three dimensions, and the scales of bytes.
    tensors: Vec<(String, TensorData)>,
    /// Where they were read from, for messages.
    path: PathBuf,
}

impl MemoryFile {
    /// Opens a memory file.
    ///
    /// # Errors
    ///
    /// If it cannot be read, is no memory file or a damaged one, is of a newer format version, its tensors
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
            Some(FIRST..=VERSION) => {}
            Some(version) => {
                return Err(problem(format!(
                    "is a memory file of format version {version}, but versions up to {VERSION} are what this \
                     program understands"
                )));
            }
            None => return Err(problem("is a memory file without a format version".into())),
        }
        let header: Header = serde_json::from_value(entry).map_err(damaged)?;
        let found = Self {
            origin: header.origin,
            samples: header.samples,
            kind: header.kind,
            chunks: header.chunks,
            tensors: Vec::new(),
            path: path.into(),
        };
        found.with_tensors(&file).map_err(problem)
    }

    /// With the tensors of a file, checked against each other and the metadata.
    fn with_tensors(mut self, file: &Tensors) -> Result<Self, String> {
        let is_scale = |name: &str| name.ends_with(SCALE);
        let names: Vec<&str> = match self.kind.as_str() {
            PREFIX => {
                let known =
                    |name: &str| TENSORS.contains(&name.strip_suffix(SCALE).unwrap_or(name));
                if let Some(name) = file.names().find(|name| !known(name)) {
                    return Err(format!("holds `{name}`, which is no part of a memory"));
                }
                let count = file.names().filter(|name| !is_scale(name)).count().max(1);
                if count == 2 {
                    return Err(
                        "holds half of a projection: a weight and a bias belong together".into(),
                    );
                }
                TENSORS[..count].to_vec()
            }
            _ => file.names().filter(|name| !is_scale(name)).collect(),
        };
        if names.is_empty() {
            return Err("holds no tensor".into());
        }
        let get = |name: &str| {
            file.get(name).map_err(|e| match e {
                Error::File { problem, .. } => problem,
                other => other.to_string(),
            })
        };
        let n = self.samples.len();
        for name in names {
            let data = get(name)?;
            let shape = data.shape.to_vec();
            let parts = self.chunks;
            let [count, rows, columns] = shape[..] else {
                return Err(format!("`{name}` is {shape:?}, not [{n}, rows, columns]"));
            };
            if count != n || n == 0 || rows == 0 || columns == 0 {
                return Err(format!(
                    "`{name}` is {shape:?}, not [{n}, {}] for the {n} contexts of its metadata",
                    if name == TENSORS[0] {
                        "memory_tokens, d_model"
                    } else {
                        "rows, columns"
                    }
                ));
            }
            if parts == 0 || rows % parts != 0 {
                return Err(format!(
                    "`{name}` has {rows} rows, which {parts} chunks do not share evenly"
                ));
            }
            let scale = format!("{name}{SCALE}");
            if data.dtype == DType::I8 {
                let scales = get(&scale)?;
                if scales.shape.to_vec() != [n, rows, 1] || scales.dtype != DType::F32 {
                    return Err(format!(
                        "`{scale}` is {:?} of {:?}, not {:?} of F32",
                        scales.shape.to_vec(),
                        scales.dtype,
                        [n, rows, 1]
                    ));
                }
                self.tensors.push((name.into(), data));
                self.tensors.push((scale, scales));
                continue;
            }
            if !data.dtype.is_float() {
                return Err(format!("`{name}` holds {:?}, not floats", data.dtype));
            }
            if file.names().any(|other| other == scale) {
                return Err(format!("has a scale of `{name}`, which is not of bytes"));
            }
            self.tensors.push((name.into(), data));
        }
        if self.kind == PREFIX {
            let [_, m, d] = self.shape();
            let expected = [[n, m, d], [n, self.chunks * d, d], [n, self.chunks, d]];
            let matrices = self.tensors.iter().filter(|(name, _)| !is_scale(name));
            for ((name, data), expected) in matrices.zip(expected) {
                let found = data.shape.to_vec();
                if found != expected {
                    return Err(format!("`{name}` is {found:?}, not {expected:?}"));
                }
            }
        }
        // As they are read: bytes by their scales, f64 in 32 bits.
        let finite = |(_, data): &(String, TensorData)| data.iter::<f32>().all(f32::is_finite);
        if !self.floats().iter().all(finite) {
            return Err("holds non-finite numbers".into());
        }
        self.check_chunks()?;
        Ok(self)
    }

    fn check_chunks(&self) -> Result<(), String> {
        let all = self.chunks;
        let wrong = self.samples.iter().position(|sample| {
            let chunks = sample.chunks.unwrap_or(all);
            chunks == 0 || chunks > all
        });
        match wrong {
            None => Ok(()),
            Some(at) => Err(format!(
                "says that memory {at} is of {} chunks, but there is room for 1 to {all}",
                self.samples[at].chunks.unwrap_or(0)
            )),
        }
    }

    /// Writes a memory file. The same memories make the same bytes.
    ///
    /// # Errors
    ///
    /// If `samples` are not as many as the memories, or it cannot be written; what was there before then
    /// stays.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<(), Error> {
        self.check()?;
        let plain = self.kind == PREFIX && self.chunks == 1 && self.dtype() != DType::I8;
        let header = Header {
            version: if plain { FIRST } else { VERSION },
            origin: self.origin.clone(),
            samples: self.samples.clone(),
            kind: self.kind.clone(),
            chunks: self.chunks,
        };
        let header = serde_json::to_string(&header)
            .map_err(|e| Error::Failed(format!("a memory's metadata cannot be saved: {e}")))?;
        let metadata = HashMap::from([(ENTRY.to_string(), header)]);
        write_atomically(path, &weights::encode(&self.tensors, metadata)?)
    }

    /// The kind of memory: `prefix`, `lora`, `kv`, or `associative` of ARMT.
    pub fn kind(&self) -> &str {
        &self.kind
    }

    /// How many chunks' memories each sample has at most.
    pub fn chunks(&self) -> usize {
        self.chunks
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

    /// Of the first matrix; of a prefix `[n, memory_tokens, d_model]`, with the vectors of all chunks.
    pub fn shape(&self) -> [usize; 3] {
        [0, 1, 2].map(|at| self.tensors[0].1.shape[at])
    }

    /// How its numbers are held.
    pub fn dtype(&self) -> DType {
        self.tensors[0].1.dtype
    }

    /// The numbers of one memory.
    pub fn numbers_each(&self) -> usize {
        let matrices = self.tensors.iter();
        let matrices = matrices.filter(|(name, _)| !name.ends_with(SCALE));
        let all: usize = matrices.map(|(_, data)| data.shape.num_elements()).sum();
        all / self.len().max(1)
    }

    /// Bytes of one memory's numbers.
    pub fn bytes_each(&self) -> usize {
        let all = self.tensors.iter().map(|(_, data)| data.bytes.len());
        let all: usize = all.sum();
        all / self.len().max(1)
    }

    /// How the numbers are held.
    pub fn float(&self) -> MemoryFloat {
        match self.dtype() {
            DType::BF16 => MemoryFloat::Bf16,
            DType::I8 => MemoryFloat::Int8,
            _ => MemoryFloat::F32,
        }
    }

    /// The same numbers held in another way. Rounding to bytes notes in each sample what it [changed](Written::rounding).
    pub fn with_float(mut self, float: MemoryFloat) -> Self {
        let before = self.floats().into_iter();
        let before: Vec<_> = before
            .map(|(name, data)| (name, data.convert_dtype(DType::F32)))
            .collect();
        let dtype = match float {
            MemoryFloat::F32 => DType::F32,
            MemoryFloat::Bf16 => DType::BF16,
            MemoryFloat::Int8 => {
                self.tensors = before
                    .iter()
                    .flat_map(|(name, data)| in_bytes(name, data))
                    .collect();
                let after = self.floats();
                for (at, sample) in self.samples.iter_mut().enumerate() {
                    sample.rounding = Some(change(&before, &after, at));
                }
                return self;
            }
        };
        let tensors = before.into_iter();
        self.tensors = tensors
            .map(|(name, data)| (name, data.convert_dtype(dtype)))
            .collect();
        self
    }

    /// The matrices as floats.
    fn floats(&self) -> Vec<(String, TensorData)> {
        let matrices = self.tensors.iter().enumerate();
        let floats = matrices.filter_map(|(at, (name, data))| match data.dtype {
            _ if name.ends_with(SCALE) => None,
            DType::I8 => {
                let scales: Vec<f32> = self.tensors[at + 1].1.iter::<f32>().collect();
                let columns = data.shape[2];
                let values = data.iter::<f32>().enumerate();
                let values = values.map(|(at, value)| value * scales[at / columns]);
                let values: Vec<f32> = values.collect();
                Some((name.clone(), TensorData::new(values, data.shape.clone())))
            }
            _ => Some((name.clone(), data.clone())),
        });
        floats.collect()
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
        let tensors = self.tensors.iter().map(|(name, data)| {
            let each = data.bytes.len() / n;
            let bytes: Vec<u8> = indices
                .iter()
                .flat_map(|index| &data.bytes[index * each..(index + 1) * each])
                .copied()
                .collect();
            let shape = [indices.len(), data.shape[1], data.shape[2]];
            let data = TensorData::from_bytes_vec(bytes, shape.to_vec(), data.dtype);
            (name.clone(), data)
        });
        Ok(Self {
            origin: self.origin.clone(),
            samples: indices.iter().map(|i| self.samples[*i].clone()).collect(),
            kind: self.kind.clone(),
            chunks: self.chunks,
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

/// A matrix as whole numbers, and what each row of them is multiplied with.
fn in_bytes(name: &str, data: &TensorData) -> [(String, TensorData); 2] {
    let [n, rows, columns] = [0, 1, 2].map(|at| data.shape[at]);
    let values: Vec<f32> = data.iter::<f32>().collect();
    let (mut bytes, mut scales) = (Vec::with_capacity(values.len()), Vec::new());
    for row in values.chunks(columns) {
        let largest = row.iter().fold(0f32, |most, value| most.max(value.abs()));
        let scale = largest / 127.0;
        scales.push(scale);
        bytes.extend(row.iter().map(|value| match scale > 0.0 {
            true => (value / scale).round().clamp(-127.0, 127.0) as i8,
            false => 0,
        }));
    }
    [
        (name.into(), TensorData::new(bytes, [n, rows, columns])),
        (
            format!("{name}{SCALE}"),
            TensorData::new(scales, [n, rows, 1]),
        ),
    ]
}

/// The root mean square of the differences between two forms of a memory, over that of the first's numbers.
fn change(before: &[(String, TensorData)], after: &[(String, TensorData)], at: usize) -> f64 {
    let (mut squares, mut total) = (0.0, 0.0);
    for ((_, a), (_, b)) in before.iter().zip(after) {
        let each = a.num_elements() / a.shape[0].max(1);
        let of_sample = |data: &TensorData| -> Vec<f32> {
            let all = data.as_slice::<f32>().unwrap_or_default();
            all.get(at * each..(at + 1) * each)
                .unwrap_or_default()
                .to_vec()
        };
        for (a, b) in of_sample(a).into_iter().zip(of_sample(b)) {
            squares += f64::from(a - b).powi(2);
            total += f64::from(a).powi(2);
        }
    }
    if total > 0.0 {
        (squares / total).sqrt()
    } else {
        0.0
    }
}

/// A memory outside of its backend.
pub(crate) fn pack<B: Backend>(
    memory: &Memory<B>,
    origin: Origin,
    layout: &Layout,
) -> Result<MemoryFile, Error> {
    let n = memory.len();
    let parts = memory.parts();
    let tensors = layout.names.iter().enumerate().map(|(matrix, name)| {
        let chunks = parts.iter().map(|part| part[matrix].clone());
        let data = Tensor::cat(chunks.collect(), 1).to_data();
        let each = data.num_elements() / n.max(1);
        // In the 32 bits of a file.
        let wrong = data.iter::<f32>().position(|value| !value.is_finite());
        match wrong {
            None => Ok((name.clone(), data)),
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
        tensors: tensors.collect::<Result<_, _>>()?,
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
    let mut matrices = file.floats();
    let place = |name: &String| reads.names.iter().position(|other| other == name);
    matrices.sort_by_key(|(name, _)| place(name).unwrap_or(usize::MAX));
    let chunks = file.chunks.max(1);
    let shapes = matrices
        .iter()
        .map(|(_, data)| [data.shape[1] / chunks, data.shape[2]]);
    if let Some(wrong) = reads.problem(&Shapes(shapes.collect())) {
        return problem(wrong);
    }
    let names = matrices.iter().map(|(name, _)| name);
    if let Some((found, expected)) = names.zip(&reads.names).find(|(a, b)| a != b) {
        return problem(format!(
            "holds `{found}` where this model reads `{expected}`"
        ));
    }
    let dtype = <B::FloatElem as Element>::dtype();
    let tensors: Vec<Tensor<B, 3>> = matrices
        .into_iter()
        .map(|(_, data)| Tensor::from_data(data.convert_dtype(dtype), (device, dtype)))
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
