//! Kernels for Burn's CPU backend, Flex, in f32. Other types compute with the reference.

mod attention;
mod layer;
mod memory;
mod parallel;
mod product;
mod vector;

use crate::ScanBackend;

impl ScanBackend for burn_flex::Flex {}
