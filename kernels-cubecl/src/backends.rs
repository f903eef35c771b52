//! The backends that compute with the provided methods.

use crate::{AttentionBackend, ScanBackend};

#[cfg(feature = "flex")]
impl AttentionBackend for burn_flex::Flex {}

#[cfg(feature = "flex")]
impl ScanBackend for burn_flex::Flex {}

#[cfg(feature = "ndarray")]
impl AttentionBackend for burn_ndarray::NdArray<f32> {}

#[cfg(feature = "ndarray")]
impl ScanBackend for burn_ndarray::NdArray<f32> {}

#[cfg(feature = "ndarray")]
impl AttentionBackend for burn_ndarray::NdArray<f64> {}

#[cfg(feature = "ndarray")]
impl ScanBackend for burn_ndarray::NdArray<f64> {}

#[cfg(feature = "fusion")]
impl<B: burn_fusion::FusionBackend> AttentionBackend for burn_fusion::Fusion<B> {}

#[cfg(feature = "fusion")]
impl<B: burn_fusion::FusionBackend> ScanBackend for burn_fusion::Fusion<B> {}
