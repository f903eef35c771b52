//! The backends that compute with the provided methods.

use crate::{AttentionBackend, LayerBackend, ScanBackend};

#[cfg(feature = "flex")]
impl AttentionBackend for burn_flex::Flex {}

#[cfg(feature = "flex")]
impl ScanBackend for burn_flex::Flex {}

#[cfg(feature = "ndarray")]
impl AttentionBackend for burn_ndarray::NdArray<f32> {}

#[cfg(feature = "ndarray")]
impl LayerBackend for burn_ndarray::NdArray<f32> {}

#[cfg(feature = "ndarray")]
impl ScanBackend for burn_ndarray::NdArray<f32> {}

#[cfg(feature = "ndarray")]
impl AttentionBackend for burn_ndarray::NdArray<f64> {}

#[cfg(feature = "ndarray")]
impl LayerBackend for burn_ndarray::NdArray<f64> {}

#[cfg(feature = "ndarray")]
impl ScanBackend for burn_ndarray::NdArray<f64> {}
