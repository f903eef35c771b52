//! Why a step of training or evaluation failed.

use serde::{Deserialize, Serialize};

use crate::error::Error;

/// Why a step could not be taken. It is told to the other processes of a training.
#[derive(Clone, Debug, thiserror::Error, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Fault {
    /// The batch could not be made or did not fit the model.
    #[error(transparent)]
    Error(#[serde(with = "text")] Error),
    /// WRITE became non-finite in this sample of the batch.
    #[error("WRITE became {value} in sample {sample}")]
    NotFinite {
        /// Index in the batch.
        sample: usize,
        /// The quantity and its value.
        value: String,
    },
    /// READ's loss is non-finite.
    #[error("READ's loss became {0}")]
    ReadLoss(f64),
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
            Self::ReadLoss(_) => {
                Error::Failed(format!("{self} at step {step}, batch {batch}: {hint}"))
            }
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

impl Fault {
    /// The error to report of an evaluation: with the batch (from 0) of the fault.
    pub(super) fn in_evaluation(self, batch: usize) -> Error {
        match self {
            Self::Error(error) => error,
            other => Error::Failed(format!("batch {batch} of the evaluation: {other}")),
        }
    }
}

/// An error that is told to the other processes.
#[derive(Serialize, Deserialize)]
pub(super) struct Sent(#[serde(with = "text")] pub Error);

/// An error as its text, and whose mistake it is.
mod text {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use crate::error::Error;

    pub fn serialize<S: Serializer>(error: &Error, serializer: S) -> Result<S::Ok, S::Error> {
        (error.is_user_error(), error.to_string()).serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Error, D::Error> {
        let (is_users, text) = Deserialize::deserialize(deserializer)?;
        Ok(match is_users {
            true => Error::Input(text),
            false => Error::Failed(text),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_processes_are_told_the_same_fault() {
        let faults = [
            Fault::Error(Error::config("lr", 2, "must be at most 1")),
            Fault::Error(Error::Failed("the disk is full".into())),
            Fault::NotFinite {
                sample: 3,
                value: "NaN".into(),
            },
            Fault::Gradient(f64::NAN),
            Fault::Drift(0.25),
        ];
        let config = bincode::config::standard();
        for fault in faults {
            let bytes = bincode::serde::encode_to_vec(&fault, config).unwrap();
            let (told, _): (Fault, _) = bincode::serde::decode_from_slice(&bytes, config).unwrap();
            assert_eq!(told.to_string(), fault.to_string());
            let [ours, theirs] = [fault, told].map(|fault| fault.locate(1, 0));
            assert_eq!(ours.is_user_error(), theirs.is_user_error());
            assert_eq!(ours.to_string(), theirs.to_string());
        }
    }
}
