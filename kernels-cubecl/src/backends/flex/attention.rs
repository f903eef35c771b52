//! Causal attention and its derivatives by the formulas of the [`mod@reference`](crate::reference).
//!
//! A thread owns a key/value head and the query heads that share it. It goes through their queries in
//! blocks of rows, last block first: the last sees all keys, so that the sums over rows (dK, dV) begin
//! with a store. A block holds all keys that its rows see, so that the sums over keys (δ, β, r) are
//! complete within it.

use burn::tensor::DType;
use burn_flex::{Flex, FlexTensor};
use rayon::prelude::*;

use super::memory::{Heads, Order, Output, readable, with_scratch};
use super::product::{Product, Rows, TILE, Triangle};
use super::vector::{LANES, dispatch, dot, exp, max, sum, update, update_by};
use crate::attention::{reference_backward, reference_double_backward, reference_forward};
use crate::{Attention, AttentionBackend};

/// Rows of a block: the block's matrices stay in the second-level cache.
const BLOCK: usize = 48;

impl AttentionBackend for Flex {
    fn causal_attention(
        q: FlexTensor,
        k: FlexTensor,
        v: FlexTensor,
        scale: f64,
    ) -> (FlexTensor, FlexTensor) {
        match fused(&q) {
            true => forward([q, k, v], scale as f32),
            false => reference_forward::<Self>([q, k, v], scale),
        }
    }

    fn causal_attention_backward(
        q: FlexTensor,
        k: FlexTensor,
        v: FlexTensor,
        _out: FlexTensor,
        lse: FlexTensor,
        grad_out: FlexTensor,
        scale: f64,
    ) -> [FlexTensor; 3] {
        match fused(&q) {
            true => backward([q, k, v], lse, grad_out, scale as f32),
            false => reference_backward::<Self>([q, k, v], lse, grad_out, scale),
        }
    }

    fn causal_attention_double_backward(
        q: FlexTensor,
        k: FlexTensor,
        v: FlexTensor,
        _out: FlexTensor,
        lse: FlexTensor,
        grad_out: FlexTensor,
        cotangents: [Option<FlexTensor>; 3],
        scale: f64,
    ) -> [FlexTensor; 4] {
        match fused(&q) && cotangents.iter().any(Option::is_some) {
            true => double_backward([q, k, v], lse, grad_out, cotangents, scale as f32),
            false => reference_double_backward::<Self>([q, k, v], lse, grad_out, cotangents, scale),
        }
    }
}

fn fused(q: &FlexTensor) -> bool {
    q.dtype() == DType::F32 && crate::attention() == Attention::Fused
}

fn forward(inputs: [FlexTensor; 3], scale: f32) -> (FlexTensor, FlexTensor) {
    let sizes = Sizes::of(&inputs);
    let inputs = inputs.map(readable);
    let [q, k, v] = inputs.each_ref().map(Heads::of);
    let (batch, heads, len) = (sizes.batch, sizes.heads, sizes.query_len);
    let out = sizes.like_q(Order::Rows);
    let lse = Output::new([batch, heads, len, 1], Order::Heads);
    sizes.for_each_unit(2, |unit| {
        let parts = [sizes.transposed(), sizes.block(), sizes.queries(), len];
        with_scratch(parts, |[kt, p, out_rows, lse_rows]| {
            let [k, v] = [&k, &v].map(|x| unit.keys(x));
            sizes.transpose(k, kt);
            for head in unit.heads() {
                let q = q.get(unit.batch, head);
                for block in sizes.blocks() {
                    block.scores(scale, q, kt, p, false);
                    dispatch(
                        #[inline(always)]
                        || {
                            for i in 0..block.rows {
                                let row = block.row(p, i, f32::NEG_INFINITY);
                                let largest = max(row);
                                update(row, |x| exp(x - largest));
                                let total = sum(row);
                                let share = 1.0 / total;
                                update(row, |x| share * x);
                                lse_rows[block.first + i] = largest + total.ln();
                            }
                        },
                    );
                    block.over_keys(p, v, out_rows, false);
                }
                // SAFETY: one unit has this head.
                unsafe {
                    out.write(unit.batch, head, &out_rows[..sizes.queries()]);
                    lse.write(unit.batch, head, &lse_rows[..len]);
                }
            }
        });
    });
    // SAFETY: all units have written their heads.
    unsafe { (out.finish(), lse.finish()) }
}

fn backward(
    inputs: [FlexTensor; 3],
    lse: FlexTensor,
    grad_out: FlexTensor,
    scale: f32,
) -> [FlexTensor; 3] {
    let sizes = Sizes::of(&inputs);
    let [q, k, v] = inputs;
    let inputs = [q, k, v, lse, grad_out].map(readable);
    let [q, k, v, lse, grad_out] = inputs.each_ref().map(Heads::of);
    let (dq, dk, dv) = (sizes.like_q(Order::Heads), sizes.like_k(), sizes.like_k());
    sizes.for_each_unit(5, |unit| {
        let [t, block] = [sizes.transposed(), sizes.block()];
        let [queries, keys] = [sizes.queries(), sizes.keys()];
        let parts = [t, t, block, block, queries, keys, keys];
        with_scratch(parts, |[kt, vt, p, ds, dq_rows, dk_rows, dv_rows]| {
            let [k, v] = [&k, &v].map(|x| unit.keys(x));
            sizes.transpose(k, kt);
            sizes.transpose(v, vt);
            let mut begun = false;
            for head in unit.heads() {
                let [q, lse, grad_out] = [&q, &lse, &grad_out].map(|x| x.get(unit.batch, head));
                for block in sizes.blocks() {
                    block.scores(scale, q, kt, p, false);
                    block.scores(1.0, grad_out, vt, ds, false);
                    dispatch(
                        #[inline(always)]
                        || {
                            for i in 0..block.rows {
                                let p = block.probabilities(p, i, lse);
                                let dp = block.row(ds, i, 0.0);
                                let delta = dot(p, dp);
                                update_by(dp, p, |dp, p| scale * p * (dp - delta));
                            }
                        },
                    );
                    block.over_keys(ds, k, dq_rows, false);
                    block.over_queries(ds, q, dk_rows, begun);
                    block.over_queries(p, grad_out, dv_rows, begun);
                    begun = true;
                }
                // SAFETY: one unit has this head.
                unsafe { dq.write(unit.batch, head, &dq_rows[..queries]) };
            }
            // SAFETY: one unit has this head.
            unsafe {
                dk.write(unit.batch, unit.kv_head, &dk_rows[..keys]);
                dv.write(unit.batch, unit.kv_head, &dv_rows[..keys]);
            }
        });
    });
    // SAFETY: all units have written their heads.
    [dq, dk, dv].map(|x| unsafe { x.finish() })
}

fn double_backward(
    inputs: [FlexTensor; 3],
    lse: FlexTensor,
    grad_out: FlexTensor,
    cotangents: [Option<FlexTensor>; 3],
    scale: f32,
) -> [FlexTensor; 4] {
    let sizes = Sizes::of(&inputs);
    let [q, k, v] = inputs;
    let inputs = [q, k, v, lse, grad_out].map(readable);
    let [q, k, v, lse, grad_out] = inputs.each_ref().map(Heads::of);
    let cotangents = cotangents.map(|x| x.map(readable));
    let [a, b, c] = cotangents.each_ref().map(|x| x.as_ref().map(Heads::of));
    // W, the cotangent of dS, is absent when only dV was used.
    let has_w = a.is_some() || b.is_some();
    let [to_grad_out, to_q] = [Order::Rows, Order::Heads].map(|order| sizes.like_q(order));
    let (to_k, to_v) = (sizes.like_k(), sizes.like_k());
    sizes.for_each_unit(12, |unit| {
        let [t, block] = [sizes.transposed(), sizes.block()];
        let [queries, keys] = [sizes.queries(), sizes.keys()];
        let parts = [
            t, t, t, t, block, block, block, block, queries, queries, keys, keys,
        ];
        with_scratch(parts, |parts| {
            let [kt, vt, bt, ct, p, ds, w, g, do_rows, q_rows, k_rows, v_rows] = parts;
            let [k, v] = [&k, &v].map(|x| unit.keys(x));
            let [b, c] = [&b, &c].map(|x| x.as_ref().map(|x| unit.keys(x)));
            sizes.transpose(k, kt);
            sizes.transpose(v, vt);
            b.inspect(|b| sizes.transpose(*b, bt));
            c.inspect(|c| sizes.transpose(*c, ct));
            if !has_w {
                v_rows.fill(0.0);
            }
            let mut begun = false;
            for head in unit.heads() {
                let [q, lse, grad_out] = [&q, &lse, &grad_out].map(|x| x.get(unit.batch, head));
                let a = a.as_ref().map(|a| a.get(unit.batch, head));
                for block in sizes.blocks() {
                    block.scores(scale, q, kt, p, false);
                    if let Some(a) = a {
                        block.scores(scale, a, kt, w, false);
                    }
                    if b.is_some() {
                        block.scores(scale, q, bt, w, a.is_some());
                    }
                    if has_w {
                        block.scores(1.0, grad_out, vt, ds, false);
                    }
                    match c {
                        Some(_) => block.scores(1.0, grad_out, ct, g, false),
                        None => g.fill(0.0),
                    }
                    dispatch(
                        #[inline(always)]
                        || {
                            for i in 0..block.rows {
                                let p = block.probabilities(p, i, lse);
                                let g = block.row(g, i, 0.0);
                                if has_w {
                                    let dp = block.row(ds, i, 0.0);
                                    let w = block.row(w, i, 0.0);
                                    second_order_terms(scale, p, dp, w, g);
                                }
                                let r = dot(p, g);
                                update_by(g, p, |g, p| scale * p * (g - r));
                            }
                        },
                    );
                    block.over_keys(g, k, q_rows, false);
                    block.over_queries(g, q, k_rows, begun);
                    if let Some(c) = c {
                        block.over_keys(p, c, do_rows, false);
                    }
                    if has_w {
                        block.over_keys(w, v, do_rows, c.is_some());
                        block.over_queries(w, grad_out, v_rows, begun);
                    }
                    if let Some(b) = b {
                        block.over_keys(ds, b, q_rows, true);
                    }
                    if let Some(a) = a {
                        block.over_queries(ds, a, k_rows, true);
                    }
                    begun = true;
                }
                // SAFETY: one unit has this head.
                unsafe {
                    to_grad_out.write(unit.batch, head, &do_rows[..queries]);
                    to_q.write(unit.batch, head, &q_rows[..queries]);
                }
            }
            // SAFETY: one unit has this head.
            unsafe {
                to_k.write(unit.batch, unit.kv_head, &k_rows[..keys]);
                to_v.write(unit.batch, unit.kv_head, &v_rows[..keys]);
            }
        });
    });
    // SAFETY: all units have written their heads.
    [to_grad_out, to_q, to_k, to_v].map(|x| unsafe { x.finish() })
}

/// One row of the double backward: `g` becomes `g + W∘(dP − δ) − β dP`, `w` becomes `Ŵ`, and `dp`
/// becomes `s dS`.
#[inline(always)]
fn second_order_terms(scale: f32, p: &[f32], dp: &mut [f32], w: &mut [f32], g: &mut [f32]) {
    let (delta, beta) = (dot(p, dp), dot(p, w));
    let (p, _) = p.as_chunks::<LANES>();
    let [(dp, _), (w, _), (g, _)] = [dp, w, g].map(|x| x.as_chunks_mut::<LANES>());
    for (((p, dp), w), g) in p.iter().zip(dp).zip(w).zip(g) {
        for l in 0..LANES {
            let centred = dp[l] - delta;
            g[l] += w[l] * centred - beta * dp[l];
            w[l] = p[l] * (w[l] - beta);
            dp[l] = scale * p[l] * centred;
        }
    }
}

/// The sizes of an attention.
struct Sizes {
    batch: usize,
    heads: usize,
    kv_heads: usize,
    query_len: usize,
    key_len: usize,
    dim: usize,
    /// Numbers from a row over keys to the next.
    stride: usize,
}

impl Sizes {
    fn of([q, k, _]: &[FlexTensor; 3]) -> Self {
        let (q, k) = (q.layout().shape(), k.layout().shape());
        Self {
            batch: q[0],
            heads: q[1],
            kv_heads: k[1],
            query_len: q[2],
            key_len: k[2],
            dim: q[3],
            stride: k[2].next_multiple_of(LANES),
        }
    }

    fn like_q(&self, order: Order) -> Output {
        Output::new([self.batch, self.heads, self.query_len, self.dim], order)
    }

    fn like_k(&self) -> Output {
        let shape = [self.batch, self.kv_heads, self.key_len, self.dim];
        Output::new(shape, Order::Heads)
    }

    /// Numbers of a query head's matrix.
    fn queries(&self) -> usize {
        self.query_len * self.dim
    }

    /// Numbers of a key/value head's matrix.
    fn keys(&self) -> usize {
        self.key_len * self.dim
    }

    /// Numbers of a transposed key/value head, `[dim, stride]`.
    fn transposed(&self) -> usize {
        self.dim * self.stride
    }

    /// Numbers of a block of rows over the keys.
    fn block(&self) -> usize {
        BLOCK.min(self.query_len) * self.stride
    }

    fn transpose(&self, x: Rows, to: &mut [f32]) {
        x.transpose([self.key_len, self.dim], to, self.stride);
    }

    /// Runs `f` on every key/value head. `products` tells how much work that is.
    fn for_each_unit(&self, products: usize, f: impl Fn(Unit) + Sync) {
        const WORTH_A_THREAD: usize = 1 << 18;
        assert!(self.heads.is_multiple_of(self.kv_heads));
        let group = self.heads / self.kv_heads;
        let work = products * group * self.query_len * self.key_len * self.dim;
        (0..self.batch * self.kv_heads)
            .into_par_iter()
            .with_min_len(WORTH_A_THREAD.div_ceil(work))
            .for_each(|index| {
                f(Unit {
                    batch: index / self.kv_heads,
                    kv_head: index % self.kv_heads,
                    group,
                });
            });
    }

    /// The blocks of rows, last first.
    fn blocks(&self) -> impl Iterator<Item = Block> {
        let first_rows = (0..self.query_len).step_by(BLOCK).rev();
        first_rows.map(|first| Block {
            first,
            rows: BLOCK.min(self.query_len - first),
            diagonal: first + self.key_len - self.query_len,
            dim: self.dim,
            stride: self.stride,
        })
    }
}

/// A key/value head and the query heads that share it.
struct Unit {
    batch: usize,
    kv_head: usize,
    group: usize,
}

impl Unit {
    fn heads(&self) -> impl Iterator<Item = usize> {
        (0..self.group).map(|i| self.kv_head * self.group + i)
    }

    fn keys<'a>(&self, x: &Heads<'a>) -> Rows<'a> {
        x.get(self.batch, self.kv_head)
    }
}

/// Consecutive queries; the `i`th sees the keys up to `i + diagonal`. Its matrices are rows over the
/// keys, `[rows, stride]`.
struct Block {
    first: usize,
    rows: usize,
    diagonal: usize,
    dim: usize,
    stride: usize,
}

impl Block {
    /// Keys that its last row sees.
    fn keys(&self) -> usize {
        self.rows + self.diagonal
    }

    /// `to (+)= alpha · x yᵀ`, where `x` is a query head and `yt` a transposed key/value head.
    fn scores(&self, alpha: f32, x: Rows, yt: &[f32], to: &mut [f32], accumulate: bool) {
        let product = Product {
            size: [self.rows, self.keys(), self.dim],
            a: x.from(self.first),
            b: Rows::new(yt, self.stride),
            c: to,
            c_stride: self.stride,
            alpha,
            accumulate,
            triangle: Triangle::Result,
            diagonal: self.diagonal,
        };
        product.run();
    }

    /// The block's rows of a query head: `to (+)= matrix · y` with a key/value head `y`.
    fn over_keys(&self, matrix: &[f32], y: Rows, to: &mut [f32], accumulate: bool) {
        let product = Product {
            size: [self.rows, self.dim, self.keys()],
            a: Rows::new(matrix, self.stride),
            b: y,
            c: &mut to[self.first * self.dim..],
            c_stride: self.dim,
            alpha: 1.0,
            accumulate,
            triangle: Triangle::Left,
            diagonal: self.diagonal,
        };
        product.run();
    }

    /// A key/value head: `to (+)= matrixᵀ · x` with the block's rows of a query head `x`.
    fn over_queries(&self, matrix: &[f32], x: Rows, to: &mut [f32], accumulate: bool) {
        let product = Product {
            size: [self.keys(), self.dim, self.rows],
            a: Rows::new(matrix, self.stride),
            b: x.from(self.first),
            c: to,
            c_stride: self.dim,
            alpha: 1.0,
            accumulate,
            triangle: Triangle::LeftTransposed,
            diagonal: self.diagonal,
        };
        product.run();
    }

    /// What row `i` sees, filled up to whole lanes with `hidden`. Zeros follow for what reads a tile of
    /// rows as far as the last of them sees.
    #[inline(always)]
    fn row<'a>(&self, matrix: &'a mut [f32], i: usize, hidden: f32) -> &'a mut [f32] {
        const { assert!(TILE <= LANES) };
        let (row, _) = matrix[i * self.stride..][..self.stride].as_chunks_mut::<LANES>();
        let visible = i + self.diagonal + 1;
        let (seen, beyond) = row.split_at_mut(visible.div_ceil(LANES));
        if let Some(next) = beyond.first_mut() {
            *next = [0.0; LANES];
        }
        if let Some(last) = seen.last_mut() {
            let kept = (visible - 1) % LANES + 1;
            *last = std::array::from_fn(|l| if l < kept { last[l] } else { hidden });
        }
        seen.as_flattened_mut()
    }

    /// Turns row `i` from scores into probabilities.
    #[inline(always)]
    fn probabilities<'a>(&self, scores: &'a mut [f32], i: usize, lse: Rows) -> &'a mut [f32] {
        let row = self.row(scores, i, f32::NEG_INFINITY);
        let lse = lse.from(self.first + i).data[0];
        update(row, |x| exp(x - lse));
        row
    }
}
