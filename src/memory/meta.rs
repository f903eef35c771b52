//! The outer loop: the READ loss after WRITE, to be minimised over the model, M0 and the WRITE head
//! *through* the WRITE updates.

use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor};

use super::{GradMem, Memory, next_token_loss};
use crate::error::Error;
use crate::model::Writable;

/// The outer loss of a batch and what it was made of.
#[derive(Clone, Debug)]
pub struct Outer<B: Backend> {
    /// Mean `−log p` of the labelled tokens, `[1]`.
    pub read_loss: Tensor<B, 1>,
    /// `inner_loss_weight` times the batch mean of the WRITE loss before the last step, `[1]`, if it
    /// has a part in the outer loss.
    pub write_term: Option<Tensor<B, 1>>,
    /// `[batch · r, seq + 1, vocab_size]`
    pub logits: Tensor<B, 3>,
    /// The memory after WRITE.
    pub memory: Memory<B>,
}

impl<B: Backend> Outer<B> {
    /// What training minimises, `[1]`.
    pub fn loss(&self) -> Tensor<B, 1> {
        match &self.write_term {
            Some(term) => self.read_loss.clone() + term.clone(),
            None => self.read_loss.clone(),
        }
    }
}

impl<B: Backend, M: Writable<B>> GradMem<B, M> {
    /// Writes `contexts`, reads `queries` and takes the outer loss. On an autodiff backend
    /// `outer.loss().backward()` is the meta-gradient: one graph over all K steps.
    ///
    /// # Shapes
    ///
    /// - `contexts`: `[batch, context_len]`
    /// - `queries`: `[batch · r, seq]`, query and target together
    /// - `labels`: `[batch · r, seq]`, the tokens to predict, negative where there is none
    ///
    /// # Errors
    ///
    /// As [`GradMem::write`] and [`GradMem::read`]; also labels of another shape than the queries, or
    /// beyond the vocabulary.
    pub fn outer(
        &self,
        contexts: Tensor<B, 2, Int>,
        queries: Tensor<B, 2, Int>,
        labels: Tensor<B, 2, Int>,
    ) -> Result<Outer<B>, Error> {
        check_labels(&queries, &labels, self.model.vocab_size())?;
        let memory = self.write(contexts)?;
        let logits = self.read(&memory, queries)?;
        let read_loss = next_token_loss(logits.clone(), labels);
        let weight = self.config.inner_loss_weight;
        let write_term = match memory.losses.last() {
            Some(inner) if weight > 0.0 => Some(inner.clone().mean().mul_scalar(weight)),
            _ => None,
        };
        Ok(Outer {
            read_loss,
            write_term,
            logits,
            memory,
        })
    }
}

/// Fails on labels `[rows, seq]` of another shape than the queries, or beyond the vocabulary.
pub(crate) fn check_labels<B: Backend>(
    queries: &Tensor<B, 2, Int>,
    labels: &Tensor<B, 2, Int>,
    vocab: usize,
) -> Result<(), Error> {
    if queries.dims() != labels.dims() {
        return Err(Error::Input(format!(
            "queries are {:?}, but labels {:?}",
            queries.dims(),
            labels.dims()
        )));
    }
    if queries.dims()[1] == 0 {
        return Err(Error::Input(
            "the queries have no tokens to be labelled".into(),
        ));
    }
    let largest = labels.to_data().iter::<i64>().max().unwrap_or(-1);
    match largest < vocab as i64 {
        true => Ok(()),
        false => Err(Error::Input(format!(
            "there is a label {largest}, but the model's tokens are 0 … {}",
            vocab - 1
        ))),
    }
}
