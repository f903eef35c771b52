//! A batch of contexts that passed its checks.

use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor, TensorData};

use crate::error::Error;
use crate::model::{CausalLm, check_ids, check_positions};

/// Token ids that the model has, padded on the right only, none of them empty.
pub(crate) struct Contexts<B: Backend> {
    /// `[batch, seq]`
    pub tokens: Tensor<B, 2, Int>,
    /// Each sample's number of tokens, without padding.
    pub lengths: Vec<usize>,
    /// One over the sample's length on its tokens, zero on padding: `[batch, seq]`.
    pub weights: Tensor<B, 2>,
}

impl<B: Backend> Contexts<B> {
    /// Checks `tokens` `[batch, seq]`, padded with `pad`, for a model that reads them behind and in
    /// front of `others` vectors.
    pub fn new<M: CausalLm<B>>(
        model: &M,
        tokens: Tensor<B, 2, Int>,
        pad: usize,
        others: usize,
    ) -> Result<Self, Error> {
        let [batch, seq] = tokens.dims();
        let pad = pad as i64;
        if batch == 0 {
            return Err(Error::Input("there is no context".into()));
        }
        check_positions(model, seq, others, "context")?;
        let ids: Vec<i64> = tokens.to_data().iter::<i64>().collect();
        check_ids(model, &ids, seq, "context")?;
        let mut lengths = Vec::with_capacity(batch);
        for (sample, ids) in ids.chunks(seq.max(1)).enumerate() {
            let length = ids.iter().rposition(|id| *id != pad).map_or(0, |at| at + 1);
            if let Some(at) = ids[..length].iter().position(|id| *id == pad) {
                return Err(Error::Input(format!(
                    "context {sample} has the padding token {pad} at {at}, before its last token: \
                     contexts are padded on the right only"
                )));
            }
            lengths.push(length);
        }
        lengths.resize(batch, 0);
        if let Some(sample) = lengths.iter().position(|length| *length == 0) {
            return Err(Error::Input(format!(
                "context {sample} of {batch} is empty: there is nothing to write"
            )));
        }
        let weights = lengths.iter().flat_map(|length| {
            let weight = 1.0 / *length as f64;
            (0..seq).map(move |at| if at < *length { weight } else { 0.0 })
        });
        let weights = TensorData::new(weights.collect::<Vec<f64>>(), [batch, seq]);
        Ok(Self {
            weights: Tensor::from_data(weights, &tokens.device()),
            tokens,
            lengths,
        })
    }

    /// The same on one more tape.
    pub fn lift(&self) -> Contexts<burn::backend::Autodiff<B>> {
        Contexts {
            tokens: Tensor::from_inner(self.tokens.clone()),
            lengths: self.lengths.clone(),
            weights: Tensor::from_inner(self.weights.clone()),
        }
    }
}
