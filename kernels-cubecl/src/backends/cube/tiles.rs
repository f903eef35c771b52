//! How an attention is divided into tiles, and a tile into the parts of a cube's units.
//!
//! A cube computes the results of one tile of rows (queries, or keys), its *own* tile, in a loop over the
//! tiles of the *other* side (keys, or queries). For each pair of tiles it needs two kinds of product;
//! everything between them is elementwise:
//!
//! - scores, such as `S = Q Kᵀ`: `score[own][other] += Σ_d own[own][d] · other[other][d]`;
//! - outputs, such as `O = P V`: `out[own][d] += Σ_other weight[own][other] · other[other][d]`.
//!
//! A unit holds four by four scores in registers, as four vectors of four. The products are in
//! [`shared`](super::shared).

use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use cubecl::ir::features::MmaConfig;
use cubecl::ir::{DeviceProperties, ElemType, FloatKind, StorageType};
use cubecl::prelude::*;

use super::matrix_units::{CUDA, HIP, computes_bf16};
use super::product::begins_at;

/// A vector of four values. Sums are always in f32, whatever the type of the tensors.
pub type Quad = Vector<f32, Const<4>>;

/// The score of a masked key: finite, because WGSL has no literal for −∞.
pub const HIDDEN: f32 = -1e30;

/// The side of the matrices that matrix units multiply.
pub const MATRIX: usize = 16;
/// The number of units that multiply one matrix together.
pub const PLANE: usize = 32;

/// The limit of shared memory per cube, in bytes; with more, too few cubes would run on a multiprocessor at
/// once.
const MOST_SHARED_BYTES: usize = 64 << 10;

/// The shape of a kernel's tiles, a compile-time constant of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tiles {
    /// Rows of each tile, the cube's own and the other: a multiple of four, of 32 with `matrix`.
    pub side: usize,
    /// Columns of the head dim that are staged at once.
    pub depth: usize,
    /// The head dim.
    pub dim: usize,
    /// Operands that are staged at once.
    pub operands: usize,
    /// Whether matrix units (tensor cores) compute the products.
    pub matrix: bool,
    /// Values that a unit stages at once: one, or with `matrix` [`TOGETHER`].
    pub together: usize,
}

/// Values of 16 bits in the widest access to memory, 16 bytes.
pub const TOGETHER: usize = 8;

impl Tiles {
    /// The largest tiles that fit the device, for sequences of about `len`; with matrix units if the device `multiplies` by them.
    /// Sides are at most 32 for short sequences and small head dims, where the units of a larger tile would each have too little
    /// work.
    pub fn fitting(
        operands: usize,
        dim: usize,
        len: usize,
        multiplies: bool,
        device: &DeviceProperties,
    ) -> Option<Self> {
        let large = dim > 32 && len > 32;
        let shared = device.hardware.max_shared_memory_size;
        let shared = shared.min(MOST_SHARED_BYTES);
        let sizes = [(64, 16), (64, 8), (32, 16), (32, 8), (16, 8), (16, 4)];
        let by_matrix = multiplies.then_some(true);
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
                    together: 1,
                })
            })
            .filter(|tiles| large || tiles.side <= 32)
            .filter(|tiles| !tiles.matrix || (tiles.side >= 32 && tiles.depth == MATRIX))
            .find(|tiles| {
                tiles.shared_bytes() <= shared
                    && tiles.units() <= device.hardware.max_units_per_cube as usize
            })
    }

    /// The same with wide accesses, where rows begin at multiples of 16 bytes and the runtime has them: only CUDA's takes an array of
    /// values as one of vectors.
    pub fn reading<R: CubeRuntime, const N: usize>(self, tensors: [&CubeTensor<R>; N]) -> Self {
        let wide = self.matrix
            && self.dim.is_multiple_of(TOGETHER)
            && R::name(&tensors[0].client) == CUDA
            && tensors.into_iter().all(|x| begins_at(x, 16));
        let together = if wide { TOGETHER } else { 1 };
        Self { together, ..self }
    }

    /// Units along each axis of the tile.
    pub const fn lanes(&self) -> usize {
        self.side / 4
    }

    /// Units of a cube.
    pub const fn units(&self) -> usize {
        self.lanes() * self.lanes()
    }

    /// Planes of a cube.
    pub const fn planes(&self) -> usize {
        self.units() / PLANE
    }

    /// Bytes of shared memory that a kernel with these tiles needs.
    pub const fn shared_bytes(&self) -> usize {
        let quads = self.stage_quads() + self.weight_quads();
        let numbers = self.stage_numbers() + self.weight_numbers();
        quads * 16 + numbers * 2 + self.score_numbers() * 4
    }
}

/// Whether a device of this runtime has matrix units for this type and planes of 32 units.
pub fn multiplies(dtype: StorageType, runtime: &str, device: &DeviceProperties) -> bool {
    let config = MmaConfig {
        a_type: dtype,
        b_type: dtype,
        cd_type: StorageType::Scalar(ElemType::Float(FloatKind::F32)),
        m: MATRIX as u32,
        n: MATRIX as u32,
        k: MATRIX as u32,
    };
    let bf16 = StorageType::Scalar(ElemType::Float(FloatKind::BF16));
    let hardware = &device.hardware;
    let planes = (hardware.plane_size_min, hardware.plane_size_max);
    // For f32 inputs matrix units would round to fewer bits.
    dtype.size() == 2
        && runtime != HIP
        && (dtype != bf16 || computes_bf16(runtime, device))
        && planes == (PLANE as u32, PLANE as u32)
        && device.features.matmul.cmma.contains(&config)
}

/// The sizes of an attention.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub struct Sizes {
    /// Heads of all samples over which the kernel's cubes are spread: query heads, or key/value heads.
    pub heads: usize,
    /// Key/value heads of a sample.
    pub kv_heads: usize,
    /// Query heads that share a key/value head.
    pub group: usize,
    pub query_len: usize,
    pub key_len: usize,
    /// The factor of the scores.
    pub scale: f32,
}

/// The rows of a tile in one tensor, in whose memory the heads of a position are one after another.
#[derive(CubeType, Clone, Copy)]
pub struct Rows {
    /// The head, counted over all samples.
    pub head: usize,
    /// The heads of a sample.
    pub heads: usize,
    /// The tile's first row.
    pub first: usize,
    /// The number of rows of the head; rows beyond it count as zero.
    pub len: usize,
}

#[cube]
impl Rows {
    pub fn new(head: usize, heads: usize, first: usize, len: usize) -> Rows {
        Rows {
            head,
            heads,
            first,
            len,
        }
    }

    /// The index of the head's first value in a tensor of `width` values per row.
    pub fn base(self, #[comptime] width: usize) -> usize {
        (self.head / self.heads * self.heads * self.len + self.head % self.heads) * width
    }

    /// From one row of the head to the next in such a tensor.
    pub fn step(self, #[comptime] width: usize) -> usize {
        self.heads * width
    }
}

/// The head this cube works on.
#[cube]
pub fn head() -> usize {
    CUBE_POS_Y as usize + CUBE_POS_Z as usize * CUBE_COUNT_Y as usize
}

/// The own queries of this cube. The last tiles come first, because they attend to the most keys.
#[cube]
pub fn own_queries(head: usize, sizes: &Sizes, #[comptime] tiles: Tiles) -> Rows {
    let side = comptime!(tiles.side);
    let last = (sizes.query_len - 1) / side;
    let first = (last - CUBE_POS_X as usize) * side;
    query_rows(head, first, sizes)
}

/// The rows of a query head from `first` on.
#[cube]
pub fn query_rows(head: usize, first: usize, sizes: &Sizes) -> Rows {
    Rows::new(head, sizes.kv_heads * sizes.group, first, sizes.query_len)
}

/// The own keys of this cube.
#[cube]
pub fn own_keys(head: usize, sizes: &Sizes, #[comptime] tiles: Tiles) -> Rows {
    let first = CUBE_POS_X as usize * comptime!(tiles.side);
    Rows::new(head, sizes.kv_heads, first, sizes.key_len)
}

/// The number of tiles of keys that a tile of queries attends to.
#[cube]
pub fn key_tiles(queries: Rows, sizes: &Sizes, #[comptime] tiles: Tiles) -> usize {
    let side = comptime!(tiles.side);
    let beyond = queries.first + side + sizes.key_len - sizes.query_len;
    min(beyond, sizes.key_len).div_ceil(side)
}

/// The tile of keys with the index `tile`.
#[cube]
pub fn other_keys(head: usize, tile: usize, sizes: &Sizes, #[comptime] tiles: Tiles) -> Rows {
    let first = tile * comptime!(tiles.side);
    Rows::new(head / sizes.group, sizes.kv_heads, first, sizes.key_len)
}

/// The index of the first tile of queries that attends to any key of a tile.
#[cube]
pub fn first_query_tile(keys: Rows, sizes: &Sizes, #[comptime] tiles: Tiles) -> usize {
    let ahead = sizes.key_len - sizes.query_len;
    (max(keys.first, ahead) - ahead) / comptime!(tiles.side)
}

/// The position of this unit's four rows in the own tile, in units of four rows.
#[cube]
pub fn own_lane(#[comptime] tiles: Tiles) -> usize {
    UNIT_POS as usize / comptime!(tiles.lanes())
}

/// The position of this unit's four rows in the other tile, in units of four rows.
#[cube]
pub fn other_lane(#[comptime] tiles: Tiles) -> usize {
    UNIT_POS as usize % comptime!(tiles.lanes())
}

/// `x[at]` if `inside`, otherwise zero; without a branch.
#[cube]
pub fn read<F: Float>(x: &Array<F>, at: usize, inside: bool) -> F {
    let number = x[select(inside, at, 0usize)];
    select(inside, number, F::new(0.0))
}

/// Four values of a tensor with one value per row, head after head; zero beyond its rows. `lane` is the unit's position in
/// the tile, `skip` the number of values before the first head.
#[cube]
pub fn read_quad(x: &Array<f32>, rows: Rows, lane: usize, skip: usize) -> Quad {
    let base = skip + rows.head * rows.len;
    let mut quad = Quad::new(0.0);
    #[unroll]
    for i in 0..4usize {
        let row = rows.first + lane * 4 + i;
        quad[i] = read::<f32>(x, base + row, row < rows.len);
    }
    quad
}

/// The inverse of [`read_quad`] for own rows; all units of a row hold its value, one of them writes it.
#[cube]
pub fn write_quad(
    x: &mut Array<f32>,
    rows: Rows,
    skip: usize,
    quad: Quad,
    #[comptime] tiles: Tiles,
) {
    let base = skip + rows.head * rows.len;
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

/// For each of the unit's four own rows, the sum of its four scores.
#[cube]
pub fn row_sums(scores: &Array<Quad>) -> Quad {
    let mut sums = Quad::new(0.0);
    #[unroll]
    for i in 0..4usize {
        sums[i] = scores[i][0] + scores[i][1] + scores[i][2] + scores[i][3];
    }
    sums
}

/// The position of this unit's four queries in their tile, in units of four rows.
#[cube]
pub fn query_lane(#[comptime] own: Own, #[comptime] tiles: Tiles) -> usize {
    if comptime!(own == Own::Queries) {
        own_lane(tiles)
    } else {
        other_lane(tiles)
    }
}

/// Whether the own tiles of a kernel's cubes are queries or keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Own {
    Queries,
    Keys,
}

/// The values of the queries of the four scores in own row `i`, from the values of the unit's four queries.
#[cube]
pub fn per_query(quad: Quad, #[comptime] i: usize, #[comptime] own: Own) -> Quad {
    if comptime!(own == Own::Queries) {
        Quad::new(quad[i])
    } else {
        quad
    }
}

/// `s·S − shift` where the query attends to the key, [`HIDDEN`] elsewhere.
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
