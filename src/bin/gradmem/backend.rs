//! From a backend's name to its type.

use gradmem::Error;
use gradmem::kernels::KernelBackend;

/// Something to be done on whichever backend.
pub trait Job {
    type Output;

    fn run<B: KernelBackend>(self, device: &B::Device) -> Result<Self::Output, Error>;
}

const NAMES: [&str; 6] = ["flex", "ndarray", "wgpu", "vulkan", "metal", "cuda"];

/// Does `job` on the named backend's default device.
pub fn dispatch<J: Job>(name: &str, job: J) -> Result<J::Output, Error> {
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
