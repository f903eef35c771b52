//! Causal language models, generic over the backend.
//!
//! [`CausalLm`] is all that GradMem asks of a model; [`Writable`] says that it can be lifted onto
//! one more autodiff tape, which Burn's `#[derive(Module)]` gives every model for free.
//!
//! [`AnyLm`] is whichever model a configuration names; [`pretrained`] reads and writes the folders that
//! Hugging Face's `transformers` reads and writes.

pub(crate) mod any;
mod cache;
mod decoder;
pub mod generate;
mod gpt2;
mod gpt_neox;
pub mod layers;
mod llama;
mod mamba;
pub mod pretrained;
pub(crate) mod rows;
pub mod weights;

use burn::backend::Autodiff;
use burn::module::{AutodiffModule, HasAutodiffModule, Module, ModuleDisplay};
use burn::tensor::activation::log_softmax;
use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor};
use serde::Serialize;
use serde_json::Value;

use crate::error::Error;
use layers::matmul_transposed;

pub use any::{AnyLm, ModelConfig};
pub use cache::{Cache, LayerCache, cache_bytes, forward_layers};
pub use gpt_neox::{GptNeoX, GptNeoXConfig};
pub use gpt2::{Gpt2, Gpt2Config};
pub use llama::{Llama, LlamaConfig};
pub use mamba::{Mamba, MambaConfig, TimeStepRank};

/// A decoder-only language model, in the three stages GradMem needs apart: memory vectors enter
/// between [`embed`](CausalLm::embed) and [`hidden`](CausalLm::hidden), and a separate WRITE head
/// may stand in for [`logits`](CausalLm::logits).
///
/// To be trained or written through, every operation must be differentiable twice:
/// [`layers`] has such layers, and
/// [`causal_attention`](gradmem_kernels::causal_attention) such an attention.
pub trait CausalLm<B: Backend>: Module<B> + ModuleDisplay {
    /// Width of an embedding and of a memory vector.
    fn d_model(&self) -> usize;

    /// Number of tokens; ids are `0 … vocab_size − 1`.
    fn vocab_size(&self) -> usize;

    /// Longest sequence, memory vectors included; `None` if there is no limit.
    fn max_positions(&self) -> Option<usize>;

    /// What, beside its weights, decides what the model computes, as text: heads, rotary base and the like.
    /// It goes into a memory's [fingerprint](crate::memory::GradMem::fingerprint), so that models which
    /// share weights but not settings do not read each other's memories.
    fn settings(&self) -> String {
        String::new()
    }

    /// `[batch, seq]` → `[batch, seq, d_model]`
    fn embed(&self, tokens: Tensor<B, 2, Int>) -> Tensor<B, 3>;

    /// `[batch, seq, d_model]` → `[batch, seq, d_model]`, causally: row `i` sees rows `0 … i`.
    fn hidden(&self, embeds: Tensor<B, 3>) -> Tensor<B, 3>;

    /// The same for rows that come after those `past` has read; they join it.
    ///
    /// Unless a model can do better, it reads the whole sequence again: `past` keeps its embeddings.
    fn hidden_after(&self, embeds: Tensor<B, 3>, past: &mut Cache<B>) -> Tensor<B, 3> {
        let seq = embeds.dims()[1];
        let kept = past.layer(0);
        let embeds = match kept.take() {
            Some([before, _]) => Tensor::cat(vec![before.squeeze_dim(1), embeds], 1),
            None => embeds,
        };
        let all = embeds.clone().unsqueeze_dim(1);
        *kept = Some([all.clone(), all.narrow(3, 0, 1)]);
        let start = past.len();
        past.advance(seq);
        self.hidden(embeds).narrow(1, start, seq)
    }

    /// The head's weight `[vocab_size, d_model]`, from which a WRITE head starts.
    fn head(&self) -> Tensor<B, 2>;

    /// `[batch, seq, d_model]` → `[batch, seq, vocab_size]`, by the head alone unless a model does more.
    fn logits(&self, hidden: Tensor<B, 3>) -> Tensor<B, 3> {
        matmul_transposed(hidden, self.head())
    }

    /// [`token_losses`], for a model whose backend has a faster way:
    /// [`kernels::token_losses`](gradmem_kernels::token_losses).
    fn token_losses(&self, logits: Tensor<B, 3>, targets: Tensor<B, 2, Int>) -> Tensor<B, 2> {
        token_losses(logits, targets)
    }
}

/// Those of a configuration's settings that decide what a model with given weights computes.
pub(crate) fn settings(config: &impl Serialize) -> Value {
    let mut json = serde_json::to_value(config).unwrap_or_default();
    if let Value::Object(json) = &mut json {
        // What only matters to random weights.
        for key in ["initializer_range", "time_step_min", "time_step_max"] {
            json.remove(key);
        }
        json.retain(|_, value| !value.is_null());
    }
    json
}

/// `−log p` of each target: logits `[batch, seq, vocab_size]`, targets `[batch, seq]` → `[batch, seq]`.
///
/// # Panics
///
/// If the shapes do not fit, or a target is no token; what backends do with the latter differs.
pub fn token_losses<B: Backend>(logits: Tensor<B, 3>, targets: Tensor<B, 2, Int>) -> Tensor<B, 2> {
    let shape = targets.dims();
    log_softmax(logits, 2)
        .gather(2, targets.unsqueeze_dim(2))
        .reshape(shape)
        .neg()
}

/// A [`CausalLm`] that can be lifted to `Autodiff<B>`, so that WRITE can take gradients on it.
/// Implemented for every such model.
pub trait Writable<B: Backend>:
    CausalLm<B> + HasAutodiffModule<Autodiff<B>, TrainModule = Self::Lifted>
{
    /// The same model on one more tape.
    type Lifted: CausalLm<Autodiff<B>> + AutodiffModule<Autodiff<B>, InnerModule = Self>;
}

impl<B, M, L> Writable<B> for M
where
    B: Backend,
    M: CausalLm<B> + HasAutodiffModule<Autodiff<B>, TrainModule = L>,
    L: CausalLm<Autodiff<B>> + AutodiffModule<Autodiff<B>, InnerModule = M>,
{
    type Lifted = L;
}

/// Fails on tokens `[batch, seq]` that the model does not have, or has no positions for behind `before`
/// others.
pub(crate) fn check_tokens<B: Backend, M: CausalLm<B>>(
    model: &M,
    tokens: &Tensor<B, 2, Int>,
    before: usize,
    what: &str,
) -> Result<(), Error> {
    let [_, seq] = tokens.dims();
    check_positions(model, seq, before, what)?;
    let ids: Vec<i64> = tokens.to_data().iter::<i64>().collect();
    check_ids(model, &ids, seq, what)
}

/// Fails on more tokens than the model has positions for behind `before` others.
pub(crate) fn check_positions<B: Backend, M: CausalLm<B>>(
    model: &M,
    seq: usize,
    before: usize,
    what: &str,
) -> Result<(), Error> {
    match model.max_positions() {
        Some(positions) if before + seq > positions => Err(Error::Input(format!(
            "a {what} of {seq} tokens behind {before} vectors needs {} positions, \
             but the model has {positions}",
            before + seq
        ))),
        _ => Ok(()),
    }
}

/// Fails on token ids, `seq` to a row, that the model does not have.
pub(crate) fn check_ids<B: Backend, M: CausalLm<B>>(
    model: &M,
    ids: &[i64],
    seq: usize,
    what: &str,
) -> Result<(), Error> {
    let vocab = model.vocab_size() as i64;
    match ids.iter().position(|id| !(0..vocab).contains(id)) {
        None => Ok(()),
        Some(at) => Err(Error::Input(format!(
            "{what} {} has token {} at {}, but the model's tokens are 0 … {}",
            at / seq,
            ids[at],
            at % seq,
            vocab - 1
        ))),
    }
}
