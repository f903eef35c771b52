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
use burn::tensor::ops::FloatTensor;
use burn::tensor::{Bool, DType, Tensor};

use super::{cast, widen};
use crate::{lift, lower};

/// A product of as many pairs of matrices, `[pairs, m, k] · [pairs, k, n]`: a backend's own, which may be more exact than
/// `float_matmul`.
pub type Product<B> = fn(FloatTensor<B>, FloatTensor<B>) -> FloatTensor<B>;

/// The point at which a derivative is taken: the forward's inputs and probabilities, with the query heads
/// of each group stacked as rows (`[batch · kv_heads, group · query_len, …]`).
#[derive(Debug)]
pub struct Point<B: Backend> {
    q: Tensor<B, 3>,
    k: Tensor<B, 3>,
    v: Tensor<B, 3>,
    probabilities: Tensor<B, 3>,
    heads: Heads,
    scale: f64,
    dtype: DType,
    product: Product<B>,
}

impl<B: Backend> Point<B> {
    /// The forward's inputs and `lse`; shapes as in [`AttentionBackend`](crate::AttentionBackend).
    pub fn new(
        [q, k, v]: [Tensor<B, 4>; 3],
        lse: Tensor<B, 4>,
        scale: f64,
        product: Product<B>,
    ) -> Self {
        let dtype = q.dtype();
        let heads = Heads::of(&q, &k);
        let [q, k, v, lse] = [q, k, v, lse].map(|x| heads.stack(widen(x)));
        let scores = heads.scores(q.clone(), k.clone(), scale, product);
        let probabilities = (scores - lse).exp();
        Self {
            q,
            k,
            v,
            probabilities,
            heads,
            scale,
            dtype,
            product,
        }
    }

    fn product(&self, lhs: &Tensor<B, 3>, rhs: &Tensor<B, 3>) -> Tensor<B, 3> {
        of_pairs(self.product, lhs.clone(), rhs.clone())
    }

    /// Gradients to q, k and v as these are.
    fn unstacked(&self, [q, k, v]: [Tensor<B, 3>; 3]) -> [Tensor<B, 4>; 3] {
        let heads = self.heads;
        [heads.queries(q), heads.keys(k), heads.keys(v)].map(|x| cast(x, self.dtype))
    }
}

fn of_pairs<B: Backend>(product: Product<B>, lhs: Tensor<B, 3>, rhs: Tensor<B, 3>) -> Tensor<B, 3> {
    lift(product(lower(lhs), lower(rhs)))
}

/// Returns `(out, lse)`; see [`AttentionBackend::causal_attention`](crate::AttentionBackend::causal_attention).
pub fn forward<B: Backend>(
    [q, k, v]: [Tensor<B, 4>; 3],
    scale: f64,
    product: Product<B>,
) -> (Tensor<B, 4>, Tensor<B, 4>) {
    let dtype = q.dtype();
    let heads = Heads::of(&q, &k);
    let [q, k, v] = [q, k, v].map(|x| heads.stack(widen(x)));
    let scores = heads.scores(q, k, scale, product);
    let max = scores.clone().max_dim(2);
    let weights = (scores - max.clone()).exp();
    let denominator = weights.clone().sum_dim(2);
    let out = of_pairs(product, weights, v) / denominator.clone();
    let lse = max + denominator.log();
    (cast(heads.queries(out), dtype), heads.queries(lse))
}

/// Returns `[dq, dk, dv]`; see
/// [`AttentionBackend::causal_attention_backward`](crate::AttentionBackend::causal_attention_backward).
pub fn backward<B: Backend>(at: Point<B>, grad_out: Tensor<B, 4>) -> [Tensor<B, 4>; 3] {
    let grad_out = at.heads.stack(widen(grad_out));
    let p = &at.probabilities;
    let dp = at.product(&grad_out, &at.v.clone().transpose());
    let grad_scores = centred(p, dp).mul_scalar(at.scale);
    let dq = at.product(&grad_scores, &at.k);
    let dk = at.product(&grad_scores.transpose(), &at.q);
    let dv = at.product(&p.clone().transpose(), &grad_out);
    at.unstacked([dq, dk, dv])
}

/// Returns the gradients to `[grad_out, q, k, v]`; see
/// [`AttentionBackend::causal_attention_double_backward`](crate::AttentionBackend::causal_attention_double_backward).
pub fn double_backward<B: Backend>(
    at: Point<B>,
    grad_out: Tensor<B, 4>,
    cotangents: [Option<Tensor<B, 4>>; 3],
) -> [Tensor<B, 4>; 4] {
    let (s, heads) = (at.scale, at.heads);
    let p = &at.probabilities;
    let grad_out = heads.stack(widen(grad_out));
    let [a, b, c] = cotangents.map(|x| x.map(|x| heads.stack(widen(x))));
    let [a, b] = [a, b].map(|x| x.map(|x| x.mul_scalar(s)));
    let all = |to_grad_out, to_inputs| {
        let to_grad_out = cast(heads.queries(to_grad_out), at.dtype);
        let [to_q, to_k, to_v] = at.unstacked(to_inputs);
        [to_grad_out, to_q, to_k, to_v]
    };

    // W, the cotangent of dS, is absent when only dV was used.
    let from_a = a.as_ref().map(|a| at.product(a, &at.k.clone().transpose()));
    let from_b = b
        .as_ref()
        .map(|b| at.product(&at.q, &b.clone().transpose()));
    let from_c = c
        .as_ref()
        .map(|c| at.product(&grad_out, &c.clone().transpose()));
    let w = match (from_a, from_b) {
        (Some(from_a), from_b) => Some(plus(from_a, from_b)),
        (None, from_b) => from_b,
    };
    let Some(w) = w else {
        let none = [&at.q, &at.k, &at.v].map(Tensor::zeros_like);
        let Some((c, g)) = c.zip(from_c) else {
            return all(grad_out.zeros_like(), none);
        };
        let [_, _, to_v] = none;
        let s_hat = centred(p, g).mul_scalar(s);
        let to_q = at.product(&s_hat, &at.k);
        let to_k = at.product(&s_hat.transpose(), &at.q);
        return all(at.product(p, &c), [to_q, to_k, to_v]);
    };

    let dp = at.product(&grad_out, &at.v.clone().transpose());
    let centred_dp = dp.clone() - (dp.clone() * p.clone()).sum_dim(2);
    let beta = (w.clone() * p.clone()).sum_dim(2);
    let w_hat = p.clone() * (w.clone() - beta.clone());
    let g = w * centred_dp.clone() - beta * dp;
    let s_hat = centred(p, plus(g, from_c)).mul_scalar(s);
    let ds = p.clone() * centred_dp;

    let to_grad_out = plus(at.product(&w_hat, &at.v), c.map(|c| at.product(p, &c)));
    let to_q = plus(at.product(&s_hat, &at.k), b.map(|b| at.product(&ds, &b)));
    let to_k = plus(
        at.product(&s_hat.transpose(), &at.q),
        a.map(|a| at.product(&ds.transpose(), &a)),
    );
    let to_v = at.product(&w_hat.transpose(), &grad_out);
    all(to_grad_out, [to_q, to_k, to_v])
}

/// `P∘(X − rowsum(X∘P))`: the softmax's Jacobian applied to `X`.
fn centred<B: Backend>(p: &Tensor<B, 3>, x: Tensor<B, 3>) -> Tensor<B, 3> {
    let mean = (x.clone() * p.clone()).sum_dim(2);
    p.clone() * (x - mean)
}

fn plus<B: Backend>(x: Tensor<B, 3>, y: Option<Tensor<B, 3>>) -> Tensor<B, 3> {
    match y {
        Some(y) => x + y,
        None => x,
    }
}

/// How query heads stack into the rows of their key/value head.
#[derive(Clone, Copy, Debug)]
struct Heads {
    batch: usize,
    heads: usize,
    kv_heads: usize,
    query_len: usize,
    key_len: usize,
}

impl Heads {
    fn of<B: Backend>(q: &Tensor<B, 4>, k: &Tensor<B, 4>) -> Self {
        let ([batch, heads, query_len, _], [_, kv_heads, key_len, _]) = (q.dims(), k.dims());
        Self {
            batch,
            heads,
            kv_heads,
            query_len,
            key_len,
        }
    }

    /// `[batch, heads, len, dim]` → `[batch · kv_heads, group · len, dim]`, where a key/value head is a group of its own.
    fn stack<B: Backend>(&self, x: Tensor<B, 4>) -> Tensor<B, 3> {
        let [batch, heads, len, dim] = x.dims();
        x.reshape([batch * self.kv_heads, heads / self.kv_heads * len, dim])
    }

    /// The inverse of [`stack`](Self::stack) for what belongs to the queries.
    fn queries<B: Backend>(&self, x: Tensor<B, 3>) -> Tensor<B, 4> {
        let dim = x.dims()[2];
        x.reshape([self.batch, self.heads, self.query_len, dim])
    }

    /// The inverse of [`stack`](Self::stack) for what belongs to the keys.
    fn keys<B: Backend>(&self, x: Tensor<B, 3>) -> Tensor<B, 4> {
        let dim = x.dims()[2];
        x.reshape([self.batch, self.kv_heads, self.key_len, dim])
    }

    /// `scale · Q Kᵀ` for stacked queries; scores of masked keys are about −1e30.
    fn scores<B: Backend>(
        &self,
        q: Tensor<B, 3>,
        k: Tensor<B, 3>,
        scale: f64,
        product: Product<B>,
    ) -> Tensor<B, 3> {
        let [pairs, rows, _] = q.dims();
        let (group, key_len) = (self.heads / self.kv_heads, self.key_len);
        let offset = (key_len - self.query_len) as i64;
        let (device, dtype) = (q.device(), q.dtype());
        // Finite, because WGSL has no literal for −∞.
        let hidden = -1e30;
        let shape = [self.query_len, key_len];
        let mask = Tensor::<B, 2, Bool>::tril_mask(shape, offset, &device);
        let mask = Tensor::zeros(shape, (&device, dtype)).mask_fill(mask, hidden);
        let mask: Tensor<B, 2> = mask.repeat_dim(0, group);
        // One row per head, so that the mask broadcasts along the first dimension only.
        let row = rows * key_len;
        let scores = of_pairs(product, q, k.transpose()).mul_scalar(scale);
        let scores = scores.reshape([pairs, row]) + mask.reshape([1, row]);
        scores.reshape([pairs, rows, key_len])
    }
}
