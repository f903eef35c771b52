//! READ: the context is gone; the target is predicted from `[M_K; Q]`.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use super::kinds;
use super::{GradMem, Memory, WriteObjective};
use crate::episode::{Episode, Predicted, Tokens};
use crate::error::Error;
use crate::model::CausalLm;
use crate::model::generate::Reader;

impl<B: Backend, M: CausalLm<B>, O: WriteObjective<B, M>> GradMem<B, M, O> {
    /// Next-token logits of `queries` given the memory. Queries may be several a memory: with `batch · r`
    /// queries, each memory answers `r` in a row.
    ///
    /// # Shapes
    ///
    /// - `queries`: `[batch · r, seq]` (query and target together when training)
    /// - output: `[batch · r, seq + 1, vocab_size]`; row 0 is predicted from the memory alone, row `i + 1`
    ///   after token `i`; with a memory that predicts no first token, `[batch · r, seq, vocab_size]` without row 0.
    ///   Rows behind the end of a shorter query are what its filling would predict: [`Reader::next_logits`] has each query's
    ///   own next token
    ///
    /// # Errors
    ///
    /// Shapes that do not fit, a token the model does not have, or more tokens than positions.
    pub fn read(&self, memory: &Memory<B>, queries: &Tokens<B>) -> Result<Tensor<B, 3>, Error> {
        Ok(self
            .model
            .logits(self.hidden_of(&self.model, memory, queries, usize::MAX)?))
    }

    /// The last `rows` hidden states of a READ by this model, or by its [joined](CausalLm::joined) copy.
    fn hidden_of(
        &self,
        model: &M,
        memory: &Memory<B>,
        queries: &Tokens<B>,
        rows: usize,
    ) -> Result<Tensor<B, 3>, Error> {
        memory.check(&self.layout())?;
        kinds::read(&*self.in_read(), model, memory, queries, rows)
    }

    /// The READ loss `[1]` of an episode's queries given memories of its contexts, and the most probable tokens. Logits of
    /// labelled places alone are computed.
    ///
    /// # Errors
    ///
    /// As [`GradMem::read`].
    pub fn read_answers(
        &self,
        memory: &Memory<B>,
        episode: &Episode<B>,
    ) -> Result<(Tensor<B, 1>, Predicted<B>), Error> {
        let (joined, rows) = (self.model.joined(), episode.labels().rows_needed());
        let hidden = self.hidden_of(&joined, memory, episode.queries(), rows)?;
        Ok(episode.answered(&self.model, hidden))
    }

    /// Reads the memories once, for any number of queries: what they have in common is kept as keys and
    /// values (Mamba: as a state).
    ///
    /// # Errors
    ///
    /// If the memory is of another shape than this model's.
    pub fn reader(&self, memory: &Memory<B>) -> Result<Reader<'_, B, M>, Error> {
        memory.check(&self.layout())?;
        kinds::reader(&*self.in_read(), &self.model, memory)
    }
}
