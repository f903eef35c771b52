//! READ: the context is gone; the target is predicted from `[M_K; Q]`.

use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor};

use super::{GradMem, MemProj, Memory, frame};
use crate::error::Error;
use crate::model::generate::Prefix;
use crate::model::rows::share;
use crate::model::{CausalLm, check_tokens, token_losses};

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
        read_behind(&self.model, self.prefix(memory)?, queries)
    }

    /// Reads the memories once, for any number of queries: what they have in common is kept as keys and
    /// values (Mamba: as a state).
    ///
    /// # Errors
    ///
    /// If the memory is of another shape than this model's.
    pub fn reader(&self, memory: &Memory<B>) -> Result<Prefix<'_, B, M>, Error> {
        Prefix::new(&self.model, self.prefix(memory)?)
    }

    /// Fails on memories of another shape than this model's.
    pub(super) fn check(&self, memory: &Memory<B>) -> Result<(), Error> {
        let shape = [self.config.memory_tokens, self.model.d_model()];
        check_memory(memory, shape, self.config.mem_proj == MemProj::PerSample)
    }

    /// What READ begins with: `[read_st; W M_K + b; read_end]`.
    fn prefix(&self, memory: &Memory<B>) -> Result<Tensor<B, 3>, Error> {
        self.check(memory)?;
        let vectors = self.project(&memory.fast());
        Ok(frame(
            self.read_st.as_ref(),
            vectors,
            self.read_end.as_ref(),
        ))
    }
}

/// Fails on memories other than of `m` vectors of width `d` each, with projections of their own or not.
pub(crate) fn check_memory<B: Backend>(
    memory: &Memory<B>,
    [m, d]: [usize; 2],
    projects: bool,
) -> Result<(), Error> {
    let [batch, rows, width] = memory.vectors.dims();
    let problem = if batch == 0 {
        "there is no memory".into()
    } else if [rows, width] != [m, d] {
        format!(
            "the memory has {rows} vectors of width {width}, but this model reads {m} of width {d}"
        )
    } else {
        match (&memory.projection, projects) {
            (None, false) => return Ok(()),
            (Some([weight, bias]), true)
                if weight.dims() == [batch, d, d] && bias.dims() == [batch, 1, d] =>
            {
                return Ok(());
            }
            (None, true) => {
                "the memory has no projection of its own, but this model reads one".into()
            }
            (Some(_), false) => {
                "the memory has a projection of its own, but this model reads none".into()
            }
            (Some([weight, bias]), true) => format!(
                "the memory's projection is {:?} and {:?}, not [{batch}, {d}, {d}] and [{batch}, 1, {d}]",
                weight.dims(),
                bias.dims()
            ),
        }
    };
    Err(Error::Input(problem))
}

/// The logits of `queries` `[batch · r, seq]`, each behind its part of `prefix` `[batch, n, d_model]`:
/// `[batch · r, seq + 1, vocab_size]`. Several queries to a memory share what is read of it.
pub(crate) fn read_behind<B: Backend, M: CausalLm<B>>(
    model: &M,
    prefix: Tensor<B, 3>,
    queries: Tensor<B, 2, Int>,
) -> Result<Tensor<B, 3>, Error> {
    let [batch, before, _] = prefix.dims();
    let [rows, seq] = queries.dims();
    let times = share(rows, batch)?;
    if seq > 0 {
        check_tokens(model, &queries, before, "query")?;
    }
    if times > 1 {
        return Ok(Prefix::new(model, prefix)?.logits_of_checked(queries));
    }
    let embeds = match seq {
        0 => prefix,
        _ => Tensor::cat(vec![prefix, model.embed(queries)], 1),
    };
    let hidden = model.hidden(embeds).narrow(1, before - 1, seq + 1);
    Ok(model.logits(hidden))
}

/// The mean of `−log p` over all labelled tokens of a batch.
///
/// # Shapes
///
/// - `logits`: `[batch, seq + 1, vocab_size]` as [`GradMem::read`] gives them; the last row predicts
///   beyond the labels and is left out
/// - `labels`: `[batch, seq]`, not shifted; a negative label counts for nothing
/// - output: `[1]`
///
/// # Panics
///
/// If there are not more rows of logits than labels, or a label is beyond the vocabulary.
pub fn next_token_loss<B: Backend>(
    logits: Tensor<B, 3>,
    labels: Tensor<B, 2, Int>,
) -> Tensor<B, 1> {
    let [_, seq] = labels.dims();
    if seq == 0 {
        return Tensor::zeros([1], (&logits.device(), logits.dtype()));
    }
    let ignored = labels.clone().lower_elem(0);
    let losses = token_losses(
        logits.narrow(1, 0, seq),
        labels.mask_fill(ignored.clone(), 0),
    );
    let counted = ignored.bool_not().float();
    // Without a label there is nothing to lose.
    (losses * counted.clone()).sum() / counted.sum().clamp_min(1.0)
}
