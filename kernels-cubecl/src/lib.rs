//! Operations of sequence models for [Burn](https://burn.dev) that can be differentiated twice: causal
//! attention, the layers around it, and the linear scan.
//!
//! GradMem (arXiv 2603.13875) trains *through* gradient steps, so every layer of its model needs a
//! gradient of a gradient. Burn's own fused operations stop at the first derivative. Each operation here
//! is a method of an extension trait, with a forward, a backward and a double backward:
//!
//! - [`AttentionBackend`]: causal softmax attention with grouped-query heads;
//! - [`LayerBackend`]: matrix products, RMS and layer normalisation, SwiGLU, activations, rotary positions and
//!   cross-entropies; [`HeadBackend`]: cross-entropies of a large vocabulary without all logits at once;
//! - [`ScanBackend`]: the linear recurrence of state-space models, computed in parallel over the sequence;
//! - [`KernelBackend`]: all of these.
//!
//! Call them through the functions of this page, such as [`causal_attention`], which check shapes first.
//! [`dpfp`], [`associative_read`] and [`associative_write`] are ARMT's associative memory, composed of these.
//!
//! # Layers of the crate
//!
//! - `ops`: the traits and the checked functions, re-exported here;
//! - [`mod@reference`]: the mathematics in plain tensor operations; the traits' provided methods call it;
//! - `backends`: the implementations.
//!
//! # Backends
//!
//! | backend | feature | computes with |
//! |---|---|---|
//! | `burn_autodiff::Autodiff<B>` | none | what `B` computes with; it records the backward of each forward and the double backward of each backward, so `Autodiff<Autodiff<B>>` has second derivatives |
//! | [`Tape<B>`](Tape) | none | as `Autodiff<B>`, on which the modules of `burn::nn` differentiate twice as well, and which is in training only if `B` is |
//! | `burn_flex::Flex` (CPU) | `flex` | loops of this crate in f32 for attention and the layers, the reference for other types and for the scan |
//! | `burn_cubecl::CubeBackend` (GPU) | `cubecl`, `wgpu`, `vulkan`, `cuda` | CubeCL kernels of this crate: for attention, which never store a matrix of `query_len × key_len`, and for the layers, a launch for each operation and derivative; the reference for the scan |
//! | `burn_ndarray::NdArray` (f32 and f64) | `ndarray` | the reference |
//! | `burn_fusion::Fusion<B>` | `fusion` | for attention and the layers what `B` computes with; for the scan the reference, which Burn fuses |
//!
//! Flex's loops are divided among the threads of rayon's pool. Called from one of them, as in `rayon::scope(|_| train())`, they keep
//! the others awake for 10 ms for the next loop: a training step of a small model then takes 5 to 10 % less time.
//!
//! All methods of the traits have provided bodies. If you wrote a backend type yourself, four empty
//! `impl` blocks in your crate make it a [`KernelBackend`]. A backend type of another crate (Burn's
//! `LibTorch`, for instance) cannot get them from your crate, because of Rust's orphan rule: its `impl`
//! blocks must be added here.
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

mod backends;
mod ops;
pub mod reference;

use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{Tensor, TensorPrimitive};

pub use backends::Tape;
pub use ops::KernelBackend;
pub use ops::associative::{
    Association, Bindings, Counting, associative_read, associative_write, dpfp,
};
pub use ops::attention::{
    AttentionBackend, AttentionError, causal_attention, try_causal_attention,
};
pub use ops::calls::{
    Rotation, activate, add_linear, contiguous, last_rows, layer_norm, linear, product, rms_norm,
    rotary, side_by_side, split_heads, swiglu, token_losses,
};
pub use ops::head::{HeadBackend, head_losses};
pub use ops::layers::LayerBackend;
pub use ops::scan::{Direction, ScanBackend, linear_scan};
pub use ops::selection::{
    Attention, Precision, attention, precision, set_attention, set_precision,
};
pub use reference::adamw::AdamWStep;
pub use reference::layers::{Nonlinearity, Norm};

/// A backend's float primitive as a tensor.
fn lift<B: Backend, const D: usize>(primitive: FloatTensor<B>) -> Tensor<B, D> {
    Tensor::from_primitive(TensorPrimitive::Float(primitive))
}

/// A float tensor as its backend's primitive.
fn lower<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> FloatTensor<B> {
    tensor.into_primitive().tensor()
}

/// Compiles the README's Rust block as a doctest.
#[cfg(all(doctest, feature = "flex"))]
#[doc = include_str!("../README.md")]
mod readme {}
