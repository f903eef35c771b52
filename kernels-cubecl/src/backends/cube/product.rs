//! Products of f32 matrices on GPUs with matrix units, of factors rounded to TF32 or bf16; and parts of long sums where one product alone
//! would leave most of the GPU idle.

use burn::tensor::DType;
use burn_cubecl::CubeRuntime;
use burn_cubecl::kernel::cast;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use cubecl::client::ComputeClient;
use cubecl::features::Tma;
use cubecl::prelude::*;
use cubecl::zspace::{calculate_matmul_output, metadata::Metadata};
use cubek::matmul::definition::{MatmulElems, MatmulGlobalElems};
use cubek::matmul::launch::{Strategy, launch_ref};
use cubek::std::InputBinding;

/// Rows and columns of the result that one cube computes, about.
const TILE: usize = 64;
/// The shortest sum that is worth a cube of its own.
const SHORTEST: usize = 256;
/// Cubes for each multiprocessor of a product that is divided: while one waits for memory, another computes.
const CUBES: usize = 4;
/// Multiprocessors that a product is divided for, about as many as large cards have. It is a constant, so that the sums have the same
/// order on all cards.
const PROCESSORS: usize = 128;

/// Whether Burn's products of f32 may round their factors to TF32: on CUDA, whatever the card.
pub fn has_tf32<R: CubeRuntime>(client: &ComputeClient<R>) -> bool {
    let tf32 = cubecl::tf32::as_type_native_unchecked().storage_type();
    client.properties().supports_type(tf32)
}

/// The product of f32 factors that are rounded to bf16, with sums and result in f32.
pub fn of_bf16<R: CubeRuntime>(lhs: CubeTensor<R>, rhs: CubeTensor<R>) -> CubeTensor<R> {
    let [lhs, rhs] = [lhs, rhs].map(|x| cast(x, DType::BF16));
    on_matrix_units(lhs, rhs)
}

/// The device's multiprocessors; one if it does not tell.
pub fn processors<R: CubeRuntime>(client: &ComputeClient<R>) -> usize {
    let processors = client.properties().hardware.num_streaming_multiprocessors;
    processors.unwrap_or(1) as usize
}

/// Into how many parts of equal length the sums of a product `[m, k] · [k, n]` are divided, so that every
/// multiprocessor has cubes. It depends on sizes alone; where the runtime does not tell of multiprocessors nothing is divided.
pub fn parts<R: CubeRuntime>(client: &ComputeClient<R>, [m, k, n]: [usize; 3]) -> usize {
    let cubes = m.div_ceil(TILE) * n.div_ceil(TILE);
    if 2 * cubes > PROCESSORS || processors(client) == 1 {
        return 1;
    }
    let most = (CUBES * PROCESSORS / cubes.max(1)).min(k / SHORTEST);
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

/// A place for the product, without the gaps between rows that Burn leaves on CUDA: kernels of the layers would copy them away.
pub fn result<R: CubeRuntime>(lhs: &CubeTensor<R>, rhs: &CubeTensor<R>) -> CubeTensor<R> {
    let shape = calculate_matmul_output(lhs.meta.shape(), rhs.meta.shape())
        .expect("the caller checks the shapes");
    let (client, device) = (lhs.client.clone(), lhs.device.clone());
    empty_device_contiguous_dtype(client, device, shape, DType::F32)
}

/// The product of factors of bf16, or of f32 rounded to TF32, with sums and result in f32.
///
/// On Hopper, of cubek's kernels the one whose tiles are copied by the card's own engine is the fastest, up to twice as fast as
/// the one that cubek chooses by itself; it takes rows and columns that begin at multiples of 16 bytes.
pub fn on_matrix_units<R: CubeRuntime>(lhs: CubeTensor<R>, rhs: CubeTensor<R>) -> CubeTensor<R> {
    let out = result(&lhs, &rhs);
    let dtype = lhs.dtype;
    let launch = |strategy: &Strategy| {
        let mut dtypes = MatmulElems::from_globals(&MatmulGlobalElems {
            lhs: dtype.into(),
            rhs: dtype.into(),
            out: out.dtype.into(),
        });
        launch_ref(
            strategy,
            &out.client,
            InputBinding::new(lhs.clone().binding(), dtype.into()),
            InputBinding::new(rhs.clone().binding(), dtype.into()),
            out.clone().binding(),
            &mut dtypes,
        )
    };
    let copied = Strategy::SpecializedTmaMma(Default::default());
    let copies = is_copied(&lhs) && is_copied(&rhs) && has_barrier();
    if !(copies && launch(&copied).is_ok()) {
        launch(&Strategy::Auto).expect("matrices that fit are multiplied on every device");
    }
    out
}

/// Whether the card's engine copies tiles of this matrix.
fn is_copied<R: CubeRuntime>(x: &CubeTensor<R>) -> bool {
    let (shape, strides) = (x.meta.shape(), x.meta.strides());
    let lies = |line: usize, together: usize| {
        strides[together] == 1
            && strides[line] >= shape[together]
            && (strides[line] * x.dtype.size()).is_multiple_of(16)
            && shape[line].min(shape[together]) >= TILE
    };
    let aligned = begins_at(x, 128);
    let engine = x.client.properties().features.tma;
    // Later cards copy images as well; on none of them the kernel was tried.
    let hopper = engine.contains(Tma::Base) && !engine.contains(Tma::Im2colWide);
    hopper && shape.num_dims() == 2 && aligned && (lies(0, 1) || lies(1, 0))
}

/// Whether the header that a kernel with copied tiles includes is where CubeCL's compiler looks for it. If not, that is logged once.
#[cfg(feature = "cuda")]
fn has_barrier() -> bool {
    use cubecl::cuda::install::{cccl_include_path, include_path};
    static FOUND: std::sync::LazyLock<bool> = std::sync::LazyLock::new(|| {
        let folders = [include_path(), cccl_include_path()];
        let found = folders.iter().any(|x| x.join("cuda/barrier").exists());
        if !found {
            log::warn!(
                "products in tf32 and bf16 take a slower kernel: {} has no cuda/barrier; install a CUDA toolkit, or pip's \
                 nvidia-cuda-cccl in the version of nvidia-cuda-runtime",
                folders[0].display()
            );
        }
        found
    });
    *FOUND
}

#[cfg(not(feature = "cuda"))]
fn has_barrier() -> bool {
    false
}

/// Whether the first value lies at a multiple of so many bytes.
pub fn begins_at<R: CubeRuntime>(x: &CubeTensor<R>, bytes: u64) -> bool {
    x.handle.offset_start.unwrap_or(0).is_multiple_of(bytes)
}
