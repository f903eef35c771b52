//! GradMem itself: a context is written into memory vectors by gradient descent, and queries are
//! answered from the memory alone (arXiv 2603.13875).
//!
//! | the paper | here |
//! |---|---|
//! | WRITE: `M_{k+1} = M_k − α ∇_M L_write(M_k; C)` | [`GradMem::write`], `write.rs` |
//! | READ: predict the target from `[M_K; Q]` | [`GradMem::read`], `read.rs` |
//! | outer loss, differentiated through WRITE | [`GradMem::outer`], `meta.rs` |
//!
//! Everything is written once for a backend `B`. On a plain backend it is inference: first order,
//! no graph kept. On `Autodiff<B>` the same code is training: the updates stay on the outer tape and
//! `loss.backward()` is the second-order meta-gradient.

mod meta;
mod read;
mod store;
mod write;

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use serde::{Deserialize, Serialize};

pub use meta::Outer;
pub use read::{next_token_loss, token_losses};
pub use write::Memory;

use crate::error::{Error, require};
use crate::model::CausalLm;
use crate::model::layers::{Init, Linear};

/// How the outer gradient passes through the WRITE steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GradMode {
    /// It does not: the memory is cut from the outer graph and its start M0 is not trained.
    /// Cheapest; the model learns to read whatever WRITE happens to leave.
    None,
    /// The inner gradient counts as a constant (first-order MAML): M0 gets the gradient of M_K.
    First,
    /// In full, through the inner gradient: WRITE itself is trained. The paper's method.
    Second,
}

/// Settings of WRITE and READ, and of what is trained beside the model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct GradMemConfig {
    /// `m`: memory vectors.
    pub memory_tokens: usize,
    /// `K`: WRITE steps. Any number may be used at evaluation, whatever was trained with.
    pub write_steps: usize,
    /// `α`: step size of WRITE.
    pub write_lr: f64,
    /// How the outer gradient passes through WRITE.
    pub grad_mode: GradMode,
    /// With `grad_mode = "second"`: only the last so many steps are second order, those before them
    /// first order. All of them unless given.
    pub second_order_steps: Option<usize>,
    /// Clamps each element of the inner gradient to ± this value.
    pub inner_clip_value: Option<f64>,
    /// Rescales each sample's inner gradient to at most this L2 norm (after `inner_clip_value`).
    pub inner_clip_norm: Option<f64>,
    /// Whether WRITE predicts with a head of its own, which starts as a copy of the model's.
    pub write_head: bool,
    /// `w`: the outer loss is the READ loss plus `w` times the batch mean of the WRITE loss before
    /// the last step.
    pub inner_loss_weight: f64,
    /// Standard deviation of M0's initial values.
    pub memory_std: f64,
    /// The token that fills a batch's shorter contexts on the right; it is never written.
    pub pad_token: usize,
}

impl Default for GradMemConfig {
    fn default() -> Self {
        Self {
            memory_tokens: 8,
            write_steps: 2,
            write_lr: 0.04,
            grad_mode: GradMode::Second,
            second_order_steps: None,
            inner_clip_value: None,
            inner_clip_norm: None,
            write_head: false,
            inner_loss_weight: 0.0,
            memory_std: 0.02,
            pad_token: 0,
        }
    }
}

impl GradMemConfig {
    /// The defaults: m = 8, K = 2, α = 0.04, full second order.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets `m`.
    pub fn with_memory_tokens(mut self, memory_tokens: usize) -> Self {
        self.memory_tokens = memory_tokens;
        self
    }

    /// Sets `K`.
    pub fn with_write_steps(mut self, write_steps: usize) -> Self {
        self.write_steps = write_steps;
        self
    }

    /// Sets `α`.
    pub fn with_write_lr(mut self, write_lr: f64) -> Self {
        self.write_lr = write_lr;
        self
    }

    /// Sets how the outer gradient passes through WRITE.
    pub fn with_grad_mode(mut self, grad_mode: GradMode) -> Self {
        self.grad_mode = grad_mode;
        self
    }

    /// Makes only the last `steps` WRITE steps second order.
    pub fn with_second_order_steps(mut self, steps: Option<usize>) -> Self {
        self.second_order_steps = steps;
        self
    }

    /// Sets the clipping of the inner gradient's elements.
    pub fn with_inner_clip_value(mut self, clip: Option<f64>) -> Self {
        self.inner_clip_value = clip;
        self
    }

    /// Sets the clipping of the inner gradient's norm.
    pub fn with_inner_clip_norm(mut self, clip: Option<f64>) -> Self {
        self.inner_clip_norm = clip;
        self
    }

    /// Gives WRITE a head of its own.
    pub fn with_write_head(mut self, write_head: bool) -> Self {
        self.write_head = write_head;
        self
    }

    /// Sets the weight of the WRITE loss in the outer loss.
    pub fn with_inner_loss_weight(mut self, weight: f64) -> Self {
        self.inner_loss_weight = weight;
        self
    }

    /// Says which value cannot work, and why.
    pub fn validate(&self) -> Result<(), Error> {
        let (m, lr) = (self.memory_tokens, self.write_lr);
        require(m > 0, "memory_tokens", m, "must be at least 1")?;
        let positive = |value: f64| value > 0.0 && value.is_finite();
        require(positive(lr), "write_lr", lr, "must be a positive number")?;
        for (key, clip) in [
            ("inner_clip_value", self.inner_clip_value),
            ("inner_clip_norm", self.inner_clip_norm),
        ] {
            if let Some(clip) = clip {
                let problem = "must be a positive number (leave it out for no clipping)";
                require(positive(clip), key, clip, problem)?;
            }
        }
        let not_negative = |value: f64| value >= 0.0 && value.is_finite();
        for (key, value) in [
            ("inner_loss_weight", self.inner_loss_weight),
            ("memory_std", self.memory_std),
        ] {
            require(
                not_negative(value),
                key,
                value,
                "must be 0 or a positive number",
            )?;
        }
        Ok(())
    }

    /// Puts a memory on `model`, with M0 drawn from N(0, `memory_std`²) by `seed`.
    ///
    /// # Errors
    ///
    /// See [`GradMemConfig::validate`]; also if the model has no room for the memory.
    pub fn init<B: Backend, M: CausalLm<B>>(
        &self,
        model: M,
        seed: u64,
        device: &B::Device,
    ) -> Result<GradMem<B, M>, Error> {
        self.validate()?;
        let m = self.memory_tokens;
        if let Some(positions) = model.max_positions() {
            let problem =
                format!("must leave room for tokens in the model's {positions} positions");
            require(m < positions, "memory_tokens", m, problem)?;
        }
        let vocab = model.vocab_size();
        let problem = format!("must be a token of the model, 0 … {}", vocab - 1);
        require(self.pad_token < vocab, "pad_token", self.pad_token, problem)?;
        let mem = Init::new(seed).normal([m, model.d_model()], self.memory_std, device);
        let write_head = self.write_head.then(|| Linear {
            weight: Param::from_tensor(model.head().detach()),
            bias: None,
        });
        Ok(GradMem {
            model,
            mem,
            write_head,
            config: self.clone(),
        })
    }

    /// Whether step `k` of `K` is differentiated in full.
    fn is_second_order(&self, k: usize) -> bool {
        let last = self.second_order_steps.unwrap_or(self.write_steps);
        self.grad_mode == GradMode::Second && k + last >= self.write_steps
    }
}

/// A language model with a writable prefix memory.
///
/// Parameters carry the reference implementation's names: `model.…`, `mem`, `write_head.weight`.
#[derive(Module, Debug)]
pub struct GradMem<B: Backend, M> {
    /// The language model.
    pub model: M,
    /// M0, where every WRITE starts: `[memory_tokens, d_model]`.
    pub mem: Param<Tensor<B, 2>>,
    /// WRITE's own head, if it has one: `[vocab_size, d_model]`.
    pub write_head: Option<Linear<B>>,
    #[module(skip)]
    config: GradMemConfig,
}

impl<B: Backend, M: Module<B>> GradMem<B, M> {
    /// The settings in force.
    pub fn config(&self) -> &GradMemConfig {
        &self.config
    }

    /// The same weights with another number of WRITE steps.
    pub fn with_write_steps(mut self, write_steps: usize) -> Self {
        self.config.write_steps = write_steps;
        self
    }

    /// The same weights with another WRITE step size.
    ///
    /// # Errors
    ///
    /// If it is not a positive number.
    pub fn with_write_lr(mut self, write_lr: f64) -> Result<Self, Error> {
        self.config.write_lr = write_lr;
        self.config.validate()?;
        Ok(self)
    }
}
