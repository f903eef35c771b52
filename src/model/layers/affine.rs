use burn::module::{Module, Param};
use burn::nn;
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use gradmem_kernels::{LayerBackend, add_linear, linear, product};

use super::{Init, OutputFirst};

/// `y = x Wᵀ + b`
#[derive(Module, Debug)]
pub struct Affine<B: Backend> {
    /// `[d_output, d_input]`
    pub weight: Param<Tensor<B, 2>>,
    /// `[d_output]`
    pub bias: Option<Param<Tensor<B, 1>>>,
    /// For records: not the layout of Burn's linear layer.
    pub layout: OutputFirst<B>,
}

/// The sizes of an [`Affine`].
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct AffineConfig {
    /// Width of the input.
    pub d_input: usize,
    /// Width of the output.
    pub d_output: usize,
    /// Whether there is a bias.
    pub bias: bool,
}

impl AffineConfig {
    /// A layer with a bias.
    pub fn new(d_input: usize, d_output: usize) -> Self {
        Self {
            d_input,
            d_output,
            bias: true,
        }
    }

    /// Sets whether there is a bias.
    pub fn with_bias(mut self, bias: bool) -> Self {
        self.bias = bias;
        self
    }

    /// Weights from N(0, `std`²), a zero bias if there is one.
    pub fn init<B: Backend>(&self, std: f64, init: &mut Init, device: &B::Device) -> Affine<B> {
        let Self {
            d_input,
            d_output,
            bias,
        } = *self;
        Affine::new(
            init.normal([d_output, d_input], std, device),
            bias.then(|| init.constant([d_output], 0.0, device)),
        )
    }
}

impl<B: Backend> Affine<B> {
    /// Of a weight `[d_output, d_input]` and a bias `[d_output]`.
    pub fn new(weight: Param<Tensor<B, 2>>, bias: Option<Param<Tensor<B, 1>>>) -> Self {
        let layout = OutputFirst::default();
        Self {
            weight,
            bias,
            layout,
        }
    }

    /// The identity, with a zero bias.
    pub fn identity(d: usize, init: &Init, device: &B::Device) -> Self {
        let bias = Some(init.constant([d], 0.0, device));
        let weight = init.given([d, d], device, || Tensor::eye(d, device));
        Self::new(weight, bias)
    }

    /// A copy of a model's head; `head` is called only if the weights are not to be loaded.
    pub(crate) fn copy(
        shape: [usize; 2],
        head: impl FnOnce() -> Tensor<B, 2>,
        init: &Init,
        device: &B::Device,
    ) -> Self {
        Self::new(init.given(shape, device, || head().detach()), None)
    }

    fn plus_bias<const D: usize>(&self, y: Tensor<B, D>) -> Tensor<B, D> {
        match &self.bias {
            Some(bias) => y + bias.val().unsqueeze(),
            None => y,
        }
    }
}

impl<B: LayerBackend> Affine<B> {
    /// # Shapes
    ///
    /// - `x`: `[…, d_input]`
    /// - output: `[…, d_output]`
    pub fn forward<const D: usize>(&self, x: Tensor<B, D>) -> Tensor<B, D> {
        self.plus_bias(apply(x, self.weight.val()))
    }

    /// The map's output, added to `to`, as one operation.
    ///
    /// # Shapes
    ///
    /// - `x`: `[batch, seq, d_input]`
    /// - `to` and output: `[batch, seq, d_output]`
    pub fn add_to(&self, to: Tensor<B, 3>, x: Tensor<B, 3>) -> Tensor<B, 3> {
        let weight = self.weight.val();
        let [batch, seq, d_output] = to.dims();
        let to = to.reshape([batch * seq, d_output]);
        let sum = by_rows(x, d_output, |rows| add_linear(to, rows, weight));
        self.plus_bias(sum)
    }
}

/// Burn's linear layer in this layout: the same map, and the same parameters' ids.
impl<B: Backend> From<nn::Linear<B>> for Affine<B> {
    fn from(linear: nn::Linear<B>) -> Self {
        Self::new(turned(linear.weight), linear.bias)
    }
}

/// The same map in Burn's layout.
impl<B: Backend> From<Affine<B>> for nn::Linear<B> {
    fn from(affine: Affine<B>) -> Self {
        Self {
            weight: turned(affine.weight),
            bias: affine.bias,
        }
    }
}

fn turned<B: Backend>(weight: Param<Tensor<B, 2>>) -> Param<Tensor<B, 2>> {
    let (id, weight, _) = weight.consume();
    let trained = weight.is_require_grad();
    let weight = weight.transpose().detach();
    Param::initialized(id, weight.set_require_grad(trained))
}

/// `y = x W + b`: an [`Affine`] with the transposed weight, as GPT-2 stores it.
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

/// [`Affine::forward`] by a product of the caller's, for any backend.
///
/// # Shapes
///
/// - `x`: `[…, d_input]`
/// - output: `[…, d_output]`
pub(crate) fn affine<B: Backend, const D: usize>(
    linear: &Affine<B>,
    x: Tensor<B, D>,
    product: impl Fn(Tensor<B, 2>, Tensor<B, 2>) -> Tensor<B, 2>,
) -> Tensor<B, D> {
    linear.plus_bias(times_transposed(x, linear.weight.val(), product))
}

/// `x Wᵀ` for `x` `[…, d_input]` and `weight` `[d_output, d_input]`, by the kernels.
pub(in crate::model) fn apply<B: LayerBackend, const D: usize>(
    x: Tensor<B, D>,
    weight: Tensor<B, 2>,
) -> Tensor<B, D> {
    by_rows(x, weight.dims()[0], |rows| linear(rows, weight))
}

/// `x Wᵀ` for `x` `[…, d_input]` and `weight` `[d_output, d_input]`.
pub(crate) fn times_transposed<B: Backend, const D: usize>(
    x: Tensor<B, D>,
    weight: Tensor<B, 2>,
    product: impl Fn(Tensor<B, 2>, Tensor<B, 2>) -> Tensor<B, 2>,
) -> Tensor<B, D> {
    rows_times(x, weight.transpose(), product)
}

/// `x W` for `x` `[…, d_input]` and `weight` `[d_input, d_output]`, as one matrix product. A batched
/// product with a broadcast weight would be many small ones, and the weight's gradient a sum over the batch.
fn rows_times<B: Backend, const D: usize>(
    x: Tensor<B, D>,
    weight: Tensor<B, 2>,
    product: impl Fn(Tensor<B, 2>, Tensor<B, 2>) -> Tensor<B, 2>,
) -> Tensor<B, D> {
    by_rows(x, weight.dims()[1], |rows| product(rows, weight))
}

/// A map of the rows of `x` `[…, d_input]`, to `[…, d_output]`.
fn by_rows<B: Backend, const D: usize>(
    x: Tensor<B, D>,
    d_output: usize,
    map: impl FnOnce(Tensor<B, 2>) -> Tensor<B, 2>,
) -> Tensor<B, D> {
    let mut shape = x.shape();
    let d_input = shape[D - 1];
    let rows = shape.num_elements() / d_input;
    shape[D - 1] = d_output;
    map(x.reshape([rows, d_input])).reshape(shape)
}
