use burn::module::{Module, Param};
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use super::Init;

/// A causal depthwise convolution.
#[derive(Module, Debug)]
pub(crate) struct CausalConv<B: Backend> {
    /// `[d_inner, 1, kernel]`
    weight: Param<Tensor<B, 3>>,
    /// `[d_inner]`
    bias: Option<Param<Tensor<B, 1>>>,
}

impl<B: Backend> CausalConv<B> {
    /// Draws a convolution of so many channels uniformly in ± 1/√kernel.
    pub(crate) fn new(
        [inner, kernel]: [usize; 2],
        has_bias: bool,
        init: &mut Init,
        device: &B::Device,
    ) -> Self {
        Self {
            weight: init.uniform([inner, 1, kernel], 1.0 / (kernel as f64).sqrt(), device),
            bias: has_bias.then(|| init.constant([inner], 0.0, device)),
        }
    }

    /// The output, and the last `kernel − 1` inputs.
    ///
    /// # Shapes
    ///
    /// - `x` and output: `[batch, seq, d_inner]`
    /// - `past`: the inputs before `x`, `[batch, kernel − 1, d_inner]`; zeros unless given
    pub(crate) fn forward(
        &self,
        x: Tensor<B, 3>,
        past: Option<Tensor<B, 3>>,
    ) -> (Tensor<B, 3>, Tensor<B, 3>) {
        let [batch, seq, inner] = x.dims();
        let weight = self.weight.val();
        let kernel = weight.dims()[2];
        let before = kernel - 1;
        let inputs = match (before, past) {
            (0, _) => x,
            (_, Some(past)) => Tensor::cat(vec![past, x], 1),
            (_, None) => {
                let zeros = Tensor::zeros([batch, before, inner], (&x.device(), x.dtype()));
                Tensor::cat(vec![zeros, x], 1)
            }
        };
        let tap = |at: usize| {
            let weight = weight.clone().narrow(2, at, 1).reshape([1, 1, inner]);
            inputs.clone().narrow(1, at, seq) * weight
        };
        let y = (1..kernel).fold(tap(0), |sum, at| sum + tap(at));
        let y = match &self.bias {
            Some(bias) => y + bias.val().unsqueeze(),
            None => y,
        };
        let last = match before {
            0 => Tensor::zeros([batch, 1, inner], (&y.device(), y.dtype())),
            _ => inputs.narrow(1, seq, before),
        };
        (y, last)
    }
}
