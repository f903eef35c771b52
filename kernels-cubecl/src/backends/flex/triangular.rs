//! Products of small matrices of which one is triangular, as in causal attention.

use pulp::{MemMask, Simd, WithSimd};

/// A matrix stored by rows; `stride` values from one row to the next.
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    pub data: &'a [f32],
    pub stride: usize,
}

impl<'a> Rows<'a> {
    pub fn new(data: &'a [f32], stride: usize) -> Self {
        Self { data, stride }
    }

    /// The rows from `first` on.
    pub fn from(self, first: usize) -> Self {
        Self::new(&self.data[first * self.stride..], self.stride)
    }

    /// Writes the transpose of the matrix `[rows, columns]` to `to`, whose rows have the stride `stride`.
    pub fn transpose(self, [rows, columns]: [usize; 2], to: &mut [f32], stride: usize) {
        let row = |i: usize| &self.data[i * self.stride..][..columns];
        let whole = rows - rows % 4;
        for i in (0..whole).step_by(4) {
            let four = [row(i), row(i + 1), row(i + 2), row(i + 3)];
            for j in 0..columns {
                to[j * stride + i..][..4].copy_from_slice(&four.map(|row| row[j]));
            }
        }
        for i in whole..rows {
            for (j, x) in row(i).iter().enumerate() {
                to[j * stride + i] = *x;
            }
        }
    }

    /// Whether the slice contains `rows` rows of `columns` values.
    fn hold(&self, rows: usize, columns: usize) -> bool {
        rows == 0 || (rows - 1) * self.stride + columns <= self.data.len()
    }
}

/// Which matrix of a product is lower triangular: the last column of its row `i` is `i + diagonal`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Triangle {
    /// The result: values above the diagonal may be left unwritten.
    Result,
    /// The left factor, with zeros above its diagonal.
    Left,
    /// The left factor is the transpose of such a matrix; the matrix itself is stored.
    LeftTransposed,
}

/// `C = alpha · A B`, or `C += alpha · A B`, with `A: [m, k]`, `B: [k, n]` and `C: [m, n]`.
pub struct Product<'a> {
    pub size: [usize; 3],
    pub a: Rows<'a>,
    pub b: Rows<'a>,
    pub c: &'a mut [f32],
    pub c_stride: usize,
    pub alpha: f32,
    pub accumulate: bool,
    pub triangle: Triangle,
    pub diagonal: usize,
}

impl Product<'_> {
    pub fn run(self) {
        pulp::Arch::new().dispatch(self);
    }
}

/// Rows of a tile of `C`, which is two registers wide: 12 of 16 registers hold sums, the others operands.
pub const TILE: usize = 6;

impl WithSimd for Product<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let [m, n, k] = self.size;
        let transposed = self.triangle == Triangle::LeftTransposed;
        let [a_rows, a_columns] = if transposed { [k, m] } else { [m, k] };
        assert!(self.a.hold(a_rows, a_columns) && self.b.hold(k, n));
        assert!(Rows::new(self.c, self.c_stride).hold(m, n));
        let (a_row, a_column) = match transposed {
            true => (1, self.a.stride),
            false => (self.a.stride, 1),
        };
        let width = 2 * S::F32_LANES;
        for j in (0..n).step_by(width) {
            let masks = [0, S::F32_LANES].map(|skipped| {
                let lanes = (n - j).saturating_sub(skipped).min(S::F32_LANES);
                // Only the mask: the rest of the value that pulp returns makes each load a branch.
                simd.mask_between_m32s(0, lanes as u32).mask().into()
            });
            let mut i = match self.triangle {
                Triangle::Result => j.saturating_sub(self.diagonal),
                _ => 0,
            };
            while i < m {
                let rows = TILE.min(m - i);
                let depth = match self.triangle {
                    Triangle::Result => 0..k,
                    Triangle::Left => 0..k.min(i + rows + self.diagonal),
                    Triangle::LeftTransposed => i.saturating_sub(self.diagonal).min(k)..k,
                };
                let tile = Tile {
                    a: self.a.data[i * a_row..]
                        .as_ptr()
                        .wrapping_add(depth.start * a_column),
                    a_row,
                    a_column,
                    b: self
                        .b
                        .data
                        .as_ptr()
                        .wrapping_add(depth.start * self.b.stride + j),
                    b_row: self.b.stride,
                    depth: depth.len(),
                    c: self.c[i * self.c_stride + j..].as_mut_ptr(),
                    c_row: self.c_stride,
                    alpha: self.alpha,
                    accumulate: self.accumulate,
                };
                // SAFETY: the assertions above cover every row, column and depth of the tile, and the
                // masks end with column n.
                unsafe {
                    match (rows, n - j > S::F32_LANES) {
                        (6, true) => tile.run::<S, 6, 2>(simd, masks),
                        (5, true) => tile.run::<S, 5, 2>(simd, masks),
                        (4, true) => tile.run::<S, 4, 2>(simd, masks),
                        (3, true) => tile.run::<S, 3, 2>(simd, masks),
                        (2, true) => tile.run::<S, 2, 2>(simd, masks),
                        (_, true) => tile.run::<S, 1, 2>(simd, masks),
                        (6, _) => tile.run::<S, 6, 1>(simd, [masks[0]]),
                        (5, _) => tile.run::<S, 5, 1>(simd, [masks[0]]),
                        (4, _) => tile.run::<S, 4, 1>(simd, [masks[0]]),
                        (3, _) => tile.run::<S, 3, 1>(simd, [masks[0]]),
                        (2, _) => tile.run::<S, 2, 1>(simd, [masks[0]]),
                        _ => tile.run::<S, 1, 1>(simd, [masks[0]]),
                    }
                }
                i += rows;
            }
        }
    }
}

/// A tile of `C` and its factors in memory.
struct Tile {
    a: *const f32,
    a_row: usize,
    a_column: usize,
    b: *const f32,
    b_row: usize,
    depth: usize,
    c: *mut f32,
    c_row: usize,
    alpha: f32,
    accumulate: bool,
}

impl Tile {
    /// `R` rows of `V` registers.
    ///
    /// # Safety
    ///
    /// `R` rows and `depth` columns of `a`, and the masked columns of `depth` rows of `b` and `R` rows
    /// of `c`, must be valid memory.
    #[inline(always)]
    unsafe fn run<S: Simd, const R: usize, const V: usize>(
        self,
        simd: S,
        masks: [MemMask<S::m32s>; V],
    ) {
        // Without the instruction, a fused multiply-add is a slow library call.
        let fused = S::F32_LANES > 4 || cfg!(target_arch = "aarch64");
        let multiply_add = |a, b, c| match fused {
            true => simd.mul_add_f32s(a, b, c),
            false => simd.add_f32s(simd.mul_f32s(a, b), c),
        };
        let mut sums = [[simd.splat_f32s(0.0); V]; R];
        for l in 0..self.depth {
            let b: [_; V] = std::array::from_fn(|v| {
                let b = self.b.wrapping_add(l * self.b_row + v * S::F32_LANES);
                // SAFETY: guaranteed by the caller.
                unsafe { simd.mask_load_ptr_f32s(masks[v], b) }
            });
            for (r, sums) in sums.iter_mut().enumerate() {
                let a = self.a.wrapping_add(r * self.a_row + l * self.a_column);
                // SAFETY: guaranteed by the caller.
                let a = simd.splat_f32s(unsafe { *a });
                for (sum, b) in sums.iter_mut().zip(b) {
                    *sum = multiply_add(a, b, *sum);
                }
            }
        }
        let alpha = simd.splat_f32s(self.alpha);
        for (r, sums) in sums.into_iter().enumerate() {
            for (v, sum) in sums.into_iter().enumerate() {
                let c = self.c.wrapping_add(r * self.c_row + v * S::F32_LANES);
                // SAFETY: guaranteed by the caller.
                unsafe {
                    let c_was = match self.accumulate {
                        true => simd.mask_load_ptr_f32s(masks[v], c),
                        false => simd.splat_f32s(0.0),
                    };
                    let sum = multiply_add(alpha, sum, c_was);
                    simd.mask_store_ptr_f32s(masks[v], c, sum);
                }
            }
        }
    }
}
