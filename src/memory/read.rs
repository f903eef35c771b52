//! READ: the context is gone; the target is predicted from `[M_K; Q]`.

use burn::tensor::activation::log_softmax;
use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor, TensorData};

use super::{GradMem, Memory};
use crate::error::Error;
use crate::model::CausalLm;

impl<B: Backend, M: CausalLm<B>> GradMem<B, M> {
    /// Next-token logits of `queries` given the memory. Queries may be several a memory: with
    /// `batch · r` queries, each memory answers `r` in a row.
    ///
    /// # Shapes
    ///
    /// - `queries`: token ids `[batch · r, seq]` (query and target together when training)
    /// - output: `[batch · r, seq + 1, vocab_size]`; row 0 is predicted from the memory alone, row
    ///   `i + 1` after token `i`
    ///
    /// # Errors
    ///
    /// Shapes that do not fit, a token the model does not have, or more tokens than positions.
    pub fn read(
        &self,
        memory: &Memory<B>,
        queries: Tensor<B, 2, Int>,
    ) -> Result<Tensor<B, 3>, Error> {
        let [batch, m, d] = memory.vectors.dims();
        let [rows, seq] = queries.dims();
        let expected = [self.config.memory_tokens, self.model.d_model()];
        if [m, d] != expected {
            return Err(Error::Input(format!(
                "the memory has {m} vectors of width {d}, but this model reads {} of width {}",
                expected[0], expected[1]
            )));
        }
        if batch == 0 || !rows.is_multiple_of(batch) {
            return Err(Error::Input(format!(
                "{rows} queries cannot be shared evenly by {batch} memories"
            )));
        }
        let vectors = match rows / batch {
            1 => memory.vectors.clone(),
            times => memory.repeat(times),
        };
        let embeds = match seq {
            0 => vectors,
            _ => {
                self.check_tokens(&queries, "query")?;
                Tensor::cat(vec![vectors, self.model.embed(queries)], 1)
            }
        };
        let hidden = self.model.hidden(embeds).narrow(1, m - 1, seq + 1);
        Ok(self.model.logits(hidden))
    }

    /// The greedy continuation of one query `[1, seq]` from one memory: the likeliest token again and
    /// again, up to and without `stop`, or until `max_tokens` or the model's positions run out.
    ///
    /// # Errors
    ///
    /// As [`GradMem::read`].
    pub fn answer(
        &self,
        memory: &Memory<B>,
        query: &[u32],
        stop: u32,
        max_tokens: usize,
    ) -> Result<Vec<u32>, Error> {
        let device = memory.vectors.device();
        let mut tokens: Vec<i64> = query.iter().map(|id| i64::from(*id)).collect();
        let positions = self.model.max_positions().unwrap_or(usize::MAX);
        let room = positions.saturating_sub(self.config.memory_tokens + tokens.len());
        for _ in 0..max_tokens.min(room.saturating_add(1)) {
            let shape = [1, tokens.len()];
            let queries = Tensor::from_data(TensorData::new(tokens.clone(), shape), &device);
            let logits = self.read(memory, queries)?;
            let next = logits.narrow(1, tokens.len(), 1).argmax(2).to_data();
            match next.iter::<i64>().next() {
                Some(next) if next != i64::from(stop) => tokens.push(next),
                _ => break,
            }
        }
        Ok(tokens[query.len()..].iter().map(|id| *id as u32).collect())
    }

    /// Fails on tokens `[batch, seq]` that the model does not have or has no positions for.
    pub(super) fn check_tokens(&self, tokens: &Tensor<B, 2, Int>, what: &str) -> Result<(), Error> {
        let [_, seq] = tokens.dims();
        let (m, vocab) = (self.config.memory_tokens, self.model.vocab_size());
        if let Some(positions) = self.model.max_positions()
            && m + seq > positions
        {
            return Err(Error::Input(format!(
                "a {what} of {seq} tokens behind {m} memory vectors needs {} positions, \
                 but the model has {positions}",
                m + seq
            )));
        }
        let ids = tokens.to_data();
        let bad = ids
            .iter::<i64>()
            .position(|id| id < 0 || id >= vocab as i64);
        match bad {
            None => Ok(()),
            Some(at) => Err(Error::Input(format!(
                "{what} {} has token {} at {}, but the model's tokens are 0 … {}",
                at / seq,
                ids.iter::<i64>().nth(at).unwrap_or_default(),
                at % seq,
                vocab - 1
            ))),
        }
    }
}

/// `−log p` of each target: logits `[batch, seq, vocab_size]`, targets `[batch, seq]` → `[batch, seq]`.
pub fn token_losses<B: Backend>(logits: Tensor<B, 3>, targets: Tensor<B, 2, Int>) -> Tensor<B, 2> {
    let shape = targets.dims();
    log_softmax(logits, 2)
        .gather(2, targets.unsqueeze_dim(2))
        .reshape(shape)
        .neg()
}

/// The mean of `−log p` over all labelled tokens of a batch.
///
/// # Shapes
///
/// - `logits`: `[batch, seq + 1, vocab_size]` as [`GradMem::read`] gives them; the last row predicts
///   beyond the labels and is left out
/// - `labels`: `[batch, seq]`, not shifted; a negative label counts for nothing
/// - output: `[1]`
pub fn next_token_loss<B: Backend>(
    logits: Tensor<B, 3>,
    labels: Tensor<B, 2, Int>,
) -> Tensor<B, 1> {
    let [_, seq] = labels.dims();
    let ignored = labels.clone().lower_elem(0);
    let losses = token_losses(
        logits.narrow(1, 0, seq),
        labels.mask_fill(ignored.clone(), 0),
    );
    let counted = ignored.bool_not().float();
    // Without a label there is nothing to lose.
    (losses * counted.clone()).sum() / counted.sum().clamp_min(1.0)
}
