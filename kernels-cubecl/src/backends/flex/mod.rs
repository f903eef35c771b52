//! Loops for Burn's CPU backend, Flex, in f32. The reference computes tensors of other types, and the scan.

mod activation;
mod attention;
mod blocks;
mod heads;
mod layers;
mod losses;
mod matmul;
mod memory;
mod norm;
mod optimizer;
mod parallel;
mod rows;
mod swiglu;
mod threads;
mod triangular;
mod vector;

use burn_flex::Flex;

use crate::ScanBackend;

impl ScanBackend for Flex {}
