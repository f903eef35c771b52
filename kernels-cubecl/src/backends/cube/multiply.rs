//! A product of matrices: which kernel computes it, and in how many parts its sums are divided.

use burn::tensor::backend::Backend;
use burn::tensor::{DType, Shape};
use burn_cubecl::CubeRuntime;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::matrix_units::multiplies_tf32;
use super::operands::{empty, launch, onto_or, spread};
use super::{exact, pointwise, product};
use crate::reference::primitives;
use crate::{Precision, precision};

/// A product, and what it is added to.
pub fn product_and<B, R>(
    to: Option<CubeTensor<R>>,
    lhs: CubeTensor<R>,
    rhs: CubeTensor<R>,
) -> CubeTensor<R>
where
    R: CubeRuntime,
    B: Backend<FloatTensorPrimitive = CubeTensor<R>>,
{
    match in_parts(&lhs, &rhs) {
        1 => whole::<B, R>(to, lhs, rhs),
        parts => {
            let (lhs, rhs) = product::divide(lhs, rhs, parts);
            sum_of_parts(whole::<B, R>(None, lhs, rhs), to)
        }
    }
}

/// The product of the layers, which rounds no more than [`Precision`](crate::Precision) says.
pub fn plain_product<B, R>(lhs: CubeTensor<R>, rhs: CubeTensor<R>) -> CubeTensor<R>
where
    R: CubeRuntime,
    B: Backend<FloatTensorPrimitive = CubeTensor<R>>,
{
    product_and::<B, R>(None, lhs, rhs)
}

/// A product in the run's precision, and what it is added to: in one launch, if the kernel is our own.
fn whole<B, R>(to: Option<CubeTensor<R>>, lhs: CubeTensor<R>, rhs: CubeTensor<R>) -> CubeTensor<R>
where
    R: CubeRuntime,
    B: Backend<FloatTensorPrimitive = CubeTensor<R>>,
{
    let product = match own_product(&lhs.client, lhs.dtype) {
        Some(ProductKernel::Exact) => return exact::product(to, lhs, rhs),
        Some(ProductKernel::Tf32) => product::on_matrix_units(lhs, rhs),
        Some(ProductKernel::Bf16) => product::of_bf16(lhs, rhs),
        None => B::float_matmul(lhs, rhs),
    };
    primitives::added(to, product, B::float_add)
}

/// A kernel for products instead of Burn's.
#[derive(Clone, Copy)]
pub enum ProductKernel {
    Exact,
    Tf32,
    Bf16,
}

/// The kernel for factors of this type in the run's precision; none where Burn's does what is asked for. On CUDA Burn's rounds f32
/// factors to TF32 where there are matrix units for it, whatever the precision.
pub fn own_product<R: CubeRuntime>(
    client: &ComputeClient<R>,
    dtype: DType,
) -> Option<ProductKernel> {
    match precision() {
        _ if dtype != DType::F32 => None,
        Precision::Bf16 => Some(ProductKernel::Bf16),
        Precision::Tf32 if multiplies_tf32(client.properties()) => Some(ProductKernel::Tf32),
        _ if product::has_tf32(client) => Some(ProductKernel::Exact),
        _ => None,
    }
}

/// Into how many parts the sums of a product are divided. Of 16-bit types every part would be rounded before the sum.
fn in_parts<R: CubeRuntime>(lhs: &CubeTensor<R>, rhs: &CubeTensor<R>) -> usize {
    match (&lhs.meta.shape()[..], &rhs.meta.shape()[..]) {
        (&[m, k], &[_, n]) if lhs.dtype == DType::F32 && m * n > 0 => {
            product::parts(&lhs.client, [m, k, n])
        }
        _ => 1,
    }
}

/// The sum over the first dimension of `parts` `[parts, m, n]`, and of `to` `[m, n]`, in a fixed order.
fn sum_of_parts<R: CubeRuntime>(parts: CubeTensor<R>, to: Option<CubeTensor<R>>) -> CubeTensor<R> {
    // Burn's own products leave gaps between rows on CUDA.
    let parts = into_contiguous(parts);
    let [count, m, n] = parts.meta.shape().dims();
    let out = empty(&parts, Shape::new([m, n]), parts.dtype);
    let (to, adds) = onto_or(to, &parts);
    launch!(pointwise::sum_of_parts, spread(&out); [parts, to] => [out];
        count, m * n, adds, out.dtype.into());
    out
}
