//! The backends that compute with the provided methods.

#[cfg(feature = "ndarray")]
use crate::{AttentionBackend, ScanBackend};

#[cfg(feature = "ndarray")]
impl AttentionBackend for burn_ndarray::NdArray<f32> {}

#[cfg(feature = "ndarray")]
impl ScanBackend for burn_ndarray::NdArray<f32> {}

#[cfg(feature = "ndarray")]
impl AttentionBackend for burn_ndarray::NdArray<f64> {}

#[cfg(feature = "ndarray")]
impl ScanBackend for burn_ndarray::NdArray<f64> {}
