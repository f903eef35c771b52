//! `O = softmax(s·QKᵀ) V` and the rows' log-sum-exp `L`.
//!
//! Two walks over the keys: the first finds `L`, the second has weights that are normalised already.

use cubecl::prelude::*;

use super::room::*;
use super::tiles::*;

/// Owns queries.
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
    let mut room = Room::<F>::new(tiles);
    let queries = owned_queries(head, sizes, tiles);
    let walk = key_tiles(queries, sizes, tiles);

    // Of the scores that this unit sees.
    let mut top = Quad::new(HIDDEN);
    let mut total = Quad::new(0.0);
    for tile in 0..walk {
        let keys = other_keys(head, tile, sizes, tiles);
        let scores = scores::<F>(&mut room, q, k, Quad::new(0.0), queries, keys, sizes, tiles);
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
    let highest = room.across(top, true, tiles);
    let total = room.across(total * Quad::exp(top - highest), false, tiles);
    let own_lse = highest + Quad::ln(total);
    write_quad(lse, queries, 0usize, own_lse, tiles);

    let mut acc = Sums::output(tiles);
    for tile in 0..walk {
        let keys = other_keys(head, tile, sizes, tiles);
        let mut scores = scores::<F>(&mut room, q, k, own_lse, queries, keys, sizes, tiles);
        #[unroll]
        for i in 0..4usize {
            scores[i] = Quad::exp(scores[i]);
        }
        room.put_weights(&scores, tiles);
        room.add_product(&mut acc, v, keys, tiles);
    }
    room.write(out, queries, &acc, 1.0, tiles);
}

/// `s·QKᵀ − shift` of a pair of tiles, as far as it is seen.
#[cube]
fn scores<F: Float>(
    room: &mut Room<F>,
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
        room.stage(0usize, q, queries, column, tiles);
        room.stage(1usize, k, keys, column, tiles);
        sync_cube();
        for step in 0..comptime!(tiles.steps()) {
            room.add_scores(&mut sums, 0usize, 1usize, step, tiles);
        }
    }
    let mut scores = room.scores(&sums, tiles);
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
