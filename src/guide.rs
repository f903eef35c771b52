// How to use it, page by page; there is nothing here to call.
#![doc = include_str!("../docs/guide.md")]

#[doc = include_str!("../docs/cuda.md")]
pub mod cuda {}

#[doc = include_str!("../docs/from-pytorch.md")]
pub mod from_pytorch {}

#[doc = include_str!("../docs/language.md")]
pub mod language {}

#[doc = include_str!("../docs/memory-kinds.md")]
pub mod memory_kinds {}

#[doc = include_str!("../docs/scale.md")]
pub mod scale {}

#[doc = include_str!("../docs/settings.md")]
pub mod settings {}

#[doc = include_str!("../docs/your-burn-model.md")]
pub mod your_burn_model {}

#[doc = include_str!("../docs/troubleshooting.md")]
pub mod troubleshooting {}

/// The README: every block of Rust in it compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}
