//! What memories have in common, whoever writes them: their value, how they are attached to a model, and
//! their files.
//!
//! A memory is a list of matrices for each sample ([`Memory`]). WRITE changes them and READ uses them through
//! [`Attach`] alone, so that a kind of memory is one implementation of it: [`Prefix`], vectors in front of the
//! tokens.

mod file;
mod prefix;
mod value;

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

pub use file::{MemoryFile, MemoryFloat, Origin, Written};
pub(crate) use file::{fingerprint, pack, unpack};
pub use prefix::Prefix;
pub(crate) use prefix::{check_room, control_tokens};
pub use value::Memory;
pub(crate) use value::{Layout, check_indices};

use crate::episode::Tokens;
use crate::error::Error;
use crate::model::CausalLm;
use crate::model::generate;
use crate::model::rows::share;

/// How a memory takes part in what a model computes.
///
/// `fast` is what WRITE changes, one tensor `[batch, rows, columns]` for each matrix of the memory.
pub trait Attach<B: Backend, M: CausalLm<B>> {
    /// Positions of the model that it takes.
    fn positions(&self) -> usize;

    /// The first token of a sequence that is predicted: 0 if the memory alone predicts one, or else 1.
    fn first(&self) -> usize;

    /// The hidden states that predict tokens, by the memory and the tokens before them.
    ///
    /// # Shapes
    ///
    /// - `embeds`: `[batch, seq, d_model]`; none for no token
    /// - output: `[batch, seq + 1 − first, d_model]`; the last row predicts what follows
    fn hidden(
        &self,
        model: &M,
        fast: &[Tensor<B, 3>],
        embeds: Option<Tensor<B, 3>>,
    ) -> Tensor<B, 3>;

    /// Reads the memory once, for any number of continuations.
    ///
    /// # Errors
    ///
    /// If the model has no positions for it.
    fn reader<'a>(
        &self,
        model: &'a M,
        fast: &[Tensor<B, 3>],
    ) -> Result<generate::Reader<'a, B, M>, Error>;
}

/// READ: the logits of `queries` `[batch · r, seq]` given memories `[batch, …]`, of which each answers `r` in a
/// row: `[batch · r, seq + 1 − first, vocab_size]`. Several queries to a memory share what is read of it.
pub(crate) fn read<B: Backend, M: CausalLm<B>>(
    kind: &impl Attach<B, M>,
    model: &M,
    memory: &Memory<B>,
    queries: &Tokens<B>,
) -> Result<Tensor<B, 3>, Error> {
    let times = share(queries.len(), memory.len())?;
    queries.check(model, kind.positions(), "query")?;
    if times > 1 {
        let reader = kind.reader(model, memory.fast())?;
        return Ok(reader.logits_of_checked(queries.ids()));
    }
    let embeds = (queries.width() > 0).then(|| model.embed(queries.ids()));
    Ok(model.logits(kind.hidden(model, memory.fast(), embeds)))
}
