//! What a run measures: exact match, token accuracy, the losses of READ and WRITE, the inner
//! gradient's norm.

use std::sync::Arc;

use burn::train::ItemLazy;
use burn::train::metric::state::{FormatOptions, NumericMetricState};
use burn::train::metric::{
    Adaptor, Metric, MetricAttributes, MetricMetadata, MetricName, Numeric, NumericAttributes,
    NumericEntry, SerializedEntry,
};
use serde::{Deserialize, Serialize};

use crate::method::MethodName;

/// One of the quantities a run measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    /// Share of questions all of whose scored target tokens are predicted, teacher-forced.
    ExactMatch,
    /// Share of scored target tokens that are predicted, teacher-forced.
    TokenAccuracy,
    /// Mean −log p of the target tokens given the memory and the query, in nats a token.
    ReadLoss,
    /// Mean WRITE loss at M0, in nats a token.
    WriteLossBefore,
    /// Mean WRITE loss at M_K; measured on the validation set only.
    WriteLossAfter,
    /// Mean L2 norm of the inner gradient over samples and WRITE steps, before clipping.
    InnerGradNorm,
}

impl Measure {
    /// All of them, in the order they are shown.
    pub const ALL: [Self; 6] = [
        Self::ExactMatch,
        Self::TokenAccuracy,
        Self::ReadLoss,
        Self::WriteLossBefore,
        Self::WriteLossAfter,
        Self::InnerGradNorm,
    ];

    /// Those that a method has.
    pub fn of(method: MethodName) -> &'static [Self] {
        match method {
            MethodName::GradMem => &Self::ALL,
            MethodName::Rmt | MethodName::InContext => &Self::ALL[..3],
        }
    }

    /// Its name in files and settings.
    pub fn key(self) -> &'static str {
        match self {
            Self::ExactMatch => "exact_match",
            Self::TokenAccuracy => "token_accuracy",
            Self::ReadLoss => "read_loss",
            Self::WriteLossBefore => "write_loss_before",
            Self::WriteLossAfter => "write_loss_after",
            Self::InnerGradNorm => "inner_grad_norm",
        }
    }

    /// Its name for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::ExactMatch => "Exact match",
            Self::TokenAccuracy => "Token accuracy",
            Self::ReadLoss => "READ loss",
            Self::WriteLossBefore => "WRITE loss before",
            Self::WriteLossAfter => "WRITE loss after",
            Self::InnerGradNorm => "Inner gradient norm",
        }
    }

    /// Whether it is a share of one, shown in percent.
    pub fn is_share(self) -> bool {
        matches!(self, Self::ExactMatch | Self::TokenAccuracy)
    }

    /// Whether `a` is better than `b`.
    pub fn better(self, a: f64, b: f64) -> bool {
        match self.is_share() {
            true => a > b,
            false => a < b,
        }
    }
}

/// A mean in the making.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Tally {
    /// Sum of the values.
    pub sum: f64,
    /// How many there are.
    pub count: usize,
}

impl Tally {
    /// The mean, if there is anything to take it of.
    pub fn mean(self) -> Option<f64> {
        (self.count > 0).then(|| self.sum / self.count as f64)
    }
}

/// The measures of a batch, or of many together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Scores([Tally; Measure::ALL.len()]);

impl Scores {
    /// Counts `count` values that sum up to `sum`.
    pub fn add(&mut self, measure: Measure, sum: f64, count: usize) {
        let tally = &mut self.0[measure as usize];
        tally.sum += sum;
        tally.count += count;
    }

    /// Counts all that `other` has counted.
    pub fn merge(&mut self, other: &Self) {
        for measure in Measure::ALL {
            let tally = other.tally(measure);
            self.add(measure, tally.sum, tally.count);
        }
    }

    /// The mean of a measure, if it was measured.
    pub fn mean(&self, measure: Measure) -> Option<f64> {
        self.tally(measure).mean()
    }

    fn tally(&self, measure: Measure) -> Tally {
        self.0[measure as usize]
    }

    /// The means as JSON fields, `"exact_match": 0.97, …`.
    pub fn to_json(&self) -> serde_json::Map<String, serde_json::Value> {
        Measure::ALL
            .into_iter()
            .filter_map(|m| Some((m.key().to_string(), self.mean(m)?.into())))
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

/// A [`Measure`] as burn-train's dashboard wants it.
#[derive(Clone)]
pub struct MeasureMetric {
    measure: Measure,
    name: MetricName,
    state: NumericMetricState,
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

    /// Shares are shown in percent.
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
        let mean = tally.mean().unwrap_or(f64::NAN);
        self.state
            .update(mean * self.scale(), tally.count.max(1), format)
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
