use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor, TensorData};

/// Rotary positions (arXiv 2104.09864), in the half-split form of Hugging Face's Llama:
/// dimension `i` turns together with dimension `i + head_dim / 2` by `position · θ^(−2i / head_dim)`.
///
/// A table for positions `0 … seq − 1`, made once a forward pass and shared by its layers.
#[derive(Clone, Debug)]
pub struct Rotary<B: Backend> {
    /// `[1, seq, head_dim]`
    cos: Tensor<B, 3>,
    /// `[1, seq, head_dim]`
    sin: Tensor<B, 3>,
    /// `[head_dim, head_dim]`: swaps a head's halves and negates the one that comes first.
    turn: Tensor<B, 2>,
}

impl<B: Backend> Rotary<B> {
    /// `head_dim` must be even.
    pub fn new(seq: usize, head_dim: usize, theta: f64, device: &B::Device) -> Self {
        let half = head_dim / 2;
        let frequencies: Vec<f64> = (0..head_dim)
            .map(|i| theta.powf(-2.0 * (i % half) as f64 / head_dim as f64))
            .collect();
        let mut turn = vec![0.0; head_dim * head_dim];
        for i in 0..half {
            turn[(i + half) * head_dim + i] = -1.0;
            turn[i * head_dim + i + half] = 1.0;
        }
        let matrix =
            |values, shape| Tensor::<B, 2>::from_data(TensorData::new(values, shape), device);
        let positions = Tensor::<B, 1, Int>::arange(0..seq as i64, device).float();
        let angles = positions.reshape([seq, 1]) * matrix(frequencies, [1, head_dim]);
        Self {
            cos: angles.clone().cos().unsqueeze(),
            sin: angles.sin().unsqueeze(),
            turn: matrix(turn, [head_dim, head_dim]),
        }
    }

    /// Rotates every head of `x` by its position: `x ∘ cos + (x T) ∘ sin`.
    ///
    /// The turn `T` is a product with a constant matrix: unlike slices and their concatenation, it
    /// and its derivatives are one cheap operation each.
    ///
    /// # Shapes
    ///
    /// - `x` and output: `[batch, seq, heads, head_dim]`
    pub fn apply(&self, x: Tensor<B, 4>) -> Tensor<B, 4> {
        let [batch, seq, heads, head_dim] = x.dims();
        // A sample is one row, so that the tables broadcast along the first dimension only.
        let row = seq * heads * head_dim;
        let table = |table: &Tensor<B, 3>| {
            table
                .clone()
                .repeat_dim(0, heads)
                .swap_dims(0, 1)
                .reshape([1, row])
        };
        let turned = x
            .clone()
            .reshape([batch * seq * heads, head_dim])
            .matmul(self.turn.clone())
            .reshape([batch, row]);
        let rotated = x.reshape([batch, row]) * table(&self.cos) + turned * table(&self.sin);
        rotated.reshape([batch, seq, heads, head_dim])
    }
}
