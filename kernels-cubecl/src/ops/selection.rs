//! The choice between attention kernels and the reference, one for the whole process.

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
