//! Products of large matrices, and sums of tensors.

use std::slice;

use burn::tensor::TensorMetadata;
use burn_flex::FlexTensor;
use gemm::{Parallelism, gemm};
use rayon::prelude::*;

use super::memory::in_shape;
use super::parallel::{Blank, PART};
use super::vector::dispatch;

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

/// Below this number of multiplications a product runs on one thread.
const WORTH_THREADS: usize = 1 << 20;

/// Sums longer than this are added up in parts of so many products where the left factor lies column by column, as in the gradient of a
/// weight: `gemm` copies the factors of shorter sums faster, twice as fast where the columns are 4 KiB apart (benches/README.md).
const LONG: usize = 1024;
const PART_OF_SUM: usize = 256;

/// The rows of such a product are divided between the threads if each gets so many. Otherwise `gemm` divides the product.
const ROWS_OF_A_THREAD: usize = 32;

/// `to = lhs · rhs`, or `to += lhs · rhs` if `adds`; `to` is a contiguous matrix. Results do not depend on the number of threads.
///
/// # Safety
///
/// `to` must be initialised if `adds`. Otherwise it is afterwards.
unsafe fn multiply(to: Blank<'_>, lhs: &FlexTensor, rhs: &FlexTensor, adds: bool) {
    let ([m, k], [rows, n]) = (lhs.shape().dims(), rhs.shape().dims());
    assert_eq!(k, rows, "product: the inner dimensions differ");
    assert_eq!(to.len(), m * n);
    let (lhs, rhs) = (Matrix::of(lhs), Matrix::of(rhs));
    let is_long = k > LONG && lhs.row == 1;
    let product = Product {
        inner: k,
        part: if is_long { PART_OF_SUM } else { k.max(1) },
        lhs,
        rhs,
        adds,
    };
    let rows = m.div_ceil(rayon::current_num_threads());
    if m * n * k < WORTH_THREADS {
        // SAFETY: the caller guarantees `to`.
        unsafe { product.rows(to, 0, [m, n], Parallelism::None) }
    } else if !is_long || rows < ROWS_OF_A_THREAD {
        // SAFETY: as above.
        unsafe { product.rows(to, 0, [m, n], Parallelism::Rayon(0)) }
    } else {
        to.par_chunks_mut(rows * n).enumerate().for_each(|(i, to)| {
            let size = [to.len() / n, n];
            // SAFETY: as above.
            unsafe { product.rows(to, i * rows, size, Parallelism::None) }
        });
    }
}

/// A product of two matrices, of which some rows are computed at a time.
struct Product<'a> {
    lhs: Matrix<'a>,
    rhs: Matrix<'a>,
    /// Columns of the left factor, rows of the right one.
    inner: usize,
    /// How many of these are added up at a time.
    part: usize,
    adds: bool,
}

impl Product<'_> {
    /// `m` rows of `n` values from `first` on.
    ///
    /// # Safety
    ///
    /// As for [`multiply`]; `m · n` values are written.
    unsafe fn rows(
        &self,
        to: Blank<'_>,
        first: usize,
        [m, n]: [usize; 2],
        parallelism: Parallelism,
    ) {
        assert_eq!(to.len(), m * n);
        let Self { lhs, rhs, .. } = self;
        // Sums without terms are one part as well: it sets them to zero.
        for start in (0..self.inner.max(1)).step_by(self.part) {
            let part = self.part.min(self.inner - start);
            // SAFETY: pointers and strides are those of the factors' tensors, and no row or column is behind their last one; `to` has
            // the product's size, and is initialised from the second part on.
            unsafe {
                gemm(
                    m,
                    n,
                    part,
                    to.as_mut_ptr().cast::<f32>(),
                    1,
                    n as isize,
                    self.adds || start > 0,
                    lhs.at(first, start),
                    lhs.column,
                    lhs.row,
                    rhs.at(start, 0),
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

/// `x += y`
pub fn add(x: &mut [f32], y: &[f32]) {
    let add = |(x, y): (&mut [f32], &[f32])| {
        dispatch(
            #[inline(always)]
            || x.iter_mut().zip(y).for_each(|(x, y)| *x += y),
        )
    };
    match x.len() <= PART {
        true => add((x, y)),
        false => x.par_chunks_mut(PART).zip(y.par_chunks(PART)).for_each(add),
    }
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
