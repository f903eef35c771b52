//! The Flex implementation of the layers: loops for f32, the reference for the rest.

use burn::tensor::ops::{FloatTensor, FloatTensorOps, IntTensor};
use burn::tensor::{DType, Shape, TensorMetadata};
use burn_flex::Flex;

use super::memory::{self, single};
use super::{activation, heads, losses, matmul, norm, optimizer, rows, swiglu};
use crate::ops::layers::{as_factor, behind_zeros, join_by_heads, last_rows, split_by_heads};
use crate::reference::adamw::adamw as reference_adamw;
use crate::reference::primitives::{self, added};
use crate::{AdamWStep, HeadBackend, LayerBackend, Nonlinearity, Norm};

type F = FloatTensor<Flex>;

impl HeadBackend for Flex {}

impl LayerBackend for Flex {
    /// Burn's own product first fills the result with zeros and copies it.
    fn product(lhs: F, rhs: F) -> F {
        let [lhs, rhs] = [lhs, rhs].map(as_factor::<Flex>);
        match lhs.dtype() {
            DType::F32 if lhs.shape().num_dims() == 2 => matmul::product(&lhs, &rhs),
            _ => Flex::float_matmul(lhs, rhs),
        }
    }

    fn add_product(mut to: F, lhs: F, rhs: F) -> F {
        match in_place(&mut to).filter(|_| lhs.shape().num_dims() == 2) {
            Some(to) => {
                let [lhs, rhs] = [lhs, rhs].map(as_factor::<Flex>);
                matmul::add_product(to, &lhs, &rhs);
            }
            None => return Self::add(Self::product(lhs, rhs), to),
        }
        to
    }

    /// Burn's own sum runs on one thread.
    fn add(x: F, y: F) -> F {
        // In memory's order: the heads of attention's gradients lie in the order of the tokens.
        let order = memory::order(&x);
        let [mut x, y] = [x, y].map(|x| Flex::float_permute(x, &order));
        let sum = match single([&y]) {
            None => Flex::float_add(x, y),
            Some([y]) => match in_place(&mut x) {
                Some(to) => {
                    matmul::add(to, y.storage());
                    x
                }
                None => matmul::sum(&x.to_contiguous(), &y),
            },
        };
        let mut back: Vec<_> = (0..order.len()).collect();
        back.sort_by_key(|&at| order[at]);
        Flex::float_permute(sum, &back)
    }

    fn token_losses(logits: F, targets: IntTensor<Flex>) -> F {
        match single([&logits]) {
            Some([logits]) => losses::forward(logits, indices(targets)),
            None => primitives::token_losses::<Flex>(logits, targets),
        }
    }

    fn token_losses_backward(logits: F, targets: IntTensor<Flex>, grad: F) -> F {
        match single([&logits, &grad]) {
            Some([logits, grad]) => losses::backward(logits, indices(targets), grad),
            None => primitives::token_losses_backward::<Flex>(logits, targets, grad),
        }
    }

    fn token_losses_double_backward(logits: F, targets: IntTensor<Flex>, grad: F, a: F) -> [F; 2] {
        match single([&logits, &grad, &a]) {
            Some([logits, grad, a]) => losses::double_backward(logits, indices(targets), grad, a),
            None => primitives::token_losses_double_backward::<Flex>(logits, targets, grad, a),
        }
    }

    fn norm(x: F, weight: F, by: Norm) -> F {
        match single([&x, &weight]) {
            Some([x, weight]) => norm::forward(x, weight, by),
            None => primitives::norm::<Flex>(x, weight, by),
        }
    }

    fn norm_backward(
        x: F,
        weight: F,
        grad: F,
        by: Norm,
        wants_weight: bool,
        onto: [Option<F>; 2],
    ) -> (F, Option<F>) {
        let Some([x, weight, grad]) = single([&x, &weight, &grad]) else {
            return primitives::norm_backward::<Flex>(x, weight, grad, by, wants_weight, onto);
        };
        let [onto_x, onto_weight] = onto;
        let (to_x, to_weight) = onto_or_new(
            onto_x,
            |to| norm::add_backward(to, [&x, &weight, &grad], by, wants_weight),
            || norm::backward([&x, &weight, &grad], by, wants_weight),
        );
        let to_weight = to_weight.map(|dw| added(onto_weight, dw, Self::add));
        (to_x, to_weight)
    }

    /// The loop is for the case without a cotangent of dw, as when only the gradient to x was used.
    fn norm_double_backward(
        x: F,
        weight: F,
        grad: F,
        cotangents: [Option<F>; 2],
        by: Norm,
        onto_weight: Option<F>,
    ) -> [F; 3] {
        let numbers = match &cotangents {
            [Some(a), None] => single([&x, &weight, &grad, a]),
            _ => None,
        };
        let Some([x, weight, grad, a]) = numbers else {
            return primitives::norm_double_backward::<Flex>(
                x,
                weight,
                grad,
                cotangents,
                by,
                onto_weight,
            );
        };
        let [to_grad, to_x, to_weight] = norm::double_backward(x, weight, grad, a, by);
        [to_grad, to_x, added(onto_weight, to_weight, Self::add)]
    }

    fn activate(x: F, by: Nonlinearity) -> F {
        match single([&x]) {
            Some([x]) => activation::forward(x, by),
            None => primitives::activate::<Flex>(x, by),
        }
    }

    fn activate_backward(x: F, grad: F, by: Nonlinearity, onto: Option<F>) -> F {
        match (single([&x, &grad]), &onto) {
            (Some(inputs), Some(onto)) => {
                activation::backward_onto(onto.to_contiguous(), inputs, by)
            }
            (Some(inputs), None) => activation::backward(inputs, by),
            (None, _) => primitives::activate_backward::<Flex>(x, grad, by, onto),
        }
    }

    fn activate_double_backward(x: F, grad: F, a: F, by: Nonlinearity) -> [F; 2] {
        match single([&x, &grad, &a]) {
            Some(inputs) => activation::double_backward(inputs, by),
            None => primitives::activate_double_backward::<Flex>(x, grad, a, by),
        }
    }

    fn swiglu(x: F) -> F {
        match single([&x]) {
            Some([x]) => swiglu::forward(x),
            None => primitives::swiglu::<Flex>(x),
        }
    }

    fn swiglu_backward(x: F, grad: F, onto: Option<F>) -> F {
        let Some([x, grad]) = single([&x, &grad]) else {
            return primitives::swiglu_backward::<Flex>(x, grad, onto);
        };
        let add = |to: &mut [f32]| swiglu::add_backward(to, &x, &grad);
        let (to_x, ()) = onto_or_new(onto, add, || (swiglu::backward(&x, &grad), ()));
        to_x
    }

    fn swiglu_double_backward(x: F, grad: F, a: F) -> [F; 2] {
        let is_single = [&grad, &a].iter().all(|x| x.dtype() == DType::F32);
        let Some([x]) = single([&x]).filter(|_| is_single) else {
            return primitives::swiglu_double_backward::<Flex>(x, grad, a);
        };
        let mut to = [grad, a].map(owned);
        let [grad, a] = to.each_mut().map(|x| in_place(x).expect("it is owned"));
        swiglu::double_backward(&x, grad, a);
        to
    }

    fn side_by_side(parts: [F; 2]) -> F {
        match single(parts.each_ref()) {
            Some(parts) => swiglu::side_by_side(parts),
            None => Flex::float_cat(parts.into(), 2),
        }
    }

    fn last_rows(x: F, count: usize) -> F {
        match x.dtype() {
            DType::F32 => rows::last(x, count),
            _ => last_rows::<Flex>(x, count),
        }
    }

    fn behind_zeros(x: F, count: usize) -> F {
        match x.dtype() {
            DType::F32 => rows::behind_zeros(x, count),
            _ => behind_zeros::<Flex>(x, count),
        }
    }

    fn ordered(x: F, rotation: Option<[F; 3]>) -> F {
        let is_single = x.dtype() == DType::F32;
        let Some(tables) = rotation else {
            return match is_single && !x.is_contiguous() {
                true => heads::contiguous(x),
                false => x,
            };
        };
        match heads::Turn::new(tables.each_ref()).filter(|_| is_single) {
            Some(by) => heads::rotary(x, &by),
            None => primitives::rotary::<Flex>(x, tables, Flex::float_matmul),
        }
    }

    /// Where nothing is rotated, all stays where it is.
    fn split_heads(x: F, rotation: Option<[F; 3]>, [n_heads, n_kv_heads]: [usize; 2]) -> [F; 3] {
        let Some(tables) = &rotation else {
            let [batch, seq, width] = x.shape().dims();
            let heads = n_heads + 2 * n_kv_heads;
            let x = Flex::float_reshape(x, Shape::new([batch, seq, heads, width / heads]));
            let at = [0, n_heads, n_heads + n_kv_heads];
            let count = [n_heads, n_kv_heads, n_kv_heads];
            return [0, 1, 2].map(|part| x.narrow(2, at[part], count[part]));
        };
        match (heads::Turn::new(tables.each_ref()), single([&x])) {
            (Some(by), Some([x])) => heads::split(x, &by, [n_heads, n_kv_heads]),
            _ => split_by_heads::<Flex>(x, rotation, [n_heads, n_kv_heads]),
        }
    }

    fn join_heads(qkv: [F; 3], rotation: Option<[F; 3]>) -> F {
        let by = match &rotation {
            Some(tables) => heads::Turn::new(tables.each_ref()).map(Some),
            None => Some(None),
        };
        match by.filter(|_| qkv[0].dtype() == DType::F32) {
            Some(by) => heads::join(qkv, by.as_ref()),
            None => join_by_heads::<Flex>(qkv, rotation),
        }
    }

    fn adamw(step: &AdamWStep, tensors: [F; 3], grad: F) -> [F; 3] {
        let is_single = tensors.iter().all(|x| x.dtype() == DType::F32);
        let Some([grad]) = single([&grad]).filter(|_| is_single) else {
            return reference_adamw::<Flex>(step, tensors, grad);
        };
        let mut tensors = tensors.map(owned);
        let values = tensors
            .each_mut()
            .map(|x| in_place(x).expect("it is owned"));
        optimizer::adamw(step, values, grad.storage());
        tensors
    }
}

/// A gradient that is added to `onto` by `add`, if that is nobody else's, or is the sum of both; and what comes with it.
fn onto_or_new<R>(
    onto: Option<F>,
    add: impl FnOnce(&mut [f32]) -> R,
    new: impl FnOnce() -> (F, R),
) -> (F, R) {
    let Some(mut to) = onto else {
        return new();
    };
    if let Some(values) = in_place(&mut to) {
        let rest = add(values);
        return (to, rest);
    }
    let (gradient, rest) = new();
    (Flex::add(gradient, to), rest)
}

/// The tensor itself if [`in_place`] has its values, otherwise a copy; f32.
fn owned(x: F) -> F {
    let contiguous = x.to_contiguous();
    drop(x);
    let mut x = contiguous;
    match in_place(&mut x) {
        Some(_) => x,
        None => matmul::copy(&x),
    }
}

/// The values of a contiguous f32 tensor that is the only user of its memory.
fn in_place(x: &mut F) -> Option<&mut [f32]> {
    let count = x.layout().shape().num_elements();
    let in_one_piece = x.layout().contiguous_offsets() == Some((0, count));
    match x.dtype() == DType::F32 && in_one_piece {
        true => Some(&mut x.try_storage_mut()?[..count]),
        false => None,
    }
}

/// Token ids as indices.
fn indices(x: IntTensor<Flex>) -> Vec<usize> {
    let data = x.into_data();
    data.iter::<i64>().map(|id| id as usize).collect()
}
