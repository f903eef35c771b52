//! What WRITE descends on: the reconstruction of the context (section 3.1), or an objective of one's own.

use burn::module::{AutodiffModule, HasAutodiffModule, Module, ModuleDisplay};
use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor};
use gradmem_kernels::reference::layers as reference;
use gradmem_kernels::{Nonlinearity, Tape};

use crate::error::{Error, sizes};
use crate::model::layers::{Affine, AffineConfig, Init, LayerNorm, affine};
use crate::model::{CausalLm, Writable, losses_by_head, most_probable};

/// A loss of each token that WRITE reads, by what the model makes of those before it.
///
/// WRITE descends on each sample's mean of it over its own tokens. A sample's loss may depend on nothing else than its own
/// rows, and a token's on nothing behind the token: padding fills the rest of a row. Parameters are trained by the outer
/// loop, through WRITE. All operations must be differentiable twice; those of [`layers`](crate::model::layers) are.
///
/// An objective is a module of a backend `B`, so that `#[derive(Module)]` lifts it onto the inner tape. One that learns which
/// tokens are worth a memory's room:
///
/// ```
/// use burn::module::{Module, Param};
/// use burn::tensor::{Int, Tensor, backend::Backend};
/// use gradmem::memory::{GradMemConfig, WriteObjective};
/// use gradmem::model::{CausalLm, LlamaConfig};
///
/// #[derive(Module, Debug)]
/// struct Weighted<B: Backend> {
///     /// What each token counts: `[vocab_size]`.
///     weight: Param<Tensor<B, 1>>,
/// }
///
/// impl<B: Backend, M: CausalLm<B>> WriteObjective<B, M> for Weighted<B> {
///     fn losses(&self, model: &M, hidden: Tensor<B, 3>, next: Tensor<B, 2, Int>) -> Tensor<B, 2> {
///         let [batch, seq] = next.dims();
///         let weight = self.weight.val().select(0, next.clone().flatten(0, 1));
///         weight.reshape([batch, seq]) * model.next_losses(hidden, next)
///     }
/// }
///
/// # #[cfg(not(feature = "flex"))]
/// # fn main() {}
/// # #[cfg(feature = "flex")]
/// # fn main() -> Result<(), gradmem::Error> {
/// type B = burn_flex::Flex;
/// let device = Default::default();
/// let model = LlamaConfig::new(70, 64, 2, 2).init::<B>(1, &device)?;
/// let weight = Param::from_tensor(Tensor::ones([70], &device));
/// let gradmem = GradMemConfig::new().init_with(model, Weighted { weight }, 1, &device)?;
/// # let _ = gradmem;
/// # Ok(())
/// # }
/// ```
pub trait WriteObjective<B: Backend, M: CausalLm<B>>: Module<B> + ModuleDisplay {
    /// # Shapes
    ///
    /// - `hidden`: `[batch, seq, d_model]`, the last hidden state before each token
    /// - `next`: `[batch, seq]`, the token that follows
    /// - output: `[batch, seq]`
    fn losses(&self, model: &M, hidden: Tensor<B, 3>, next: Tensor<B, 2, Int>) -> Tensor<B, 2>;

    /// The logits by which the objective predicts the next token, if it does: what a memory holds is measured by them.
    ///
    /// # Shapes
    ///
    /// - `hidden`: `[batch, seq, d_model]`
    /// - output: `[batch, seq, vocab_size]`
    fn logits(&self, model: &M, hidden: Tensor<B, 3>) -> Option<Tensor<B, 3>> {
        let _ = (model, hidden);
        None
    }

    /// The most probable token after each hidden state by the [`logits`](WriteObjective::logits): `[batch, seq]`. Those of a
    /// large vocabulary are computed some rows at a time.
    fn most_probable(&self, model: &M, hidden: Tensor<B, 3>) -> Option<Tensor<B, 2, Int>> {
        let logits = |hidden| self.logits(model, hidden);
        most_probable(hidden, model.vocab_size(), logits)
    }
}

/// A [`WriteObjective`] that can be lifted to `Tape<B>`, as its derived `Module` lets it; never implemented by hand.
pub trait LiftedObjective<B: Backend, M: Writable<B>>:
    WriteObjective<B, M> + HasAutodiffModule<Tape<B>, TrainModule = Self::Lifted>
{
    /// The same on one more tape.
    type Lifted: WriteObjective<Tape<B>, M::Lifted> + AutodiffModule<Tape<B>, InnerModule = Self>;
}

impl<B, M, O, L> LiftedObjective<B, M> for O
where
    B: Backend,
    M: Writable<B>,
    O: WriteObjective<B, M> + HasAutodiffModule<Tape<B>, TrainModule = L>,
    L: WriteObjective<Tape<B>, M::Lifted> + AutodiffModule<Tape<B>, InnerModule = O>,
{
    type Lifted = L;
}

/// The paper's: `−log p` of each token, in nats.
#[derive(Module, Debug)]
pub struct Reconstruct<B: Backend> {
    /// The head that WRITE predicts with, if not the model's: `[vocab_size, d_model]`.
    pub write_head: Option<Affine<B>>,
}

impl<B: Backend> Reconstruct<B> {
    /// By the model's head, or a copy of it that is trained by itself.
    pub(super) fn new<M: CausalLm<B>>(
        model: &M,
        own_head: bool,
        init: &Init,
        device: &B::Device,
    ) -> Self {
        let shape = [model.vocab_size(), model.d_model()];
        let head = || Affine::copy(shape, || model.head(), init, device);
        Self {
            write_head: own_head.then(head),
        }
    }
}

impl<B: Backend, M: CausalLm<B>> WriteObjective<B, M> for Reconstruct<B> {
    fn losses(&self, model: &M, hidden: Tensor<B, 3>, next: Tensor<B, 2, Int>) -> Tensor<B, 2> {
        losses_by_head(model, self.write_head.as_ref(), hidden, next)
    }

    fn logits(&self, model: &M, hidden: Tensor<B, 3>) -> Option<Tensor<B, 3>> {
        Some(match &self.write_head {
            Some(head) => affine(head, hidden, M::product),
            None => model.logits(hidden),
        })
    }
}

/// A learned energy of each token in its place (the authors' later experiments):
/// `W₂ silu(W₁ LayerNorm([h_t; embed(c_{t+1})]) + b₁) + b₂`, with `−log p` beside it if there is a reconstruction.
#[derive(Module, Debug)]
pub struct Energy<B: Backend> {
    /// Over `[h; e]`: `[2 · d_model]`.
    pub norm: LayerNorm<B>,
    /// `[d_hidden, 2 · d_model]`
    pub up: Affine<B>,
    /// `[1, d_hidden]`
    pub down: Affine<B>,
    /// What is added to it, if anything.
    pub reconstruct: Option<Reconstruct<B>>,
}

/// Settings of an [`Energy`].
#[derive(Clone, Copy, Debug)]
pub struct EnergyConfig {
    /// Width of the hidden layer.
    pub d_hidden: usize,
    /// Whether `−log p` by the model's head is added.
    pub reconstruct: bool,
}

impl EnergyConfig {
    /// The energy alone.
    pub fn new(d_hidden: usize) -> Self {
        Self {
            d_hidden,
            reconstruct: false,
        }
    }

    /// With `−log p` by the model's head.
    pub fn with_reconstruct(mut self, reconstruct: bool) -> Self {
        self.reconstruct = reconstruct;
        self
    }

    /// An energy for this model, its matrices drawn from N(0, 1/d_input) by `seed`.
    ///
    /// # Errors
    ///
    /// A width of zero.
    pub fn init<B: Backend, M: CausalLm<B>>(
        &self,
        model: &M,
        seed: u64,
        device: &B::Device,
    ) -> Result<Energy<B>, Error> {
        sizes([("d_hidden", self.d_hidden)])?;
        let mut init = Init::new(seed);
        let d = 2 * model.d_model();
        let mut linear = |d_input: usize, d_output: usize| {
            let std = 1.0 / (d_input as f64).sqrt();
            AffineConfig::new(d_input, d_output).init(std, &mut init, device)
        };
        let (up, down) = (linear(d, self.d_hidden), linear(self.d_hidden, 1));
        Ok(Energy {
            norm: LayerNorm::new(d, 1e-5, &init, device),
            up,
            down,
            reconstruct: self
                .reconstruct
                .then(|| Reconstruct::new(model, false, &init, device)),
        })
    }
}

impl<B: Backend> Energy<B> {
    /// Without the reconstruction.
    fn energies<M: CausalLm<B>>(
        &self,
        model: &M,
        hidden: Tensor<B, 3>,
        next: Tensor<B, 2, Int>,
    ) -> Tensor<B, 2> {
        let seen = Tensor::cat(vec![hidden, model.embed(next)], 2);
        let inside = affine(&self.up, self.norm.plain(seen), M::product);
        let energy = affine(
            &self.down,
            reference::activate(inside, Nonlinearity::Silu),
            M::product,
        );
        energy.squeeze_dim(2)
    }
}

impl<B: Backend, M: CausalLm<B>> WriteObjective<B, M> for Energy<B> {
    fn losses(&self, model: &M, hidden: Tensor<B, 3>, next: Tensor<B, 2, Int>) -> Tensor<B, 2> {
        let energies = self.energies(model, hidden.clone(), next.clone());
        match &self.reconstruct {
            Some(reconstruct) => energies + reconstruct.losses(model, hidden, next),
            None => energies,
        }
    }

    fn logits(&self, model: &M, hidden: Tensor<B, 3>) -> Option<Tensor<B, 3>> {
        let reconstruct = self.reconstruct.as_ref()?;
        reconstruct.logits(model, hidden)
    }
}
