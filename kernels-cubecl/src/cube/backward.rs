//! `dQ`, `dK` and `dV`: one kernel owns queries, one owns keys; both rebuild `P` from `L`.

use cubecl::prelude::*;

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
    stage: &mut SharedMemory<Quad>,
    queries: Rows,
    keys: Rows,
    scale: f32,
    #[comptime] present: Present,
    #[comptime] side: Own,
    #[comptime] tiles: Tiles,
) -> Scores {
    let mut p = zeros(4usize);
    let mut dp = zeros(4usize);
    let mut w = zeros(4usize);
    let mut g = zeros(4usize);
    let (own, other) = (own_lane(tiles), other_lane(tiles));
    let (query, key) = if comptime!(side == Own::Queries) {
        (own, other)
    } else {
        (other, own)
    };
    for part in 0..comptime!(tiles.dim.div_ceil(tiles.depth)) {
        let column = part * comptime!(tiles.depth);
        sync_cube();
        stage_columns::<F>(stage, 0usize, &inputs.q, queries, column, tiles);
        stage_columns::<F>(stage, 1usize, &inputs.grad_out, queries, column, tiles);
        stage_columns::<F>(stage, 2usize, &inputs.k, keys, column, tiles);
        stage_columns::<F>(stage, 3usize, &inputs.v, keys, column, tiles);
        if comptime!(present.a) {
            stage_columns::<F>(stage, 4usize, &inputs.a, queries, column, tiles);
        }
        if comptime!(present.b) {
            stage_columns::<F>(stage, 5usize, &inputs.b, keys, column, tiles);
        }
        if comptime!(present.c) {
            stage_columns::<F>(stage, 6usize, &inputs.c, keys, column, tiles);
        }
        sync_cube();
        for d in 0..comptime!(tiles.depth) {
            let q = staged(stage, 0usize, d, query, tiles);
            let grad_out = staged(stage, 1usize, d, query, tiles);
            let k = staged(stage, 2usize, d, key, tiles);
            let v = staged(stage, 3usize, d, key, tiles);
            add_pair(&mut p, q, k, side);
            add_pair(&mut dp, grad_out, v, side);
            if comptime!(present.a) {
                let a = staged(stage, 4usize, d, query, tiles);
                add_pair(&mut w, a, k, side);
            }
            if comptime!(present.b) {
                let b = staged(stage, 5usize, d, key, tiles);
                add_pair(&mut w, q, b, side);
            }
            if comptime!(present.c) {
                let c = staged(stage, 6usize, d, key, tiles);
                add_pair(&mut g, grad_out, c, side);
            }
        }
    }
    let lse = read_quad(&inputs.lse, queries, query, 0usize);
    mask(&mut p, lse, queries, keys, scale, side, tiles);
    #[unroll]
    for i in 0..4usize {
        p[i] = Quad::exp(p[i]);
        w[i] *= Quad::new(scale);
    }
    Scores { p, dp, w, g }
}

#[cube]
fn add_pair(scores: &mut Array<Quad>, query: Quad, key: Quad, #[comptime] side: Own) {
    if comptime!(side == Own::Queries) {
        add_outer(scores, query, key);
    } else {
        add_outer(scores, key, query);
    }
}

/// `δ = rowsum(dO∘O)` of the owned queries.
#[cube]
pub fn row_dots<F: Float>(
    grad_out: &Array<F>,
    out: &Array<F>,
    weights: &mut SharedMemory<Quad>,
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
    across(weights, dots, false, tiles)
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
    let mut stage = SharedMemory::<Quad>::new(comptime!(tiles.stage()));
    let mut weights = SharedMemory::<Quad>::new(comptime!(tiles.weights()));
    let queries = owned_queries(head, sizes, tiles);
    let own_delta = row_dots::<F>(&inputs.grad_out, out, &mut weights, queries, tiles);
    write_quad(delta, queries, 0usize, own_delta, tiles);

    let mut acc = zeros(comptime!(4 * tiles.spread()));
    for tile in 0..key_tiles(queries, sizes, tiles) {
        let first = tile * comptime!(tiles.side);
        let keys = Rows::new(head / sizes.group, first, sizes.key_len);
        let mut scores = scores::<F>(
            inputs,
            &mut stage,
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
        put_weights(&mut weights, &scores.dp, tiles);
        add_product::<F>(&mut acc, &weights, &mut stage, &inputs.k, keys, tiles);
    }
    write_rows::<F>(dq, queries, &acc, Quad::new(sizes.scale), tiles);
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
                comptime!(Present::NONE),
                Own::Keys,
                tiles,
            );
            let delta = read_quad(delta, queries, other_lane(tiles), 0usize);
            put_weights(&mut weights, &scores.p, tiles);
            add_product::<F>(
                &mut acc_v,
                &weights,
                &mut stage,
                &inputs.grad_out,
                queries,
                tiles,
            );
            #[unroll]
            for i in 0..4usize {
                scores.dp[i] = scores.p[i] * (scores.dp[i] - delta);
            }
            put_weights(&mut weights, &scores.dp, tiles);
            add_product::<F>(&mut acc_k, &weights, &mut stage, &inputs.q, queries, tiles);
        }
    }
    write_rows::<F>(dk, keys, &acc_k, Quad::new(sizes.scale), tiles);
    write_rows::<F>(dv, keys, &acc_v, Quad::new(1.0), tiles);
}
