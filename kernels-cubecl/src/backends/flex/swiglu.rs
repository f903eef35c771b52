//! SwiGLU, element by element.

use burn_flex::FlexTensor;

use super::memory::like;
use super::parallel::map;
use super::vector::exp;

pub fn forward(gate: FlexTensor, up: FlexTensor) -> FlexTensor {
    let [y] = map(
        [gate.storage(), up.storage()],
        #[inline(always)]
        |[x, u]| [x * sigma(x) * u],
    );
    like(&gate, y)
}

pub fn backward(gate: FlexTensor, up: FlexTensor, grad: FlexTensor) -> [FlexTensor; 2] {
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

pub fn double_backward([gate, up, grad, a, b]: [FlexTensor; 5]) -> [FlexTensor; 3] {
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

#[inline(always)]
fn sigma(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}
