//! The GPU implementation of attention: one source of CubeCL kernels for CUDA, Vulkan, Metal and WebGPU.
//!
//! Everything of size `query_len × key_len` is in registers and shared memory, one tile at a time, and is
//! recomputed from `Q`, `K`, `V` and `L` (the log-sum-exp of each row) where it is needed: memory grows
//! linearly with the sequence. Sums are in f32 and in a fixed order, so that equal inputs give equal outputs.

mod backward;
mod double_backward;
mod forward;
mod launch;
mod layout;
mod plan;
mod product;
mod shared;
mod sums;
mod tiles;

use burn::tensor::backend::Backend;
use burn::tensor::ops::{FloatTensor, FloatTensorOps};
use burn::tensor::{DType, Device, Shape};
use burn_cubecl::element::BoolElement;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{CubeBackend, CubeRuntime, FloatElement, IntElement};

use crate::reference::primitives;
use crate::{AttentionBackend, HeadBackend, LayerBackend, Precision, ScanBackend};
use plan::Plan;

impl<R, F, I, BT> HeadBackend for CubeBackend<R, F, I, BT>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    BT: BoolElement,
    Self: Backend<FloatTensorPrimitive = CubeTensor<R>, Device = R::Device>,
{
}

impl<R, F, I, BT> LayerBackend for CubeBackend<R, F, I, BT>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    BT: BoolElement,
    Self: Backend<FloatTensorPrimitive = CubeTensor<R>, Device = R::Device>,
{
    fn product(lhs: FloatTensor<Self>, rhs: FloatTensor<Self>) -> FloatTensor<Self> {
        let one = |lhs: CubeTensor<R>, rhs: CubeTensor<R>| {
            if Precision::rounds_to_bf16(lhs.dtype) {
                product::of_bf16(lhs, rhs)
            } else if product::must_be_exact(&lhs.client, lhs.dtype) {
                product::exact(lhs, rhs)
            } else {
                <Self as FloatTensorOps<Self>>::float_matmul(lhs, rhs)
            }
        };
        let (&[m, k], &[_, n]) = (&lhs.meta.shape()[..], &rhs.meta.shape()[..]) else {
            return one(lhs, rhs);
        };
        // Of 16-bit types every part would be rounded before the sum.
        if lhs.dtype != DType::F32 {
            return one(lhs, rhs);
        }
        match product::parts(&lhs.client, [m, k, n]) {
            1 => one(lhs, rhs),
            parts => {
                let (lhs, rhs) = product::divide(lhs, rhs, parts);
                let sum = <Self as FloatTensorOps<Self>>::float_sum_dim(one(lhs, rhs), 0);
                <Self as FloatTensorOps<Self>>::float_reshape(sum, Shape::new([m, n]))
            }
        }
    }

    fn computes_in(device: &Device<Self>, precision: Precision) -> bool {
        match precision {
            Precision::F32 => true,
            Precision::Tf32 => product::has_tf32(&R::client(device)),
            Precision::Bf16 => Self::supports_dtype(device, DType::BF16),
        }
    }

    fn has_own_product(device: &Device<Self>, dtype: DType) -> bool {
        Precision::rounds_to_bf16(dtype) || product::must_be_exact(&R::client(device), dtype)
    }
}

impl<R, F, I, BT> ScanBackend for CubeBackend<R, F, I, BT>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    BT: BoolElement,
    Self: Backend,
{
}

impl<R, F, I, BT> AttentionBackend for CubeBackend<R, F, I, BT>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    BT: BoolElement,
    Self: Backend<FloatTensorPrimitive = CubeTensor<R>>,
{
    fn causal_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        scale: f64,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        match Plan::new(&q, &k) {
            Some(plan) => plan.forward([q, k, v], scale),
            None => primitives::causal_attention::<Self>([q, k, v], scale),
        }
    }

    fn causal_attention_backward(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        out: FloatTensor<Self>,
        lse: FloatTensor<Self>,
        grad_out: FloatTensor<Self>,
        scale: f64,
    ) -> [FloatTensor<Self>; 3] {
        match Plan::new(&q, &k) {
            Some(plan) => plan.backward([q, k, v], out, lse, grad_out, scale),
            None => primitives::causal_attention_backward::<Self>([q, k, v], lse, grad_out, scale),
        }
    }

    fn causal_attention_double_backward(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        out: FloatTensor<Self>,
        lse: FloatTensor<Self>,
        grad_out: FloatTensor<Self>,
        cotangents: [Option<FloatTensor<Self>>; 3],
        scale: f64,
    ) -> [FloatTensor<Self>; 4] {
        match Plan::new(&q, &k) {
            Some(plan) => plan.double_backward([q, k, v], out, lse, grad_out, cotangents, scale),
            None => primitives::causal_attention_double_backward::<Self>(
                [q, k, v],
                lse,
                grad_out,
                cotangents,
                scale,
            ),
        }
    }
}
