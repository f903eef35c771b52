//! The linear recurrence as a work-efficient parallel scan (Blelloch, "Prefix sums and their applications",
//! 1990): about `2 · seq` combinations of steps in `2 · log₂ seq` rounds.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

/// The direction in which a recurrence runs along the sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Direction {
    /// `h_t = a_t ∘ h_{t−1} + b_t`, from `h_{−1} = 0`.
    Forward,
    /// `h_t = a_t ∘ h_{t+1} + b_t`, from `h_{seq} = 0`.
    Reverse,
}

impl Direction {
    pub(crate) fn opposite(self) -> Self {
        match self {
            Self::Forward => Self::Reverse,
            Self::Reverse => Self::Forward,
        }
    }
}

/// The recurrence `h_t = a_t ∘ h_{t−1} + b_t` from `h_{−1} = 0` or, for [`Direction::Reverse`],
/// `h_t = a_t ∘ h_{t+1} + b_t` from `h_{seq} = 0`.
///
/// Each pair of neighbouring steps is combined into one step of a recurrence of half the length. Its
/// solution gives every second `h`; the others follow from those by one step each.
///
/// # Shapes
///
/// - `a`, `b` and output: `[batch, seq, width]`
pub fn linear_scan<B: Backend>(
    a: Tensor<B, 3>,
    b: Tensor<B, 3>,
    direction: Direction,
) -> Tensor<B, 3> {
    let [batch, seq, width] = a.dims();
    if seq <= 1 {
        return b;
    }
    if !seq.is_multiple_of(2) {
        // Pad by a step with a = b = 0: it changes no other h in either direction.
        let padded = |x: Tensor<B, 3>| {
            let zeros = Tensor::zeros([batch, 1, width], (&x.device(), x.dtype()));
            Tensor::cat(vec![x, zeros], 1)
        };
        return linear_scan(padded(a), padded(b), direction).narrow(1, 0, seq);
    }
    let half = seq / 2;
    let side = |x: &Tensor<B, 3>, index| {
        let pairs = x.clone().reshape([batch, half, 2 * width]);
        pairs.narrow(2, index * width, width)
    };
    // The first and the last step of each pair, in the direction of the recurrence.
    let (first, last) = match direction {
        Direction::Forward => (0, 1),
        Direction::Reverse => (1, 0),
    };
    let (a_first, b_first) = (side(&a, first), side(&b, first));
    let (a_last, b_last) = (side(&a, last), side(&b, last));
    let h_last = linear_scan(
        a_last.clone() * a_first.clone(),
        a_last * b_first.clone() + b_last,
        direction,
    );
    let h_first = a_first * previous(h_last.clone(), direction) + b_first;
    let pair = match direction {
        Direction::Forward => vec![h_first, h_last],
        Direction::Reverse => vec![h_last, h_first],
    };
    Tensor::cat(pair, 2).reshape([batch, seq, width])
}

/// The value that precedes each step in this direction; zero before the first step.
pub(crate) fn previous<B: Backend>(x: Tensor<B, 3>, direction: Direction) -> Tensor<B, 3> {
    let [batch, seq, width] = x.dims();
    if seq <= 1 {
        return x.zeros_like();
    }
    let zeros = Tensor::zeros([batch, 1, width], (&x.device(), x.dtype()));
    let parts = match direction {
        Direction::Forward => vec![zeros, x.narrow(1, 0, seq - 1)],
        Direction::Reverse => vec![x.narrow(1, 1, seq - 1), zeros],
    };
    Tensor::cat(parts, 1)
}
