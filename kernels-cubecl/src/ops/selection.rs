//! Choices for the whole process: the code of attention, the rounding of products.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use burn::tensor::DType;
use serde::{Deserialize, Serialize};

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
    #[cfg(any(feature = "fusion", test))]
    if let Some(choices) = registered::at_work() {
        return choices.attention;
    }
    match REFERENCE.load(Ordering::Relaxed) {
        true => Attention::Reference,
        false => Attention::Fused,
    }
}

/// What products of f32 matrices are computed in. Tensors of other types are multiplied in their own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Precision {
    /// f32 throughout.
    #[default]
    F32,
    /// Products round their factors to TF32, a mantissa of ten bits, on GPUs with matrix units for it.
    Tf32,
    /// Products round their factors to bf16, a mantissa of seven bits, and have sums and results in f32; attention takes and
    /// gives bf16 and sums in f32. Everything else stays f32: weights, norms, losses.
    Bf16,
}

impl Precision {
    /// Its name in settings and options.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Tf32 => "tf32",
            Self::Bf16 => "bf16",
        }
    }

    /// Whether a tensor of this type is rounded to bf16 where it is multiplied.
    pub(crate) fn rounds_to_bf16(dtype: DType) -> bool {
        dtype == DType::F32 && precision() == Self::Bf16
    }
}

static PRECISION: AtomicU8 = AtomicU8::new(Precision::F32 as u8);

/// Chooses for the whole process. It decides [`product`](crate::product), [`causal_attention`](crate::causal_attention) and what
/// is made of them, and a training by `gradmem` sets it to its own and leaves it so; Burn's own `matmul` and modules are as before. The default is [`Precision::F32`]. Whether a device has it:
/// [`LayerBackend::computes_in`](crate::LayerBackend::computes_in).
pub fn set_precision(precision: Precision) {
    PRECISION.store(precision as u8, Ordering::Relaxed);
}

/// The current choice.
pub fn precision() -> Precision {
    #[cfg(any(feature = "fusion", test))]
    if let Some(choices) = registered::at_work() {
        return choices.precision;
    }
    let choice = PRECISION.load(Ordering::Relaxed);
    let choices = [Precision::Tf32, Precision::Bf16].into_iter();
    let mut chosen = choices.filter(|precision| *precision as u8 == choice);
    chosen.next().unwrap_or_default()
}

/// Work that is registered now and done later, when other choices may be set.
#[cfg(any(feature = "fusion", test))]
pub(crate) mod registered {
    use std::cell::Cell;

    use crate::ops::selection::{Attention, Precision, attention, precision};

    thread_local! {
        /// What this thread's work was registered with, while it is done.
        static AT_WORK: Cell<Option<Choices>> = const { Cell::new(None) };
    }

    pub(super) fn at_work() -> Option<Choices> {
        AT_WORK.get()
    }

    /// The choices with which work is registered.
    #[derive(Clone, Copy, Debug)]
    pub(crate) struct Choices {
        pub(super) attention: Attention,
        pub(super) precision: Precision,
    }

    impl Choices {
        /// The current ones.
        pub(crate) fn now() -> Self {
            Self {
                attention: attention(),
                precision: precision(),
            }
        }

        /// Does the work with them, on this thread.
        pub(crate) fn during<T>(self, work: impl FnOnce() -> T) -> T {
            /// Also where the work panics.
            struct Restore(Option<Choices>);
            impl Drop for Restore {
                fn drop(&mut self) {
                    AT_WORK.set(self.0);
                }
            }
            let _restore = Restore(AT_WORK.replace(Some(self)));
            work()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::registered::Choices;
    use super::*;

    #[test]
    fn work_keeps_the_choices_that_it_was_registered_with() {
        let registered = Choices::now();
        set_precision(Precision::Tf32);
        set_attention(Attention::Reference);
        let at_work = registered.during(|| (attention(), precision()));
        let afterwards = (attention(), precision());
        set_precision(Precision::F32);
        set_attention(Attention::Fused);
        assert_eq!(at_work, (Attention::Fused, Precision::F32));
        assert_eq!(afterwards, (Attention::Reference, Precision::Tf32));
    }
}
