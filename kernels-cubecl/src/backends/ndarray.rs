//! `NdArray` computes with the provided methods.

use burn_ndarray::NdArray;

use crate::{AttentionBackend, HeadBackend, LayerBackend, ScanBackend};

impl AttentionBackend for NdArray<f32> {}
impl LayerBackend for NdArray<f32> {}
impl HeadBackend for NdArray<f32> {}
impl ScanBackend for NdArray<f32> {}

impl AttentionBackend for NdArray<f64> {}
impl LayerBackend for NdArray<f64> {}
impl HeadBackend for NdArray<f64> {}
impl ScanBackend for NdArray<f64> {}
