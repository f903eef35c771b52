//! The layers around attention: the trait that backends implement and the checked calls on tensors.

use burn::tensor::backend::Backend;
use burn::tensor::ops::{FloatTensor, IntTensor};
use burn::tensor::{DType, Device, FloatDType, Int, Tensor, TensorMetadata};

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

    /// `x` `[batch, seq, heads, head_dim]`, each head rotated by the angles of its position if there is a `rotation`: cos, sin and
    /// `turn` as in [`rotary`]; the gradient is rotated with `−sin`. Backends whose kernels want contiguous memory make it so. The
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

    /// What [`split_heads`] says: of `x` `[batch, seq, (n_heads + 2 n_kv_heads) · head_dim]` the queries, keys and values, each
    /// `[batch, seq, heads, head_dim]`. `rotation` is cos, sin and `turn` as in [`rotary`], by which queries and keys are rotated. The
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

/// The matrix product `lhs · rhs`: Burn's own, except on backends where this crate has a faster one.
///
/// # Shapes
///
/// - `lhs`: `[m, k]`, `rhs`: `[k, n]`; output: `[m, n]`
/// - or `lhs`: `[batch, m, k]`, `rhs`: `[batch, k, n]`; output: `[batch, m, n]`
///
/// # Panics
///
/// If the inner dimensions or the batches differ, or there are more dimensions.
pub fn product<B: LayerBackend, const D: usize>(
    lhs: Tensor<B, D>,
    rhs: Tensor<B, D>,
) -> Tensor<B, D> {
    let (left, right) = (lhs.dims(), rhs.dims());
    assert!(
        (2..=3).contains(&D) && left[D - 1] == right[D - 2] && left[..D - 2] == right[..D - 2],
        "product: the shapes {left:?} and {right:?} do not fit"
    );
    lift(B::product(lower(lhs), lower(rhs)))
}

/// A linear map: `x · wᵀ`.
///
/// # Shapes
///
/// - `x`: `[rows, d_input]`, `weight`: `[d_output, d_input]`; output: `[rows, d_output]`
///
/// # Panics
///
/// If the widths of the inputs differ.
pub fn linear<B: LayerBackend>(x: Tensor<B, 2>, weight: Tensor<B, 2>) -> Tensor<B, 2> {
    let (rows, columns) = (x.dims(), weight.dims());
    assert_eq!(
        rows[1], columns[1],
        "linear: the shapes {rows:?} and {columns:?} do not fit"
    );
    lift(B::product_transposed(lower(x), lower(weight)))
}

/// What a linear map is added to, and the map: `to + x · wᵀ`. The sum is taken where the product is computed.
///
/// # Shapes
///
/// - `x`: `[rows, d_input]`, `weight`: `[d_output, d_input]`; `to` and output: `[rows, d_output]`
///
/// # Panics
///
/// If the shapes do not fit.
pub fn add_linear<B: LayerBackend>(
    to: Tensor<B, 2>,
    x: Tensor<B, 2>,
    weight: Tensor<B, 2>,
) -> Tensor<B, 2> {
    let (sums, rows, columns) = (to.dims(), x.dims(), weight.dims());
    assert!(
        rows[1] == columns[1] && sums == [rows[0], columns[0]],
        "add_linear: the shapes {sums:?}, {rows:?} and {columns:?} do not fit"
    );
    lift(B::add_product_transposed(
        lower(to),
        lower(x),
        lower(weight),
    ))
}

/// The cross-entropy `−log p` of each target, with `p` the softmax of its logits.
///
/// # Shapes
///
/// - `logits`: `[batch, seq, vocab_size]`
/// - `targets` and output: `[batch, seq]`; targets are below `vocab_size`, which is not checked
///
/// # Panics
///
/// If the shapes differ in `batch` or `seq`.
pub fn token_losses<B: LayerBackend>(
    logits: Tensor<B, 3>,
    targets: Tensor<B, 2, Int>,
) -> Tensor<B, 2> {
    let [batch, seq, vocab] = logits.dims();
    assert_eq!(
        targets.dims(),
        [batch, seq],
        "token_losses: the targets must have the shape [batch, seq] of the logits"
    );
    let logits = lower(logits.reshape([batch * seq, vocab]));
    let targets = targets.reshape([batch * seq]).into_primitive();
    let losses: Tensor<B, 1> = lift(B::token_losses(logits, targets));
    losses.reshape([batch, seq])
}

/// `x` `[batch, seq, heads, head_dim]` with the same values, in contiguous memory where a backend's kernels want that: for a part of
/// a product that attention and its derivatives read several times.
pub fn contiguous<B: LayerBackend>(x: Tensor<B, 4>) -> Tensor<B, 4> {
    lift(B::ordered(lower(x), None))
}

/// Root mean square normalisation, `x / √(mean(x²) + ε) ∘ w` (arXiv 1910.07467). 16-bit inputs are
/// normalised in f32.
///
/// # Shapes
///
/// - `x` and output: `[batch, seq, d]`
/// - `weight`: `[d]`
///
/// # Panics
///
/// If the last dimensions differ.
pub fn rms_norm<B: LayerBackend>(
    x: Tensor<B, 3>,
    weight: Tensor<B, 1>,
    epsilon: f64,
) -> Tensor<B, 3> {
    normalised(
        x,
        weight,
        Norm {
            epsilon,
            centered: false,
        },
    )
}

/// Layer normalisation without a bias, `(x − mean(x)) / √(var(x) + ε) ∘ w` (arXiv 1607.06450). 16-bit inputs are normalised in
/// f32.
///
/// # Shapes
///
/// - `x` and output: `[batch, seq, d]`
/// - `weight`: `[d]`
///
/// # Panics
///
/// If the last dimensions differ.
pub fn layer_norm<B: LayerBackend>(
    x: Tensor<B, 3>,
    weight: Tensor<B, 1>,
    epsilon: f64,
) -> Tensor<B, 3> {
    normalised(
        x,
        weight,
        Norm {
            epsilon,
            centered: true,
        },
    )
}

fn normalised<B: LayerBackend>(x: Tensor<B, 3>, weight: Tensor<B, 1>, by: Norm) -> Tensor<B, 3> {
    let ([_, _, width], [d]) = (x.dims(), weight.dims());
    assert_eq!(
        width, d,
        "the last dimensions of what is normalised and of the weight differ"
    );
    lift(B::norm(lower(x), lower(weight), by))
}

/// A nonlinearity of each value of `x` `[batch, seq, d]`.
pub fn activate<B: LayerBackend>(x: Tensor<B, 3>, by: Nonlinearity) -> Tensor<B, 3> {
    lift(B::activate(lower(x), by))
}

/// SwiGLU: `silu(gate) ∘ up`, with `silu(x) = x σ(x)` (arXiv 2002.05202).
///
/// # Shapes
///
/// - `x`: `[batch, seq, 2 d_ff]`: the gate, and behind it up
/// - output: `[batch, seq, d_ff]`
///
/// # Panics
///
/// If the last dimension is odd or zero.
pub fn swiglu<B: LayerBackend>(x: Tensor<B, 3>) -> Tensor<B, 3> {
    let [.., width] = x.dims();
    assert!(
        width > 0 && width.is_multiple_of(2),
        "swiglu: gate and up have as many columns, at least one, but x has {width}"
    );
    lift(B::swiglu(lower(x)))
}

/// Two tensors side by side, as [`swiglu`] takes gate and up.
///
/// # Shapes
///
/// - `left` and `right`: `[batch, seq, d]`; output: `[batch, seq, 2 d]`
///
/// # Panics
///
/// If the shapes differ or have no columns.
pub fn side_by_side<B: LayerBackend>(left: Tensor<B, 3>, right: Tensor<B, 3>) -> Tensor<B, 3> {
    let shapes = (left.dims(), right.dims());
    assert!(
        shapes.0 == shapes.1 && shapes.0[2] > 0,
        "side_by_side: the shapes {:?} and {:?} differ or have no columns",
        shapes.0,
        shapes.1
    );
    lift(B::side_by_side([left, right].map(lower)))
}

/// Rotary positions (arXiv 2104.09864): `x ∘ cos + (x T) ∘ sin`.
///
/// # Shapes
///
/// - `x` and output: `[batch, seq, heads, head_dim]`
/// - `cos`, `sin`: `[1, seq, head_dim]`, of each position's angles; the two dimensions of a rotated pair
///   have the same angle
/// - `turn`: T, `[head_dim, head_dim]`, swaps the dimensions of each pair and negates the first
///
/// The tables are constants: no gradient passes to them.
///
/// # Panics
///
/// If the shapes of `cos`, `sin` or `turn` do not match `x`.
pub fn rotary<B: LayerBackend>(
    x: Tensor<B, 4>,
    cos: Tensor<B, 3>,
    sin: Tensor<B, 3>,
    turn: Tensor<B, 2>,
) -> Tensor<B, 4> {
    let [_, seq, _, head_dim] = x.dims();
    let fits = [cos.dims(), sin.dims()] == [[1, seq, head_dim]; 2];
    assert!(
        fits && turn.dims() == [head_dim; 2],
        "rotary: the shapes do not match: x {:?}, cos {:?}, sin {:?}, turn {:?}",
        x.dims(),
        cos.dims(),
        sin.dims(),
        turn.dims()
    );
    let rotation = [lower(cos), lower(sin), lower(turn)];
    lift(B::ordered(lower(x), Some(rotation)))
}

/// The tables of rotary positions: cos and sin `[1, seq, head_dim]` and `turn` `[head_dim, head_dim]`, as in [`rotary`].
pub type Rotation<B> = (Tensor<B, 3>, Tensor<B, 3>, Tensor<B, 2>);

/// Queries, keys and values from the columns of one product, ready for attention: queries and keys rotated by their positions, if
/// there is a rotation.
///
/// # Shapes
///
/// - `x`: `[batch, seq, (n_heads + 2 n_kv_heads) · head_dim]`: queries, keys, values, each head's columns together
/// - outputs: `[batch, seq, heads, head_dim]`
///
/// # Panics
///
/// If there are no heads of a kind, the columns cannot be divided so, or the rotation's shapes do not match.
pub fn split_heads<B: LayerBackend>(
    x: Tensor<B, 3>,
    rotation: Option<Rotation<B>>,
    [n_heads, n_kv_heads]: [usize; 2],
) -> [Tensor<B, 4>; 3] {
    let ([_, seq, width], heads) = (x.dims(), n_heads + 2 * n_kv_heads);
    assert!(
        n_heads.min(n_kv_heads).min(width) > 0 && width.is_multiple_of(heads),
        "split_heads: {width} columns are not those of {n_heads} heads and {n_kv_heads} of keys and values"
    );
    let head_dim = width / heads;
    let rotation = rotation.map(|(cos, sin, turn)| {
        let fits = [cos.dims(), sin.dims()] == [[1, seq, head_dim]; 2];
        assert!(
            fits && turn.dims() == [head_dim; 2],
            "split_heads: the shapes do not match: heads of {head_dim}, cos {:?}, sin {:?}, turn {:?}",
            cos.dims(),
            sin.dims(),
            turn.dims()
        );
        [lower(cos), lower(sin), lower(turn)]
    });
    B::split_heads(lower(x), rotation, [n_heads, n_kv_heads]).map(lift)
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
