//! Runs a job on the backend of a given name.

use gradmem::Error;
use gradmem::kernels::{self, KernelBackend, Precision};

use crate::args::{Attention, Backend};

/// Work that is generic over the backend.
pub trait Job: Send {
    type Output: Send;

    fn run<B: KernelBackend>(self, device: &B::Device) -> Result<Self::Output, Error>;
}

/// Backends with fused attention.
const FUSED: [&str; 6] = ["flex", "wgpu", "vulkan", "metal", "cuda", "rocm"];

/// Fails on an unknown backend, and where a GPU that it needs, or its driver, is missing.
///
/// # Errors
///
/// Says what is missing and what to install.
pub fn usable(backend: &Backend) -> Result<(), Error> {
    backend.check_name()?;
    match backend.name.as_str() {
        #[cfg(feature = "cuda")]
        "cuda" => find_cuda(backend.device),
        #[cfg(feature = "rocm")]
        "rocm" => find_rocm(&burn_rocm::RocmDevice::new(backend.device)),
        _ => Ok(()),
    }
}

/// Runs `job` on the default device of the backend, with the chosen implementation of attention.
///
/// # Errors
///
/// If the backend is unknown, not compiled in or not usable, and those of the job.
pub fn dispatch<J: Job>(backend: &Backend, job: J) -> Result<J::Output, Error> {
    usable(backend)?;
    let name = backend.name.as_str();
    match backend.attention {
        Some(Attention::Fused) if !FUSED.contains(&name) => {
            return Err(Error::Input(format!(
                "--attention fused: the backend `{name}` has no fused attention; leave the option out, or use one of {}",
                FUSED.join(", ")
            )));
        }
        Some(Attention::Reference) => kernels::set_attention(kernels::Attention::Reference),
        Some(Attention::Fused) | None => {}
    }
    match name {
        #[cfg(feature = "flex")]
        // On a thread of rayon's pool: it works on its part of a parallel loop without waking another thread.
        "flex" => rayon::scope(|_| run::<burn_flex::Flex, J>(backend, job, &Default::default())),
        #[cfg(feature = "ndarray")]
        "ndarray" => run::<burn_ndarray::NdArray<f32>, J>(backend, job, &Default::default()),
        #[cfg(feature = "wgpu")]
        "wgpu" => {
            #[cfg(feature = "vulkan")]
            crate::kernel_cache::keep_vulkan();
            run::<burn_wgpu::Wgpu, J>(backend, job, &wgpu_device(backend.device))
        }
        #[cfg(feature = "vulkan")]
        "vulkan" => {
            crate::kernel_cache::keep_vulkan();
            run::<burn_wgpu::Vulkan, J>(backend, job, &wgpu_device(backend.device))
        }
        #[cfg(feature = "metal")]
        "metal" => run::<burn_wgpu::Metal, J>(backend, job, &wgpu_device(backend.device)),
        #[cfg(feature = "cuda")]
        "cuda" => {
            crate::kernel_cache::keep_cuda(backend.device);
            run::<burn_cuda::Cuda, J>(backend, job, &burn_cuda::CudaDevice::new(backend.device))
        }
        #[cfg(feature = "rocm")]
        "rocm" => {
            run::<burn_rocm::Rocm, J>(backend, job, &burn_rocm::RocmDevice::new(backend.device))
        }
        name => Err(Error::Input(format!(
            "backend `{name}` is not compiled in: build with `cargo build --release --features {name}`"
        ))),
    }
}

/// Runs `job` with products in the chosen precision.
fn run<B: KernelBackend, J: Job>(
    backend: &Backend,
    job: J,
    device: &B::Device,
) -> Result<J::Output, Error> {
    let precision: Precision = backend.precision.map(Into::into).unwrap_or_default();
    if !B::computes_in(device, precision) {
        let (name, precision) = (&backend.name, precision.as_str());
        return Err(Error::Input(format!(
            "--precision {precision}: the backend `{name}` does not multiply in {precision} on this device; leave the option out"
        )));
    }
    kernels::set_precision(precision);
    job.run::<B>(device)
}

/// One of the machine's adapters: the one that wgpu prefers, or another discrete GPU.
#[cfg(feature = "wgpu")]
fn wgpu_device(index: usize) -> burn_wgpu::WgpuDevice {
    match index {
        0 => Default::default(),
        index => burn_wgpu::WgpuDevice::DiscreteGpu(index),
    }
}

/// Bytes that a GPU backend has reserved on its default device. It keeps them until the program ends, so this
/// is the peak, in whole pages. None for a CPU backend.
pub fn device_bytes(name: &str) -> Option<u64> {
    #[cfg(any(feature = "wgpu", feature = "cuda", feature = "rocm"))]
    fn reserved<R: burn_cubecl::CubeRuntime>() -> Option<u64> {
        let usage = R::client(&R::Device::default()).memory_usage();
        usage.ok().map(|usage| usage.bytes_reserved)
    }
    match name {
        #[cfg(feature = "wgpu")]
        "wgpu" | "vulkan" | "metal" => reserved::<burn_wgpu::WgpuRuntime>(),
        #[cfg(feature = "cuda")]
        "cuda" => reserved::<burn_cubecl::cubecl::cuda::CudaRuntime>(),
        #[cfg(feature = "rocm")]
        "rocm" => reserved::<burn_cubecl::cubecl::hip::HipRuntime>(),
        _ => None,
    }
}

/// What is said where ROCm does not start.
pub const NO_ROCM: &str = "rocm: no usable card or HIP library (libamdhip64.so) is found; install ROCm, let each of several processes \
                           see all cards of its machine, or use another backend, such as --backend flex";

/// Checks that ROCm's library and a card are there: a missing one would be a panic at its first use. On CubeCL's own thread the hook of
/// `startup.rs` tells of that panic and ends the program; on this one it is an error here.
#[cfg(feature = "rocm")]
fn find_rocm(device: &burn_rocm::RocmDevice) -> Result<(), Error> {
    use burn_cubecl::cubecl::{Runtime as _, hip::HipRuntime};
    let found = gradmem::support::panics::catch_panic(|| HipRuntime::client(device));
    found
        .map(|_| ())
        .ok_or_else(|| Error::Input(NO_ROCM.into()))
}

/// Checks that CUDA's libraries, a card and the headers are there. They are loaded at their first use, and
/// a missing one would be a panic then.
#[cfg(feature = "cuda")]
fn find_cuda(device: usize) -> Result<(), Error> {
    use std::path::PathBuf;
    let missing = |what: &str, remedy: &str| Err(Error::Input(format!("cuda: {what}; {remedy}")));
    // SAFETY: both only try to open a library.
    let (driver, compiler) = unsafe {
        (
            cudarc::driver::sys::is_culib_present(),
            cudarc::nvrtc::sys::is_culib_present(),
        )
    };
    if !driver {
        return missing(
            "the driver's library (libcuda.so.1) is not found",
            "install NVIDIA's driver, or use another backend, such as --backend flex",
        );
    }
    if !compiler {
        return missing(
            "the run-time compiler (libnvrtc) is not found",
            "install the CUDA toolkit or pip's nvidia-cuda-nvrtc and put its folder into LD_LIBRARY_PATH",
        );
    }
    let cards =
        cudarc::driver::result::init().and_then(|()| cudarc::driver::result::device::get_count());
    match cards {
        Ok(cards) if cards > 0 && device < cards as usize => {}
        Ok(1) => {
            return missing(
                &format!("process {device} of this machine sees one card"),
                "start one for each card, and let each see all cards of its machine, since process n computes on card n: \
                 with --gpus-per-node=N instead of --gpus-per-task=1 or --gpu-bind of srun, and without a single card in \
                 CUDA_VISIBLE_DEVICES",
            );
        }
        Ok(cards) if cards > 0 => {
            return missing(
                &format!(
                    "{} processes of this machine compute on {cards} cards",
                    device + 1
                ),
                "start one for each card",
            );
        }
        _ => return missing("the driver finds no card", "check nvidia-smi"),
    }
    let folders = match std::env::var_os("CUDA_PATH") {
        Some(folder) => vec![PathBuf::from(folder)],
        None => ["/usr/local/cuda", "/opt/cuda", "/usr"]
            .map(PathBuf::from)
            .to_vec(),
    };
    let lacking = |folder: &PathBuf| {
        let headers = ["include/cuda_runtime.h", "include/crt/mma.h"];
        headers
            .into_iter()
            .find(|header| !folder.join(header).exists())
    };
    if cfg!(target_os = "linux") {
        let Some(folder) = folders.iter().find(|folder| lacking(folder).is_none()) else {
            let header = folders.iter().filter_map(lacking).min();
            return missing(
                &format!("its headers are not found ({})", header.unwrap_or_default()),
                "set CUDA_PATH to the folder that has include/, of a toolkit or of pip's nvidia-cuda-runtime and \
                 nvidia-cuda-crt",
            );
        };
        // CubeCL searches by itself, and would take a folder that exists but lacks the headers.
        // SAFETY: no other thread that could read the environment runs yet.
        unsafe { std::env::set_var("CUDA_PATH", folder) };
    }
    Ok(())
}
