//! Layers that can be differentiated twice.
//!
//! Burn's fused module operations stop at the first derivative (`nn::Linear` and `nn::Embedding`
//! panic in their second backward), and GradMem trains through gradients. These layers are made of
//! operations that go on, and their parameters are ordinary Burn parameters.
//!
//! Weights lie as Hugging Face stores them, `[d_output, d_input]`, and fields carry Hugging Face's
//! names, so that a parameter's path in the module is its name in a `.safetensors` file.

mod attention;
mod embedding;
mod init;
mod linear;
mod mlp;
mod norm;
mod rotary;

pub use attention::{SelfAttention, SelfAttentionConfig};
pub use embedding::Embedding;
pub use init::Init;
pub use linear::Linear;
pub use mlp::SwiGlu;
pub use norm::RmsNorm;
pub use rotary::Rotary;
