//! The last rows of each sample, and zeros before them: `[batch, rows, …]`.

use burn::tensor::{Shape, TensorMetadata};
use burn_flex::FlexTensor;

use super::memory::in_shape;
use super::parallel::{Blank, copy, rows};

/// See [`LayerBackend::last_rows`](crate::LayerBackend::last_rows).
pub fn last(x: FlexTensor, count: usize) -> FlexTensor {
    let (shape, values) = (x.shape(), x.storage::<f32>());
    let (before, width) = (shape[1] - count, width(&shape));
    of_samples(
        &shape,
        count,
        #[inline(always)]
        |sample, y| {
            let start = (sample * shape[1] + before) * width;
            copy(&values[start..start + y.len()], y);
        },
    )
}

/// See [`LayerBackend::behind_zeros`](crate::LayerBackend::behind_zeros).
pub fn behind_zeros(x: FlexTensor, count: usize) -> FlexTensor {
    let (shape, values) = (x.shape(), x.storage::<f32>());
    let width = width(&shape);
    let (own, before) = (shape[1] * width, (count - shape[1]) * width);
    of_samples(
        &shape,
        count,
        #[inline(always)]
        |sample, y| {
            let (zeros, y) = y.split_at_mut(before);
            for zero in zeros {
                zero.write(0.0);
            }
            copy(&values[sample * own..(sample + 1) * own], y);
        },
    )
}

/// A tensor like one of this shape with `count` rows for each sample, which `f` writes.
fn of_samples(shape: &Shape, count: usize, f: impl Fn(usize, Blank<'_>) + Sync) -> FlexTensor {
    let (batch, size) = (shape[0], count * width(shape));
    let ([y], _) = rows(
        batch,
        [size],
        #[inline(always)]
        |samples, [y]: [Blank<'_>; 1]| {
            for (sample, y) in samples.zip(y.chunks_exact_mut(size.max(1))) {
                f(sample, y);
            }
        },
    );
    let mut shape = shape.clone();
    shape[1] = count;
    in_shape(&shape, y)
}

/// Values of a row.
fn width(shape: &Shape) -> usize {
    shape.iter().skip(2).product()
}
