//! Layers that can be differentiated twice.
//!
//! Burn's fused module operations stop at the first derivative (`nn::Linear` and `nn::Embedding`
//! panic in their second backward), and GradMem trains through gradients. These layers are made of
//! operations that go on, and their parameters are ordinary Burn parameters.
//!
//! As with Burn's own layers, what does not fit their shapes panics. Models of this crate check their
//! settings when they are made, and WRITE and READ check tokens before a model sees them.
//!
//! Weights lie as Hugging Face stores them, mostly `[d_output, d_input]`, and fields carry Hugging
//! Face's names, so that a parameter's path in the module is its name in a `.safetensors` file.

mod activation;
mod attention;
mod embedding;
mod init;
mod linear;
mod mlp;
mod norm;
mod rotary;

pub use activation::Activation;
pub use attention::{SelfAttention, SelfAttentionConfig, attend};
pub use embedding::Embedding;
pub use init::Init;
pub(crate) use linear::matmul_transposed;
pub use linear::{Conv1D, Linear};
pub use mlp::GatedMlp;
pub use norm::{LayerNorm, RmsNorm};
pub use rotary::{RopeScaling, RopeType, Rotary, RotaryConfig};
