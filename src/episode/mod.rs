//! What a method is trained and evaluated on: contexts, queries about them, and the tokens to predict.
//!
//! An [`Episode`] is built and checked once, on the host, from rows of token ids. Everything below takes it as
//! one value: what losses are means over is known without asking the device, and no ids are ever read back.
//!
//! ```
//! # #[cfg(feature = "flex")] {
//! use gradmem::episode::{Episode, Tokens};
//! # fn main() -> Result<(), gradmem::Error> {
//! type B = burn_flex::Flex;
//!
//! let device = Default::default();
//! let contexts = Tokens::<B>::new(&[vec![9, 4, 7, 5], vec![8, 6]], &device)?; // of different lengths
//! let answers = [(vec![9, 4], vec![7]), (vec![8], vec![6])]; // query, target
//! let episode = Episode::from_answers(contexts, &answers)?;
//! assert_eq!(episode.queries().row(0), [9, 4, 7]); // READ predicts the target behind the query
//! assert_eq!(episode.totals().labels, 2);
//! # Ok(()) }
//! # main().unwrap();
//! # }
//! ```

mod labels;

use std::ops::RangeInclusive;

use burn::tensor::Tensor;
use burn::tensor::backend::{AutodiffBackend, Backend};
use gradmem_kernels::Tape;

pub use labels::{Labels, Predicted};

pub use crate::model::Tokens;

use crate::error::Error;
use crate::model::CausalLm;
use crate::model::rows::share;
use crate::support::mix;

/// A batch of contexts, `r` queries to each, and what is to be predicted; or a part of such a batch.
#[derive(Clone, Debug)]
pub struct Episode<B: Backend> {
    contexts: Tokens<B>,
    queries: Tokens<B>,
    labels: Labels<B>,
    whole: Totals,
    /// A random number of the batch: a hash of its contexts, in whichever order they are.
    drawn: u64,
    /// The outer loop's steps before this batch.
    step: usize,
}

/// What the losses of an episode are means over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Totals {
    /// Contexts: GradMem's WRITE loss in the outer loss is a mean over these.
    pub contexts: usize,
    /// Their tokens: RMT's reconstruction loss is a mean over these.
    pub context_tokens: usize,
    /// Labels: the READ loss.
    pub labels: usize,
    /// Labels behind the first column: the READ loss where no query token stands before a row's first
    /// token, as in RMT.
    pub later_labels: usize,
}

impl<B: Backend> Episode<B> {
    /// Contexts, queries and labels; each context has `queries.len() / contexts.len()` queries in a row.
    ///
    /// # Shapes
    ///
    /// - `queries`: query and target together, a row for each question
    /// - `labels`: a row to each query: the token to predict at each of its places, not shifted; negative, or nothing
    ///   at the end of a row, where there is none
    ///
    /// # Errors
    ///
    /// No context, an empty one, queries that cannot be shared evenly by the contexts, no query tokens, or
    /// labels that do not line up with the queries.
    pub fn new<R: AsRef<[i64]>>(
        contexts: Tokens<B>,
        queries: Tokens<B>,
        labels: &[R],
    ) -> Result<Self, Error> {
        check_contexts(&contexts)?;
        share(queries.len(), contexts.len())?;
        let width = queries.width();
        if width == 0 {
            return Err(Error::Input(
                "the queries have no tokens to be labelled".into(),
            ));
        }
        if labels.len() != queries.len() {
            return Err(Error::Input(format!(
                "there are {} queries, but {} rows of labels",
                queries.len(),
                labels.len()
            )));
        }
        for (row, (labels, query)) in labels.iter().zip(queries.lengths()).enumerate() {
            if let Some(column) = labels.as_ref().iter().rposition(|id| *id >= 0)
                && column >= query
            {
                return Err(Error::Input(format!(
                    "row {row} has a label at {column}, but its query has {query} tokens: there is nothing to predict it from"
                )));
            }
        }
        let labels = Labels::new(labels, width, &queries.device())?;
        let whole = totals(&contexts, &labels);
        let number = |row| {
            let digest = contexts.hash(row);
            let digits = digest[..8].iter();
            digits.fold(0, |sum, byte| sum << 8 | u64::from(*byte))
        };
        let drawn = (0..contexts.len()).map(number).fold(0, u64::wrapping_add);
        Ok(Self {
            contexts,
            queries,
            labels,
            whole,
            drawn,
            step: 0,
        })
    }

    /// Contexts and, for each question, its query and its target: READ is given both, and every token of the
    /// target is a label.
    ///
    /// # Errors
    ///
    /// As [`Episode::new`] and [`Tokens::new`].
    pub fn from_answers<Q: AsRef<[u32]>, T: AsRef<[u32]>>(
        contexts: Tokens<B>,
        answers: &[(Q, T)],
    ) -> Result<Self, Error> {
        let rows = answers.iter();
        let rows = rows.map(|(query, target)| [query.as_ref(), target.as_ref()].concat());
        let labels = answers.iter().map(|(query, target)| {
            let none = std::iter::repeat_n(-1, query.as_ref().len());
            let target = target.as_ref().iter().map(|id| i64::from(*id));
            none.chain(target).collect::<Vec<_>>()
        });
        let (rows, labels): (Vec<_>, Vec<_>) = (rows.collect(), labels.collect());
        let queries = Tokens::new(&rows, &contexts.device())?;
        Self::new(contexts, queries, &labels)
    }

    /// The contexts.
    pub fn contexts(&self) -> &Tokens<B> {
        &self.contexts
    }

    /// Query and target together, a context's in a row.
    pub fn queries(&self) -> &Tokens<B> {
        &self.queries
    }

    /// What is to be predicted.
    pub fn labels(&self) -> &Labels<B> {
        &self.labels
    }

    /// Number of contexts.
    pub fn len(&self) -> usize {
        self.contexts.len()
    }

    /// Whether there are none, which [`Episode::new`] refuses.
    pub fn is_empty(&self) -> bool {
        self.contexts.is_empty()
    }

    /// `r`: queries to each context.
    pub fn queries_per_context(&self) -> usize {
        self.queries.len() / self.len()
    }

    /// The device it is on.
    pub fn device(&self) -> B::Device {
        self.contexts.device()
    }

    /// What this episode's losses are means over.
    pub fn totals(&self) -> Totals {
        totals(&self.contexts, &self.labels)
    }

    /// The same of the batch that this is a part of; its own if it is no part.
    pub fn whole(&self) -> Totals {
        self.whole
    }

    /// The same as the batch of the outer loop that has so many steps before it: what falls with the steps, as GradMem's
    /// `inner_loss_steps` says, looks at this number. 0 unless it is given: this crate's trainings give it, a loop of one's own must.
    #[must_use]
    pub fn at_step(mut self, step: usize) -> Self {
        self.step = step;
        self
    }

    /// The outer loop's steps before this batch.
    pub fn step(&self) -> usize {
        self.step
    }

    /// The same with smoothed labels (arXiv 1512.00567, section 7): the READ loss is `1 − ε` of what it is, and `ε` of the
    /// mean of `−log p` over the whole vocabulary. For training: scores of predictions do not change.
    ///
    /// # Panics
    ///
    /// If ε is below 0 or not below 1.
    #[must_use]
    pub fn with_label_smoothing(mut self, epsilon: f64) -> Self {
        let fits = (0.0..1.0).contains(&epsilon);
        assert!(
            fits,
            "label smoothing of {epsilon}: it must be at least 0 and below 1"
        );
        self.labels.smoothing = epsilon;
        self
    }

    /// One of these numbers, drawn by the batch and the step: the batch's parts, and the same step of a resumed run, have the same.
    pub(crate) fn draw(&self, from: RangeInclusive<usize>) -> usize {
        let count = (from.end() - from.start()) as u64 + 1;
        let drawn = mix(self.drawn ^ mix(self.step as u64));
        from.start() + (drawn % count) as usize
    }

    /// This batch in parts of at most `contexts` contexts, each with its queries, and only as wide as the longest of its contexts and of
    /// its queries. `outer_gradient` and `Method::gradient` weigh a part's losses by what it holds of the whole, so that the parts'
    /// gradients add up to the whole's; the loss of `outer` is the part's own mean.
    pub fn split(self, contexts: usize) -> Vec<Self> {
        let (batch, contexts) = (self.len(), contexts.max(1));
        let queries = self.queries_per_context();
        let part = |start: usize| {
            let end = (start + contexts).min(batch);
            let rows = start * queries..end * queries;
            let queries = self.queries.slice(rows.clone()).trimmed();
            let labels = self.labels.slice(rows, queries.width());
            self.of(self.contexts.slice(start..end).trimmed(), queries, labels)
        };
        (0..batch).step_by(contexts).map(part).collect()
    }

    /// The same on one more tape.
    pub(crate) fn lift(&self) -> Episode<Tape<B>> {
        self.of(
            self.contexts.lift(),
            self.queries.lift(),
            self.labels.lift(),
        )
    }

    /// An episode of these tokens and labels at this one's place in the whole.
    fn of<C: Backend>(
        &self,
        contexts: Tokens<C>,
        queries: Tokens<C>,
        labels: Labels<C>,
    ) -> Episode<C> {
        Episode {
            contexts,
            queries,
            labels,
            whole: self.whole,
            drawn: self.drawn,
            step: self.step,
        }
    }

    /// The READ loss of logits `[batch · r, seq + 1, vocab_size]` as READ gives them: the mean of `−log p` over
    /// all labelled tokens, `[1]`; zero without a label. Where READ predicts no first token, none is counted.
    ///
    /// # Panics
    ///
    /// If the logits are of other queries.
    pub fn read_loss(&self, logits: Tensor<B, 3>) -> Tensor<B, 1> {
        self.labels.mean_loss(logits)
    }

    /// The READ loss, `[1]`, and the most probable tokens at the labelled places, of which alone logits are computed: what a
    /// [`Method`](crate::method::Method) makes its [`Answers`](crate::baselines::Answers) of.
    ///
    /// # Shapes
    ///
    /// - `hidden`: `[batch · r, seq + 1, d_model]`, the hidden states of queries of `seq` tokens: row `i` predicts token `i`, the last one
    ///   is left out. Or the last of these alone, at least one: `[batch · r, seq, d_model]` where nothing predicts a row's first token.
    ///   Labels of tokens that nothing predicts are not counted.
    ///
    /// # Panics
    ///
    /// If the hidden states are of other queries.
    pub fn answered<M: CausalLm<B>>(
        &self,
        model: &M,
        hidden: Tensor<B, 3>,
    ) -> (Tensor<B, 1>, Predicted<B>) {
        self.labels.answered(model, hidden)
    }

    /// What a mean over `count` of this part, `[1]`, adds to the same mean over the whole batch.
    pub(crate) fn share(
        &self,
        mean: Tensor<B, 1>,
        count: impl Fn(Totals) -> usize,
    ) -> Tensor<B, 1> {
        match (count(self.totals()), count(self.whole)) {
            (part, whole) if part == whole => mean,
            (part, whole) => mean.mul_scalar(part as f64 / whole.max(1) as f64),
        }
    }

    /// Fails on queries or labels that do not fit `model` behind `before` vectors. Host arithmetic only.
    pub(crate) fn check_questions<M: CausalLm<B>>(
        &self,
        model: &M,
        before: usize,
    ) -> Result<(), Error> {
        self.queries.check(model, before, "query")?;
        self.labels.check(model)
    }
}

impl<B: AutodiffBackend> Episode<B> {
    /// The same without the tape.
    pub fn inner(&self) -> Episode<B::InnerBackend> {
        self.of(
            self.contexts.inner(),
            self.queries.inner(),
            self.labels.inner(),
        )
    }
}

/// Fails if there is no context, or one of them is empty.
pub(crate) fn check_contexts<B: Backend>(contexts: &Tokens<B>) -> Result<(), Error> {
    if contexts.is_empty() {
        return Err(Error::Input("there is no context".into()));
    }
    match contexts.lengths().position(|length| length == 0) {
        None => Ok(()),
        Some(sample) => Err(Error::Input(format!(
            "context {sample} of {} is empty: there is nothing to write",
            contexts.len()
        ))),
    }
}

fn totals<B: Backend>(contexts: &Tokens<B>, labels: &Labels<B>) -> Totals {
    Totals {
        contexts: contexts.len(),
        context_tokens: contexts.count(),
        labels: labels.count_from(0),
        later_labels: labels.count_from(1),
    }
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;

    type B = burn_flex::Flex;

    fn tokens(rows: &[&[u32]]) -> Tokens<B> {
        Tokens::new(rows, &Default::default()).unwrap()
    }

    fn problem(contexts: &[&[u32]], queries: &[&[u32]], labels: &[&[i64]]) -> String {
        let episode = Episode::new(tokens(contexts), tokens(queries), labels);
        episode.unwrap_err().to_string()
    }

    #[test]
    fn totals_are_counted_on_the_host_and_parts_know_the_whole() {
        let contexts = tokens(&[&[4, 5], &[6], &[7, 8, 9]]);
        let queries = tokens(&[&[1, 2], &[3], &[4, 4], &[5, 5], &[6, 6], &[7]]);
        let labels = [&[-1, 2][..], &[3], &[-100, 4], &[-1], &[6, 6], &[]];
        let episode = Episode::new(contexts, queries, &labels).unwrap();
        let whole = Totals {
            contexts: 3,
            context_tokens: 6,
            labels: 5,
            later_labels: 3,
        };
        assert_eq!((episode.totals(), episode.whole()), (whole, whole));
        let parts = episode.split(2);
        assert_eq!(parts.iter().map(Episode::len).collect::<Vec<_>>(), [2, 1]);
        assert!(parts.iter().all(|part| part.whole() == whole));
        let labels: usize = parts.iter().map(|part| part.totals().labels).sum();
        assert_eq!(labels, whole.labels);
        assert_eq!(parts[1].queries().row(0), [6, 6]);
        let widths = parts.iter().map(|part| part.contexts().width());
        assert_eq!(widths.collect::<Vec<_>>(), [2, 3]);
        let [of_one, _] = &episode_of_short_queries().split(1)[..] else {
            panic!("two contexts are two parts");
        };
        assert_eq!(of_one.queries().width(), 1);
        assert_eq!(of_one.labels().rows().collect::<Vec<_>>(), [[3]]);
    }

    fn episode_of_short_queries() -> Episode<B> {
        let labels = [&[3][..], &[-1, 2]];
        Episode::new(tokens(&[&[4], &[5]]), tokens(&[&[1], &[2, 2]]), &labels).unwrap()
    }

    #[test]
    fn what_does_not_line_up_is_named() {
        assert!(problem(&[], &[], &[]).contains("no context"));
        let empty = problem(&[&[4], &[]], &[&[1], &[1]], &[&[1], &[1]]);
        assert!(empty.contains("context 1 of 2 is empty"));
        let uneven = problem(&[&[4], &[5]], &[&[1]], &[&[1]]);
        assert!(uneven.contains("1 queries cannot be shared evenly"));
        assert!(problem(&[&[4]], &[&[]], &[&[]]).contains("no tokens to be labelled"));
        assert!(problem(&[&[4]], &[&[1]], &[]).contains("1 queries, but 0 rows of labels"));
        assert!(problem(&[&[4]], &[&[1]], &[&[1, 2]]).contains("row 0 has a label at 1"));
        // What is padded to the same width as the queries were.
        let padded = Episode::new(tokens(&[&[4]]), tokens(&[&[1]]), &[&[1, -100, -100]]).unwrap();
        assert_eq!(padded.labels().rows().collect::<Vec<_>>(), [[1]]);
        let beyond = problem(&[&[4]], &[&[1, 2, 3], &[1]], &[&[1, 2, 3], &[-1, 2]]);
        assert!(beyond.contains("row 1 has a label at 1, but its query has 1 tokens"));
        let large = problem(&[&[4]], &[&[1]], &[&[1 << 40]]);
        assert!(large.contains("1099511627776"));
    }
}
