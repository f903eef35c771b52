//! Choices for the whole process: the code of attention, the rounding of products.

use std::sync::atomic::{AtomicBool, Ordering};

/// Which code computes attention on backends that have kernels for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Attention {
    /// Plain tensor operations ([`mod@crate::reference`]), as on every other backend; memory grows with
    /// `query_len × key_len`.
    Reference,
    /// The kernels, where they support the tensors and the device; otherwise the reference. On GPUs the
    /// fallback logs a warning with its reason, once for each reason, through the `log` crate.
    Fused,
}

static REFERENCE: AtomicBool = AtomicBool::new(false);

/// Chooses for the whole process. The two differ by rounding only, so that switching at any moment is
/// safe. The default is [`Attention::Fused`].
pub fn set_attention(attention: Attention) {
    REFERENCE.store(attention == Attention::Reference, Ordering::Relaxed);
}

/// The current choice.
pub fn attention() -> Attention {
    match REFERENCE.load(Ordering::Relaxed) {
        true => Attention::Reference,
        false => Attention::Fused,
    }
}

/// How products of f32 matrices are rounded on GPUs with matrix units. Other devices multiply f32 in f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Precision {
    /// f32 throughout.
    F32,
    /// What Burn chooses: on CUDA its kernels round the operands to TF32, a mantissa of ten bits.
    Tf32,
}

static TF32: AtomicBool = AtomicBool::new(false);

/// Chooses for the whole process. It decides [`product`](crate::product) and what is made of it. The default is
/// [`Precision::F32`].
pub fn set_precision(precision: Precision) {
    TF32.store(precision == Precision::Tf32, Ordering::Relaxed);
}

/// The current choice.
pub fn precision() -> Precision {
    match TF32.load(Ordering::Relaxed) {
        true => Precision::Tf32,
        false => Precision::F32,
    }
}
