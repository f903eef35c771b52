//! On CUDA; `tests/cuda_on_cpu/run.sh` runs this where there is no GPU.
//!
//! `cargo test --release -p gradmem-kernels --features cuda,ndarray --test fused_cuda`

mod cases;
mod layers;
mod numbers;
mod products;

/// Without Burn's fusion, whether it is compiled in or not.
type Gpu = burn_cubecl::CubeBackend<burn_cubecl::cubecl::cuda::CudaRuntime, f32, i32, u8>;

/// How far Burn's own matrix products may be off: they round to TF32.
const TOLERANCE_OF_PRODUCTS: f64 = 1e-2;
