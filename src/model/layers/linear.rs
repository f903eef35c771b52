use burn::module::{Module, Param};
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use super::Init;

/// `y = x Wᵀ + b`
#[derive(Module, Debug)]
pub struct Linear<B: Backend> {
    /// `[d_output, d_input]`
    pub weight: Param<Tensor<B, 2>>,
    /// `[d_output]`
    pub bias: Option<Param<Tensor<B, 1>>>,
}

impl<B: Backend> Linear<B> {
    /// Weights from N(0, `std`²), a zero bias if there is one.
    pub fn new(
        [d_output, d_input]: [usize; 2],
        bias: bool,
        std: f64,
        init: &mut Init,
        device: &B::Device,
    ) -> Self {
        Self {
            weight: init.normal([d_output, d_input], std, device),
            bias: bias.then(|| Init::constant([d_output], 0.0, device)),
        }
    }

    /// # Shapes
    ///
    /// - `x`: `[…, d_input]`
    /// - output: `[…, d_output]`
    pub fn forward<const D: usize>(&self, x: Tensor<B, D>) -> Tensor<B, D> {
        let y = matmul_transposed(x, self.weight.val());
        match &self.bias {
            Some(bias) => y + bias.val().unsqueeze(),
            None => y,
        }
    }
}

/// `x Wᵀ` for `x` `[…, d_input]` and `weight` `[d_output, d_input]`, as one matrix product: batched
/// with a broadcast weight it would be many small ones, and the weight's gradient a sum of copies.
pub(crate) fn matmul_transposed<B: Backend, const D: usize>(
    x: Tensor<B, D>,
    weight: Tensor<B, 2>,
) -> Tensor<B, D> {
    let [d_output, d_input] = weight.dims();
    let mut shape = x.shape();
    let rows = shape.num_elements() / d_input;
    shape[D - 1] = d_output;
    x.reshape([rows, d_input])
        .matmul(weight.transpose())
        .reshape(shape)
}
