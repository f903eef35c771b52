//! Pseudo-random values, and how far a GPU's results are from those in f64.

use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{Tensor, TensorPrimitive};

use crate::Gpu;

pub type F64 = burn_ndarray::NdArray<f64>;

pub fn lower<B: Backend, const D: usize>(x: Tensor<B, D>) -> FloatTensor<B> {
    x.into_primitive().tensor()
}

pub fn lift<B: Backend, const D: usize>(x: FloatTensor<B>) -> Tensor<B, D> {
    Tensor::from_primitive(TensorPrimitive::Float(x))
}

/// Pseudo-random values in [-1, 1] that f32 represents exactly, the same for equal seeds.
pub fn numbers(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let values = (0..count).map(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    });
    values.collect()
}

/// The largest difference relative to the largest value, or to 0.01 if that is larger: with one key, some
/// gradients are differences of equal values.
pub fn error<const D: usize>(found: FloatTensor<Gpu>, expected: FloatTensor<F64>) -> f64 {
    let found = lift::<Gpu, D>(found).into_data();
    let expected = lift::<F64, D>(expected).into_data();
    assert_eq!(found.shape, expected.shape);
    let largest = expected.iter::<f64>().map(f64::abs).fold(1e-2, f64::max);
    let pairs = found.iter::<f64>().zip(expected.iter::<f64>());
    let errors = pairs.map(|(x, y)| (x - y).abs() / largest);
    errors.fold(0.0, |m, x| if x <= m { m } else { x })
}
