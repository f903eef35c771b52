//! The layers around attention: the trait that backends implement.

use burn::tensor::backend::Backend;
use burn::tensor::ops::{FloatTensor, IntTensor};
use burn::tensor::{DType, Device, FloatDType, Shape, Slice, Tensor, TensorMetadata};

use super::selection::Precision;
use crate::reference::adamw::{AdamWStep, adamw};
use crate::reference::layers::{Nonlinearity, Norm};
use crate::reference::primitives;
use crate::{lift, lower};

/// A backend that computes matrix products, RMS and layer normalisation, SwiGLU, activations, rotary positions and
/// cross-entropies, and the first two derivatives of each; and the optimizer's step on a parameter.
///
/// The provided methods compute with [`reference::layers`](crate::reference::layers). The methods do not
/// check their arguments; the functions of the same names do.
/// Tensors may have any strides.
pub trait LayerBackend: Backend {
    /// `lhs · rhs` for `lhs` `[m, k]` and `rhs` `[k, n]`, or for as many pairs of matrices `[batch, m, k]` and
    /// `[batch, k, n]`. Its gradients are products as well.
    fn product(lhs: FloatTensor<Self>, rhs: FloatTensor<Self>) -> FloatTensor<Self> {
        let [lhs, rhs] = [lhs, rhs].map(as_factor::<Self>);
        Self::float_matmul(lhs, rhs)
    }

    /// `x · wᵀ` for `x` `[rows, d_input]` and `weight` `[d_output, d_input]`. Both gradients are products, with no transposed weight
    /// between them and the weight, so that they are added where they are computed.
    fn product_transposed(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
        Self::product(x, Self::float_transpose(weight))
    }

    /// Whether [`LayerBackend::product`] can compute in this precision on this device.
    fn computes_in(device: &Device<Self>, precision: Precision) -> bool {
        match precision {
            Precision::F32 => true,
            Precision::Tf32 => false,
            Precision::Bf16 => Self::supports_dtype(device, DType::BF16),
        }
    }

    /// Whether [`LayerBackend::product`] has a kernel of its own for operands of this type on this device, in the present
    /// [`precision`](crate::precision), instead of Burn's `float_matmul`, which may round them otherwise.
    fn has_own_product(_: &Device<Self>, dtype: DType) -> bool {
        Precision::rounds_to_bf16(dtype)
    }

    /// `to + lhs · rhs`.
    fn add_product(
        to: FloatTensor<Self>,
        lhs: FloatTensor<Self>,
        rhs: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        Self::float_add(to, Self::product(lhs, rhs))
    }

    /// `to + x · wᵀ`, with gradients as those of [`LayerBackend::product_transposed`].
    fn add_product_transposed(
        to: FloatTensor<Self>,
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        Self::add_product(to, x, Self::float_transpose(weight))
    }

    /// `x + y`, of the same shape.
    fn add(x: FloatTensor<Self>, y: FloatTensor<Self>) -> FloatTensor<Self> {
        Self::float_add(x, y)
    }

    /// `−log p` of each row's target: logits `[rows, vocab_size]`, targets `[rows]` → `[rows]`.
    fn token_losses(logits: FloatTensor<Self>, targets: IntTensor<Self>) -> FloatTensor<Self> {
        primitives::token_losses::<Self>(logits, targets)
    }

    /// The gradient of `⟨grad, token_losses(logits)⟩`, `[rows, vocab_size]`.
    fn token_losses_backward(
        logits: FloatTensor<Self>,
        targets: IntTensor<Self>,
        grad: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        primitives::token_losses_backward::<Self>(logits, targets, grad)
    }

    /// The gradients to `[grad, logits]` of `⟨a, dlogits⟩`.
    fn token_losses_double_backward(
        logits: FloatTensor<Self>,
        targets: IntTensor<Self>,
        grad: FloatTensor<Self>,
        a: FloatTensor<Self>,
    ) -> [FloatTensor<Self>; 2] {
        primitives::token_losses_double_backward::<Self>(logits, targets, grad, a)
    }

    /// `x / √(mean(x²) + ε) ∘ w` for `x` `[batch, seq, d]` and `weight` `[d]`, with `x − mean(x)` for `x` if [`Norm`] says so.
    fn norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, by: Norm) -> FloatTensor<Self> {
        primitives::norm::<Self>(x, weight, by)
    }

    /// The gradients `(dx, dw)` of `⟨grad, norm(x, w)⟩`; `dw` only if `wants_weight`. Each is added to what is given as `onto`.
    fn norm_backward(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        by: Norm,
        wants_weight: bool,
        onto: [Option<FloatTensor<Self>>; 2],
    ) -> (FloatTensor<Self>, Option<FloatTensor<Self>>) {
        primitives::norm_backward::<Self>(x, weight, grad, by, wants_weight, onto)
    }

    /// The gradients to `[grad, x, w]` of `⟨a, dx⟩ + ⟨c, dw⟩`, where `cotangents = [a, c]` and an absent
    /// cotangent counts as zero. The last one is added to what is given as `onto_weight`.
    fn norm_double_backward(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        cotangents: [Option<FloatTensor<Self>>; 2],
        by: Norm,
        onto_weight: Option<FloatTensor<Self>>,
    ) -> [FloatTensor<Self>; 3] {
        primitives::norm_double_backward::<Self>(x, weight, grad, cotangents, by, onto_weight)
    }

    /// The nonlinearity of each value of `x` `[batch, seq, d]`.
    fn activate(x: FloatTensor<Self>, by: Nonlinearity) -> FloatTensor<Self> {
        primitives::activate::<Self>(x, by)
    }

    /// The gradient to `x` of `⟨grad, activate(x)⟩`, added to what is given as `onto`.
    fn activate_backward(
        x: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        by: Nonlinearity,
        onto: Option<FloatTensor<Self>>,
    ) -> FloatTensor<Self> {
        primitives::activate_backward::<Self>(x, grad, by, onto)
    }

    /// The gradients to `[grad, x]` of `⟨a, dx⟩`.
    fn activate_double_backward(
        x: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        a: FloatTensor<Self>,
        by: Nonlinearity,
    ) -> [FloatTensor<Self>; 2] {
        primitives::activate_double_backward::<Self>(x, grad, a, by)
    }

    /// `silu(gate) ∘ up` for `x` `[batch, seq, 2 d_ff]`, whose rows have gate and behind it up.
    fn swiglu(x: FloatTensor<Self>) -> FloatTensor<Self> {
        primitives::swiglu::<Self>(x)
    }

    /// The gradient to `x` of `⟨grad, swiglu(x)⟩`, added to what is given as `onto`.
    fn swiglu_backward(
        x: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        onto: Option<FloatTensor<Self>>,
    ) -> FloatTensor<Self> {
        primitives::swiglu_backward::<Self>(x, grad, onto)
    }

    /// The gradients to `[grad, x]` of `⟨a, dx⟩`.
    fn swiglu_double_backward(
        x: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        a: FloatTensor<Self>,
    ) -> [FloatTensor<Self>; 2] {
        primitives::swiglu_double_backward::<Self>(x, grad, a)
    }

    /// Two tensors `[batch, seq, d]` side by side: `[batch, seq, 2 d]`. The gradient is [`LayerBackend::halves`] of its own.
    fn side_by_side(parts: [FloatTensor<Self>; 2]) -> FloatTensor<Self> {
        Self::float_cat(parts.into(), 2)
    }

    /// The transpose of [`LayerBackend::side_by_side`], whose gradient is that operation.
    fn halves(x: FloatTensor<Self>) -> [FloatTensor<Self>; 2] {
        let x: Tensor<Self, 3> = lift(x);
        let half = x.dims()[2] / 2;
        [0, half].map(|start| lower(x.clone().narrow(2, start, half)))
    }

    /// The last `count` rows of each sample: `[batch, rows, …]` → `[batch, count, …]`. The gradient is [`LayerBackend::behind_zeros`] of its
    /// own.
    fn last_rows(x: FloatTensor<Self>, count: usize) -> FloatTensor<Self> {
        last_rows::<Self>(x, count)
    }

    /// The transpose of [`LayerBackend::last_rows`], whose gradient is that operation: zeros before the rows of each sample, which has `rows` then.
    fn behind_zeros(x: FloatTensor<Self>, rows: usize) -> FloatTensor<Self> {
        behind_zeros::<Self>(x, rows)
    }

    /// `x` `[batch, seq, heads, head_dim]`, each head rotated by the angles of its position if there is a `rotation`: cos, sin and
    /// `turn` as in [`rotary`](crate::rotary); the gradient is rotated with `−sin`. Backends whose kernels want contiguous memory make it so. The
    /// provided method leaves it as it is where nothing is rotated: Burn copies where an operation needs that.
    fn ordered(
        x: FloatTensor<Self>,
        rotation: Option<[FloatTensor<Self>; 3]>,
    ) -> FloatTensor<Self> {
        match rotation {
            Some(tables) => primitives::rotary::<Self>(x, tables, Self::product),
            None => x,
        }
    }

    /// What [`split_heads`](crate::split_heads) says: of `x` `[batch, seq, (n_heads + 2 n_kv_heads) · head_dim]` the queries, keys and values, each
    /// `[batch, seq, heads, head_dim]`. `rotation` is cos, sin and `turn` as in [`rotary`](crate::rotary), by which queries and keys are rotated. The
    /// gradient to `x` is [`LayerBackend::join_heads`].
    fn split_heads(
        x: FloatTensor<Self>,
        rotation: Option<[FloatTensor<Self>; 3]>,
        [n_heads, n_kv_heads]: [usize; 2],
    ) -> [FloatTensor<Self>; 3] {
        split_by_heads::<Self>(x, rotation, [n_heads, n_kv_heads])
    }

    /// The transpose of [`LayerBackend::split_heads`]: queries and keys are rotated back. Its gradient is that operation.
    fn join_heads(
        qkv: [FloatTensor<Self>; 3],
        rotation: Option<[FloatTensor<Self>; 3]>,
    ) -> FloatTensor<Self> {
        join_by_heads::<Self>(qkv, rotation)
    }

    /// A step of AdamW on a parameter and its two moments, all of one shape: what the three become. It is for backends without a
    /// graph. Types of 16 bits cannot hold the moments of a training.
    fn adamw(
        step: &AdamWStep,
        parameter_and_moments: [FloatTensor<Self>; 3],
        grad: FloatTensor<Self>,
    ) -> [FloatTensor<Self>; 3] {
        adamw::<Self>(step, parameter_and_moments, grad)
    }
}

/// What a factor is multiplied as where the [`precision`](crate::precision) is bf16: rounded to it. Products of two such
/// numbers are exact in f32.
pub(crate) fn as_factor<B: Backend>(x: FloatTensor<B>) -> FloatTensor<B> {
    match Precision::rounds_to_bf16(x.dtype()) {
        true => B::float_cast(B::float_cast(x, FloatDType::BF16), FloatDType::F32),
        false => x,
    }
}

/// [`LayerBackend::last_rows`] by a slice.
pub(crate) fn last_rows<B: Backend>(x: FloatTensor<B>, count: usize) -> FloatTensor<B> {
    let at = last_of_each(&x.shape(), count);
    B::float_slice(x, &at)
}

/// [`LayerBackend::behind_zeros`] by writing to a slice.
pub(crate) fn behind_zeros<B: Backend>(x: FloatTensor<B>, rows: usize) -> FloatTensor<B> {
    let (mut shape, count) = (x.shape(), x.shape()[1]);
    shape[1] = rows;
    let at = last_of_each(&shape, count);
    let zeros = B::float_zeros(shape, &B::float_device(&x), x.dtype().into());
    B::float_slice_assign(zeros, &at, x)
}

fn last_of_each(shape: &Shape, count: usize) -> Vec<Slice> {
    let mut at = vec![Slice::full(); shape.num_dims()];
    at[1] = (shape[1] - count..shape[1]).into();
    at
}

/// [`LayerBackend::split_heads`] by slices.
pub(crate) fn split_by_heads<B: LayerBackend>(
    x: FloatTensor<B>,
    rotation: Option<[FloatTensor<B>; 3]>,
    [n_heads, n_kv_heads]: [usize; 2],
) -> [FloatTensor<B>; 3] {
    let x: Tensor<B, 3> = lift(x);
    let ([batch, seq, width], heads) = (x.dims(), n_heads + 2 * n_kv_heads);
    let x = x.reshape([batch, seq, heads, width / heads]);
    let part = |start, count| lower(x.clone().narrow(2, start, count));
    let (q, k) = (part(0, n_heads), part(n_heads, n_kv_heads));
    let v = part(n_heads + n_kv_heads, n_kv_heads);
    [
        B::ordered(q, rotation.clone()),
        B::ordered(k, rotation),
        B::ordered(v, None),
    ]
}

/// [`LayerBackend::join_heads`] by a concatenation.
pub(crate) fn join_by_heads<B: LayerBackend>(
    [q, k, v]: [FloatTensor<B>; 3],
    rotation: Option<[FloatTensor<B>; 3]>,
) -> FloatTensor<B> {
    let back = rotation.map(rotated_back::<B>);
    let parts = [
        B::ordered(q, back.clone()),
        B::ordered(k, back),
        B::ordered(v, None),
    ];
    let parts = parts.map(lift::<B, 4>);
    let x = Tensor::cat(parts.into(), 2);
    lower(x.flatten::<3>(2, 3))
}

/// The inverse of a rotation by cos, sin and `turn`.
pub(crate) fn rotated_back<B: Backend>(
    [cos, sin, turn]: [FloatTensor<B>; 3],
) -> [FloatTensor<B>; 3] {
    [cos, B::float_neg(sin), turn]
}
