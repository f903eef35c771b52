//! The autodiff implementation of the linear recurrence.
//!
//! The gradient of the recurrence is the same recurrence in the opposite direction: with `g = ∂L/∂h`,
//!
//! ```text
//! λ_t = g_t + a_{t+1} ∘ λ_{t+1}        ∂L/∂b_t = λ_t        ∂L/∂a_t = λ_t ∘ h_{t−1}
//! ```
//!
//! so one operation, registered as its own backward, has derivatives of every order.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;
use burn_autodiff::checkpoint::base::Checkpointer;
use burn_autodiff::checkpoint::strategy::CheckpointStrategy;
use burn_autodiff::grads::Gradients;
use burn_autodiff::ops::{Backward, Ops, OpsKind};
use burn_autodiff::{Autodiff, NodeId};

use crate::reference::scan::previous;
use crate::{Direction, ScanBackend, lift, lower};

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
        let back = direction.opposite();
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
