//! The backends that compute attention with the reference.

use crate::AttentionBackend;

#[cfg(feature = "flex")]
impl AttentionBackend for burn_flex::Flex {}

#[cfg(feature = "ndarray")]
impl AttentionBackend for burn_ndarray::NdArray<f32> {}

#[cfg(feature = "ndarray")]
impl AttentionBackend for burn_ndarray::NdArray<f64> {}

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

#[cfg(feature = "fusion")]
impl<B: burn_fusion::FusionBackend> AttentionBackend for burn_fusion::Fusion<B> {}
