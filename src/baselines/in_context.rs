//! The whole context in the prompt: the baseline that keeps everything.

use std::collections::{BTreeMap, BTreeSet};

use burn::module::Module;
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use serde::{Deserialize, Serialize};

use crate::episode::{Tokens, check_contexts};
use crate::error::Error;
use crate::model::generate::{GenerateConfig, Reader, continue_prompts};
use crate::model::rows::{pick, select, share};
use crate::model::{CausalLm, check_positions};

/// How training reads the questions of a context. Evaluation always reads each behind the context, alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Questions {
    /// A sequence for each question: the context, the query and its target.
    #[default]
    Separate,
    /// The context is read once, and each question continues it from the model's cache. The logits are those of
    /// `separate` up to rounding. Contexts of one length are read together; a batch with more lengths than half its contexts
    /// is read as in `separate`: in one pass, where each question has its context again.
    Shared,
    /// A sequence for each context, with all its queries and targets in a row. Each question sees those before it
    /// and their answers. Where every pair of a context is asked for, a later answer is then partly known by
    /// elimination, which does not help a question that is asked alone.
    Joint,
}

/// Settings of an [`InContext`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[must_use]
pub struct InContextConfig {
    /// How training reads the questions of a context: `separate`, `shared` or `joint`.
    pub questions: Questions,
}

impl InContextConfig {
    /// The default: a sequence for each question.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets how training reads the questions of a context.
    pub fn with_questions(mut self, questions: Questions) -> Self {
        self.questions = questions;
        self
    }

    /// Wraps a model.
    pub fn init<B: Backend, M: CausalLm<B>>(&self, model: M) -> InContext<B, M> {
        InContext {
            model,
            config: self.clone(),
            backend: std::marker::PhantomData,
        }
    }

    /// The longest sequence in training, for a context of so many tokens with as many questions, each of `question`
    /// tokens with its target.
    #[cfg(feature = "train")]
    pub(crate) fn positions(&self, context: usize, question: usize, questions: usize) -> usize {
        let in_a_row = match self.questions {
            Questions::Separate | Questions::Shared => 1,
            Questions::Joint => questions.max(1),
        };
        context.saturating_add(question.saturating_mul(in_a_row))
    }
}

/// A language model that is given context and query together.
#[derive(Module, Debug)]
pub struct InContext<B: Backend, M> {
    /// The language model.
    pub model: M,
    #[module(skip)]
    config: InContextConfig,
    backend: std::marker::PhantomData<B>,
}

impl<B: Backend, M: CausalLm<B>> InContext<B, M> {
    /// Wraps a model, with the default settings.
    pub fn new(model: M) -> Self {
        InContextConfig::new().init(model)
    }

    /// Next-token logits of `queries` behind their contexts, each query alone; each context has as many in a row.
    ///
    /// # Shapes
    ///
    /// - `queries`: `[batch · r, seq]`
    /// - output: `[batch · r, seq + 1, vocab_size]`; row 0 is predicted from the context alone
    ///
    /// # Errors
    ///
    /// An empty context, a token the model does not have, or more tokens than positions.
    pub fn logits(&self, contexts: &Tokens<B>, queries: &Tokens<B>) -> Result<Tensor<B, 3>, Error> {
        Ok(self.model.logits(self.hidden(contexts, queries)?))
    }

    /// The hidden states that [`InContext::logits`] are made of.
    pub(crate) fn hidden(
        &self,
        contexts: &Tokens<B>,
        queries: &Tokens<B>,
    ) -> Result<Tensor<B, 3>, Error> {
        self.hidden_in_prompts(contexts, queries, false)
    }

    /// [`InContext::logits`] as training has them, by [`InContextConfig::questions`]. With [`Questions::Joint`], row 0 of a
    /// query is predicted from all that stands before it.
    ///
    /// # Errors
    ///
    /// As [`InContext::logits`].
    pub fn training_logits(
        &self,
        contexts: &Tokens<B>,
        queries: &Tokens<B>,
    ) -> Result<Tensor<B, 3>, Error> {
        Ok(self.model.logits(self.training_hidden(contexts, queries)?))
    }

    /// The hidden states that [`InContext::training_logits`] are made of.
    pub(crate) fn training_hidden(
        &self,
        contexts: &Tokens<B>,
        queries: &Tokens<B>,
    ) -> Result<Tensor<B, 3>, Error> {
        match self.config.questions {
            Questions::Shared if lengths(contexts) <= contexts.len().div_ceil(2) => {
                self.reader(contexts)?.hidden_before(queries, usize::MAX)
            }
            Questions::Separate | Questions::Shared => self.hidden(contexts, queries),
            Questions::Joint => self.hidden_in_prompts(contexts, queries, true),
        }
    }

    /// With the model made ready for many passes.
    pub(crate) fn joined(&self) -> Self {
        let mut joined = self.clone();
        joined.model = self.model.joined();
        joined
    }

    /// [`InContext::hidden`] of prompts with one query each, or with all of a context.
    fn hidden_in_prompts(
        &self,
        contexts: &Tokens<B>,
        queries: &Tokens<B>,
        joint: bool,
    ) -> Result<Tensor<B, 3>, Error> {
        self.check(contexts)?;
        let times = share(queries.len(), contexts.len())?;
        let in_a_row = if joint { times } else { 1 };
        let seq = queries.width();
        queries.check_ids(&self.model, "query")?;
        let mut prompts = Vec::with_capacity(queries.len() / in_a_row);
        let mut answers = Vec::with_capacity(queries.len() / in_a_row);
        for first in (0..queries.len()).step_by(in_a_row) {
            let mut prompt = contexts.row(first / times).to_vec();
            let mut rows = Vec::with_capacity(in_a_row * (seq + 1));
            for query in first..first + in_a_row {
                rows.extend(prompt.len() - 1..prompt.len() + seq);
                prompt.extend(queries.row(query));
            }
            prompts.push(prompt);
            answers.push(rows);
        }
        let prompts = Tokens::new(&prompts, &contexts.device())?;
        check_positions(&self.model, prompts.width(), 0, "prompt")?;
        let last = prompts.width() - 1;
        let first = answers.iter().flatten().min().copied().unwrap_or(last);
        // A shorter query's last rows are read by nothing: any will do.
        for row in answers.iter_mut().flatten() {
            *row = (*row).min(last) - first;
        }
        let embeds = self.model.embed(prompts.ids());
        let hidden = self.model.last_hidden(embeds, last + 1 - first, None);
        let hidden = pick(hidden, &answers);
        let d_model = hidden.dims()[2];
        Ok(hidden.reshape([queries.len(), seq + 1, d_model]))
    }

    /// Continues each of the `prompts` `[batch · r]` after its context.
    ///
    /// # Errors
    ///
    /// As [`InContext::logits`], and as
    /// [`generate::continue_prompts`](crate::model::generate::continue_prompts).
    pub fn generate(
        &self,
        contexts: &Tokens<B>,
        prompts: &[Vec<u32>],
        config: &GenerateConfig,
    ) -> Result<Vec<Vec<u32>>, Error> {
        self.check(contexts)?;
        let times = share(prompts.len(), contexts.len())?;
        // Not by a reader, which would keep the caches of all contexts at once.
        let prompts = prompts.iter().enumerate();
        let prompts: Vec<Vec<u32>> = prompts
            .map(|(row, prompt)| [contexts.row(row / times), prompt].concat())
            .collect();
        continue_prompts(&self.model, &prompts, config)
    }

    /// Reads contexts once, for any number of queries; those of one length together.
    ///
    /// # Errors
    ///
    /// As [`InContext::logits`].
    pub fn reader(&self, contexts: &Tokens<B>) -> Result<Reader<'_, B, M>, Error> {
        self.check(contexts)?;
        let mut groups = BTreeMap::<usize, Vec<usize>>::new();
        for (sample, length) in contexts.lengths().enumerate() {
            groups.entry(length).or_default().push(sample);
        }
        let read = |length, ids: Tensor<B, 2, _>| {
            Reader::new(&self.model, self.model.embed(ids.narrow(1, 0, length)))
        };
        if let (1, Some(length)) = (groups.len(), groups.keys().next()) {
            return read(*length, contexts.ids());
        }
        let parts = groups.into_iter().map(|(length, samples)| {
            let reader = read(length, select(contexts.ids(), &samples))?;
            Ok((samples, reader))
        });
        Ok(Reader::of_parts(
            &self.model,
            parts.collect::<Result<_, Error>>()?,
        ))
    }

    /// The settings it was made with.
    pub fn config(&self) -> &InContextConfig {
        &self.config
    }

    fn check(&self, contexts: &Tokens<B>) -> Result<(), Error> {
        check_contexts(contexts)?;
        contexts.check(&self.model, 0, "context")
    }
}

/// How many different lengths there are.
fn lengths<B: Backend>(contexts: &Tokens<B>) -> usize {
    contexts.lengths().collect::<BTreeSet<_>>().len()
}
