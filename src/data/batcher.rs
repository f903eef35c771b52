use std::sync::Arc;

use burn::data::dataloader::batcher::Batcher;
use burn::tensor::backend::Backend;

use super::{Asked, Sample, TextTokenizer};
use crate::episode::{Episode, Tokens};
use crate::error::Error;

/// An [`Episode`] of samples side by side, and what its answers are compared with.
#[derive(Clone, Debug)]
pub struct Batch<B: Backend> {
    /// Contexts, queries (query and target together) and labels.
    pub episode: Episode<B>,
    /// The labels that the metrics count, negative elsewhere, on the host: a row to each query, as wide as the
    /// queries.
    pub scored: Vec<Vec<i64>>,
    /// The questions themselves, where they are known: one to each query, or none. Behind the questions of a context that has fewer
    /// than others are some that ask nothing, which [`Batch::questions`] leaves out.
    pub asked: Vec<Asked>,
}

impl<B: Backend> Batch<B> {
    /// Number of contexts.
    pub fn len(&self) -> usize {
        self.episode.len()
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.episode.is_empty()
    }

    /// The questions that ask something, each with its row among the queries and that of its context.
    pub fn questions(&self) -> impl Iterator<Item = (usize, usize, &Asked)> {
        let each = (self.asked.len() / self.len().max(1)).max(1);
        let asked = self.asked.iter().enumerate();
        let asked = asked.filter(|(_, asked)| !asked.is_nothing());
        asked.map(move |(row, asked)| (row, row / each, asked))
    }

    /// The same as the batch behind so many steps of a training, with labels smoothed by ε if that is above 0.
    #[cfg(feature = "train")]
    pub(crate) fn in_training(mut self, step: usize, smoothing: f64) -> Self {
        self.episode = self.episode.at_step(step);
        if smoothing > 0.0 {
            self.episode = self.episode.with_label_smoothing(smoothing);
        }
        self
    }

    /// The same in parts of at most `contexts` contexts, each with its queries.
    pub fn split(self, contexts: usize) -> Vec<Self> {
        let mut start = 0;
        let part = |episode: Episode<B>| {
            let rows = start..start + episode.queries().len();
            start = rows.end;
            Self {
                episode,
                scored: self.scored[rows.clone()].to_vec(),
                asked: self.asked.get(rows).unwrap_or_default().to_vec(),
            }
        };
        let parts = self.episode.split(contexts).into_iter();
        parts.map(part).collect()
    }
}

impl<B: Backend> From<Episode<B>> for Batch<B> {
    /// Whose metrics count all labels.
    fn from(episode: Episode<B>) -> Self {
        Self {
            scored: episode.labels().rows().map(<[i64]>::to_vec).collect(),
            asked: Vec::new(),
            episode,
        }
    }
}

/// A label that no prediction meets: who answers that the answer is not in the vocabulary is not right.
const NEVER: i64 = i64::MAX;

/// Lays [`Sample`]s side by side as a [`Batch`].
#[derive(Clone, Debug)]
pub struct ExampleBatcher {
    tokenizer: Arc<TextTokenizer>,
    by_length: bool,
}

impl ExampleBatcher {
    /// With the tokenizer that the samples were made with.
    pub fn new(tokenizer: Arc<TextTokenizer>) -> Self {
        Self {
            tokenizer,
            by_length: false,
        }
    }

    /// Shorter contexts before longer ones: of a batch that is computed in parts, each is only as wide as its longest one.
    #[must_use]
    pub fn by_length(self) -> Self {
        Self {
            by_length: true,
            ..self
        }
    }

    /// # Errors
    ///
    /// If a sample could not be made, or has no questions.
    pub fn try_batch<B: Backend>(
        &self,
        samples: Vec<Result<Sample, Error>>,
        device: &B::Device,
    ) -> Result<Batch<B>, Error> {
        let mut samples = samples.into_iter().collect::<Result<Vec<_>, _>>()?;
        if self.by_length {
            samples.sort_by_key(|sample| sample.context.len());
        }
        let questions = samples.iter().map(|sample| sample.asked.len());
        let most = questions.max().unwrap_or(0);
        let mut contexts = Vec::new();
        let mut asked = Vec::new();
        for sample in samples {
            let Some(nothing) = sample.asked.first().map(Asked::nothing) else {
                return Err(Error::Input(
                    "a context of the batch has no questions".into(),
                ));
            };
            contexts.push(sample.context);
            asked.extend(sample.asked);
            asked.resize(contexts.len() * most, nothing);
        }
        let queries: Vec<_> = asked.iter().map(|asked: &Asked| &asked.tokens).collect();
        let queries = Tokens::new(&queries, device)?;
        let width = queries.width();
        let of = |asked: &Asked, keep: &dyn Fn(usize, u32) -> bool| -> Vec<i64> {
            let token = |(at, token): (usize, &u32)| match keep(at, *token) {
                true => i64::from(*token),
                false => -1,
            };
            asked.tokens.iter().enumerate().map(token).collect()
        };
        let labels = asked
            .iter()
            .map(|asked| of(asked, &|at, _| at >= asked.target));
        let labels: Vec<_> = labels.collect();
        let scored = asked.iter().map(|asked| {
            let mut row = of(asked, &|at, token| {
                at >= asked.target && !self.tokenizer.is_mark(token)
            });
            for label in &mut row {
                let known = u32::try_from(*label).is_ok_and(|id| !self.tokenizer.is_unknown(id));
                if *label >= 0 && !known {
                    *label = NEVER;
                }
            }
            row.resize(width, -1);
            row
        });
        let scored = scored.collect();
        let contexts = Tokens::new(&contexts, device)?;
        Ok(Batch {
            episode: Episode::new(contexts, queries, &labels)?,
            scored,
            asked,
        })
    }
}

impl<B: Backend> Batcher<B, Result<Sample, Error>, Result<Batch<B>, Error>> for ExampleBatcher {
    fn batch(
        &self,
        samples: Vec<Result<Sample, Error>>,
        device: &B::Device,
    ) -> Result<Batch<B>, Error> {
        self.try_batch(samples, device)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{KvConfig, Question, TokensConfig};

    type B = burn_flex::Flex;

    fn sample(tokenizer: &TextTokenizer, texts: [&str; 3]) -> Result<Sample, Error> {
        let [context, query, target] = texts;
        let question = Question {
            query: query.into(),
            target: target.into(),
            answers: Vec::new(),
        };
        Ok(Sample {
            context: tokenizer.encode(context)?,
            asked: vec![tokenizer.encode_question(&question)?],
            cut: 0,
        })
    }

    #[test]
    fn queries_and_labels_line_up_and_pads_count_for_nothing() {
        let tokenizer = Arc::new(KvConfig::default().tokenizer().unwrap());
        let batcher = ExampleBatcher::new(tokenizer.clone());
        let samples = [["!a:b!|", "?!a:", "b!|"], ["a", "b", "c"]];
        let samples = samples.map(|texts| sample(&tokenizer, texts));
        let batch: Batch<B> = batcher
            .try_batch(samples.into(), &Default::default())
            .unwrap();
        let ids = |x: &Tokens<B>| x.ids().to_data().iter::<i64>().collect::<Vec<_>>();
        assert_eq!(
            ids(batch.episode.contexts()),
            [66, 4, 68, 5, 66, 69, 4, 0, 0, 0, 0, 0]
        );
        assert_eq!(
            ids(batch.episode.queries()),
            [67, 66, 4, 68, 5, 66, 69, 5, 6, 0, 0, 0, 0, 0]
        );
        let labels: Vec<_> = batch.episode.labels().rows().collect();
        assert_eq!(
            labels,
            [[-1, -1, -1, -1, 5, 66, 69], [-1, 6, -1, -1, -1, -1, -1]]
        );
        assert_eq!(batch.scored[0], [-1, -1, -1, -1, 5, -1, -1]);
        assert_eq!(batch.scored[1], [-1, 6, -1, -1, -1, -1, -1]);
        assert_eq!(batch.asked[0].answers, ["b"]);
    }

    #[test]
    fn a_context_may_have_fewer_questions_than_others() {
        let tokenizer = Arc::new(KvConfig::default().tokenizer().unwrap());
        let batcher = ExampleBatcher::new(tokenizer.clone());
        let one = sample(&tokenizer, ["a", "?", "x"]);
        let mut three = sample(&tokenizer, ["b", "?", "y"]).unwrap();
        three.asked = vec![three.asked[0].clone(); 3];
        let batch: Batch<B> = batcher
            .try_batch(vec![one, Ok(three)], &Default::default())
            .unwrap();
        let rows = batch.questions().map(|(row, context, _)| (row, context));
        assert_eq!(rows.collect::<Vec<_>>(), [(0, 0), (3, 1), (4, 1), (5, 1)]);
        assert_eq!(batch.episode.queries_per_context(), 3);
        assert_eq!(batch.episode.totals().labels, 4);
        assert!(batch.scored[1..3].iter().flatten().all(|label| *label < 0));
    }

    #[test]
    fn contexts_can_be_in_the_order_of_their_lengths() {
        let tokenizer = Arc::new(KvConfig::default().tokenizer().unwrap());
        let batcher = ExampleBatcher::new(tokenizer.clone()).by_length();
        let samples = [["aaa", "?", "x"], ["b", "?", "y"], ["cc", "?", "z"]];
        let samples = samples.map(|texts| sample(&tokenizer, texts));
        let batch: Batch<B> = batcher
            .try_batch(samples.into(), &Default::default())
            .unwrap();
        let lengths: Vec<usize> = batch.episode.contexts().lengths().collect();
        assert_eq!(lengths, [1, 2, 3]);
        let answers = batch.asked.iter().map(|asked| &*asked.answers[0]);
        assert_eq!(answers.collect::<String>(), "yzx");
    }

    #[test]
    fn what_is_not_in_the_vocabulary_is_never_right() {
        let config = TokensConfig::default();
        let tokenizer = config.make(|| Ok(["Where is Ann".to_string()].into_iter()));
        let tokenizer = Arc::new(tokenizer.unwrap());
        let samples = vec![sample(&tokenizer, ["Ann is", "Where ", "Ann Bob"])];
        let batcher = ExampleBatcher::new(tokenizer.clone());
        let batch: Batch<B> = batcher.try_batch(samples, &Default::default()).unwrap();
        let ann = i64::from(tokenizer.encode("Ann").unwrap()[0]);
        assert_eq!(batch.scored[0], [-1, ann, NEVER, -1]);
    }

    #[test]
    fn a_sample_that_could_not_be_made_is_the_batchs_error() {
        let tokenizer = Arc::new(KvConfig::default().tokenizer().unwrap());
        let batcher = ExampleBatcher::new(tokenizer.clone());
        let samples = vec![sample(&tokenizer, ["a b", "?", "!"])];
        let batch = batcher.try_batch::<B>(samples, &Default::default());
        assert!(batch.unwrap_err().to_string().contains("' '"));
    }
}
