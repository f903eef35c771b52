//! When to stop writing: each sample by its own reconstruction loss, so that nobody has to choose K.
//!
//! The paper takes the best K of up to 30 after looking at the answers (section 4.2). A rule looks at
//! what WRITE has anyway, the loss it lowers.

use burn::module::Module;
use burn::tensor::backend::Backend;
use burn::tensor::{Bool, Tensor, TensorData};
use serde::{Deserialize, Serialize};

use super::segments::Segments;
use super::step::{Order, StepModels, detached};
use super::{GradMem, LiftedObjective, Memory};
use crate::episode::Tokens;
use crate::error::{Error, at_least_one, not_negative};
use crate::model::Writable;
use crate::support::setters::setters;

/// WRITE continues until a sample's loss has not fallen by more than `tolerance` below its last progress
/// `patience` times in a row, or `cap` steps are done; the sample gets the memory of its last progress.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct StopRule {
    /// What counts as progress, in nats a token.
    pub tolerance: f64,
    /// Steps without progress before a sample stops.
    pub patience: usize,
    /// The most steps.
    pub cap: usize,
}

impl StopRule {
    /// At most so many steps, and until one brings less than 0.01 nats a token.
    pub fn new(cap: usize) -> Self {
        Self {
            tolerance: 0.01,
            patience: 1,
            cap,
        }
    }

    setters! {
        /// Sets what counts as progress, in nats a token.
        with_tolerance(tolerance: f64);
        /// Sets the steps without progress before a sample stops.
        with_patience(patience: usize);
    }

    /// Checks every value.
    ///
    /// # Errors
    ///
    /// The first value that cannot work: [`Error::Config`].
    pub fn validate(&self) -> Result<(), Error> {
        at_least_one([("patience", self.patience), ("cap", self.cap)])?;
        not_negative([("tolerance", self.tolerance)])
    }

    /// The number of steps whose memory a sample gets, if it had these losses at `M_0, M_1, …`.
    pub fn steps(&self, losses: impl IntoIterator<Item = f64>) -> usize {
        let mut progress = Progress::default();
        for loss in losses {
            if self.is_done(progress) {
                break;
            }
            progress.see(loss, self.tolerance);
        }
        progress.best
    }

    fn is_done(&self, progress: Progress) -> bool {
        let Progress { seen, best, .. } = progress;
        // `seen` losses are those of M_0 … M_{seen − 1}.
        seen > self.cap || seen > best.saturating_add(self.patience)
    }
}

/// How far a sample has come.
#[derive(Clone, Copy, Debug)]
struct Progress {
    /// Losses that were looked at.
    seen: usize,
    /// The step of the last progress, and the loss there.
    best: usize,
    loss: f64,
}

impl Default for Progress {
    fn default() -> Self {
        Self {
            seen: 0,
            best: 0,
            loss: f64::INFINITY,
        }
    }
}

impl Progress {
    /// Looks at one more loss, and says whether it is progress.
    fn see(&mut self, loss: f64, tolerance: f64) -> bool {
        let better = loss < self.loss - tolerance;
        if better {
            (self.best, self.loss) = (self.seen, loss);
        }
        self.seen += 1;
        better
    }
}

impl<B: Backend, M: Writable<B>, O: LiftedObjective<B, M>> GradMem<B, M, O> {
    /// `M_0, M_1, M_2, …` of each context, without end: what other numbers of WRITE steps would give, each for
    /// the price of one step more. With contexts in several chunks a number of steps is that of each, so all of them are
    /// taken again. For test time: no graph for an outer gradient is kept.
    ///
    /// # Errors
    ///
    /// As [`GradMem::write`].
    pub fn trajectory<'a>(
        &'a self,
        contexts: &'a Tokens<B>,
    ) -> Result<impl Iterator<Item = Memory<B>> + use<'a, B, M, O>, Error> {
        let segments = self.segments(contexts)?;
        let start = detached(&self.start(contexts.len()));
        let constant = self.clone().no_grad();
        let mut models = StepModels::default();
        let mut memory: Option<Memory<B>> = None;
        let mut k = 0;
        Ok(std::iter::from_fn(move || {
            let next = match memory.take() {
                None => Memory::from_fast(start.clone()),
                Some(_) if segments.pieces.len() > 1 => {
                    let mut writing = constant.clone();
                    writing.config.write_steps = k;
                    writing.steps(writing.every_step(&segments), start.clone(), &segments)
                }
                Some(before) => constant.one_more(before, &segments, 0, &mut models),
            };
            k += 1;
            memory = Some(next.clone());
            Some(next)
        }))
    }

    /// The memory after one more step on a piece.
    fn one_more(
        &self,
        mut before: Memory<B>,
        segments: &Segments<B>,
        piece: usize,
        models: &mut StepModels<B, M, O>,
    ) -> Memory<B> {
        let fast = before.fast().to_vec();
        let reading = segments.reading(piece);
        let (loss, norm, fast) = models.step(self, reading, fast, Order::None);
        let losses = [std::mem::take(&mut before.losses), vec![loss]].concat();
        let norms = [std::mem::take(&mut before.grad_norms), vec![norm]].concat();
        Memory::from_fast(fast).after(losses, norms)
    }

    /// Writes each context for as many steps as `rule` gives it, each chunk for as many as its own loss says; also says how
    /// many steps each memory took in all. The memory keeps the losses and norms of all steps that were taken for any
    /// sample.
    ///
    /// A sample's memory does not depend on the others of its batch.
    ///
    /// # Errors
    ///
    /// As [`GradMem::write`]; also a rule that cannot work.
    pub fn write_until(
        &self,
        contexts: &Tokens<B>,
        rule: &StopRule,
    ) -> Result<(Memory<B>, Vec<usize>), Error> {
        rule.validate()?;
        let segments = self.segments(contexts)?;
        let constant = self.clone().no_grad();
        let mut fast = detached(&constant.start(contexts.len()));
        let mut steps = vec![0; contexts.len()];
        let (mut parts, mut losses, mut norms) = (Vec::new(), Vec::new(), Vec::new());
        for piece in 0..segments.pieces.len() {
            let (memory, taken) = constant.write_piece_until(fast, &segments, piece, rule)?;
            for (steps, taken) in steps.iter_mut().zip(taken) {
                *steps += taken;
            }
            fast = memory.fast().to_vec();
            losses.extend(memory.losses);
            norms.extend(memory.grad_norms);
            if self.config.concatenates() {
                parts.push(fast.clone());
            }
        }
        if parts.is_empty() {
            parts.push(fast);
        }
        let memory = Memory::from_parts(parts, Some(segments.counts.clone()));
        Ok((memory.after(losses, norms), steps))
    }

    fn write_piece_until(
        &self,
        start: Vec<Tensor<B, 3>>,
        segments: &Segments<B>,
        piece: usize,
        rule: &StopRule,
    ) -> Result<(Memory<B>, Vec<usize>), Error> {
        let device = segments.contexts.device();
        let mut progress = vec![Progress::default(); segments.contexts.len()];
        let mut models = StepModels::default();
        let mut kept: Option<Memory<B>> = None;
        let mut now = Memory::from_fast(start);
        // The loss at a memory is known when the step from it is taken.
        while !progress.iter().all(|progress| rule.is_done(*progress)) {
            let next = self.one_more(now.clone(), segments, piece, &mut models);
            let losses = next.losses[next.losses.len() - 1].to_data();
            let better: Vec<bool> = progress
                .iter_mut()
                .zip(losses.iter::<f64>())
                .map(|(progress, loss)| {
                    !rule.is_done(*progress) && progress.see(loss, rule.tolerance)
                })
                .collect();
            kept = Some(match kept {
                Some(kept) if better.contains(&false) => choose(kept, now, &better, &device),
                _ => now,
            });
            now = next;
        }
        let steps = progress.into_iter().map(|progress| progress.best);
        let memory = kept.ok_or_else(|| Error::Input("there is no context".into()))?;
        Ok((memory, steps.collect()))
    }
}

/// `new` where it is better, `old` elsewhere.
fn choose<B: Backend>(
    old: Memory<B>,
    new: Memory<B>,
    better: &[bool],
    device: &B::Device,
) -> Memory<B> {
    let mask = TensorData::new(better.to_vec(), [better.len(), 1, 1]);
    let mask: Tensor<B, 3, Bool> = Tensor::from_data(mask, device);
    let fast = old.fast().iter().zip(new.fast());
    let fast = fast.map(|(old, new)| {
        let mask = mask.clone().expand(old.shape());
        old.clone().mask_where(mask, new.clone())
    });
    Memory::from_fast(fast.collect()).after(new.losses, new.grad_norms)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::GradMemConfig;
    use crate::model::LlamaConfig;

    #[test]
    fn a_rule_stops_where_progress_ends() {
        let rule = |tolerance, patience, cap| StopRule {
            tolerance,
            patience,
            cap,
        };
        let losses = [4.0, 3.0, 2.95, 2.9, 2.0, 1.99];
        assert_eq!(rule(0.0, 1, 30).steps(losses), 5);
        assert_eq!(rule(0.0, 1, 3).steps(losses), 3);
        assert_eq!(rule(0.2, 1, 30).steps(losses), 1);
        assert_eq!(rule(0.2, 3, 30).steps(losses), 4);
        assert_eq!(rule(0.0, 1, 30).steps([4.0, 5.0, 1.0]), 0);
        assert_eq!(rule(0.0, 1, 30).steps([4.0, f64::NAN, 1.0]), 0);
        assert!(rule(-1.0, 1, 1).validate().is_err());
        assert!(rule(0.1, 0, 1).validate().is_err());
    }

    #[test]
    fn every_sample_stops_by_itself_with_the_memory_of_that_step() {
        type B = burn_flex::Flex;
        let device = Default::default();
        let lm = LlamaConfig::new(20, 16, 1, 2)
            .init::<B>(3, &device)
            .unwrap();
        let gradmem = GradMemConfig::new()
            .with_memory_tokens(2)
            .with_write_lr(3.0)
            .init(lm, 1, &device)
            .unwrap();
        let contexts = [&[4, 5, 6, 7, 8][..], &[9, 4, 4, 4, 4], &[11, 3], &[2, 1, 7]];
        let contexts = Tokens::<B>::new(&contexts, &device).unwrap();
        let rule = StopRule {
            tolerance: 1e-3,
            patience: 2,
            cap: 12,
        };
        let (memory, steps) = gradmem.write_until(&contexts, &rule).unwrap();
        let path: Vec<_> = gradmem.trajectory(&contexts).unwrap().take(14).collect();
        let losses: Vec<Vec<f64>> = path[13]
            .losses
            .iter()
            .map(|loss| loss.to_data().iter::<f64>().collect())
            .collect();
        for (row, steps) in steps.iter().enumerate() {
            assert_eq!(*steps, rule.steps(losses.iter().map(|losses| losses[row])));
            let one = |memory: &Memory<B>| memory.vectors().narrow(0, row, 1).into_data();
            assert_eq!(one(&memory), one(&path[*steps]));
            let alone = contexts.slice(row..row + 1);
            let (alone, count) = gradmem.write_until(&alone, &rule).unwrap();
            assert_eq!(count, [*steps]);
            one(&memory).assert_approx_eq::<f32>(
                &alone.vectors().into_data(),
                burn::tensor::Tolerance::absolute(1e-5),
            );
        }
        assert!(
            steps.iter().any(|s| s != &steps[0]),
            "{steps:?}: the test says little"
        );
        // Writing K steps is the K-th of the path.
        let written = gradmem
            .with_write_steps(3)
            .unwrap()
            .write(&contexts)
            .unwrap();
        assert_eq!(written.vectors().into_data(), path[3].vectors().into_data());
    }
}
