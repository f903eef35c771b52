//! A batch of contexts that passed its checks.

use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor, TensorData};

use crate::error::Error;
use crate::model::CausalLm;

/// Token ids that the model has, padded on the right only, none of them empty.
pub(crate) struct Contexts<B: Backend> {
    /// `[batch, seq]`
    pub tokens: Tensor<B, 2, Int>,
    /// Each sample's number of tokens, without padding.
    pub lengths: Vec<usize>,
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
        let (vocab, pad) = (model.vocab_size() as i64, pad as i64);
        if batch == 0 {
            return Err(Error::Input("there is no context".into()));
        }
        if let Some(positions) = model.max_positions()
            && others + seq > positions
        {
            return Err(Error::Input(format!(
                "a context of {seq} tokens beside {others} memory vectors needs {} positions, \
                 but the model has {positions}",
                others + seq
            )));
        }
        let ids: Vec<i64> = tokens.to_data().iter::<i64>().collect();
        let mut lengths = Vec::with_capacity(batch);
        for (sample, ids) in ids.chunks(seq.max(1)).enumerate() {
            if let Some(at) = ids.iter().position(|id| !(0..vocab).contains(id)) {
                return Err(Error::Input(format!(
                    "context {sample} has token {} at {at}, but the model's tokens are 0 … {}",
                    ids[at],
                    vocab - 1
                )));
            }
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
        match lengths.iter().position(|length| *length == 0) {
            None => Ok(Self { tokens, lengths }),
            Some(sample) => Err(Error::Input(format!(
                "context {sample} of {batch} is empty: there is nothing to write"
            ))),
        }
    }

    /// One over the sample's length on its tokens, zero on padding: `[batch, seq]`.
    pub fn weights(&self) -> Tensor<B, 2> {
        let [batch, seq] = self.tokens.dims();
        let rows = self.lengths.iter().flat_map(|length| {
            let weight = 1.0 / *length as f64;
            (0..seq).map(move |at| if at < *length { weight } else { 0.0 })
        });
        let data = TensorData::new(rows.collect::<Vec<f64>>(), [batch, seq]);
        Tensor::from_data(data, &self.tokens.device())
    }

    /// The same on one more tape.
    pub fn lift(&self) -> Contexts<burn::backend::Autodiff<B>> {
        Contexts {
            tokens: Tensor::from_inner(self.tokens.clone()),
            lengths: self.lengths.clone(),
        }
    }
}
