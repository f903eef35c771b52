//! Where compiled kernels are kept. CUDA's take a quarter of a minute for a training step. On Vulkan the driver keeps its own, and finds them
//! by their SPIR-V; CubeCL writes the same kernel in another order each time, so its SPIR-V is kept.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::time::{Duration, SystemTime};

use burn_cubecl::cubecl::config::{CubeClRuntimeConfig, RuntimeConfig as _, cache::CacheConfig};
use gradmem::support::hex;
use sha2::{Digest as _, Sha256};

/// How long kernels are kept that no run asks for.
const UNUSED: Duration = Duration::from_secs(30 * 24 * 3600);

/// Bytes that must be free: more than a run's kernels have.
const ROOM: usize = 8 << 20;

/// Makes CubeCL keep what it compiles for a CUDA card, as [`keep`] does.
#[cfg(feature = "cuda")]
pub fn keep_cuda(device: usize) {
    keep("cuda", || {
        let (major, minor) = cuda::capability(device).map_err(|e| e.to_string())?;
        let compiler = cuda::compiler()?;
        Ok(format!("-sm{major}{minor}-nvrtc{compiler}"))
    });
}

/// Makes CubeCL keep what it compiles for Vulkan, as [`keep`] does. What is compiled depends on more of the driver than CubeCL finds it by.
#[cfg(feature = "vulkan")]
pub fn keep_vulkan() {
    keep("vulkan", || {
        let mut hash = Sha256::new();
        for info in vulkan_adapters() {
            hash.update(format!("{info:?}"));
        }
        Ok(format!("-{}", hex(&hash.finalize()[..8])))
    });
}

/// The devices of this machine and their drivers, with versions.
#[cfg(feature = "vulkan")]
fn vulkan_adapters() -> Vec<wgpu::AdapterInfo> {
    let backends = wgpu::Backends::VULKAN;
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor {
        backends,
        ..wgpu::InstanceDescriptor::new_without_display_handle()
    });
    let adapters = burn_cubecl::cubecl::future::block_on(instance.enumerate_adapters(backends));
    adapters.iter().map(|adapter| adapter.get_info()).collect()
}

/// Makes CubeCL keep what it compiles, under the user's folder for caches, in a folder for this program and what it is compiled for.
/// Settings in a `cubecl.toml` are left as they are. Without such a folder kernels are compiled in each process.
fn keep(backend: &str, compiled_for: impl FnOnce() -> Result<String, String>) {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let mut config = CubeClRuntimeConfig::from_current_dir().override_from_env();
        if config.compilation.cache.is_none() {
            match compiled_for().and_then(|name| folder(backend, &name)) {
                Ok(folder) => config.compilation.cache = Some(CacheConfig::File(folder)),
                Err(problem) => log::info!("compiled kernels are not kept: {problem}"),
            }
        }
        CubeClRuntimeConfig::set(config);
    });
}

/// The folder of this program's kernels. CubeCL finds a kernel by its name and sizes, not by its code: the folder is named for all that the
/// compiled kernel depends on besides.
fn folder(backend: &str, compiled_for: &str) -> Result<PathBuf, String> {
    let all = dirs::cache_dir().ok_or("the user has no folder for caches")?;
    let all = all.join("gradmem").join(backend);
    let program = program().map_err(|e| format!("the program is not readable: {e}"))?;
    let folder = all.join(format!("{program}{compiled_for}"));
    std::fs::create_dir_all(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    // CubeCL does not return if it cannot write what it opens, or has no room for it.
    let room = tempfile::tempfile_in(&folder).and_then(|mut file| file.write_all(&vec![0; ROOM]));
    room.map_err(|e| format!("{}: {e}", folder.display()))?;
    // Its time says when it was last used.
    let _ = std::fs::File::open(&folder).and_then(|file| file.set_modified(SystemTime::now()));
    remove_unused(&all);
    Ok(folder)
}

/// A name for this build of the program.
fn program() -> std::io::Result<String> {
    let mut file = std::fs::File::open(std::env::current_exe()?)?;
    let mut hash = Sha256::new();
    std::io::copy(&mut file, &mut hash)?;
    let hash = hash.finalize();
    Ok(hex(&hash[..8]))
}

/// What kernels of CUDA are compiled for.
#[cfg(feature = "cuda")]
mod cuda {
    use cudarc::driver::{result, sys};

    /// The compute capability of a card.
    pub fn capability(device: usize) -> Result<(i32, i32), cudarc::driver::DriverError> {
        use sys::CUdevice_attribute_enum as Attribute;
        let device = result::device::get(device as i32)?;
        let number = |attribute| {
            // SAFETY: the driver gave the device.
            unsafe { result::device::get_attribute(device, attribute) }
        };
        Ok((
            number(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            number(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ))
    }

    /// The version of the run-time compiler.
    pub fn compiler() -> Result<String, String> {
        let (mut major, mut minor) = (0, 0);
        // SAFETY: it writes two numbers.
        let answer = unsafe { cudarc::nvrtc::sys::nvrtcVersion(&mut major, &mut minor) };
        answer
            .result()
            .map_err(|e| format!("the run-time compiler does not tell its version: {e:?}"))?;
        Ok(format!("{major}.{minor}"))
    }
}

/// Removes what other versions of the program have left. Where that fails, nothing but space is lost.
fn remove_unused(all: &Path) {
    for entry in std::fs::read_dir(all).into_iter().flatten().flatten() {
        let used = entry.metadata().and_then(|data| data.modified());
        let unused = used.is_ok_and(|at| at.elapsed().is_ok_and(|since| since > UNUSED));
        if unused {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_that_no_run_uses_are_removed() {
        let all = tempfile::tempdir().unwrap();
        let [old, new] = ["old", "new"].map(|name| all.path().join(name));
        for (folder, age) in [(&old, 2 * UNUSED), (&new, UNUSED / 2)] {
            std::fs::create_dir(folder).unwrap();
            std::fs::write(folder.join("kernels"), "…").unwrap();
            let at = SystemTime::now() - age;
            let file = std::fs::File::open(folder).unwrap();
            file.set_modified(at).unwrap();
        }
        remove_unused(all.path());
        assert!(!old.exists() && new.exists());
    }
}
