//! Which of the layers' tensors the kernels take; the reference computes the rest.

use burn::tensor::ops::{FloatTensor, FloatTensorOps, IntTensor};
use burn::tensor::{DType, Tensor, TensorMetadata};
use burn_flex::Flex;

use super::memory::single;
use super::{heads, losses, matrix, norm, swiglu};
use crate::layer::{LayerBackend, reference};
use crate::{lift, lower};

type F = FloatTensor<Flex>;

impl LayerBackend for Flex {
    /// Burn's own fills the result with zeros and copies these before it begins.
    fn product(lhs: F, rhs: F) -> F {
        match lhs.dtype() {
            DType::F32 => matrix::product(&lhs, &rhs),
            _ => Flex::float_matmul(lhs, rhs),
        }
    }

    fn add_product(mut to: F, lhs: F, rhs: F) -> F {
        match in_place(&mut to) {
            Some(to) => matrix::add_product(to, &lhs, &rhs),
            None => return Flex::float_add(to, Self::product(lhs, rhs)),
        }
        to
    }

    fn add(mut x: F, y: F) -> F {
        let numbers = single([&y]);
        match (in_place(&mut x), &numbers) {
            (Some(x), Some([y])) => matrix::add(x, y.storage()),
            _ => return Flex::float_add(x, y),
        }
        x
    }

    fn token_losses(logits: F, targets: IntTensor<Flex>) -> F {
        match single([&logits]) {
            Some([logits]) => losses::forward(logits, indices(targets)),
            None => {
                let targets = Tensor::from_primitive(targets);
                lower(reference::token_losses::<Flex>(lift(logits), targets))
            }
        }
    }

    fn token_losses_backward(logits: F, targets: IntTensor<Flex>, grad: F) -> F {
        if let Some([logits, grad]) = single([&logits, &grad]) {
            return losses::backward(logits, indices(targets), grad);
        }
        let targets = Tensor::from_primitive(targets);
        let (logits, grad) = (lift(logits), lift(grad));
        lower(reference::token_losses_backward::<Flex>(
            logits, targets, grad,
        ))
    }

    fn token_losses_double_backward(logits: F, targets: IntTensor<Flex>, grad: F, a: F) -> [F; 2] {
        if let Some([logits, grad, a]) = single([&logits, &grad, &a]) {
            return losses::double_backward(logits, indices(targets), grad, a);
        }
        let targets = Tensor::from_primitive(targets);
        let (logits, grad, a) = (lift(logits), lift(grad), lift(a));
        let (to_grad, to_logits) =
            reference::token_losses_double_backward::<Flex>(logits, targets, grad, a);
        [lower(to_grad), lower(to_logits)]
    }

    fn in_order(x: F) -> F {
        match x.dtype() == DType::F32 && !x.is_contiguous() {
            true => heads::in_order(x),
            false => x,
        }
    }

    fn rms_norm(x: F, weight: F, epsilon: f64) -> F {
        match single([&x, &weight]) {
            Some([x, weight]) => norm::forward(x, weight, epsilon),
            None => lower(reference::rms_norm::<Flex>(lift(x), lift(weight), epsilon)),
        }
    }

    fn rms_norm_backward(
        x: F,
        weight: F,
        grad: F,
        epsilon: f64,
        wants_weight: bool,
    ) -> (F, Option<F>) {
        if let Some([x, weight, grad]) = single([&x, &weight, &grad]) {
            return norm::backward(x, weight, grad, epsilon, wants_weight);
        }
        let (x, weight, grad) = (lift(x), lift(weight), lift(grad));
        let (dx, dw) = reference::rms_norm_backward::<Flex>(x, weight, grad, epsilon, wants_weight);
        (lower(dx), dw.map(lower))
    }

    fn rms_norm_double_backward(
        x: F,
        weight: F,
        grad: F,
        cotangents: [Option<F>; 2],
        epsilon: f64,
    ) -> [F; 3] {
        if let [Some(a), None] = &cotangents
            && let Some([x, weight, grad, a]) = single([&x, &weight, &grad, a])
        {
            return norm::double_backward(x, weight, grad, a, epsilon);
        }
        let (x, weight, grad) = (lift(x), lift(weight), lift(grad));
        let [a, c] = cotangents;
        let (a, c) = (a.map(lift), c.map(lift));
        let (to_grad, to_x, to_weight) =
            reference::rms_norm_double_backward::<Flex>(x, weight, grad, a, c, epsilon);
        [lower(to_grad), lower(to_x), lower(to_weight)]
    }

    fn swiglu(gate: F, up: F) -> F {
        match single([&gate, &up]) {
            Some([gate, up]) => swiglu::forward(gate, up),
            None => lower(reference::swiglu::<Flex>(lift(gate), lift(up))),
        }
    }

    fn swiglu_backward(gate: F, up: F, grad: F) -> [F; 2] {
        if let Some([gate, up, grad]) = single([&gate, &up, &grad]) {
            return swiglu::backward(gate, up, grad);
        }
        let (gate, up, grad) = (lift(gate), lift(up), lift(grad));
        reference::swiglu_backward::<Flex>(gate, up, grad).map(lower)
    }

    fn swiglu_double_backward(gate: F, up: F, grad: F, cotangents: [Option<F>; 2]) -> [F; 3] {
        if let [Some(a), Some(b)] = &cotangents
            && let Some(inputs) = single([&gate, &up, &grad, a, b])
        {
            return swiglu::double_backward(inputs);
        }
        let (gate, up, grad) = (lift(gate), lift(up), lift(grad));
        let cotangents = cotangents.map(|x| x.map(lift));
        reference::swiglu_double_backward::<Flex>(gate, up, grad, cotangents).map(lower)
    }

    fn rotary(x: F, cos: F, sin: F, turn: F) -> F {
        let [.., d] = x.shape().dims::<4>();
        let half = single([&turn]).and_then(|[turn]| heads::half_of(turn.storage(), d));
        let table = single([&cos, &sin]).filter(|_| x.dtype() == DType::F32);
        if let (Some([cos, sin]), Some(half)) = (table, half) {
            return heads::rotary(x, cos, sin, half);
        }
        let (cos, sin, turn) = (lift(cos), lift(sin), lift(turn));
        lower(reference::rotary::<Flex>(lift(x), cos, sin, turn))
    }
}

/// A tensor's numbers, if nobody else reads them and there are no others in its memory.
fn in_place(x: &mut F) -> Option<&mut [f32]> {
    let count = x.layout().shape().num_elements();
    let in_one_piece = x.layout().contiguous_offsets() == Some((0, count));
    match x.dtype() == DType::F32 && in_one_piece {
        true => Some(&mut x.try_storage_mut()?[..count]),
        false => None,
    }
}

/// Token ids as places in a row.
fn indices(x: IntTensor<Flex>) -> Vec<usize> {
    let data = x.into_data();
    data.iter::<i64>().map(|id| id as usize).collect()
}
