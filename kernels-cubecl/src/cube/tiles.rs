//! What the attention kernels are made of: tiles of two sides, staged through shared memory.
//!
//! A cube *owns* a tile of rows (queries, or keys) and walks over tiles of the *other* side. For each
//! pair of tiles it needs two kinds of product, and everything between them is elementwise:
//!
//! - scores, such as `S = Q Kᵀ`: `score[own][other] += Σ_d own[own][d] · other[other][d]`;
//! - outputs, such as `O = P V`: `out[own][d] += Σ_other weight[own][other] · other[other][d]`.
//!
//! A unit holds four by four scores in registers, as four vectors of four. Operands are staged in
//! shared memory a few columns of the head at a time, with four rows side by side in one vector, so
//! that a unit reads two vectors for sixteen multiplications. Weights go through shared memory
//! transposed, so that the second product reads them in the same way. Nothing grows with the
//! sequence, and any head dim fits by taking it in more stages.

use cubecl::ir::HardwareProperties;
use cubecl::prelude::*;

/// Four numbers that move together. Sums are always in f32, whatever the tensors hold.
pub type Quad = Vector<f32, Const<4>>;

/// Stands for −∞, which not every shader language can write down.
pub const HIDDEN: f32 = -1e30;

/// More shared memory a cube would leave too few of them on a multiprocessor.
const MOST_SHARED_BYTES: usize = 48 << 10;

/// The shape of a kernel's tiles, known when it is compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tiles {
    /// Rows of the owned tile, and of the other one: a multiple of four.
    pub side: usize,
    /// Columns of the head that are staged at once.
    pub depth: usize,
    /// The head dim.
    pub dim: usize,
    /// Operands that are staged at once.
    pub operands: usize,
}

impl Tiles {
    /// Units along each axis of the tile.
    pub const fn lanes(&self) -> usize {
        self.side / 4
    }

    pub const fn units(&self) -> usize {
        self.lanes() * self.lanes()
    }

    /// Vectors from one staged column to the next; the odd one keeps the units on different banks.
    pub const fn pitch(&self) -> usize {
        self.side / 4 + 1
    }

    /// Vectors of one staged operand.
    pub const fn operand(&self) -> usize {
        self.depth * self.pitch()
    }

    /// Vectors of an output row that one unit holds.
    pub const fn spread(&self) -> usize {
        self.dim.div_ceil(4).div_ceil(self.lanes())
    }

    /// Vectors of a whole output row.
    pub const fn width(&self) -> usize {
        self.spread() * self.lanes()
    }

    /// Rows of the other side that are staged at once for an output product.
    pub const fn reach(&self) -> usize {
        let mut reach = self.side;
        while reach > self.depth && reach * self.width() > self.operands * self.operand() {
            reach /= 2;
        }
        reach
    }

    /// Vectors of the stage.
    pub const fn stage(&self) -> usize {
        let (rows, columns) = (self.reach() * self.width(), self.operands * self.operand());
        if rows > columns { rows } else { columns }
    }

    /// Vectors of the weights.
    pub const fn weights(&self) -> usize {
        self.side * self.pitch()
    }

    /// The largest tiles that fit the device, for sequences of about `len`. Small sides suit short
    /// sequences, and small heads, of which a large tile's units would each have too little to do.
    pub fn fitting(
        operands: usize,
        dim: usize,
        len: usize,
        hardware: &HardwareProperties,
    ) -> Option<Self> {
        let large = dim > 32 && len > 32;
        let shared = hardware.max_shared_memory_size.min(MOST_SHARED_BYTES);
        [(64, 16), (64, 8), (32, 16), (32, 8), (16, 8), (16, 4)]
            .into_iter()
            .map(|(side, depth)| Self {
                side,
                depth,
                dim,
                operands,
            })
            .filter(|tiles| large || tiles.side <= 32)
            .find(|tiles| {
                tiles.shared_bytes() <= shared
                    && tiles.units() <= hardware.max_units_per_cube as usize
            })
    }

    /// Bytes of shared memory that a kernel with these tiles takes.
    pub const fn shared_bytes(&self) -> usize {
        (self.stage() + self.weights()) * size_of::<[f32; 4]>()
    }
}

/// What an attention is over.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub struct Sizes {
    /// Heads of all samples that the kernel's cubes own: query heads, or key/value heads.
    pub heads: usize,
    /// Query heads that share a key/value head.
    pub group: usize,
    pub query_len: usize,
    pub key_len: usize,
    /// What scores are multiplied with.
    pub scale: f32,
}

/// A tile's rows in one tensor.
#[derive(CubeType, Clone, Copy)]
pub struct Rows {
    pub head: usize,
    /// The tile's first row.
    pub first: usize,
    /// The rows of the head; what is beyond them counts as zero.
    pub len: usize,
}

#[cube]
impl Rows {
    pub fn new(head: usize, first: usize, len: usize) -> Rows {
        Rows { head, first, len }
    }

    /// Where the head begins in a tensor of `width` numbers a row.
    pub fn base(self, #[comptime] width: usize) -> usize {
        self.head * self.len * width
    }
}

/// The head this cube works on.
#[cube]
pub fn head() -> usize {
    CUBE_POS_Y as usize + CUBE_POS_Z as usize * CUBE_COUNT_Y as usize
}

/// The queries this cube owns. Later ones see more keys: they come first.
#[cube]
pub fn owned_queries(head: usize, sizes: &Sizes, #[comptime] tiles: Tiles) -> Rows {
    let side = comptime!(tiles.side);
    let last = (sizes.query_len - 1) / side;
    Rows::new(head, (last - CUBE_POS_X as usize) * side, sizes.query_len)
}

/// How many tiles of keys a tile of queries sees.
#[cube]
pub fn key_tiles(queries: Rows, sizes: &Sizes, #[comptime] tiles: Tiles) -> usize {
    let side = comptime!(tiles.side);
    let beyond = queries.first + side + sizes.key_len - sizes.query_len;
    (min(beyond, sizes.key_len) + side - 1) / side
}

/// The first tile of queries that sees any of a tile of keys.
#[cube]
pub fn first_query_tile(keys: Rows, sizes: &Sizes, #[comptime] tiles: Tiles) -> usize {
    let ahead = sizes.key_len - sizes.query_len;
    (max(keys.first, ahead) - ahead) / comptime!(tiles.side)
}

/// Where this unit's four rows of the owned tile are.
#[cube]
pub fn own_lane(#[comptime] tiles: Tiles) -> usize {
    UNIT_POS as usize / comptime!(tiles.lanes())
}

/// Where this unit's four rows of the other tile are.
#[cube]
pub fn other_lane(#[comptime] tiles: Tiles) -> usize {
    UNIT_POS as usize % comptime!(tiles.lanes())
}

#[cube]
pub fn zeros(#[comptime] count: usize) -> Array<Quad> {
    let mut quads = Array::<Quad>::new(count);
    #[unroll]
    for i in 0..count {
        quads[i] = Quad::new(0.0);
    }
    quads
}

/// Stages the columns from `column` on of a tile as operand number `at`.
#[cube]
pub fn stage_columns<F: Float>(
    stage: &mut SharedMemory<Quad>,
    #[comptime] at: usize,
    x: &Array<F>,
    rows: Rows,
    column: usize,
    #[comptime] tiles: Tiles,
) {
    let depth = comptime!(tiles.depth);
    let dim = comptime!(tiles.dim);
    let items = comptime!(tiles.lanes() * tiles.depth);
    let turns = comptime!(items.div_ceil(tiles.units()));
    let base = rows.base(dim);
    #[unroll]
    for turn in 0..turns {
        let item = UNIT_POS as usize + turn * comptime!(tiles.units());
        if comptime!(items % tiles.units() == 0) || item < items {
            let d = item % depth;
            let lane = item / depth;
            let mut quad = Quad::new(0.0);
            #[unroll]
            for i in 0..4usize {
                let row = rows.first + lane * 4 + i;
                if row < rows.len && column + d < dim {
                    quad[i] = f32::cast_from(x[base + row * dim + column + d]);
                }
            }
            stage[comptime!(at * tiles.operand()) + d * comptime!(tiles.pitch()) + lane] = quad;
        }
    }
}

/// A staged operand's four rows in column `d`.
#[cube]
pub fn staged(
    stage: &SharedMemory<Quad>,
    #[comptime] at: usize,
    d: usize,
    lane: usize,
    #[comptime] tiles: Tiles,
) -> Quad {
    stage[comptime!(at * tiles.operand()) + d * comptime!(tiles.pitch()) + lane]
}

/// `scores[own][other] += own · other`
#[cube]
pub fn add_outer(scores: &mut Array<Quad>, own: Quad, other: Quad) {
    #[unroll]
    for i in 0..4usize {
        scores[i] += Quad::new(own[i]) * other;
    }
}

/// Makes this unit's scores the weights of the next output product.
#[cube]
pub fn put_weights(
    weights: &mut SharedMemory<Quad>,
    scores: &Array<Quad>,
    #[comptime] tiles: Tiles,
) {
    let (own, other) = (own_lane(tiles), other_lane(tiles));
    sync_cube();
    #[unroll]
    for j in 0..4usize {
        let mut quad = Quad::new(0.0);
        #[unroll]
        for i in 0..4usize {
            quad[i] = scores[i][j];
        }
        weights[(other * 4 + j) * comptime!(tiles.pitch()) + own] = quad;
    }
}

/// `out[own][d] += Σ_other weights[own][other] · x[other][d]`
#[cube]
pub fn add_product<F: Float>(
    out: &mut Array<Quad>,
    weights: &SharedMemory<Quad>,
    stage: &mut SharedMemory<Quad>,
    x: &Array<F>,
    rows: Rows,
    #[comptime] tiles: Tiles,
) {
    let (own, other) = (own_lane(tiles), other_lane(tiles));
    let (dim, width, reach) = comptime!((tiles.dim, tiles.width(), tiles.reach()));
    let spread = comptime!(tiles.spread());
    let turns = comptime!((reach * width).div_ceil(tiles.units()));
    let base = rows.base(dim);
    for part in 0..comptime!(tiles.side / reach) {
        sync_cube();
        for turn in 0..turns {
            let item = UNIT_POS as usize + turn * comptime!(tiles.units());
            if comptime!((reach * width) % tiles.units() == 0) || item < reach * width {
                let row = rows.first + part * reach + item / width;
                let column = item % width * 4;
                let mut quad = Quad::new(0.0);
                #[unroll]
                for i in 0..4usize {
                    if row < rows.len && column + i < dim {
                        quad[i] = f32::cast_from(x[base + row * dim + column + i]);
                    }
                }
                stage[item] = quad;
            }
        }
        sync_cube();
        for k in 0..reach {
            let weight = weights[(part * reach + k) * comptime!(tiles.pitch()) + own];
            #[unroll]
            for n in 0..spread {
                let quad = stage[k * width + other + n * comptime!(tiles.lanes())];
                #[unroll]
                for i in 0..4usize {
                    out[i * spread + n] += Quad::new(weight[i]) * quad;
                }
            }
        }
    }
}

/// Writes this unit's part of an output tile, each of its four rows times its own `factor`.
#[cube]
pub fn write_rows<F: Float>(
    x: &mut Array<F>,
    rows: Rows,
    out: &Array<Quad>,
    factor: Quad,
    #[comptime] tiles: Tiles,
) {
    let (own, other) = (own_lane(tiles), other_lane(tiles));
    let (dim, spread) = comptime!((tiles.dim, tiles.spread()));
    let base = rows.base(dim);
    #[unroll]
    for i in 0..4usize {
        let row = rows.first + own * 4 + i;
        #[unroll]
        for n in 0..spread {
            let quad = out[i * spread + n] * Quad::new(factor[i]);
            #[unroll]
            for c in 0..4usize {
                let column = (other + n * comptime!(tiles.lanes())) * 4 + c;
                if row < rows.len && column < dim {
                    x[base + row * dim + column] = F::cast_from(quad[c]);
                }
            }
        }
    }
}

/// The sum, or the largest, over the other side of what each unit has for its four owned rows.
#[cube]
pub fn across(
    weights: &mut SharedMemory<Quad>,
    part: Quad,
    #[comptime] largest: bool,
    #[comptime] tiles: Tiles,
) -> Quad {
    let (own, other) = (own_lane(tiles), other_lane(tiles));
    sync_cube();
    weights[other * comptime!(tiles.pitch()) + own] = part;
    sync_cube();
    let mut all = weights[own];
    for lane in 1..comptime!(tiles.lanes()) {
        let next = weights[lane * comptime!(tiles.pitch()) + own];
        if comptime!(largest) {
            all = max(all, next);
        } else {
            all += next;
        }
    }
    all
}

/// Four numbers of a tensor with one number a row, zero beyond its rows. `lane` is the unit's place
/// in the tile, `skip` what lies before the first head.
#[cube]
pub fn read_quad(x: &Array<f32>, rows: Rows, lane: usize, skip: usize) -> Quad {
    let base = skip + rows.base(1usize);
    let mut quad = Quad::new(0.0);
    #[unroll]
    for i in 0..4usize {
        let row = rows.first + lane * 4 + i;
        if row < rows.len {
            quad[i] = x[base + row];
        }
    }
    quad
}

/// The inverse of [`read_quad`] for the owned rows; all units of a row have its number, one writes it.
#[cube]
pub fn write_quad(
    x: &mut Array<f32>,
    rows: Rows,
    skip: usize,
    quad: Quad,
    #[comptime] tiles: Tiles,
) {
    let base = skip + rows.base(1usize);
    if other_lane(tiles) == 0 {
        #[unroll]
        for i in 0..4usize {
            let row = rows.first + own_lane(tiles) * 4 + i;
            if row < rows.len {
                x[base + row] = quad[i];
            }
        }
    }
}

/// The sum of a score row's four numbers, for each of the unit's four owned rows.
#[cube]
pub fn row_sums(scores: &Array<Quad>) -> Quad {
    let mut sums = Quad::new(0.0);
    #[unroll]
    for i in 0..4usize {
        sums[i] = scores[i][0] + scores[i][1] + scores[i][2] + scores[i][3];
    }
    sums
}

/// Whether the kernel's cubes own queries or keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Own {
    Queries,
    Keys,
}

/// What belongs to the query of each score in the owned row `i`, given what belongs to the unit's
/// four queries.
#[cube]
pub fn per_query(quad: Quad, #[comptime] i: usize, #[comptime] own: Own) -> Quad {
    if comptime!(own == Own::Queries) {
        Quad::new(quad[i])
    } else {
        quad
    }
}

/// `s·S − shift` where the query sees the key, [`HIDDEN`] elsewhere.
#[cube]
pub fn mask(
    scores: &mut Array<Quad>,
    shift: Quad,
    queries: Rows,
    keys: Rows,
    scale: f32,
    #[comptime] own: Own,
    #[comptime] tiles: Tiles,
) {
    let ahead = keys.len - queries.len;
    let (own_lane, other_lane) = (own_lane(tiles), other_lane(tiles));
    #[unroll]
    for i in 0..4usize {
        let shifted = scores[i] * Quad::new(scale) - per_query(shift, i, own);
        let mut quad = Quad::new(HIDDEN);
        #[unroll]
        for j in 0..4usize {
            let (mine, theirs) = (own_lane * 4 + i, other_lane * 4 + j);
            let (query, key) = if comptime!(own == Own::Queries) {
                (queries.first + mine, keys.first + theirs)
            } else {
                (queries.first + theirs, keys.first + mine)
            };
            if query < queries.len && key < keys.len && key <= query + ahead {
                quad[j] = shifted[j];
            }
        }
        scores[i] = quad;
    }
}
