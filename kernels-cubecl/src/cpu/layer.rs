//! RMS normalisation, SwiGLU and rotary positions: each one pass over its rows. The formulas are those of
//! [`crate::layer::reference`].

use burn::tensor::ops::{FloatTensor, FloatTensorOps, IntTensor};
use burn::tensor::{Bytes, DType, Shape, Tensor, TensorMetadata};
use burn_flex::{Flex, FlexTensor, Layout};
use gemm::{Parallelism, gemm};
use rayon::prelude::*;

use super::memory::{Heads, readable};
use super::parallel::{Blank, PART, fill, map, parts};
use super::vector::{LANES, dispatch, dot, exp, max, sum};
use crate::layer::{LayerBackend, reference};
use crate::{lift, lower};

type F = FloatTensor<Flex>;

impl LayerBackend for Flex {
    /// Burn's own fills the result with zeros and copies these before it begins.
    fn product(lhs: F, rhs: F) -> F {
        if lhs.dtype() != DType::F32 {
            return Flex::float_matmul(lhs, rhs);
        }
        let ([m, _], [_, n]) = (lhs.shape().dims(), rhs.shape().dims::<2>());
        let mut output = Vec::with_capacity(m * n);
        // SAFETY: the memory is of m · n numbers, which are written before anybody reads them.
        unsafe {
            multiply(output.as_mut_ptr(), &lhs, &rhs, false);
            output.set_len(m * n);
        }
        in_shape(&[m, n].into(), output)
    }

    fn add_product(mut to: F, lhs: F, rhs: F) -> F {
        let numbers = to.layout().shape().num_elements();
        let whole =
            to.dtype() == DType::F32 && to.layout().contiguous_offsets() == Some((0, numbers));
        let place = whole.then(|| to.try_storage_mut::<f32>()).flatten();
        if let Some(place) = place {
            // SAFETY: a tensor without gaps, whose shape is the product's, and nobody else's.
            unsafe { multiply(place.as_mut_ptr(), &lhs, &rhs, true) };
            return to;
        }
        Flex::float_add(to, Self::product(lhs, rhs))
    }

    fn add(mut x: F, y: F) -> F {
        let one_piece = |x: &F| {
            let numbers = x.layout().shape().num_elements();
            x.dtype() == DType::F32 && x.layout().contiguous_offsets() == Some((0, numbers))
        };
        if !one_piece(&x) || !one_piece(&y) {
            return Flex::float_add(x, y);
        }
        let numbers = x.layout().shape().num_elements();
        match x.try_storage_mut::<f32>() {
            Some(place) => add_to(&mut place[..numbers], &y.storage()[..numbers]),
            None => return Flex::float_add(x, y),
        }
        x
    }

    fn token_losses(logits: F, targets: IntTensor<Flex>) -> F {
        let Some([logits]) = single([&logits]) else {
            let targets = Tensor::from_primitive(targets);
            return lower(reference::token_losses::<Flex>(lift(logits), targets));
        };
        let [rows, vocab] = logits.shape().dims();
        let (x, targets) = (logits.storage::<f32>(), indices(targets));
        let ([losses], _) = fill(
            rows,
            1,
            #[inline(always)]
            |range, [losses]: [Blank<'_>; 1]| {
                for (row, loss) in range.zip(losses) {
                    let x = &x[row * vocab..(row + 1) * vocab];
                    loss.write(log_sum_exp(x) - x[targets[row]]);
                }
            },
        );
        in_shape(&[rows].into(), losses)
    }

    fn token_losses_backward(logits: F, targets: IntTensor<Flex>, grad: F) -> F {
        let Some([logits, grad]) = single([&logits, &grad]) else {
            let targets = Tensor::from_primitive(targets);
            let (logits, grad) = (lift(logits), lift(grad));
            let gradient = reference::token_losses_backward::<Flex>(logits, targets, grad);
            return lower(gradient);
        };
        let [_, vocab] = logits.shape().dims();
        let (x, targets) = (logits.storage::<f32>(), indices(targets));
        let g = grad.storage::<f32>();
        let ([gradient], _) = fill(
            x.len(),
            vocab,
            #[inline(always)]
            |range, [y]: [Blank<'_>; 1]| {
                let rows = range.start / vocab..;
                for (row, y) in rows.zip(y.chunks_exact_mut(vocab)) {
                    let (x, g) = (&x[row * vocab..(row + 1) * vocab], g[row]);
                    let lse = log_sum_exp(x);
                    for (y, x) in y.iter_mut().zip(x) {
                        y.write(g * exp(x - lse));
                    }
                    let at = targets[row];
                    y[at].write(g * (exp(x[at] - lse) - 1.0));
                }
            },
        );
        like(&logits, gradient)
    }

    fn token_losses_double_backward(logits: F, targets: IntTensor<Flex>, grad: F, a: F) -> [F; 2] {
        let Some([logits, grad, a]) = single([&logits, &grad, &a]) else {
            let targets = Tensor::from_primitive(targets);
            let (logits, grad, a) = (lift(logits), lift(grad), lift(a));
            let (to_grad, to_logits) =
                reference::token_losses_double_backward::<Flex>(logits, targets, grad, a);
            return [lower(to_grad), lower(to_logits)];
        };
        let [_, vocab] = logits.shape().dims();
        let (x, targets) = (logits.storage::<f32>(), indices(targets));
        let (g, a) = (grad.storage::<f32>(), a.storage::<f32>());
        let ([to_logits], to_grad) = fill(
            x.len(),
            vocab,
            #[inline(always)]
            |range, [y]: [Blank<'_>; 1]| {
                let mut to_grad = Vec::with_capacity(range.len() / vocab);
                let rows = range.start / vocab..;
                for (row, y) in rows.zip(y.chunks_exact_mut(vocab)) {
                    let at = row * vocab..(row + 1) * vocab;
                    let (x, a) = (&x[at.clone()], &a[at]);
                    let lse = log_sum_exp(x);
                    let mut mean = 0.0;
                    for (x, a) in x.iter().zip(a) {
                        mean += a * exp(x - lse);
                    }
                    to_grad.push(mean - a[targets[row]]);
                    for ((y, x), a) in y.iter_mut().zip(x).zip(a) {
                        y.write(g[row] * exp(x - lse) * (a - mean));
                    }
                }
                to_grad
            },
        );
        [like(&grad, to_grad.concat()), like(&logits, to_logits)]
    }

    fn in_order(x: F) -> F {
        if x.dtype() != DType::F32 || x.is_contiguous() {
            return x;
        }
        let [_, seq, n_heads, d] = x.shape().dims();
        let x = readable(x);
        let (shape, x) = (x.layout().shape(), Heads::of(&x));
        let ([y], _) = fill(
            shape.num_elements(),
            n_heads * d,
            #[inline(always)]
            |range, [y]: [Blank<'_>; 1]| {
                let first = range.start / (n_heads * d);
                for (index, y) in y.chunks_exact_mut(n_heads * d).enumerate() {
                    let heads = x.get((first + index) / seq, (first + index) % seq);
                    for (head, y) in y.chunks_exact_mut(d).enumerate() {
                        y.write_copy_of_slice(&heads.from(head).data[..d]);
                    }
                }
            },
        );
        in_shape(shape, y)
    }

    fn rms_norm(x: F, weight: F, epsilon: f64) -> F {
        let Some([x, weight]) = single([&x, &weight]) else {
            return lower(reference::rms_norm::<Flex>(lift(x), lift(weight), epsilon));
        };
        let w = weight.storage::<f32>();
        let ([y], _) = parts(
            [x.storage()],
            w.len(),
            #[inline(always)]
            |[x]: [&[f32]; 1], [y]: [Blank<'_>; 1]| {
                for (x, y) in x.chunks_exact(w.len()).zip(y.chunks_exact_mut(w.len())) {
                    let r = inverse_rms(x, epsilon);
                    for ((y, x), w) in y.iter_mut().zip(x).zip(w) {
                        y.write(x * r * w);
                    }
                }
            },
        );
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
        let ([dx], sums) = parts(
            [x.storage(), grad.storage()],
            d,
            #[inline(always)]
            |[x, g]: [&[f32]; 2], [dx]: [Blank<'_>; 1]| {
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
            },
        );
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
        let inputs = [x.storage(), grad.storage(), a.storage()];
        let ([to_grad, to_x], sums) = parts(
            inputs,
            d,
            #[inline(always)]
            |[x, g, a]: [&[f32]; 3], [to_grad, to_x]: [Blank<'_>; 2]| {
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
            },
        );
        let to_weight = like(&weight, total(sums, d));
        [like(&x, to_grad), like(&x, to_x), to_weight]
    }

    fn swiglu(gate: F, up: F) -> F {
        let Some([gate, up]) = single([&gate, &up]) else {
            return lower(reference::swiglu::<Flex>(lift(gate), lift(up)));
        };
        let [y] = map(
            [gate.storage(), up.storage()],
            #[inline(always)]
            |[x, u]| [x * sigma(x) * u],
        );
        like(&gate, y)
    }

    fn swiglu_backward(gate: F, up: F, grad: F) -> [F; 2] {
        let Some([gate, up, grad]) = single([&gate, &up, &grad]) else {
            let inputs = (lift(gate), lift(up), lift(grad));
            return reference::swiglu_backward::<Flex>(inputs.0, inputs.1, inputs.2).map(lower);
        };
        let inputs = [gate.storage(), up.storage(), grad.storage()];
        map(
            inputs,
            #[inline(always)]
            |[x, u, g]| {
                let s = sigma(x);
                let first = s * (1.0 + x * (1.0 - s));
                [g * u * first, g * x * s]
            },
        )
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
        map(
            inputs,
            #[inline(always)]
            |[x, u, g, a, b]| {
                let s = sigma(x);
                let first = s * (1.0 + x * (1.0 - s));
                let second = s * (1.0 - s) * (2.0 + x * (1.0 - 2.0 * s));
                let au = a * u;
                [
                    au * first + b * x * s,
                    g * (au * second + b * first),
                    a * g * first,
                ]
            },
        )
        .map(|y| like(&gate, y))
    }

    fn rotary(x: F, cos: F, sin: F, turn: F) -> F {
        let [_, seq, n_heads, d] = x.shape().dims();
        let halves = single([&turn]).and_then(|[turn]| half_of(turn.storage(), d));
        let single = single([&cos, &sin]).filter(|_| x.dtype() == DType::F32);
        let (Some([cos, sin]), Some(half)) = (single, halves) else {
            let (cos, sin, turn) = (lift(cos), lift(sin), lift(turn));
            return lower(reference::rotary::<Flex>(lift(x), cos, sin, turn));
        };
        let (cos, sin): (&[f32], &[f32]) = (cos.storage(), sin.storage());
        let x = readable(x);
        let (shape, x) = (x.layout().shape(), Heads::of(&x));
        let ([y], _) = fill(
            shape.num_elements(),
            n_heads * d,
            #[inline(always)]
            |range, [y]: [Blank<'_>; 1]| {
                let first = range.start / (n_heads * d);
                for (index, y) in y.chunks_exact_mut(n_heads * d).enumerate() {
                    let (sample, position) = ((first + index) / seq, (first + index) % seq);
                    let heads = x.get(sample, position);
                    let at = position * d..(position + 1) * d;
                    let (cos, sin) = (&cos[at.clone()], &sin[at]);
                    for (head, y) in y.chunks_exact_mut(d).enumerate() {
                        let x = &heads.from(head).data[..d];
                        for i in 0..half {
                            let j = i + half;
                            y[i].write(x[i] * cos[i] - x[j] * sin[i]);
                            y[j].write(x[j] * cos[j] + x[i] * sin[j]);
                        }
                        for i in 2 * half..d {
                            y[i].write(x[i] * cos[i]);
                        }
                    }
                }
            },
        );
        in_shape(shape, y)
    }
}

/// Multiplications that are worth waking the other cores for.
const WORTH_THREADS: usize = 1 << 20;

/// `to = lhs · rhs`, or `to += lhs · rhs`, a matrix without gaps.
///
/// # Safety
///
/// `to` must be memory for the product, nobody else's, and hold numbers if these are added to.
unsafe fn multiply(to: *mut f32, lhs: &FlexTensor, rhs: &FlexTensor, adds: bool) {
    let ([m, k], [_, n]) = (lhs.shape().dims(), rhs.shape().dims());
    let parallelism = match m * n * k < WORTH_THREADS {
        true => Parallelism::None,
        false => Parallelism::Rayon(0),
    };
    let (left, right) = (Matrix::of(lhs), Matrix::of(rhs));
    // SAFETY: the strides are those of the factors' tensors; the rest is the caller's.
    unsafe {
        gemm(
            m,
            n,
            k,
            to,
            1,
            n as isize,
            adds,
            left.data,
            left.column,
            left.row,
            right.data,
            right.column,
            right.row,
            1.0,
            1.0,
            false,
            false,
            false,
            parallelism,
        );
    }
}

fn add_to(x: &mut [f32], y: &[f32]) {
    let add = |(x, y): (&mut [f32], &[f32])| {
        dispatch(
            #[inline(always)]
            || x.iter_mut().zip(y).for_each(|(x, y)| *x += y),
        )
    };
    match x.len() <= PART {
        true => add((x, y)),
        false => x.par_chunks_mut(PART).zip(y.par_chunks(PART)).for_each(add),
    }
}

/// Token ids as places in a row.
fn indices(x: IntTensor<Flex>) -> Vec<usize> {
    let data = x.into_data();
    data.iter::<i64>().map(|id| id as usize).collect()
}

/// `log Σ eˣ`
#[inline(always)]
fn log_sum_exp(x: &[f32]) -> f32 {
    let largest = max(x);
    let (chunks, rest) = x.as_chunks::<LANES>();
    let mut lanes = [0.0; LANES];
    for x in chunks {
        for (lane, x) in lanes.iter_mut().zip(x) {
            *lane += exp(x - largest);
        }
    }
    let rest: f32 = rest.iter().map(|x| exp(x - largest)).sum();
    largest + (sum(&lanes) + rest).ln()
}

/// Where a matrix lies: its first number, and from one to the next row and column.
struct Matrix {
    data: *const f32,
    row: isize,
    column: isize,
}

impl Matrix {
    fn of(x: &FlexTensor) -> Self {
        let strides = x.layout().strides();
        Self {
            data: x.storage()[x.layout().start_offset()..].as_ptr(),
            row: strides[0],
            column: strides[1],
        }
    }
}

/// The same, each in one piece, if all are of f32.
fn single<const N: usize>(tensors: [&FlexTensor; N]) -> Option<[FlexTensor; N]> {
    let single = tensors.iter().all(|x| x.dtype() == DType::F32);
    single.then(|| tensors.map(FlexTensor::to_contiguous))
}

/// Numbers in the shape of `x`.
fn like(x: &FlexTensor, numbers: Vec<f32>) -> FlexTensor {
    in_shape(x.layout().shape(), numbers)
}

fn in_shape(shape: &Shape, numbers: Vec<f32>) -> FlexTensor {
    let layout = Layout::contiguous(shape.clone());
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
