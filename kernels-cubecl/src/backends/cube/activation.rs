//! Nonlinearities of each value; the formulas are in [`reference::layers`](crate::reference::layers).

use cubecl::prelude::*;

use super::pointwise::{curvature, place, sigma, slope};
use crate::Nonlinearity;

#[cube(launch_unchecked)]
pub fn activate<F: Float>(
    x: &Array<F>,
    out: &mut Array<F>,
    count: usize,
    #[comptime] by: Nonlinearity,
    #[define(F)] _dtype: StorageType,
) {
    let i = place();
    if i < count {
        let x = f32::cast_from(x[i]);
        let share = match comptime!(by) {
            Nonlinearity::Silu => sigma(x),
            Nonlinearity::Gelu => share(x, bell(x)),
            Nonlinearity::GeluTanh => sigma(bent(x)),
        };
        out[i] = F::cast_from(x * share);
    }
}

/// The gradient to `x`, added to `onto` if `adds`; else that may be any tensor.
#[cube(launch_unchecked)]
pub fn activate_backward<F: Float>(
    x: &Array<F>,
    grad: &Array<F>,
    onto: &Array<F>,
    dx: &mut Array<F>,
    count: usize,
    #[comptime] by: Nonlinearity,
    #[comptime] adds: bool,
    #[define(F)] _dtype: StorageType,
) {
    let i = place();
    if i < count {
        let slopes = slopes(f32::cast_from(x[i]), by);
        let mut sum = f32::cast_from(grad[i]) * slopes.first;
        if comptime!(adds) {
            sum += f32::cast_from(onto[i]);
        }
        dx[i] = F::cast_from(sum);
    }
}

/// The gradients to grad and to `x`.
#[cube(launch_unchecked)]
pub fn activate_double_backward<F: Float>(
    x: &Array<F>,
    grad: &Array<F>,
    a: &Array<F>,
    to_grad: &mut Array<F>,
    to_x: &mut Array<F>,
    count: usize,
    #[comptime] by: Nonlinearity,
    #[define(F)] _dtype: StorageType,
) {
    let i = place();
    if i < count {
        let slopes = slopes(f32::cast_from(x[i]), by);
        let a = f32::cast_from(a[i]);
        to_grad[i] = F::cast_from(a * slopes.first);
        to_x[i] = F::cast_from(a * f32::cast_from(grad[i]) * slopes.second);
    }
}

/// The first two derivatives of a nonlinearity.
#[derive(CubeType, Clone, Copy)]
struct Slopes {
    first: f32,
    second: f32,
}

#[cube]
fn slopes(x: f32, #[comptime] by: Nonlinearity) -> Slopes {
    match comptime!(by) {
        Nonlinearity::Silu => {
            let sigma = sigma(x);
            Slopes {
                first: slope(x, sigma),
                second: curvature(x, sigma),
            }
        }
        Nonlinearity::Gelu => {
            let bell = bell(x);
            let density = 0.398_942_3 * bell;
            Slopes {
                first: share(x, bell) + x * density,
                // Where the square overflows, the density is 0; NaN stays.
                second: select(density > 0.0, density * (2.0 - x * x), density),
            }
        }
        Nonlinearity::GeluTanh => {
            let y1 = 1.595_769 * (1.0 + 3.0 * 0.044_715 * x * x);
            let y2 = 6.0 * 1.595_769 * 0.044_715 * x;
            let s = sigma(bent(x));
            let slope = s * (1.0 - s);
            // Far from zero σ is 0 or 1 exactly, and what it is multiplied by may overflow.
            let mut s1 = 0.0f32;
            let mut s2 = 0.0f32;
            if slope > 0.0 {
                s1 = slope * y1;
                s2 = slope * ((1.0 - 2.0 * s) * y1 * y1 + y2);
            }
            Slopes {
                first: s + x * s1,
                second: 2.0 * s1 + x * s2,
            }
        }
    }
}

/// `2 √(2/π) (x + 0.044715 x³)`
#[cube]
fn bent(x: f32) -> f32 {
    1.595_769 * x * (1.0 + 0.044_715 * x * x)
}

/// `exp(−x²/2)`
#[cube]
fn bell(x: f32) -> f32 {
    f32::exp(-0.5 * x * x)
}

/// `Φ(x)` within 1e-7: erf by formula 7.1.26 of Abramowitz and Stegun.
#[cube]
fn share(x: f32, bell: f32) -> f32 {
    let t = 1.0 / (1.0 + 0.327_591_1 * 0.707_106_77 * f32::abs(x));
    let p = ((((1.061_405_4 * t - 1.453_152) * t + 1.421_413_7) * t - 0.284_496_74) * t
        + 0.254_829_6)
        * t;
    let tail = 0.5 * p * bell;
    select(x < 0.0, tail, 1.0 - tail)
}
