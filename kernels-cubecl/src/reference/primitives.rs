//! The reference on backends' primitives, for the traits' provided methods and for kernels that fall
//! back to it. Shapes and arguments are those of the traits' methods.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use burn::tensor::ops::{FloatTensor, IntTensor};

use super::attention::Product;
use super::layers::{Nonlinearity, Norm};
use super::scan::Direction;
use super::{attention, layers, scan};
use crate::{lift, lower};

pub fn causal_attention<B: Backend>(
    inputs: [FloatTensor<B>; 3],
    scale: f64,
    product: Product<B>,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let (out, lse) = attention::forward::<B>(inputs.map(lift), scale, product);
    (lower(out), lower(lse))
}

pub fn causal_attention_backward<B: Backend>(
    inputs: [FloatTensor<B>; 3],
    lse: FloatTensor<B>,
    grad_out: FloatTensor<B>,
    scale: f64,
    onto: [Option<FloatTensor<B>>; 3],
    product: Product<B>,
) -> [FloatTensor<B>; 3] {
    let at = attention::Point::new(inputs.map(lift), lift(lse), scale, product);
    let gradients = attention::backward::<B>(at, lift(grad_out)).map(lower);
    each_added(onto, gradients, B::float_add)
}

pub fn causal_attention_double_backward<B: Backend>(
    inputs: [FloatTensor<B>; 3],
    lse: FloatTensor<B>,
    grad_out: FloatTensor<B>,
    cotangents: [Option<FloatTensor<B>>; 3],
    scale: f64,
    product: Product<B>,
) -> [FloatTensor<B>; 4] {
    let at = attention::Point::new(inputs.map(lift), lift(lse), scale, product);
    let cotangents = cotangents.map(|c| c.map(lift));
    attention::double_backward::<B>(at, lift(grad_out), cotangents).map(lower)
}

/// A gradient, added to what there is already.
pub fn added<T>(onto: Option<T>, gradient: T, add: impl FnOnce(T, T) -> T) -> T {
    match onto {
        Some(onto) => add(onto, gradient),
        None => gradient,
    }
}

/// [`added`] for each of several gradients.
pub fn each_added<T, const N: usize>(
    onto: [Option<T>; N],
    gradients: [T; N],
    add: impl Fn(T, T) -> T,
) -> [T; N] {
    let mut onto = onto.into_iter();
    gradients.map(|gradient| added(onto.next().flatten(), gradient, &add))
}

pub fn token_losses<B: Backend>(logits: FloatTensor<B>, targets: IntTensor<B>) -> FloatTensor<B> {
    let targets = Tensor::from_primitive(targets);
    lower(layers::token_losses::<B>(lift(logits), targets))
}

pub fn token_losses_backward<B: Backend>(
    logits: FloatTensor<B>,
    targets: IntTensor<B>,
    grad: FloatTensor<B>,
) -> FloatTensor<B> {
    let targets = Tensor::from_primitive(targets);
    lower(layers::token_losses_backward::<B>(
        lift(logits),
        targets,
        lift(grad),
    ))
}

pub fn token_losses_double_backward<B: Backend>(
    logits: FloatTensor<B>,
    targets: IntTensor<B>,
    grad: FloatTensor<B>,
    a: FloatTensor<B>,
) -> [FloatTensor<B>; 2] {
    let targets = Tensor::from_primitive(targets);
    let (logits, grad) = (lift(logits), lift(grad));
    let (to_grad, to_logits) =
        layers::token_losses_double_backward::<B>(logits, targets, grad, lift(a));
    [lower(to_grad), lower(to_logits)]
}

pub fn norm<B: Backend>(x: FloatTensor<B>, weight: FloatTensor<B>, by: Norm) -> FloatTensor<B> {
    lower(layers::norm::<B>(lift(x), lift(weight), by))
}

pub fn norm_backward<B: Backend>(
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    grad: FloatTensor<B>,
    by: Norm,
    wants_weight: bool,
    [onto_x, onto_weight]: [Option<FloatTensor<B>>; 2],
) -> (FloatTensor<B>, Option<FloatTensor<B>>) {
    let (x, weight, grad) = (lift(x), lift(weight), lift(grad));
    let (dx, dw) = layers::norm_backward::<B>(x, weight, grad, by, wants_weight);
    let dw = dw.map(|dw| added(onto_weight, lower(dw), B::float_add));
    (added(onto_x, lower(dx), B::float_add), dw)
}

pub fn norm_double_backward<B: Backend>(
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    grad: FloatTensor<B>,
    [a, c]: [Option<FloatTensor<B>>; 2],
    by: Norm,
    onto_weight: Option<FloatTensor<B>>,
) -> [FloatTensor<B>; 3] {
    let (x, weight, grad) = (lift(x), lift(weight), lift(grad));
    let (a, c) = (a.map(lift), c.map(lift));
    let (to_grad, to_x, to_weight) = layers::norm_double_backward::<B>(x, weight, grad, a, c, by);
    let to_weight = added(onto_weight, lower(to_weight), B::float_add);
    [lower(to_grad), lower(to_x), to_weight]
}

pub fn swiglu<B: Backend>(x: FloatTensor<B>) -> FloatTensor<B> {
    lower(layers::swiglu::<B>(lift(x)))
}

pub fn swiglu_backward<B: Backend>(
    x: FloatTensor<B>,
    grad: FloatTensor<B>,
    onto: Option<FloatTensor<B>>,
) -> FloatTensor<B> {
    let dx = lower(layers::swiglu_backward::<B>(lift(x), lift(grad)));
    added(onto, dx, B::float_add)
}

pub fn swiglu_double_backward<B: Backend>(
    x: FloatTensor<B>,
    grad: FloatTensor<B>,
    cotangent: FloatTensor<B>,
) -> [FloatTensor<B>; 2] {
    layers::swiglu_double_backward::<B>(lift(x), lift(grad), lift(cotangent)).map(lower)
}

pub fn activate<B: Backend>(x: FloatTensor<B>, by: Nonlinearity) -> FloatTensor<B> {
    lower(layers::activate::<B>(lift(x), by))
}

pub fn activate_backward<B: Backend>(
    x: FloatTensor<B>,
    grad: FloatTensor<B>,
    by: Nonlinearity,
    onto: Option<FloatTensor<B>>,
) -> FloatTensor<B> {
    let dx = lower(layers::activate_backward::<B>(lift(x), lift(grad), by));
    added(onto, dx, B::float_add)
}

pub fn activate_double_backward<B: Backend>(
    x: FloatTensor<B>,
    grad: FloatTensor<B>,
    a: FloatTensor<B>,
    by: Nonlinearity,
) -> [FloatTensor<B>; 2] {
    layers::activate_double_backward::<B>(lift(x), lift(grad), lift(a), by).map(lower)
}

pub fn rotary<B: Backend>(
    x: FloatTensor<B>,
    [cos, sin, turn]: [FloatTensor<B>; 3],
    product: Product<B>,
) -> FloatTensor<B> {
    let (cos, sin, turn) = (lift(cos), lift(sin), lift(turn));
    let product = |lhs, rhs| lift(product(lower::<B, 2>(lhs), lower::<B, 2>(rhs)));
    lower(layers::rotary::<B>(lift(x), cos, sin, turn, product))
}

pub fn linear_scan<B: Backend>(
    a: FloatTensor<B>,
    b: FloatTensor<B>,
    direction: Direction,
) -> FloatTensor<B> {
    lower(scan::linear_scan::<B>(lift(a), lift(b), direction))
}
