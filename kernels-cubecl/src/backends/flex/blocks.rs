//! The blocks into which attention is divided, and the matrix products of a block.

use burn_flex::FlexTensor;
use rayon::prelude::*;

use super::memory::{Heads, Output};
use super::threads::stay_awake;
use super::triangular::{Product, Rows, TILE, Triangle};
use super::vector::{LANES, exp, update};

/// Rows of a block: the block's matrices fit the second-level cache.
const BLOCK: usize = 48;

/// The sizes of an attention.
pub struct Sizes {
    pub batch: usize,
    pub heads: usize,
    kv_heads: usize,
    pub query_len: usize,
    key_len: usize,
    dim: usize,
    /// Values from one row over the keys to the next.
    stride: usize,
}

impl Sizes {
    pub fn of([q, k, _]: &[FlexTensor; 3]) -> Self {
        let (q, k) = (q.layout().shape(), k.layout().shape());
        Self {
            batch: q[0],
            heads: q[1],
            kv_heads: k[1],
            query_len: q[2],
            key_len: k[2],
            dim: q[3],
            stride: k[2].next_multiple_of(LANES),
        }
    }

    pub fn like_q(&self) -> Output {
        Output::new([self.batch, self.heads, self.query_len, self.dim])
    }

    pub fn like_k(&self) -> Output {
        let shape = [self.batch, self.kv_heads, self.key_len, self.dim];
        Output::new(shape)
    }

    /// Values of a query head's matrix.
    pub fn queries(&self) -> usize {
        self.query_len * self.dim
    }

    /// Values of a key/value head's matrix.
    pub fn keys(&self) -> usize {
        self.key_len * self.dim
    }

    /// Values of a transposed key/value head, `[dim, stride]`.
    pub fn transposed(&self) -> usize {
        self.dim * self.stride
    }

    /// Values of a block of rows over the keys.
    pub fn block(&self) -> usize {
        BLOCK.min(self.query_len) * self.stride
    }

    pub fn transpose(&self, x: Rows, to: &mut [f32]) {
        x.transpose([self.key_len, self.dim], to, self.stride);
    }

    /// Runs `f` on every key/value head, in parallel. `products` is the number of matrix products per head
    /// and determines how many heads a thread gets at least.
    pub fn for_each_task(&self, products: usize, f: impl Fn(Task) + Sync) {
        const WORTH_A_THREAD: usize = 1 << 18;
        assert!(self.heads.is_multiple_of(self.kv_heads));
        let group = self.heads / self.kv_heads;
        let work = products * group * self.query_len * self.key_len * self.dim;
        let (tasks, least) = (self.batch * self.kv_heads, WORTH_A_THREAD.div_ceil(work));
        if tasks > least {
            stay_awake();
        }
        (0..tasks)
            .into_par_iter()
            .with_min_len(least)
            .for_each(|index| {
                f(Task {
                    batch: index / self.kv_heads,
                    kv_head: index % self.kv_heads,
                    group,
                });
            });
    }

    /// The blocks of rows, last block first.
    pub fn blocks(&self) -> impl Iterator<Item = Block> {
        let first_rows = (0..self.query_len).step_by(BLOCK).rev();
        first_rows.map(|first| Block {
            first,
            rows: BLOCK.min(self.query_len - first),
            diagonal: first + self.key_len - self.query_len,
            dim: self.dim,
            stride: self.stride,
        })
    }
}

/// A key/value head and the query heads that share it.
pub struct Task {
    pub batch: usize,
    pub kv_head: usize,
    group: usize,
}

impl Task {
    pub fn heads(&self) -> impl Iterator<Item = usize> {
        (0..self.group).map(|i| self.kv_head * self.group + i)
    }

    pub fn keys<'a>(&self, x: &Heads<'a>) -> Rows<'a> {
        x.get(self.batch, self.kv_head)
    }
}

/// Consecutive queries, of which query `i` attends to the keys up to `i + diagonal`. Matrices of a block are
/// rows over the keys, `[rows, stride]`.
pub struct Block {
    pub first: usize,
    pub rows: usize,
    diagonal: usize,
    dim: usize,
    stride: usize,
}

impl Block {
    /// The number of keys that the last row attends to.
    pub fn keys(&self) -> usize {
        self.rows + self.diagonal
    }

    /// `to (+)= alpha · x yᵀ`, where `x` is a query head and `yt` a transposed key/value head.
    pub fn scores(&self, alpha: f32, x: Rows, yt: &[f32], to: &mut [f32], accumulate: bool) {
        let product = Product {
            size: [self.rows, self.keys(), self.dim],
            a: x.from(self.first),
            b: Rows::new(yt, self.stride),
            c: to,
            c_stride: self.stride,
            alpha,
            accumulate,
            triangle: Triangle::Result,
            diagonal: self.diagonal,
        };
        product.run();
    }

    /// Sums over keys: `to (+)= matrix · y` for the block's rows of a query head, with a key/value head `y`.
    pub fn over_keys(&self, matrix: &[f32], y: Rows, to: &mut [f32], accumulate: bool) {
        let product = Product {
            size: [self.rows, self.dim, self.keys()],
            a: Rows::new(matrix, self.stride),
            b: y,
            c: &mut to[self.first * self.dim..],
            c_stride: self.dim,
            alpha: 1.0,
            accumulate,
            triangle: Triangle::Left,
            diagonal: self.diagonal,
        };
        product.run();
    }

    /// Sums over queries: `to (+)= matrixᵀ · x` for a key/value head, with the block's rows of a query head `x`.
    pub fn over_queries(&self, matrix: &[f32], x: Rows, to: &mut [f32], accumulate: bool) {
        let product = Product {
            size: [self.keys(), self.dim, self.rows],
            a: Rows::new(matrix, self.stride),
            b: x.from(self.first),
            c: to,
            c_stride: self.dim,
            alpha: 1.0,
            accumulate,
            triangle: Triangle::LeftTransposed,
            diagonal: self.diagonal,
        };
        product.run();
    }

    /// The part of row `i` that it attends to, padded with `hidden` to whole lanes. The lanes after it are set
    /// to zero, because products read a tile of rows up to the last key of its last row.
    #[inline(always)]
    pub fn row<'a>(&self, matrix: &'a mut [f32], i: usize, hidden: f32) -> &'a mut [f32] {
        const { assert!(TILE <= LANES) };
        let (row, _) = matrix[i * self.stride..][..self.stride].as_chunks_mut::<LANES>();
        let visible = i + self.diagonal + 1;
        let (seen, beyond) = row.split_at_mut(visible.div_ceil(LANES));
        if let Some(next) = beyond.first_mut() {
            *next = [0.0; LANES];
        }
        if let Some(last) = seen.last_mut() {
            let kept = (visible - 1) % LANES + 1;
            *last = std::array::from_fn(|l| if l < kept { last[l] } else { hidden });
        }
        seen.as_flattened_mut()
    }

    /// Turns the scores of row `i` into probabilities, in place.
    #[inline(always)]
    pub fn probabilities<'a>(&self, scores: &'a mut [f32], i: usize, lse: Rows) -> &'a mut [f32] {
        let row = self.row(scores, i, f32::NEG_INFINITY);
        let lse = lse.from(self.first + i).data[0];
        update(row, |x| exp(x - lse));
        row
    }
}
