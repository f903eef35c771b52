//! AdamW (arXiv 1711.05101) on one parameter.

use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;

/// The numbers of a step.
#[derive(Clone, Copy, Debug)]
pub struct AdamWStep {
    /// β1
    pub beta1: f32,
    /// β2
    pub beta2: f32,
    /// ε
    pub epsilon: f32,
    /// The step's number t, from 1.
    pub time: i32,
    /// The learning rate.
    pub lr: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
}

impl AdamWStep {
    /// `1 − β1ᵗ` and `1 − β2ᵗ`, by which the moments are divided.
    pub fn corrections(&self) -> [f32; 2] {
        [self.beta1, self.beta2].map(|beta| 1.0 - beta.powi(self.time))
    }

    /// What is left of the parameter before its step: `1 − lr · weight_decay`.
    pub fn kept(&self) -> f64 {
        1.0 - self.lr * self.weight_decay
    }
}

/// With the moments `m ← β1 m + (1 − β1) g` and `v ← β2 v + (1 − β2) g²`:
/// `x ← (1 − lr λ) x − lr (m / (1 − β1ᵗ)) / (√(v / (1 − β2ᵗ)) + ε)`. From and to `[x, m, v]`, all of one shape.
pub fn adamw<B: Backend>(
    step: &AdamWStep,
    [x, m, v]: [FloatTensor<B>; 3],
    grad: FloatTensor<B>,
) -> [FloatTensor<B>; 3] {
    let times = |x, factor: f64| B::float_mul_scalar(x, factor.into());
    let mean = |before, beta: f32, now| {
        let (before, now) = (times(before, beta.into()), times(now, (1.0 - beta).into()));
        B::float_add(before, now)
    };
    let m = mean(m, step.beta1, grad.clone());
    let v = mean(v, step.beta2, B::float_mul(grad.clone(), grad));
    let [first, second] = step.corrections().map(f64::from);
    let root = B::float_sqrt(B::float_div_scalar(v.clone(), second.into()));
    let root = B::float_add_scalar(root, f64::from(step.epsilon).into());
    let delta = B::float_div(B::float_div_scalar(m.clone(), first.into()), root);
    let x = match step.kept() {
        1.0 => x,
        kept => times(x, kept),
    };
    [B::float_sub(x, times(delta, step.lr)), m, v]
}
