//! From a backend's name to its type.

use gradmem::Error;
use gradmem::kernels::{self, KernelBackend};

use crate::args::{Attention, Backend};

/// Something to be done on whichever backend.
pub trait Job {
    type Output;

    fn run<B: KernelBackend>(self, device: &B::Device) -> Result<Self::Output, Error>;
}

const NAMES: [&str; 6] = ["flex", "ndarray", "wgpu", "vulkan", "metal", "cuda"];
/// Those that have fused attention.
const GPUS: [&str; 4] = ["wgpu", "vulkan", "metal", "cuda"];

/// Does `job` on the named backend's default device.
pub fn dispatch<J: Job>(backend: &Backend, job: J) -> Result<J::Output, Error> {
    let name = backend.name.as_str();
    match backend.attention {
        Some(Attention::Fused) if NAMES.contains(&name) && !GPUS.contains(&name) => {
            return Err(Error::Input(format!(
                "--attention fused: the backend `{name}` has no fused attention; leave the option out, or compute on one of {}",
                GPUS.join(", ")
            )));
        }
        Some(Attention::Reference) => kernels::set_attention(kernels::Attention::Reference),
        Some(Attention::Fused) | None => {}
    }
    match name {
        #[cfg(feature = "flex")]
        "flex" => job.run::<burn_flex::Flex>(&Default::default()),
        #[cfg(feature = "ndarray")]
        "ndarray" => job.run::<burn_ndarray::NdArray<f32>>(&Default::default()),
        #[cfg(feature = "wgpu")]
        "wgpu" => job.run::<burn_wgpu::Wgpu>(&Default::default()),
        #[cfg(feature = "vulkan")]
        "vulkan" => job.run::<burn_wgpu::Vulkan>(&Default::default()),
        #[cfg(feature = "metal")]
        "metal" => job.run::<burn_wgpu::Metal>(&Default::default()),
        #[cfg(feature = "cuda")]
        "cuda" => job.run::<burn_cuda::Cuda>(&Default::default()),
        name if NAMES.contains(&name) => Err(Error::Input(format!(
            "backend `{name}` is not compiled in: build with `cargo build --release --features {name}`"
        ))),
        _ => Err(Error::Input(format!(
            "unknown backend `{name}`: there are {}",
            NAMES.join(", ")
        ))),
    }
}

/// The memory that a GPU backend has taken from its default device, which it keeps until the program
/// ends: the most it needed so far, in whole pages.
pub fn device_bytes(name: &str) -> Option<u64> {
    #[cfg(any(feature = "wgpu", feature = "cuda"))]
    fn reserved<R: burn_cubecl::CubeRuntime>() -> Option<u64> {
        let usage = R::client(&R::Device::default()).memory_usage();
        usage.ok().map(|usage| usage.bytes_reserved)
    }
    match name {
        #[cfg(feature = "wgpu")]
        "wgpu" | "vulkan" | "metal" => reserved::<burn_wgpu::WgpuRuntime>(),
        #[cfg(feature = "cuda")]
        "cuda" => reserved::<burn_cubecl::cubecl::cuda::CudaRuntime>(),
        _ => None,
    }
}
