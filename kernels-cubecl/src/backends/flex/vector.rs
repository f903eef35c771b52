//! Loops over rows of f32 that LLVM turns into vector instructions.
//!
//! The crate is compiled for the baseline instruction set of its architecture. Loops that use the vector
//! instructions of the machine run inside [`dispatch`]; the functions here are inlined into it. They process
//! [`LANES`] values at a time, with a fixed order of summation.

/// Values that a loop processes at once: one AVX-512 register, two of AVX, four of SSE or NEON.
pub const LANES: usize = 16;

/// Runs `f`, compiled for the best instruction set that the machine supports.
///
/// This holds for inlined code only: `f` and all that it calls must be `#[inline(always)]`.
#[inline(always)]
pub fn dispatch<R>(f: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(f)
}

/// `eˣ` with a relative error of about 1e-7: exactly 0 below −87.3, infinite above 88.3, NaN for NaN.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    // x = n ln 2 + r with |r| ≤ ln 2 / 2. Adding 1.5·2²³ leaves n in the low bits of the sum.
    const SHIFT: f32 = 12_582_912.0;
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let shifted = x * std::f32::consts::LOG2_E + SHIFT;
    let n = shifted - SHIFT;
    let r = (x - n * LN_2_HIGH) - n * LN_2_LOW;
    let p = 1.987_569_1e-4;
    let p = p * r + 1.398_199_9e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_5e-1;
    let p = p * r + 5e-1;
    let p = p * (r * r) + r + 1.0;
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(1.0f32.to_bits()));
    let y = if x > 88.3 { f32::INFINITY } else { p * power };
    if x < -87.3 { 0.0 } else { y }
}

/// Replaces each `x` by `f(x)`.
#[inline(always)]
pub fn update(x: &mut [f32], f: impl Fn(f32) -> f32) {
    let (chunks, rest) = x.as_chunks_mut::<LANES>();
    for chunk in chunks {
        for x in chunk {
            *x = f(*x);
        }
    }
    for x in rest {
        *x = f(*x);
    }
}

/// Replaces each `x` by `f(x, y)`; the slices have equal length.
#[inline(always)]
pub fn update_by(x: &mut [f32], y: &[f32], f: impl Fn(f32, f32) -> f32) {
    let (x, x_rest) = x.as_chunks_mut::<LANES>();
    let (y, y_rest) = y.as_chunks::<LANES>();
    for (x, y) in x.iter_mut().zip(y) {
        for (x, y) in x.iter_mut().zip(y) {
            *x = f(*x, *y);
        }
    }
    for (x, y) in x_rest.iter_mut().zip(y_rest) {
        *x = f(*x, *y);
    }
}

/// The sum of `x`.
#[inline(always)]
pub fn sum(x: &[f32]) -> f32 {
    let (chunks, rest) = x.as_chunks::<LANES>();
    let mut lanes = [0.0; LANES];
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane += x;
        }
    }
    fold(lanes, |a, b| a + b) + rest.iter().sum::<f32>()
}

/// The dot product of slices of equal length.
#[inline(always)]
pub fn dot(x: &[f32], y: &[f32]) -> f32 {
    let (x, x_rest) = x.as_chunks::<LANES>();
    let (y, y_rest) = y.as_chunks::<LANES>();
    let mut lanes = [0.0; LANES];
    for (x, y) in x.iter().zip(y) {
        for ((lane, x), y) in lanes.iter_mut().zip(x).zip(y) {
            *lane += x * y;
        }
    }
    let rest: f32 = x_rest.iter().zip(y_rest).map(|(x, y)| x * y).sum();
    fold(lanes, |a, b| a + b) + rest
}

/// The largest value that is not NaN; −∞ if there is none.
#[inline(always)]
pub fn max(x: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let (chunks, rest) = x.as_chunks::<LANES>();
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane = larger(*lane, *x);
        }
    }
    rest.iter().fold(fold(lanes, larger), |a, b| larger(a, *b))
}

/// Combines the lanes in pairs until one value is left.
#[inline(always)]
fn fold(mut lanes: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] = f(lanes[i], lanes[i + half]);
        }
        half /= 2;
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_matches_f64() {
        let mut x = -87.29f32;
        while x < 88.29 {
            let mut row = [x; LANES + 3];
            dispatch(
                #[inline(always)]
                || update(&mut row, exp),
            );
            let exact = f64::from(x).exp();
            for y in row {
                assert!((f64::from(y) / exact - 1.0).abs() < 1.5e-7, "{x}: {y}");
            }
            x += 1e-3;
        }
        assert_eq!(exp(0.0), 1.0);
        assert_eq!([-87.4, -1e30, f32::NEG_INFINITY].map(exp), [0.0; 3]);
        assert_eq!([88.4, 1e30, f32::INFINITY].map(exp), [f32::INFINITY; 3]);
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn reductions_cover_every_value() {
        for len in 0..70 {
            let x: Vec<f32> = (0..len).map(|i| (i * 37 % 71) as f32 - 40.0).collect();
            let [total, square, largest] = dispatch(
                #[inline(always)]
                || [sum(&x), dot(&x, &x), max(&x)],
            );
            assert_eq!(total, x.iter().sum::<f32>());
            assert_eq!(square, x.iter().map(|x| x * x).sum::<f32>());
            assert_eq!(largest, x.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        }
        assert!(sum(&[f32::NAN; 20]).is_nan());
    }
}
