use burn::tensor::activation::{relu, sigmoid};
use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor};
use serde::{Deserialize, Serialize};

/// A feed-forward layer's nonlinearity, under Hugging Face's names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Activation {
    /// `x Φ(x)` (arXiv 1606.08415)
    Gelu,
    /// The same with Φ approximated by a tanh; also known as `gelu_pytorch_tanh`.
    #[serde(alias = "gelu_pytorch_tanh", alias = "gelu_fast")]
    GeluNew,
    /// `max(x, 0)`
    Relu,
    /// `x σ(x)`; also known as `swish`.
    #[default]
    #[serde(alias = "swish")]
    Silu,
}

impl Activation {
    /// Elementwise.
    pub fn forward<B: Backend, const D: usize>(self, x: Tensor<B, D>) -> Tensor<B, D> {
        match self {
            Self::Gelu => {
                let phi = x.clone().mul_scalar(0.5f64.sqrt()).erf();
                x.clone() * phi.mul_scalar(0.5).add_scalar(0.5)
            }
            Self::GeluNew => {
                let cubic = x.clone().square().mul_scalar(0.044715).add_scalar(1.0);
                let inner = (x.clone() * cubic).mul_scalar(std::f64::consts::FRAC_2_PI.sqrt());
                x * inner.tanh().mul_scalar(0.5).add_scalar(0.5)
            }
            Self::Relu => relu(x),
            Self::Silu => silu(x),
        }
    }
}

/// `σ(x)`, elementwise.
pub(super) fn sigma<B: Backend, const D: usize>(x: Tensor<B, D>) -> Tensor<B, D> {
    match x.dtype() {
        // As in `silu`.
        DType::F64 => x.mul_scalar(0.5).tanh().mul_scalar(0.5).add_scalar(0.5),
        _ => sigmoid(x),
    }
}

fn silu<B: Backend, const D: usize>(x: Tensor<B, D>) -> Tensor<B, D> {
    match x.dtype() {
        // Some backends compute an f64 sigmoid in f32, but not tanh.
        DType::F64 => {
            let half = x.mul_scalar(0.5);
            half.clone().tanh() * half.clone() + half
        }
        _ => sigmoid(x.clone()) * x,
    }
}
