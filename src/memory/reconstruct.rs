//! What a memory holds of its context, by WRITE's own model: teacher-forced, and greedily from the memory alone.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use super::kinds::Attach;
use super::{GradMem, Memory};
use crate::episode::{Tokens, check_contexts};
use crate::error::Error;
use crate::model::{Cache, CausalLm, Writable, check_positions};

/// How well memories reconstruct their contexts, teacher-forced.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Reconstruction<B: Backend> {
    /// Each sample's WRITE loss, in nats a token: `[batch]`.
    pub loss: Tensor<B, 1>,
    /// The share of each sample's tokens that are the most probable after those before them: `[batch]`.
    pub accuracy: Tensor<B, 1>,
}

impl<B: Backend, M: Writable<B>> GradMem<B, M> {
    /// Each sample's WRITE loss at `memory`, in nats a token: `[batch]`.
    ///
    /// # Errors
    ///
    /// As [`GradMem::write`]; also memories of another shape, or not as many as contexts.
    pub fn write_loss(
        &self,
        memory: &Memory<B>,
        contexts: &Tokens<B>,
    ) -> Result<Tensor<B, 1>, Error> {
        Ok(self.reconstruction(memory, contexts)?.loss)
    }

    /// How well `memory` reconstructs its contexts.
    ///
    /// # Errors
    ///
    /// As [`GradMem::write_loss`].
    pub fn reconstruction(
        &self,
        memory: &Memory<B>,
        contexts: &Tokens<B>,
    ) -> Result<Reconstruction<B>, Error> {
        self.check_contexts(contexts)?;
        memory.check(self.layout())?;
        if memory.len() != contexts.len() {
            return Err(Error::Input(format!(
                "there are {} memories, but {} contexts",
                memory.len(),
                contexts.len()
            )));
        }
        let embeds = self.model.embed(contexts.ids());
        let logits = self
            .with_adapters()
            .reconstruction_logits(memory.fast(), embeds);
        let first = self.first_predicted();
        let targets = contexts.targets(first);
        let right = logits.clone().argmax(2).reshape(targets.dims());
        let right = right.equal(targets).float();
        let shares = (right * contexts.mean_weights(first)).sum_dim(1);
        Ok(Reconstruction {
            accuracy: shares.flatten(0, 1),
            loss: self.write_losses(logits, contexts),
        })
    }

    /// The contexts that the memories hold, reconstructed greedily by WRITE's model from the memories alone:
    /// each token after those generated before it, as many as `lengths` says.
    ///
    /// # Errors
    ///
    /// If the memories are of another shape, not as many as lengths, or a length is beyond the model's
    /// positions.
    pub fn reconstruct(
        &self,
        memory: &Memory<B>,
        lengths: &[usize],
    ) -> Result<Vec<Vec<u32>>, Error> {
        memory.check(self.layout())?;
        let samples = memory.len();
        if samples != lengths.len() {
            return Err(Error::Input(format!(
                "there are {samples} memories, but {} lengths",
                lengths.len()
            )));
        }
        let longest = lengths.iter().copied().max().unwrap_or(0);
        let writing = self.with_adapters();
        let kind = writing.in_write();
        let before = Attach::<B, M>::positions(&kind);
        check_positions(&self.model, longest, before, "context")?;
        let mut cache = Cache::new();
        let mut hidden = writing
            .model
            .hidden_after(kind.vectors::<M>(memory.fast()), &mut cache)
            .narrow(1, before - 1, 1);
        let mut rows = vec![Vec::with_capacity(longest); samples];
        for at in 0..longest {
            let next = writing
                .write_logits(hidden.clone())
                .argmax(2)
                .reshape([samples, 1]);
            for (row, id) in rows.iter_mut().zip(next.to_data().iter::<i64>()) {
                row.push(id as u32);
            }
            if at + 1 < longest {
                let embeds = writing.model.embed(next);
                hidden = writing.model.hidden_after(embeds, &mut cache);
            }
        }
        for (row, length) in rows.iter_mut().zip(lengths) {
            row.truncate(*length);
        }
        Ok(rows)
    }
}

impl<B: Backend, M: CausalLm<B>> GradMem<B, M> {
    /// Fails on contexts that this model cannot write. Host arithmetic only.
    pub(super) fn check_contexts(&self, contexts: &Tokens<B>) -> Result<(), Error> {
        check_contexts(contexts)?;
        contexts.check(&self.model, self.config.prefix_len(), "context")
    }
}
