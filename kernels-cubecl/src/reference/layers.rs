//! RMS and layer normalisation, SwiGLU, activations, rotary positions and cross-entropies with their first two derivatives in
//! plain tensor operations.
//!
//! Normalisation, activations and the derivatives of SwiGLU convert 16-bit tensors to f32 and convert the results
//! back; the other functions compute in the type of their inputs.

use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_PI, PI};

use burn::tensor::activation::{log_softmax, sigmoid, softmax};
use burn::tensor::backend::Backend;
use burn::tensor::{DType, IndexingUpdateOp, Int, Tensor};

use super::{cast, widen};

/// How rows are normalised.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Norm {
    /// ε, which is added to the mean of the squares.
    pub epsilon: f64,
    /// Whether the mean is taken away first: layer normalisation without its bias, instead of RMS normalisation.
    pub centered: bool,
}

/// A function of each value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Nonlinearity {
    /// `x σ(x)`
    Silu,
    /// `x Φ(x)`, with Φ the distribution function of N(0, 1) (arXiv 1606.08415).
    Gelu,
    /// `x σ(2 √(2/π) (x + 0.044715 x³))`: the same with Φ approximated by a tanh.
    GeluTanh,
}

/// `x r ∘ w` with `r = 1 / √(mean(x²) + ε)`. Here and below `x` is without its mean if that is taken away.
pub fn norm<B: Backend>(x: Tensor<B, 3>, weight: Tensor<B, 1>, by: Norm) -> Tensor<B, 3> {
    let dtype = x.dtype();
    let x = centered(widen(x), by);
    let r = inverse_rms(&x, by.epsilon);
    cast(x * r, dtype) * weight.unsqueeze()
}

/// `u = w ∘ g`, then `dx = r u − r³ x ⟨x, u⟩ / d` and `dw = Σ g ∘ x r`; of `u`, too, the mean is taken away.
pub fn norm_backward<B: Backend>(
    x: Tensor<B, 3>,
    weight: Tensor<B, 1>,
    grad: Tensor<B, 3>,
    by: Norm,
    wants_weight: bool,
) -> (Tensor<B, 3>, Option<Tensor<B, 1>>) {
    let dtype = x.dtype();
    let (x, weight, grad) = (centered(widen(x), by), widen(weight), widen(grad));
    let r = inverse_rms(&x, by.epsilon);
    let dx = jacobian(&x, &r, centered(grad.clone() * weight.unsqueeze(), by));
    let dw = wants_weight.then(|| cast(over_rows(grad * x * r), dtype));
    (cast(dx, dtype), dw)
}

/// With `p = ⟨a, u⟩`, `q = ⟨a, x⟩`, `t = ⟨x, u⟩`, `z = ⟨c ∘ g, x⟩`, and J the Jacobian of `x r`, which is
/// symmetric (`J v = r v − r³ x ⟨x, v⟩ / d`):
///
/// ```text
/// to g   w ∘ J a + r c ∘ x         to w   Σ g ∘ J a
/// to x   r c ∘ g − r³/d ((p + z) x + t a + q u) + 3 r⁵/d² q t x
/// ```
///
/// Where the mean is taken away, it is that of `x`, `a`, `u` and `c ∘ g`: the map that does it is its own transpose.
pub fn norm_double_backward<B: Backend>(
    x: Tensor<B, 3>,
    weight: Tensor<B, 1>,
    grad: Tensor<B, 3>,
    a: Option<Tensor<B, 3>>,
    c: Option<Tensor<B, 1>>,
    by: Norm,
) -> (Tensor<B, 3>, Tensor<B, 3>, Tensor<B, 1>) {
    let dtype = x.dtype();
    let (x, weight, grad) = (centered(widen(x), by), widen(weight), widen(grad));
    let d = x.dims()[2] as f64;
    let r = inverse_rms(&x, by.epsilon);
    let cube = r.clone().powi_scalar(3).mul_scalar(1.0 / d);

    let [mut to_grad, mut to_x] = [x.zeros_like(), x.zeros_like()];
    let mut to_weight = weight.zeros_like();
    if let Some(a) = a.map(|a| centered(widen(a), by)) {
        let u = centered(grad.clone() * weight.clone().unsqueeze(), by);
        let [p, q, t] = [(&a, &u), (&a, &x), (&x, &u)].map(|(x, y)| dot(x, y));
        let ja = jacobian(&x, &r, a.clone());
        to_grad = ja.clone() * weight.unsqueeze();
        to_weight = over_rows(grad.clone() * ja);
        let along_x = r.clone().square() * q.clone() * t.clone() * (3.0 / d) - p;
        to_x = cube.clone() * (x.clone() * along_x - a * t - u * q);
    }
    if let Some(c) = c.map(widen) {
        let c: Tensor<B, 3> = c.unsqueeze();
        let cg = centered(grad * c.clone(), by);
        let z = dot(&cg, &x);
        to_grad = to_grad + x.clone() * c * r.clone();
        to_x = to_x + cg * r - x * (cube * z);
    }
    (
        cast(to_grad, dtype),
        cast(to_x, dtype),
        cast(to_weight, dtype),
    )
}

/// Rows without their means, if these are taken away.
fn centered<B: Backend>(x: Tensor<B, 3>, by: Norm) -> Tensor<B, 3> {
    match by.centered {
        true => x.clone() - x.mean_dim(2),
        false => x,
    }
}

/// `J v = r v − r³ x ⟨x, v⟩ / d`, with J the Jacobian of `x r`, which is symmetric.
fn jacobian<B: Backend>(x: &Tensor<B, 3>, r: &Tensor<B, 3>, v: Tensor<B, 3>) -> Tensor<B, 3> {
    let d = x.dims()[2] as f64;
    let along = r.clone().square() * dot(x, &v).mul_scalar(1.0 / d);
    (v - x.clone() * along) * r.clone()
}

fn inverse_rms<B: Backend>(x: &Tensor<B, 3>, epsilon: f64) -> Tensor<B, 3> {
    let mean_square = x.clone().square().mean_dim(2);
    mean_square.add_scalar(epsilon).sqrt().recip()
}

/// `[batch, seq, d]` twice → `[batch, seq, 1]`
fn dot<B: Backend>(x: &Tensor<B, 3>, y: &Tensor<B, 3>) -> Tensor<B, 3> {
    (x.clone() * y.clone()).sum_dim(2)
}

/// `[batch, seq, d]` → `[d]`
fn over_rows<B: Backend>(x: Tensor<B, 3>) -> Tensor<B, 1> {
    let [batch, seq, d] = x.dims();
    x.reshape([batch * seq, d]).sum_dim(0).reshape([d])
}

/// `f(x)`
pub fn activate<B: Backend>(x: Tensor<B, 3>, by: Nonlinearity) -> Tensor<B, 3> {
    let dtype = x.dtype();
    let x = widen(x);
    let share = match by {
        Nonlinearity::Silu => sigma(x.clone()),
        Nonlinearity::Gelu => normal(x.clone()),
        Nonlinearity::GeluTanh => sigma(bent(&x)),
    };
    cast(x * share, dtype)
}

/// `g f′`
pub fn activate_backward<B: Backend>(
    x: Tensor<B, 3>,
    grad: Tensor<B, 3>,
    by: Nonlinearity,
) -> Tensor<B, 3> {
    let dtype = x.dtype();
    let [first, _] = derivatives(widen(x), by);
    cast(widen(grad) * first, dtype)
}

/// `to g = a f′`, `to x = a g f″`.
pub fn activate_double_backward<B: Backend>(
    x: Tensor<B, 3>,
    grad: Tensor<B, 3>,
    a: Tensor<B, 3>,
    by: Nonlinearity,
) -> [Tensor<B, 3>; 2] {
    let dtype = x.dtype();
    let [first, second] = derivatives(widen(x), by);
    let a = widen(a);
    [a.clone() * first, a * widen(grad) * second].map(|x| cast(x, dtype))
}

/// `f′` and `f″`. Of `x Φ(x)` they are `Φ + x φ` and `φ (2 − x²)`, with φ the density of N(0, 1); of `x s(x)` they are `s + x s′` and
/// `2 s′ + x s″`, and of `s = σ(y)` with `y(x)` `s′ = s (1 − s) y′` and `s″ = s (1 − s) ((1 − 2s) y′² + y″)`.
fn derivatives<B: Backend>(x: Tensor<B, 3>, by: Nonlinearity) -> [Tensor<B, 3>; 2] {
    match by {
        Nonlinearity::Silu => {
            let [_, first, second] = silu(x);
            [first, second]
        }
        Nonlinearity::Gelu => {
            let square = x.clone().square();
            let density = square.clone().mul_scalar(-0.5).exp();
            let density = density.mul_scalar((2.0 * PI).sqrt().recip());
            let first = normal(x.clone()) + x * density.clone();
            [first, density * square.neg().add_scalar(2.0)]
        }
        Nonlinearity::GeluTanh => {
            let s = sigma(bent(&x));
            let y1 = x.clone().square().mul_scalar(3.0 * BEND).add_scalar(1.0);
            let y1 = y1.mul_scalar(2.0 * FRAC_2_PI.sqrt());
            let y2 = x.clone().mul_scalar(12.0 * BEND * FRAC_2_PI.sqrt());
            let slope = s.clone() * s.clone().neg().add_scalar(1.0);
            let s1 = slope.clone() * y1.clone();
            let tilt = s.clone().mul_scalar(-2.0).add_scalar(1.0);
            let s2 = slope * (tilt * y1.square() + y2);
            let first = s + x.clone() * s1.clone();
            [first, s1.mul_scalar(2.0) + x * s2]
        }
    }
}

/// The factor of `x³` in GELU's approximation.
const BEND: f64 = 0.044715;

/// `2 √(2/π) (x + 0.044715 x³)`
fn bent<B: Backend>(x: &Tensor<B, 3>) -> Tensor<B, 3> {
    let factor = x.clone().square().mul_scalar(BEND).add_scalar(1.0);
    (x.clone() * factor).mul_scalar(2.0 * FRAC_2_PI.sqrt())
}

/// `Φ(x)`
fn normal<B: Backend>(x: Tensor<B, 3>) -> Tensor<B, 3> {
    let erf = x.mul_scalar(FRAC_1_SQRT_2).erf();
    erf.mul_scalar(0.5).add_scalar(0.5)
}

/// `silu(gate) ∘ up`, where each row of `x` has the gate and behind it up.
pub fn swiglu<B: Backend>(x: Tensor<B, 3>) -> Tensor<B, 3> {
    let [gate, up] = halves(x);
    let sigma = sigma(gate.clone());
    gate * sigma * up
}

/// With `s = silu(gate)`: `dgate = g ∘ up ∘ s′` and `dup = g ∘ s`, side by side.
pub fn swiglu_backward<B: Backend>(x: Tensor<B, 3>, grad: Tensor<B, 3>) -> Tensor<B, 3> {
    let dtype = x.dtype();
    let [gate, up] = halves(widen(x));
    let grad = widen(grad);
    let [s, s1, _] = silu(gate);
    let dgate = grad.clone() * up * s1;
    cast(Tensor::cat(vec![dgate, grad * s], 2), dtype)
}

/// With the cotangent's halves a and b: `to g = a ∘ up ∘ s′ + b ∘ s`, `to gate = g ∘ (a ∘ up ∘ s″ + b ∘ s′)`, `to up = a ∘ g ∘ s′`.
pub fn swiglu_double_backward<B: Backend>(
    x: Tensor<B, 3>,
    grad: Tensor<B, 3>,
    cotangent: Tensor<B, 3>,
) -> [Tensor<B, 3>; 2] {
    let dtype = x.dtype();
    let [gate, up] = halves(widen(x));
    let [a, b] = halves(widen(cotangent));
    let grad = widen(grad);
    let [s, s1, s2] = silu(gate);
    let a_up = a.clone() * up;
    let to_grad = a_up.clone() * s1.clone() + b.clone() * s;
    let to_gate = grad.clone() * (a_up * s2 + b * s1.clone());
    let to_up = a * grad * s1;
    [to_grad, Tensor::cat(vec![to_gate, to_up], 2)].map(|x| cast(x, dtype))
}

/// `[batch, seq, 2 d]` → twice `[batch, seq, d]`
fn halves<B: Backend>(x: Tensor<B, 3>) -> [Tensor<B, 3>; 2] {
    let half = x.dims()[2] / 2;
    [0, half].map(|start| x.clone().narrow(2, start, half))
}

/// silu and its first two derivatives: `x σ`, `σ (1 + x (1 − σ))`, `σ (1 − σ) (2 + x (1 − 2σ))`.
fn silu<B: Backend>(x: Tensor<B, 3>) -> [Tensor<B, 3>; 3] {
    let sigma = sigma(x.clone());
    let rest = sigma.clone().neg().add_scalar(1.0);
    let first = (x.clone() * rest.clone()).add_scalar(1.0) * sigma.clone();
    let second = (x.clone() * (rest.clone() - sigma.clone())).add_scalar(2.0);
    [x * sigma.clone(), first, second * sigma * rest]
}

/// `σ(x)`, elementwise.
pub fn sigma<B: Backend, const D: usize>(x: Tensor<B, D>) -> Tensor<B, D> {
    match x.dtype() {
        // Some backends compute the sigmoid of f64 in f32, but not tanh.
        DType::F64 => x.mul_scalar(0.5).tanh().mul_scalar(0.5).add_scalar(0.5),
        _ => sigmoid(x),
    }
}

/// `x ∘ cos + (x T) ∘ sin`. The product with the constant matrix T is one operation, cheaper than slices
/// and a concatenation.
pub fn rotary<B: Backend>(
    x: Tensor<B, 4>,
    cos: Tensor<B, 3>,
    sin: Tensor<B, 3>,
    turn: Tensor<B, 2>,
    product: impl Fn(Tensor<B, 2>, Tensor<B, 2>) -> Tensor<B, 2>,
) -> Tensor<B, 4> {
    let [batch, seq, heads, head_dim] = x.dims();
    // One row per sample, so that the tables broadcast along the first dimension only.
    let row = seq * heads * head_dim;
    let table = |table: Tensor<B, 3>| {
        let table = table.repeat_dim(0, heads).swap_dims(0, 1);
        table.reshape([1, row])
    };
    let heads_alone = x.clone().reshape([batch * seq * heads, head_dim]);
    let turned = product(heads_alone, turn).reshape([batch, row]);
    let rotated = x.reshape([batch, row]) * table(cos) + turned * table(sin);
    rotated.reshape([batch, seq, heads, head_dim])
}

/// `−log softmax(x)` at the targets.
pub fn token_losses<B: Backend>(logits: Tensor<B, 2>, targets: Tensor<B, 1, Int>) -> Tensor<B, 1> {
    at(log_softmax(logits, 1), targets).neg().squeeze_dim(1)
}

/// With `p = softmax(x)` and `e` the one-hot vector of the target: `g (p − e)`.
pub fn token_losses_backward<B: Backend>(
    logits: Tensor<B, 2>,
    targets: Tensor<B, 1, Int>,
    grad: Tensor<B, 1>,
) -> Tensor<B, 2> {
    let grad = grad.unsqueeze_dim(1);
    let dense = softmax(logits, 1) * grad.clone();
    let targets = targets.unsqueeze_dim(1);
    dense.scatter(1, targets, grad.neg(), IndexingUpdateOp::Add)
}

/// `to g = ⟨a, p − e⟩`, `to x = g p ∘ (a − ⟨a, p⟩)`.
pub fn token_losses_double_backward<B: Backend>(
    logits: Tensor<B, 2>,
    targets: Tensor<B, 1, Int>,
    grad: Tensor<B, 1>,
    a: Tensor<B, 2>,
) -> (Tensor<B, 1>, Tensor<B, 2>) {
    let p = softmax(logits, 1);
    let mean = (a.clone() * p.clone()).sum_dim(1);
    let to_grad = mean.clone() - at(a.clone(), targets);
    let to_logits = (a - mean) * p * grad.unsqueeze_dim(1);
    (to_grad.squeeze_dim(1), to_logits)
}

/// The value of each row at its target: `[rows, 1]`.
fn at<B: Backend>(x: Tensor<B, 2>, targets: Tensor<B, 1, Int>) -> Tensor<B, 2> {
    x.gather(1, targets.unsqueeze_dim(1))
}
