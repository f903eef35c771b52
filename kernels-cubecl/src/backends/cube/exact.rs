//! The product of f32 matrices without matrix units. A cube computes a tile of the result from shared memory: while it
//! multiplies a slice of the factors along the sum, the next one is on its way from global memory.

mod launch;

use cubecl::prelude::*;

pub use launch::product;

use super::rows::block;
use super::sums::zeros;
use super::tiles::Quad;

/// Vectors of four rows, and of four columns, that a unit computes.
const QUADS: usize = 2;
/// The length of a slice along the sum.
const DEPTH: usize = 16;

/// How a factor lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Layout {
    /// Whether values that follow each other belong to one sum, and not to neighbouring rows (of the right factor:
    /// columns) of the result.
    along_sum: bool,
    /// Values that are read at once.
    lanes: usize,
}

/// What a launch is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Plan {
    lhs: Layout,
    rhs: Layout,
    /// Values that are written at once.
    lanes: usize,
    /// Rows of units, and columns.
    side: usize,
}

impl Plan {
    /// Vectors along a side of a tile.
    const fn width(&self) -> usize {
        self.side * QUADS
    }

    /// From one step of the sum to the next in shared memory; one more than the width, which spreads the banks.
    const fn pitch(&self) -> usize {
        self.width() + 1
    }

    /// Blocks of four by four values in a slice of a factor.
    const fn blocks(&self) -> usize {
        self.width() * DEPTH / 4
    }

    /// Blocks of both factors' slices that a unit reads.
    const fn share(&self) -> usize {
        2 * self.blocks() / (self.side * self.side)
    }

    /// Vectors of a slice of a factor in shared memory.
    const fn slice(&self) -> usize {
        DEPTH * self.pitch()
    }
}

/// Distances in memory, in values.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub struct Distances {
    /// From a matrix of the batch to the next.
    batch: usize,
    /// From one row, or column, to the next; whichever does not lie together.
    line: usize,
}

/// `out[b] = lhs[b] · rhs[b]` for `[m, k]` and `[k, n]`, added to `to[b]` if `adds`; else that may be any matrices.
#[cube(launch_unchecked, address_type = "dynamic")]
#[allow(clippy::too_many_arguments)]
fn exact_product<L: Size, R: Size, O: Size>(
    lhs: &Array<Vector<f32, L>>,
    rhs: &Array<Vector<f32, R>>,
    to: &Array<Vector<f32, O>>,
    out: &mut Array<Vector<f32, O>>,
    lhs_at: Distances,
    rhs_at: Distances,
    batch: usize,
    m: usize,
    k: usize,
    n: usize,
    #[comptime] adds: bool,
    #[comptime] plan: Plan,
) {
    let (side, width, slice) = comptime!((plan.side, plan.width(), plan.slice()));
    let (pitch, tile) = comptime!((plan.pitch(), 4 * plan.width()));
    let (high, wide) = (m.div_ceil(tile), n.div_ceil(tile));
    let number = block();
    let matrix = number / (high * wide);
    if matrix >= batch {
        terminate!();
    }
    let first_row = number / wide % high * tile;
    let first_column = number % wide * tile;
    let unit = UNIT_POS as usize;
    let (y, x) = (unit / side, unit % side);

    let mut lhs_slices = SharedMemory::<Quad>::new(comptime!(2 * slice));
    let mut rhs_slices = SharedMemory::<Quad>::new(comptime!(2 * slice));
    let mut own = zeros(comptime!(4 * plan.share()));
    let mut sums = zeros(comptime!(4 * QUADS * QUADS));

    let steps = k.div_ceil(DEPTH);
    for turn in 0..steps + 1 {
        // The next slice is read before this one is multiplied, and stored behind that.
        if turn < steps {
            #[unroll]
            for i in 0..comptime!(plan.share()) {
                let item = unit + comptime!(i * side * side);
                if item < comptime!(plan.blocks()) {
                    let place = place_of_block(item, comptime!(plan.lhs), width);
                    let lines = Lines {
                        first: first_row,
                        end: m,
                        distances: lhs_at,
                    };
                    read_block::<L>(
                        lhs,
                        &mut own,
                        i,
                        place,
                        lines,
                        matrix,
                        turn,
                        k,
                        comptime!(plan.lhs),
                    );
                } else {
                    let item = item - comptime!(plan.blocks());
                    let place = place_of_block(item, comptime!(plan.rhs), width);
                    let lines = Lines {
                        first: first_column,
                        end: n,
                        distances: rhs_at,
                    };
                    read_block::<R>(
                        rhs,
                        &mut own,
                        i,
                        place,
                        lines,
                        matrix,
                        turn,
                        k,
                        comptime!(plan.rhs),
                    );
                }
            }
        }
        if turn > 0 {
            let start = (turn + 1) % 2 * slice;
            #[unroll]
            for step in 0..DEPTH {
                let at = start + step * pitch;
                let mut columns = zeros(QUADS);
                #[unroll]
                for j in 0..QUADS {
                    columns[j] = rhs_slices[at + j * side + x];
                }
                #[unroll]
                for i in 0..QUADS {
                    let rows = lhs_slices[at + i * side + y];
                    #[unroll]
                    for r in 0..4usize {
                        #[unroll]
                        for j in 0..QUADS {
                            sums[(i * 4 + r) * QUADS + j] += Quad::new(rows[r]) * columns[j];
                        }
                    }
                }
            }
        }
        if turn < steps {
            let start = turn % 2 * slice;
            #[unroll]
            for i in 0..comptime!(plan.share()) {
                let item = unit + comptime!(i * side * side);
                if item < comptime!(plan.blocks()) {
                    let place = place_of_block(item, comptime!(plan.lhs), width);
                    store_block(
                        &mut lhs_slices,
                        &own,
                        i,
                        place,
                        start,
                        comptime!(plan.lhs),
                        pitch,
                    );
                } else {
                    let item = item - comptime!(plan.blocks());
                    let place = place_of_block(item, comptime!(plan.rhs), width);
                    store_block(
                        &mut rhs_slices,
                        &own,
                        i,
                        place,
                        start,
                        comptime!(plan.rhs),
                        pitch,
                    );
                }
            }
        }
        sync_cube();
    }

    #[unroll]
    for i in 0..QUADS {
        #[unroll]
        for r in 0..4usize {
            let row = first_row + (i * side + y) * 4 + r;
            #[unroll]
            for j in 0..QUADS {
                let column = first_column + (j * side + x) * 4;
                let sum = sums[(i * 4 + r) * QUADS + j];
                let at = (matrix * m + row) * n + column;
                if row < m {
                    if comptime!(plan.lanes == 4) {
                        if column < n {
                            let mut value = Vector::<f32, O>::empty();
                            #[unroll]
                            for lane in 0..4usize {
                                value[lane] = sum[lane];
                            }
                            if comptime!(adds) {
                                value += to[at / 4];
                            }
                            out[at / 4] = value;
                        }
                    } else {
                        #[unroll]
                        for lane in 0..4usize {
                            if column + lane < n {
                                let mut value = Vector::<f32, O>::new(sum[lane]);
                                if comptime!(adds) {
                                    value += to[at + lane];
                                }
                                out[at + lane] = value;
                            }
                        }
                    }
                }
            }
        }
    }
}

/// The rows (or columns) of a factor that a tile begins at and ends before.
#[derive(CubeType, Clone, Copy)]
struct Lines {
    first: usize,
    end: usize,
    distances: Distances,
}

/// A block of a slice: its first row (or column), counted from the tile's, and its first step, each in vectors of four.
#[derive(CubeType, Clone, Copy)]
struct Place {
    line: usize,
    step: usize,
}

/// Units that follow each other read what lies together.
#[cube]
fn place_of_block(item: usize, #[comptime] layout: Layout, #[comptime] width: usize) -> Place {
    let deep = comptime!(DEPTH / 4);
    if comptime!(layout.along_sum) {
        Place {
            line: item / deep,
            step: item % deep,
        }
    } else {
        Place {
            line: item % width,
            step: item / width,
        }
    }
}

/// Reads block `index` as four vectors of what lies together; zeros beyond the factor.
#[cube]
#[allow(clippy::too_many_arguments)]
fn read_block<N: Size>(
    x: &Array<Vector<f32, N>>,
    own: &mut Array<Quad>,
    #[comptime] index: usize,
    place: Place,
    lines: Lines,
    matrix: usize,
    turn: usize,
    k: usize,
    #[comptime] layout: Layout,
) {
    let line = lines.first + place.line * 4;
    let step = turn * DEPTH + place.step * 4;
    let base = matrix * lines.distances.batch;
    #[unroll]
    for i in 0..4usize {
        let to = comptime!(4 * index + i);
        if comptime!(layout.along_sum) {
            let at = base + (line + i) * lines.distances.line + step;
            own[to] = read_lanes::<N>(x, at, line + i < lines.end, step, k, layout);
        } else {
            let at = base + (step + i) * lines.distances.line + line;
            own[to] = read_lanes::<N>(x, at, step + i < k, line, lines.end, layout);
        }
    }
}

/// Four values from `at` on, of which those before `end` are there.
#[cube]
fn read_lanes<N: Size>(
    x: &Array<Vector<f32, N>>,
    at: usize,
    inside: bool,
    first: usize,
    end: usize,
    #[comptime] layout: Layout,
) -> Quad {
    let mut quad = Quad::new(0.0);
    if comptime!(layout.lanes == 4) {
        if inside && first < end {
            let found = x[at / 4];
            #[unroll]
            for lane in 0..4usize {
                quad[lane] = found[lane];
            }
        }
    } else {
        #[unroll]
        for lane in 0..4usize {
            if inside && first + lane < end {
                let found = x[at + lane];
                quad[lane] = found[0];
            }
        }
    }
    quad
}

/// Stores block `index` with the four rows (or columns) of a step in one vector.
#[cube]
fn store_block(
    slices: &mut SharedMemory<Quad>,
    own: &Array<Quad>,
    #[comptime] index: usize,
    place: Place,
    start: usize,
    #[comptime] layout: Layout,
    #[comptime] pitch: usize,
) {
    #[unroll]
    for i in 0..4usize {
        let at = start + (place.step * 4 + i) * pitch + place.line;
        if comptime!(layout.along_sum) {
            let mut quad = Quad::new(0.0);
            #[unroll]
            for lane in 0..4usize {
                let row = own[comptime!(4 * index + lane)];
                quad[lane] = row[i];
            }
            slices[at] = quad;
        } else {
            slices[at] = own[comptime!(4 * index + i)];
        }
    }
}
