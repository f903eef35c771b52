use burn::module::Module;
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use gradmem_kernels::{LayerBackend, swiglu};

use super::{Activation, Init, Linear};

/// The gated feed-forward layer `W_down (act(W_gate x) ∘ W_up x)`; SwiGLU with silu (arXiv 2002.05202).
#[derive(Module, Debug)]
pub struct GatedMlp<B: Backend> {
    /// `[d_ff, d_model]`
    pub gate_proj: Linear<B>,
    /// `[d_ff, d_model]`
    pub up_proj: Linear<B>,
    /// `[d_model, d_ff]`
    pub down_proj: Linear<B>,
    #[module(skip)]
    activation: Activation,
}

impl<B: Backend> GatedMlp<B> {
    /// Weights from N(0, `std`²).
    pub fn new(
        [d_model, d_ff]: [usize; 2],
        bias: bool,
        activation: Activation,
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
            activation,
        }
    }
}

impl<B: LayerBackend> GatedMlp<B> {
    /// # Shapes
    ///
    /// - `x` and output: `[batch, seq, d_model]`
    pub fn forward(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        let gate = self.gate_proj.forward_fused(x.clone());
        let up = self.up_proj.forward_fused(x);
        self.down_proj.forward_fused(match self.activation {
            Activation::Silu => swiglu(gate, up),
            other => other.forward(gate) * up,
        })
    }
}
