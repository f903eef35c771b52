//! SwiGLU, row by row: a row of `x` has the gate and behind it up.

use burn::tensor::Shape;
use burn_flex::FlexTensor;

use super::activation::{sigma, silu_slopes};
use super::memory::{in_shape, like};
use super::parallel::{Blank, rows};

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

pub fn backward(x: FlexTensor, grad: FlexTensor) -> FlexTensor {
    let ([batch, seq, width], values) = (x.layout().shape().dims(), x.storage());
    let (d, grad): (_, &[f32]) = (half(width), grad.storage());
    let ([to_x], _) = rows(
        batch * seq,
        [width],
        #[inline(always)]
        |range, [to_x]: [Blank<'_>; 1]| {
            for (row, to_x) in range.zip(to_x.chunks_exact_mut(width)) {
                let (gate, up) = halves(values, row, d);
                let grad = &grad[row * d..(row + 1) * d];
                let (to_gate, to_up) = to_x.split_at_mut(d);
                let (to_gate, to_up) = (&mut to_gate[..d], &mut to_up[..d]);
                for i in 0..d {
                    let (x, g) = (gate[i], grad[i]);
                    let s = sigma(x);
                    let [first, _] = silu_slopes(x, s);
                    to_gate[i].write(g * up[i] * first);
                    to_up[i].write(g * x * s);
                }
            }
        },
    );
    like(&x, to_x)
}

/// The gradients to grad and to `x`.
pub fn double_backward([x, grad, cotangent]: [FlexTensor; 3]) -> [FlexTensor; 2] {
    let ([batch, seq, width], values) = (x.layout().shape().dims(), x.storage());
    let d = half(width);
    let (gradient, cotangent): (&[f32], _) = (grad.storage(), cotangent.storage());
    let ([to_grad, to_x], _) = rows(
        batch * seq,
        [d, width],
        #[inline(always)]
        |range, [to_grad, to_x]: [Blank<'_>; 2]| {
            let outputs = to_grad
                .chunks_exact_mut(d)
                .zip(to_x.chunks_exact_mut(width));
            for (row, (to_grad, to_x)) in range.zip(outputs) {
                let (gate, up) = halves(values, row, d);
                let (a, b) = halves(cotangent, row, d);
                let grad = &gradient[row * d..(row + 1) * d];
                let (to_gate, to_up) = to_x.split_at_mut(d);
                let (to_gate, to_up) = (&mut to_gate[..d], &mut to_up[..d]);
                let to_grad = &mut to_grad[..d];
                for i in 0..d {
                    let (x, g) = (gate[i], grad[i]);
                    let s = sigma(x);
                    let [first, second] = silu_slopes(x, s);
                    let au = a[i] * up[i];
                    to_grad[i].write(au * first + b[i] * x * s);
                    to_gate[i].write(g * (au * second + b[i] * first));
                    to_up[i].write(a[i] * g * first);
                }
            }
        },
    );
    [like(&grad, to_grad), like(&x, to_x)]
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
                    for (y, x) in y.iter_mut().zip(&x[row * d..(row + 1) * d]) {
                        y.write(*x);
                    }
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
