//! The backends that compute with the provided methods.

#[cfg(feature = "ndarray")]
use crate::{AttentionBackend, LayerBackend, ScanBackend};

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
