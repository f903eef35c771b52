//! On Vulkan; Mesa's software driver will do.
//!
//! `cargo test --release -p gradmem-kernels --features vulkan,ndarray --test fused_vulkan`

mod cases;
mod layers;
mod numbers;
mod products;

/// Without Burn's fusion, whether it is compiled in or not.
type Gpu = burn_wgpu::CubeBackend<burn_wgpu::WgpuRuntime, f32, i32, u8>;

/// How far Burn's own matrix products may be off.
const TOLERANCE_OF_PRODUCTS: f64 = 1e-4;
