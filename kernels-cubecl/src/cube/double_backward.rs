//! The gradients to dO, Q, K and V of `⟨a, dQ⟩ + ⟨b, dK⟩ + ⟨c, dV⟩`.
//!
//! One kernel sums `δ`, `β` and `r` along the rows, one owns queries (dO and Q), one owns keys (K and
//! V). The formulas are those of [`reference`](crate::reference).

use cubecl::prelude::*;

use super::backward::{Inputs, Present, Scores, row_dots, scores};
use super::tiles::*;

/// Owns queries: `δ = rowsum(dO∘O)`, `β = rowsum(W∘P)` and `r = rowsum(G∘P)`, one after the other in
/// `sums`, each `[heads, query_len]`.
///
/// `r` needs no second walk: `rowsum(dP∘P)` is `δ`, so `r = rowsum((dO cᵀ + W∘(dP − δ))∘P) − βδ`.
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
    let mut stage = SharedMemory::<Quad>::new(comptime!(tiles.stage()));
    let mut weights = SharedMemory::<Quad>::new(comptime!(tiles.weights()));
    let queries = owned_queries(head, sizes, tiles);
    let delta = row_dots::<F>(&inputs.grad_out, out, &mut weights, queries, tiles);

    let mut beta = Quad::new(0.0);
    let mut r = Quad::new(0.0);
    for tile in 0..key_tiles(queries, sizes, tiles) {
        let first = tile * comptime!(tiles.side);
        let keys = Rows::new(head / sizes.group, first, sizes.key_len);
        let mut scores = scores::<F>(
            inputs,
            &mut stage,
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
    let beta = across(&mut weights, beta, false, tiles);
    let r = across(&mut weights, r, false, tiles) - beta * delta;
    let rows = sizes.heads * sizes.query_len;
    write_quad(sums, queries, 0usize, delta, tiles);
    write_quad(sums, queries, rows, beta, tiles);
    write_quad(sums, queries, 2 * rows, r, tiles);
}

/// What the rows' sums make of the scores, in place:
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
    let lane = if comptime!(own == Own::Queries) {
        own_lane(tiles)
    } else {
        other_lane(tiles)
    };
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

/// Owns queries: to dO `P c + Ŵ V`, to Q `s (dS b + Ŝ K)`.
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
    let mut stage = SharedMemory::<Quad>::new(comptime!(tiles.stage()));
    let mut weights = SharedMemory::<Quad>::new(comptime!(tiles.weights()));
    let queries = owned_queries(head, sizes, tiles);

    let mut acc_grad_out = zeros(comptime!(4 * tiles.spread()));
    let mut acc_q = zeros(comptime!(4 * tiles.spread()));
    for tile in 0..key_tiles(queries, sizes, tiles) {
        let first = tile * comptime!(tiles.side);
        let keys = Rows::new(head / sizes.group, first, sizes.key_len);
        let mut scores = scores::<F>(
            inputs,
            &mut stage,
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
            put_weights(&mut weights, &scores.p, tiles);
            add_product::<F>(
                &mut acc_grad_out,
                &weights,
                &mut stage,
                &inputs.c,
                keys,
                tiles,
            );
        }
        if comptime!(present.w()) {
            put_weights(&mut weights, &scores.w, tiles);
            add_product::<F>(
                &mut acc_grad_out,
                &weights,
                &mut stage,
                &inputs.v,
                keys,
                tiles,
            );
        }
        if comptime!(present.b) {
            put_weights(&mut weights, &scores.dp, tiles);
            add_product::<F>(&mut acc_q, &weights, &mut stage, &inputs.b, keys, tiles);
        }
        put_weights(&mut weights, &scores.g, tiles);
        add_product::<F>(&mut acc_q, &weights, &mut stage, &inputs.k, keys, tiles);
    }
    write_rows::<F>(to_grad_out, queries, &acc_grad_out, Quad::new(1.0), tiles);
    write_rows::<F>(to_q, queries, &acc_q, Quad::new(sizes.scale), tiles);
}

/// Owns keys: to K `s (dSᵀ a + Ŝᵀ Q)`, to V `Ŵᵀ dO`, summed over the query heads of the group.
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
    let mut stage = SharedMemory::<Quad>::new(comptime!(tiles.stage()));
    let mut weights = SharedMemory::<Quad>::new(comptime!(tiles.weights()));
    let side = comptime!(tiles.side);
    let keys = Rows::new(head, CUBE_POS_X as usize * side, sizes.key_len);

    let mut acc_k = zeros(comptime!(4 * tiles.spread()));
    let mut acc_v = zeros(comptime!(4 * tiles.spread()));
    let first = first_query_tile(keys, sizes, tiles);
    for member in 0..sizes.group {
        for tile in first..(sizes.query_len + side - 1) / side {
            let queries = Rows::new(head * sizes.group + member, tile * side, sizes.query_len);
            let mut scores = scores::<F>(
                inputs,
                &mut stage,
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
                put_weights(&mut weights, &scores.w, tiles);
                add_product::<F>(
                    &mut acc_v,
                    &weights,
                    &mut stage,
                    &inputs.grad_out,
                    queries,
                    tiles,
                );
            }
            if comptime!(present.a) {
                put_weights(&mut weights, &scores.dp, tiles);
                add_product::<F>(&mut acc_k, &weights, &mut stage, &inputs.a, queries, tiles);
            }
            put_weights(&mut weights, &scores.g, tiles);
            add_product::<F>(&mut acc_k, &weights, &mut stage, &inputs.q, queries, tiles);
        }
    }
    write_rows::<F>(to_k, keys, &acc_k, Quad::new(sizes.scale), tiles);
    write_rows::<F>(to_v, keys, &acc_v, Quad::new(1.0), tiles);
}
