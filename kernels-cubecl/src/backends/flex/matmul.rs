//! Products of large matrices, and sums of tensors.

use burn::tensor::TensorMetadata;
use burn_flex::FlexTensor;
use gemm::{Parallelism, gemm};
use rayon::prelude::*;

use super::memory::in_shape;
use super::parallel::PART;
use super::vector::dispatch;

/// `lhs · rhs`
pub fn product(lhs: &FlexTensor, rhs: &FlexTensor) -> FlexTensor {
    let ([m, _], [_, n]) = (lhs.shape().dims(), rhs.shape().dims::<2>());
    let mut output = Vec::with_capacity(m * n);
    // SAFETY: the memory has room for m · n values, all of which are written before they are read.
    unsafe {
        multiply(output.as_mut_ptr(), lhs, rhs, false);
        output.set_len(m * n);
    }
    in_shape(&[m, n].into(), output)
}

/// Adds `lhs · rhs` to a contiguous matrix of the product's shape.
pub fn add_product(to: &mut [f32], lhs: &FlexTensor, rhs: &FlexTensor) {
    let ([m, _], [_, n]) = (lhs.shape().dims(), rhs.shape().dims::<2>());
    assert_eq!(to.len(), m * n);
    // SAFETY: `to` has the length of the product, as asserted.
    unsafe { multiply(to.as_mut_ptr(), lhs, rhs, true) };
}

/// Below this number of multiplications a product runs on one thread.
const WORTH_THREADS: usize = 1 << 20;

/// `to = lhs · rhs`, or `to += lhs · rhs` if `adds`; `to` is a contiguous matrix.
///
/// # Safety
///
/// `to` must be valid for writes of the whole product and not aliased, and initialised if `adds`.
unsafe fn multiply(to: *mut f32, lhs: &FlexTensor, rhs: &FlexTensor, adds: bool) {
    let ([m, k], [rows, n]) = (lhs.shape().dims(), rhs.shape().dims());
    assert_eq!(k, rows, "product: the inner dimensions differ");
    let parallelism = match m * n * k < WORTH_THREADS {
        true => Parallelism::None,
        false => Parallelism::Rayon(0),
    };
    let (left, right) = (Matrix::of(lhs), Matrix::of(rhs));
    // SAFETY: pointers and strides are those of the factors' tensors; the caller guarantees `to`.
    unsafe {
        gemm(
            m,
            n,
            k,
            to,
            1,
            n as isize,
            adds,
            left.data,
            left.column,
            left.row,
            right.data,
            right.column,
            right.row,
            1.0,
            1.0,
            false,
            false,
            false,
            parallelism,
        );
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

/// A matrix in memory: its first value and the strides of its rows and columns.
struct Matrix {
    data: *const f32,
    row: isize,
    column: isize,
}

impl Matrix {
    fn of(x: &FlexTensor) -> Self {
        let strides = x.layout().strides();
        Self {
            data: x.storage()[x.layout().start_offset()..].as_ptr(),
            row: strides[0],
            column: strides[1],
        }
    }
}
