//! Random numbers that a sample always gets alike, and the sizes of a sample's numbers.

use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use rand_distr::{Distribution, StandardNormal};

use crate::episode::Tokens;

/// Each sample's sum of squares: `[batch, rows, columns]` → `[batch, 1, 1]`.
pub(super) fn sample_squares<B: Backend>(x: Tensor<B, 3>) -> Tensor<B, 3> {
    x.square().sum_dim(2).sum_dim(1)
}

/// The root mean square of each sample's numbers: `[batch, 1, 1]`.
pub(super) fn rms<B: Backend>(x: &Tensor<B, 3>) -> Tensor<B, 3> {
    let [_, rows, columns] = x.dims();
    let squares = sample_squares(x.clone());
    squares.mul_scalar(1.0 / (rows * columns) as f64).sqrt()
}

/// Draws from N(0, 1) of the shapes of `like`, which depend on each sample's own tokens, the step of the outer loop and the
/// stream alone: a part of a batch, a resumed run and a WRITE step that is taken again draw the same.
pub(super) fn noise<B: Backend>(
    tokens: &Tokens<B>,
    outer_step: usize,
    stream: u64,
    like: &[Tensor<B, 3>],
) -> Vec<Tensor<B, 3>> {
    let seed = |row| {
        let mut seed: [u8; 32] = tokens.hash(row);
        for (byte, step) in seed.iter_mut().zip((outer_step as u64).to_le_bytes()) {
            *byte ^= step;
        }
        seed
    };
    let seeds: Vec<[u8; 32]> = (0..tokens.len()).map(seed).collect();
    let drawn = like.iter().enumerate().map(|(matrix, like)| {
        let shape = like.dims();
        let values = seeds.iter().flat_map(|seed| {
            let mut rng = ChaCha8Rng::from_seed(*seed);
            rng.set_stream(stream.wrapping_mul(1 << 16).wrapping_add(matrix as u64));
            let count = shape[1] * shape[2];
            let values: Vec<f64> = (0..count)
                .map(|_| StandardNormal.sample(&mut rng))
                .collect();
            values
        });
        let data = TensorData::new(values.collect::<Vec<f64>>(), shape);
        Tensor::from_data(data, &like.device())
    });
    drawn.collect()
}
