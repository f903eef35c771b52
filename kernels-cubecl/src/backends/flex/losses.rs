//! Cross-entropy, one row of logits at a time.

use burn::tensor::TensorMetadata;
use burn_flex::FlexTensor;

use super::memory::{in_shape, like};
use super::parallel::{Blank, fill};
use super::vector::{LANES, exp, max, sum};

pub fn forward(logits: FlexTensor, targets: Vec<usize>) -> FlexTensor {
    let [rows, vocab] = logits.shape().dims();
    let x = logits.storage::<f32>();
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

pub fn backward(logits: FlexTensor, targets: Vec<usize>, grad: FlexTensor) -> FlexTensor {
    let [_, vocab] = logits.shape().dims();
    let x = logits.storage::<f32>();
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

pub fn double_backward(
    logits: FlexTensor,
    targets: Vec<usize>,
    grad: FlexTensor,
    a: FlexTensor,
) -> [FlexTensor; 2] {
    let [_, vocab] = logits.shape().dims();
    let x = logits.storage::<f32>();
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
