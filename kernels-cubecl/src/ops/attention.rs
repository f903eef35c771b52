//! Causal attention: the trait that backends implement and the checked calls on tensors.

use std::fmt;

use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, Tensor};

use super::selection::Precision;
use crate::reference::primitives;
use crate::{lift, lower};

/// A backend that computes causal softmax attention and its first two derivatives.
///
/// `heads` is a multiple of `kv_heads` (grouped-query attention, arXiv 2305.13245): query head `h` attends
/// to key/value head `h / (heads / kv_heads)`. `query_len <= key_len`: query `i` attends to the keys
/// `0..=i + key_len - query_len`.
///
/// The provided methods compute with [`reference::attention`](crate::reference::attention). The methods do
/// not check their arguments; [`causal_attention`] does.
///
/// # Shapes
///
/// - `q`, `out` and their gradients: `[batch, heads, query_len, head_dim]`
/// - `k`, `v` and their gradients: `[batch, kv_heads, key_len, head_dim]`
/// - `lse`: the logarithm of each row's softmax denominator, `[batch, heads, query_len, 1]`, in f32 if the
///   other tensors have 16 bits
pub trait AttentionBackend: Backend {
    /// `out = softmax(scale · q kᵀ) v` under the causal mask; returns `(out, lse)`.
    ///
    /// On an autodiff backend `out` is tracked and `lse` is not.
    fn causal_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        scale: f64,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        primitives::causal_attention::<Self>([q, k, v], scale, Self::float_matmul)
    }

    /// The gradients `[dq, dk, dv]` of `⟨grad_out, out⟩`, each added to what is given as `onto`.
    #[allow(clippy::too_many_arguments)]
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
        let _ = out;
        let (inputs, product) = ([q, k, v], Self::float_matmul);
        primitives::causal_attention_backward::<Self>(inputs, lse, grad_out, scale, onto, product)
    }

    /// The gradients to `[grad_out, q, k, v]` of `⟨a, dq⟩ + ⟨b, dk⟩ + ⟨c, dv⟩`, where
    /// `cotangents = [a, b, c]` and an absent cotangent counts as zero.
    ///
    /// These are total derivatives: `out` and `lse` count as functions of `q`, `k` and `v`.
    #[allow(clippy::too_many_arguments)]
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
        let _ = out;
        primitives::causal_attention_double_backward::<Self>(
            [q, k, v],
            lse,
            grad_out,
            cotangents,
            scale,
            Self::float_matmul,
        )
    }
}

/// Causal attention: `softmax(scale · q kᵀ) v`. Each `Autodiff` around the backend gives one more derivative. f32 is computed as f32,
/// or rounded to bf16 where the process's [`precision`](crate::precision) is that.
///
/// # Shapes
///
/// - `q`: `[batch, heads, query_len, head_dim]`
/// - `k`, `v`: `[batch, kv_heads, key_len, head_dim]`
/// - output: `[batch, heads, query_len, head_dim]`
///
/// The kernels for GPUs read and write memory in the order `[batch, len, heads, head_dim]`, which projections have: swapped
/// dimensions cost nothing, other orders are copied.
///
/// # Panics
///
/// If [`try_causal_attention`] returns an error.
pub fn causal_attention<B: AttentionBackend>(
    q: Tensor<B, 4>,
    k: Tensor<B, 4>,
    v: Tensor<B, 4>,
    scale: f64,
) -> Tensor<B, 4> {
    try_causal_attention(q, k, v, scale).unwrap_or_else(|error| panic!("{error}"))
}

/// [`causal_attention`], with an error instead of a panic.
///
/// # Errors
///
/// If the shapes are not those of [`AttentionBackend`], a dimension other than `batch` is zero, or the
/// element types differ.
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
    let attend =
        |q: Tensor<B, 4>, k, v| lift(B::causal_attention(lower(q), lower(k), lower(v), scale).0);
    if !Precision::rounds_to_bf16(q.dtype()) {
        return Ok(attend(q, k, v));
    }
    let [q, k, v] = [q, k, v].map(|x| x.cast(DType::BF16));
    Ok(attend(q, k, v).cast(DType::F32))
}

/// Why [`try_causal_attention`] rejects its tensors.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AttentionError {
    /// The shapes of q, k and v are inconsistent.
    Shapes {
        /// The shape of q: `[batch, heads, query_len, head_dim]`.
        q: [usize; 4],
        /// The shape of k: `[batch, kv_heads, key_len, head_dim]`.
        k: [usize; 4],
        /// The shape of v, which must equal that of k.
        v: [usize; 4],
        /// The rule that does not hold.
        rule: &'static str,
    },
    /// q, k and v have different element types.
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
                "causal_attention: q, k and v must have the same type, but are {q:?}, {k:?} and {v:?}"
            ),
        }
    }
}

impl std::error::Error for AttentionError {}

fn check([q, k, v]: [[usize; 4]; 3], types: [DType; 3]) -> Result<(), AttentionError> {
    let ([batch, heads, query_len, dim], [k_batch, kv_heads, key_len, k_dim]) = (q, k);
    let rules = [
        (k == v, "k and v must have the same shape"),
        (
            batch == k_batch && dim == k_dim,
            "q and k must have the same batch size and head dim",
        ),
        (
            heads > 0 && query_len > 0 && dim > 0 && kv_heads > 0 && key_len > 0,
            "heads, lengths and head dim must be at least 1",
        ),
        (
            heads.is_multiple_of(kv_heads.max(1)),
            "q's heads must be a multiple of k's heads",
        ),
        (query_len <= key_len, "q must not be longer than k"),
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
