use burn::module::Module;
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use gradmem_kernels::{LayerBackend, side_by_side, swiglu};

use super::joined::Joined;
use super::{Activation, Affine, AffineConfig, Init};
use crate::model::cache::{LayerCache, adapted, has_adapters};

/// The gated feed-forward layer `W_down (act(W_gate x) ∘ W_up x)`; SwiGLU with silu (arXiv 2002.05202).
#[derive(Module, Debug)]
pub struct GatedMlp<B: Backend> {
    /// `[d_ff, d_model]`
    pub gate_proj: Affine<B>,
    /// `[d_ff, d_model]`
    pub up_proj: Affine<B>,
    /// `[d_model, d_ff]`
    pub down_proj: Affine<B>,
    /// The first two as one; see [`GatedMlp::joined`].
    gate_up: Option<Joined<B>>,
    #[module(skip)]
    activation: Activation,
}

/// The sizes of a [`GatedMlp`].
#[derive(Clone, Copy, Debug)]
pub struct GatedMlpConfig {
    /// Width of the residual stream.
    pub d_model: usize,
    /// Width between the projections.
    pub d_ff: usize,
    /// Whether the projections have biases.
    pub bias: bool,
    /// The nonlinearity of the gate.
    pub activation: Activation,
}

impl GatedMlpConfig {
    /// Weights from N(0, `std`²).
    pub fn init<B: Backend>(&self, std: f64, init: &mut Init, device: &B::Device) -> GatedMlp<B> {
        let mut linear = |d_input, d_output| {
            let config = AffineConfig::new(d_input, d_output).with_bias(self.bias);
            config.init(std, init, device)
        };
        GatedMlp {
            gate_proj: linear(self.d_model, self.d_ff),
            up_proj: linear(self.d_model, self.d_ff),
            down_proj: linear(self.d_ff, self.d_model),
            gate_up: None,
            activation: self.activation,
        }
    }
}

impl<B: LayerBackend> GatedMlp<B> {
    /// The same with gate and up as one product, of the weights as they are now, where the activation takes them so and they are
    /// not large.
    pub fn joined(mut self) -> Self {
        if self.activation == Activation::Silu && self.gate_up.is_none() {
            self.gate_up = Joined::of(&[&self.gate_proj, &self.up_proj]);
        }
        self
    }

    /// What it computes of `x`, added to `residual`.
    ///
    /// # Shapes
    ///
    /// - `residual`, `x` and output: `[batch, seq, d_model]`
    /// - `past`: adapters of the projections, if there are any
    pub fn add_to(
        &self,
        residual: Tensor<B, 3>,
        x: Tensor<B, 3>,
        past: Option<&LayerCache<B>>,
    ) -> Tensor<B, 3> {
        let project = |name, linear: &Affine<B>, x| adapted(past, name, x, |x| linear.forward(x));
        let y = match &self.gate_up {
            Some(gate_up) if !has_adapters(past, ["gate_proj", "up_proj"]) => {
                swiglu(gate_up.forward(x))
            }
            _ => {
                let gate = project("gate_proj", &self.gate_proj, x.clone());
                let up = project("up_proj", &self.up_proj, x);
                match self.activation {
                    Activation::Silu => swiglu(side_by_side(gate, up)),
                    other => other.forward(gate) * up,
                }
            }
        };
        adapted(past, "down_proj", y, |y| self.down_proj.add_to(residual, y))
    }
}
