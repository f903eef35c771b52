//! Causal language models, generic over the backend.
//!
//! [`CausalLm`] is what GradMem needs of a model. [`Writable`] is a model that can be lifted onto one more
//! autodiff tape; Burn's `#[derive(Module)]` provides that for every model.
//!
//! [`Llama`], [`Gpt2`], [`GptNeoX`] and [`Mamba`] are such models, and [`AnyLm`] is the one of them that a
//! configuration names. [`pretrained`] reads and writes the folders of Hugging Face's `transformers`.

pub(crate) mod adapter;
pub(crate) mod any;
mod cache;
pub(crate) mod config_json;
mod decoder;
pub mod generate;
mod gpt2;
mod gpt_neox;
pub mod layers;
mod llama;
mod mamba;
pub(crate) mod paths;
pub mod pretrained;
pub(crate) mod rows;
mod tokens;
pub mod weights;

use burn::module::{AutodiffModule, HasAutodiffModule, Module, ModuleDisplay};
use burn::tensor::activation::log_softmax;
use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor};
use gradmem_kernels::Tape;
use serde::Serialize;
use serde_json::Value;

use crate::error::Error;
use crate::support::counted;
use layers::{Affine, times_transposed};
use rows::last_rows;

pub use any::{AnyLm, ModelConfig};
pub use cache::{
    Adapter, Cache, LayerCache, MemoryRows, ModuleSlot, Slots, WHOLE_LAYER, adapted, cache_bytes,
    forward_layers,
};
pub use gpt_neox::{GptNeoX, GptNeoXConfig};
pub use gpt2::{Gpt2, Gpt2Config};
pub use llama::{Llama, LlamaConfig};
pub use mamba::{Mamba, MambaConfig, TimeStepRank};
pub use tokens::Tokens;
pub(crate) use tokens::unpadded;

/// A decoder-only language model in three stages: memory vectors are inserted between
/// [`embed`](CausalLm::embed) and [`hidden`](CausalLm::hidden), and a separate WRITE head may replace
/// [`logits`](CausalLm::logits).
///
/// For training and for WRITE, every operation must be differentiable twice. The layers of [`layers`] and
/// [`causal_attention`](gradmem_kernels::causal_attention) are.
pub trait CausalLm<B: Backend>: Module<B> + ModuleDisplay {
    /// Width of an embedding and of a memory vector.
    fn d_model(&self) -> usize;

    /// Number of tokens; ids are `0 … vocab_size − 1`.
    fn vocab_size(&self) -> usize;

    /// Longest sequence, memory vectors included; `None` if there is no limit.
    fn max_positions(&self) -> Option<usize>;

    /// The settings that, beside the weights, determine what the model computes, as text: number of heads,
    /// rotary base and so on. They are part of the [fingerprint](crate::memory::GradMem::fingerprint) in a
    /// memory's file, so that a model with the same weights and other settings does not read it.
    fn settings(&self) -> String {
        String::new()
    }

    /// The token embedding.
    ///
    /// # Shapes
    ///
    /// - `tokens`: `[batch, seq]`
    /// - output: `[batch, seq, d_model]`
    fn embed(&self, tokens: Tensor<B, 2, Int>) -> Tensor<B, 3>;

    /// The hidden states before the head, causally: row `i` depends on rows `0 … i` only.
    ///
    /// # Shapes
    ///
    /// - `embeds` and output: `[batch, seq, d_model]`
    fn hidden(&self, embeds: Tensor<B, 3>) -> Tensor<B, 3>;

    /// [`hidden`](CausalLm::hidden) of rows that follow those in `past`; they are added to it.
    ///
    /// The default keeps the embeddings in `past` and computes the whole sequence again; models with a
    /// key/value cache or a state override it.
    ///
    /// # Shapes
    ///
    /// - `embeds` and output: `[batch, seq, d_model]`
    fn hidden_after(&self, embeds: Tensor<B, 3>, past: &mut Cache<B>) -> Tensor<B, 3> {
        let seq = embeds.dims()[1];
        let kept = &mut past.layer(0).kept;
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

    /// The last `rows`, at least one, of the hidden states of `embeds`, or all where these are fewer: [`hidden_after`](CausalLm::hidden_after) those in
    /// `past` if there is one, else [`hidden`](CausalLm::hidden).
    ///
    /// By default the others are computed and left out. This crate's models do not compute what their last layer makes of them behind
    /// its attention or scan; nothing else depends on that.
    ///
    /// # Shapes
    ///
    /// - `embeds`: `[batch, seq, d_model]`
    /// - output: `[batch, min(rows, seq), d_model]`
    ///
    /// # Panics
    ///
    /// If `rows` is 0.
    fn last_hidden(
        &self,
        embeds: Tensor<B, 3>,
        rows: usize,
        past: Option<&mut Cache<B>>,
    ) -> Tensor<B, 3> {
        let hidden = match past {
            Some(past) => self.hidden_after(embeds, past),
            None => self.hidden(embeds),
        };
        last_rows(hidden, rows)
    }

    /// Where in its layers a memory can be: keys and values, adapters, associative memories. By default nowhere, so that a memory can only
    /// stand in front of the tokens. A model that says otherwise uses in [`hidden_after`](CausalLm::hidden_after) what is
    /// in the cache: [`forward_layers`] and [`adapted`] do.
    fn slots(&self) -> Slots {
        Slots::default()
    }

    /// About how many numbers the layers make of each token, from which the memory of a step is estimated: by default the weights of
    /// the [`slots`](CausalLm::slots)' modules over `d_model`, or all weights where none are named, and the states of a scan.
    fn numbers_per_token(&self) -> f64 {
        let slots = self.slots();
        let weights = match slots.weights() {
            0.0 => Module::num_params(self) as f64,
            of_modules => of_modules,
        };
        weights / self.d_model().max(1) as f64 + slots.states()
    }

    /// The same model, made ready for many passes with the weights as they are now: this crate's Llama multiplies by the weights of
    /// q, k and v at once, and by those of gate and up (SwiGLU's), of which it makes copies if these have at most 2²³ values. By default
    /// nothing is changed, and nothing is where that was done before.
    ///
    /// WRITE's steps and READ's loss run on it. What it returns is dropped behind them: parameters that are changed later, by a mapper,
    /// a record or [`no_grad`](Module::no_grad), are not what it computes with.
    fn joined(&self) -> Self
    where
        Self: Clone,
    {
        self.clone()
    }

    /// The head's weight `[vocab_size, d_model]`; a WRITE head starts as a copy of it.
    fn head(&self) -> Tensor<B, 2>;

    /// The product of matrices, or of as many pairs of matrices, for what is added to the model: projections of the memory,
    /// WRITE's head and adapters. By default Burn's; a model on a [`LayerBackend`](gradmem_kernels::LayerBackend) can use
    /// [`kernels::product`](gradmem_kernels::product), which on CUDA does not round f32 unless asked to.
    ///
    /// # Shapes
    ///
    /// - `lhs`: `[…, m, k]`, `rhs`: `[…, k, n]`; output: `[…, m, n]`
    fn product<const D: usize>(lhs: Tensor<B, D>, rhs: Tensor<B, D>) -> Tensor<B, D> {
        lhs.matmul(rhs)
    }

    /// Next-token logits; by default the product with the head's weight.
    ///
    /// # Shapes
    ///
    /// - `hidden`: `[batch, seq, d_model]`
    /// - output: `[batch, seq, vocab_size]`
    fn logits(&self, hidden: Tensor<B, 3>) -> Tensor<B, 3> {
        times_transposed(hidden, self.head(), Self::product)
    }

    /// By default [`token_losses`]; a model on a [`LayerBackend`](gradmem_kernels::LayerBackend) can use the
    /// faster [`kernels::token_losses`](gradmem_kernels::token_losses).
    ///
    /// # Shapes
    ///
    /// - `logits`: `[batch, seq, vocab_size]`
    /// - `targets` and output: `[batch, seq]`
    fn token_losses(&self, logits: Tensor<B, 3>, targets: Tensor<B, 2, Int>) -> Tensor<B, 2> {
        token_losses(logits, targets)
    }

    /// `−log p` of each token by what the model makes of those before it. By default
    /// [`token_losses`](CausalLm::token_losses) of the [`logits`](CausalLm::logits); this crate's models compute the logits of
    /// a large vocabulary some rows at a time ([`kernels::head_losses`](gradmem_kernels::head_losses)).
    ///
    /// # Shapes
    ///
    /// - `hidden`: `[batch, seq, d_model]`, the last hidden state before each token
    /// - `next` and output: `[batch, seq]`
    fn next_losses(&self, hidden: Tensor<B, 3>, next: Tensor<B, 2, Int>) -> Tensor<B, 2> {
        self.token_losses(self.logits(hidden), next)
    }

    /// [`next_losses`](CausalLm::next_losses) by a head `[vocab_size, d_model]` that is not the model's own.
    fn losses_by(
        &self,
        head: Tensor<B, 2>,
        hidden: Tensor<B, 3>,
        next: Tensor<B, 2, Int>,
    ) -> Tensor<B, 2> {
        self.token_losses(times_transposed(hidden, head, Self::product), next)
    }
}

/// Logits that exist at once where they are computed in parts: 32 MiB in f32.
const LOGITS_AT_ONCE: usize = 1 << 23;

/// How many rows of logits exist at once.
pub(crate) fn rows_at_once(vocab_size: usize) -> usize {
    (LOGITS_AT_ONCE / vocab_size.max(1)).max(1)
}

/// The most probable token by a head, after each hidden state, a part of the rows at a time: `[batch, seq, d_model]` →
/// `[batch, seq]`; none if the head tells none.
pub(crate) fn most_probable<B: Backend>(
    hidden: Tensor<B, 3>,
    vocab_size: usize,
    logits: impl Fn(Tensor<B, 3>) -> Option<Tensor<B, 3>>,
) -> Option<Tensor<B, 2, Int>> {
    let [batch, seq, d_model] = hidden.dims();
    let (rows, at_once) = (batch * seq, rows_at_once(vocab_size));
    let hidden = hidden.reshape([1, rows, d_model]);
    let parts = (0..rows).step_by(at_once).map(|start| {
        let count = at_once.min(rows - start);
        let logits = logits(hidden.clone().narrow(1, start, count))?;
        Some(logits.argmax(2).reshape([1, count]))
    });
    let parts = parts.collect::<Option<Vec<_>>>()?;
    Some(Tensor::cat(parts, 1).reshape([batch, seq]))
}

/// [`CausalLm::next_losses`] by a head of one's own, if there is one, or else the model's.
pub(crate) fn losses_by_head<B: Backend, M: CausalLm<B>>(
    model: &M,
    head: Option<&Affine<B>>,
    hidden: Tensor<B, 3>,
    next: Tensor<B, 2, Int>,
) -> Tensor<B, 2> {
    match head {
        Some(head) => model.losses_by(head.weight.val(), hidden, next),
        None => model.next_losses(hidden, next),
    }
}

/// A value that a configuration gives, unless it is the one that it has without it: models of both compute the same.
pub(crate) fn unless<T: PartialEq>(given: Option<T>, without: T) -> Option<T> {
    given.filter(|given| *given != without)
}

/// The settings of a configuration that determine what a model with given weights computes.
pub(crate) fn settings(config: &impl Serialize) -> Value {
    let mut json = serde_json::to_value(config).unwrap_or_default();
    // Another crate may make serde_json keep the order of fields, and fingerprints are of this text.
    json.sort_all_objects();
    if let Value::Object(json) = &mut json {
        // These only affect the random initial weights.
        for key in ["initializer_range", "time_step_min", "time_step_max"] {
            json.remove(key);
        }
        json.retain(|_, value| !value.is_null());
    }
    json
}

/// `−log p` of each target.
///
/// # Shapes
///
/// - `logits`: `[batch, seq, vocab_size]`
/// - `targets` and output: `[batch, seq]`
///
/// # Panics
///
/// If the shapes do not fit. What a target outside the vocabulary does depends on the backend.
pub fn token_losses<B: Backend>(logits: Tensor<B, 3>, targets: Tensor<B, 2, Int>) -> Tensor<B, 2> {
    let shape = targets.dims();
    log_softmax(logits, 2)
        .gather(2, targets.unsqueeze_dim(2))
        .reshape(shape)
        .neg()
}

/// A [`CausalLm`] that can be lifted to `Tape<B>`, so that WRITE can take gradients on it.
/// Implemented for every such model.
pub trait Writable<B: Backend>:
    CausalLm<B> + HasAutodiffModule<Tape<B>, TrainModule = Self::Lifted>
{
    /// The same model on one more tape.
    type Lifted: CausalLm<Tape<B>> + AutodiffModule<Tape<B>, InnerModule = Self>;
}

impl<B, M, L> Writable<B> for M
where
    B: Backend,
    M: CausalLm<B> + HasAutodiffModule<Tape<B>, TrainModule = L>,
    L: CausalLm<Tape<B>> + AutodiffModule<Tape<B>, InnerModule = M>,
{
    type Lifted = L;
}

/// Fails if the model has too few positions for `seq` tokens after `before` others.
pub(crate) fn check_positions<B: Backend, M: CausalLm<B>>(
    model: &M,
    seq: usize,
    before: usize,
    what: &str,
) -> Result<(), Error> {
    match model.max_positions() {
        Some(positions) if before + seq > positions => {
            let after = match before {
                0 => String::new(),
                _ => format!(" after {}", counted(before, "vector")),
            };
            Err(Error::Input(format!(
                "a {what} of {}{after} needs {} positions, but the model has {positions}",
                counted(seq, "token"),
                before + seq
            )))
        }
        _ => Ok(()),
    }
}
