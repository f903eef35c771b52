//! What sequence models for [Burn](https://burn.dev) need to be differentiated twice: causal attention,
//! the layers around it, and the linear scan.
//!
//! GradMem (arXiv 2603.13875) trains *through* gradient steps, so every layer of its model needs a
//! gradient of a gradient. Burn's own fused operations stop at the first derivative. Here attention
//! is one extension trait, [`AttentionBackend`], with a forward, a backward and a double backward:
//!
//! - [`mod@reference`] computes all three with plain tensor operations; they are the trait's provided
//!   methods, so any Burn backend joins with an empty `impl`;
//! - on GPUs, Burn's CubeCL backends (CUDA, Vulkan, Metal, WebGPU) have kernels of their own, which
//!   never hold anything of size `query_len × key_len` (feature `cubecl`);
//! - so has Burn's CPU backend, Flex, in f32 (feature `flex`);
//! - `Autodiff<B>` registers the backward on the forward and the double backward on the backward,
//!   so `Autodiff<Autodiff<B>>` works by recursion.
//!
//! The same holds for matrix products, RMS normalisation, SwiGLU, rotary positions and cross-entropies
//! ([`LayerBackend`]). State-space models
//! need a linear recurrence over the sequence: [`ScanBackend`] computes it in parallel, and is its own
//! backward. [`KernelBackend`] is a backend that has them all.
//!
//! ```
//! # #[cfg(feature = "flex")] {
//! use burn::tensor::{Distribution, Tensor};
//! use gradmem_kernels::causal_attention;
//! type B = burn::backend::Autodiff<burn_flex::Flex>;
//!
//! let device = Default::default();
//! let random = |heads| Tensor::<B, 4>::random([2, heads, 5, 8], Distribution::Default, &device);
//! // Four query heads share two key/value heads.
//! let out = causal_attention(random(4), random(2), random(2), 1.0 / 8f64.sqrt());
//! assert_eq!(out.dims(), [2, 4, 5, 8]);
//! # }
//! ```
#![warn(missing_docs)]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod attention;
mod autodiff;
mod backends;
#[cfg(feature = "flex")]
mod cpu;
#[cfg(feature = "cubecl")]
mod cube;
#[cfg(feature = "fusion")]
mod fusion;
pub mod layer;
pub mod reference;
mod scan;

use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{Tensor, TensorPrimitive};

pub use attention::{
    Attention, AttentionBackend, AttentionError, attention, causal_attention, set_attention,
    try_causal_attention,
};
pub use layer::{LayerBackend, in_order, product, rms_norm, rotary, swiglu, token_losses};
pub use scan::{Direction, ScanBackend, linear_scan};

/// A backend that has everything the models of GradMem are made of.
pub trait KernelBackend: AttentionBackend + LayerBackend + ScanBackend {}

impl<B: AttentionBackend + LayerBackend + ScanBackend> KernelBackend for B {}

fn lift<B: Backend, const D: usize>(primitive: FloatTensor<B>) -> Tensor<B, D> {
    Tensor::from_primitive(TensorPrimitive::Float(primitive))
}

fn lower<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> FloatTensor<B> {
    tensor.into_primitive().tensor()
}

/// The README: its block of Rust compiles.
#[cfg(all(doctest, feature = "flex"))]
#[doc = include_str!("../README.md")]
mod readme {}
