//! `O = softmax(s·QKᵀ) V` and the rows' log-sum-exp `L`, in one pass with a running maximum.

use cubecl::prelude::*;

use super::tiles::*;

/// Owns queries, walks over the keys they see.
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
    let mut stage = SharedMemory::<Quad>::new(comptime!(tiles.stage()));
    let mut weights = SharedMemory::<Quad>::new(comptime!(tiles.weights()));
    let (own, other) = (own_lane(tiles), other_lane(tiles));
    let queries = owned_queries(head, sizes, tiles);

    let spread = comptime!(tiles.spread());
    let mut acc = zeros(comptime!(4 * tiles.spread()));
    let mut top = Quad::new(HIDDEN);
    let mut total = Quad::new(0.0);
    for tile in 0..key_tiles(queries, sizes, tiles) {
        let keys = Rows::new(
            head / sizes.group,
            tile * comptime!(tiles.side),
            sizes.key_len,
        );
        let mut scores = zeros(4usize);
        for part in 0..comptime!(tiles.dim.div_ceil(tiles.depth)) {
            let column = part * comptime!(tiles.depth);
            sync_cube();
            stage_columns::<F>(&mut stage, 0usize, q, queries, column, tiles);
            stage_columns::<F>(&mut stage, 1usize, k, keys, column, tiles);
            sync_cube();
            for d in 0..comptime!(tiles.depth) {
                let q = staged(&stage, 0usize, d, own, tiles);
                let k = staged(&stage, 1usize, d, other, tiles);
                add_outer(&mut scores, q, k);
            }
        }
        mask(
            &mut scores,
            Quad::new(0.0),
            queries,
            keys,
            sizes.scale,
            Own::Queries,
            tiles,
        );

        let highest = across(&mut weights, row_tops(&scores), true, tiles);
        let new_top = max(top, highest);
        let fade = Quad::exp(top - new_top);
        #[unroll]
        for i in 0..4usize {
            scores[i] = Quad::exp(scores[i] - Quad::new(new_top[i]));
            #[unroll]
            for n in 0..spread {
                acc[i * spread + n] *= Quad::new(fade[i]);
            }
        }
        total = total * fade + row_sums(&scores);
        top = new_top;
        put_weights(&mut weights, &scores, tiles);
        add_product::<F>(&mut acc, &weights, &mut stage, v, keys, tiles);
    }
    let total = across(&mut weights, total, false, tiles);
    write_rows::<F>(out, queries, &acc, Quad::new(1.0) / total, tiles);
    write_quad(lse, queries, 0usize, top + Quad::ln(total), tiles);
}

/// The largest of a score row's four numbers, for each of the unit's four owned rows.
#[cube]
fn row_tops(scores: &Array<Quad>) -> Quad {
    let mut tops = Quad::new(HIDDEN);
    #[unroll]
    for i in 0..4usize {
        #[unroll]
        for j in 0..4usize {
            tops[i] = max(tops[i], scores[i][j]);
        }
    }
    tops
}
