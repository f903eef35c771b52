//! How a product is launched: where its factors lie, and the size of its tiles.

use burn_cubecl::CubeRuntime;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::ir::AddressType;
use cubecl::prelude::*;

use super::{DistancesLaunch, Layout, Plan, QUADS, exact_product};
use crate::backends::cube::product::{begins_at, processors, result};
use crate::backends::cube::rows::grid;

/// A factor whose rows or columns lie together, and how it lies.
struct Factor<R: CubeRuntime> {
    tensor: CubeTensor<R>,
    batch: usize,
    line: usize,
    layout: Layout,
}

impl<R: CubeRuntime> Factor<R> {
    /// `sum` is the dimension of the sum, counted from the last: 0 or 1.
    fn new(tensor: CubeTensor<R>, sum: usize) -> Self {
        let rank = tensor.meta.shape().num_dims();
        let of = |tensor: &CubeTensor<R>, from_last: usize| {
            let at = rank - 1 - from_last;
            (tensor.meta.shape()[at], tensor.meta.strides()[at])
        };
        let together = |tensor: &CubeTensor<R>, dim| {
            let (length, stride) = of(tensor, dim);
            stride == 1 || length == 1
        };
        let dense = together(&tensor, 0) || together(&tensor, 1);
        let tensor = if dense {
            tensor
        } else {
            into_contiguous(tensor)
        };
        let along_sum = together(&tensor, sum);
        let dim = if along_sum { sum } else { 1 - sum };
        let ((length, _), (_, line)) = (of(&tensor, dim), of(&tensor, 1 - dim));
        let batch = match rank {
            3 if tensor.meta.shape()[0] > 1 => tensor.meta.strides()[0],
            _ => 0,
        };
        let whole = [length, line, batch].iter().all(|x| x % 4 == 0);
        let lanes = if whole && begins_at(&tensor, 16) {
            4
        } else {
            1
        };
        Self {
            tensor,
            batch,
            line,
            layout: Layout { along_sum, lanes },
        }
    }
}

/// How wide the indices must be.
fn indices<R: CubeRuntime>(tensors: [&CubeTensor<R>; 4]) -> AddressType {
    let longest = tensors.map(values).into_iter().max();
    match longest > Some(u32::MAX as usize) {
        true => AddressType::U64,
        false => AddressType::U32,
    }
}

fn values<R: CubeRuntime>(tensor: &CubeTensor<R>) -> usize {
    tensor.handle.size_in_used() as usize / size_of::<f32>()
}

/// All values of a tensor's buffer from its first on: rows may be further apart than they are long.
fn buffer<R: CubeRuntime>(tensor: CubeTensor<R>) -> ArrayArg<R> {
    let values = values(&tensor);
    // SAFETY: as many values as the buffer holds.
    unsafe { ArrayArg::from_raw_parts(tensor.handle, values) }
}

/// The product; of several matrices, if there is a dimension in front. It is added to what is given as `to`.
pub fn product<R: CubeRuntime>(
    to: Option<CubeTensor<R>>,
    lhs: CubeTensor<R>,
    rhs: CubeTensor<R>,
) -> CubeTensor<R> {
    let out = result(&lhs, &rhs);
    if out.meta.num_elements() == 0 {
        return out;
    }
    let dims = out.meta.shape();
    let rank = dims.num_dims();
    let (m, n) = (dims[rank - 2], dims[rank - 1]);
    let batch = if rank == 3 { dims[0] } else { 1 };
    let k = lhs.meta.shape()[rank - 1];
    let (lhs, rhs) = (Factor::new(lhs, 0), Factor::new(rhs, 1));
    let adds = to.is_some();
    let to = to.map_or_else(|| lhs.tensor.clone(), into_contiguous);
    let client = out.client.clone();
    let cubes = |side: usize| {
        let tile = 4 * QUADS * side;
        batch * m.div_ceil(tile) * n.div_ceil(tile)
    };
    // Small tiles where large ones would leave multiprocessors idle.
    let side = match cubes(16) >= processors(&client) {
        true => 16,
        false => 8,
    };
    let plan = Plan {
        lhs: lhs.layout,
        rhs: rhs.layout,
        lanes: if n % 4 == 0 && begins_at(&out, 16) && (!adds || begins_at(&to, 16)) {
            4
        } else {
            1
        },
        side,
    };
    unsafe {
        exact_product::launch_unchecked::<R>(
            &client,
            grid(&client, cubes(side)),
            CubeDim::new_1d((side * side) as u32),
            indices([&lhs.tensor, &rhs.tensor, &to, &out]),
            plan.lhs.lanes,
            plan.rhs.lanes,
            plan.lanes,
            buffer(lhs.tensor),
            buffer(rhs.tensor),
            buffer(to),
            buffer(out.clone()),
            DistancesLaunch::new(lhs.batch, lhs.line),
            DistancesLaunch::new(rhs.batch, rhs.line),
            batch,
            m,
            k,
            n,
            adds,
            plan,
        );
    }
    out
}
