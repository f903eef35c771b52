//! SwiGLU, row by row: a row of `x` has the gate and behind it up.

use std::ops::Range;

use burn::tensor::Shape;
use burn_flex::FlexTensor;

use super::activation::{sigma, silu_slopes};
use super::memory::{in_shape, like};
use super::parallel::{Blank, Slot, copy, rows, update_rows};

pub fn forward(x: FlexTensor) -> FlexTensor {
    let ([batch, seq, width], values) = (x.layout().shape().dims(), x.storage());
    let d = half(width);
    let ([y], _) = rows(
        batch * seq,
        [d],
        #[inline(always)]
        |range, [y]: [Blank<'_>; 1]| {
            for (row, y) in range.zip(y.chunks_exact_mut(d)) {
                let (gate, up) = halves(values, row, d);
                let y = &mut y[..d];
                for i in 0..d {
                    y[i].write(gate[i] * sigma(gate[i]) * up[i]);
                }
            }
        },
    );
    in_shape(&Shape::new([batch, seq, d]), y)
}

pub fn backward(x: &FlexTensor, grad: &FlexTensor) -> FlexTensor {
    let ([batch, seq, width], values) = (x.layout().shape().dims(), x.storage());
    let grad = grad.storage();
    let ([to_x], _) = rows(
        batch * seq,
        [width],
        #[inline(always)]
        |range, [to_x]: [Blank<'_>; 1]| gradients([values, grad], width, range, to_x),
    );
    like(x, to_x)
}

/// Adds the gradient to `x` to `to`, of the same shape.
pub fn add_backward(to: &mut [f32], x: &FlexTensor, grad: &FlexTensor) {
    let ([_, _, width], values) = (x.layout().shape().dims(), x.storage());
    let grad = grad.storage();
    update_rows(
        [to],
        [width],
        #[inline(always)]
        |range, [to]: [&mut [f32]; 1]| gradients([values, grad], width, range, to),
    );
}

/// Some rows of the gradient to `x`.
#[inline(always)]
fn gradients<T: Slot>([x, grad]: [&[f32]; 2], width: usize, rows: Range<usize>, to: &mut [T]) {
    let d = half(width);
    for (row, to) in rows.zip(to.chunks_exact_mut(width)) {
        let (gate, up) = halves(x, row, d);
        let grad = &grad[row * d..(row + 1) * d];
        let (to_gate, to_up) = to.split_at_mut(d);
        let (to_gate, to_up) = (&mut to_gate[..d], &mut to_up[..d]);
        for i in 0..d {
            let (x, g) = (gate[i], grad[i]);
            let s = sigma(x);
            let [first, _] = silu_slopes(x, s);
            to_gate[i].put(g * up[i] * first);
            to_up[i].put(g * x * s);
        }
    }
}

/// Replaces `grad` by the gradient to it, and the cotangent by that to `x`.
pub fn double_backward(x: &FlexTensor, grad: &mut [f32], cotangent: &mut [f32]) {
    let ([_, _, width], values) = (x.layout().shape().dims(), x.storage());
    let d = half(width);
    update_rows(
        [grad, cotangent],
        [d, width],
        #[inline(always)]
        |range, [grad, cotangent]: [&mut [f32]; 2]| {
            let rows = grad
                .chunks_exact_mut(d)
                .zip(cotangent.chunks_exact_mut(width));
            for (row, (grad, cotangent)) in range.zip(rows) {
                let (gate, up) = halves(values, row, d);
                let (a, b) = cotangent.split_at_mut(d);
                let (grad, a, b) = (&mut grad[..d], &mut a[..d], &mut b[..d]);
                for i in 0..d {
                    let (x, g) = (gate[i], grad[i]);
                    let s = sigma(x);
                    let [first, second] = silu_slopes(x, s);
                    let au = a[i] * up[i];
                    grad[i] = au * first + b[i] * x * s;
                    (a[i], b[i]) = (g * (au * second + b[i] * first), a[i] * g * first);
                }
            }
        },
    );
}

/// Rows of both, one behind the other.
pub fn side_by_side([left, right]: [FlexTensor; 2]) -> FlexTensor {
    let [batch, seq, d] = left.layout().shape().dims();
    let values: [&[f32]; 2] = [left.storage(), right.storage()];
    let ([y], _) = rows(
        batch * seq,
        [2 * d],
        #[inline(always)]
        |range, [y]: [Blank<'_>; 1]| {
            for (row, y) in range.zip(y.chunks_exact_mut(2 * d)) {
                for (x, y) in values.iter().zip(y.chunks_exact_mut(d)) {
                    copy(&x[row * d..(row + 1) * d], y);
                }
            }
        },
    );
    in_shape(&Shape::new([batch, seq, 2 * d]), y)
}

fn half(width: usize) -> usize {
    assert!(
        width.is_multiple_of(2),
        "swiglu: a row of {width} values has no halves"
    );
    width / 2
}

/// The two halves of a row of `2 d` values.
#[inline(always)]
fn halves(x: &[f32], row: usize, d: usize) -> (&[f32], &[f32]) {
    let (gate, up) = x[2 * d * row..2 * d * (row + 1)].split_at(d);
    (&gate[..d], &up[..d])
}
