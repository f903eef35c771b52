use burn::module::{Module, Param};
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use gradmem_kernels::{LayerBackend, product};

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
            bias: bias.then(|| init.constant([d_output], 0.0, device)),
        }
    }

    /// The identity, with a zero bias.
    pub fn identity(d: usize, init: &Init, device: &B::Device) -> Self {
        let bias = Some(init.constant([d], 0.0, device));
        let weight = match init.is_blank() {
            true => init.constant([d, d], 0.0, device),
            false => Param::from_tensor(Tensor::eye(d, device)),
        };
        Self { weight, bias }
    }

    /// A copy of a model's head; `head` is asked only if weights are not to be loaded.
    pub(crate) fn copy(
        shape: [usize; 2],
        head: impl FnOnce() -> Tensor<B, 2>,
        init: &Init,
        device: &B::Device,
    ) -> Self {
        let weight = match init.is_blank() {
            true => init.constant(shape, 0.0, device),
            false => Param::from_tensor(head().detach()),
        };
        Self { weight, bias: None }
    }

    /// # Shapes
    ///
    /// - `x`: `[…, d_input]`
    /// - output: `[…, d_output]`
    pub fn forward<const D: usize>(&self, x: Tensor<B, D>) -> Tensor<B, D> {
        self.plus_bias(matmul_transposed(x, self.weight.val()))
    }

    fn plus_bias<const D: usize>(&self, y: Tensor<B, D>) -> Tensor<B, D> {
        match &self.bias {
            Some(bias) => y + bias.val().unsqueeze(),
            None => y,
        }
    }
}

impl<B: LayerBackend> Linear<B> {
    /// [`Linear::forward`] by the kernels' matrix product, for the layers of a model.
    ///
    /// # Shapes
    ///
    /// - `x`: `[…, d_input]`
    /// - output: `[…, d_output]`
    pub fn forward_fused<const D: usize>(&self, x: Tensor<B, D>) -> Tensor<B, D> {
        self.plus_bias(rows_times(x, self.weight.val().transpose(), product))
    }
}

/// `y = x W + b`: a [`Linear`] whose weight lies the other way round, as GPT-2's do.
#[derive(Module, Debug)]
pub struct Conv1D<B: Backend> {
    /// `[d_input, d_output]`
    pub weight: Param<Tensor<B, 2>>,
    /// `[d_output]`
    pub bias: Param<Tensor<B, 1>>,
}

impl<B: Backend> Conv1D<B> {
    /// Weights from N(0, `std`²), a zero bias.
    pub fn new(
        [d_input, d_output]: [usize; 2],
        std: f64,
        init: &mut Init,
        device: &B::Device,
    ) -> Self {
        Self {
            weight: init.normal([d_input, d_output], std, device),
            bias: init.constant([d_output], 0.0, device),
        }
    }
}

impl<B: LayerBackend> Conv1D<B> {
    /// # Shapes
    ///
    /// - `x`: `[…, d_input]`
    /// - output: `[…, d_output]`
    pub fn forward<const D: usize>(&self, x: Tensor<B, D>) -> Tensor<B, D> {
        rows_times(x, self.weight.val(), product) + self.bias.val().unsqueeze()
    }
}

/// `x Wᵀ` for `x` `[…, d_input]` and `weight` `[d_output, d_input]`.
pub(crate) fn matmul_transposed<B: Backend, const D: usize>(
    x: Tensor<B, D>,
    weight: Tensor<B, 2>,
) -> Tensor<B, D> {
    rows_times(x, weight.transpose(), Tensor::matmul)
}

/// `x W` for `x` `[…, d_input]` and `weight` `[d_input, d_output]`, as one matrix product: batched
/// with a broadcast weight it would be many small ones, and the weight's gradient a sum of copies.
fn rows_times<B: Backend, const D: usize>(
    x: Tensor<B, D>,
    weight: Tensor<B, 2>,
    product: impl Fn(Tensor<B, 2>, Tensor<B, 2>) -> Tensor<B, 2>,
) -> Tensor<B, D> {
    let [d_input, d_output] = weight.dims();
    let mut shape = x.shape();
    let rows = shape.num_elements() / d_input;
    shape[D - 1] = d_output;
    product(x.reshape([rows, d_input]), weight).reshape(shape)
}
