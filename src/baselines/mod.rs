//! What GradMem is compared with: the same questions about the same contexts, answered otherwise.
//!
//! | baseline | what is kept of the context |
//! |---|---|
//! | [`Rmt`] | memory vectors, written by forward passes |
//! | [`InContext`] | all of it, in the prompt |

mod in_context;
mod rmt;

pub use in_context::{InContext, InContextConfig};
pub use rmt::{Rmt, RmtConfig, RmtOuter, RmtProj};

use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor, TensorData};

/// Of each sample the rows at its own `indices`, as many of each: `[batch, rows, d]` →
/// `[batch, count, d]`.
fn pick<B: Backend>(x: Tensor<B, 3>, indices: &[Vec<usize>]) -> Tensor<B, 3> {
    let [batch, rows, d] = x.dims();
    let count = indices.first().map_or(0, Vec::len);
    let flat = indices.iter().enumerate();
    let flat: Vec<i64> = flat
        .flat_map(|(sample, at)| at.iter().map(move |at| (sample * rows + at) as i64))
        .collect();
    let shape = [flat.len()];
    let flat: Tensor<B, 1, Int> = Tensor::from_data(TensorData::new(flat, shape), &x.device());
    x.reshape([batch * rows, d])
        .select(0, flat)
        .reshape([batch, count, d])
}
