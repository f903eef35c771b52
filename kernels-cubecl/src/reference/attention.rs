//! Causal attention and its first two derivatives in plain tensor operations.
//!
//! With `P = softmax(s·QKᵀ)` under the causal mask, `O = PV`, `L` the row log-sum-exp and
//! `δ = rowsum(dP∘P)`, which equals `rowsum(dO∘O)` but does not need `O`:
//!
//! ```text
//! backward          dP = dO Vᵀ    dS = P∘(dP − δ)    dQ = s dS K    dK = s dSᵀ Q    dV = Pᵀ dO
//! ```
//!
//! and for cotangents `(a, b, c)` of `(dQ, dK, dV)`:
//!
//! ```text
//! double backward   W = s (a Kᵀ + Q bᵀ)          β = rowsum(W∘P)     Ŵ = P∘(W − β)
//!                   G = dO cᵀ + W∘(dP − δ) − β dP    r = rowsum(G∘P)     Ŝ = P∘(G − r)
//!                   to dO: P c + Ŵ V      to Q: s (dS b + Ŝ K)
//!                   to K: s (dSᵀ a + Ŝᵀ Q)    to V: Ŵᵀ dO
//! ```
//!
//! Each derivative recomputes `P` from `L` instead of storing it.
//!
//! 16-bit tensors are converted to f32 and results are converted back; `L` stays in f32.
//!
//! Grouped-query heads need no copies of K and V: the query heads that share a key/value head are
//! stacked as rows of one matrix, so that products with `dSᵀ` and `Pᵀ` sum over the group.

use burn::tensor::backend::Backend;
use burn::tensor::{Bool, DType, Tensor};

use super::{cast, widen};

/// The point at which a derivative is taken: the forward's inputs and probabilities, with the query heads
/// of each group stacked as rows (`[batch, kv_heads, group · query_len, …]`).
#[derive(Debug)]
pub struct Point<B: Backend> {
    q: Tensor<B, 4>,
    k: Tensor<B, 4>,
    v: Tensor<B, 4>,
    probabilities: Tensor<B, 4>,
    heads: Heads,
    scale: f64,
    dtype: DType,
}

impl<B: Backend> Point<B> {
    /// The forward's inputs and `lse`; shapes as in [`AttentionBackend`](crate::AttentionBackend).
    pub fn new(
        q: Tensor<B, 4>,
        k: Tensor<B, 4>,
        v: Tensor<B, 4>,
        lse: Tensor<B, 4>,
        scale: f64,
    ) -> Self {
        let dtype = q.dtype();
        let [q, k, v, lse] = [q, k, v, lse].map(widen);
        let heads = Heads::of(&q, &k);
        let q = heads.stack(q);
        let scores = heads.scores(q.clone(), k.clone(), scale);
        let probabilities = (scores - heads.stack(lse)).exp();
        Self {
            q,
            k,
            v,
            probabilities,
            heads,
            scale,
            dtype,
        }
    }
}

/// Returns `(out, lse)`; see [`AttentionBackend::causal_attention`](crate::AttentionBackend::causal_attention).
pub fn forward<B: Backend>(
    q: Tensor<B, 4>,
    k: Tensor<B, 4>,
    v: Tensor<B, 4>,
    scale: f64,
) -> (Tensor<B, 4>, Tensor<B, 4>) {
    let dtype = q.dtype();
    let [q, k, v] = [q, k, v].map(widen);
    let heads = Heads::of(&q, &k);
    let scores = heads.scores(heads.stack(q), k, scale);
    let max = scores.clone().max_dim(3);
    let weights = (scores - max.clone()).exp();
    let denominator = weights.clone().sum_dim(3);
    let out = weights.matmul(v) / denominator.clone();
    let lse = max + denominator.log();
    (cast(heads.unstack(out), dtype), heads.unstack(lse))
}

/// Returns `[dq, dk, dv]`; see
/// [`AttentionBackend::causal_attention_backward`](crate::AttentionBackend::causal_attention_backward).
pub fn backward<B: Backend>(at: Point<B>, grad_out: Tensor<B, 4>) -> [Tensor<B, 4>; 3] {
    let grad_out = at.heads.stack(widen(grad_out));
    let dp = grad_out.clone().matmul(at.v.transpose());
    let grad_scores = centred(&at.probabilities, dp).mul_scalar(at.scale);
    let dq = grad_scores.clone().matmul(at.k);
    let dk = grad_scores.transpose().matmul(at.q);
    let dv = at.probabilities.transpose().matmul(grad_out);
    [at.heads.unstack(dq), dk, dv].map(|x| cast(x, at.dtype))
}

/// Returns the gradients to `[grad_out, q, k, v]`; see
/// [`AttentionBackend::causal_attention_double_backward`](crate::AttentionBackend::causal_attention_double_backward).
pub fn double_backward<B: Backend>(
    at: Point<B>,
    grad_out: Tensor<B, 4>,
    [a, b, c]: [Option<Tensor<B, 4>>; 3],
) -> [Tensor<B, 4>; 4] {
    let dtype = at.dtype;
    let cotangents = [a, b, c].map(|x| x.map(widen));
    widened_double_backward(at, widen(grad_out), cotangents).map(|x| cast(x, dtype))
}

fn widened_double_backward<B: Backend>(
    at: Point<B>,
    grad_out: Tensor<B, 4>,
    [a, b, c]: [Option<Tensor<B, 4>>; 3],
) -> [Tensor<B, 4>; 4] {
    let (s, heads) = (at.scale, at.heads);
    let p = at.probabilities.clone();
    let grad_out = heads.stack(grad_out);
    let a = a.map(|a| heads.stack(a).mul_scalar(s));
    let b = b.map(|b| b.mul_scalar(s));

    // W, the cotangent of dS, is absent when only dV was used.
    let from_a = a.clone().map(|a| a.matmul(at.k.clone().transpose()));
    let from_b = b.clone().map(|b| at.q.clone().matmul(b.transpose()));
    let from_c = c.clone().map(|c| grad_out.clone().matmul(c.transpose()));
    let w = match (from_a, from_b) {
        (Some(from_a), from_b) => Some(plus(from_a, from_b)),
        (None, from_b) => from_b,
    };
    let Some(w) = w else {
        let Some((c, g)) = c.zip(from_c) else {
            return [
                heads.unstack(grad_out.zeros_like()),
                heads.unstack(at.q.zeros_like()),
                at.k.zeros_like(),
                at.v.zeros_like(),
            ];
        };
        let s_hat = centred(&p, g).mul_scalar(s);
        return [
            heads.unstack(p.matmul(c)),
            heads.unstack(s_hat.clone().matmul(at.k)),
            s_hat.transpose().matmul(at.q),
            at.v.zeros_like(),
        ];
    };

    let dp = grad_out.clone().matmul(at.v.clone().transpose());
    let centred_dp = dp.clone() - (dp.clone() * p.clone()).sum_dim(3);
    let beta = (w.clone() * p.clone()).sum_dim(3);
    let w_hat = p.clone() * (w.clone() - beta.clone());
    let g = w * centred_dp.clone() - beta * dp;
    let s_hat = centred(&p, plus(g, from_c)).mul_scalar(s);
    let ds = p.clone() * centred_dp;

    let to_grad_out = plus(w_hat.clone().matmul(at.v), c.map(|c| p.matmul(c)));
    let to_q = plus(s_hat.clone().matmul(at.k), b.map(|b| ds.clone().matmul(b)));
    let to_k = plus(
        s_hat.transpose().matmul(at.q),
        a.map(|a| ds.transpose().matmul(a)),
    );
    let to_v = w_hat.transpose().matmul(grad_out);
    [heads.unstack(to_grad_out), heads.unstack(to_q), to_k, to_v]
}

/// `P∘(X − rowsum(X∘P))`: the softmax's Jacobian applied to `X`.
fn centred<B: Backend>(p: &Tensor<B, 4>, x: Tensor<B, 4>) -> Tensor<B, 4> {
    let mean = (x.clone() * p.clone()).sum_dim(3);
    p.clone() * (x - mean)
}

fn plus<B: Backend>(x: Tensor<B, 4>, y: Option<Tensor<B, 4>>) -> Tensor<B, 4> {
    match y {
        Some(y) => x + y,
        None => x,
    }
}

/// How query heads stack into the rows of their key/value head.
#[derive(Clone, Copy, Debug)]
struct Heads {
    heads: usize,
    kv_heads: usize,
    key_len: usize,
}

impl Heads {
    fn of<B: Backend>(q: &Tensor<B, 4>, k: &Tensor<B, 4>) -> Self {
        let [_, kv_heads, key_len, _] = k.dims();
        Self {
            heads: q.dims()[1],
            kv_heads,
            key_len,
        }
    }

    /// `[batch, heads, len, dim]` → `[batch, kv_heads, group · len, dim]`
    fn stack<B: Backend>(&self, x: Tensor<B, 4>) -> Tensor<B, 4> {
        let [batch, heads, len, dim] = x.dims();
        match heads == self.kv_heads {
            true => x,
            false => x.reshape([batch, self.kv_heads, heads / self.kv_heads * len, dim]),
        }
    }

    /// The inverse of [`stack`](Self::stack).
    fn unstack<B: Backend>(&self, x: Tensor<B, 4>) -> Tensor<B, 4> {
        let [batch, kv_heads, rows, dim] = x.dims();
        match kv_heads == self.heads {
            true => x,
            false => x.reshape([batch, self.heads, rows * kv_heads / self.heads, dim]),
        }
    }

    /// `scale · Q Kᵀ` for stacked queries; scores of masked keys are about −1e30.
    fn scores<B: Backend>(&self, q: Tensor<B, 4>, k: Tensor<B, 4>, scale: f64) -> Tensor<B, 4> {
        let [batch, kv_heads, rows, _] = q.dims();
        let (group, key_len) = (self.heads / self.kv_heads, self.key_len);
        let query_len = rows / group;
        let offset = (key_len - query_len) as i64;
        let (device, dtype) = (q.device(), q.dtype());
        // Finite, because WGSL has no literal for −∞.
        let hidden = -1e30;
        let shape = [query_len, key_len];
        let mask = Tensor::<B, 2, Bool>::tril_mask(shape, offset, &device);
        let mask = Tensor::zeros(shape, (&device, dtype)).mask_fill(mask, hidden);
        let mask: Tensor<B, 2> = mask.repeat_dim(0, group);
        // One row per head, so that the mask broadcasts along the first dimension only.
        let row = rows * key_len;
        let scores = q.matmul(k.transpose()).mul_scalar(scale);
        let scores = scores.reshape([batch * kv_heads, row]) + mask.reshape([1, row]);
        scores.reshape([batch, kv_heads, rows, key_len])
    }
}
