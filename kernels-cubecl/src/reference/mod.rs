//! The mathematics of every operation, with its first two derivatives, in plain tensor operations.
//!
//! The provided methods of the backend traits call these functions; the kernels are tested against them.
//! Being plain tensor operations, they can be differentiated further on an autodiff backend.

pub mod adamw;
pub mod attention;
pub mod layers;
pub(crate) mod primitives;
pub mod scan;

use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor};

/// The type in which sums of this type's values are computed: at least f32.
pub(crate) fn accumulation_dtype(dtype: DType) -> DType {
    match dtype {
        DType::F16 | DType::BF16 => DType::F32,
        wide => wide,
    }
}

/// Casts to [`accumulation_dtype`].
fn widen<B: Backend, const D: usize>(x: Tensor<B, D>) -> Tensor<B, D> {
    let dtype = accumulation_dtype(x.dtype());
    cast(x, dtype)
}

/// Casts to `dtype`, if `x` has another one.
fn cast<B: Backend, const D: usize>(x: Tensor<B, D>, dtype: DType) -> Tensor<B, D> {
    if x.dtype() == dtype { x } else { x.cast(dtype) }
}
