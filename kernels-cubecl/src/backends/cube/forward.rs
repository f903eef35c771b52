//! `O = softmax(s·QKᵀ) V` and the rows' log-sum-exp `L`.
//!
//! Two passes over the keys: the first computes `L`, the second the output from normalised weights.

use cubecl::prelude::*;

use super::shared::*;
use super::sums::*;
use super::tiles::*;

/// Each cube computes a tile of queries.
#[cube(launch_unchecked)]
pub fn forward<F: Float>(
    q: &Array<F>,
    k: &Array<F>,
    v: &Array<F>,
    out: &mut Array<F>,
    lse: &mut Array<f32>,
    sizes: &Sizes,
    #[comptime] tiles: Tiles,
    #[define(F)] _dtype: StorageType,
) {
    let head = head();
    if head >= sizes.heads {
        terminate!();
    }
    let mut shared = SharedTiles::<F>::new(tiles);
    let queries = own_queries(head, sizes, tiles);
    let key_tile_count = key_tiles(queries, sizes, tiles);

    // The maximum and the sum of exponentials of the scores that this unit has processed.
    let mut top = Quad::new(HIDDEN);
    let mut total = Quad::new(0.0);
    for tile in 0..key_tile_count {
        let keys = other_keys(head, tile, sizes, tiles);
        let scores = scores::<F>(
            &mut shared,
            q,
            k,
            Quad::new(0.0),
            queries,
            keys,
            sizes,
            tiles,
        );
        let before = top;
        #[unroll]
        for j in 0..4usize {
            let mut column = Quad::new(0.0);
            #[unroll]
            for i in 0..4usize {
                column[i] = scores[i][j];
            }
            top = max(top, column);
        }
        total *= Quad::exp(before - top);
        #[unroll]
        for i in 0..4usize {
            let weights = Quad::exp(scores[i] - Quad::new(top[i]));
            total[i] += weights[0] + weights[1] + weights[2] + weights[3];
        }
    }
    let highest = shared.across(top, true, tiles);
    let total = shared.across(total * Quad::exp(top - highest), false, tiles);
    let own_lse = highest + Quad::ln(total);
    write_quad(lse, queries, 0usize, own_lse, tiles);

    let mut acc = Sums::output(tiles);
    for tile in 0..key_tile_count {
        let keys = other_keys(head, tile, sizes, tiles);
        let mut scores = scores::<F>(&mut shared, q, k, own_lse, queries, keys, sizes, tiles);
        #[unroll]
        for i in 0..4usize {
            scores[i] = Quad::exp(scores[i]);
        }
        shared.put_weights(&scores, tiles);
        shared.add_product(&mut acc, v, keys, tiles);
    }
    shared.write(out, queries, &acc, 1.0, q, false, tiles);
}

/// `s·QKᵀ − shift` of a pair of tiles, masked.
#[cube]
fn scores<F: Float>(
    shared: &mut SharedTiles<F>,
    q: &Array<F>,
    k: &Array<F>,
    shift: Quad,
    queries: Rows,
    keys: Rows,
    sizes: &Sizes,
    #[comptime] tiles: Tiles,
) -> Array<Quad> {
    let mut sums = Sums::scores(tiles);
    for part in 0..comptime!(tiles.dim.div_ceil(tiles.depth)) {
        let column = part * comptime!(tiles.depth);
        sync_cube();
        shared.stage(0usize, q, queries, column, tiles);
        shared.stage(1usize, k, keys, column, tiles);
        sync_cube();
        for step in 0..comptime!(tiles.steps()) {
            shared.add_scores(&mut sums, 0usize, 1usize, step, tiles);
        }
    }
    let mut scores = shared.scores(&sums, tiles);
    mask(
        &mut scores,
        shift,
        queries,
        keys,
        sizes.scale,
        Own::Queries,
        tiles,
    );
    scores
}
