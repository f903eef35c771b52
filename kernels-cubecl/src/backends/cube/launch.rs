//! Launches the kernels of a [`Plan`].

use burn::tensor::{DType, Shape};
use burn_cubecl::CubeRuntime;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::backward::{InputsLaunch, Present};
use super::operands::empty;
use super::plan::Plan;
use super::tiles::{Own, SizesLaunch, Tiles};
use super::{backward, double_backward, forward};

impl Plan {
    pub fn forward<R: CubeRuntime>(
        &self,
        inputs: [CubeTensor<R>; 3],
        scale: f64,
    ) -> (CubeTensor<R>, CubeTensor<R>) {
        let [q, k, v] = inputs.map(by_positions);
        let out = self.empty(&q, &self.query);
        let lse = empty(&q, self.per_query(1), DType::F32);
        let tiles = self.forward.reading([&q, &k, &v]);
        let at = self.launch(&q.client, Own::Queries, tiles);
        unsafe {
            forward::forward::launch_unchecked(
                &q.client,
                at.cubes.clone(),
                at.units,
                q.clone().into_array_arg(),
                k.into_array_arg(),
                v.into_array_arg(),
                out.clone().into_array_arg(),
                lse.clone().into_array_arg(),
                at.sizes(scale),
                tiles,
                self.dtype.into(),
            );
        }
        (out, lse)
    }

    pub fn backward<R: CubeRuntime>(
        &self,
        inputs: [CubeTensor<R>; 3],
        out: CubeTensor<R>,
        lse: CubeTensor<R>,
        grad_out: CubeTensor<R>,
        scale: f64,
        onto: [Option<CubeTensor<R>>; 3],
    ) -> [CubeTensor<R>; 3] {
        let adds = Present::of(&onto);
        let inputs = Inputs::new(inputs, lse, grad_out, onto);
        let tiles = self.backward.reading(inputs.all());
        let client = inputs.client();
        let delta = empty(inputs.like(), self.per_query(1), DType::F32);
        let dq = self.empty(inputs.like(), &self.query);
        let dk = self.empty(inputs.like(), &self.key);
        let dv = self.empty(inputs.like(), &self.key);
        let at = self.launch(&client, Own::Queries, tiles);
        unsafe {
            backward::backward_queries::launch_unchecked(
                &client,
                at.cubes.clone(),
                at.units,
                inputs.launch(),
                by_positions(out).into_array_arg(),
                delta.clone().into_array_arg(),
                dq.clone().into_array_arg(),
                at.sizes(scale),
                adds,
                tiles,
                self.dtype.into(),
            );
        }
        let at = self.launch(&client, Own::Keys, tiles);
        unsafe {
            backward::backward_keys::launch_unchecked(
                &client,
                at.cubes.clone(),
                at.units,
                inputs.launch(),
                delta.into_array_arg(),
                dk.clone().into_array_arg(),
                dv.clone().into_array_arg(),
                at.sizes(scale),
                adds,
                tiles,
                self.dtype.into(),
            );
        }
        [dq, dk, dv]
    }

    pub fn double_backward<R: CubeRuntime>(
        &self,
        inputs: [CubeTensor<R>; 3],
        out: CubeTensor<R>,
        lse: CubeTensor<R>,
        grad_out: CubeTensor<R>,
        cotangents: [Option<CubeTensor<R>>; 3],
        scale: f64,
    ) -> [CubeTensor<R>; 4] {
        let present = Present::of(&cotangents);
        let inputs = Inputs::new(inputs, lse, grad_out, cotangents);
        let tiles = self.double_backward.reading(inputs.all());
        let client = inputs.client();
        let sums = empty(inputs.like(), self.per_query(3), DType::F32);
        let to_grad_out = self.empty(inputs.like(), &self.query);
        let to_q = self.empty(inputs.like(), &self.query);
        let to_k = self.empty(inputs.like(), &self.key);
        let to_v = self.empty(inputs.like(), &self.key);
        let at = self.launch(&client, Own::Queries, tiles);
        unsafe {
            double_backward::double_backward_sums::launch_unchecked(
                &client,
                at.cubes.clone(),
                at.units,
                inputs.launch(),
                by_positions(out).into_array_arg(),
                sums.clone().into_array_arg(),
                at.sizes(scale),
                present,
                tiles,
                self.dtype.into(),
            );
            double_backward::double_backward_queries::launch_unchecked(
                &client,
                at.cubes.clone(),
                at.units,
                inputs.launch(),
                sums.clone().into_array_arg(),
                to_grad_out.clone().into_array_arg(),
                to_q.clone().into_array_arg(),
                at.sizes(scale),
                present,
                tiles,
                self.dtype.into(),
            );
        }
        let at = self.launch(&client, Own::Keys, tiles);
        unsafe {
            double_backward::double_backward_keys::launch_unchecked(
                &client,
                at.cubes.clone(),
                at.units,
                inputs.launch(),
                sums.into_array_arg(),
                to_k.clone().into_array_arg(),
                to_v.clone().into_array_arg(),
                at.sizes(scale),
                present,
                tiles,
                self.dtype.into(),
            );
        }
        [to_grad_out, to_q, to_k, to_v]
    }

    /// A tensor `[batch, heads, len, dim]` in the order in memory that the kernels write.
    fn empty<R: CubeRuntime>(&self, like: &CubeTensor<R>, shape: &Shape) -> CubeTensor<R> {
        let [batch, heads, len, dim] = shape.dims();
        let out = empty(like, Shape::new([batch, len, heads, dim]), self.dtype);
        swapped(out)
    }

    /// The shape of `numbers` tensors, one after the other, with one value per query and head.
    fn per_query(&self, numbers: usize) -> Shape {
        let [batch, heads, len, _] = self.query.dims();
        match numbers {
            1 => Shape::new([batch, heads, len, 1]),
            _ => Shape::new([numbers, batch, heads, len]),
        }
    }

    /// A launch in which each cube computes one tile of queries or of keys.
    fn launch<R: CubeRuntime>(&self, client: &ComputeClient<R>, own: Own, tiles: Tiles) -> Launch {
        let [batch, query_heads, query_len, _] = self.query.dims();
        let [_, key_heads, key_len, _] = self.key.dims();
        let (heads, len) = match own {
            Own::Queries => (batch * query_heads, query_len),
            Own::Keys => (batch * key_heads, key_len),
        };
        // One axis of the grid may not have room for all heads.
        let most = client.properties().hardware.max_cube_count.1 as usize;
        let deep = heads.div_ceil(most).max(1);
        let high = heads.div_ceil(deep);
        let wide = len.div_ceil(tiles.side);
        Launch {
            cubes: CubeCount::Static(wide as u32, high as u32, deep as u32),
            units: CubeDim::new_1d(tiles.units() as u32),
            heads,
            kv_heads: key_heads,
            group: query_heads / key_heads,
            query_len,
            key_len,
        }
    }
}

/// One launch of one kernel.
struct Launch {
    cubes: CubeCount,
    units: CubeDim,
    heads: usize,
    kv_heads: usize,
    group: usize,
    query_len: usize,
    key_len: usize,
}

impl Launch {
    fn sizes<R: CubeRuntime>(&self, scale: f64) -> SizesLaunch<R> {
        SizesLaunch::new(
            self.heads,
            self.kv_heads,
            self.group,
            self.query_len,
            self.key_len,
            scale as f32,
        )
    }
}

/// The inputs of the derivatives' kernels, as these read them.
struct Inputs<R: CubeRuntime> {
    /// q, k, v, grad_out, a, b, c
    tensors: [CubeTensor<R>; 7],
    lse: CubeTensor<R>,
}

impl<R: CubeRuntime> Inputs<R> {
    fn new(
        [q, k, v]: [CubeTensor<R>; 3],
        lse: CubeTensor<R>,
        grad_out: CubeTensor<R>,
        others: [Option<CubeTensor<R>>; 3],
    ) -> Self {
        let q = by_positions(q);
        let [a, b, c] = others.map(|x| x.unwrap_or_else(|| q.clone()));
        Self {
            tensors: [q, k, v, grad_out, a, b, c].map(by_positions),
            lse: into_contiguous(lse),
        }
    }

    /// A tensor on the device of the inputs.
    fn like(&self) -> &CubeTensor<R> {
        &self.tensors[0]
    }

    fn all(&self) -> [&CubeTensor<R>; 7] {
        self.tensors.each_ref()
    }

    fn client(&self) -> ComputeClient<R> {
        self.like().client.clone()
    }

    fn launch<F: Float>(&self) -> InputsLaunch<F, R> {
        let [q, k, v, grad_out, a, b, c] =
            self.tensors.each_ref().map(|x| x.clone().into_array_arg());
        let lse = self.lse.clone().into_array_arg();
        InputsLaunch::new(q, k, v, grad_out, a, b, c, lse)
    }
}

/// `x` `[batch, heads, len, dim]` in the order in memory that the kernels read: a position's heads one after another, as projections
/// have them.
fn by_positions<R: CubeRuntime>(x: CubeTensor<R>) -> CubeTensor<R> {
    swapped(into_contiguous(swapped(x)))
}

/// With the two middle dimensions exchanged, where they are in memory.
fn swapped<R: CubeRuntime>(mut x: CubeTensor<R>) -> CubeTensor<R> {
    x.meta.swap(1, 2);
    x
}
