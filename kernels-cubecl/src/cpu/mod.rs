//! Kernels for Burn's CPU backend, Flex, in f32. Other types compute with the reference.

mod vector;
