use burn::module::{Module, Param};
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use gradmem_kernels::reference::layers as reference;
use gradmem_kernels::{LayerBackend, Norm, layer_norm, rms_norm};

use super::Init;

/// Root mean square normalisation, `x / √(mean(x²) + ε) ∘ w` (arXiv 1910.07467).
///
/// Inputs below 32 bits are normalised in f32.
#[derive(Module, Debug)]
pub struct RmsNorm<B: Backend> {
    /// `[d_model]`
    pub weight: Param<Tensor<B, 1>>,
    #[module(skip)]
    epsilon: f64,
}

impl<B: Backend> RmsNorm<B> {
    /// Weights of one.
    pub fn new(d_model: usize, epsilon: f64, init: &Init, device: &B::Device) -> Self {
        Self {
            weight: init.constant([d_model], 1.0, device),
            epsilon,
        }
    }
}

impl<B: LayerBackend> RmsNorm<B> {
    /// # Shapes
    ///
    /// - `x` and output: `[batch, seq, d_model]`
    pub fn forward(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        rms_norm(x, self.weight.val(), self.epsilon)
    }
}

/// Layer normalisation, `(x − mean(x)) / √(var(x) + ε) ∘ w + b` (arXiv 1607.06450).
///
/// Inputs below 32 bits are normalised in f32.
#[derive(Module, Debug)]
pub struct LayerNorm<B: Backend> {
    /// `[d_model]`
    pub weight: Param<Tensor<B, 1>>,
    /// `[d_model]`
    pub bias: Param<Tensor<B, 1>>,
    #[module(skip)]
    epsilon: f64,
}

impl<B: Backend> LayerNorm<B> {
    /// Weights of one, biases of zero.
    pub fn new(d_model: usize, epsilon: f64, init: &Init, device: &B::Device) -> Self {
        Self {
            weight: init.constant([d_model], 1.0, device),
            bias: init.constant([d_model], 0.0, device),
            epsilon,
        }
    }

    /// [`LayerNorm::forward`] by Burn's operations, for any backend.
    ///
    /// # Shapes
    ///
    /// - `x` and output: `[batch, seq, d_model]`
    pub(crate) fn plain(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        let by = Norm {
            epsilon: self.epsilon,
            centered: true,
        };
        reference::norm(x, self.weight.val(), by) + self.bias.val().unsqueeze()
    }
}

impl<B: LayerBackend> LayerNorm<B> {
    /// # Shapes
    ///
    /// - `x` and output: `[batch, seq, d_model]`
    pub fn forward(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        layer_norm(x, self.weight.val(), self.epsilon) + self.bias.val().unsqueeze()
    }
}
