use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor, TensorData};

/// Rotary positions (arXiv 2104.09864), in the half-split form of Hugging Face's Llama:
/// dimension `i` turns together with dimension `i + head_dim / 2` by `position · θ^(−2i / head_dim)`.
///
/// A table for positions `0 … seq − 1`, made once a forward pass and shared by its layers.
#[derive(Clone, Debug)]
pub struct Rotary<B: Backend> {
    /// `[1, seq, 1, head_dim]`
    cos: Tensor<B, 4>,
    /// The same shape; the first half negated, for [`Rotary::apply`] swaps the halves.
    sin: Tensor<B, 4>,
}

impl<B: Backend> Rotary<B> {
    /// `head_dim` must be even.
    pub fn new(seq: usize, head_dim: usize, theta: f64, device: &B::Device) -> Self {
        let half = head_dim / 2;
        let frequencies: Vec<f64> = (0..half)
            .map(|i| theta.powf(-2.0 * i as f64 / head_dim as f64))
            .collect();
        let frequencies = Tensor::<B, 2>::from_data(TensorData::new(frequencies, [1, half]), device);
        let positions = Tensor::<B, 1, Int>::arange(0..seq as i64, device).float();
        let angles = positions.reshape([seq, 1]) * frequencies;
        let (cos, sin) = (angles.clone().cos(), angles.sin());
        let table = |halves: Vec<Tensor<B, 2>>| Tensor::cat(halves, 1).reshape([1, seq, 1, head_dim]);
        Self {
            cos: table(vec![cos.clone(), cos]),
            sin: table(vec![sin.clone().neg(), sin]),
        }
    }

    /// Rotates every head of `x` by its position.
    ///
    /// # Shapes
    ///
    /// - `x` and output: `[batch, seq, heads, head_dim]`
    pub fn apply(&self, x: Tensor<B, 4>) -> Tensor<B, 4> {
        let [batch, seq, heads, head_dim] = x.dims();
        // Swapping the halves is a flip, which a backend can do without a copy.
        let swapped = x
            .clone()
            .reshape([batch, seq, heads, 2, head_dim / 2])
            .flip([3])
            .reshape([batch, seq, heads, head_dim]);
        x * self.cos.clone() + swapped * self.sin.clone()
    }
}
