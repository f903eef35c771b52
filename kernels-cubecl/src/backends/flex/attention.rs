//! The Flex implementation of causal attention, by the formulas of
//! [`reference::attention`](mod@crate::reference::attention).
//!
//! One task computes a key/value head and the query heads that share it. It processes their queries in
//! blocks of rows, last block first: the last block attends to all keys, so that the sums over queries (dK,
//! dV) start with a store. A block includes all keys that its rows attend to, so that the sums over keys (δ,
//! β, r) are complete within it.

use burn::tensor::DType;
use burn::tensor::ops::FloatTensorOps;
use burn_flex::{Flex, FlexTensor};

use super::blocks::Sizes;
use super::memory::{Heads, Output, readable, with_scratch};
use super::vector::{LANES, dispatch, dot, exp, max, sum, update, update_by};
use crate::reference::primitives;
use crate::{Attention, AttentionBackend, LayerBackend};

impl AttentionBackend for Flex {
    fn causal_attention(
        q: FlexTensor,
        k: FlexTensor,
        v: FlexTensor,
        scale: f64,
    ) -> (FlexTensor, FlexTensor) {
        match fused(&q) {
            true => forward([q, k, v], scale as f32),
            false => primitives::causal_attention::<Self>([q, k, v], scale, Self::float_matmul),
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
        onto: [Option<FlexTensor>; 3],
    ) -> [FlexTensor; 3] {
        let fused = fused(&q);
        let inputs = [q, k, v];
        if !fused {
            let product = Self::float_matmul;
            return primitives::causal_attention_backward::<Self>(
                inputs, lse, grad_out, scale, onto, product,
            );
        }
        let gradients = backward(inputs, lse, grad_out, scale as f32);
        primitives::each_added(onto, gradients, Flex::add)
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
            false => primitives::causal_attention_double_backward::<Self>(
                [q, k, v],
                lse,
                grad_out,
                cotangents,
                scale,
                Self::float_matmul,
            ),
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
    let out = sizes.like_q();
    let lse = Output::new([batch, heads, len, 1]);
    sizes.for_each_task(2, |task| {
        let parts = [sizes.transposed(), sizes.block(), sizes.queries(), len];
        with_scratch(parts, |[kt, p, out_rows, lse_rows]| {
            let [k, v] = [&k, &v].map(|x| task.keys(x));
            sizes.transpose(k, kt);
            for head in task.heads() {
                let q = q.get(task.batch, head);
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
                // SAFETY: only this task writes the head.
                unsafe {
                    out.write(task.batch, head, &out_rows[..sizes.queries()]);
                    lse.write(task.batch, head, &lse_rows[..len]);
                }
            }
        });
    });
    // SAFETY: the tasks have written all heads.
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
    let (dq, dk, dv) = (sizes.like_q(), sizes.like_k(), sizes.like_k());
    sizes.for_each_task(5, |task| {
        let [t, block] = [sizes.transposed(), sizes.block()];
        let [queries, keys] = [sizes.queries(), sizes.keys()];
        let parts = [t, t, block, block, queries, keys, keys];
        with_scratch(parts, |[kt, vt, p, ds, dq_rows, dk_rows, dv_rows]| {
            let [k, v] = [&k, &v].map(|x| task.keys(x));
            sizes.transpose(k, kt);
            sizes.transpose(v, vt);
            let mut begun = false;
            for head in task.heads() {
                let [q, lse, grad_out] = [&q, &lse, &grad_out].map(|x| x.get(task.batch, head));
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
                // SAFETY: only this task writes the head.
                unsafe { dq.write(task.batch, head, &dq_rows[..queries]) };
            }
            // SAFETY: only this task writes the head.
            unsafe {
                dk.write(task.batch, task.kv_head, &dk_rows[..keys]);
                dv.write(task.batch, task.kv_head, &dv_rows[..keys]);
            }
        });
    });
    // SAFETY: the tasks have written all heads.
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
    let (to_grad_out, to_q) = (sizes.like_q(), sizes.like_q());
    let (to_k, to_v) = (sizes.like_k(), sizes.like_k());
    sizes.for_each_task(12, |task| {
        let [t, block] = [sizes.transposed(), sizes.block()];
        let [queries, keys] = [sizes.queries(), sizes.keys()];
        let parts = [
            t, t, t, t, block, block, block, block, queries, queries, keys, keys,
        ];
        with_scratch(parts, |parts| {
            let [kt, vt, bt, ct, p, ds, w, g, do_rows, q_rows, k_rows, v_rows] = parts;
            let [k, v] = [&k, &v].map(|x| task.keys(x));
            let [b, c] = [&b, &c].map(|x| x.as_ref().map(|x| task.keys(x)));
            sizes.transpose(k, kt);
            sizes.transpose(v, vt);
            b.inspect(|b| sizes.transpose(*b, bt));
            c.inspect(|c| sizes.transpose(*c, ct));
            if !has_w {
                v_rows.fill(0.0);
            }
            let mut begun = false;
            for head in task.heads() {
                let [q, lse, grad_out] = [&q, &lse, &grad_out].map(|x| x.get(task.batch, head));
                let a = a.as_ref().map(|a| a.get(task.batch, head));
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
                // SAFETY: only this task writes the head.
                unsafe {
                    to_grad_out.write(task.batch, head, &do_rows[..queries]);
                    to_q.write(task.batch, head, &q_rows[..queries]);
                }
            }
            // SAFETY: only this task writes the head.
            unsafe {
                to_k.write(task.batch, task.kv_head, &k_rows[..keys]);
                to_v.write(task.batch, task.kv_head, &v_rows[..keys]);
            }
        });
    });
    // SAFETY: the tasks have written all heads.
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
