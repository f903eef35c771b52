//! Operations on heads before attention, from a tensor `[batch, seq, heads, head_dim]` with any strides to a
//! contiguous one.

use burn::tensor::{Shape, TensorMetadata};
use burn_flex::FlexTensor;

use super::memory::{Heads, in_shape, readable, single};
use super::parallel::{Blank, copy, fill, rows};

/// A contiguous copy.
pub fn contiguous(x: FlexTensor) -> FlexTensor {
    each_head(
        x,
        #[inline(always)]
        |x, _, y| copy(x, y),
    )
}

/// By how much the dimensions i and i + half of each head are rotated, at each position.
pub struct Turn {
    cos: FlexTensor,
    sin: FlexTensor,
    half: usize,
}

impl Turn {
    /// Of cos, sin and turn as in [`rotary`](crate::rotary), if they are f32 and the matrix is one of such a rotation.
    pub fn new(tables: [&FlexTensor; 3]) -> Option<Self> {
        let [cos, sin, turn] = single(tables)?;
        let [d, _] = turn.layout().shape().dims();
        let half = half_of(turn.storage(), d)?;
        Some(Self { cos, sin, half })
    }

    fn tables(&self) -> Tables<'_> {
        Tables {
            cos: self.cos.storage(),
            sin: self.sin.storage(),
            half: self.half,
        }
    }
}

struct Tables<'a> {
    cos: &'a [f32],
    sin: &'a [f32],
    half: usize,
}

impl Tables<'_> {
    /// Rotates a head at a position, or back.
    #[inline(always)]
    fn head(&self, x: &[f32], position: usize, y: Blank<'_>, back: bool) {
        let at = position * x.len()..(position + 1) * x.len();
        let (cos, sin) = (&self.cos[at.clone()], &self.sin[at]);
        let sign = if back { -1.0 } else { 1.0 };
        for i in 0..self.half {
            let j = i + self.half;
            y[i].write(x[i] * cos[i] - x[j] * (sign * sin[i]));
            y[j].write(x[j] * cos[j] + x[i] * (sign * sin[j]));
        }
        for i in 2 * self.half..x.len() {
            y[i].write(x[i] * cos[i]);
        }
    }
}

/// Rotates each head by the angles of its position.
pub fn rotary(x: FlexTensor, by: &Turn) -> FlexTensor {
    let by = by.tables();
    each_head(
        x,
        #[inline(always)]
        |x, position, y| by.head(x, position, y, false),
    )
}

/// Queries and keys, rotated, and values from the columns of `x` `[batch, seq, columns]`, each
/// `[batch, seq, heads, head_dim]`.
pub fn split(x: FlexTensor, by: &Turn, [n_heads, n_kv_heads]: [usize; 2]) -> [FlexTensor; 3] {
    let [batch, seq, width] = x.shape().dims();
    let d = width / (n_heads + 2 * n_kv_heads);
    let counts = [n_heads, n_kv_heads, n_kv_heads];
    let (values, by): (&[f32], _) = (x.storage(), by.tables());
    let (parts, _) = rows(
        batch * seq,
        counts.map(|count| count * d),
        #[inline(always)]
        |range, outputs: [Blank<'_>; 3]| {
            let (first, mut before) = (range.start, 0);
            for (part, (y, count)) in outputs.into_iter().zip(counts).enumerate() {
                for (index, y) in y.chunks_exact_mut(count * d).enumerate() {
                    let (row, position) = (first + index, (first + index) % seq);
                    let start = row * width + before;
                    let x = &values[start..start + count * d];
                    for (x, y) in x.chunks_exact(d).zip(y.chunks_exact_mut(d)) {
                        match part < 2 {
                            true => by.head(x, position, y, false),
                            false => copy(x, y),
                        }
                    }
                }
                before += count * d;
            }
        },
    );
    let mut counts = counts.into_iter();
    parts.map(|part| {
        let count = counts.next().unwrap_or_default();
        in_shape(&Shape::new([batch, seq, count, d]), part)
    })
}

/// Queries and keys, rotated back, and values, `[batch, seq, heads, head_dim]` with any strides, side by side:
/// `[batch, seq, columns]`.
pub fn join(qkv: [FlexTensor; 3], by: Option<&Turn>) -> FlexTensor {
    let [batch, seq, _, d] = qkv[0].shape().dims();
    let counts = qkv.each_ref().map(|x| x.shape()[2]);
    let heads: usize = counts.iter().sum();
    let qkv = qkv.map(readable);
    let parts = qkv.each_ref().map(Heads::of);
    let by = by.map(Turn::tables);
    let ([y], _) = fill(
        batch * seq * heads * d,
        heads * d,
        #[inline(always)]
        |range, [y]: [Blank<'_>; 1]| {
            let first = range.start / (heads * d);
            for (index, y) in y.chunks_exact_mut(heads * d).enumerate() {
                let (sample, position) = ((first + index) / seq, (first + index) % seq);
                let mut y = y.chunks_exact_mut(d);
                for (part, (x, count)) in parts.iter().zip(counts).enumerate() {
                    let x = x.get(sample, position);
                    for (head, y) in (0..count).zip(&mut y) {
                        let x = &x.from(head).data[..d];
                        match by.as_ref().filter(|_| part < 2) {
                            Some(by) => by.head(x, position, y, true),
                            None => copy(x, y),
                        }
                    }
                }
            }
        },
    );
    in_shape(&Shape::new([batch, seq, heads * d]), y)
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
fn half_of(turn: &[f32], d: usize) -> Option<usize> {
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
