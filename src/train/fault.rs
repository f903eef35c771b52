//! Why a step of training or evaluation failed.

use crate::error::Error;

/// Why a step could not be taken.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// The batch could not be made or did not fit the model.
    #[error(transparent)]
    Error(Error),
    /// WRITE became non-finite in this sample of the batch.
    #[error("WRITE became {value} in sample {sample}")]
    NotFinite {
        /// Index in the batch.
        sample: usize,
        /// The quantity and its value.
        value: String,
    },
    /// The outer gradient has this non-finite norm.
    #[error("the outer gradient's norm became {0}")]
    Gradient(f64),
    /// Replay took a WRITE step again whose losses were so far, over one plus their size, from what they had been.
    #[error(
        "a WRITE step that was taken again had losses that are {:.1} % off: the model draws at random, as dropout does, and \
         Replay needs the same draw twice. Use the strategy Unrolled (train.meta_gradient=unrolled), or leave the draw out",
        100.0 * .0
    )]
    Drift(f64),
}

impl Fault {
    /// The same fault in a batch that has `samples` others before those of this part.
    pub(super) fn behind(self, samples: usize) -> Self {
        match self {
            Self::NotFinite { sample, value } => Self::NotFinite {
                sample: samples + sample,
                value,
            },
            other => other,
        }
    }

    /// The error to report: with the step (from 1) and the batch (from 0) of the fault.
    pub(super) fn locate(self, step: usize, batch: usize) -> Error {
        let hint = "try a smaller train.lr or, with gradmem, a smaller memory.write_lr, \
                    or set memory.inner_clip_norm";
        match self {
            Self::Error(error) => error,
            Self::Gradient(norm) => Error::Failed(format!(
                "the outer gradient's norm became {norm} at step {step}, batch {batch}: {hint}"
            )),
            Self::Drift(_) => Error::Failed(format!("step {step}, batch {batch}: {self}")),
            Self::NotFinite { sample, value } => Error::NotFinite {
                value,
                step,
                batch,
                sample,
                hint: hint.into(),
            },
        }
    }
}
