use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use super::{Attach, Attached, side_by_side};
use crate::model::layers::{Affine, affine};
use crate::model::{Cache, CausalLm};

/// A memory of keys and values, for each sample its own: every token of a layer's attention sees them before the tokens.
/// They take `memory_tokens` positions, but are used as they are, without a position of their own; nothing predicts the
/// first token.
#[derive(Clone, Copy, Debug)]
pub struct KeysValues<'a, B: Backend> {
    /// The layers that have them; `fast` has the keys and the values `[batch, memory_tokens, heads · head_dim]` of the
    /// first, of the second, and so on.
    pub layers: &'a [usize],
    /// Number of keys.
    pub memory_tokens: usize,
    /// Heads of keys and values, and the width of one.
    pub heads: [usize; 2],
    /// Maps of each layer's keys and values, the same for all heads, if there are any.
    pub projections: Option<[&'a [Affine<B>]; 2]>,
}

impl<B: Backend, M: CausalLm<B>> Attach<B, M> for KeysValues<'_, B> {
    fn positions(&self, chunks: usize) -> usize {
        self.memory_tokens * chunks
    }

    fn join(&self, parts: &[Vec<Tensor<B, 3>>]) -> Vec<Tensor<B, 3>> {
        side_by_side(parts, |_| 1)
    }

    fn attached(&self, fast: &[Tensor<B, 3>]) -> Attached<B> {
        let mut cache = Cache::of_positions(fast[0].dims()[1]);
        for (at, (layer, pair)) in self.layers.iter().zip(fast.chunks(2)).enumerate() {
            let kept = [0, 1].map(|which| {
                let [batch, m, _] = pair[which].dims();
                let [heads, head_dim] = self.heads;
                let x = pair[which].clone().reshape([batch, m, heads, head_dim]);
                match self.projections {
                    Some(maps) => affine(&maps[which][at], x, M::product),
                    None => x,
                }
            });
            cache.layer(*layer).kept = Some(kept);
        }
        Attached::InCache(cache)
    }
}
