//! Attention on GPUs: kernels in CubeCL for CUDA, Vulkan, Metal and WebGPU, from one source.
//!
//! Whatever is as large as `query_len × key_len` lives in registers and shared memory, a tile at a
//! time, and is rebuilt from `Q`, `K`, `V` and the rows' `L` wherever it is needed: memory grows with
//! the sequence, not with its square. Sums are in f32 and in a fixed order, so that one input gives
//! one output.

mod backward;
mod double_backward;
mod forward;
mod layout;
mod room;
mod tiles;

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, Shape};
use burn_cubecl::element::BoolElement;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{CubeBackend, CubeRuntime, FloatElement, IntElement};
use cubecl::ir::DeviceProperties;
use cubecl::prelude::*;

use crate::attention::{
    Attention, reference_backward, reference_double_backward, reference_forward,
};
use crate::{AttentionBackend, LayerBackend, ScanBackend};
use backward::{InputsLaunch, Present};
use tiles::{Own, SizesLaunch, Tiles};

impl<R, F, I, BT> LayerBackend for CubeBackend<R, F, I, BT>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    BT: BoolElement,
    Self: Backend,
{
}

impl<R, F, I, BT> ScanBackend for CubeBackend<R, F, I, BT>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    BT: BoolElement,
    Self: Backend,
{
}

impl<R, F, I, BT> AttentionBackend for CubeBackend<R, F, I, BT>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    BT: BoolElement,
    Self: Backend<FloatTensorPrimitive = CubeTensor<R>>,
{
    fn causal_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        scale: f64,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        match Plan::new(&q, &k) {
            Some(plan) => plan.forward([q, k, v], scale),
            None => reference_forward::<Self>([q, k, v], scale),
        }
    }

    fn causal_attention_backward(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        out: FloatTensor<Self>,
        lse: FloatTensor<Self>,
        grad_out: FloatTensor<Self>,
        scale: f64,
    ) -> [FloatTensor<Self>; 3] {
        match Plan::new(&q, &k) {
            Some(plan) => plan.backward([q, k, v], out, lse, grad_out, scale),
            None => reference_backward::<Self>([q, k, v], lse, grad_out, scale),
        }
    }

    fn causal_attention_double_backward(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        out: FloatTensor<Self>,
        lse: FloatTensor<Self>,
        grad_out: FloatTensor<Self>,
        cotangents: [Option<FloatTensor<Self>>; 3],
        scale: f64,
    ) -> [FloatTensor<Self>; 4] {
        match Plan::new(&q, &k) {
            Some(plan) => plan.double_backward([q, k, v], out, lse, grad_out, cotangents, scale),
            None => reference_double_backward::<Self>([q, k, v], lse, grad_out, cotangents, scale),
        }
    }
}

/// Head dims up to this one have kernels; a larger one would not fit a unit's registers.
const LARGEST_HEAD_DIM: usize = 256;
/// Buffers the largest kernel binds: eleven tensors, and one for shapes and scalars.
const BINDINGS: u32 = 12;

/// How an attention is cut into tiles on its device.
struct Plan {
    dtype: DType,
    query: Shape,
    key: Shape,
    forward: Tiles,
    backward: Tiles,
    double_backward: Tiles,
}

impl Plan {
    /// `None` where the reference is to be used: because it was asked for, or because the device or
    /// the tensors are beyond the kernels, which is said once.
    fn new<R: CubeRuntime>(q: &CubeTensor<R>, k: &CubeTensor<R>) -> Option<Self> {
        let is_empty = q.meta.shape().num_elements() == 0;
        if is_empty || crate::attention() == Attention::Reference {
            return None;
        }
        let shapes = (q.meta.shape().clone(), k.meta.shape().clone());
        let plan = Self::fitting(shapes, q.dtype, q.client.properties());
        plan.inspect_err(|reason| fall_back(reason)).ok()
    }

    fn fitting(
        (query, key): (Shape, Shape),
        dtype: DType,
        device: &DeviceProperties,
    ) -> Result<Self, String> {
        let hardware = &device.hardware;
        let (len, dim) = (query[2].min(key[2]), query[3]);
        if !matches!(dtype, DType::F32 | DType::F16 | DType::BF16) {
            return Err(format!("the kernels take f32, f16 and bf16, not {dtype:?}"));
        }
        if dim > LARGEST_HEAD_DIM {
            return Err(format!(
                "the kernels go up to head dim {LARGEST_HEAD_DIM}, this one is {dim}"
            ));
        }
        let numbers = query.num_elements().max(key.num_elements());
        if u32::try_from(numbers).is_err() {
            return Err(format!(
                "the kernels count up to 2³² numbers a tensor, this one has {numbers}"
            ));
        }
        if hardware.max_bindings < BINDINGS {
            return Err(format!(
                "a kernel needs {BINDINGS} buffers, the device binds {}",
                hardware.max_bindings
            ));
        }
        let tiles = |operands| {
            Tiles::fitting(operands, dim, len, dtype.into(), device).ok_or_else(|| {
                format!(
                    "no tile of head dim {dim} fits the device's {} bytes of shared memory and {} units a cube",
                    hardware.max_shared_memory_size, hardware.max_units_per_cube
                )
            })
        };
        Ok(Self {
            forward: tiles(2)?,
            backward: tiles(Present::NONE.operands())?,
            double_backward: tiles(Present::ALL.operands())?,
            dtype,
            query,
            key,
        })
    }

    fn forward<R: CubeRuntime>(
        &self,
        inputs: [CubeTensor<R>; 3],
        scale: f64,
    ) -> (CubeTensor<R>, CubeTensor<R>) {
        let [q, k, v] = inputs.map(into_contiguous);
        let out = self.empty(&q, &self.query, self.dtype);
        let lse = self.empty(&q, &self.per_query(1), DType::F32);
        let at = self.launch(&q.client, Own::Queries, self.forward);
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
                self.forward,
                self.dtype.into(),
            );
        }
        (out, lse)
    }

    fn backward<R: CubeRuntime>(
        &self,
        inputs: [CubeTensor<R>; 3],
        out: CubeTensor<R>,
        lse: CubeTensor<R>,
        grad_out: CubeTensor<R>,
        scale: f64,
    ) -> [CubeTensor<R>; 3] {
        let inputs = Inputs::new(inputs, lse, grad_out, [None, None, None]);
        let (client, tiles) = (inputs.client(), self.backward);
        let delta = self.empty(inputs.like(), &self.per_query(1), DType::F32);
        let dq = self.empty(inputs.like(), &self.query, self.dtype);
        let dk = self.empty(inputs.like(), &self.key, self.dtype);
        let dv = self.empty(inputs.like(), &self.key, self.dtype);
        let at = self.launch(&client, Own::Queries, tiles);
        unsafe {
            backward::backward_queries::launch_unchecked(
                &client,
                at.cubes.clone(),
                at.units,
                inputs.launch(),
                into_contiguous(out).into_array_arg(),
                delta.clone().into_array_arg(),
                dq.clone().into_array_arg(),
                at.sizes(scale),
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
                tiles,
                self.dtype.into(),
            );
        }
        [dq, dk, dv]
    }

    fn double_backward<R: CubeRuntime>(
        &self,
        inputs: [CubeTensor<R>; 3],
        out: CubeTensor<R>,
        lse: CubeTensor<R>,
        grad_out: CubeTensor<R>,
        cotangents: [Option<CubeTensor<R>>; 3],
        scale: f64,
    ) -> [CubeTensor<R>; 4] {
        let [a, b, c] = cotangents.each_ref().map(Option::is_some);
        let present = Present { a, b, c };
        let inputs = Inputs::new(inputs, lse, grad_out, cotangents);
        let (client, tiles) = (inputs.client(), self.double_backward);
        let sums = self.empty(inputs.like(), &self.per_query(3), DType::F32);
        let to_grad_out = self.empty(inputs.like(), &self.query, self.dtype);
        let to_q = self.empty(inputs.like(), &self.query, self.dtype);
        let to_k = self.empty(inputs.like(), &self.key, self.dtype);
        let to_v = self.empty(inputs.like(), &self.key, self.dtype);
        let at = self.launch(&client, Own::Queries, tiles);
        unsafe {
            double_backward::double_backward_sums::launch_unchecked(
                &client,
                at.cubes.clone(),
                at.units,
                inputs.launch(),
                into_contiguous(out).into_array_arg(),
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

    /// `numbers` for each query of each head, one after the other.
    fn per_query(&self, numbers: usize) -> Shape {
        let [batch, heads, len, _] = self.query.dims();
        match numbers {
            1 => Shape::new([batch, heads, len, 1]),
            _ => Shape::new([numbers, batch, heads, len]),
        }
    }

    fn empty<R: CubeRuntime>(
        &self,
        like: &CubeTensor<R>,
        shape: &Shape,
        dtype: DType,
    ) -> CubeTensor<R> {
        empty_device_contiguous_dtype(
            like.client.clone(),
            like.device.clone(),
            shape.clone(),
            dtype,
        )
    }

    fn launch<R: CubeRuntime>(&self, client: &ComputeClient<R>, own: Own, tiles: Tiles) -> Launch {
        let [batch, query_heads, query_len, _] = self.query.dims();
        let [_, key_heads, key_len, _] = self.key.dims();
        let (heads, len) = match own {
            Own::Queries => (batch * query_heads, query_len),
            Own::Keys => (batch * key_heads, key_len),
        };
        // Heads may be more than one axis can count.
        let most = client.properties().hardware.max_cube_count.1 as usize;
        let deep = heads.div_ceil(most).max(1);
        let high = heads.div_ceil(deep);
        let wide = len.div_ceil(tiles.side);
        Launch {
            cubes: CubeCount::Static(wide as u32, high as u32, deep as u32),
            units: CubeDim::new_1d(tiles.units() as u32),
            heads,
            group: query_heads / key_heads,
            query_len,
            key_len,
        }
    }
}

/// Says once why the reference is used though the kernels were to be.
fn fall_back(reason: &str) {
    static SAID: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    let mut said = SAID.lock().unwrap_or_else(PoisonError::into_inner);
    if said.insert(reason.to_owned()) {
        log::warn!("attention is computed without the fused kernels: {reason}");
    }
}

/// One launch of one kernel.
struct Launch {
    cubes: CubeCount,
    units: CubeDim,
    heads: usize,
    group: usize,
    query_len: usize,
    key_len: usize,
}

impl Launch {
    fn sizes<R: CubeRuntime>(&self, scale: f64) -> SizesLaunch<R> {
        SizesLaunch::new(
            self.heads,
            self.group,
            self.query_len,
            self.key_len,
            scale as f32,
        )
    }
}

/// What the derivatives' kernels read, ready to be given to several of them.
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
        cotangents: [Option<CubeTensor<R>>; 3],
    ) -> Self {
        let q = into_contiguous(q);
        let [a, b, c] = cotangents.map(|x| x.unwrap_or_else(|| q.clone()));
        Self {
            tensors: [q, k, v, grad_out, a, b, c].map(into_contiguous),
            lse: into_contiguous(lse),
        }
    }

    fn like(&self) -> &CubeTensor<R> {
        &self.tensors[0]
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

#[cfg(all(test, feature = "vulkan"))]
mod tests {
    use super::*;
    use burn::tensor::{Distribution, Tensor, Tolerance};
    use burn_wgpu::{WgpuDevice, WgpuRuntime};

    type B = CubeBackend<WgpuRuntime, f32, i32, u8>;

    fn random(shape: [usize; 4]) -> CubeTensor<WgpuRuntime> {
        let device = WgpuDevice::default();
        let x = Tensor::<B, 4>::random(shape, Distribution::Default, &device);
        x.into_primitive().tensor()
    }

    fn all(plan: &Plan, [q, k, v, g, a, b, c]: [CubeTensor<WgpuRuntime>; 7]) -> Vec<Tensor<B, 4>> {
        let inputs = [q, k, v];
        let (out, lse) = plan.forward(inputs.clone(), 0.2);
        let first = plan.backward(inputs.clone(), out.clone(), lse.clone(), g.clone(), 0.2);
        let cotangents = [Some(a), Some(b), Some(c)];
        let second = plan.double_backward(inputs, out.clone(), lse, g, cotangents, 0.2);
        let results = [out].into_iter().chain(first).chain(second);
        results.map(crate::lift::<B, 4>).collect()
    }

    /// Devices with less shared memory or smaller cubes get smaller tiles, and the same numbers.
    #[test]
    fn small_devices_compute_the_same() {
        let (query, key) = ([2, 4, 41, 40], [2, 2, 50, 40]);
        let shapes = (Shape::new(query), Shape::new(key));
        let inputs = [query, key, key, query, query, key, key].map(random);
        let device = inputs[0].client.properties().clone();
        let plan = Plan::fitting(shapes.clone(), DType::F32, &device).unwrap();
        let expected = all(&plan, inputs.clone());
        let mut seen = vec![plan.double_backward];
        for (bytes, units) in [
            (16 << 10, 256),
            (10 << 10, 64),
            (32 << 10, 16),
            (5 << 10, 16),
        ] {
            let mut small = device.clone();
            small.hardware.max_shared_memory_size = bytes;
            small.hardware.max_units_per_cube = units;
            let plan = Plan::fitting(shapes.clone(), DType::F32, &small).unwrap();
            for tiles in [plan.forward, plan.backward, plan.double_backward] {
                assert!(tiles.shared_bytes() <= bytes && tiles.units() <= units as usize);
            }
            if !seen.contains(&plan.double_backward) {
                seen.push(plan.double_backward);
            }
            for (found, expected) in all(&plan, inputs.clone()).into_iter().zip(&expected) {
                let tolerance = Tolerance::<f32>::absolute(1e-4);
                found
                    .into_data()
                    .assert_approx_eq(&expected.to_data(), tolerance);
            }
        }
        assert!(
            seen.len() >= 4,
            "the devices were not small enough: {seen:?}"
        );
    }

    /// What the kernels cannot do has a reason that can be read.
    #[test]
    fn what_does_not_fit_says_why() {
        let device = random([1, 1, 1, 1]).client.properties().clone();
        let shapes = |dim| (Shape::new([1, 1, 4, dim]), Shape::new([1, 1, 4, dim]));
        let why = |shapes, dtype, device: &DeviceProperties| {
            Plan::fitting(shapes, dtype, device)
                .err()
                .expect("it should not fit")
        };
        assert!(why(shapes(8), DType::F64, &device).contains("not F64"));
        assert!(why(shapes(300), DType::F32, &device).contains("this one is 300"));
        let mut small = device.clone();
        small.hardware.max_shared_memory_size = 1 << 10;
        assert!(why(shapes(8), DType::F32, &small).contains("1024 bytes of shared memory"));
        let mut small = device;
        small.hardware.max_bindings = 8;
        assert!(why(shapes(8), DType::F32, &small).contains("the device binds 8"));
    }
}
