//! The layers around attention: what a backend computes, and how it is called.

pub mod reference;

use burn::tensor::backend::Backend;
use burn::tensor::ops::{FloatTensor, IntTensor};
use burn::tensor::{Int, Tensor};

use crate::{lift, lower};

/// A backend that computes matrix products, RMS normalisation, SwiGLU, rotary positions and cross-entropies,
/// and the first two derivatives of each.
///
/// The provided methods are the [`mod@reference`] in plain tensor operations, which any backend has;
/// they trust their callers, which [`product`], [`rms_norm`], [`swiglu`], [`rotary`] and [`token_losses`]
/// are. Tensors of a shape lie in
/// memory however they like.
pub trait LayerBackend: Backend {
    /// `lhs · rhs` for `lhs` `[m, k]` and `rhs` `[k, n]`. Its gradients are such products too.
    fn product(lhs: FloatTensor<Self>, rhs: FloatTensor<Self>) -> FloatTensor<Self> {
        Self::float_matmul(lhs, rhs)
    }

    /// `to + lhs · rhs`.
    fn add_product(
        to: FloatTensor<Self>,
        lhs: FloatTensor<Self>,
        rhs: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        Self::float_add(to, Self::product(lhs, rhs))
    }

    /// `x + y`, of one shape.
    fn add(x: FloatTensor<Self>, y: FloatTensor<Self>) -> FloatTensor<Self> {
        Self::float_add(x, y)
    }

    /// `−log p` of each row's target: logits `[rows, vocab_size]`, targets `[rows]` → `[rows]`.
    fn token_losses(logits: FloatTensor<Self>, targets: IntTensor<Self>) -> FloatTensor<Self> {
        let targets = Tensor::from_primitive(targets);
        lower(reference::token_losses::<Self>(lift(logits), targets))
    }

    /// The gradient of `⟨grad, token_losses(logits)⟩`, `[rows, vocab_size]`.
    fn token_losses_backward(
        logits: FloatTensor<Self>,
        targets: IntTensor<Self>,
        grad: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let targets = Tensor::from_primitive(targets);
        let (logits, grad) = (lift(logits), lift(grad));
        lower(reference::token_losses_backward::<Self>(
            logits, targets, grad,
        ))
    }

    /// The gradients to `[grad, logits]` of `⟨a, dlogits⟩`.
    fn token_losses_double_backward(
        logits: FloatTensor<Self>,
        targets: IntTensor<Self>,
        grad: FloatTensor<Self>,
        a: FloatTensor<Self>,
    ) -> [FloatTensor<Self>; 2] {
        let targets = Tensor::from_primitive(targets);
        let (logits, grad) = (lift(logits), lift(grad));
        let (to_grad, to_logits) =
            reference::token_losses_double_backward::<Self>(logits, targets, grad, lift(a));
        [lower(to_grad), lower(to_logits)]
    }

    /// The same numbers, in the order of the shape: `[batch, seq, heads, head_dim]` → the same. Burn copies
    /// where that matters; a backend that has a faster copy makes it here.
    fn in_order(x: FloatTensor<Self>) -> FloatTensor<Self> {
        x
    }

    /// `x / √(mean(x²) + ε) ∘ w` for `x` `[batch, seq, d]` and `weight` `[d]`.
    fn rms_norm(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        epsilon: f64,
    ) -> FloatTensor<Self> {
        lower(reference::rms_norm::<Self>(lift(x), lift(weight), epsilon))
    }

    /// The gradients `(dx, dw)` of `⟨grad, rms_norm(x, w)⟩`; dw if it is wanted.
    fn rms_norm_backward(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        epsilon: f64,
        wants_weight: bool,
    ) -> (FloatTensor<Self>, Option<FloatTensor<Self>>) {
        let (x, weight, grad) = (lift(x), lift(weight), lift(grad));
        let (dx, dw) = reference::rms_norm_backward::<Self>(x, weight, grad, epsilon, wants_weight);
        (lower(dx), dw.map(lower))
    }

    /// The gradients to `[grad, x, w]` of `⟨a, dx⟩ + ⟨c, dw⟩`, where `cotangents = [a, c]` and an absent
    /// cotangent counts as zero.
    fn rms_norm_double_backward(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        [a, c]: [Option<FloatTensor<Self>>; 2],
        epsilon: f64,
    ) -> [FloatTensor<Self>; 3] {
        let (x, weight, grad) = (lift(x), lift(weight), lift(grad));
        let (a, c) = (a.map(lift), c.map(lift));
        let (to_grad, to_x, to_weight) =
            reference::rms_norm_double_backward::<Self>(x, weight, grad, a, c, epsilon);
        [lower(to_grad), lower(to_x), lower(to_weight)]
    }

    /// `silu(gate) ∘ up`, all of one shape `[batch, seq, d_ff]`.
    fn swiglu(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self> {
        lower(reference::swiglu::<Self>(lift(gate), lift(up)))
    }

    /// The gradients to `[gate, up]` of `⟨grad, swiglu(gate, up)⟩`.
    fn swiglu_backward(
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        grad: FloatTensor<Self>,
    ) -> [FloatTensor<Self>; 2] {
        reference::swiglu_backward::<Self>(lift(gate), lift(up), lift(grad)).map(lower)
    }

    /// The gradients to `[grad, gate, up]` of `⟨a, dgate⟩ + ⟨b, dup⟩`, where `cotangents = [a, b]` and an
    /// absent cotangent counts as zero.
    fn swiglu_double_backward(
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        cotangents: [Option<FloatTensor<Self>>; 2],
    ) -> [FloatTensor<Self>; 3] {
        let cotangents = cotangents.map(|x| x.map(lift));
        reference::swiglu_double_backward::<Self>(lift(gate), lift(up), lift(grad), cotangents)
            .map(lower)
    }

    /// Turns each head of `x` `[batch, seq, heads, head_dim]` by its position's angles; the others are as
    /// [`rotary`] has them. Its gradient is the rotation back, by `−sin`.
    fn rotary(
        x: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
        turn: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let (cos, sin, turn) = (lift(cos), lift(sin), lift(turn));
        lower(reference::rotary::<Self>(lift(x), cos, sin, turn))
    }
}

/// The matrix product `lhs · rhs`, differentiable as often as `B` is nested: Burn's own, but for backends
/// that have a faster one.
///
/// # Shapes
///
/// - `lhs`: `[m, k]`, `rhs`: `[k, n]`; output: `[m, n]`
///
/// # Panics
///
/// If the shapes do not fit.
pub fn product<B: LayerBackend>(lhs: Tensor<B, 2>, rhs: Tensor<B, 2>) -> Tensor<B, 2> {
    let (left, right) = (lhs.dims(), rhs.dims());
    assert_eq!(left[1], right[0], "product: {left:?} times {right:?}");
    lift(B::product(lower(lhs), lower(rhs)))
}

/// `−log p` of each target, differentiable as often as `B` is nested.
///
/// # Shapes
///
/// - `logits`: `[batch, seq, vocab_size]`
/// - `targets` and output: `[batch, seq]`; targets are below `vocab_size`
///
/// # Panics
///
/// If the shapes do not fit.
pub fn token_losses<B: LayerBackend>(
    logits: Tensor<B, 3>,
    targets: Tensor<B, 2, Int>,
) -> Tensor<B, 2> {
    let [batch, seq, vocab] = logits.dims();
    assert_eq!(targets.dims(), [batch, seq], "token_losses: a target a row");
    let logits = lower(logits.reshape([batch * seq, vocab]));
    let targets = targets.reshape([batch * seq]).into_primitive();
    let losses: Tensor<B, 1> = lift(B::token_losses(logits, targets));
    losses.reshape([batch, seq])
}

/// `x` `[batch, seq, heads, head_dim]` itself; its gradient comes back in the order of the shape, so that
/// undoing the split into heads copies nothing.
pub fn in_order<B: LayerBackend>(x: Tensor<B, 4>) -> Tensor<B, 4> {
    lift(B::in_order(lower(x)))
}

/// Root mean square normalisation, `x / √(mean(x²) + ε) ∘ w` (arXiv 1910.07467), differentiable as often
/// as `B` is nested. Inputs below 32 bits are normalised in f32.
///
/// # Shapes
///
/// - `x` and output: `[batch, seq, d]`
/// - `weight`: `[d]`
///
/// # Panics
///
/// If the widths differ.
pub fn rms_norm<B: LayerBackend>(
    x: Tensor<B, 3>,
    weight: Tensor<B, 1>,
    epsilon: f64,
) -> Tensor<B, 3> {
    let ([_, _, width], [d]) = (x.dims(), weight.dims());
    assert_eq!(width, d, "rms_norm: x and weight must be of one width");
    lift(B::rms_norm(lower(x), lower(weight), epsilon))
}

/// `silu(gate) ∘ up`, with `silu(x) = x σ(x)` (arXiv 2002.05202), differentiable as often as `B` is nested.
///
/// # Shapes
///
/// - `gate`, `up` and output: `[batch, seq, d_ff]`
///
/// # Panics
///
/// If the shapes differ.
pub fn swiglu<B: LayerBackend>(gate: Tensor<B, 3>, up: Tensor<B, 3>) -> Tensor<B, 3> {
    let shapes = (gate.dims(), up.dims());
    assert_eq!(shapes.0, shapes.1, "swiglu: both must be of one shape");
    lift(B::swiglu(lower(gate), lower(up)))
}

/// Rotary positions (arXiv 2104.09864): `x ∘ cos + (x T) ∘ sin`, differentiable as often as `B` is nested.
///
/// # Shapes
///
/// - `x` and output: `[batch, seq, heads, head_dim]`
/// - `cos`, `sin`: `[1, seq, head_dim]`, of each position's angles; both of a pair of dimensions that
///   turn together have the same
/// - `turn`: T, `[head_dim, head_dim]`, swaps each pair and negates the one that comes first
///
/// # Panics
///
/// If the shapes do not fit.
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
        "rotary: x is {:?}, but cos {:?}, sin {:?} and turn {:?}",
        x.dims(),
        cos.dims(),
        sin.dims(),
        turn.dims()
    );
    lift(B::rotary(lower(x), lower(cos), lower(sin), lower(turn)))
}
