use burn::tensor::Tensor;
use burn::tensor::activation::relu;
use gradmem_kernels::{LayerBackend, Nonlinearity, activate};
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
    ///
    /// # Shapes
    ///
    /// - `x` and output: `[batch, seq, d]`
    pub fn forward<B: LayerBackend>(self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        match self.nonlinearity() {
            Some(by) => activate(x, by),
            None => relu(x),
        }
    }

    fn nonlinearity(self) -> Option<Nonlinearity> {
        match self {
            Self::Gelu => Some(Nonlinearity::Gelu),
            Self::GeluNew => Some(Nonlinearity::GeluTanh),
            Self::Silu => Some(Nonlinearity::Silu),
            Self::Relu => None,
        }
    }
}
