//! Which tiles the kernels of an attention use on a device, and whether they can run at all.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use burn::tensor::{DType, Shape};
use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use cubecl::ir::DeviceProperties;

use super::backward::Present;
use super::tiles::{Tiles, multiplies};
use crate::Attention;

/// The largest head dim that the kernels support; the sums of a larger one would not fit a unit's registers.
const LARGEST_HEAD_DIM: usize = 256;
/// Buffers that the largest kernel binds: eleven tensors, and one for shapes and scalars.
const BINDINGS: u32 = 12;

/// The tiles of the kernels for one attention on one device.
pub struct Plan {
    pub dtype: DType,
    pub query: Shape,
    pub key: Shape,
    pub forward: Tiles,
    pub backward: Tiles,
    pub double_backward: Tiles,
}

impl Plan {
    /// `None` if the reference must compute: because it was chosen, a tensor is empty, or the kernels do not
    /// support the device or the tensors, which is logged once.
    pub fn new<R: CubeRuntime>(q: &CubeTensor<R>, k: &CubeTensor<R>) -> Option<Self> {
        let is_empty = q.meta.shape().num_elements() == 0;
        if is_empty || crate::attention() == Attention::Reference {
            return None;
        }
        let shapes = (q.meta.shape().clone(), k.meta.shape().clone());
        let runtime = R::name(&q.client);
        let plan = Self::fitting(shapes, q.dtype, runtime, q.client.properties());
        plan.inspect_err(|reason| warn_once(reason)).ok()
    }

    /// The largest tiles that fit the device, or why the kernels cannot run.
    fn fitting(
        (query, key): (Shape, Shape),
        dtype: DType,
        runtime: &str,
        device: &DeviceProperties,
    ) -> Result<Self, String> {
        let hardware = &device.hardware;
        let (len, dim) = (query[2].min(key[2]), query[3]);
        if !matches!(dtype, DType::F32 | DType::F16 | DType::BF16) {
            return Err(format!(
                "the kernels support f32, f16 and bf16, not {dtype:?}"
            ));
        }
        if dim > LARGEST_HEAD_DIM {
            return Err(format!(
                "the kernels support head dims up to {LARGEST_HEAD_DIM}, not {dim}"
            ));
        }
        let numbers = query.num_elements().max(key.num_elements());
        if u32::try_from(numbers).is_err() {
            return Err(format!(
                "the kernels support tensors of fewer than 2³² values, not {numbers}"
            ));
        }
        if hardware.max_bindings < BINDINGS {
            return Err(format!(
                "a kernel needs {BINDINGS} buffers, but the device binds at most {}",
                hardware.max_bindings
            ));
        }
        let multiplies = multiplies(dtype.into(), runtime, device);
        // Matrix units take the weights of a product in the tensors' own type. Those of the derivatives are not shares as the
        // forward's are: f16 has no numbers as small and as large as they are.
        let of_derivatives = multiplies && dtype == DType::BF16;
        let tiles = |operands, multiplies| {
            Tiles::fitting(operands, dim, len, multiplies, device).ok_or_else(|| {
                format!(
                    "no tile for head dim {dim} fits the device's {} bytes of shared memory and {} units per cube",
                    hardware.max_shared_memory_size, hardware.max_units_per_cube
                )
            })
        };
        Ok(Self {
            forward: tiles(2, multiplies)?,
            backward: tiles(Present::NONE.operands(), of_derivatives)?,
            double_backward: tiles(Present::ALL.operands(), of_derivatives)?,
            dtype,
            query,
            key,
        })
    }
}

/// Logs, once for each reason, why the reference computes although the kernels were chosen.
fn warn_once(reason: &str) {
    static LOGGED: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    let mut logged = LOGGED.lock().unwrap_or_else(PoisonError::into_inner);
    if logged.insert(reason.to_owned()) {
        log::warn!("attention is computed without the fused kernels: {reason}");
    }
}

#[cfg(all(test, feature = "vulkan"))]
mod tests {
    use super::*;
    use burn::tensor::{Distribution, Tensor, Tolerance};
    use burn_cubecl::CubeBackend;
    use burn_wgpu::{WgpuDevice, WgpuRuntime};
    use cubecl::ir::features::MmaConfig;
    use cubecl::ir::{ElemType, FloatKind, StorageType};

    type B = CubeBackend<WgpuRuntime, f32, i32, u8>;
    const NAME: &str = "wgpu";

    fn random(shape: [usize; 4]) -> CubeTensor<WgpuRuntime> {
        let device = WgpuDevice::default();
        let x = Tensor::<B, 4>::random(shape, Distribution::Default, &device);
        x.into_primitive().tensor()
    }

    fn all(plan: &Plan, [q, k, v, g, a, b, c]: [CubeTensor<WgpuRuntime>; 7]) -> Vec<Tensor<B, 4>> {
        let inputs = [q, k, v];
        let (out, lse) = plan.forward(inputs.clone(), 0.2);
        let nothing = [None, None, None];
        let first = plan.backward(
            inputs.clone(),
            out.clone(),
            lse.clone(),
            g.clone(),
            0.2,
            nothing,
        );
        let cotangents = [Some(a), Some(b), Some(c)];
        let second = plan.double_backward(inputs, out.clone(), lse, g, cotangents, 0.2);
        let results = [out].into_iter().chain(first).chain(second);
        results.map(crate::lift::<B, 4>).collect()
    }

    /// Devices with less shared memory or smaller cubes get smaller tiles and compute the same results.
    #[test]
    fn smaller_tiles_give_the_same_results() {
        let (query, key) = ([2, 4, 41, 40], [2, 2, 50, 40]);
        let shapes = (Shape::new(query), Shape::new(key));
        let inputs = [query, key, key, query, query, key, key].map(random);
        let device = inputs[0].client.properties().clone();
        let plan = Plan::fitting(shapes.clone(), DType::F32, NAME, &device).unwrap();
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
            let plan = Plan::fitting(shapes.clone(), DType::F32, NAME, &small).unwrap();
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
            "expected at least 4 different tiles: {seen:?}"
        );
    }

    /// Matrix units compute bf16, and the forward of f16; bf16 on CUDA only where there is TF32; nothing on HIP.
    #[test]
    fn matrix_units_are_used_where_they_compute_right() {
        let mut device = random([1, 1, 1, 1]).client.properties().clone();
        device.hardware.plane_size_min = 32;
        device.hardware.plane_size_max = 32;
        let register = |device: &mut DeviceProperties, float, k| {
            let scalar = |float| StorageType::Scalar(ElemType::Float(float));
            device.features.matmul.cmma.insert(MmaConfig {
                a_type: scalar(float),
                b_type: scalar(float),
                cd_type: scalar(FloatKind::F32),
                m: 16,
                n: 16,
                k,
            });
        };
        register(&mut device, FloatKind::F16, 16);
        register(&mut device, FloatKind::BF16, 16);
        let mut ampere = device.clone();
        register(&mut ampere, FloatKind::TF32, 8);
        let shape = Shape::new([1, 1, 64, 64]);
        let of = |dtype, runtime, device| {
            let plan = Plan::fitting((shape.clone(), shape.clone()), dtype, runtime, device);
            let plan = plan.unwrap();
            [plan.forward, plan.backward, plan.double_backward].map(|tiles| tiles.matrix)
        };
        for (runtime, device, bf16, f16) in [
            ("cuda", &ampere, true, true),
            ("cuda", &device, false, true),
            ("hip", &ampere, false, false),
            ("wgpu", &device, true, true),
        ] {
            assert_eq!(of(DType::BF16, runtime, device), [bf16; 3], "{runtime}");
            assert_eq!(
                of(DType::F16, runtime, device),
                [f16, false, false],
                "{runtime}"
            );
            assert_eq!(of(DType::F32, runtime, device), [false; 3], "{runtime}");
        }
    }

    /// The reason for the fallback names the limit.
    #[test]
    fn unsupported_tensors_and_devices_have_a_reason() {
        let device = random([1, 1, 1, 1]).client.properties().clone();
        let shapes = |dim| (Shape::new([1, 1, 4, dim]), Shape::new([1, 1, 4, dim]));
        let why = |shapes, dtype, device: &DeviceProperties| {
            Plan::fitting(shapes, dtype, NAME, device)
                .err()
                .expect("the kernels should not support this")
        };
        assert!(why(shapes(8), DType::F64, &device).contains("not F64"));
        assert!(why(shapes(300), DType::F32, &device).contains("up to 256, not 300"));
        let mut small = device.clone();
        small.hardware.max_shared_memory_size = 1 << 10;
        assert!(why(shapes(8), DType::F32, &small).contains("1024 bytes of shared memory"));
        let mut small = device;
        small.hardware.max_bindings = 8;
        assert!(why(shapes(8), DType::F32, &small).contains("the device binds at most 8"));
    }
}
