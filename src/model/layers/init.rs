use burn::module::Param;
use burn::tensor::backend::Backend;
use burn::tensor::{Shape, Tensor, TensorData};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use rand_distr::{Distribution, Normal};

/// A seeded source of initial weights.
///
/// Numbers are drawn on the host, in the order the layers are made, so that one seed gives the same
/// weights on every backend and in every thread.
#[derive(Debug)]
pub struct Init {
    rng: ChaCha8Rng,
}

impl Init {
    /// The same `seed` gives the same weights.
    pub fn new(seed: u64) -> Self {
        Self {
            rng: ChaCha8Rng::seed_from_u64(seed),
        }
    }

    /// Draws from N(0, `std`²); a `std` that is not a positive number gives zeros.
    pub fn normal<B: Backend, const D: usize>(
        &mut self,
        shape: [usize; D],
        std: f64,
        device: &B::Device,
    ) -> Param<Tensor<B, D>> {
        let count = Shape::from(shape).num_elements();
        let values: Vec<f64> = match Normal::new(0.0, std) {
            Ok(normal) if std > 0.0 => (0..count).map(|_| normal.sample(&mut self.rng)).collect(),
            _ => vec![0.0; count],
        };
        Param::from_tensor(Tensor::from_data(TensorData::new(values, shape), device))
    }

    /// Every element `value`.
    pub fn constant<B: Backend, const D: usize>(
        shape: [usize; D],
        value: f64,
        device: &B::Device,
    ) -> Param<Tensor<B, D>> {
        Param::from_tensor(Tensor::full(shape, value, device))
    }
}
