//! The shape that this crate's models share: embedding → blocks → final norm → head.

use burn::module::{Module, ModuleDisplay};
use burn::tensor::{Int, Tensor};
use gradmem_kernels::KernelBackend;

use super::layers::{Affine, Embedding, apply};
use super::{Cache, CausalLm, Slots, rows_at_once};

/// A decoder in parts, from which its [`CausalLm`] follows.
///
/// The backend is an associated type: if it were a parameter, another crate could not implement [`CausalLm`] for a model
/// of its own.
pub(crate) trait Decoder: Module<Self::Backend> + ModuleDisplay {
    type Backend: KernelBackend;

    /// The settings it was made with.
    fn config(&self) -> &dyn DecoderConfig;

    /// The token embedding.
    fn embedding(&self) -> &Embedding<Self::Backend>;

    /// The head; `None` if it is the embedding, transposed.
    fn own_head(&self) -> Option<&Affine<Self::Backend>>;

    /// See [`CausalLm::joined`].
    fn joined(&self) -> Self {
        self.clone()
    }

    /// The blocks and the final norm, for the last `rows` of the `embeds` or all where these are fewer.
    ///
    /// # Shapes
    ///
    /// - `embeds`: `[batch, seq, d_model]`
    /// - `cache`: of the tokens before these, if it is kept; these are added to it
    /// - output: `[batch, min(rows, seq), d_model]`
    fn forward(
        &self,
        embeds: Tensor<Self::Backend, 3>,
        rows: usize,
        cache: Option<&mut Cache<Self::Backend>>,
    ) -> Tensor<Self::Backend, 3>;
}

/// The settings of a [`Decoder`].
pub(crate) trait DecoderConfig {
    fn dimensions(&self) -> Dimensions;

    /// See [`CausalLm::settings`].
    fn settings(&self) -> String;

    /// Where in the blocks a memory can be.
    fn slots(&self) -> Slots;
}

/// The sizes that every decoder has, whatever its configuration calls them.
pub(crate) struct Dimensions {
    pub vocab_size: usize,
    pub d_model: usize,
    pub layers: usize,
    /// The longest sequence and the setting that limits it; `None` if there is no limit.
    pub max_positions: Option<(&'static str, usize)>,
}

impl<B: KernelBackend, M: Decoder<Backend = B>> CausalLm<B> for M {
    fn d_model(&self) -> usize {
        self.config().dimensions().d_model
    }

    fn vocab_size(&self) -> usize {
        self.config().dimensions().vocab_size
    }

    fn max_positions(&self) -> Option<usize> {
        let limit = self.config().dimensions().max_positions;
        limit.map(|(_, positions)| positions)
    }

    fn settings(&self) -> String {
        self.config().settings()
    }

    fn embed(&self, tokens: Tensor<B, 2, Int>) -> Tensor<B, 3> {
        self.embedding().forward(tokens)
    }

    fn hidden(&self, embeds: Tensor<B, 3>) -> Tensor<B, 3> {
        self.forward(embeds, usize::MAX, None)
    }

    fn hidden_after(&self, embeds: Tensor<B, 3>, past: &mut Cache<B>) -> Tensor<B, 3> {
        self.forward(embeds, usize::MAX, Some(past))
    }

    fn last_hidden(
        &self,
        embeds: Tensor<B, 3>,
        rows: usize,
        past: Option<&mut Cache<B>>,
    ) -> Tensor<B, 3> {
        self.forward(embeds, rows, past)
    }

    fn slots(&self) -> Slots {
        self.config().slots()
    }

    fn joined(&self) -> Self {
        Decoder::joined(self)
    }

    fn head(&self) -> Tensor<B, 2> {
        self.embedding().head(self.own_head())
    }

    fn product<const D: usize>(lhs: Tensor<B, D>, rhs: Tensor<B, D>) -> Tensor<B, D> {
        gradmem_kernels::product(lhs, rhs)
    }

    fn logits(&self, hidden: Tensor<B, 3>) -> Tensor<B, 3> {
        apply(hidden, self.head())
    }

    fn token_losses(&self, logits: Tensor<B, 3>, targets: Tensor<B, 2, Int>) -> Tensor<B, 2> {
        gradmem_kernels::token_losses(logits, targets)
    }

    fn next_losses(&self, hidden: Tensor<B, 3>, next: Tensor<B, 2, Int>) -> Tensor<B, 2> {
        self.losses_by(self.head(), hidden, next)
    }

    fn losses_by(
        &self,
        head: Tensor<B, 2>,
        hidden: Tensor<B, 3>,
        next: Tensor<B, 2, Int>,
    ) -> Tensor<B, 2> {
        let [batch, seq] = next.dims();
        let at_once = rows_at_once(head.dims()[0]);
        match batch * seq <= at_once {
            true => self.token_losses(apply(hidden, head), next),
            false => gradmem_kernels::head_losses(hidden, head, next, at_once),
        }
    }
}
