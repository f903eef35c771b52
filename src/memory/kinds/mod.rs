//! What memories have in common, whoever writes them: their value, how they are attached to a model, and
//! their files.
//!
//! A memory is a list of matrices for each sample ([`Memory`]). WRITE changes them and READ uses them through
//! [`Attach`] alone, so that a kind of memory is one implementation of it:
//!
//! | kind | what a sample's memory is | costs |
//! |---|---|---|
//! | [`Prefix`] | vectors in front of the tokens | positions; any [`CausalLm`] |
//! | [`Adapters`] | low-rank maps between the layers or beside their matrices (LoRA) | none; a model with [`slots`](CausalLm::slots) |
//! | [`KeysValues`] | keys and values of every layer's attention | positions; a model with [`slots`](CausalLm::slots) |

mod adapters;
mod file;
mod keys_values;
mod prefix;
mod value;

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

pub use adapters::{Adapters, Place};
pub(crate) use file::fingerprint;
pub use file::{MemoryFile, MemoryFiles, MemoryFloat, Origin, Written};
pub use keys_values::KeysValues;
pub use prefix::Prefix;
pub(crate) use prefix::{check_room, control_tokens};
pub use value::Memory;
use value::cat;
pub(crate) use value::{Layout, check_indices};

use crate::episode::Tokens;
use crate::error::Error;
use crate::model::generate::{NOTHING_BEFORE, Reader};
use crate::model::rows::share;
use crate::model::{Cache, CausalLm};

/// How a memory takes part in what a model computes.
///
/// `fast` is what WRITE changes, one tensor `[batch, rows, columns]` for each matrix of the memory.
pub trait Attach<B: Backend, M: CausalLm<B>> {
    /// Positions of the model that the memories of so many chunks take.
    fn positions(&self, chunks: usize) -> usize;

    /// The memories of several chunks as one, for READ.
    fn join(&self, parts: &[Vec<Tensor<B, 3>>]) -> Vec<Tensor<B, 3>>;

    /// What the model computes with.
    fn attached(&self, fast: &[Tensor<B, 3>]) -> Attached<B>;

    /// The hidden states that predict tokens, by the memory and the tokens before them: the last `rows` of them, or all where these are
    /// fewer; none if there are neither tokens nor vectors in front of them.
    ///
    /// # Shapes
    ///
    /// - `embeds`: `[batch, seq, d_model]`; none for no token
    /// - output: of `[batch, seq + 1, d_model]` behind vectors in front of the tokens, of which the last predicts the first token, or
    ///   else of `[batch, seq, d_model]`; the last row predicts what follows
    fn hidden(
        &self,
        model: &M,
        fast: &[Tensor<B, 3>],
        embeds: Option<Tensor<B, 3>>,
        rows: usize,
    ) -> Option<Tensor<B, 3>> {
        match self.attached(fast) {
            Attached::InFront(vectors) => {
                let last = vectors.dims()[1] - 1;
                let x = match embeds {
                    Some(embeds) => Tensor::cat(vec![vectors, embeds], 1),
                    None => vectors,
                };
                let predict = x.dims()[1] - last;
                Some(model.last_hidden(x, rows.min(predict), None))
            }
            Attached::InCache(mut cache) => {
                Some(model.last_hidden(embeds?, rows, Some(&mut cache)))
            }
        }
    }

    /// Reads the memory once, for any number of continuations.
    ///
    /// # Errors
    ///
    /// If the model has no positions for it.
    fn reader<'a>(&self, model: &'a M, fast: &[Tensor<B, 3>]) -> Result<Reader<'a, B, M>, Error> {
        match self.attached(fast) {
            Attached::InFront(vectors) => Reader::new(model, vectors),
            Attached::InCache(cache) => Ok(Reader::of_cache(model, fast[0].dims()[0], cache)),
        }
    }
}

/// Where a model finds a memory.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Attached<B: Backend> {
    /// Vectors in front of the tokens: `[batch, positions, d_model]`. The last one predicts the first token.
    InFront(Tensor<B, 3>),
    /// In the model's cache. Nothing predicts the first token.
    InCache(Cache<B>),
}

/// READ: the hidden states that predict the tokens of `queries` `[batch · r, seq]` given memories `[batch, …]`, of which each
/// answers `r` in a row; the last `rows` and shapes as in [`Attach::hidden`]. Several queries to a memory share what is read of it.
pub(crate) fn read<B: Backend, M: CausalLm<B>>(
    kind: &dyn Attach<B, M>,
    model: &M,
    memory: &Memory<B>,
    queries: &Tokens<B>,
    rows: usize,
) -> Result<Tensor<B, 3>, Error> {
    let times = share(queries.len(), memory.len())?;
    queries.check(
        model,
        kind.positions(memory.counts().max().unwrap_or(1)),
        "query",
    )?;
    match memory.groups().as_slice() {
        [(chunks, _)] if times == 1 => {
            let embeds = (queries.width() > 0).then(|| model.embed(queries.ids()));
            let fast = kind.join(&memory.parts()[..*chunks]);
            let hidden = kind.hidden(model, &fast, embeds, rows);
            hidden.ok_or_else(|| Error::Input(NOTHING_BEFORE.into()))
        }
        _ => reader(kind, model, memory)?.hidden_before(queries, rows),
    }
}

/// Reads memories once, those of as many chunks together.
pub(crate) fn reader<'a, B: Backend, M: CausalLm<B>>(
    kind: &dyn Attach<B, M>,
    model: &'a M,
    memory: &Memory<B>,
) -> Result<Reader<'a, B, M>, Error> {
    let groups = memory.groups();
    if let [(chunks, _)] = groups.as_slice() {
        return kind.reader(model, &kind.join(&memory.parts()[..*chunks]));
    }
    let parts = groups.into_iter().map(|(_, samples)| {
        let some = memory.select(&samples)?;
        let reader = kind.reader(model, &kind.join(some.parts()))?;
        Ok((samples, reader))
    });
    let parts = parts.collect::<Result<Vec<_>, Error>>()?;
    Ok(Reader::of_parts(model, parts))
}

/// The matrices of several chunks, each along its own dimension.
fn side_by_side<B: Backend>(
    parts: &[Vec<Tensor<B, 3>>],
    dim: impl Fn(usize) -> usize,
) -> Vec<Tensor<B, 3>> {
    let matrices = 0..parts.first().map_or(0, Vec::len);
    let joined = matrices.map(|at| {
        let each = parts.iter().map(|part| part[at].clone());
        cat(each.collect(), dim(at))
    });
    joined.collect()
}
