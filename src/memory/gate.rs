//! A gate on WRITE's steps: how much of the memory is kept and how much of the step is taken, learned by the outer loop for
//! memories that are carried over many chunks.
//!
//! `m ← r ∘ m − w ∘ α g`, by `φ = [g; m]` of each memory vector; `g` is the velocity with momentum, and `α` what is learned
//! of it:
//!
//! | gate | r | w | at the start |
//! |---|---|---|---|
//! | none | 1 | 1 | |
//! | convex | `1 − σ(W φ + b)` | `σ(W φ + b)` | b = 3: r = 0.05, w = 0.95 |
//! | mamba | `exp(−softplus(W_r φ + b_r))` | `σ(W_w φ + b_w)` | b_r = −5, b_w = 3: r = 0.993, w = 0.95 |

use burn::module::Module;
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use serde::{Deserialize, Serialize};

use crate::model::layers::{Affine, AffineConfig, Init, affine};

/// What decides how much of the memory a WRITE step keeps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum GateKind {
    /// Nothing: all of it, and all of the step is taken.
    #[default]
    #[serde(alias = "sgd")]
    None,
    /// What is taken of the step is not kept of the memory.
    Convex,
    /// Both by themselves, as in Mamba's recurrence.
    Mamba,
}

/// The gate of a [`GradMem`](super::GradMem) with a prefix.
#[derive(Module, Debug)]
pub struct Gate<B: Backend> {
    /// `W_w φ + b_w`, for each dimension of a vector or one for all: `[d_model or 1, 2 · d_model]`
    pub take: Affine<B>,
    /// `W_r φ + b_r` of a mamba gate.
    pub keep: Option<Affine<B>>,
}

impl<B: Backend> Gate<B> {
    /// `each_dimension`: whether a vector has a gate for each of its `d` dimensions, or one.
    pub(super) fn new(
        kind: GateKind,
        d: usize,
        each_dimension: bool,
        init: &mut Init,
        device: &B::Device,
    ) -> Option<Self> {
        let d_output = if each_dimension { d } else { 1 };
        let mut linear = |bias: f64| {
            let config = AffineConfig::new(2 * d, d_output).with_bias(false);
            Affine {
                bias: Some(init.constant([d_output], bias, device)),
                ..config.init(0.0, init, device)
            }
        };
        match kind {
            GateKind::None => None,
            GateKind::Convex => Some(Self {
                take: linear(3.0),
                keep: None,
            }),
            GateKind::Mamba => Some(Self {
                take: linear(3.0),
                keep: Some(linear(-5.0)),
            }),
        }
    }

    /// What the memory becomes.
    ///
    /// # Shapes
    ///
    /// - `memory`, `gradient`, `step` (`α g`) and output: `[batch, memory_tokens, d_model]`
    pub(super) fn apply(
        &self,
        memory: Tensor<B, 3>,
        gradient: Tensor<B, 3>,
        step: Tensor<B, 3>,
        product: impl Fn(Tensor<B, 2>, Tensor<B, 2>) -> Tensor<B, 2>,
    ) -> Tensor<B, 3> {
        let seen = Tensor::cat(vec![gradient, memory.clone()], 2);
        let take = sigmoid(affine(&self.take, seen.clone(), &product));
        let keep = match &self.keep {
            // exp(−softplus(x)) is σ(−x).
            Some(keep) => sigmoid(affine(keep, seen, &product).neg()),
            None => take.clone().neg().add_scalar(1.0),
        };
        keep * memory - take * step
    }
}

/// Burn's own computes f64 in f32 on some backends, tanh does not.
pub(super) fn sigmoid<B: Backend, const D: usize>(x: Tensor<B, D>) -> Tensor<B, D> {
    x.mul_scalar(0.5).tanh().add_scalar(1.0).mul_scalar(0.5)
}
