use burn::module::Param;
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use super::value::cat;
use super::{Attach, Attached, side_by_side};
use crate::error::{Error, require};
use crate::model::CausalLm;
use crate::model::layers::{Affine, Init, affine};

/// A memory that stands in front of the tokens: `[start; W mem + b; end]`.
///
/// What it is made of belongs to the method that uses it, such as
/// [`GradMem`](crate::memory::GradMem), under the names of its checkpoints; this is a view of it for one
/// phase, WRITE or READ.
#[derive(Clone, Copy, Debug)]
pub struct Prefix<'a, B: Backend> {
    /// Learned vectors before the memory: `[n, d_model]`.
    pub start: Option<&'a Param<Tensor<B, 2>>>,
    /// Number of memory vectors.
    pub memory_tokens: usize,
    /// The map from memory to model, if all samples share one. A sample's own is a part of its memory.
    pub projection: Option<&'a Affine<B>>,
    /// Learned vectors behind the memory: `[n, d_model]`.
    pub end: Option<&'a Param<Tensor<B, 2>>>,
}

impl<B: Backend> Prefix<'_, B> {
    /// What the model is given for memories: [`Prefix::project`], then [`Prefix::frame`].
    pub fn vectors<M: CausalLm<B>>(&self, fast: &[Tensor<B, 3>]) -> Tensor<B, 3> {
        self.frame(self.project::<M>(fast))
    }

    /// `W mem + b`: `[batch, memory_tokens, d_model]`, by the shared map or by each sample's own.
    ///
    /// # Shapes
    ///
    /// - `fast`: the vectors `[batch, memory_tokens, d_model]` and, if each sample has its own map, its weight
    ///   `[batch, d_model, d_model]` and bias `[batch, 1, d_model]`
    pub fn project<M: CausalLm<B>>(&self, fast: &[Tensor<B, 3>]) -> Tensor<B, 3> {
        match (fast, self.projection) {
            ([vectors, weight, bias], _) => {
                M::product(vectors.clone(), weight.clone().swap_dims(1, 2)) + bias.clone()
            }
            ([vectors, ..], Some(shared)) => affine(shared, vectors.clone(), M::product),
            ([vectors, ..], None) => vectors.clone(),
            ([], _) => unreachable!("a memory has vectors"),
        }
    }

    /// `[start; vectors; end]`: `[batch, positions, d_model]`.
    pub fn frame(&self, vectors: Tensor<B, 3>) -> Tensor<B, 3> {
        let batch = vectors.dims()[0];
        let each = |control: &Param<Tensor<B, 2>>| {
            let [n, d] = control.val().dims();
            control.val().unsqueeze::<3>().expand([batch, n, d])
        };
        let parts = [self.start.map(each), Some(vectors), self.end.map(each)];
        cat(parts.into_iter().flatten().collect(), 1)
    }
}

impl<B: Backend, M: CausalLm<B>> Attach<B, M> for Prefix<'_, B> {
    fn positions(&self, chunks: usize) -> usize {
        let control = [self.start, self.end].into_iter().flatten();
        let control = control.map(|tokens| tokens.lazy_shape()[0]);
        self.memory_tokens * chunks + control.sum::<usize>()
    }

    /// The vectors one behind the other, by the last chunk's map where each has its own.
    fn join(&self, parts: &[Vec<Tensor<B, 3>>]) -> Vec<Tensor<B, 3>> {
        let vectors = side_by_side(parts, |_| 1).into_iter().take(1);
        let map = parts.last().into_iter().flat_map(|last| last[1..].to_vec());
        vectors.chain(map).collect()
    }

    fn attached(&self, fast: &[Tensor<B, 3>]) -> Attached<B> {
        Attached::InFront(self.vectors::<M>(fast))
    }
}

/// Fails unless the model has positions for `prefix` vectors and a token.
pub(crate) fn check_room<B: Backend, M: CausalLm<B>>(
    model: &M,
    key: &str,
    prefix: usize,
) -> Result<(), Error> {
    let Some(positions) = model.max_positions() else {
        return Ok(());
    };
    let problem = format!("must leave room for tokens in the model's {positions} positions");
    require(prefix < positions, key, prefix, problem)
}

/// Control tokens `[n, d_model]` for WRITE's and READ's two sides of the memory, if n is not 0.
pub(crate) fn control_tokens<B: Backend>(
    shape: [usize; 2],
    std: f64,
    init: &mut Init,
    device: &B::Device,
) -> [Option<Param<Tensor<B, 2>>>; 4] {
    [(); 4].map(|()| (shape[0] > 0).then(|| init.normal(shape, std, device)))
}
