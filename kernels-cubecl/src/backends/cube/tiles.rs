//! How an attention is cut into tiles, and who of a cube has which part of one.
//!
//! A cube *owns* a tile of rows (queries, or keys) and walks over tiles of the *other* side. For each
//! pair of tiles it needs two kinds of product, and everything between them is elementwise:
//!
//! - scores, such as `S = Q Kᵀ`: `score[own][other] += Σ_d own[own][d] · other[other][d]`;
//! - outputs, such as `O = P V`: `out[own][d] += Σ_other weight[own][other] · other[other][d]`.
//!
//! A unit holds four by four scores in registers, as four vectors of four. [`room`](super::room) has
//! the products.

use cubecl::ir::features::MmaConfig;
use cubecl::ir::{DeviceProperties, ElemType, FloatKind, StorageType};
use cubecl::prelude::*;

/// Four numbers that move together. Sums are always in f32, whatever the tensors hold.
pub type Quad = Vector<f32, Const<4>>;

/// Stands for −∞, which not every shader language can write down.
pub const HIDDEN: f32 = -1e30;

/// The side of the matrices that matrix units multiply, and the units that work on one together.
pub const MATRIX: usize = 16;
pub const PLANE: usize = 32;

/// With more shared memory a cube, too few of them would be on a multiprocessor at once.
const MOST_SHARED_BYTES: usize = 64 << 10;

/// The shape of a kernel's tiles, known when it is compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tiles {
    /// Rows of the owned tile, and of the other one: a multiple of four, of 32 with `matrix`.
    pub side: usize,
    /// Columns of the head that are staged at once.
    pub depth: usize,
    /// The head dim.
    pub dim: usize,
    /// Operands that are staged at once.
    pub operands: usize,
    /// Whether the products are left to matrix units (tensor cores).
    pub matrix: bool,
}

impl Tiles {
    /// The largest tiles that fit the device, for sequences of about `len`. Small sides suit short
    /// sequences, and small heads, of which a large tile's units would each have too little to do.
    pub fn fitting(
        operands: usize,
        dim: usize,
        len: usize,
        dtype: StorageType,
        device: &DeviceProperties,
    ) -> Option<Self> {
        let large = dim > 32 && len > 32;
        let shared = device.hardware.max_shared_memory_size;
        let shared = shared.min(MOST_SHARED_BYTES);
        let sizes = [(64, 16), (64, 8), (32, 16), (32, 8), (16, 8), (16, 4)];
        let by_matrix = multiplies(dtype, device).then_some(true);
        by_matrix
            .into_iter()
            .chain([false])
            .flat_map(|matrix| {
                sizes.map(|(side, depth)| Self {
                    side,
                    depth,
                    dim,
                    operands,
                    matrix,
                })
            })
            .filter(|tiles| large || tiles.side <= 32)
            .filter(|tiles| !tiles.matrix || (tiles.side >= 32 && tiles.depth == MATRIX))
            .find(|tiles| {
                tiles.shared_bytes() <= shared
                    && tiles.units() <= device.hardware.max_units_per_cube as usize
            })
    }

    /// Units along each axis of the tile.
    pub const fn lanes(&self) -> usize {
        self.side / 4
    }

    pub const fn units(&self) -> usize {
        self.lanes() * self.lanes()
    }

    /// Planes of a cube.
    pub const fn planes(&self) -> usize {
        self.units() / PLANE
    }

    /// Bytes of shared memory that a kernel with these tiles takes.
    pub const fn shared_bytes(&self) -> usize {
        let quads = self.stage_quads() + self.weight_quads();
        let numbers = self.stage_numbers() + self.weight_numbers();
        quads * 16 + numbers * 2 + self.score_numbers() * 4
    }
}

/// Whether the device has matrix units for this type that every plane of 32 can use.
fn multiplies(dtype: StorageType, device: &DeviceProperties) -> bool {
    let config = MmaConfig {
        a_type: dtype,
        b_type: dtype,
        cd_type: StorageType::Scalar(ElemType::Float(FloatKind::F32)),
        m: MATRIX as u32,
        n: MATRIX as u32,
        k: MATRIX as u32,
    };
    let hardware = &device.hardware;
    let planes = (hardware.plane_size_min, hardware.plane_size_max);
    // In f32 they would round what they multiply.
    dtype.size() == 2
        && planes == (PLANE as u32, PLANE as u32)
        && device.features.matmul.cmma.contains(&config)
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

/// The keys this cube owns.
#[cube]
pub fn owned_keys(head: usize, sizes: &Sizes, #[comptime] tiles: Tiles) -> Rows {
    let first = CUBE_POS_X as usize * comptime!(tiles.side);
    Rows::new(head, first, sizes.key_len)
}

/// How many tiles of keys a tile of queries sees.
#[cube]
pub fn key_tiles(queries: Rows, sizes: &Sizes, #[comptime] tiles: Tiles) -> usize {
    let side = comptime!(tiles.side);
    let beyond = queries.first + side + sizes.key_len - sizes.query_len;
    min(beyond, sizes.key_len).div_ceil(side)
}

/// One of those tiles.
#[cube]
pub fn other_keys(head: usize, tile: usize, sizes: &Sizes, #[comptime] tiles: Tiles) -> Rows {
    Rows::new(
        head / sizes.group,
        tile * comptime!(tiles.side),
        sizes.key_len,
    )
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

/// A tensor's number, or zero where there is none; without a branch.
#[cube]
pub fn read<F: Float>(x: &Array<F>, at: usize, inside: bool) -> F {
    let number = x[select(inside, at, 0usize)];
    select(inside, number, F::new(0.0))
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
        quad[i] = read::<f32>(x, base + row, row < rows.len);
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

/// Where this unit's four queries are in their tile.
#[cube]
pub fn query_lane(#[comptime] own: Own, #[comptime] tiles: Tiles) -> usize {
    if comptime!(own == Own::Queries) {
        own_lane(tiles)
    } else {
        other_lane(tiles)
    }
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
            let seen = query < queries.len && key < keys.len && key <= query + ahead;
            quad[j] = select(seen, shifted[j], HIDDEN);
        }
        scores[i] = quad;
    }
}
