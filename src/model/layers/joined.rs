use burn::module::Module;
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use gradmem_kernels::LayerBackend;

use super::Affine;
use super::affine::apply;

/// Affine maps of one input as one, with their outputs side by side. Nothing of it is a parameter: it is made of those of the
/// maps, on whatever tape they are on.
#[derive(Module, Debug)]
pub(super) struct Joined<B: Backend> {
    /// `[Σ d_output, d_input]`
    weight: Tensor<B, 2>,
    /// `[Σ d_output]`
    bias: Option<Tensor<B, 1>>,
}

impl<B: Backend> Joined<B> {
    /// Of maps that all have a bias, or none.
    pub fn of(maps: &[&Affine<B>]) -> Self {
        let weights = maps.iter().map(|map| map.weight.val());
        let biases: Option<Vec<_>> = maps
            .iter()
            .map(|map| Some(map.bias.as_ref()?.val()))
            .collect();
        Self {
            weight: Tensor::cat(weights.collect(), 0),
            bias: biases.map(|biases| Tensor::cat(biases, 0)),
        }
    }
}

impl<B: LayerBackend> Joined<B> {
    /// # Shapes
    ///
    /// - `x`: `[batch, seq, d_input]`
    /// - output: `[batch, seq, Σ d_output]`
    pub fn forward(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        let y = apply(x, self.weight.clone());
        match &self.bias {
            Some(bias) => y + bias.clone().unsqueeze(),
            None => y,
        }
    }
}
