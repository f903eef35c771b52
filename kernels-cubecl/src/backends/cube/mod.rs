//! The GPU implementation of attention and the layers around it: one source of CubeCL kernels for CUDA, Vulkan, Metal and
//! WebGPU.
//!
//! Of attention everything of size `query_len × key_len` is in registers and shared memory, one tile at a time, and is
//! recomputed from `Q`, `K`, `V` and `L` (the log-sum-exp of each row) where it is needed: memory grows
//! linearly with the sequence. Sums are in f32 and in a fixed order, so that equal inputs give equal outputs.

mod activation;
mod backward;
mod double_backward;
mod exact;
mod forward;
mod launch;
mod layers;
mod layout;
mod losses;
mod matrix_units;
mod multiply;
mod norm;
mod operands;
mod plan;
mod pointwise;
mod product;
mod rows;
mod shared;
mod sums;
mod tiles;

use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;
use burn_cubecl::element::BoolElement;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{CubeBackend, CubeRuntime, FloatElement, IntElement};

use crate::reference::primitives;
use crate::{AttentionBackend, ScanBackend};
use plan::Plan;

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
            None => primitives::causal_attention::<Self>(
                [q, k, v],
                scale,
                multiply::plain_product::<Self, R>,
            ),
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
        onto: [Option<FloatTensor<Self>>; 3],
    ) -> [FloatTensor<Self>; 3] {
        let inputs = [q, k, v];
        match Plan::new(&inputs[0], &inputs[1]) {
            Some(plan) => plan.backward(inputs, out, lse, grad_out, scale, onto),
            None => primitives::causal_attention_backward::<Self>(
                inputs,
                lse,
                grad_out,
                scale,
                onto,
                multiply::plain_product::<Self, R>,
            ),
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
                multiply::plain_product::<Self, R>,
            ),
        }
    }
}
