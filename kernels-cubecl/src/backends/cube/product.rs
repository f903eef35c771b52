//! Products of f32 matrices on GPUs with matrix units: in f32 or of factors rounded to bf16, and in parts where one product
//! alone would leave most of the GPU idle.

use burn::tensor::DType;
use burn_cubecl::CubeRuntime;
use burn_cubecl::kernel::cast;
use burn_cubecl::kernel::matmul::{MatmulStrategy, init_matmul_output, matmul};
use burn_cubecl::tensor::CubeTensor;
use cubecl::client::ComputeClient;
use cubecl::prelude::*;
use cubecl::zspace::metadata::Metadata;
use cubek::matmul::definition::{MatmulElems, MatmulGlobalElems};
use cubek::matmul::launch::{Strategy, launch_ref};
use cubek::matmul::routines::simple_unit::SimpleUnitSelectionArgs;
use cubek::matmul::routines::{BlueprintStrategy, TileSizeSelection};
use cubek::std::InputBinding;

use crate::{Precision, precision};

/// Rows and columns of the result that one cube computes, about.
const TILE: usize = 64;
/// The shortest sum that is worth a cube of its own.
const SHORTEST: usize = 256;

/// Whether Burn would round the operands, and must not: its kernels for matrix units multiply f32 in TF32, which
/// has a mantissa of ten bits.
pub fn must_be_exact<R: CubeRuntime>(client: &ComputeClient<R>, dtype: DType) -> bool {
    dtype == DType::F32 && precision() == Precision::F32 && has_tf32(client)
}

/// Whether the device has matrix units for TF32.
pub fn has_tf32<R: CubeRuntime>(client: &ComputeClient<R>) -> bool {
    let tf32 = cubecl::tf32::as_type_native_unchecked().storage_type();
    client.properties().supports_type(tf32)
}

/// The product of f32 factors that are rounded to bf16, with sums and result in f32.
pub fn of_bf16<R: CubeRuntime>(lhs: CubeTensor<R>, rhs: CubeTensor<R>) -> CubeTensor<R> {
    let [lhs, rhs] = [lhs, rhs].map(|x| cast(x, DType::BF16));
    matmul(lhs, rhs, None, MatmulStrategy::default(), DType::F32)
        .expect("matrices that fit are multiplied on every device")
}

/// Into how many parts of equal length the sums of a product `[m, k] · [k, n]` are divided, so that every
/// multiprocessor has a cube. It depends on sizes and the device alone.
pub fn parts<R: CubeRuntime>(client: &ComputeClient<R>, [m, k, n]: [usize; 3]) -> usize {
    let processors = client.properties().hardware.num_streaming_multiprocessors;
    let processors = processors.unwrap_or(1) as usize;
    let cubes = m.div_ceil(TILE) * n.div_ceil(TILE);
    let most = (processors / cubes.max(1)).min(k / SHORTEST);
    (1..=most).rev().find(|parts| k % parts == 0).unwrap_or(1)
}

/// Views of `lhs` `[m, k]` and `rhs` `[k, n]` as `[parts, m, k / parts]` and `[parts, k / parts, n]`: the sum of
/// their products over the first dimension is the product.
pub fn divide<R: CubeRuntime>(
    mut lhs: CubeTensor<R>,
    mut rhs: CubeTensor<R>,
    parts: usize,
) -> (CubeTensor<R>, CubeTensor<R>) {
    let ([m, k], [_, n]) = (lhs.meta.shape().dims(), rhs.meta.shape().dims());
    let long = k / parts;
    let (row, column) = (lhs.meta.strides()[0], lhs.meta.strides()[1]);
    *lhs.meta = Metadata::new([parts, m, long], [column * long, row, column]);
    let (row, column) = (rhs.meta.strides()[0], rhs.meta.strides()[1]);
    *rhs.meta = Metadata::new([parts, long, n], [row * long, row, column]);
    (lhs, rhs)
}

/// The product without matrix units; of several matrices, if there is a dimension in front.
pub fn exact<R: CubeRuntime>(lhs: CubeTensor<R>, rhs: CubeTensor<R>) -> CubeTensor<R> {
    let dtype = lhs.dtype;
    let out = init_matmul_output(&lhs, &rhs, dtype);
    let mut dtypes = MatmulElems::from_globals(&MatmulGlobalElems {
        lhs: dtype.into(),
        rhs: dtype.into(),
        out: dtype.into(),
    });
    // Cubek 0.2's `DoubleUnit` reads beyond the factors where their sizes are no multiples of its tiles.
    let strategy = Strategy::SimpleUnit(BlueprintStrategy::Inferred(SimpleUnitSelectionArgs {
        tile_size: TileSizeSelection::MaxTileSize,
    }));
    let client = out.client.clone();
    launch_ref(
        &strategy,
        &client,
        InputBinding::new(lhs.binding(), dtype.into()),
        InputBinding::new(rhs.binding(), dtype.into()),
        out.clone().binding(),
        &mut dtypes,
    )
    .expect("matrices that fit are multiplied without matrix units on every device");
    out
}
