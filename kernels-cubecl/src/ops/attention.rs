//! Causal attention: what a backend computes, and how it is called.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};

use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, Tensor};

use crate::{lift, lower, reference};

/// A backend that computes causal softmax attention and its first two derivatives.
///
/// Shapes, with `heads` a multiple of `kv_heads` (grouped-query attention; query head `h` reads
/// key/value head `h / (heads / kv_heads)`) and `query_len <= key_len` (query `i` sees the keys up
/// to `i + key_len - query_len`):
///
/// - `q`, `out` and their gradients: `[batch, heads, query_len, head_dim]`
/// - `k`, `v` and their gradients: `[batch, kv_heads, key_len, head_dim]`
/// - `lse`: the logarithm of each row's softmax denominator, `[batch, heads, query_len, 1]`, in f32
///   where the others are of 16 bits
///
/// The provided methods are the [`mod@reference`] in plain tensor operations. [`causal_attention`]
/// checks what it is given; these methods trust their callers.
pub trait AttentionBackend: Backend {
    /// `out = softmax(scale · q kᵀ) v` under the causal mask; returns `(out, lse)`.
    ///
    /// On an autodiff backend `out` is tracked; `lse` is an auxiliary value and is not.
    fn causal_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        scale: f64,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        reference_forward::<Self>([q, k, v], scale)
    }

    /// The gradients `[dq, dk, dv]` of `⟨grad_out, out⟩`.
    fn causal_attention_backward(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        _out: FloatTensor<Self>,
        lse: FloatTensor<Self>,
        grad_out: FloatTensor<Self>,
        scale: f64,
    ) -> [FloatTensor<Self>; 3] {
        reference_backward::<Self>([q, k, v], lse, grad_out, scale)
    }

    /// The gradients to `[grad_out, q, k, v]` of `⟨a, dq⟩ + ⟨b, dk⟩ + ⟨c, dv⟩`, where
    /// `cotangents = [a, b, c]` and an absent cotangent counts as zero.
    ///
    /// They are total derivatives: `out` and `lse` are functions of `q`, `k` and `v` here.
    #[allow(clippy::too_many_arguments)]
    fn causal_attention_double_backward(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        _out: FloatTensor<Self>,
        lse: FloatTensor<Self>,
        grad_out: FloatTensor<Self>,
        cotangents: [Option<FloatTensor<Self>>; 3],
        scale: f64,
    ) -> [FloatTensor<Self>; 4] {
        reference_double_backward::<Self>([q, k, v], lse, grad_out, cotangents, scale)
    }
}

/// [`reference::forward`] on primitives.
pub(crate) fn reference_forward<B: Backend>(
    inputs: [FloatTensor<B>; 3],
    scale: f64,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let [q, k, v] = inputs.map(lift);
    let (out, lse) = reference::forward::<B>(q, k, v, scale);
    (lower(out), lower(lse))
}

/// [`reference::backward`] on primitives.
pub(crate) fn reference_backward<B: Backend>(
    inputs: [FloatTensor<B>; 3],
    lse: FloatTensor<B>,
    grad_out: FloatTensor<B>,
    scale: f64,
) -> [FloatTensor<B>; 3] {
    let [q, k, v] = inputs.map(lift);
    let at = reference::Point::new(q, k, v, lift(lse), scale);
    reference::backward::<B>(at, lift(grad_out)).map(lower)
}

/// [`reference::double_backward`] on primitives.
pub(crate) fn reference_double_backward<B: Backend>(
    inputs: [FloatTensor<B>; 3],
    lse: FloatTensor<B>,
    grad_out: FloatTensor<B>,
    cotangents: [Option<FloatTensor<B>>; 3],
    scale: f64,
) -> [FloatTensor<B>; 4] {
    let [q, k, v] = inputs.map(lift);
    let at = reference::Point::new(q, k, v, lift(lse), scale);
    let cotangents = cotangents.map(|c| c.map(lift));
    reference::double_backward::<B>(at, lift(grad_out), cotangents).map(lower)
}

/// Causal attention on tensors: `softmax(scale · q kᵀ) v`, differentiable as often as `B` is nested.
///
/// # Shapes
///
/// - `q`: `[batch, heads, query_len, head_dim]`
/// - `k`, `v`: `[batch, kv_heads, key_len, head_dim]`
/// - output: `[batch, heads, query_len, head_dim]`
///
/// # Panics
///
/// With the message of [`try_causal_attention`]'s error, before anything is computed.
pub fn causal_attention<B: AttentionBackend>(
    q: Tensor<B, 4>,
    k: Tensor<B, 4>,
    v: Tensor<B, 4>,
    scale: f64,
) -> Tensor<B, 4> {
    try_causal_attention(q, k, v, scale).unwrap_or_else(|error| panic!("{error}"))
}

/// [`causal_attention`] for tensors that nobody has checked.
///
/// # Errors
///
/// If the shapes do not fit together as [`AttentionBackend`] says, a dimension other than `batch` is
/// zero, or the types differ.
pub fn try_causal_attention<B: AttentionBackend>(
    q: Tensor<B, 4>,
    k: Tensor<B, 4>,
    v: Tensor<B, 4>,
    scale: f64,
) -> Result<Tensor<B, 4>, AttentionError> {
    check(
        [q.dims(), k.dims(), v.dims()],
        [q.dtype(), k.dtype(), v.dtype()],
    )?;
    Ok(lift(
        B::causal_attention(lower(q), lower(k), lower(v), scale).0,
    ))
}

/// What is wrong with the tensors given to [`try_causal_attention`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AttentionError {
    /// The shapes of q, k and v do not fit together.
    Shapes {
        /// `[batch, heads, query_len, head_dim]` as given.
        q: [usize; 4],
        /// `[batch, kv_heads, key_len, head_dim]` as given.
        k: [usize; 4],
        /// Must be `k`'s.
        v: [usize; 4],
        /// What would have been right.
        rule: &'static str,
    },
    /// q, k and v are not of one type.
    Types([DType; 3]),
}

impl fmt::Display for AttentionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Shapes { q, k, v, rule } => write!(
                f,
                "causal_attention: {rule}, but q is {q:?}, k {k:?} and v {v:?}"
            ),
            Self::Types([q, k, v]) => write!(
                f,
                "causal_attention: q, k and v must be of one type, but are {q:?}, {k:?} and {v:?}"
            ),
        }
    }
}

impl std::error::Error for AttentionError {}

fn check([q, k, v]: [[usize; 4]; 3], types: [DType; 3]) -> Result<(), AttentionError> {
    let ([batch, heads, query_len, dim], [k_batch, kv_heads, key_len, k_dim]) = (q, k);
    let rules = [
        (k == v, "k and v must have one shape"),
        (
            batch == k_batch && dim == k_dim,
            "q and k must have one batch size and one head dim",
        ),
        (
            heads > 0 && query_len > 0 && dim > 0 && kv_heads > 0 && key_len > 0,
            "heads, length and head dim must be at least 1",
        ),
        (
            heads.is_multiple_of(kv_heads.max(1)),
            "q's heads must share k's heads evenly",
        ),
        (
            query_len <= key_len,
            "there must be no more queries than keys",
        ),
    ];
    for (holds, rule) in rules {
        if !holds {
            return Err(AttentionError::Shapes { q, k, v, rule });
        }
    }
    match types {
        [q, k, v] if q == k && k == v => Ok(()),
        types => Err(AttentionError::Types(types)),
    }
}

/// Which code computes attention on backends that have kernels for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Attention {
    /// Plain tensor operations, as on every other backend; memory grows with the sequence's square.
    Reference,
    /// The kernels, where the device can run them; otherwise the reference, and a warning that says
    /// why, once for each reason, through the `log` crate.
    Fused,
}

static REFERENCE: AtomicBool = AtomicBool::new(false);

/// Chooses for the whole process. Results differ by rounding only, so that switching at any moment is
/// safe. The default is [`Attention::Fused`].
pub fn set_attention(attention: Attention) {
    REFERENCE.store(attention == Attention::Reference, Ordering::Relaxed);
}

/// The process's choice.
pub fn attention() -> Attention {
    match REFERENCE.load(Ordering::Relaxed) {
        true => Attention::Reference,
        false => Attention::Fused,
    }
}
