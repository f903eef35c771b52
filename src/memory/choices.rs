//! What [`GradMemConfig`](super::GradMemConfig) chooses from.

use serde::{Deserialize, Serialize};

/// How the outer gradient passes through the WRITE steps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum GradMode {
    /// It does not: the memory is cut from the outer graph and its start M0 is not trained.
    /// Cheapest; the model learns to read whatever WRITE happens to leave.
    None,
    /// The inner gradient counts as a constant (first-order MAML): without a gate M0 gets the gradient of M_K.
    First,
    /// In full, through the inner gradient: WRITE itself is trained. The paper's method.
    #[default]
    Second,
}

/// A linear map between the memory and the model, `mem′ = W mem + b`, the identity at the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum MemProj {
    /// None: `mem′ = mem`.
    #[default]
    None,
    /// One map for all, trained by the outer loop: it shapes the steps that WRITE takes.
    Proj,
    /// Every sample has its own, which WRITE changes along with its memory; the outer loop trains
    /// their common start.
    PerSample,
}

/// What a memory is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum MemoryKind {
    /// Vectors in front of the tokens: the paper's.
    #[default]
    Prefix,
    /// Low-rank maps of each sample's own, between the model's layers or beside its matrices. They take no positions,
    /// and nothing predicts the first token of a context or a query.
    Lora,
    /// Keys and values of every layer's attention. They take positions as vectors do; nothing predicts the first token.
    #[serde(alias = "kv_cache")]
    Kv,
}

impl MemoryKind {
    /// The name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Prefix => "prefix",
            Self::Lora => "lora",
            Self::Kv => "kv",
        }
    }
}

/// Where the maps of a [`MemoryKind::Lora`] are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum LoraPlace {
    /// Behind each layer: `h ← h + α/r · (h A) B`.
    #[default]
    Layers,
    /// Beside the matrices of each layer: `y ← W x + α/r · (x A) B`.
    Modules,
}

/// What WRITE does with the chunks of a context.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Chunks {
    /// One after another: each starts with the memory that the one before left.
    #[default]
    Sequential,
    /// All at once: each step takes the mean of the chunks' gradients at the same memory.
    Parallel,
    /// One after another, and READ is given the memories that all of them left.
    Concatenated,
}

/// What the vectors of M0 are before training, beside noise of `memory_std`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum MemoryStart {
    /// Nothing: noise alone.
    #[default]
    Noise,
    /// The mean of all token embeddings.
    Mean,
    /// Embeddings of tokens drawn at random. A pretrained model reads vectors of their size and directions better than
    /// noise.
    Tokens,
}

impl MemoryStart {
    /// The name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Noise => "noise",
            Self::Mean => "mean",
            Self::Tokens => "tokens",
        }
    }
}
