use burn::module::{Module, Param};
use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor};
use gradmem_kernels::{LayerBackend, rms_norm};

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

    /// # Shapes
    ///
    /// - `x` and output: `[batch, seq, d_model]`
    pub fn forward(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        let dtype = x.dtype();
        let x = widened(x);
        let x = x.clone() - x.mean_dim(2);
        let variance = x.clone().square().mean_dim(2);
        let scale = variance.add_scalar(self.epsilon).sqrt().recip();
        (x * scale).cast(dtype) * self.weight.val().unsqueeze() + self.bias.val().unsqueeze()
    }
}

fn widened<B: Backend>(x: Tensor<B, 3>) -> Tensor<B, 3> {
    match x.dtype() {
        DType::F16 | DType::BF16 => x.cast(DType::F32),
        _ => x,
    }
}
