//! From answers to scores: what is on the device is collected, read in one transfer, and added up on the host.

use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor, TensorData};

use super::fault::Fault;
use super::metrics::{Measure, Scores};
use crate::data::{Batch, Direction};
use crate::episode::Predicted;
use crate::memory::{Memory, Reconstruction};
use crate::method::Answers;
use crate::support::readback::{Readback, Slot, Values};

/// What rounding makes of the losses of a step that is taken twice, with room to spare.
const MOST_DRIFT: f64 = 1e-3;

/// Which of each query's scored tokens are predicted, on the device.
pub(super) struct UnreadHits<B: Backend> {
    /// 1 where the prediction is the label, of all labels that are predicted.
    right: Option<Tensor<B, 1>>,
    queries: Vec<Scored>,
}

/// What is scored of a query.
struct Scored {
    /// Where its scored tokens are among all labels that are predicted; nowhere if nothing predicts one.
    places: Vec<Option<usize>>,
    direction: Option<Direction>,
}

impl<B: Backend> UnreadHits<B> {
    /// Of what was predicted of a batch's labels, which those that are scored are some of.
    pub fn of<C: Backend>(predicted: Predicted<B>, batch: &Batch<C>) -> Self {
        let mut right = Vec::new();
        let labels = batch.episode.labels().rows();
        let queries = labels.zip(&batch.scored).enumerate();
        let queries = queries.map(|(row, (labels, scored))| {
            let mut places = Vec::new();
            for (column, (label, scored)) in labels.iter().zip(scored).enumerate() {
                // As in the loss, what is not predicted does not count.
                let is_predicted = *label >= 0 && column >= predicted.first;
                if *scored >= 0 && column >= predicted.first {
                    places.push(is_predicted.then_some(right.len()));
                }
                if is_predicted {
                    // No prediction is negative, so neither is what cannot be met.
                    right.push(i32::try_from(*scored).map_or(-1, i64::from));
                }
            }
            Scored {
                places,
                direction: batch.asked.get(row).and_then(|asked| asked.direction),
            }
        });
        let queries = queries.collect();
        let right = predicted.tokens.map(|tokens| {
            let ids = TensorData::new(right, tokens.dims());
            let ids = Tensor::<B, 1, Int>::from_data(ids, &tokens.device());
            tokens.equal(ids).float()
        });
        Self { right, queries }
    }

    /// Waits for the next transfer.
    pub fn pend(self, readback: &mut Readback<B>) -> PendingHits {
        PendingHits {
            right: self.right.map(|right| readback.push(right)),
            queries: self.queries,
        }
    }
}

/// [`UnreadHits`] whose transfer is due.
pub(super) struct PendingHits {
    right: Option<Slot>,
    queries: Vec<Scored>,
}

impl PendingHits {
    /// Each query's.
    pub fn hits(&self, values: &Values) -> Vec<Hits> {
        let right = self.right.map_or(&[][..], |right| values.of(right));
        let is_right = |at: &Option<usize>| at.is_some_and(|at| right[at] > 0.5);
        let hits = self.queries.iter().map(|query| Hits {
            right: query.places.iter().map(is_right).collect(),
            direction: query.direction,
        });
        hits.collect()
    }
}

/// Which of a query's scored tokens are predicted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hits {
    /// In the order of the target.
    right: Vec<bool>,
    direction: Option<Direction>,
}

impl Hits {
    /// Whether all of them are; of a query without scored tokens there is nothing to say.
    pub fn is_match(&self) -> Option<bool> {
        (!self.right.is_empty()).then(|| self.right.iter().all(|right| *right))
    }

    pub fn add_to(&self, scores: &mut Scores) {
        let Some(is_match) = self.is_match() else {
            return;
        };
        let right = self.right.iter().filter(|right| **right).count();
        let exact = f64::from(is_match);
        scores.add(Measure::TokenAccuracy, right as f64, self.right.len());
        scores.add(Measure::ExactMatch, exact, 1);
        for (measure, right) in Measure::POSITIONS.iter().zip(&self.right) {
            scores.add(*measure, f64::from(*right), 1);
        }
        if let Some(direction) = self.direction {
            scores.add(Measure::of_direction(direction), exact, 1);
        }
    }
}

/// The scores of a batch, whose transfer is due.
pub(super) struct Pending {
    /// Each sample's WRITE loss before each step.
    losses: Vec<Slot>,
    /// Each sample's norm of the inner gradient at each step.
    grad_norms: Vec<Slot>,
    /// Whether a memory was written.
    writes: bool,
    read_loss: Slot,
    /// Labels that the READ loss is a mean over.
    labels: usize,
    hits: PendingHits,
    drift: Option<Slot>,
    /// Each sample's WRITE loss before the first step, if `losses` do not have it.
    pub start: Option<Slot>,
    /// At M_K.
    pub reconstruction: Option<PendingReconstruction>,
}

impl Pending {
    /// Adds what answers to a batch are scored by to the next transfer. Their READ loss is a mean over so many `labels`.
    pub fn new<B: Backend, C: Backend>(
        answers: &Answers<B>,
        batch: &Batch<C>,
        labels: usize,
        readback: &mut Readback<B>,
    ) -> Self {
        let memory = answers.memory.as_ref();
        let mut all = |tensors: Vec<Tensor<B, 1>>| -> Vec<Slot> {
            tensors.into_iter().map(|x| readback.push(x)).collect()
        };
        Self {
            losses: all(memory.map_or_else(Vec::new, |memory| memory.losses.clone())),
            grad_norms: all(memory.map_or_else(Vec::new, Memory::inner_norms)),
            writes: memory.is_some(),
            read_loss: readback.push(answers.read_loss.clone()),
            labels,
            hits: UnreadHits::of(answers.predicted.clone(), batch).pend(readback),
            drift: answers.drift.clone().map(|drift| readback.push(drift)),
            start: None,
            reconstruction: None,
        }
    }

    /// Adds everything up, if WRITE's numbers and READ's are finite.
    pub fn scores(&self, values: &Values) -> Result<Scores, Fault> {
        let mut scores = Scores::default();
        write_scores(
            [&self.losses, &self.grad_norms],
            self.start,
            values,
            &mut scores,
        )?;
        let drift = self.drift.map_or(0.0, |drift| values.of(drift)[0]);
        if drift.is_nan() || drift > MOST_DRIFT {
            return Err(Fault::Drift(drift));
        }
        let read_loss: f64 = values.of(self.read_loss).iter().sum();
        if !read_loss.is_finite() {
            return Err(Fault::ReadLoss(read_loss));
        }
        scores.add(
            Measure::ReadLoss,
            read_loss * self.labels as f64,
            self.labels,
        );
        for hits in self.hits.hits(values) {
            hits.add_to(&mut scores);
        }
        if let Some(written) = &self.reconstruction {
            let starts = self.writes && self.losses.is_empty();
            written.add_to(values, starts, &mut scores)?;
        }
        Ok(scores)
    }
}

/// A [`Reconstruction`] whose transfer is due.
pub(super) struct PendingReconstruction {
    loss: Slot,
    accuracy: Slot,
}

impl PendingReconstruction {
    /// Adds its tensors to the next transfer.
    pub fn new<B: Backend>(written: Reconstruction<B>, readback: &mut Readback<B>) -> Self {
        Self {
            loss: readback.push(written.loss),
            accuracy: readback.push(written.accuracy),
        }
    }

    /// Adds the means; `starts` if the memory is M0 still.
    pub fn add_to(&self, values: &Values, starts: bool, scores: &mut Scores) -> Result<(), Fault> {
        let after = finite(values.of(self.loss), "loss after the last step")?;
        let (sum, count) = (after.iter().sum(), after.len());
        scores.add(Measure::WriteLossAfter, sum, count);
        if starts {
            scores.add(Measure::WriteLossBefore, sum, count);
        }
        let accuracy = values.of(self.accuracy).iter().sum();
        scores.add(Measure::WriteAccuracy, accuracy, count);
        Ok(())
    }
}

/// Adds WRITE's losses and norms, one slot a step, and the losses before the first one: theirs, or those at the `start`.
pub(super) fn write_scores(
    [losses, grad_norms]: [&[Slot]; 2],
    start: Option<Slot>,
    values: &Values,
    scores: &mut Scores,
) -> Result<(), Fault> {
    for (k, (loss, norm)) in losses.iter().zip(grad_norms).enumerate() {
        let loss = finite(values.of(*loss), &format!("loss before step {k}"))?;
        let norm = finite(values.of(*norm), &format!("gradient of step {k}"))?;
        if k == 0 {
            let loss = start.map_or(loss, |start| values.of(start));
            scores.add(Measure::WriteLossBefore, loss.iter().sum(), loss.len());
        }
        // A sample that has no chunk for this step has a norm of exactly 0.
        let taken = norm.iter().filter(|norm| **norm > 0.0).count();
        let taken = if taken == 0 { norm.len() } else { taken };
        scores.add(Measure::InnerGradNorm, norm.iter().sum(), taken);
    }
    Ok(())
}

/// The values of a batch's samples, if all are finite.
fn finite<'a>(values: &'a [f64], what: &str) -> Result<&'a [f64], Fault> {
    match values.iter().position(|value| !value.is_finite()) {
        None => Ok(values),
        Some(sample) => Err(Fault::NotFinite {
            sample,
            value: format!("{} ({what})", values[sample]),
        }),
    }
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;
    use crate::data::{ExampleBatcher, KvConfig, Question, Sample};

    type B = burn_flex::Flex;

    #[test]
    fn hits_are_counted_by_position_and_direction_in_one_transfer() {
        let tokenizer = std::sync::Arc::new(KvConfig::default().tokenizer().unwrap());
        let sample = |target: &str, direction| {
            let question = Question {
                query: "?!k:".into(),
                target: target.into(),
                answers: Vec::new(),
            };
            let mut asked = tokenizer.encode_question(&question).unwrap();
            asked.direction = direction;
            Ok(Sample {
                context: tokenizer.encode("!k:v!|").unwrap(),
                asked: vec![asked],
                cut: 0,
            })
        };
        let samples = vec![
            sample("abc!|", Some(Direction::Forward)),
            sample("ax!|", Some(Direction::Backward)),
            sample("0123456789!|", None),
        ];
        let device = Default::default();
        let batch: Batch<B> = ExampleBatcher::new(tokenizer.clone())
            .try_batch(samples, &device)
            .unwrap();
        // What is predicted of the targets.
        let said: Vec<u32> = ["abx!|", "ax!|", "x123456789!|"]
            .iter()
            .flat_map(|said| tokenizer.encode(said).unwrap())
            .collect();
        let predicted = Predicted::<B> {
            tokens: Some(Tensor::from_data(
                TensorData::new(said.clone(), [said.len()]),
                &device,
            )),
            first: 0,
        };
        let mut readback = Readback::new();
        let hits = UnreadHits::of(predicted, &batch).pend(&mut readback);
        let before = crate::support::readback::transfers();
        let hits = hits.hits(&readback.read());
        assert_eq!(crate::support::readback::transfers(), before + 1);
        let mut scores = Scores::default();
        hits.iter().for_each(|hits| hits.add_to(&mut scores));

        let mean = |measure| scores.mean(measure);
        assert_eq!(mean(Measure::ExactMatch), Some(1.0 / 3.0));
        assert_eq!(mean(Measure::ExactMatchForward), Some(0.0));
        assert_eq!(mean(Measure::ExactMatchBackward), Some(1.0));
        assert_eq!(mean(Measure::TokenAccuracy), Some(13.0 / 15.0));
        let positions = Measure::POSITIONS.iter();
        let positions: Vec<_> = positions
            .map(|m| (mean(*m).unwrap(), scores.count(*m)))
            .collect();
        let alone = (1.0, 1);
        let expected = [(2.0 / 3.0, 3), (1.0, 3), (0.5, 2)];
        assert_eq!(positions[..3], expected);
        assert_eq!(positions[3..], [alone; 5]);
    }

    /// As in the loss: a method that predicts no first token is not asked for it.
    #[test]
    fn what_is_not_predicted_does_not_count() {
        let device = Default::default();
        let contexts = crate::episode::Tokens::new(&[[4u32, 7]], &device).unwrap();
        let queries = crate::episode::Tokens::new(&[[5u32, 6, 7]], &device).unwrap();
        let labels = vec![vec![5, 6, 7]];
        let episode = crate::episode::Episode::new(contexts, queries, &labels).unwrap();
        let batch: Batch<B> = episode.into();
        let predicted = Predicted::<B> {
            tokens: Some(Tensor::from_data([6, 9], &device)),
            first: 1,
        };
        let mut readback = Readback::new();
        let hits = UnreadHits::of(predicted, &batch).pend(&mut readback);
        let hits = hits.hits(&readback.read());
        assert_eq!(hits[0].right, [true, false]);
    }

    #[test]
    fn a_query_without_scored_tokens_is_no_match() {
        let nothing = Hits {
            right: Vec::new(),
            direction: Some(Direction::Forward),
        };
        let mut scores = Scores::default();
        nothing.add_to(&mut scores);
        assert_eq!((nothing.is_match(), scores), (None, Scores::default()));
    }
}
