//! WRITE's optimizer, as far as the outer loop learns it: step sizes (Meta-SGD, arXiv 1707.09835; for each step, as in MAML++,
//! arXiv 1810.09502) and momentum.
//!
//! ```text
//! v_{k+1} = β v_k + g_k        M_{k+1} = M_k − α exp(θ_k) ∘ v_{k+1}        v_0 = 0, at the start of each chunk
//! ```

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use serde::{Deserialize, Serialize};

use super::gate::sigmoid;
use crate::model::layers::Init;

/// What has a step size of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum LearnedLr {
    /// Each of the K steps. Beyond those that were trained, the last one's counts.
    Step,
    /// Each vector, or row of a matrix.
    Vector,
    /// Each dimension, or column of a matrix. With `vector`, each number: a diagonal preconditioner.
    Dimension,
}

/// What the outer loop learns of WRITE's steps.
#[derive(Module, Debug)]
pub struct InnerOptimizer<B: Backend> {
    /// θ, zero at the start: `[K or 1, rows or 1, columns or 1]` for each matrix of the memory; none if α is not learned.
    pub log_lr: Vec<Param<Tensor<B, 3>>>,
    /// `β = σ(b)`: `[1]`.
    pub momentum: Option<Param<Tensor<B, 1>>>,
}

/// The first rows, and the first steps, the last of them repeated; what has too few rows stays as it is.
#[cfg(feature = "train")]
fn fitted<B: Backend>(found: Tensor<B, 3>, [steps, rows, _]: [usize; 3]) -> Tensor<B, 3> {
    let [had, had_rows, _] = found.dims();
    let found = found.narrow(1, 0, rows.min(had_rows));
    let kept = found.clone().narrow(0, 0, steps.min(had));
    let last = found.narrow(0, had - 1, 1);
    let more = std::iter::repeat_n(last, steps.saturating_sub(had));
    Tensor::cat(std::iter::once(kept).chain(more).collect(), 0)
        .detach()
        .require_grad()
}

impl<B: Backend> InnerOptimizer<B> {
    /// For `steps` steps on a memory of matrices of these shapes; `momentum` is what β starts at.
    pub(super) fn new(
        learned: &[LearnedLr],
        momentum: Option<f64>,
        steps: usize,
        shapes: &[[usize; 2]],
        init: &Init,
        device: &B::Device,
    ) -> Option<Self> {
        let has = |axis| learned.contains(&axis);
        let size = |axis, size: usize| if has(axis) { size.max(1) } else { 1 };
        let log_lr = shapes.iter().map(|[rows, columns]| {
            let shape = [
                size(LearnedLr::Step, steps),
                size(LearnedLr::Vector, *rows),
                size(LearnedLr::Dimension, *columns),
            ];
            init.constant(shape, 0.0, device)
        });
        let log_lr = match learned.is_empty() {
            true => Vec::new(),
            false => log_lr.collect(),
        };
        let momentum = momentum.map(|beta| {
            let logit = (beta / (1.0 - beta)).ln();
            init.constant([1], logit, device)
        });
        (!log_lr.is_empty() || momentum.is_some()).then_some(Self { log_lr, momentum })
    }

    /// What another run has learned, where it has, in the shapes of this one: the first rows, and as many steps, of which
    /// the last counts for those that it does not have.
    #[cfg(feature = "train")]
    pub(super) fn begin_from(mut self, other: Self) -> Self {
        let mut found = other.log_lr.into_iter();
        self.log_lr = std::mem::take(&mut self.log_lr)
            .into_iter()
            .map(|own| match found.next() {
                Some(found) => own.map(|own| fitted(found.val(), own.dims())),
                None => own,
            })
            .collect();
        self.momentum = match (self.momentum, other.momentum) {
            (Some(own), Some(found)) => Some(own.map(|_| found.val().detach().require_grad())),
            (own, _) => own,
        };
        self
    }

    /// Velocities behind a step, from those before it, if there were steps before it in the chunk.
    pub(super) fn velocity(
        &self,
        before: &[Tensor<B, 3>],
        gradients: Vec<Tensor<B, 3>>,
    ) -> Vec<Tensor<B, 3>> {
        match &self.momentum {
            Some(logit) if !before.is_empty() => {
                let beta: Tensor<B, 3> = sigmoid(logit.val()).unsqueeze();
                let pairs = before.iter().zip(gradients);
                pairs
                    .map(|(v, gradient)| v.clone() * beta.clone() + gradient)
                    .collect()
            }
            _ => gradients,
        }
    }

    /// `exp(θ_k) ∘ x`, `x` of the memory's matrix of this index.
    pub(super) fn scaled(&self, k: usize, matrix: usize, x: Tensor<B, 3>) -> Tensor<B, 3> {
        match self.log_lr.get(matrix) {
            Some(log_lr) => {
                let log_lr = log_lr.val();
                let k = k.min(log_lr.dims()[0] - 1);
                x * log_lr.narrow(0, k, 1).exp()
            }
            None => x,
        }
    }
}
