use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use super::{Attach, Attached, side_by_side};
use crate::model::{Adapter, Cache, CausalLm, WHOLE_LAYER};

/// Where in a model an adapter is.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Place {
    /// The layer, from 0.
    pub layer: usize,
    /// The module's path in the layer; none for the whole layer, whose adapter is added to the hidden states behind it.
    pub module: Option<&'static str>,
}

/// A memory of low-rank maps (LoRA, arXiv 2106.09685): each sample has its own, at every [`Place`] `A` `[d_input, rank]` and
/// `B` `[rank, d_output]`, which add `scale · (x A) B`. It takes no positions, and nothing predicts the first token.
#[derive(Clone, Copy, Debug)]
pub struct Adapters<'a> {
    /// Where they are; `fast` has A and B of the first, of the second, and so on.
    pub places: &'a [Place],
    /// `α / rank`
    pub scale: f64,
}

impl<B: Backend, M: CausalLm<B>> Attach<B, M> for Adapters<'_> {
    fn positions(&self, _chunks: usize) -> usize {
        0
    }

    /// The sum of their maps: `[A_1 A_2 …] [B_1; B_2; …]`.
    fn join(&self, parts: &[Vec<Tensor<B, 3>>]) -> Vec<Tensor<B, 3>> {
        side_by_side(parts, |matrix| if matrix % 2 == 0 { 2 } else { 1 })
    }

    fn attached(&self, fast: &[Tensor<B, 3>]) -> Attached<B> {
        let mut cache = Cache::new();
        for (place, pair) in self.places.iter().zip(fast.chunks(2)) {
            let [a, b] = [0, 1].map(|at| pair[at].clone());
            let b = b.mul_scalar(self.scale);
            let module = place.module.unwrap_or(WHOLE_LAYER);
            cache.layer(place.layer).adapt(module, Adapter { a, b });
        }
        Attached::InCache(cache)
    }
}
