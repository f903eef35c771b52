//! The backends that compute attention with the reference.

use crate::AttentionBackend;

#[cfg(feature = "flex")]
impl AttentionBackend for burn_flex::Flex {}

#[cfg(feature = "ndarray")]
impl AttentionBackend for burn_ndarray::NdArray<f32> {}

#[cfg(feature = "ndarray")]
impl AttentionBackend for burn_ndarray::NdArray<f64> {}
