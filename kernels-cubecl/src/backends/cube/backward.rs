//! `dQ`, `dK` and `dV`: one kernel owns queries, one owns keys; both rebuild `P` from `L`.

use cubecl::prelude::*;

use super::room::*;
use super::tiles::*;

/// Which of the double backward's cotangents of dQ, dK and dV there are; none in the backward.
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

    /// Operands that are staged at once.
    pub const fn operands(&self) -> usize {
        if self.w() || self.c { 7 } else { 4 }
    }

    /// Whether `W`, the cotangent of `dS`, is there.
    pub const fn w(&self) -> bool {
        self.a || self.b
    }
}

/// The tensors that derivatives are made of; an absent cotangent is any tensor.
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

/// Four by four numbers of each matrix that a derivative needs for a pair of tiles.
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

/// The scores of a pair of tiles, in one walk along the head.
#[cube]
pub fn scores<F: Float>(
    inputs: &Inputs<F>,
    room: &mut Room<F>,
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
        room.stage(Q, &inputs.q, queries, column, tiles);
        room.stage(GRAD_OUT, &inputs.grad_out, queries, column, tiles);
        room.stage(K, &inputs.k, keys, column, tiles);
        room.stage(V, &inputs.v, keys, column, tiles);
        if comptime!(present.a) {
            room.stage(A, &inputs.a, queries, column, tiles);
        }
        if comptime!(present.b) {
            room.stage(B, &inputs.b, keys, column, tiles);
        }
        if comptime!(present.c) {
            room.stage(C, &inputs.c, keys, column, tiles);
        }
        sync_cube();
        for step in 0..comptime!(tiles.steps()) {
            add_pair(room, &mut p, Q, K, step, own, tiles);
            add_pair(room, &mut dp, GRAD_OUT, V, step, own, tiles);
            if comptime!(present.a) {
                add_pair(room, &mut w, A, K, step, own, tiles);
            }
            if comptime!(present.b) {
                add_pair(room, &mut w, Q, B, step, own, tiles);
            }
            if comptime!(present.c) {
                add_pair(room, &mut g, GRAD_OUT, C, step, own, tiles);
            }
        }
    }
    let lane = query_lane(own, tiles);
    let lse = read_quad(&inputs.lse, queries, lane, 0usize);
    let mut p = room.scores(&p, tiles);
    mask(&mut p, lse, queries, keys, scale, own, tiles);
    let dp = room.scores(&dp, tiles);
    let mut w = if comptime!(present.w()) {
        room.scores(&w, tiles)
    } else {
        zeros(4usize)
    };
    let g = if comptime!(present.c) {
        room.scores(&g, tiles)
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

/// The operands' numbers on the stage.
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
    room: &Room<F>,
    sums: &mut Sums,
    #[comptime] query: usize,
    #[comptime] key: usize,
    step: usize,
    #[comptime] own: Own,
    #[comptime] tiles: Tiles,
) {
    if comptime!(own == Own::Queries) {
        room.add_scores(sums, query, key, step, tiles);
    } else {
        room.add_scores(sums, key, query, step, tiles);
    }
}

/// `δ = rowsum(dO∘O)` of the owned queries.
#[cube]
pub fn row_dots<F: Float>(
    grad_out: &Array<F>,
    out: &Array<F>,
    room: &mut Room<F>,
    queries: Rows,
    #[comptime] tiles: Tiles,
) -> Quad {
    let dim = comptime!(tiles.dim);
    let lanes = comptime!(tiles.lanes());
    let (own, other) = (own_lane(tiles), other_lane(tiles));
    let base = queries.base(dim);
    let mut dots = Quad::new(0.0);
    #[unroll]
    for i in 0..4usize {
        let row = queries.first + own * 4 + i;
        if row < queries.len {
            for n in 0..comptime!(dim.div_ceil(lanes)) {
                let column = other + n * lanes;
                if column < dim {
                    let at = base + row * dim + column;
                    dots[i] += f32::cast_from(grad_out[at]) * f32::cast_from(out[at]);
                }
            }
        }
    }
    room.across(dots, false, tiles)
}

/// Owns queries: `δ` and `dQ = s dS K`, where `dS = P∘(dP − δ)`.
#[cube(launch_unchecked)]
pub fn backward_queries<F: Float>(
    inputs: &Inputs<F>,
    out: &Array<F>,
    delta: &mut Array<f32>,
    dq: &mut Array<F>,
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
    let own_delta = row_dots::<F>(&inputs.grad_out, out, &mut room, queries, tiles);
    write_quad(delta, queries, 0usize, own_delta, tiles);

    let mut acc = Sums::output(tiles);
    for tile in 0..key_tiles(queries, sizes, tiles) {
        let keys = other_keys(head, tile, sizes, tiles);
        let mut scores = scores::<F>(
            inputs,
            &mut room,
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
        room.put_weights(&scores.dp, tiles);
        room.add_product(&mut acc, &inputs.k, keys, tiles);
    }
    room.write(dq, queries, &acc, sizes.scale, tiles);
}

/// Owns keys: `dK = s dSᵀ Q` and `dV = Pᵀ dO`, summed over the query heads of the group.
#[cube(launch_unchecked)]
pub fn backward_keys<F: Float>(
    inputs: &Inputs<F>,
    delta: &Array<f32>,
    dk: &mut Array<F>,
    dv: &mut Array<F>,
    sizes: &Sizes,
    #[comptime] tiles: Tiles,
    #[define(F)] _dtype: StorageType,
) {
    let head = head();
    if head >= sizes.heads {
        terminate!();
    }
    let mut room = Room::<F>::new(tiles);
    let side = comptime!(tiles.side);
    let keys = owned_keys(head, sizes, tiles);

    let mut acc_k = Sums::output(tiles);
    let mut acc_v = Sums::output(tiles);
    let first = first_query_tile(keys, sizes, tiles);
    for member in 0..sizes.group {
        for tile in first..sizes.query_len.div_ceil(side) {
            let queries = Rows::new(head * sizes.group + member, tile * side, sizes.query_len);
            let mut scores = scores::<F>(
                inputs,
                &mut room,
                queries,
                keys,
                sizes.scale,
                comptime!(Present::NONE),
                Own::Keys,
                tiles,
            );
            let delta = read_quad(delta, queries, other_lane(tiles), 0usize);
            room.put_weights(&scores.p, tiles);
            room.add_product(&mut acc_v, &inputs.grad_out, queries, tiles);
            #[unroll]
            for i in 0..4usize {
                scores.dp[i] = scores.p[i] * (scores.dp[i] - delta);
            }
            room.put_weights(&scores.dp, tiles);
            room.add_product(&mut acc_k, &inputs.q, queries, tiles);
        }
    }
    room.write(dk, keys, &acc_k, sizes.scale, tiles);
    room.write(dv, keys, &acc_v, 1.0, tiles);
}
