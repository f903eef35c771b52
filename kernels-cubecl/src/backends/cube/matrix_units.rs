//! Which types a device's matrix units multiply, corrected where a runtime of CubeCL says it wrongly.

use cubecl::ir::features::MmaConfig;
use cubecl::ir::{DeviceProperties, ElemType, FloatKind, StorageType};

/// The name of CubeCL's runtime for ROCm. Its code for matrix units takes a thread's number in its cube for that in its plane, and is
/// registered for cards on which it does not compile (gfx10, gfx12). It has never run: matrix units are not used there.
pub const HIP: &str = "hip";
/// The name of CubeCL's runtime for CUDA.
pub const CUDA: &str = "cuda";

/// Whether the device has matrix units for TF32. CUDA's cards have those for bf16 from the same generation on (sm_80), and CubeCL
/// registers the types and bf16's matrices for older ones as well.
pub fn multiplies_tf32(device: &DeviceProperties) -> bool {
    let tf32 = StorageType::Scalar(ElemType::Float(FloatKind::TF32));
    device.features.matmul.cmma.contains(&MmaConfig {
        a_type: tf32,
        b_type: tf32,
        cd_type: StorageType::Scalar(ElemType::Float(FloatKind::F32)),
        m: 16,
        n: 16,
        k: 8,
    })
}

/// Whether a device of this runtime computes with bf16, if it has the type.
pub fn computes_bf16(runtime: &str, device: &DeviceProperties) -> bool {
    match runtime {
        HIP => false,
        CUDA => multiplies_tf32(device),
        _ => true,
    }
}
