//! RMS and layer normalisation, one row at a time. In a sum of products one factor alone is centred:
//! `Σ (x − x̄)(y − ȳ) = Σ (x − x̄) y`.

use burn_flex::FlexTensor;

use super::memory::like;
use super::parallel::{Blank, Slot, parts, update_rows};
use super::vector::{LANES, dot, sum};
use crate::Norm;

pub fn forward(x: FlexTensor, weight: FlexTensor, by: Norm) -> FlexTensor {
    let w = weight.storage::<f32>();
    let ([y], _) = parts(
        [x.storage()],
        w.len(),
        #[inline(always)]
        |[x]: [&[f32]; 1], [y]: [Blank<'_>; 1]| {
            let mut own = by.row(w.len());
            for (x, y) in x.chunks_exact(w.len()).zip(y.chunks_exact_mut(w.len())) {
                let x = by.centered(x, &mut own);
                let r = inverse_rms(x, by.epsilon);
                for ((y, x), w) in y.iter_mut().zip(x).zip(w) {
                    y.write(x * r * w);
                }
            }
        },
    );
    like(&x, y)
}

pub fn backward(
    [x, weight, grad]: [&FlexTensor; 3],
    by: Norm,
    wants_weight: bool,
) -> (FlexTensor, Option<FlexTensor>) {
    let w = weight.storage();
    let ([dx], sums) = parts(
        [x.storage(), grad.storage()],
        w.len(),
        #[inline(always)]
        |[x, g]: [&[f32]; 2], [dx]: [Blank<'_>; 1]| by.gradients([x, w, g], dx, wants_weight),
    );
    let dw = wants_weight.then(|| like(weight, total(sums, w.len())));
    (like(x, dx), dw)
}

/// [`backward`] with the gradient to `x` added to `to`, of the same shape; returns that to the weight.
pub fn add_backward(
    to: &mut [f32],
    [x, weight, grad]: [&FlexTensor; 3],
    by: Norm,
    wants_weight: bool,
) -> Option<FlexTensor> {
    let [x, w, grad] = [x, weight, grad].map(FlexTensor::storage);
    let d = w.len();
    let sums = update_rows(
        [to],
        [d],
        #[inline(always)]
        |rows, [to]: [&mut [f32]; 1]| {
            let values = rows.start * d..rows.end * d;
            let [x, grad] = [x, grad].map(|of_all: &[f32]| &of_all[values.clone()]);
            by.gradients([x, w, grad], to, wants_weight)
        },
    );
    wants_weight.then(|| like(weight, total(sums, d)))
}

/// The double backward for the cotangent `a` of dx, without a cotangent of dw.
pub fn double_backward(
    x: FlexTensor,
    weight: FlexTensor,
    grad: FlexTensor,
    a: FlexTensor,
    by: Norm,
) -> [FlexTensor; 3] {
    let w = weight.storage::<f32>();
    let d = w.len();
    let inputs = [x.storage(), grad.storage(), a.storage()];
    let ([to_grad, to_x], sums) = parts(
        inputs,
        d,
        #[inline(always)]
        |[x, g, a]: [&[f32]; 3], [to_grad, to_x]: [Blank<'_>; 2]| {
            let mut to_weight = vec![0.0; d];
            let (mut own_x, mut own_a) = (by.row(d), by.row(d));
            let rows = x
                .chunks_exact(d)
                .zip(g.chunks_exact(d))
                .zip(a.chunks_exact(d));
            let outputs = to_grad.chunks_exact_mut(d).zip(to_x.chunks_exact_mut(d));
            for (((x, g), a), (to_grad, to_x)) in rows.zip(outputs) {
                let (x, a) = (by.centered(x, &mut own_x), by.centered(a, &mut own_a));
                let r = inverse_rms(x, by.epsilon);
                let (p, q, t) = (dot3(a, w, g), dot(a, x), dot3(x, w, g));
                let cube = r * r * r / d as f32;
                let along = 3.0 * r * r * q * t / d as f32 - p;
                let mean = by.mean_of_product(w, g);
                let outputs = to_grad.iter_mut().zip(to_x).zip(&mut to_weight);
                let inputs = x.iter().zip(g).zip(a).zip(w);
                for (((to_grad, to_x), to_weight), (((x, g), a), w)) in outputs.zip(inputs) {
                    let ja = r * a - cube * q * x;
                    to_grad.write(w * ja);
                    to_x.write(cube * (along * x - t * a - q * (w * g - mean)));
                    *to_weight += g * ja;
                }
            }
            to_weight
        },
    );
    let to_weight = like(&weight, total(sums, d));
    [like(&x, to_grad), like(&x, to_x), to_weight]
}

impl Norm {
    /// Puts the gradient to some rows of `x` into `dx`; returns what they add to the weight's, if that is wanted.
    #[inline(always)]
    fn gradients<T: Slot>(
        self,
        [x, w, g]: [&[f32]; 3],
        dx: &mut [T],
        wants_weight: bool,
    ) -> Vec<f32> {
        let d = w.len();
        let mut dw = vec![0.0; if wants_weight { d } else { 0 }];
        let mut own = self.row(d);
        let rows = x.chunks_exact(d).zip(g.chunks_exact(d));
        for ((x, g), dx) in rows.zip(dx.chunks_exact_mut(d)) {
            let x = self.centered(x, &mut own);
            let r = inverse_rms(x, self.epsilon);
            let along = r * r * r * dot3(x, w, g) / d as f32;
            let mean = self.mean_of_product(w, g);
            for (((dx, x), g), w) in dx.iter_mut().zip(x).zip(g).zip(w) {
                dx.put(r * (w * g - mean) - along * x);
            }
            for ((dw, g), x) in dw.iter_mut().zip(g).zip(x) {
                *dw += g * x * r;
            }
        }
        dw
    }

    /// Room for a row without its mean, if it is taken away.
    #[inline(always)]
    fn row(self, d: usize) -> Vec<f32> {
        vec![0.0; if self.centered { d } else { 0 }]
    }

    /// The row without its mean, in `own`; or as it is.
    #[inline(always)]
    fn centered<'a>(self, x: &'a [f32], own: &'a mut [f32]) -> &'a [f32] {
        if !self.centered {
            return x;
        }
        let mean = sum(x) / x.len() as f32;
        for (own, x) in own.iter_mut().zip(x) {
            *own = x - mean;
        }
        own
    }

    /// What is to be taken away from each value of `w ∘ g`.
    #[inline(always)]
    fn mean_of_product(self, w: &[f32], g: &[f32]) -> f32 {
        match self.centered {
            true => dot(w, g) / w.len() as f32,
            false => 0.0,
        }
    }
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

/// The sum of the parts, in their order.
fn total(parts: Vec<Vec<f32>>, d: usize) -> Vec<f32> {
    let mut total = vec![0.0; d];
    for part in parts {
        for (total, x) in total.iter_mut().zip(part) {
            *total += x;
        }
    }
    total
}
