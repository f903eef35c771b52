//! Layers that can be differentiated twice.
//!
//! The layers of the models of this crate, around operations whose second derivatives are closed formulas (`kernels`). Modules
//! of `burn::nn` can be differentiated twice in WRITE as well; these are faster, and have Hugging Face's layouts. Their
//! parameters are ordinary Burn parameters.
//!
//! As Burn's own layers, they panic on tensors of the wrong shape. Models of this crate check their
//! settings when they are made, and WRITE and READ check tokens before a model sees them.
//!
//! Weights have the shapes in which Hugging Face stores them, mostly `[d_output, d_input]`, and fields carry Hugging
//! Face's names, so that a parameter's path in the module is its name in a `.safetensors` file.

mod activation;
mod affine;
mod associative;
mod attention;
mod convolution;
mod embedding;
mod init;
mod joined;
mod layout;
mod mlp;
mod norm;
mod rotary;
mod selective_scan;

pub use activation::Activation;
pub(super) use affine::apply;
pub use affine::{Affine, AffineConfig, Conv1D};
pub(crate) use affine::{affine, times_transposed};
pub use associative::{Associative, AssociativeConfig};
pub use attention::{SelfAttention, SelfAttentionConfig, attend};
pub(crate) use convolution::CausalConv;
pub use embedding::Embedding;
pub use init::Init;
pub(crate) use init::{StepBias, ramp};
pub use layout::OutputFirst;
pub use mlp::{GatedMlp, GatedMlpConfig};
pub use norm::{LayerNorm, RmsNorm};
pub use rotary::{RopeScaling, RopeType, Rotary, RotaryConfig};
pub(crate) use selective_scan::{selective_scan, softplus};
