//! AdamW, in one pass, in place.

use super::parallel::update_rows;
use crate::AdamWStep;

/// A step on `[x, m, v]`, with the roundings of the tensor operations.
pub fn adamw(step: &AdamWStep, [x, m, v]: [&mut [f32]; 3], grad: &[f32]) {
    let AdamWStep {
        beta1,
        beta2,
        epsilon,
        ..
    } = *step;
    let [first, second] = step.corrections();
    let (kept, lr) = (step.kept() as f32, step.lr as f32);
    update_rows(
        [x, m, v],
        [1; 3],
        #[inline(always)]
        |range, [x, m, v]: [&mut [f32]; 3]| {
            for (((x, m), v), g) in x.iter_mut().zip(m).zip(v).zip(&grad[range]) {
                *m = *m * beta1 + g * (1.0 - beta1);
                *v = *v * beta2 + g * g * (1.0 - beta2);
                let delta = *m / first / ((*v / second).sqrt() + epsilon);
                *x = *x * kept - delta * lr;
            }
        },
    );
}
