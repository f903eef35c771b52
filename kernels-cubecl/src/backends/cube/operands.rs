//! What the launches of the layers' kernels have in common: which tensors they take, what they write to, and how many units there are.

use burn::tensor::{DType, Shape};
use burn_cubecl::CubeRuntime;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;
use cubecl::zspace::metadata::Metadata;

use super::norm::{self, COLUMNS};
use super::rows::{RowLaunch, UNITS, grid};

/// Launches a kernel: the cubes and the units of each; tensors that it reads, and that it writes; its other arguments.
macro_rules! launch {
    ($($kernel:ident)::+, $grid:expr; [$($input:ident),+] => [$output:ident $(, $more:ident)*]; $($other:expr),+ $(,)?) => {{
        let (cubes, units) = $grid;
        // SAFETY: the kernels do not check indices. Each unit compares its place with a number of values, or of rows and columns, which
        // the caller takes from the shapes and strides of these tensors; the traits' checked functions compare these shapes with each other.
        unsafe {
            $($kernel)::+::launch_unchecked(
                &$output.client,
                cubes,
                units,
                $($input.clone().into_array_arg(),)+
                $output.clone().into_array_arg(),
                $($more.clone().into_array_arg(),)*
                $($other,)+
            )
        }
    }};
}
pub(super) use launch;

/// Buffers that the largest kernel binds: eight tensors, and one for shapes and scalars.
const BINDINGS: u32 = 9;

/// Whether the kernels can compute with these tensors: floats of at most 32 bits, all of one type, none empty or with more values than
/// an index of 32 bits counts, on a device that binds as many as a kernel takes.
pub fn is_for_kernels<R: CubeRuntime, const N: usize>(tensors: [&CubeTensor<R>; N]) -> bool {
    let dtype = tensors[0].dtype;
    if tensors[0].client.properties().hardware.max_bindings < BINDINGS {
        return false;
    }
    let fits = |x: &&CubeTensor<R>| {
        let count = x.meta.num_elements();
        x.dtype == dtype && count > 0 && u32::try_from(count).is_ok()
    };
    matches!(dtype, DType::F32 | DType::F16 | DType::BF16) && tensors.iter().all(fits)
}

/// The tables of a rotation, or of another tensor a value, which is not read.
pub fn tables_or<R: CubeRuntime>(
    rotation: Option<[CubeTensor<R>; 3]>,
    other: &CubeTensor<R>,
) -> [CubeTensor<R>; 3] {
    match rotation {
        Some(tables) => tables.map(into_contiguous),
        None => [(); 3].map(|()| {
            let mut value = other.clone();
            *value.meta = Metadata::new([1], [1]);
            value
        }),
    }
}

pub fn empty<R: CubeRuntime>(like: &CubeTensor<R>, shape: Shape, dtype: DType) -> CubeTensor<R> {
    empty_device_contiguous_dtype(like.client.clone(), like.device.clone(), shape, dtype)
}

pub fn empty_like<R: CubeRuntime>(x: &CubeTensor<R>) -> CubeTensor<R> {
    empty(x, x.meta.shape().clone(), x.dtype)
}

/// The launch of a kernel over the rows of the last dimension.
pub fn by_rows<R: CubeRuntime>(x: &CubeTensor<R>, adds: bool) -> RowLaunch {
    let width = x.meta.shape()[x.meta.shape().num_dims() - 1];
    RowLaunch::new(&x.client, [x.meta.num_elements() / width, width], adds)
}

/// For each cube a row of sums.
pub fn sums<R: CubeRuntime>(x: &CubeTensor<R>, at: &RowLaunch) -> CubeTensor<R> {
    let width = x.meta.shape()[x.meta.shape().num_dims() - 1];
    empty(x, Shape::new([at.blocks(), width]), DType::F32)
}

/// The cubes' rows of sums added up, and added to what there is already, in the shape and type of a weight.
pub fn sum_of_rows<R: CubeRuntime>(
    sums: CubeTensor<R>,
    weight: &CubeTensor<R>,
    onto: Option<CubeTensor<R>>,
) -> CubeTensor<R> {
    let [count, width] = sums.meta.shape().dims();
    let out = empty_like(weight);
    let (onto, adds) = onto_or(onto, weight);
    let units =
        COLUMNS.max(UNITS.min(out.client.properties().hardware.max_units_per_cube as usize));
    let cubes = grid(&out.client, width.div_ceil(COLUMNS));
    let units_of_each = CubeDim::new_1d(units as u32);
    launch!(norm::sum_of_rows, (cubes, units_of_each); [sums, onto] => [out]; count, width, adds, units, out.dtype.into());
    out
}

/// What a gradient is added to, or any tensor, which is not read; and whether it is added.
pub fn onto_or<R: CubeRuntime>(
    onto: Option<CubeTensor<R>>,
    other: &CubeTensor<R>,
) -> (CubeTensor<R>, bool) {
    let adds = onto.is_some();
    (onto.map_or_else(|| other.clone(), into_contiguous), adds)
}

/// A unit for each value: cubes, and units of each.
pub fn spread<R: CubeRuntime>(x: &CubeTensor<R>) -> (CubeCount, CubeDim) {
    let units = UNITS.min(x.client.properties().hardware.max_units_per_cube as usize);
    let cubes = x.meta.num_elements().div_ceil(units);
    (grid(&x.client, cubes), CubeDim::new_1d(units as u32))
}
