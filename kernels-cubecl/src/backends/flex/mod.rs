//! Kernels for Burn's CPU backend, Flex, in f32. Other types compute with the reference.

mod attention;
mod heads;
mod layer;
mod losses;
mod matrix;
mod memory;
mod norm;
mod parallel;
mod product;
mod swiglu;
mod vector;

use crate::ScanBackend;

impl ScanBackend for burn_flex::Flex {}
