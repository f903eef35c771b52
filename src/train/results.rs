//! What an evaluation finds: the contents of `eval.json`.

use std::fs::File;
use std::path::Path;

use gradmem_kernels::Precision;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::metrics::{Measure, Scores};
use crate::error::Error;
use crate::memory::StopRule;
use crate::support::fs::write_atomically;

/// Results on held-out samples.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Evaluation {
    /// SHA-256 of the weights' file, as hexadecimal digits.
    #[serde(default)]
    pub weights: String,
    /// Number of held-out contexts.
    #[serde(default)]
    pub samples: usize,
    /// What products were computed in; f32 in files of a version that did not know it.
    #[serde(default)]
    pub precision: Precision,
    /// One row for each number of WRITE steps.
    #[serde(default)]
    pub rows: Vec<Row>,
    /// Results where each sample chooses its number of WRITE steps.
    #[serde(default)]
    pub adaptive: Option<Adaptive>,
    /// Some generated answers.
    #[serde(default)]
    pub examples: Vec<Shown>,
    /// What is left of each chunk after those behind it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forgetting: Option<Forgetting>,
}

impl Evaluation {
    /// Writes [`Evaluation::examples`] to a new file: one JSON object per line.
    ///
    /// # Errors
    ///
    /// If there is such a file, or it cannot be written; then there is none.
    pub fn save_answers(&self, path: impl AsRef<Path>) -> Result<(), Error> {
        let path = path.as_ref();
        let mut lines = Vec::new();
        let save = |lines: &mut Vec<u8>| -> std::io::Result<()> {
            for answer in &self.examples {
                serde_json::to_writer(&mut *lines, answer)?;
                lines.push(b'\n');
            }
            // Nobody else makes it from here on.
            drop(File::create_new(path)?);
            Ok(())
        };
        save(&mut lines).map_err(Error::io(path, "cannot write"))?;
        write_atomically(path, &lines).inspect_err(|_| {
            std::fs::remove_file(path).ok();
        })
    }

    /// Whether both are of the same weights, number of samples and precision.
    pub(super) fn completes(&self, earlier: &Self) -> bool {
        let of = |one: &Self| (one.samples, one.precision);
        self.weights == earlier.weights && of(self) == of(earlier)
    }

    /// The results of both, `self`'s where both have one. `self` alone if they are of different weights,
    /// numbers of samples or precisions.
    pub fn or(mut self, earlier: Self) -> Self {
        if !self.completes(&earlier) {
            return self;
        }
        for row in earlier.rows {
            match self
                .rows
                .iter_mut()
                .find(|r| r.write_steps == row.write_steps)
            {
                Some(ours) => {
                    for (key, value) in row.scores {
                        ours.scores.entry(key).or_insert(value);
                    }
                }
                None => self.rows.push(row),
            }
        }
        self.rows.sort_by_key(|row| row.write_steps);
        self.adaptive = self.adaptive.or(earlier.adaptive);
        self.forgetting = self.forgetting.or(earlier.forgetting);
        if self.examples.is_empty() {
            self.examples = earlier.examples;
        }
        self
    }
}

/// The scores at one number of WRITE steps.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Row {
    /// None if the method has no WRITE.
    pub write_steps: Option<usize>,
    /// Means by [`Measure::key`].
    #[serde(flatten)]
    pub scores: Map<String, Value>,
}

impl Row {
    pub(super) fn new(write_steps: Option<usize>, scores: &Scores) -> Self {
        Self {
            write_steps,
            scores: scores.to_json(),
        }
    }

    /// A measure's value, if it was measured.
    pub fn value(&self, measure: Measure) -> Option<f64> {
        measure.in_values(&self.scores)
    }
}

/// The results of a stop rule.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Adaptive {
    /// The rule.
    pub rule: StopRule,
    /// The number of training contexts that the rule was chosen on, and its exact match on them.
    pub chosen_on: (usize, f64),
    /// The mean step whose memory is kept, of the held-out samples: some more, in which the loss fell no further, are taken
    /// behind it.
    pub mean_write_steps: f64,
    /// Exact match on the held-out samples.
    pub exact_match: f64,
}

/// How well the memory after chunk i (rows) holds chunk j ≤ i (columns).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Forgetting {
    /// Tokens of a chunk.
    pub chunk_size: usize,
    /// Exact match of the questions about a chunk, if it is known of all questions which chunk they are about.
    pub answered: Option<Vec<Vec<Option<f64>>>>,
    /// The share of a chunk's tokens that are reconstructed, teacher-forced.
    pub reconstructed: Vec<Vec<Option<f64>>>,
}

/// A generated answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Shown {
    /// The context that was written.
    pub context: String,
    /// The query.
    pub query: String,
    /// The first of the right answers.
    pub target: String,
    /// The generated answer.
    pub answer: String,
    /// Whether the generated answer counts as right.
    pub right: bool,
}
