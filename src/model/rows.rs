//! Rows of batches: shared out, repeated, selected.

use burn::tensor::backend::Backend;
use burn::tensor::{BasicOps, Int, Tensor, TensorData};

use crate::error::Error;

/// How many of `rows` queries each of `batch` memories gets.
pub(crate) fn share(rows: usize, batch: usize) -> Result<usize, Error> {
    match batch > 0 && rows > 0 && rows.is_multiple_of(batch) {
        true => Ok(rows / batch),
        false => Err(Error::Input(format!(
            "{rows} queries cannot be shared evenly by {batch} memories"
        ))),
    }
}

/// Each sample `times` times in a row: `[batch, …]` → `[batch · times, …]`.
pub(crate) fn repeat<B: Backend, const D: usize>(x: Tensor<B, D>, times: usize) -> Tensor<B, D> {
    if times == 1 {
        return x;
    }
    let mut shape = x.shape();
    let (batch, row) = (shape[0], shape.num_elements() / shape[0]);
    shape[0] = batch * times;
    x.reshape([batch, 1, row])
        .repeat_dim(1, times)
        .reshape(shape)
}

/// The last `count` rows of each sample, or all where there are fewer: `[batch, rows, …]` → `[batch, min(count, rows), …]`.
pub(crate) fn last_rows<B: Backend, const D: usize>(x: Tensor<B, D>, count: usize) -> Tensor<B, D> {
    let rows = x.dims()[1];
    assert!(count > 0, "the last 0 rows of {rows}");
    match count < rows {
        true => x.narrow(1, rows - count, count),
        false => x,
    }
}

/// The rows at these indices, in this order.
pub(crate) fn select<B: Backend, const D: usize, K: BasicOps<B>>(
    x: Tensor<B, D, K>,
    rows: &[usize],
) -> Tensor<B, D, K> {
    let rows = indices(rows.iter().copied(), &x.device());
    x.select(0, rows)
}

/// Indices, on a device.
pub(crate) fn indices<B: Backend>(
    at: impl IntoIterator<Item = usize>,
    device: &B::Device,
) -> Tensor<B, 1, Int> {
    let at: Vec<i64> = at.into_iter().map(|at| at as i64).collect();
    let shape = [at.len()];
    Tensor::from_data(TensorData::new(at, shape), device)
}

/// The padding of each sample behind all its other rows, where nothing that looks back sees it.
///
/// - `x`: `[batch, before + width + behind, d]`, where of the `width` rows in the middle a sample's first `length` are its own
///   and the others padding
pub(crate) fn padding_last<B: Backend>(
    x: Tensor<B, 3>,
    [before, width]: [usize; 2],
    lengths: &[usize],
) -> Tensor<B, 3> {
    if lengths.iter().all(|length| *length == width) {
        return x;
    }
    let (end, rows) = (before + width, x.dims()[1]);
    let order = |length: &usize| {
        let own = before + length;
        (0..own).chain(end..rows).chain(own..end).collect()
    };
    pick(x, &lengths.iter().map(order).collect::<Vec<_>>())
}

/// The rows of each sample at its own `indices`, the same number for each sample: `[batch, rows, d]` →
/// `[batch, count, d]`.
pub(crate) fn pick<B: Backend>(x: Tensor<B, 3>, indices: &[Vec<usize>]) -> Tensor<B, 3> {
    let [batch, rows, d] = x.dims();
    let count = indices.first().map_or(0, Vec::len);
    let flat = indices.iter().enumerate();
    let flat: Vec<usize> = flat
        .flat_map(|(sample, at)| at.iter().map(move |at| sample * rows + at))
        .collect();
    select(x.reshape([batch * rows, d]), &flat).reshape([batch, count, d])
}
