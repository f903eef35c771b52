//! AdamW, in one pass.

use burn_flex::FlexTensor;

use super::memory::like;
use super::parallel::map;
use crate::AdamWStep;

/// From `[x, m, v, grad]` to `[x, m, v]`, with the roundings of the tensor operations.
pub fn adamw(step: &AdamWStep, tensors: [FlexTensor; 4]) -> [FlexTensor; 3] {
    let AdamWStep {
        beta1,
        beta2,
        epsilon,
        ..
    } = *step;
    let [first, second] = step.corrections();
    let (kept, lr) = (step.kept() as f32, step.lr as f32);
    map(
        tensors.each_ref().map(|x| x.storage()),
        #[inline(always)]
        |[x, m, v, g]| {
            let m = m * beta1 + g * (1.0 - beta1);
            let v = v * beta2 + g * g * (1.0 - beta2);
            let delta = m / first / ((v / second).sqrt() + epsilon);
            [x * kept - delta * lr, m, v]
        },
    )
    .map(|y| like(&tensors[0], y))
}
