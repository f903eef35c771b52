//! What every other module may use: files, the lock of graphs, memory, panics of dependencies, read-backs, where a step's time goes.

use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor};

pub(crate) mod fs;
pub(crate) mod graph_lock;
pub(crate) mod memory;
#[doc(hidden)]
pub mod panics;
// For the program's `bench`; no part of the library's interface.
#[doc(hidden)]
pub mod profile;
#[doc(hidden)]
pub mod readback;
pub(crate) mod setters;

/// A count of things, such as `1 step` and `2 steps`.
#[doc(hidden)]
pub fn counted(count: usize, one: &str) -> String {
    match (count, one.ends_with('s')) {
        (1, _) => format!("1 {one}"),
        (_, true) => format!("{count} {one}es"),
        _ => format!("{count} {one}s"),
    }
}

/// Whether sums of squares of this type of 16 bits may be infinite, zero or far off.
pub(crate) fn is_narrow(dtype: DType) -> bool {
    matches!(dtype, DType::F16 | DType::BF16)
}

/// The same numbers, in f32 where their type is [narrow](is_narrow).
pub(crate) fn wide<B: Backend, const D: usize>(x: Tensor<B, D>) -> Tensor<B, D> {
    match is_narrow(x.dtype()) {
        true => x.cast(DType::F32),
        false => x,
    }
}

/// SplitMix64's finalizer (Steele, Lea and Flood 2014): numbers that are next to each other become others that are not.
pub(crate) fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// For the program, which prints what files hold; no part of the library's interface.
#[doc(hidden)]
pub use crate::error::commands;
/// For the program, which checks what it will write to; no part of the library's interface.
#[doc(hidden)]
pub use fs::followed;
/// For the program, which names folders by hashes; no part of the library's interface.
#[doc(hidden)]
pub use fs::hex;
/// For the program, which reads texts from pipes too; no part of the library's interface.
#[doc(hidden)]
pub use fs::text as text_of_bytes;
/// For the program's `bench`; no part of the library's interface.
#[doc(hidden)]
pub use memory::host_bytes;
