//! The last rows of each sample, and zeros before them: `[batch, rows, …]`.

use burn::tensor::{Shape, TensorMetadata};
use burn_flex::FlexTensor;

use super::memory::{Heads, in_shape, readable};
use super::parallel::{Blank, copy, rows};

/// See [`LayerBackend::last_rows`](crate::LayerBackend::last_rows).
pub fn last(x: FlexTensor, count: usize) -> FlexTensor {
    let before = x.shape()[1] - count;
    of_samples(
        x,
        count,
        #[inline(always)]
        |row| row.checked_add(before),
    )
}

/// See [`LayerBackend::behind_zeros`](crate::LayerBackend::behind_zeros).
pub fn behind_zeros(x: FlexTensor, count: usize) -> FlexTensor {
    let before = count - x.shape()[1];
    of_samples(
        x,
        count,
        #[inline(always)]
        |row| row.checked_sub(before),
    )
}

/// A tensor like `x` with `count` rows for each sample: for each row of them, the row of `x` that `from` gives, or zeros.
fn of_samples(
    x: FlexTensor,
    count: usize,
    from: impl Fn(usize) -> Option<usize> + Sync,
) -> FlexTensor {
    let mut shape = x.shape();
    shape[1] = count;
    let x = in_heads(x);
    let [batch, _, heads, d] = x.shape().dims();
    let (x, width) = (Heads::of(&x), heads * d);
    let ([y], _) = rows(
        batch * count,
        [width],
        #[inline(always)]
        |range, [y]: [Blank<'_>; 1]| {
            for (at, y) in range.zip(y.chunks_exact_mut(width.max(1))) {
                match from(at % count) {
                    Some(row) => {
                        let row = x.get(at / count, row);
                        for (head, y) in y.chunks_exact_mut(d).enumerate() {
                            copy(&row.from(head).data[..d], y);
                        }
                    }
                    None => zero(y),
                }
            }
        },
    );
    in_shape(&shape, y)
}

#[inline(always)]
fn zero(y: Blank<'_>) {
    for y in y {
        y.write(0.0);
    }
}

/// `[batch, rows, heads, head_dim]` as [`Heads`] read it, other than by its rows only where a row is divided in memory.
fn in_heads(x: FlexTensor) -> FlexTensor {
    let shape = x.shape();
    if shape.num_dims() == 4 && !x.is_contiguous() {
        return readable(x);
    }
    let width = shape.iter().skip(2).product();
    let whole = Shape::new([shape[0], shape[1], 1, width]);
    x.to_contiguous().reshape(whole)
}
