//! The step size of WRITE, by a line search of the WRITE loss on a task's training contexts.

use std::collections::HashSet;
use std::fmt;

use burn::data::dataset::Dataset;
use burn::tensor::backend::Backend;
use gradmem_kernels::KernelBackend;

use super::evaluation::batch_size;
use super::learner::{Fault, evaluate};
use super::metrics::{Measure, Scores};
use super::trained::Trained;
use crate::data::{Batch, ExampleBatcher, Spaced, Task};
use crate::episode::Tokens;
use crate::error::{Error, at_least_one};
use crate::memory::{GradMem, StepSize, best_step_size};
use crate::model::AnyLm;
use crate::support::counted;

/// Contexts that are searched on unless another number is asked for.
pub const SAMPLES: usize = 16;

/// The WRITE loss against the step size.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Tuning {
    /// Contexts.
    pub samples: usize,
    /// K.
    pub write_steps: usize,
    /// The mean WRITE loss at M0.
    pub before: f64,
    /// Behind K steps of each size.
    pub curve: Vec<StepSize>,
    /// The exact match of the samples' questions with each, if it was measured and WRITE is finite.
    pub exact_match: Option<Vec<Option<f64>>>,
}

impl Tuning {
    /// The curve on contexts, which are written batch by batch.
    ///
    /// # Errors
    ///
    /// As [`GradMem::step_sizes`].
    pub fn new<B: KernelBackend>(
        gradmem: &GradMem<B, AnyLm<B>>,
        contexts: &[Tokens<B>],
        sizes: &[f64],
    ) -> Result<Self, Error> {
        let curve = gradmem.step_sizes(contexts, sizes)?;
        Ok(Self::of(gradmem, contexts, curve))
    }

    fn of<B: KernelBackend>(
        gradmem: &GradMem<B, AnyLm<B>>,
        contexts: &[Tokens<B>],
        (before, curve): (f64, Vec<StepSize>),
    ) -> Self {
        Self {
            samples: contexts.iter().map(Tokens::len).sum(),
            write_steps: gradmem.config().write_steps,
            before,
            curve,
            exact_match: None,
        }
    }

    /// The step size of the lowest WRITE loss.
    pub fn best(&self) -> Option<StepSize> {
        best_step_size(&self.curve)
    }
}

impl fmt::Display for Tuning {
    /// The best size and its neighbours, in one line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(best) = self.best() else {
            return write!(f, "WRITE is non-finite at every step size");
        };
        write!(
            f,
            "WRITE's step size: {}; WRITE loss of {} training contexts {:.3} → {:.3} after {}",
            best.write_lr,
            self.samples,
            self.before,
            best.loss,
            counted(self.write_steps, "step")
        )?;
        let at = self
            .curve
            .iter()
            .position(|size| size == &best)
            .unwrap_or(0);
        let near = at.saturating_sub(2)..(at + 3).min(self.curve.len());
        for size in self.curve[near].iter().filter(|size| *size != &best) {
            write!(f, ", {:.3} with {}", size.loss, size.write_lr)?;
        }
        Ok(())
    }
}

/// The curve around the best size, on some training samples of a task, of which so many are computed at once.
pub(super) fn search<B: KernelBackend>(
    gradmem: &GradMem<B, AnyLm<B>>,
    task: &Task,
    at_once: usize,
    device: &B::Device,
) -> Result<Tuning, Error> {
    let batch = some_batch::<B>(task, SAMPLES, device)?;
    let contexts = contexts_of(&batch.split(at_once));
    let curve = gradmem.line_search(&contexts)?;
    Ok(Tuning::of(gradmem, &contexts, curve))
}

fn contexts_of<B: Backend>(parts: &[Batch<B>]) -> Vec<Tokens<B>> {
    let contexts = parts.iter().map(|part| part.episode.contexts());
    contexts.cloned().collect()
}

/// Samples that are evenly spaced among a task's training samples: neighbours in a file often have the same context, of
/// which one is taken.
fn some_batch<B: Backend>(
    task: &Task,
    samples: usize,
    device: &B::Device,
) -> Result<Batch<B>, Error> {
    let spaced = Spaced::new(task.train.clone(), samples);
    let mut contexts = HashSet::new();
    let mut taken = Vec::new();
    for sample in spaced.iter() {
        let sample = sample?;
        if contexts.insert(sample.context.clone()) {
            taken.push(Ok(sample));
        }
    }
    match taken.is_empty() {
        true => Err(Error::Input("the task has no training samples".into())),
        false => ExampleBatcher::new(task.tokenizer.clone()).try_batch(taken, device),
    }
}

impl<B: KernelBackend> Trained<B> {
    /// The curve of a trained run on `samples` of its training contexts, with the exact match of their questions.
    ///
    /// # Errors
    ///
    /// If the run trained another method than GradMem or its data are gone.
    pub fn tune(&self, samples: usize, sizes: &[f64]) -> Result<Tuning, Error> {
        at_least_one([("samples", samples)])?;
        let gradmem = self.gradmem()?;
        let device = self.method.device();
        let task = self.task()?;
        let batch = some_batch::<B>(&task, samples, &device)?;
        let at_once = batch_size(&self.method, &task);
        let parts = batch.split(at_once);
        let found = Tuning::new(gradmem, &contexts_of(&parts), sizes)?;
        let exact_match = sizes.iter().map(|size| {
            let sized = gradmem.clone().with_write_lr(*size)?;
            let mut scores = Scores::default();
            for part in &parts {
                match evaluate(&sized, part.clone()) {
                    Ok(part) => scores.merge(&part),
                    Err(Fault::Error(error)) => return Err(error),
                    Err(_) => return Ok(None),
                }
            }
            Ok(scores.mean(Measure::ExactMatch))
        });
        Ok(Tuning {
            exact_match: Some(exact_match.collect::<Result<_, Error>>()?),
            ..found
        })
    }
}
