//! Products of large matrices, sums and copies of tensors.

use std::cmp::Reverse;
use std::ops::Range;
use std::slice;

use burn::tensor::TensorMetadata;
use burn_flex::FlexTensor;
use gemm::{Parallelism, gemm};
use rayon::prelude::*;

use super::memory::{in_shape, like};
use super::parallel::{Blank, map, update_rows};
use super::threads::stay_awake;

/// `lhs · rhs`
pub fn product(lhs: &FlexTensor, rhs: &FlexTensor) -> FlexTensor {
    let ([m, _], [_, n]) = (lhs.shape().dims(), rhs.shape().dims::<2>());
    let mut output = Vec::with_capacity(m * n);
    // SAFETY: all of the m · n values are written.
    unsafe {
        multiply(&mut output.spare_capacity_mut()[..m * n], lhs, rhs, false);
        output.set_len(m * n);
    }
    in_shape(&[m, n].into(), output)
}

/// Adds `lhs · rhs` to a contiguous matrix of the product's shape.
pub fn add_product(to: &mut [f32], lhs: &FlexTensor, rhs: &FlexTensor) {
    // SAFETY: the values are initialised, and nothing else is written to them.
    unsafe {
        let to = slice::from_raw_parts_mut(to.as_mut_ptr().cast(), to.len());
        multiply(to, lhs, rhs, true);
    }
}

/// A thread takes part in a product if it has so many multiplications to do.
const WORTH_A_THREAD: usize = 1 << 20;

/// Sums longer than this are added up in parts of so many products where the left factor lies column by column, as in the gradient of a
/// weight: `gemm` copies the factors of shorter sums faster, twice as fast where the columns are 4 KiB apart (benches/README.md).
const LONG: usize = 1024;
const PART_OF_SUM: usize = 256;

/// Rows and columns that a thread computes at least: enough rows for one, and the columns of `gemm`'s inner loop.
const LEAST: [usize; 2] = [32, 64];

/// `gemm` adds up sums longer than the second number otherwise where the result has at most so many rows and columns.
const SMALL: [usize; 2] = [64, 512];

/// `to = lhs · rhs`, or `to += lhs · rhs` if `adds`; `to` is a contiguous matrix. Results do not depend on the number of threads.
///
/// # Safety
///
/// `to` must be initialised if `adds`. Otherwise it is afterwards.
unsafe fn multiply(to: Blank<'_>, lhs: &FlexTensor, rhs: &FlexTensor, adds: bool) {
    let ([m, k], [inner, n]) = (lhs.shape().dims(), rhs.shape().dims());
    assert_eq!(k, inner, "product: the inner dimensions differ");
    assert_eq!(to.len(), m * n);
    let (lhs, rhs) = (Matrix::of(lhs), Matrix::of(rhs));
    let is_long = k > LONG && lhs.row == 1;
    let product = Product {
        to: to.as_mut_ptr().cast(),
        width: n,
        inner: k,
        part: if is_long { PART_OF_SUM } else { k.max(1) },
        lhs,
        rhs,
        adds,
    };
    let threads = rayon::current_num_threads().min(m * n * k / WORTH_A_THREAD);
    if threads > 1 {
        stay_awake();
    }
    match grid([m, n], product.part, threads) {
        // SAFETY: the caller guarantees `to`, which has m · n values.
        None if threads > 1 => unsafe { product.block(0..m, 0..n, Parallelism::Rayon(threads)) },
        None => unsafe { product.block(0..m, 0..n, Parallelism::None) },
        Some([across, along]) => {
            let band = |i: usize, bands: usize, of: usize| i * of / bands..(i + 1) * of / bands;
            let blocks = (0..across * along).into_par_iter().with_max_len(1);
            blocks.for_each(|block| {
                let rows = band(block / along, across, m);
                let columns = band(block % along, along, n);
                // SAFETY: as above; no two blocks have a value in common.
                unsafe { product.block(rows, columns, Parallelism::None) }
            });
        }
    }
}

/// Into how many bands of rows and of columns a result is divided between the threads, a block each: as many blocks as can be, so that they
/// read as little as they can, because `gemm` reads and copies the factors again for each. None for one thread, or if the blocks would be
/// too small.
fn grid([m, n]: [usize; 2], part_of_sum: usize, threads: usize) -> Option<[usize; 2]> {
    let along = |across| (1..=threads / across).map(move |along| [across, along]);
    let fits = |[across, along]: &[usize; 2]| {
        let [rows, columns] = [m / across, n / along];
        let (small, short) = (SMALL[0], part_of_sum <= SMALL[1]);
        rows >= LEAST[0] && columns >= LEAST[1] && (short || rows > small || columns > small)
    };
    let grids = (1..=threads).flat_map(along).filter(fits);
    let best = grids.min_by_key(|[across, along]| {
        let (blocks, read) = (across * along, across * n + along * m);
        (Reverse(blocks), read)
    });
    best.filter(|[across, along]| across * along > 1)
}

/// A product of two matrices, of which a block is computed at a time.
struct Product<'a> {
    /// The result, row by row.
    to: *mut f32,
    /// Columns of the result.
    width: usize,
    lhs: Matrix<'a>,
    rhs: Matrix<'a>,
    /// Columns of the left factor, rows of the right one.
    inner: usize,
    /// How many of these are added up at a time.
    part: usize,
    adds: bool,
}

// SAFETY: the pointer is that of a slice of numbers, and who shares the product writes to other blocks of it.
unsafe impl Sync for Product<'_> {}

impl Product<'_> {
    /// These rows and columns of it.
    ///
    /// # Safety
    ///
    /// As for [`multiply`]; the block must be within the result, and nobody else may use it meanwhile.
    unsafe fn block(&self, rows: Range<usize>, columns: Range<usize>, parallelism: Parallelism) {
        let Self { lhs, rhs, .. } = self;
        let to = self
            .to
            .wrapping_add(rows.start * self.width + columns.start);
        // Sums without terms are one part as well: it sets them to zero.
        for start in (0..self.inner.max(1)).step_by(self.part) {
            let part = self.part.min(self.inner - start);
            // SAFETY: pointers and strides are those of the factors' tensors, and no row or column is behind their last one; the block is
            // within the result, and is initialised from the second part on.
            unsafe {
                gemm(
                    rows.len(),
                    columns.len(),
                    part,
                    to,
                    1,
                    self.width as isize,
                    self.adds || start > 0,
                    lhs.at(rows.start, start),
                    lhs.column,
                    lhs.row,
                    rhs.at(start, columns.start),
                    rhs.column,
                    rhs.row,
                    1.0,
                    1.0,
                    false,
                    false,
                    false,
                    parallelism,
                );
            }
        }
    }
}

/// The same values in memory of their own.
pub fn copy(x: &FlexTensor) -> FlexTensor {
    let [copy] = map(
        [x.storage()],
        #[inline(always)]
        |[x]| [x],
    );
    like(x, copy)
}

/// `x + y`, in memory of its own.
pub fn sum(x: &FlexTensor, y: &FlexTensor) -> FlexTensor {
    let [sum] = map(
        [x.storage(), y.storage()],
        #[inline(always)]
        |[x, y]| [x + y],
    );
    like(x, sum)
}

/// `x += y`
pub fn add(x: &mut [f32], y: &[f32]) {
    update_rows(
        [x],
        [1],
        #[inline(always)]
        |range, [x]: [&mut [f32]; 1]| x.iter_mut().zip(&y[range]).for_each(|(x, y)| *x += y),
    );
}

/// A matrix in memory: its values from the first one on, and the strides of its rows and columns.
struct Matrix<'a> {
    values: &'a [f32],
    row: isize,
    column: isize,
}

impl<'a> Matrix<'a> {
    fn of(x: &'a FlexTensor) -> Self {
        let strides = x.layout().strides();
        Self {
            values: &x.storage()[x.layout().start_offset()..],
            row: strides[0],
            column: strides[1],
        }
    }

    /// Where a value is, or would be in an empty matrix.
    fn at(&self, row: usize, column: usize) -> *const f32 {
        let offset = row as isize * self.row + column as isize * self.column;
        self.values.as_ptr().wrapping_offset(offset)
    }
}
