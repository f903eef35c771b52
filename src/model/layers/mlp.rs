use burn::module::Module;
use burn::tensor::activation::sigmoid;
use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor};

use super::{Init, Linear};

/// The gated feed-forward layer `W_down (silu(W_gate x) ∘ W_up x)` (arXiv 2002.05202).
#[derive(Module, Debug)]
pub struct SwiGlu<B: Backend> {
    /// `[d_ff, d_model]`
    pub gate_proj: Linear<B>,
    /// `[d_ff, d_model]`
    pub up_proj: Linear<B>,
    /// `[d_model, d_ff]`
    pub down_proj: Linear<B>,
}

impl<B: Backend> SwiGlu<B> {
    /// Weights from N(0, `std`²).
    pub fn new(
        d_model: usize,
        d_ff: usize,
        bias: bool,
        std: f64,
        init: &mut Init,
        device: &B::Device,
    ) -> Self {
        let mut linear =
            |d_output, d_input| Linear::new([d_output, d_input], bias, std, init, device);
        Self {
            gate_proj: linear(d_ff, d_model),
            up_proj: linear(d_ff, d_model),
            down_proj: linear(d_model, d_ff),
        }
    }

    /// # Shapes
    ///
    /// - `x` and output: `[batch, seq, d_model]`
    pub fn forward(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        let gate = silu(self.gate_proj.forward(x.clone()));
        self.down_proj.forward(gate * self.up_proj.forward(x))
    }
}

/// `silu(x) = x σ(x)`
fn silu<B: Backend>(x: Tensor<B, 3>) -> Tensor<B, 3> {
    match x.dtype() {
        // Some backends compute the sigmoid in f32 whatever they are given; tanh they do not.
        DType::F64 => {
            let half = x.mul_scalar(0.5);
            half.clone().tanh() * half.clone() + half
        }
        _ => sigmoid(x.clone()) * x,
    }
}
