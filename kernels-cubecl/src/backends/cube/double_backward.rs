//! The gradients to dO, Q, K and V of `⟨a, dQ⟩ + ⟨b, dK⟩ + ⟨c, dV⟩`.
//!
//! One kernel computes the row sums `δ`, `β` and `r`, one the gradients of queries (dO and Q), one the
//! gradients of keys (K and V). The formulas are those of
//! [`reference::attention`](mod@crate::reference::attention).

use cubecl::prelude::*;

use super::backward::{Inputs, Present, Scores, row_dots, scores};
use super::shared::*;
use super::sums::*;
use super::tiles::*;

/// Each cube computes a tile of queries: `δ = rowsum(dO∘O)`, `β = rowsum(W∘P)` and `r = rowsum(G∘P)`, one
/// after the other in `sums`, each `[heads, query_len]`.
///
/// `r` needs no second pass: `rowsum(dP∘P)` is `δ`, so `r = rowsum((dO cᵀ + W∘(dP − δ))∘P) − βδ`.
#[cube(launch_unchecked)]
pub fn double_backward_sums<F: Float>(
    inputs: &Inputs<F>,
    out: &Array<F>,
    sums: &mut Array<f32>,
    sizes: &Sizes,
    #[comptime] present: Present,
    #[comptime] tiles: Tiles,
    #[define(F)] _dtype: StorageType,
) {
    let head = head();
    if head >= sizes.heads {
        terminate!();
    }
    let mut shared = SharedTiles::<F>::new(tiles);
    let queries = own_queries(head, sizes, tiles);
    let delta = row_dots::<F>(&inputs.grad_out, out, &mut shared, queries, tiles);

    let mut beta = Quad::new(0.0);
    let mut r = Quad::new(0.0);
    for tile in 0..key_tiles(queries, sizes, tiles) {
        let keys = other_keys(head, tile, sizes, tiles);
        let mut scores = scores::<F>(
            inputs,
            &mut shared,
            queries,
            keys,
            sizes.scale,
            present,
            Own::Queries,
            tiles,
        );
        #[unroll]
        for i in 0..4usize {
            let centred = scores.dp[i] - Quad::new(delta[i]);
            scores.g[i] = scores.p[i] * (scores.g[i] + scores.w[i] * centred);
            scores.w[i] *= scores.p[i];
        }
        beta += row_sums(&scores.w);
        r += row_sums(&scores.g);
    }
    let beta = shared.across(beta, false, tiles);
    let r = shared.across(r, false, tiles) - beta * delta;
    let rows = sizes.heads * sizes.query_len;
    write_quad(sums, queries, 0usize, delta, tiles);
    write_quad(sums, queries, rows, beta, tiles);
    write_quad(sums, queries, 2 * rows, r, tiles);
}

/// Subtracts the row sums from the scores, in place:
/// `dP → dS = P∘(dP − δ)`, `W → Ŵ = P∘(W − β)`, `dO cᵀ → Ŝ = P∘(G − r)`.
#[cube]
fn centre(
    scores: &mut Scores,
    sums: &Array<f32>,
    queries: Rows,
    rows: usize,
    #[comptime] own: Own,
    #[comptime] tiles: Tiles,
) {
    let lane = query_lane(own, tiles);
    let delta = read_quad(sums, queries, lane, 0usize);
    let beta = read_quad(sums, queries, lane, rows);
    let r = read_quad(sums, queries, lane, 2 * rows);
    #[unroll]
    for i in 0..4usize {
        let (p, dp, w) = (scores.p[i], scores.dp[i], scores.w[i]);
        let beta = per_query(beta, i, own);
        let centred = dp - per_query(delta, i, own);
        let g = scores.g[i] + w * centred - beta * dp;
        scores.dp[i] = p * centred;
        scores.w[i] = p * (w - beta);
        scores.g[i] = p * (g - per_query(r, i, own));
    }
}

/// Each cube computes a tile of queries: to dO `P c + Ŵ V`, to Q `s (dS b + Ŝ K)`.
#[cube(launch_unchecked)]
pub fn double_backward_queries<F: Float>(
    inputs: &Inputs<F>,
    sums: &Array<f32>,
    to_grad_out: &mut Array<F>,
    to_q: &mut Array<F>,
    sizes: &Sizes,
    #[comptime] present: Present,
    #[comptime] tiles: Tiles,
    #[define(F)] _dtype: StorageType,
) {
    let head = head();
    if head >= sizes.heads {
        terminate!();
    }
    let mut shared = SharedTiles::<F>::new(tiles);
    let queries = own_queries(head, sizes, tiles);

    let mut acc_grad_out = Sums::output(tiles);
    let mut acc_q = Sums::output(tiles);
    for tile in 0..key_tiles(queries, sizes, tiles) {
        let keys = other_keys(head, tile, sizes, tiles);
        let mut scores = scores::<F>(
            inputs,
            &mut shared,
            queries,
            keys,
            sizes.scale,
            present,
            Own::Queries,
            tiles,
        );
        let rows = sizes.heads * sizes.query_len;
        centre(&mut scores, sums, queries, rows, Own::Queries, tiles);
        if comptime!(present.c) {
            shared.put_weights(&scores.p, tiles);
            shared.add_product(&mut acc_grad_out, &inputs.c, keys, tiles);
        }
        if comptime!(present.w()) {
            shared.put_weights(&scores.w, tiles);
            shared.add_product(&mut acc_grad_out, &inputs.v, keys, tiles);
        }
        if comptime!(present.b) {
            shared.put_weights(&scores.dp, tiles);
            shared.add_product(&mut acc_q, &inputs.b, keys, tiles);
        }
        shared.put_weights(&scores.g, tiles);
        shared.add_product(&mut acc_q, &inputs.k, keys, tiles);
    }
    let any = &inputs.q;
    shared.write(to_grad_out, queries, &acc_grad_out, 1.0, any, false, tiles);
    shared.write(to_q, queries, &acc_q, sizes.scale, any, false, tiles);
}

/// Each cube computes a tile of keys: to K `s (dSᵀ a + Ŝᵀ Q)`, to V `Ŵᵀ dO`, summed over the query heads of
/// the group.
#[cube(launch_unchecked)]
pub fn double_backward_keys<F: Float>(
    inputs: &Inputs<F>,
    sums: &Array<f32>,
    to_k: &mut Array<F>,
    to_v: &mut Array<F>,
    sizes: &Sizes,
    #[comptime] present: Present,
    #[comptime] tiles: Tiles,
    #[define(F)] _dtype: StorageType,
) {
    let head = head();
    if head >= sizes.heads {
        terminate!();
    }
    let mut shared = SharedTiles::<F>::new(tiles);
    let side = comptime!(tiles.side);
    let keys = own_keys(head, sizes, tiles);

    let mut acc_k = Sums::output(tiles);
    let mut acc_v = Sums::output(tiles);
    let first = first_query_tile(keys, sizes, tiles);
    for member in 0..sizes.group {
        for tile in first..sizes.query_len.div_ceil(side) {
            let queries = query_rows(head * sizes.group + member, tile * side, sizes);
            let mut scores = scores::<F>(
                inputs,
                &mut shared,
                queries,
                keys,
                sizes.scale,
                present,
                Own::Keys,
                tiles,
            );
            let rows = sizes.heads * sizes.group * sizes.query_len;
            centre(&mut scores, sums, queries, rows, Own::Keys, tiles);
            if comptime!(present.w()) {
                shared.put_weights(&scores.w, tiles);
                shared.add_product(&mut acc_v, &inputs.grad_out, queries, tiles);
            }
            if comptime!(present.a) {
                shared.put_weights(&scores.dp, tiles);
                shared.add_product(&mut acc_k, &inputs.a, queries, tiles);
            }
            shared.put_weights(&scores.g, tiles);
            shared.add_product(&mut acc_k, &inputs.q, queries, tiles);
        }
    }
    let any = &inputs.k;
    shared.write(to_k, keys, &acc_k, sizes.scale, any, false, tiles);
    shared.write(to_v, keys, &acc_v, 1.0, any, false, tiles);
}
