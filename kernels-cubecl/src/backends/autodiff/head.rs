//! The autodiff implementation of a head's cross-entropies.

use burn::tensor::backend::Backend;
use burn::tensor::ops::{FloatTensor, IntTensor};
use burn_autodiff::Autodiff;
use burn_autodiff::checkpoint::strategy::CheckpointStrategy;

use super::{Operation, Point, backward, forward};
use crate::HeadBackend;
use crate::reference::primitives::added;

#[derive(Clone, Debug)]
struct HeadLosses<B: Backend> {
    targets: IntTensor<B>,
    at_once: usize,
}

/// Each gradient that there is, added to what there is already; none is wanted where there is nothing to be added.
fn each_added<B: HeadBackend>(
    onto: [Option<FloatTensor<B>>; 2],
    gradients: [Option<FloatTensor<B>>; 2],
) -> [Option<FloatTensor<B>>; 2] {
    let mut onto = onto.into_iter();
    gradients.map(|gradient| {
        let onto = onto.next().flatten();
        gradient.map(|gradient| added(onto, gradient, B::add))
    })
}

impl<B: HeadBackend> Operation<B, 2> for HeadLosses<B> {
    fn backward(
        self,
        at: Point<B, 2>,
        grad: FloatTensor<B>,
        wanted: [bool; 2],
        onto: [Option<FloatTensor<B>>; 2],
    ) -> [Option<FloatTensor<B>>; 2] {
        let [hidden, weight] = at.inputs;
        let (targets, at_once) = (self.targets, self.at_once);
        let gradients = B::head_losses_backward(hidden, weight, targets, grad, at_once, wanted);
        each_added::<B>(onto, gradients)
    }

    fn double_backward(
        self,
        at: Point<B, 2>,
        grad: FloatTensor<B>,
        cotangents: [Option<FloatTensor<B>>; 2],
        wanted: [bool; 2],
        onto: [Option<FloatTensor<B>>; 2],
    ) -> (FloatTensor<B>, [Option<FloatTensor<B>>; 2]) {
        let [hidden, weight] = at.inputs;
        let (targets, at_once) = (self.targets, self.at_once);
        let (to_grad, to_inputs) = B::head_losses_double_backward(
            hidden, weight, targets, grad, cotangents, at_once, wanted,
        );
        (to_grad, each_added::<B>(onto, to_inputs))
    }
}

impl<B: HeadBackend, C: CheckpointStrategy> HeadBackend for Autodiff<B, C> {
    fn head_losses(
        hidden: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        targets: IntTensor<Self>,
        at_once: usize,
    ) -> FloatTensor<Self> {
        let [h, w] = [&hidden, &weight].map(|x| x.primitive.clone());
        let losses = B::head_losses(h, w, targets.clone(), at_once);
        let operation = HeadLosses::<B> { targets, at_once };
        forward::<B, C, 2>(operation, [hidden, weight], losses, Vec::new())
    }

    fn head_losses_backward(
        hidden: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        targets: IntTensor<Self>,
        grad: FloatTensor<Self>,
        at_once: usize,
        wanted: [bool; 2],
    ) -> [Option<FloatTensor<Self>>; 2] {
        let operation = HeadLosses::<B> { targets, at_once };
        let (inputs, onto) = ([hidden, weight], [None, None]);
        backward::<B, C, 2, 5>(operation, inputs, Vec::new(), grad, wanted, onto)
    }
}
