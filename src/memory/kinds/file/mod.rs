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
//! a file is opened, except for what only the model knows: that is checked by [`MemoryFiles::unpack`].

mod format;
mod matrix;
mod pack;

use std::path::PathBuf;

use burn::tensor::DType;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use self::matrix::Matrix;
pub use self::pack::MemoryFiles;
pub(crate) use self::pack::fingerprint;
use super::check_indices;
use crate::error::Error;
use crate::support::fs::hex;

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
    /// The WRITE loss where WRITE began, in nats a token: at M0, or of a text that was written on the memory of others, there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss_before: Option<f64>,
    /// The WRITE loss at M_K.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss_after: Option<f64>,
    /// Steps of Adam, if it was optimised for its context ([`GradMem::cram`](crate::memory::GradMem::cram)).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adam_steps: Option<usize>,
    /// The share of the context's tokens that are predicted, each after those before it, if it was looked at.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accuracy: Option<f64>,
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
    /// Its name, or its index in the file if it has none.
    pub fn name_at(&self, index: usize) -> String {
        self.name.clone().unwrap_or_else(|| index.to_string())
    }

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

/// The most names that an error lists.
const MOST_NAMES: usize = 8;

/// Memories of n contexts outside of any backend: made by [`MemoryFiles::pack`] or opened from a file, and given back to the
/// model that wrote them by [`MemoryFiles::unpack`].
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
    matrices: Vec<Matrix>,
    /// Where they were read from, for messages.
    path: PathBuf,
}

impl MemoryFile {
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
        self.matrices[0].shape()
    }

    /// How its numbers are held.
    pub fn dtype(&self) -> DType {
        self.matrices[0].numbers.dtype
    }

    /// The numbers of one memory.
    pub fn numbers_each(&self) -> usize {
        let all = self.matrices.iter().map(|x| x.numbers.num_elements());
        all.sum::<usize>() / self.len().max(1)
    }

    /// Bytes of one memory's numbers.
    pub fn bytes_each(&self) -> usize {
        let all = self.matrices.iter().map(Matrix::bytes);
        all.sum::<usize>() / self.len().max(1)
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
        let before: Vec<Matrix> = self.matrices.iter().map(Matrix::in_f32).collect();
        let held = before.iter().map(|matrix| match float {
            MemoryFloat::F32 => matrix.clone(),
            MemoryFloat::Bf16 => matrix.in_bf16(),
            MemoryFloat::Int8 => matrix.in_bytes(),
        });
        self.matrices = held.collect();
        if float == MemoryFloat::Int8 {
            let after: Vec<Matrix> = self.matrices.iter().map(Matrix::in_f32).collect();
            for (at, sample) in self.samples.iter_mut().enumerate() {
                sample.rounding = Some(matrix::change(&before, &after, at));
            }
        }
        self
    }

    /// The index of the memory with this name or, if none has it, with this index. One without a name is called by its index.
    ///
    /// # Errors
    ///
    /// If there is none, or several have the name.
    pub fn index_of(&self, name: &str) -> Result<usize, Error> {
        self.check()?;
        let samples = self.samples.iter().enumerate();
        let names: Vec<String> = samples.map(|(at, sample)| sample.name_at(at)).collect();
        let mut with_name = names.iter().enumerate().filter(|(_, x)| *x == name);
        let index = || name.parse().ok().filter(|at: &usize| *at < self.len());
        if let Some(at) = index().filter(|at| names[*at] == name) {
            return Ok(at);
        }
        let problem = match (with_name.next(), with_name.next()) {
            (Some((at, _)), None) => return Ok(at),
            (Some(_), Some(_)) => {
                format!("several memories are called {name:?}: give the index of one, from 0")
            }
            (None, _) => match index() {
                Some(at) => return Ok(at),
                None => {
                    let known = names.iter().take(MOST_NAMES);
                    let known: Vec<_> = known.map(|name| format!("{name:?}")).collect();
                    let more = if names.len() > MOST_NAMES {
                        ", …"
                    } else {
                        ""
                    };
                    format!(
                        "no memory is called {name:?}: there are {}{more}",
                        known.join(", ")
                    )
                }
            },
        };
        Err(Error::file(&self.path, problem))
    }

    /// The memories of these indices, in this order.
    ///
    /// # Errors
    ///
    /// An index beyond them, or none; `samples` that are not as many as the memories.
    pub fn select(&self, indices: &[usize]) -> Result<Self, Error> {
        self.check()?;
        check_indices(indices, self.len())?;
        let matrices = self.matrices.iter().map(|matrix| matrix.select(indices));
        Ok(Self {
            origin: self.origin.clone(),
            samples: indices.iter().map(|i| self.samples[*i].clone()).collect(),
            kind: self.kind.clone(),
            chunks: self.chunks,
            matrices: matrices.collect(),
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
