#![doc = "wip"]
#![warn(missing_docs)]
#![recursion_limit = "256"]
mod error;
pub mod model;
pub mod memory;
pub mod parity;
pub mod reference;
pub use error::Error;
