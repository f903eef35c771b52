//! The linear recurrence `h_t = a_t ∘ h_{t−1} + b_t`, in parallel over the sequence, differentiable as
//! often as one likes.
//!
//! Its gradient is the same recurrence run the other way: with `g = ∂L/∂h`,
//!
//! ```text
//! λ_t = g_t + a_{t+1} ∘ λ_{t+1}        ∂L/∂b_t = λ_t        ∂L/∂a_t = λ_t ∘ h_{t−1}
//! ```
//!
//! so one operation, registered as its own backward, closes under differentiation.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;
use burn_autodiff::Autodiff;
use burn_autodiff::NodeId;
use burn_autodiff::checkpoint::base::Checkpointer;
use burn_autodiff::checkpoint::strategy::CheckpointStrategy;
use burn_autodiff::grads::Gradients;
use burn_autodiff::ops::{Backward, Ops, OpsKind};

use crate::{lift, lower};

/// The way a recurrence runs along the sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// `h_t = a_t ∘ h_{t−1} + b_t`, from `h_{−1} = 0`.
    Forward,
    /// `h_t = a_t ∘ h_{t+1} + b_t`, from `h_{seq} = 0`.
    Reverse,
}

impl Direction {
    fn other(self) -> Self {
        match self {
            Self::Forward => Self::Reverse,
            Self::Reverse => Self::Forward,
        }
    }
}

/// A backend that computes elementwise linear recurrences. The provided method is a work-efficient
/// parallel scan in plain tensor operations: about `2 · seq` combinations in `2 · log₂ seq` rounds.
pub trait ScanBackend: Backend {
    /// `a`, `b` and the result are `[batch, seq, width]`.
    fn linear_scan(
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        direction: Direction,
    ) -> FloatTensor<Self> {
        lower(tree::<Self>(lift(a), lift(b), direction))
    }
}

/// The recurrence on tensors: `h_t = a_t ∘ h_{t−1} + b_t` along the sequence, from `h_{−1} = 0`.
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
        "linear_scan: a and b must have one shape"
    );
    lift(B::linear_scan(lower(a), lower(b), Direction::Forward))
}

/// Neighbours are combined into one step of half as long a recurrence, whose solution gives every
/// second `h`; the others are one step away from those.
fn tree<B: Backend>(a: Tensor<B, 3>, b: Tensor<B, 3>, direction: Direction) -> Tensor<B, 3> {
    let [batch, seq, width] = a.dims();
    if seq <= 1 {
        return b;
    }
    if !seq.is_multiple_of(2) {
        // A last step that leads nowhere: nothing flows out of zeros either way.
        let padded = |x: Tensor<B, 3>| {
            let zeros = Tensor::zeros([batch, 1, width], (&x.device(), x.dtype()));
            Tensor::cat(vec![x, zeros], 1)
        };
        return tree(padded(a), padded(b), direction).narrow(1, 0, seq);
    }
    let half = seq / 2;
    let side = |x: &Tensor<B, 3>, index| {
        let pairs = x.clone().reshape([batch, half, 2 * width]);
        pairs.narrow(2, index * width, width)
    };
    // In the direction of the recurrence, each pair has a step that comes first and one that comes last.
    let (first, last) = match direction {
        Direction::Forward => (0, 1),
        Direction::Reverse => (1, 0),
    };
    let (a_first, b_first) = (side(&a, first), side(&b, first));
    let (a_last, b_last) = (side(&a, last), side(&b, last));
    let h_last = tree(
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

/// What a recurrence in this direction has just before each step; zero before the first one.
fn previous<B: Backend>(x: Tensor<B, 3>, direction: Direction) -> Tensor<B, 3> {
    let [batch, seq, width] = x.dims();
    let zeros = Tensor::zeros([batch, 1, width], (&x.device(), x.dtype()));
    if seq == 1 {
        return zeros;
    }
    let parts = match direction {
        Direction::Forward => vec![zeros, x.narrow(1, 0, seq - 1)],
        Direction::Reverse => vec![x.narrow(1, 1, seq - 1), zeros],
    };
    Tensor::cat(parts, 1)
}

impl<B: ScanBackend, C: CheckpointStrategy> ScanBackend for Autodiff<B, C> {
    fn linear_scan(
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        direction: Direction,
    ) -> FloatTensor<Self> {
        let h = B::linear_scan(a.primitive.clone(), b.primitive.clone(), direction);
        let nodes = [a.node.clone(), b.node.clone()];
        let prep = Backward::<B, 2>::prepare::<C>(Scan, nodes).compute_bound();
        match prep.stateful() {
            OpsKind::Tracked(mut prep) => {
                let state = ScanState {
                    a: prep.checkpoint(&a),
                    h: h.clone(),
                    direction,
                };
                prep.finish(state, h)
            }
            OpsKind::UnTracked(prep) => prep.finish(h),
        }
    }
}

#[derive(Debug)]
struct Scan;

#[derive(Clone, Debug)]
struct ScanState<B: Backend> {
    a: NodeId,
    h: FloatTensor<B>,
    direction: Direction,
}

impl<B: ScanBackend> Backward<B, 2> for Scan {
    type State = ScanState<B>;

    fn backward(
        self,
        ops: Ops<Self::State, 2>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let gradient = grads.consume::<B>(&ops.node);
        let ScanState { a, h, direction } = ops.state;
        let a: Tensor<B, 3> = lift(checkpointer.retrieve_node_output::<FloatTensor<B>>(a));
        let back = direction.other();
        let lambda = B::linear_scan(lower(previous(a, back)), gradient, back);
        let [to_a, to_b] = ops.parents;
        if let Some(parent) = to_a {
            let before: Tensor<B, 3> = previous(lift(h), direction);
            let gradient = lift(lambda.clone()) * before;
            grads.register::<B>(parent.id, lower(gradient));
        }
        if let Some(parent) = to_b {
            grads.register::<B>(parent.id, lambda);
        }
    }
}
