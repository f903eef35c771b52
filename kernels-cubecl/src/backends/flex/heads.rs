//! Operations on heads before attention, from a tensor `[batch, seq, heads, head_dim]` with any strides to a
//! contiguous one.

use burn::tensor::TensorMetadata;
use burn_flex::FlexTensor;

use super::memory::{Heads, in_shape, readable};
use super::parallel::{Blank, fill};

/// A contiguous copy.
pub fn contiguous(x: FlexTensor) -> FlexTensor {
    each_head(
        x,
        #[inline(always)]
        |x, _, y| {
            for (y, x) in y.iter_mut().zip(x) {
                y.write(*x);
            }
        },
    )
}

/// Rotates the dimensions i and i + `half` of each head by the angles of its position.
pub fn rotary(x: FlexTensor, cos: FlexTensor, sin: FlexTensor, half: usize) -> FlexTensor {
    let (cos, sin): (&[f32], &[f32]) = (cos.storage(), sin.storage());
    each_head(
        x,
        #[inline(always)]
        |x, position, y| {
            let at = position * x.len()..(position + 1) * x.len();
            let (cos, sin) = (&cos[at.clone()], &sin[at]);
            for i in 0..half {
                let j = i + half;
                y[i].write(x[i] * cos[i] - x[j] * sin[i]);
                y[j].write(x[j] * cos[j] + x[i] * sin[j]);
            }
            for i in 2 * half..x.len() {
                y[i].write(x[i] * cos[i]);
            }
        },
    )
}

/// Computes each head from its values and its position. `f` must write the whole head and be
/// `#[inline(always)]`.
fn each_head(x: FlexTensor, f: impl Fn(&[f32], usize, Blank<'_>) + Sync) -> FlexTensor {
    let [_, seq, n_heads, d] = x.shape().dims();
    let x = readable(x);
    let (shape, x) = (x.layout().shape(), Heads::of(&x));
    let ([y], _) = fill(
        shape.num_elements(),
        n_heads * d,
        #[inline(always)]
        |range, [y]: [Blank<'_>; 1]| {
            let first = range.start / (n_heads * d);
            for (index, y) in y.chunks_exact_mut(n_heads * d).enumerate() {
                let (sample, position) = ((first + index) / seq, (first + index) % seq);
                let heads = x.get(sample, position);
                for (head, y) in y.chunks_exact_mut(d).enumerate() {
                    f(&heads.from(head).data[..d], position, y);
                }
            }
        },
    );
    in_shape(shape, y)
}

/// h, if the matrix T `[d, d]` swaps dimensions 0 … h − 1 with h … 2h − 1, negates the first of each pair
/// and is zero elsewhere.
pub fn half_of(turn: &[f32], d: usize) -> Option<usize> {
    let half = (0..d).find(|row| turn[row * d] == -1.0).unwrap_or(0);
    let expected = |row: usize, column: usize| {
        if row == column + half && column < half {
            -1.0
        } else if column == row + half && row < half {
            1.0
        } else {
            0.0
        }
    };
    let fits = turn
        .iter()
        .enumerate()
        .all(|(at, x)| *x == expected(at / d, at % d));
    (fits && 2 * half <= d).then_some(half)
}
