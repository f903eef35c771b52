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

#[cfg(feature = "cubecl")]
impl<R, F, I, BT> AttentionBackend for burn_cubecl::CubeBackend<R, F, I, BT>
where
    R: burn_cubecl::CubeRuntime,
    F: burn_cubecl::FloatElement,
    I: burn_cubecl::IntElement,
    BT: burn_cubecl::element::BoolElement,
    Self: burn::tensor::backend::Backend,
{
}

#[cfg(feature = "cubecl")]
impl<R, F, I, BT> ScanBackend for burn_cubecl::CubeBackend<R, F, I, BT>
where
    R: burn_cubecl::CubeRuntime,
    F: burn_cubecl::FloatElement,
    I: burn_cubecl::IntElement,
    BT: burn_cubecl::element::BoolElement,
    Self: burn::tensor::backend::Backend,
{
}

#[cfg(feature = "fusion")]
impl<B: burn_fusion::FusionBackend> AttentionBackend for burn_fusion::Fusion<B> {}

#[cfg(feature = "fusion")]
impl<B: burn_fusion::FusionBackend> ScanBackend for burn_fusion::Fusion<B> {}
