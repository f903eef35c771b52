use burn::module::{Module, Param};
use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor};

use super::{Affine, Init};

/// A vector for each token. A tied head uses the same table, transposed.
#[derive(Module, Debug)]
pub struct Embedding<B: Backend> {
    /// `[vocab_size, d_model]`
    pub weight: Param<Tensor<B, 2>>,
}

impl<B: Backend> Embedding<B> {
    /// Vectors from N(0, `std`²).
    pub fn new(
        [vocab_size, d_model]: [usize; 2],
        std: f64,
        init: &mut Init,
        device: &B::Device,
    ) -> Self {
        Self {
            weight: init.normal([vocab_size, d_model], std, device),
        }
    }

    /// # Shapes
    ///
    /// - `tokens`: `[batch, seq]`
    /// - output: `[batch, seq, d_model]`
    pub fn forward(&self, tokens: Tensor<B, 2, Int>) -> Tensor<B, 3> {
        let [batch, seq] = tokens.dims();
        let weight = self.weight.val();
        let [_, d_model] = weight.dims();
        weight
            .select(0, tokens.reshape([batch * seq]))
            .reshape([batch, seq, d_model])
    }

    /// The weight `[vocab_size, d_model]` of a model's head: its own, or this table if they are tied.
    pub fn head(&self, own: Option<&Affine<B>>) -> Tensor<B, 2> {
        own.map_or_else(|| self.weight.val(), |own| own.weight.val())
    }
}
