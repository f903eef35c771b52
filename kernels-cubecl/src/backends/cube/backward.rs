//! `dQ`, `dK` and `dV`: the cubes of one kernel compute tiles of queries, those of the other tiles of keys.
//! Both recompute `P` from `L`.

use cubecl::prelude::*;

use super::shared::*;
use super::sums::*;
use super::tiles::*;

/// Which of a, b and c there are: see [`Inputs`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Present {
    pub a: bool,
    pub b: bool,
    pub c: bool,
}

impl Present {
    pub const NONE: Self = Self {
        a: false,
        b: false,
        c: false,
    };
    pub const ALL: Self = Self {
        a: true,
        b: true,
        c: true,
    };

    pub fn of<T>(tensors: &[Option<T>; 3]) -> Self {
        let [a, b, c] = tensors.each_ref().map(Option::is_some);
        Self { a, b, c }
    }

    /// The number of operands that are staged at once.
    pub const fn operands(&self) -> usize {
        if self.w() || self.c { 7 } else { 4 }
    }

    /// Whether there is a cotangent `W` of `dS`.
    pub const fn w(&self) -> bool {
        self.a || self.b
    }
}

/// The tensors that the derivatives read. In the double backward a, b and c are the cotangents of dQ, dK and dV; in the backward
/// they are what these are added to. An absent one may be any tensor, which is not read.
#[derive(CubeType, CubeLaunch)]
pub struct Inputs<F: Float> {
    pub q: Array<F>,
    pub k: Array<F>,
    pub v: Array<F>,
    pub grad_out: Array<F>,
    pub a: Array<F>,
    pub b: Array<F>,
    pub c: Array<F>,
    pub lse: Array<f32>,
}

/// A unit's four by four values of each matrix that a derivative needs for a pair of tiles.
#[derive(CubeType)]
pub struct Scores {
    /// `P`
    pub p: Array<Quad>,
    /// `dP = dO Vᵀ`
    pub dp: Array<Quad>,
    /// `W = s (a Kᵀ + Q bᵀ)`
    pub w: Array<Quad>,
    /// `dO cᵀ`
    pub g: Array<Quad>,
}

/// The scores of a pair of tiles, in one pass along the head dim.
#[cube]
pub fn scores<F: Float>(
    inputs: &Inputs<F>,
    shared: &mut SharedTiles<F>,
    queries: Rows,
    keys: Rows,
    scale: f32,
    #[comptime] present: Present,
    #[comptime] own: Own,
    #[comptime] tiles: Tiles,
) -> Scores {
    let mut p = Sums::scores(tiles);
    let mut dp = Sums::scores(tiles);
    let mut w = Sums::scores(tiles);
    let mut g = Sums::scores(tiles);
    for part in 0..comptime!(tiles.dim.div_ceil(tiles.depth)) {
        let column = part * comptime!(tiles.depth);
        sync_cube();
        shared.stage(Q, &inputs.q, queries, column, tiles);
        shared.stage(GRAD_OUT, &inputs.grad_out, queries, column, tiles);
        shared.stage(K, &inputs.k, keys, column, tiles);
        shared.stage(V, &inputs.v, keys, column, tiles);
        if comptime!(present.a) {
            shared.stage(A, &inputs.a, queries, column, tiles);
        }
        if comptime!(present.b) {
            shared.stage(B, &inputs.b, keys, column, tiles);
        }
        if comptime!(present.c) {
            shared.stage(C, &inputs.c, keys, column, tiles);
        }
        sync_cube();
        for step in 0..comptime!(tiles.steps()) {
            add_pair(shared, &mut p, Q, K, step, own, tiles);
            add_pair(shared, &mut dp, GRAD_OUT, V, step, own, tiles);
            if comptime!(present.a) {
                add_pair(shared, &mut w, A, K, step, own, tiles);
            }
            if comptime!(present.b) {
                add_pair(shared, &mut w, Q, B, step, own, tiles);
            }
            if comptime!(present.c) {
                add_pair(shared, &mut g, GRAD_OUT, C, step, own, tiles);
            }
        }
    }
    let lane = query_lane(own, tiles);
    let lse = read_quad(&inputs.lse, queries, lane, 0usize);
    let mut p = shared.scores(&p, tiles);
    mask(&mut p, lse, queries, keys, scale, own, tiles);
    let dp = shared.scores(&dp, tiles);
    let mut w = if comptime!(present.w()) {
        shared.scores(&w, tiles)
    } else {
        zeros(4usize)
    };
    let g = if comptime!(present.c) {
        shared.scores(&g, tiles)
    } else {
        zeros(4usize)
    };
    #[unroll]
    for i in 0..4usize {
        p[i] = Quad::exp(p[i]);
        w[i] *= Quad::new(scale);
    }
    Scores { p, dp, w, g }
}

/// The indices of the staged operands.
const Q: usize = 0;
const GRAD_OUT: usize = 1;
const K: usize = 2;
const V: usize = 3;
const A: usize = 4;
const B: usize = 5;
const C: usize = 6;

#[cube]
#[allow(clippy::too_many_arguments)]
fn add_pair<F: Float>(
    shared: &SharedTiles<F>,
    sums: &mut Sums,
    #[comptime] query: usize,
    #[comptime] key: usize,
    step: usize,
    #[comptime] own: Own,
    #[comptime] tiles: Tiles,
) {
    if comptime!(own == Own::Queries) {
        shared.add_scores(sums, query, key, step, tiles);
    } else {
        shared.add_scores(sums, key, query, step, tiles);
    }
}

/// `δ = rowsum(dO∘O)` of the cube's own queries.
#[cube]
pub fn row_dots<F: Float>(
    grad_out: &Array<F>,
    out: &Array<F>,
    shared: &mut SharedTiles<F>,
    queries: Rows,
    #[comptime] tiles: Tiles,
) -> Quad {
    let dim = comptime!(tiles.dim);
    let lanes = comptime!(tiles.lanes());
    let (own, other) = (own_lane(tiles), other_lane(tiles));
    let (base, step) = (queries.base(dim), queries.step(dim));
    let mut dots = Quad::new(0.0);
    #[unroll]
    for i in 0..4usize {
        let row = queries.first + own * 4 + i;
        if row < queries.len {
            for n in 0..comptime!(dim.div_ceil(lanes)) {
                let column = other + n * lanes;
                if column < dim {
                    let at = base + row * step + column;
                    dots[i] += f32::cast_from(grad_out[at]) * f32::cast_from(out[at]);
                }
            }
        }
    }
    shared.across(dots, false, tiles)
}

/// Each cube computes a tile of queries: `δ` and `dQ = s dS K`, where `dS = P∘(dP − δ)`.
#[cube(launch_unchecked)]
pub fn backward_queries<F: Float>(
    inputs: &Inputs<F>,
    out: &Array<F>,
    delta: &mut Array<f32>,
    dq: &mut Array<F>,
    sizes: &Sizes,
    #[comptime] onto: Present,
    #[comptime] tiles: Tiles,
    #[define(F)] _dtype: StorageType,
) {
    let head = head();
    if head >= sizes.heads {
        terminate!();
    }
    let mut shared = SharedTiles::<F>::new(tiles);
    let queries = own_queries(head, sizes, tiles);
    let own_delta = row_dots::<F>(&inputs.grad_out, out, &mut shared, queries, tiles);
    write_quad(delta, queries, 0usize, own_delta, tiles);

    let mut acc = Sums::output(tiles);
    for tile in 0..key_tiles(queries, sizes, tiles) {
        let keys = other_keys(head, tile, sizes, tiles);
        let mut scores = scores::<F>(
            inputs,
            &mut shared,
            queries,
            keys,
            sizes.scale,
            comptime!(Present::NONE),
            Own::Queries,
            tiles,
        );
        #[unroll]
        for i in 0..4usize {
            scores.dp[i] = scores.p[i] * (scores.dp[i] - Quad::new(own_delta[i]));
        }
        shared.put_weights(&scores.dp, tiles);
        shared.add_product(&mut acc, &inputs.k, keys, tiles);
    }
    let adds = comptime!(onto.a);
    shared.write(dq, queries, &acc, sizes.scale, &inputs.a, adds, tiles);
}

/// Each cube computes a tile of keys: `dK = s dSᵀ Q` and `dV = Pᵀ dO`, summed over the query heads of the
/// group.
#[cube(launch_unchecked)]
pub fn backward_keys<F: Float>(
    inputs: &Inputs<F>,
    delta: &Array<f32>,
    dk: &mut Array<F>,
    dv: &mut Array<F>,
    sizes: &Sizes,
    #[comptime] onto: Present,
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
                comptime!(Present::NONE),
                Own::Keys,
                tiles,
            );
            let delta = read_quad(delta, queries, other_lane(tiles), 0usize);
            shared.put_weights(&scores.p, tiles);
            shared.add_product(&mut acc_v, &inputs.grad_out, queries, tiles);
            #[unroll]
            for i in 0..4usize {
                scores.dp[i] = scores.p[i] * (scores.dp[i] - delta);
            }
            shared.put_weights(&scores.dp, tiles);
            shared.add_product(&mut acc_k, &inputs.q, queries, tiles);
        }
    }
    let (to_k, to_v) = comptime!((onto.b, onto.c));
    shared.write(dk, keys, &acc_k, sizes.scale, &inputs.b, to_k, tiles);
    shared.write(dv, keys, &acc_v, 1.0, &inputs.c, to_v, tiles);
}
