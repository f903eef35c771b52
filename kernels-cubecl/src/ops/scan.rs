//! The linear recurrence: the trait that backends implement and the checked call on tensors.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;

use crate::reference::primitives;
pub use crate::reference::scan::Direction;
use crate::{lift, lower};

/// A backend that computes elementwise linear recurrences.
///
/// The provided method computes with [`reference::scan`](crate::reference::scan). Its gradient is the same
/// recurrence in the opposite direction, so one method is enough for every derivative.
pub trait ScanBackend: Backend {
    /// `a`, `b` and the result are `[batch, seq, width]`. They are not checked; the function
    /// [`linear_scan`] checks them.
    fn linear_scan(
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        direction: Direction,
    ) -> FloatTensor<Self> {
        primitives::linear_scan::<Self>(a, b, direction)
    }
}

/// The linear recurrence `h_t = a_t ∘ h_{t−1} + b_t` along the sequence, from `h_{−1} = 0`.
///
/// # Shapes
///
/// - `a`, `b` and output: `[batch, seq, width]`
///
/// # Panics
///
/// If the shapes differ.
pub fn linear_scan<B: ScanBackend>(a: Tensor<B, 3>, b: Tensor<B, 3>) -> Tensor<B, 3> {
    assert_eq!(
        a.dims(),
        b.dims(),
        "linear_scan: the shapes of a and b differ"
    );
    lift(B::linear_scan(lower(a), lower(b), Direction::Forward))
}
