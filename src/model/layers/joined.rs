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

/// The weights that are joined have together at most so many values. Larger ones keep a device busy one by one, and
/// copies of them would cost memory.
const AT_MOST: usize = 1 << 23;

impl<B: Backend> Joined<B> {
    /// None if it would be too large, or if only some of the maps have a bias.
    pub fn of(maps: &[&Affine<B>]) -> Option<Self> {
        let weights: Vec<_> = maps.iter().map(|map| map.weight.val()).collect();
        let values: usize = weights.iter().map(|x| x.shape().num_elements()).sum();
        let biases: Vec<_> = maps.iter().filter_map(|map| map.bias.as_ref()).collect();
        if values > AT_MOST || !(biases.is_empty() || biases.len() == maps.len()) {
            return None;
        }
        let biases = biases.into_iter().map(|bias| bias.val());
        Some(Self {
            weight: Tensor::cat(weights, 0),
            bias: maps[0]
                .bias
                .as_ref()
                .map(|_| Tensor::cat(biases.collect(), 0)),
        })
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
