//! Causal language models, generic over the backend.
//!
//! [`CausalLm`] is all that GradMem asks of a model; [`Writable`] says that it can be lifted onto
//! one more autodiff tape, which Burn's `#[derive(Module)]` gives every model for free.

pub mod layers;
mod llama;
pub mod weights;

use burn::backend::Autodiff;
use burn::module::{AutodiffModule, HasAutodiffModule, Module, ModuleDisplay};
use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor};

pub use llama::{Llama, LlamaConfig};

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

    /// `[batch, seq]` → `[batch, seq, d_model]`
    fn embed(&self, tokens: Tensor<B, 2, Int>) -> Tensor<B, 3>;

    /// `[batch, seq, d_model]` → `[batch, seq, d_model]`, causally: row `i` sees rows `0 … i`.
    fn hidden(&self, embeds: Tensor<B, 3>) -> Tensor<B, 3>;

    /// `[batch, seq, d_model]` → `[batch, seq, vocab_size]`
    fn logits(&self, hidden: Tensor<B, 3>) -> Tensor<B, 3>;

    /// The head's weight `[vocab_size, d_model]`, from which a WRITE head starts.
    fn head(&self) -> Tensor<B, 2>;
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
