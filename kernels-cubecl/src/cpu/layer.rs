//! RMS normalisation, SwiGLU and rotary positions: each one pass over its rows. The formulas are those of
//! [`crate::layer::reference`].

use burn::tensor::ops::FloatTensor;
use burn::tensor::{Bytes, DType, TensorMetadata};
use burn_flex::{Flex, FlexTensor, Layout};

use super::parallel::{Blank, map, parts};
use super::vector::{LANES, dot, exp, sum};
use crate::layer::{LayerBackend, reference};
use crate::{lift, lower};

type F = FloatTensor<Flex>;

impl LayerBackend for Flex {
    fn rms_norm(x: F, weight: F, epsilon: f64) -> F {
        let Some([x, weight]) = single([&x, &weight]) else {
            return lower(reference::rms_norm::<Flex>(lift(x), lift(weight), epsilon));
        };
        let w = weight.storage::<f32>();
        let part = |[x]: [&[f32]; 1], [y]: [Blank<'_>; 1]| {
            for (x, y) in x.chunks_exact(w.len()).zip(y.chunks_exact_mut(w.len())) {
                let r = inverse_rms(x, epsilon);
                for ((y, x), w) in y.iter_mut().zip(x).zip(w) {
                    y.write(x * r * w);
                }
            }
        };
        let ([y], _) = parts([x.storage()], w.len(), part);
        like(&x, y)
    }

    fn rms_norm_backward(
        x: F,
        weight: F,
        grad: F,
        epsilon: f64,
        wants_weight: bool,
    ) -> (F, Option<F>) {
        let Some([x, weight, grad]) = single([&x, &weight, &grad]) else {
            let (x, weight, grad) = (lift(x), lift(weight), lift(grad));
            let (dx, dw) =
                reference::rms_norm_backward::<Flex>(x, weight, grad, epsilon, wants_weight);
            return (lower(dx), dw.map(lower));
        };
        let w = weight.storage::<f32>();
        let d = w.len();
        let part = |[x, g]: [&[f32]; 2], [dx]: [Blank<'_>; 1]| {
            let mut dw = vec![0.0; if wants_weight { d } else { 0 }];
            let rows = x.chunks_exact(d).zip(g.chunks_exact(d));
            for ((x, g), dx) in rows.zip(dx.chunks_exact_mut(d)) {
                let r = inverse_rms(x, epsilon);
                let along = r * r * r * dot3(x, w, g) / d as f32;
                for (((dx, x), g), w) in dx.iter_mut().zip(x).zip(g).zip(w) {
                    dx.write(r * w * g - along * x);
                }
                for ((dw, g), x) in dw.iter_mut().zip(g).zip(x) {
                    *dw += g * x * r;
                }
            }
            dw
        };
        let ([dx], sums) = parts([x.storage(), grad.storage()], d, part);
        let dw = wants_weight.then(|| like(&weight, total(sums, d)));
        (like(&x, dx), dw)
    }

    fn rms_norm_double_backward(
        x: F,
        weight: F,
        grad: F,
        cotangents: [Option<F>; 2],
        epsilon: f64,
    ) -> [F; 3] {
        let single = single([&x, &weight, &grad]);
        let (Some([x, weight, grad]), [Some(a), None]) = (single, &cotangents) else {
            let (x, weight, grad) = (lift(x), lift(weight), lift(grad));
            let [a, c] = cotangents;
            let (a, c) = (a.map(lift), c.map(lift));
            let (to_grad, to_x, to_weight) =
                reference::rms_norm_double_backward::<Flex>(x, weight, grad, a, c, epsilon);
            return [lower(to_grad), lower(to_x), lower(to_weight)];
        };
        let (a, w) = (a.to_contiguous(), weight.storage::<f32>());
        let d = w.len();
        let part = |[x, g, a]: [&[f32]; 3], [to_grad, to_x]: [Blank<'_>; 2]| {
            let mut to_weight = vec![0.0; d];
            let rows = x
                .chunks_exact(d)
                .zip(g.chunks_exact(d))
                .zip(a.chunks_exact(d));
            let outputs = to_grad.chunks_exact_mut(d).zip(to_x.chunks_exact_mut(d));
            for (((x, g), a), (to_grad, to_x)) in rows.zip(outputs) {
                let r = inverse_rms(x, epsilon);
                let (p, q, t) = (dot3(a, w, g), dot(a, x), dot3(x, w, g));
                let cube = r * r * r / d as f32;
                let along = 3.0 * r * r * q * t / d as f32 - p;
                let outputs = to_grad.iter_mut().zip(to_x).zip(&mut to_weight);
                let inputs = x.iter().zip(g).zip(a).zip(w);
                for (((to_grad, to_x), to_weight), (((x, g), a), w)) in outputs.zip(inputs) {
                    let ja = r * a - cube * q * x;
                    to_grad.write(w * ja);
                    to_x.write(cube * (along * x - t * a - q * w * g));
                    *to_weight += g * ja;
                }
            }
            to_weight
        };
        let inputs = [x.storage(), grad.storage(), a.storage()];
        let ([to_grad, to_x], sums) = parts(inputs, d, part);
        let to_weight = like(&weight, total(sums, d));
        [like(&x, to_grad), like(&x, to_x), to_weight]
    }

    fn swiglu(gate: F, up: F) -> F {
        let Some([gate, up]) = single([&gate, &up]) else {
            return lower(reference::swiglu::<Flex>(lift(gate), lift(up)));
        };
        let [y] = map([gate.storage(), up.storage()], |[x, u]| [x * sigma(x) * u]);
        like(&gate, y)
    }

    fn swiglu_backward(gate: F, up: F, grad: F) -> [F; 2] {
        let Some([gate, up, grad]) = single([&gate, &up, &grad]) else {
            let inputs = (lift(gate), lift(up), lift(grad));
            return reference::swiglu_backward::<Flex>(inputs.0, inputs.1, inputs.2).map(lower);
        };
        let inputs = [gate.storage(), up.storage(), grad.storage()];
        map(inputs, |[x, u, g]| {
            let s = sigma(x);
            let first = s * (1.0 + x * (1.0 - s));
            [g * u * first, g * x * s]
        })
        .map(|y| like(&gate, y))
    }

    fn swiglu_double_backward(gate: F, up: F, grad: F, cotangents: [Option<F>; 2]) -> [F; 3] {
        let single = single([&gate, &up, &grad]);
        let (Some([gate, up, grad]), [Some(a), Some(b)]) = (single, &cotangents) else {
            let (gate, up, grad) = (lift(gate), lift(up), lift(grad));
            let cotangents = cotangents.map(|x| x.map(lift));
            return reference::swiglu_double_backward::<Flex>(gate, up, grad, cotangents)
                .map(lower);
        };
        let (a, b) = (a.to_contiguous(), b.to_contiguous());
        let inputs = [&gate, &up, &grad, &a, &b].map(|x| x.storage());
        map(inputs, |[x, u, g, a, b]| {
            let s = sigma(x);
            let first = s * (1.0 + x * (1.0 - s));
            let second = s * (1.0 - s) * (2.0 + x * (1.0 - 2.0 * s));
            let au = a * u;
            [
                au * first + b * x * s,
                g * (au * second + b * first),
                a * g * first,
            ]
        })
        .map(|y| like(&gate, y))
    }

    fn rotary(x: F, cos: F, sin: F, turn: F) -> F {
        let [_, seq, n_heads, d] = x.shape().dims();
        let halves = single([&turn]).and_then(|[turn]| half_of(turn.storage(), d));
        let (Some([x, cos, sin]), Some(half)) = (single([&x, &cos, &sin]), halves) else {
            let (cos, sin, turn) = (lift(cos), lift(sin), lift(turn));
            return lower(reference::rotary::<Flex>(lift(x), cos, sin, turn));
        };
        let (cos, sin): (&[f32], &[f32]) = (cos.storage(), sin.storage());
        // Parts are whole samples, so each begins at the first position.
        let part = |[x]: [&[f32]; 1], [y]: [Blank<'_>; 1]| {
            let heads = x.chunks_exact(d).zip(y.chunks_exact_mut(d)).enumerate();
            for (index, (x, y)) in heads {
                let at = index / n_heads % seq * d;
                let (cos, sin) = (&cos[at..at + d], &sin[at..at + d]);
                for i in 0..half {
                    let j = i + half;
                    y[i].write(x[i] * cos[i] - x[j] * sin[i]);
                    y[j].write(x[j] * cos[j] + x[i] * sin[j]);
                }
                for i in 2 * half..d {
                    y[i].write(x[i] * cos[i]);
                }
            }
        };
        let ([y], _) = parts([x.storage()], seq * n_heads * d, part);
        like(&x, y)
    }
}

/// The same, each in one piece, if all are of f32.
fn single<const N: usize>(tensors: [&FlexTensor; N]) -> Option<[FlexTensor; N]> {
    let single = tensors.iter().all(|x| x.dtype() == DType::F32);
    single.then(|| tensors.map(FlexTensor::to_contiguous))
}

/// Numbers in the shape of `x`.
fn like(x: &FlexTensor, numbers: Vec<f32>) -> FlexTensor {
    let layout = Layout::contiguous(x.layout().shape().clone());
    FlexTensor::new(Bytes::from_elems(numbers), layout, DType::F32)
}

#[inline(always)]
fn inverse_rms(x: &[f32], epsilon: f64) -> f32 {
    let mean_square = dot(x, x) / x.len() as f32;
    (mean_square + epsilon as f32).sqrt().recip()
}

/// The sum of `x ∘ w ∘ y`.
#[inline(always)]
fn dot3(x: &[f32], w: &[f32], y: &[f32]) -> f32 {
    let (x, x_rest) = x.as_chunks::<LANES>();
    let (w, w_rest) = w.as_chunks::<LANES>();
    let (y, y_rest) = y.as_chunks::<LANES>();
    let mut lanes = [0.0; LANES];
    for ((x, w), y) in x.iter().zip(w).zip(y) {
        for (((lane, x), w), y) in lanes.iter_mut().zip(x).zip(w).zip(y) {
            *lane += x * w * y;
        }
    }
    let rest = x_rest.iter().zip(w_rest).zip(y_rest);
    sum(&lanes) + rest.map(|((x, w), y)| x * w * y).sum::<f32>()
}

/// Sums of parts, one after the other.
fn total(parts: Vec<Vec<f32>>, d: usize) -> Vec<f32> {
    let mut total = vec![0.0; d];
    for part in parts {
        for (total, x) in total.iter_mut().zip(part) {
            *total += x;
        }
    }
    total
}

#[inline(always)]
fn sigma(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// h, if T `[d, d]` swaps dimensions 0 … h − 1 with h … 2h − 1, negates the first of each pair, and has
/// nothing else.
fn half_of(turn: &[f32], d: usize) -> Option<usize> {
    let half = (0..d).find(|row| turn[row * d] == -1.0).unwrap_or(0);
    let expected = |row: usize, column: usize| {
        if row == column + half && column < half {
            -1.0
        } else if column == row + half && row < half {
            1.0
        } else {
            0.0
        }
    };
    let fits = turn
        .iter()
        .enumerate()
        .all(|(at, x)| *x == expected(at / d, at % d));
    (fits && 2 * half <= d).then_some(half)
}
