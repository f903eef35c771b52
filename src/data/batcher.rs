use burn::data::dataloader::batcher::Batcher;
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{Int, Tensor, TensorData};

use super::{CharTokenizer, Example, Question};
use crate::error::Error;

/// Samples side by side: `batch` contexts, and `r` questions to each.
#[derive(Clone, Debug)]
pub struct Batch<B: Backend> {
    /// `[batch, context_len]`, padded on the right.
    pub contexts: Tensor<B, 2, Int>,
    /// Query and target together, a context's questions in a row: `[batch · r, seq]`.
    pub queries: Tensor<B, 2, Int>,
    /// The tokens to predict, −1 where there is none: `[batch · r, seq]`.
    pub labels: Tensor<B, 2, Int>,
    /// The labels that the metrics count, −1 elsewhere, on the host: `batch · r` rows of `seq`.
    pub scored: Vec<Vec<i64>>,
}

impl<B: Backend> Batch<B> {
    /// Number of contexts.
    pub fn len(&self) -> usize {
        self.contexts.dims()[0]
    }

    /// The same in parts of at most `contexts` contexts, each with its questions.
    pub fn split(self, contexts: usize) -> Vec<Self> {
        let (batch, contexts) = (self.len(), contexts.max(1));
        if batch <= contexts {
            return vec![self];
        }
        let questions = self.queries.dims()[0] / batch;
        let part = |start: usize| {
            let count = contexts.min(batch - start);
            let rows = start * questions..(start + count) * questions;
            let of = |x: &Tensor<B, 2, Int>| x.clone().narrow(0, rows.start, rows.len());
            Self {
                contexts: self.contexts.clone().narrow(0, start, count),
                queries: of(&self.queries),
                labels: of(&self.labels),
                scored: self.scored[rows.clone()].to_vec(),
            }
        };
        (0..batch).step_by(contexts).map(part).collect()
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<B: AutodiffBackend> Batch<B> {
    /// The same without the tape.
    pub fn valid(self) -> Batch<B::InnerBackend> {
        Batch {
            contexts: self.contexts.inner(),
            queries: self.queries.inner(),
            labels: self.labels.inner(),
            scored: self.scored,
        }
    }
}

/// Turns [`Example`]s into a [`Batch`].
#[derive(Clone, Debug)]
pub struct ExampleBatcher {
    tokenizer: CharTokenizer,
}

impl ExampleBatcher {
    /// With the tokenizer of the examples' task.
    pub fn new(tokenizer: CharTokenizer) -> Self {
        Self { tokenizer }
    }

    /// # Errors
    ///
    /// If a text has characters outside the alphabet, or the examples have different numbers of questions.
    pub fn try_batch<B: Backend>(
        &self,
        examples: &[Example],
        device: &B::Device,
    ) -> Result<Batch<B>, Error> {
        let questions = examples.first().map_or(0, |e| e.questions.len());
        if examples.iter().any(|e| e.questions.len() != questions) {
            return Err(Error::Input(
                "the contexts of a batch must have the same number of questions".into(),
            ));
        }
        let mut contexts = Vec::new();
        let (mut queries, mut labels, mut scored) = (Vec::new(), Vec::new(), Vec::new());
        for example in examples {
            contexts.push(self.encode(&example.context)?);
            for Question { query, target } in &example.questions {
                let query = self.encode(query)?;
                let target = self.encode(target)?;
                let blank = vec![-1; query.len()];
                let counted = target
                    .iter()
                    .map(|id| match self.tokenizer.is_mark(*id as u32) {
                        true => -1,
                        false => *id,
                    });
                scored.push(blank.iter().copied().chain(counted).collect());
                labels.push([blank, target.clone()].concat());
                queries.push([query, target].concat());
            }
        }
        let pad = i64::from(self.tokenizer.pad());
        let width = queries.iter().map(Vec::len).max().unwrap_or(0);
        for row in &mut scored {
            let row: &mut Vec<i64> = row;
            row.resize(width, -1);
        }
        Ok(Batch {
            contexts: rows(contexts, pad, device),
            queries: rows(queries, pad, device),
            labels: rows(labels, -1, device),
            scored,
        })
    }

    fn encode(&self, text: &str) -> Result<Vec<i64>, Error> {
        let ids = self.tokenizer.encode(text)?;
        Ok(ids.into_iter().map(i64::from).collect())
    }
}

impl<B: Backend> Batcher<B, Example, Result<Batch<B>, Error>> for ExampleBatcher {
    fn batch(&self, examples: Vec<Example>, device: &B::Device) -> Result<Batch<B>, Error> {
        self.try_batch(&examples, device)
    }
}

/// `[rows, longest row]`, shorter rows filled on the right.
fn rows<B: Backend>(rows: Vec<Vec<i64>>, fill: i64, device: &B::Device) -> Tensor<B, 2, Int> {
    let width = rows.iter().map(Vec::len).max().unwrap_or(0);
    let shape = [rows.len(), width];
    let filled = rows.into_iter().flat_map(|mut row| {
        row.resize(width, fill);
        row
    });
    Tensor::from_data(TensorData::new(filled.collect(), shape), device)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::KvConfig;

    type B = burn_flex::Flex;

    fn example(context: &str, query: &str, target: &str) -> Example {
        Example {
            context: context.into(),
            questions: vec![Question {
                query: query.into(),
                target: target.into(),
            }],
        }
    }

    #[test]
    fn queries_and_labels_line_up_and_pads_count_for_nothing() {
        let batcher = ExampleBatcher::new(KvConfig::tokenizer().unwrap());
        let examples = [example("!a:b!|", "?!a:", "b!|"), example("a", "b", "c")];
        let batch: Batch<B> = batcher.try_batch(&examples, &Default::default()).unwrap();
        let ids = |x: &Tensor<B, 2, Int>| x.to_data().iter::<i64>().collect::<Vec<_>>();
        assert_eq!(
            ids(&batch.contexts),
            [66, 4, 68, 5, 66, 69, 4, 0, 0, 0, 0, 0]
        );
        assert_eq!(
            ids(&batch.queries),
            [67, 66, 4, 68, 5, 66, 69, 5, 6, 0, 0, 0, 0, 0]
        );
        assert_eq!(
            ids(&batch.labels),
            [-1, -1, -1, -1, 5, 66, 69, -1, 6, -1, -1, -1, -1, -1]
        );
        assert_eq!(batch.scored[0], [-1, -1, -1, -1, 5, -1, -1]);
        assert_eq!(batch.scored[1], [-1, 6, -1, -1, -1, -1, -1]);
    }

    #[test]
    fn a_bad_character_is_an_error_not_a_token() {
        let batcher = ExampleBatcher::new(KvConfig::tokenizer().unwrap());
        let batch = batcher.try_batch::<B>(&[example("a b", "?", "!")], &Default::default());
        assert!(batch.unwrap_err().to_string().contains("' '"));
    }
}
