#![doc = "wip"]
#![warn(missing_docs)]
#![recursion_limit = "256"]
mod error;
pub mod model;
pub mod memory;
pub mod parity;
pub mod reference;
pub mod train;
mod files;
pub mod data;
pub use error::Error;
/// Attention that can be differentiated twice.
pub use gradmem_kernels as kernels;
