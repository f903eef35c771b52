//! The two products of a pair of tiles, with operands in a cube's shared memory.
//!
//! **Units.** Operands are staged a few columns of the head at a time, in f32, with four rows in one vector:
//! a unit reads two vectors for sixteen multiplications. Weights are stored transposed, so that the second
//! product reads them in the same way.
//!
//! **Matrix units**, for bf16, and for f16 in the forward, on devices that have them: operands and weights are staged row by
//! row in their own type, planes multiply matrices of sixteen by sixteen into f32, and the results are
//! passed through shared memory to the units that hold the scores.
//!
//! The sizes here do not depend on the sequence; a larger head dim takes more stages.

use cubecl::cmma::{self, MatrixIdent, MatrixLayout};
use cubecl::prelude::*;

use super::layout::PAD_32;
use super::sums::*;
use super::tiles::*;

/// The alignment in bytes of shared memory from which matrices are loaded.
const ALIGNMENT: usize = 128;

/// A cube's shared memory. Units use the vectors (`quads`), matrix units the scalars (`numbers`).
#[derive(CubeType)]
pub struct SharedTiles<F: Float> {
    stage_quads: SharedMemory<Quad>,
    weight_quads: SharedMemory<Quad>,
    stage_numbers: SharedMemory<F>,
    weight_numbers: SharedMemory<F>,
    score_numbers: SharedMemory<f32>,
}

#[cube]
impl<F: Float> SharedTiles<F> {
    pub fn new(#[comptime] tiles: Tiles) -> SharedTiles<F> {
        SharedTiles::<F> {
            stage_quads: SharedMemory::new(comptime!(tiles.stage_quads())),
            weight_quads: SharedMemory::new(comptime!(tiles.weight_quads())),
            stage_numbers: SharedMemory::new_aligned(comptime!(tiles.stage_numbers()), ALIGNMENT),
            weight_numbers: SharedMemory::new_aligned(comptime!(tiles.weight_numbers()), ALIGNMENT),
            score_numbers: SharedMemory::new_aligned(comptime!(tiles.score_numbers()), ALIGNMENT),
        }
    }

    /// Stages the columns of a tile that start at `column` as operand `at`.
    pub fn stage(
        &mut self,
        #[comptime] at: usize,
        x: &Array<F>,
        rows: Rows,
        column: usize,
        #[comptime] tiles: Tiles,
    ) {
        let (depth, dim) = comptime!((tiles.depth, tiles.dim));
        let units = comptime!(tiles.units());
        let height = comptime!(if tiles.matrix {
            tiles.side
        } else {
            tiles.lanes()
        });
        let together = comptime!(tiles.together);
        let items = comptime!(height * depth / together);
        let (base, step) = (rows.base(dim) + column, rows.step(dim));
        for turn in 0..comptime!(items.div_ceil(units)) {
            let item = UNIT_POS as usize + turn * units;
            if comptime!(items % units == 0) || item < items {
                let across = comptime!(depth / together);
                let (d, high) = (item % across * together, item / across);
                let inside = column + d < dim;
                if comptime!(tiles.matrix) {
                    let row = rows.first + high;
                    let to = comptime!(at * tiles.operand_numbers())
                        + high * comptime!(tiles.operand_pitch())
                        + d;
                    let from = base + row * step + d;
                    self.put(to, x, from, inside && row < rows.len, tiles);
                } else {
                    let mut quad = Quad::new(0.0);
                    #[unroll]
                    for i in 0..4usize {
                        let row = rows.first + high * 4 + i;
                        let number = read(x, base + row * step + d, inside && row < rows.len);
                        quad[i] = f32::cast_from(number);
                    }
                    self.stage_quads[comptime!(at * tiles.operand_quads())
                        + d * comptime!(tiles.quad_pitch())
                        + high] = quad;
                }
            }
        }
    }

    /// Copies `together` values, or zeros.
    fn put(
        &mut self,
        to: usize,
        x: &Array<F>,
        from: usize,
        inside: bool,
        #[comptime] tiles: Tiles,
    ) {
        if comptime!(tiles.together == TOGETHER) {
            let x = x.to_slice().into_vectorized();
            let x = x.with_vector_size::<Const<TOGETHER>>();
            let stage = self.stage_numbers.to_slice_mut().into_vectorized();
            let mut stage = stage.with_vector_size::<Const<TOGETHER>>();
            let mut values = Vector::empty();
            if inside {
                values = x[from / TOGETHER];
            }
            stage[to / TOGETHER] = values;
        } else {
            self.stage_numbers[to] = read(x, from, inside);
        }
    }

    /// `sums[own][other] += own · other` for one step along the staged operands with these indices.
    pub fn add_scores(
        &self,
        sums: &mut Sums,
        #[comptime] own: usize,
        #[comptime] other: usize,
        step: usize,
        #[comptime] tiles: Tiles,
    ) {
        if comptime!(tiles.matrix) {
            let pitch = comptime!(tiles.operand_pitch());
            let share = comptime!(tiles.score_share());
            #[unroll]
            for i in 0..share {
                let (row, column) = score_block(i, tiles);
                let own = comptime!(own * tiles.operand_numbers()) + row * pitch + step * MATRIX;
                let other =
                    comptime!(other * tiles.operand_numbers()) + column * pitch + step * MATRIX;
                let own = self.stage_numbers.slice(own, own + MATRIX * pitch);
                let other = self.stage_numbers.slice(other, other + MATRIX * pitch);
                multiply::<F>(
                    sums.matrices.index(i),
                    &own,
                    pitch as u32,
                    &other,
                    pitch as u32,
                    MatrixLayout::ColMajor,
                );
            }
        } else {
            let column = step * comptime!(tiles.quad_pitch());
            let own = comptime!(own * tiles.operand_quads()) + column + own_lane(tiles);
            let other = comptime!(other * tiles.operand_quads()) + column + other_lane(tiles);
            let (own, other) = (self.stage_quads[own], self.stage_quads[other]);
            #[unroll]
            for i in 0..4usize {
                sums.quads[i] += Quad::new(own[i]) * other;
            }
        }
    }

    /// The scores that this unit holds.
    pub fn scores(&mut self, sums: &Sums, #[comptime] tiles: Tiles) -> Array<Quad> {
        let mut quads = zeros(4usize);
        if comptime!(tiles.matrix) {
            let pitch = comptime!(tiles.score_pitch());
            let share = comptime!(tiles.score_share());
            sync_cube();
            #[unroll]
            for i in 0..share {
                let (row, column) = score_block(i, tiles);
                let start = row * pitch + column;
                cmma::store(
                    &mut self.score_numbers.slice_mut(start, start + MATRIX * pitch),
                    sums.matrices.index(i),
                    pitch as u32,
                    MatrixLayout::RowMajor,
                );
            }
            sync_cube();
            #[unroll]
            for i in 0..4usize {
                let start = (own_lane(tiles) * 4 + i) * pitch + other_lane(tiles) * 4;
                let mut quad = Quad::new(0.0);
                #[unroll]
                for j in 0..4usize {
                    quad[j] = self.score_numbers[start + j];
                }
                quads[i] = quad;
            }
        } else {
            #[unroll]
            for i in 0..4usize {
                quads[i] = sums.quads[i];
            }
        }
        quads
    }

    /// Stores the scores of all units as the weights of the next output product.
    pub fn put_weights(&mut self, scores: &Array<Quad>, #[comptime] tiles: Tiles) {
        let (own, other) = (own_lane(tiles), other_lane(tiles));
        sync_cube();
        if comptime!(tiles.matrix) {
            #[unroll]
            for i in 0..4usize {
                let start = (own * 4 + i) * comptime!(tiles.weight_pitch()) + other * 4;
                #[unroll]
                for j in 0..4usize {
                    self.weight_numbers[start + j] = F::cast_from(scores[i][j]);
                }
            }
        } else {
            #[unroll]
            for j in 0..4usize {
                let mut quad = Quad::new(0.0);
                #[unroll]
                for i in 0..4usize {
                    quad[i] = scores[i][j];
                }
                self.weight_quads[(other * 4 + j) * comptime!(tiles.quad_pitch()) + own] = quad;
            }
        }
    }

    /// `out[own][d] += Σ_other weights[own][other] · x[other][d]`
    pub fn add_product(
        &mut self,
        out: &mut Sums,
        x: &Array<F>,
        rows: Rows,
        #[comptime] tiles: Tiles,
    ) {
        let reach = comptime!(tiles.reach());
        for part in 0..comptime!(tiles.side / reach) {
            sync_cube();
            let first = rows.first + part * reach;
            let some = Rows::new(rows.head, rows.heads, first, rows.len);
            self.stage_rows(x, some, tiles);
            sync_cube();
            if comptime!(tiles.matrix) {
                for step in 0..comptime!(reach / MATRIX) {
                    self.add_matrices(out, part * reach + step * MATRIX, step * MATRIX, tiles);
                }
            } else {
                for row in 0..reach {
                    self.add_row(out, part * reach + row, row, tiles);
                }
            }
        }
    }

    /// Stages whole rows, padded with zeros.
    fn stage_rows(&mut self, x: &Array<F>, rows: Rows, #[comptime] tiles: Tiles) {
        let (dim, units, reach) = comptime!((tiles.dim, tiles.units(), tiles.reach()));
        let width = comptime!(match tiles.matrix {
            true => tiles.bands() * MATRIX,
            false => tiles.width(),
        });
        let together = comptime!(tiles.together);
        let across = comptime!(width / together);
        let items = comptime!(reach * across);
        let (base, step) = (rows.base(dim), rows.step(dim));
        for turn in 0..comptime!(items.div_ceil(units)) {
            let item = UNIT_POS as usize + turn * units;
            if comptime!(items % units == 0) || item < items {
                let (high, at) = (item / across, item % across * together);
                let row = rows.first + high;
                let start = base + row * step;
                if comptime!(tiles.matrix) {
                    let inside = row < rows.len && at < dim;
                    let to = high * comptime!(tiles.row_pitch()) + at;
                    self.put(to, x, start + at, inside, tiles);
                } else {
                    let mut quad = Quad::new(0.0);
                    #[unroll]
                    for i in 0..4usize {
                        let column = at * 4 + i;
                        let inside = row < rows.len && column < dim;
                        quad[i] = f32::cast_from(read(x, start + column, inside));
                    }
                    self.stage_quads[item] = quad;
                }
            }
        }
    }

    /// Adds one row of the other side: row `other` of the weights, row `row` of the stage.
    fn add_row(&self, out: &mut Sums, other: usize, row: usize, #[comptime] tiles: Tiles) {
        let spread = comptime!(tiles.spread());
        let weight = self.weight_quads[other * comptime!(tiles.quad_pitch()) + own_lane(tiles)];
        #[unroll]
        for n in 0..spread {
            let at = row * comptime!(tiles.width()) + other_lane(tiles);
            let quad = self.stage_quads[at + n * comptime!(tiles.lanes())];
            #[unroll]
            for i in 0..4usize {
                out.quads[i * spread + n] += Quad::new(weight[i]) * quad;
            }
        }
    }

    /// Adds sixteen rows of the other side, which start at `other` in the weights and at `row` in the stage.
    fn add_matrices(&self, out: &mut Sums, other: usize, row: usize, #[comptime] tiles: Tiles) {
        let (weight_pitch, row_pitch) = comptime!((tiles.weight_pitch(), tiles.row_pitch()));
        let share = comptime!(tiles.output_share());
        #[unroll]
        for i in 0..share {
            let (own, column, is_any) = output_block(i, tiles);
            if is_any {
                let weights = own * weight_pitch + other;
                let rows = row * row_pitch + column;
                multiply::<F>(
                    out.matrices.index(i),
                    &self
                        .weight_numbers
                        .slice(weights, weights + MATRIX * weight_pitch),
                    weight_pitch as u32,
                    &self.stage_numbers.slice(rows, rows + MATRIX * row_pitch),
                    row_pitch as u32,
                    MatrixLayout::RowMajor,
                );
            }
        }
    }

    /// Writes the tile of the output that this cube computes, times `factor`, added to `onto` if `adds`; else that may be any
    /// tensor.
    #[allow(clippy::too_many_arguments)]
    pub fn write(
        &mut self,
        x: &mut Array<F>,
        rows: Rows,
        out: &Sums,
        factor: f32,
        onto: &Array<F>,
        #[comptime] adds: bool,
        #[comptime] tiles: Tiles,
    ) {
        let dim = comptime!(tiles.dim);
        let (base, step) = (rows.base(dim), rows.step(dim));
        if comptime!(tiles.matrix) {
            let pitch = comptime!(MATRIX + PAD_32);
            let share = comptime!(tiles.output_share());
            let (plane, lane) = (UNIT_POS as usize / PLANE, UNIT_POS as usize % PLANE);
            let start = plane * comptime!(MATRIX * pitch);
            #[unroll]
            for i in 0..share {
                let (own, column, is_any) = output_block(i, tiles);
                sync_cube();
                if is_any {
                    cmma::store(
                        &mut self.score_numbers.slice_mut(start, start + MATRIX * pitch),
                        out.matrices.index(i),
                        pitch as u32,
                        MatrixLayout::RowMajor,
                    );
                }
                sync_cube();
                for turn in 0..comptime!(MATRIX * MATRIX / PLANE) {
                    let item = lane + turn * PLANE;
                    let (high, at) = (item / MATRIX, item % MATRIX);
                    let (row, column) = (rows.first + own + high, column + at);
                    if is_any && row < rows.len && column < dim {
                        let mut number = self.score_numbers[start + high * pitch + at] * factor;
                        let at = base + row * step + column;
                        if comptime!(adds) {
                            number += f32::cast_from(onto[at]);
                        }
                        x[at] = F::cast_from(number);
                    }
                }
            }
        } else {
            let spread = comptime!(tiles.spread());
            #[unroll]
            for i in 0..4usize {
                let row = rows.first + own_lane(tiles) * 4 + i;
                #[unroll]
                for n in 0..spread {
                    let quad = out.quads[i * spread + n] * Quad::new(factor);
                    let column = (other_lane(tiles) + n * comptime!(tiles.lanes())) * 4;
                    #[unroll]
                    for c in 0..4usize {
                        if row < rows.len && column + c < dim {
                            let at = base + row * step + column + c;
                            let mut number = quad[c];
                            if comptime!(adds) {
                                number += f32::cast_from(onto[at]);
                            }
                            x[at] = F::cast_from(number);
                        }
                    }
                }
            }
        }
    }

    /// Reduces the units' values of their four own rows over the other side: the maximum if `largest`,
    /// otherwise the sum.
    pub fn across(
        &mut self,
        part: Quad,
        #[comptime] largest: bool,
        #[comptime] tiles: Tiles,
    ) -> Quad {
        let pitch = comptime!(tiles.quad_pitch());
        let (own, other) = (own_lane(tiles), other_lane(tiles));
        sync_cube();
        self.weight_quads[other * pitch + own] = part;
        sync_cube();
        let mut all = self.weight_quads[own];
        for lane in 1..comptime!(tiles.lanes()) {
            let next = self.weight_quads[lane * pitch + own];
            if comptime!(largest) {
                all = max(all, next);
            } else {
                all += next;
            }
        }
        all
    }
}

/// The first row and column of this plane's matrix `i` of the scores.
#[cube]
fn score_block(#[comptime] i: usize, #[comptime] tiles: Tiles) -> (usize, usize) {
    let block = UNIT_POS as usize / PLANE * comptime!(tiles.score_share()) + i;
    let blocks = comptime!(tiles.blocks());
    (block / blocks * MATRIX, block % blocks * MATRIX)
}

/// The first row and column of this plane's matrix `i` of the output, and whether it exists.
#[cube]
fn output_block(#[comptime] i: usize, #[comptime] tiles: Tiles) -> (usize, usize, bool) {
    let block = UNIT_POS as usize / PLANE * comptime!(tiles.output_share()) + i;
    let bands = comptime!(tiles.bands());
    let is_any = block < comptime!(tiles.blocks() * bands);
    (block / bands * MATRIX, block % bands * MATRIX, is_any)
}

/// `sum += a b`, with `a` in row-major order.
#[cube]
fn multiply<F: Float>(
    sum: &cmma::Matrix<f32>,
    a: &Slice<F>,
    a_pitch: u32,
    b: &Slice<F>,
    b_pitch: u32,
    #[comptime] b_layout: MatrixLayout,
) {
    let a = cmma::Matrix::<F>::from_slice(
        MatrixIdent::A,
        MATRIX,
        MATRIX,
        MATRIX,
        MatrixLayout::RowMajor,
        a,
        a_pitch,
    );
    let b =
        cmma::Matrix::<F>::from_slice(MatrixIdent::B, MATRIX, MATRIX, MATRIX, b_layout, b, b_pitch);
    cmma::execute::<F, F, f32, f32>(&a, &b, sum, sum);
}
