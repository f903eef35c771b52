//! What a memory holds of its context, by WRITE's own model: teacher-forced, and greedily from the memory alone.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use super::segments::Segment;
use super::{GradMem, LiftedObjective, Memory, WriteObjective};
use crate::episode::{Tokens, check_contexts};
use crate::error::Error;
use crate::model::rows::repeat;
use crate::model::{CausalLm, Writable, check_positions};

/// How well memories reconstruct their contexts, teacher-forced.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Reconstruction<B: Backend> {
    /// Each sample's WRITE loss, in nats a token: `[batch]`.
    pub loss: Tensor<B, 1>,
    /// The share of each sample's tokens that are the most probable after those before them: `[batch]`.
    pub accuracy: Tensor<B, 1>,
}

/// Fails unless there is a memory for each context.
pub(super) fn check_as_many<B: Backend>(
    memory: &Memory<B>,
    contexts: &Tokens<B>,
) -> Result<(), Error> {
    match (memory.len(), contexts.len()) {
        (memories, contexts) if memories == contexts => Ok(()),
        (memories, contexts) => Err(Error::Input(format!(
            "there are {memories} memories, but {contexts} contexts"
        ))),
    }
}

/// Each sample's WRITE loss, and the share of its tokens that are predicted right, if the objective predicts any: `[batch]`.
pub(crate) type Measured<B> = (Tensor<B, 1>, Option<Tensor<B, 1>>);

/// The share of each sample's tokens of a chunk that are predicted right, `[batch]`, and how many tokens there are.
#[cfg(feature = "train")]
pub(crate) type OfChunk<B> = (Tensor<B, 1>, Vec<usize>);

impl<B: Backend, M: Writable<B>, O: LiftedObjective<B, M>> GradMem<B, M, O> {
    /// Each sample's WRITE loss at `memory`, a mean over its tokens, with [parallel chunks](super::Chunks::Parallel) the mean of
    /// its chunks' means, as in WRITE: `[batch]`; in nats, unless the objective is another than [`Reconstruct`](super::Reconstruct).
    ///
    /// # Errors
    ///
    /// As [`GradMem::write`]; also memories of another shape, or not as many as contexts.
    pub fn write_loss(
        &self,
        memory: &Memory<B>,
        contexts: &Tokens<B>,
    ) -> Result<Tensor<B, 1>, Error> {
        Ok(self.measure(memory, contexts)?.0)
    }

    /// Each sample's WRITE loss where WRITE begins, for all chunks: at M0, or at the end of the memories that are
    /// [written on](GradMem::write_on). [`Memory::losses`] have the first chunk's there.
    ///
    /// # Errors
    ///
    /// As [`GradMem::write_loss`].
    pub fn start_loss(
        &self,
        before: Option<&Memory<B>>,
        contexts: &Tokens<B>,
    ) -> Result<Tensor<B, 1>, Error> {
        let start = match before {
            Some(before) => {
                before.check(&self.layout())?;
                before.part_of(&before.counts().map(|count| count - 1).collect::<Vec<_>>())
            }
            None => self.start(contexts.len()),
        };
        self.write_loss(&Memory::from_fast(start), contexts)
    }

    /// How well `memory` reconstructs its contexts.
    ///
    /// # Errors
    ///
    /// As [`GradMem::write_loss`]; also an objective that tells no tokens.
    pub fn reconstruction(
        &self,
        memory: &Memory<B>,
        contexts: &Tokens<B>,
    ) -> Result<Reconstruction<B>, Error> {
        let (loss, accuracy) = self.measure(memory, contexts)?;
        let accuracy = accuracy.ok_or_else(tells_nothing)?;
        Ok(Reconstruction { loss, accuracy })
    }

    /// The WRITE loss, and the share of tokens that are predicted if the objective has logits.
    pub(crate) fn measure(
        &self,
        memory: &Memory<B>,
        contexts: &Tokens<B>,
    ) -> Result<Measured<B>, Error> {
        let segments = self.segments(contexts)?;
        memory.check(&self.layout())?;
        check_as_many(memory, contexts)?;
        let writing = self.with_adapters();
        let found = segments.pieces.iter().enumerate().map(|(at, piece)| {
            // A sample's chunks are its last parts: others may have been written before, but for the reference's.
            let own = memory.counts().zip(segments.counts.iter());
            let own = own.map(|(parts, chunks)| {
                let first = match self.config.reference_chunks {
                    true => 0,
                    false => parts.saturating_sub(*chunks),
                };
                (first + at).min(parts - 1)
            });
            writing.measure_piece(&memory.part_of(&own.collect::<Vec<_>>()), piece)
        });
        let (losses, accuracies): (Vec<_>, Vec<_>) = found.unzip();
        let accuracies: Option<Vec<_>> = accuracies.into_iter().collect();
        let over_chunks = |means| segments.over_chunks(means, self.first_predicted());
        Ok((over_chunks(losses), accuracies.map(over_chunks)))
    }

    /// The share of each sample's tokens that are predicted of each of the first `chunks` chunks, and how many
    /// they are: none of a sample that has fewer.
    ///
    /// # Errors
    ///
    /// As [`GradMem::write`].
    #[cfg(feature = "train")]
    pub(crate) fn accuracy_of_chunks(
        &self,
        memory: &Memory<B>,
        contexts: &Tokens<B>,
        chunks: usize,
    ) -> Result<Vec<OfChunk<B>>, Error> {
        let segments = self.segments(contexts)?;
        let writing = self.with_adapters();
        let first = self.first_predicted();
        let pieces = segments.pieces.iter().take(chunks).enumerate();
        let shares = pieces.map(|(at, piece)| {
            let part = memory.parts().len().min(at + 1) - 1;
            let (_, accuracy) = writing.measure_piece(&memory.parts()[part], piece);
            // Samples that ended before have nothing written over their chunks.
            let counts = piece.tokens.lengths().zip(&segments.own);
            let counts = counts.map(|(length, own)| match *own >= chunks {
                true => length.saturating_sub(first),
                false => 0,
            });
            let accuracy = accuracy.ok_or_else(tells_nothing)?;
            Ok((accuracy, counts.collect()))
        });
        shares.collect()
    }

    /// The same as [`measure`](GradMem::measure) of a piece by the memory that is to hold it.
    fn measure_piece(&self, fast: &[Tensor<B, 3>], piece: &Segment<B>) -> Measured<B> {
        let fast: Vec<_> = fast
            .iter()
            .map(|x| repeat(x.clone(), piece.times))
            .collect();
        let embeds = self.model.embed(piece.tokens.ids());
        let Some(hidden) = self.hidden_before(&fast, embeds) else {
            let none = Tensor::zeros([piece.tokens.len() / piece.times], &piece.tokens.device());
            return (none.clone(), Some(none));
        };
        let first = self.first_predicted();
        let targets = piece.tokens.targets(first);
        let predicted = self.objective.most_probable(&self.model, hidden.clone());
        let right = predicted.map(|predicted| predicted.equal(targets.clone()).float());
        let losses = self.objective.losses(&self.model, hidden, targets);
        let share = |right| piece.share_of_tokens(right, first);
        (piece.mean(losses), right.map(share))
    }

    /// The contexts that the memories hold, reconstructed greedily by WRITE's model from the memories alone:
    /// each token after those generated before it, as many as `lengths` says; chunk by chunk, if they were written so. Of texts that
    /// were [written on](GradMem::write_on) one another, the first chunks are reconstructed. A row is shorter than `lengths` says where the
    /// sample's chunks end before.
    ///
    /// # Errors
    ///
    /// If the memories are of another shape, not as many as lengths, or predict no first token, a length is beyond the
    /// model's positions, or the objective tells no tokens.
    pub fn reconstruct(
        &self,
        memory: &Memory<B>,
        lengths: &[usize],
    ) -> Result<Vec<Vec<u32>>, Error> {
        memory.check(&self.layout())?;
        let samples = memory.len();
        if samples != lengths.len() {
            return Err(Error::Input(format!(
                "there are {samples} memories, but {} lengths",
                lengths.len()
            )));
        }
        if self.first_predicted() > 0 {
            return Err(Error::Input(format!(
                "a memory of kind `{}` predicts no first token to begin a reconstruction with",
                self.config.kind.as_str()
            )));
        }
        let longest = lengths.iter().copied().max().unwrap_or(0);
        let chunk = self.config.longest_chunk(longest);
        if !self.tells_from_nothing(longest) {
            return Err(Error::Input(format!(
                "a memory of several chunks of {chunk} tokens does not say which of them is to be reconstructed"
            )));
        }
        let writing = self.with_adapters();
        check_positions(&self.model, chunk, self.config.prefix_len(), "context")?;
        let mut rows = vec![Vec::with_capacity(longest); samples];
        let chunks = match self.config.concatenates() {
            true => longest.div_ceil(chunk.max(1)).min(memory.parts().len()),
            false => 1,
        };
        for part in 0..chunks {
            let kind = writing.in_write();
            let reader = kind.reader(&writing.model, &memory.parts()[part])?;
            let length = chunk.min(longest - part * chunk);
            let head = |hidden| writing.objective.logits(&writing.model, hidden);
            let found = reader.greedily(length, head).ok_or_else(tells_nothing)?;
            let rows = rows.iter_mut().zip(memory.counts());
            for ((row, parts), found) in rows.zip(found) {
                if part < parts {
                    row.extend(found);
                }
            }
        }
        for (row, length) in rows.iter_mut().zip(lengths) {
            row.truncate(*length);
        }
        Ok(rows)
    }
}

fn tells_nothing() -> Error {
    Error::Input("WRITE's objective tells no tokens (`WriteObjective::logits`)".into())
}

impl<B: Backend, M: CausalLm<B>, O: WriteObjective<B, M>> GradMem<B, M, O> {
    /// Whether a context of so many tokens can be [reconstructed](GradMem::reconstruct) from its memory alone: it predicts a
    /// first token, and it holds one chunk, or has a memory for each.
    pub fn tells_from_nothing(&self, tokens: usize) -> bool {
        let config = &self.config;
        let one_chunk = config.chunk_size.is_none_or(|size| tokens <= size);
        self.first_predicted() == 0 && (one_chunk || config.concatenates())
    }

    /// Fails on contexts that this model cannot write. Host arithmetic only.
    pub(super) fn check_contexts(&self, contexts: &Tokens<B>) -> Result<(), Error> {
        check_contexts(contexts)?;
        let longest = self.config.longest_chunk(contexts.width());
        check_positions(&self.model, longest, self.config.prefix_len(), "context")?;
        contexts.check_ids(&self.model, "context")
    }
}
