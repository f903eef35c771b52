//! What sequence models for [Burn](https://burn.dev) need to be differentiated twice: causal attention
//! and the linear scan.
//!
//! GradMem (arXiv 2603.13875) trains *through* gradient steps, so every layer of its model needs a
//! gradient of a gradient. Burn's own fused operations stop at the first derivative. Here attention
//! is one extension trait, [`AttentionBackend`], with a forward, a backward and a double backward:
//!
//! - [`mod@reference`] computes all three with plain tensor operations; they are the trait's provided
//!   methods, so any Burn backend joins with an empty `impl`;
//! - `Autodiff<B>` registers the backward on the forward and the double backward on the backward,
//!   so `Autodiff<Autodiff<B>>` works by recursion.
//!
//! State-space models need a linear recurrence over the sequence: [`ScanBackend`] computes it in
//! parallel, and is its own backward. [`KernelBackend`] is a backend that has both.
//!
//! ```
//! # #[cfg(feature = "flex")] {
//! use burn::tensor::{Distribution, Tensor};
//! use gradmem_kernels::causal_attention;
//! type B = burn::backend::Autodiff<burn_flex::Flex>;
//!
//! let device = Default::default();
//! let random = |heads| Tensor::<B, 4>::random([2, heads, 5, 8], Distribution::Default, &device);
//! // Four query heads share two key/value heads.
//! let out = causal_attention(random(4), random(2), random(2), 1.0 / 8f64.sqrt());
//! assert_eq!(out.dims(), [2, 4, 5, 8]);
//! # }
//! ```
#![warn(missing_docs)]

mod autodiff;
mod backends;
pub mod reference;
mod scan;

use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{Tensor, TensorPrimitive};

pub use scan::{Direction, ScanBackend, linear_scan};

/// A backend that computes causal softmax attention and its first two derivatives.
///
/// Shapes, with `heads` a multiple of `kv_heads` (grouped-query attention; query head `h` reads
/// key/value head `h / (heads / kv_heads)`) and `query_len <= key_len` (query `i` sees the keys up
/// to `i + key_len - query_len`):
///
/// - `q`, `out` and their gradients: `[batch, heads, query_len, head_dim]`
/// - `k`, `v` and their gradients: `[batch, kv_heads, key_len, head_dim]`
/// - `lse`: the logarithm of each row's softmax denominator, `[batch, heads, query_len, 1]`
///
/// The provided methods are the [`mod@reference`] in plain tensor operations.
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
        let (out, lse) = reference::forward::<Self>(lift(q), lift(k), lift(v), scale);
        (lower(out), lower(lse))
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
        let at = reference::Point::new(lift(q), lift(k), lift(v), lift(lse), scale);
        reference::backward::<Self>(at, lift(grad_out)).map(lower)
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
        let at = reference::Point::new(lift(q), lift(k), lift(v), lift(lse), scale);
        let cotangents = cotangents.map(|c| c.map(lift));
        reference::double_backward::<Self>(at, lift(grad_out), cotangents).map(lower)
    }
}

/// A backend that has everything the models of GradMem are made of.
pub trait KernelBackend: AttentionBackend + ScanBackend {}

impl<B: AttentionBackend + ScanBackend> KernelBackend for B {}

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
/// If `heads` is not a multiple of `kv_heads`, or `query_len` exceeds `key_len`.
pub fn causal_attention<B: AttentionBackend>(
    q: Tensor<B, 4>,
    k: Tensor<B, 4>,
    v: Tensor<B, 4>,
    scale: f64,
) -> Tensor<B, 4> {
    let [_, heads, query_len, _] = q.dims();
    let [_, kv_heads, key_len, _] = k.dims();
    assert!(
        kv_heads > 0 && heads % kv_heads == 0,
        "causal_attention: {heads} query heads cannot share {kv_heads} key/value heads evenly"
    );
    assert!(
        query_len <= key_len,
        "causal_attention: {query_len} queries but only {key_len} keys"
    );
    lift(B::causal_attention(lower(q), lower(k), lower(v), scale).0)
}

fn lift<B: Backend, const D: usize>(primitive: FloatTensor<B>) -> Tensor<B, D> {
    Tensor::from_primitive(TensorPrimitive::Float(primitive))
}

fn lower<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> FloatTensor<B> {
    tensor.into_primitive().tensor()
}
