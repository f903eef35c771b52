//! How to use it, page by page: this page is the guide, and the modules below are the other pages. There is nothing here to call.
//!
//! Links to `results`, `benches`, `examples`, `tests` and `.ci` are to files of the repository.
//!
// A page links to another one by reference, and its last lines say which file that is. The definitions of `links.md`
// stand before the page: of two definitions the first counts, so here such a link leads to a module.
#![doc = include_str!("guide/links.md")]
#![doc = include_str!("../docs/guide.md")]

#[doc = include_str!("guide/links.md")]
#[doc = include_str!("../docs/cuda.md")]
pub mod cuda {}

#[doc = include_str!("guide/links.md")]
#[doc = include_str!("../docs/features.md")]
pub mod features {}

#[doc = include_str!("guide/links.md")]
#[doc = include_str!("../docs/from-pytorch.md")]
pub mod from_pytorch {}

#[doc = include_str!("guide/links.md")]
#[doc = include_str!("../docs/language.md")]
pub mod language {}

#[doc = include_str!("guide/links.md")]
#[doc = include_str!("../docs/memory-kinds.md")]
pub mod memory_kinds {}

#[doc = include_str!("guide/links.md")]
#[doc = include_str!("../docs/newer-burn.md")]
pub mod newer_burn {}

#[doc = include_str!("guide/links.md")]
#[doc = include_str!("../docs/scale.md")]
pub mod scale {}

#[doc = include_str!("guide/links.md")]
#[doc = include_str!("../docs/settings.md")]
pub mod settings {}

#[doc = include_str!("guide/links.md")]
#[doc = include_str!("../docs/your-burn-model.md")]
pub mod your_burn_model {}

#[doc = include_str!("guide/links.md")]
#[doc = include_str!("../docs/troubleshooting.md")]
pub mod troubleshooting {}

/// The README: every block of Rust in it compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}
