//! Nonlinearities of each value; the formulas are in [`reference::layers`](crate::reference::layers).

use std::f32::consts::FRAC_1_SQRT_2;

use burn_flex::FlexTensor;

use super::memory::like;
use super::parallel::map;
use super::vector::exp;
use crate::Nonlinearity;

pub fn forward(x: FlexTensor, by: Nonlinearity) -> FlexTensor {
    let [y] = map_by(
        by,
        [x.storage()],
        #[inline(always)]
        |[f, ..], _| [f],
    );
    like(&x, y)
}

pub fn backward([x, grad]: [FlexTensor; 2], by: Nonlinearity) -> FlexTensor {
    let [dx] = map_by(
        by,
        [x.storage(), grad.storage()],
        #[inline(always)]
        |[_, first, _], [_, g]| [g * first],
    );
    like(&x, dx)
}

/// [`backward`], added to `onto`.
pub fn backward_onto(onto: FlexTensor, [x, grad]: [FlexTensor; 2], by: Nonlinearity) -> FlexTensor {
    let [dx] = map_by(
        by,
        [x.storage(), grad.storage(), onto.storage()],
        #[inline(always)]
        |[_, first, _], [_, g, onto]| [onto + g * first],
    );
    like(&x, dx)
}

/// The gradients to grad and to `x`.
pub fn double_backward([x, grad, a]: [FlexTensor; 3], by: Nonlinearity) -> [FlexTensor; 2] {
    let [to_grad, to_x] = map_by(
        by,
        [x.storage(), grad.storage(), a.storage()],
        #[inline(always)]
        |[_, first, second], [_, g, a]| [a * first, a * g * second],
    );
    [like(&grad, to_grad), like(&x, to_x)]
}

/// [`map`] of the nonlinearity of the first input, its first two derivatives, and all inputs: a loop for each nonlinearity, in which
/// what `f` does not use is not computed.
fn map_by<const I: usize, const O: usize>(
    by: Nonlinearity,
    inputs: [&[f32]; I],
    f: impl Fn([f32; 3], [f32; I]) -> [f32; O] + Sync,
) -> [Vec<f32>; O] {
    match by {
        Nonlinearity::Silu => map(
            inputs,
            #[inline(always)]
            |x| f(silu(x[0]), x),
        ),
        Nonlinearity::Gelu => map(
            inputs,
            #[inline(always)]
            |x| f(gelu(x[0]), x),
        ),
        Nonlinearity::GeluTanh => map(
            inputs,
            #[inline(always)]
            |x| f(gelu_tanh(x[0]), x),
        ),
    }
}

#[inline(always)]
fn silu(x: f32) -> [f32; 3] {
    let s = sigma(x);
    let [first, second] = silu_slopes(x, s);
    [x * s, first, second]
}

#[inline(always)]
pub fn sigma(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// The first two derivatives of silu at `x`, whose σ is `s`.
#[inline(always)]
pub fn silu_slopes(x: f32, s: f32) -> [f32; 2] {
    let first = s * (1.0 + x * (1.0 - s));
    [first, s * (1.0 - s) * (2.0 + x * (1.0 - 2.0 * s))]
}

#[inline(always)]
fn gelu(x: f32) -> [f32; 3] {
    let (density, share) = normal(x);
    // Where the square overflows, the density is 0; NaN stays.
    let second = match density > 0.0 {
        true => density * (2.0 - x * x),
        false => density,
    };
    [x * share, share + x * density, second]
}

#[inline(always)]
fn gelu_tanh(x: f32) -> [f32; 3] {
    /// `2 √(2/π)`
    const SCALE: f32 = 1.595_769;
    const BEND: f32 = 0.044_715;
    let square = x * x;
    let y1 = SCALE * (1.0 + 3.0 * BEND * square);
    let y2 = 6.0 * SCALE * BEND * x;
    let s = sigma(SCALE * x * (1.0 + BEND * square));
    let slope = s * (1.0 - s);
    // Far from zero σ is 0 or 1 exactly, and what it is multiplied by may overflow.
    let (s1, s2) = match slope > 0.0 {
        true => (slope * y1, slope * ((1.0 - 2.0 * s) * y1 * y1 + y2)),
        false => (0.0, 0.0),
    };
    [x * s, s + x * s1, 2.0 * s1 + x * s2]
}

/// φ and Φ of N(0, 1), Φ within 1e-7: erf by formula 7.1.26 of Abramowitz and Stegun.
#[inline(always)]
fn normal(x: f32) -> (f32, f32) {
    let bell = exp(-0.5 * x * x);
    let t = 1.0 / (1.0 + 0.327_591_1 * FRAC_1_SQRT_2 * x.abs());
    let p = 1.061_405_4;
    let p = p * t - 1.453_152;
    let p = p * t + 1.421_413_7;
    let p = p * t - 0.284_496_74;
    let p = p * t + 0.254_829_6;
    let tail = 0.5 * p * t * bell;
    let share = if x < 0.0 { tail } else { 1.0 - tail };
    (0.398_942_3 * bell, share)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn far_from_zero_everything_is_finite() {
        for curve in [silu, gelu, gelu_tanh] {
            for x in [0.0, 30.0, 88.0, 200.0, 1e6, 1e18, 1e30] {
                let [f, first, second] = curve(x);
                assert!(
                    (f - x).abs() <= 1e-6 * x && (x == 0.0 || first == 1.0),
                    "{x}"
                );
                let [low, low_first, low_second] = curve(-x);
                for y in [f, first, second, low, low_first, low_second] {
                    assert!(y.is_finite(), "{x}: {y}");
                }
                assert!(
                    low.abs() < 1e-6 && (x == 0.0 || low_first.abs() < 1e-6),
                    "{x}"
                );
            }
        }
    }
}
