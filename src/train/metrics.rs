//! The measures of a run: exact match, token accuracy, READ and WRITE losses, the norm of the inner
//! gradient, accuracy by position and direction, and the scores of generated answers.

use std::collections::BTreeMap;
use std::sync::Arc;

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use burn::train::ItemLazy;
use burn::train::metric::state::{FormatOptions, NumericMetricState};
use burn::train::metric::{
    Adaptor, LossInput, Metric, MetricAttributes, MetricMetadata, MetricName, Numeric,
    NumericAttributes, NumericEntry, SerializedEntry,
};
use serde::{Deserialize, Serialize};

use crate::data::Direction;
use crate::method::MethodName;

/// Makes [`Measure`] from each measure's name in files and as it is shown.
macro_rules! measures {
    ($($(#[$about:meta])* $measure:ident = $key:literal, $shown:literal;)*) => {
        /// One of the quantities a run measures.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[non_exhaustive]
        pub enum Measure {
            $($(#[$about])* #[serde(rename = $key)] $measure,)*
        }

        impl Measure {
            /// All measures, in display order.
            pub const ALL: &'static [Self] = &[$(Self::$measure),*];

            /// Its name in files and settings.
            pub fn key(self) -> &'static str {
                match self {
                    $(Self::$measure => $key,)*
                }
            }

            /// Its display name.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$measure => $shown,)*
                }
            }
        }
    };
}

measures! {
    /// Share of questions all of whose scored target tokens are predicted, teacher-forced.
    ExactMatch = "exact_match", "Exact match";
    /// Share of scored target tokens that are predicted, teacher-forced.
    TokenAccuracy = "token_accuracy", "Token accuracy";
    /// Mean −log p of the target tokens given the memory and the query, in nats a token; in training with `label_smoothing` the
    /// loss of the smoothed labels.
    ReadLoss = "read_loss", "READ loss";
    /// Mean WRITE loss at M0, in nats a token. While a run trains on contexts in chunks it is that of their first chunks alone; `gradmem
    /// eval` measures it on all.
    WriteLossBefore = "write_loss_before", "WRITE loss before";
    /// Mean WRITE loss at M_K; measured on the validation set only.
    WriteLossAfter = "write_loss_after", "WRITE loss after";
    /// Mean L2 norm of the inner gradient over samples and WRITE steps, before clipping.
    InnerGradNorm = "inner_grad_norm", "Inner gradient norm";
    /// Share of a context's tokens that WRITE's model predicts from M_K and the tokens before them; measured
    /// on the validation set only.
    WriteAccuracy = "write_accuracy", "WRITE accuracy";
    /// Share of questions whose greedily generated answer is one of the right ones, normalized as SQuAD
    /// does unless every character counts; measured by [`evaluation`](super::evaluation) only, as are those below.
    AnswerMatch = "answer_match", "Answer match";
    /// F1 of these answers' words, the best over the right ones.
    AnswerF1 = "answer_f1", "Answer F1";
    /// Share of a context's tokens that WRITE's model predicts right at their position when it reconstructs the
    /// context greedily from M_K alone.
    Reconstructed = "reconstructed", "Reconstructed";
    /// Share of questions whose first scored target token is predicted, teacher-forced.
    TokenAccuracy1 = "token_accuracy_1", "Accuracy, token 1";
    /// Share of questions whose second scored target token is predicted, teacher-forced.
    TokenAccuracy2 = "token_accuracy_2", "Accuracy, token 2";
    /// Share of questions whose third scored target token is predicted, teacher-forced.
    TokenAccuracy3 = "token_accuracy_3", "Accuracy, token 3";
    /// Share of questions whose fourth scored target token is predicted, teacher-forced.
    TokenAccuracy4 = "token_accuracy_4", "Accuracy, token 4";
    /// Share of questions whose fifth scored target token is predicted, teacher-forced.
    TokenAccuracy5 = "token_accuracy_5", "Accuracy, token 5";
    /// Share of questions whose sixth scored target token is predicted, teacher-forced.
    TokenAccuracy6 = "token_accuracy_6", "Accuracy, token 6";
    /// Share of questions whose seventh scored target token is predicted, teacher-forced.
    TokenAccuracy7 = "token_accuracy_7", "Accuracy, token 7";
    /// Share of questions whose eighth scored target token is predicted, teacher-forced.
    TokenAccuracy8 = "token_accuracy_8", "Accuracy, token 8";
    /// As [`Measure::ExactMatch`], for contexts whose pairs are written key first, of a task with both directions.
    ExactMatchForward = "exact_match_forward", "Exact match, forward";
    /// As [`Measure::ExactMatch`], for contexts whose pairs are written value first, of a task with both directions.
    ExactMatchBackward = "exact_match_backward", "Exact match, backward";
}

impl Measure {
    /// Token accuracy by position: of each target's first scored token, of its second, and so on up to the eighth.
    pub const POSITIONS: &'static [Self] = &[
        Self::TokenAccuracy1,
        Self::TokenAccuracy2,
        Self::TokenAccuracy3,
        Self::TokenAccuracy4,
        Self::TokenAccuracy5,
        Self::TokenAccuracy6,
        Self::TokenAccuracy7,
        Self::TokenAccuracy8,
    ];

    /// Exact match by direction.
    pub const DIRECTIONS: &'static [Self] = &[Self::ExactMatchForward, Self::ExactMatchBackward];

    /// The measures of a method's training that are shown and that can stop it.
    pub fn of(method: MethodName) -> &'static [Self] {
        match method {
            MethodName::GradMem => &Self::ALL[..7],
            MethodName::Rmt | MethodName::Armt | MethodName::InContext => &Self::ALL[..3],
        }
    }

    /// Exact match on contexts of a direction.
    pub fn of_direction(direction: Direction) -> Self {
        match direction {
            Direction::Forward => Self::ExactMatchForward,
            Direction::Backward => Self::ExactMatchBackward,
        }
    }

    /// Whether it is measured on the validation set only.
    pub fn is_of_validation(self) -> bool {
        matches!(self, Self::WriteLossAfter | Self::WriteAccuracy)
    }

    /// Whether it is a share between 0 and 1, shown in percent.
    pub fn is_share(self) -> bool {
        !matches!(
            self,
            Self::ReadLoss | Self::WriteLossBefore | Self::WriteLossAfter | Self::InnerGradNorm
        )
    }

    /// Its name with its unit, for an axis or a column.
    pub fn with_unit(self) -> String {
        match self {
            share if share.is_share() => format!("{} (%)", share.name()),
            Self::InnerGradNorm => self.name().into(),
            loss => format!("{} (nats a token)", loss.name()),
        }
    }

    /// Its value in a map by [`Measure::key`], if there is one and it is a number.
    pub fn in_values(self, values: &serde_json::Map<String, serde_json::Value>) -> Option<f64> {
        values.get(self.key())?.as_f64()
    }

    /// Whether `a` is better than `b`.
    pub fn better(self, a: f64, b: f64) -> bool {
        match self.is_share() {
            true => a > b,
            false => a < b,
        }
    }
}

/// A sum and a count, for a mean.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Tally {
    /// Sum of the values.
    pub sum: f64,
    /// Number of values.
    pub count: usize,
}

impl Tally {
    /// The mean; none without values.
    pub fn mean(self) -> Option<f64> {
        (self.count > 0).then(|| self.sum / self.count as f64)
    }
}

/// The sums and counts of all measures over one or more batches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(from = "BTreeMap<Measure, Tally>", into = "BTreeMap<Measure, Tally>")]
pub struct Scores([Tally; Measure::ALL.len()]);

impl From<BTreeMap<Measure, Tally>> for Scores {
    fn from(tallies: BTreeMap<Measure, Tally>) -> Self {
        let mut scores = Self::default();
        for (measure, tally) in tallies {
            scores.add(measure, tally.sum, tally.count);
        }
        scores
    }
}

impl From<Scores> for BTreeMap<Measure, Tally> {
    fn from(scores: Scores) -> Self {
        let all = Measure::ALL.iter().map(|m| (*m, scores.tally(*m)));
        all.filter(|(_, tally)| tally.count > 0).collect()
    }
}

impl Scores {
    /// Adds `count` values whose sum is `sum`.
    pub fn add(&mut self, measure: Measure, sum: f64, count: usize) {
        let tally = &mut self.0[measure as usize];
        tally.sum += sum;
        tally.count += count;
    }

    /// Adds all values of `other`.
    pub fn merge(&mut self, other: &Self) {
        for measure in Measure::ALL {
            let tally = other.tally(*measure);
            self.add(*measure, tally.sum, tally.count);
        }
    }

    /// The mean of a measure, if it was measured.
    pub fn mean(&self, measure: Measure) -> Option<f64> {
        self.tally(measure).mean()
    }

    /// Number of values of a measure.
    pub fn count(&self, measure: Measure) -> usize {
        self.tally(measure).count
    }

    fn tally(&self, measure: Measure) -> Tally {
        self.0[measure as usize]
    }

    /// The means as JSON fields, `"exact_match": 0.97, …`.
    pub fn to_json(&self) -> serde_json::Map<String, serde_json::Value> {
        Measure::ALL
            .iter()
            .filter_map(|m| Some((m.key().to_string(), self.mean(*m)?.into())))
            .collect()
    }
}

impl ItemLazy for Scores {
    type ItemSync = Self;

    fn sync(self) -> Self {
        self
    }
}

impl Adaptor<Scores> for Scores {
    fn adapt(&self) -> Scores {
        *self
    }
}

/// The READ loss, for burn-train's `LossMetric`.
impl<B: Backend> Adaptor<LossInput<B>> for Scores {
    fn adapt(&self) -> LossInput<B> {
        let loss = self.mean(Measure::ReadLoss).unwrap_or(f64::NAN);
        LossInput::new(Tensor::from_data([loss], &Default::default()))
    }
}

/// A [`Measure`] as a metric of burn-train, for what is trained or evaluated by a
/// [`MetaLearner`](super::learner::MetaLearner).
#[derive(Clone)]
pub struct MeasureMetric {
    measure: Measure,
    name: MetricName,
    state: NumericMetricState,
}

impl std::fmt::Debug for MeasureMetric {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("MeasureMetric").field(&self.measure).finish()
    }
}

impl MeasureMetric {
    /// The metric of this measure.
    pub fn new(measure: Measure) -> Self {
        Self {
            measure,
            name: Arc::new(measure.name().into()),
            state: NumericMetricState::new(),
        }
    }

    /// 100 for shares, which are shown in percent.
    fn scale(&self) -> f64 {
        if self.measure.is_share() { 100.0 } else { 1.0 }
    }
}

impl Metric for MeasureMetric {
    type Input = Scores;

    fn name(&self) -> MetricName {
        self.name.clone()
    }

    fn attributes(&self) -> MetricAttributes {
        let unit = self.measure.is_share().then(|| "%".to_string());
        NumericAttributes {
            unit,
            higher_is_better: self.measure.is_share(),
        }
        .into()
    }

    fn update(&mut self, scores: &Scores, _: &MetricMetadata) -> SerializedEntry {
        let tally = scores.tally(self.measure);
        let format = FormatOptions::new(self.name()).precision(3);
        let format = match self.measure.is_share() {
            true => format.unit("%"),
            false => format,
        };
        // Of a batch that has no value, only what is shown of the present one changes.
        let running = self.state.running_value().current();
        let (value, count) = match tally.mean() {
            Some(mean) => (mean * self.scale(), tally.count),
            None => (running, 0),
        };
        // Not a number: no batch had a value before.
        if running.is_nan() {
            self.state.reset();
        }
        self.state.update(value, count, format)
    }

    fn clear(&mut self) {
        self.state.reset();
    }
}

impl Numeric for MeasureMetric {
    fn value(&self) -> NumericEntry {
        self.state.current_value()
    }

    fn running_value(&self) -> NumericEntry {
        self.state.running_value()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_without_a_value_changes_no_mean() {
        let mut metric = MeasureMetric::new(Measure::ReadLoss);
        let metadata = MetricMetadata {
            progress: burn::data::dataloader::Progress::new(0, 1),
            global_progress: burn::data::dataloader::Progress::new(0, 1),
            iteration: None,
            lr: None,
        };
        let mut some = Scores::default();
        some.add(Measure::ReadLoss, 3.0, 2);
        let none = Scores::default();
        for scores in [&none, &some, &none, &some, &none] {
            metric.update(scores, &metadata);
        }
        assert_eq!(metric.running_value().current(), 1.5);
        metric.clear();
        metric.update(&none, &metadata);
        assert!(metric.value().current().is_nan());
    }

    #[test]
    fn keys_are_the_names_in_files_and_the_parts_are_all_there() {
        for (at, measure) in Measure::ALL.iter().enumerate() {
            assert_eq!(*measure as usize, at);
            let json = serde_json::to_value(measure).unwrap();
            assert_eq!(json, measure.key());
        }
        let keys = |parts: &[Measure]| parts.iter().map(|m| m.key()).collect::<Vec<_>>();
        let positions = keys(Measure::POSITIONS);
        assert_eq!(positions.len(), 8);
        assert_eq!(positions[0], "token_accuracy_1");
        assert_eq!(positions[7], "token_accuracy_8");
        let both = ["exact_match_forward", "exact_match_backward"];
        assert_eq!(keys(Measure::DIRECTIONS), both);
    }
}
