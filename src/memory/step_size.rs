//! WRITE's loss against its step size α: a line search on contexts.

use burn::tensor::backend::Backend;

use super::{GradMem, LiftedObjective};
use crate::episode::Tokens;
use crate::error::Error;
use crate::model::Writable;
use crate::support::readback::Readback;

/// What K WRITE steps of one size do to the WRITE loss.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct StepSize {
    /// α.
    pub write_lr: f64,
    /// The mean WRITE loss of the contexts behind the steps; non-finite if WRITE is.
    pub loss: f64,
    /// The share of the contexts whose loss is lower than at M0.
    pub better: f64,
}

/// Step sizes from 10⁻⁴ to 10⁴, four to a decade.
#[rustfmt::skip]
pub const STEP_SIZES: [f64; 33] = [
    1e-4, 1.8e-4, 3.2e-4, 5.6e-4,
    1e-3, 1.8e-3, 3.2e-3, 5.6e-3,
    0.01, 0.018, 0.032, 0.056,
    0.1, 0.18, 0.32, 0.56,
    1.0, 1.8, 3.2, 5.6,
    10.0, 18.0, 32.0, 56.0,
    100.0, 180.0, 320.0, 560.0,
    1e3, 1.8e3, 3.2e3, 5.6e3,
    1e4,
];

/// The step size of the lowest loss, the smallest of several; none if all are non-finite.
pub fn best_step_size(curve: &[StepSize]) -> Option<StepSize> {
    let finite = curve.iter().filter(|size| size.loss.is_finite());
    finite
        .copied()
        .reduce(|best, size| match size.loss < best.loss {
            true => size,
            false => best,
        })
}

impl<B: Backend, M: Writable<B>, O: LiftedObjective<B, M>> GradMem<B, M, O> {
    /// The mean WRITE loss of contexts, which are written batch by batch, at M0, and behind
    /// [`write_steps`](super::GradMemConfig::write_steps) steps of each of these sizes.
    ///
    /// # Errors
    ///
    /// As [`GradMem::write`]; also no contexts, or a size that is not a positive number.
    pub fn step_sizes(
        &self,
        contexts: &[Tokens<B>],
        sizes: &[f64],
    ) -> Result<(f64, Vec<StepSize>), Error> {
        if contexts.is_empty() {
            return Err(Error::Input("there are no contexts to write".into()));
        }
        let mut readback = Readback::new();
        let mut losses = |write: &Self| {
            let losses = contexts.iter().map(|batch| {
                let losses = write.write_loss(&write.write(batch)?, batch)?;
                Ok(readback.push(losses))
            });
            losses.collect::<Result<Vec<_>, Error>>()
        };
        let before = losses(&self.clone().with_write_steps(0)?)?;
        let after = sizes
            .iter()
            .map(|write_lr| losses(&self.clone().with_write_lr(*write_lr)?));
        let after = after.collect::<Result<Vec<_>, Error>>()?;
        let values = readback.read();
        let of = |batches: Vec<_>| -> Vec<f64> {
            let batches = batches.into_iter().flat_map(|batch| values.of(batch));
            batches.copied().collect()
        };
        let before = of(before);
        let curve = sizes.iter().zip(after).map(|(write_lr, after)| {
            let after = of(after);
            let better = before.iter().zip(&after);
            let better = better.filter(|(before, after)| after < before);
            StepSize {
                write_lr: *write_lr,
                loss: mean(&after),
                better: better.count() as f64 / before.len() as f64,
            }
        });
        Ok((mean(&before), curve.collect()))
    }

    /// The step size among [`STEP_SIZES`] of the lowest WRITE loss, by whole decades first and then around the best of them:
    /// the loss at M0, and the sizes that were tried in their order.
    ///
    /// # Errors
    ///
    /// As [`GradMem::write`].
    pub fn line_search(&self, contexts: &[Tokens<B>]) -> Result<(f64, Vec<StepSize>), Error> {
        let decades: Vec<usize> = (0..STEP_SIZES.len()).step_by(4).collect();
        let sizes = |of: &[usize]| of.iter().map(|at| STEP_SIZES[*at]).collect::<Vec<_>>();
        let (before, mut curve) = self.step_sizes(contexts, &sizes(&decades))?;
        if let Some(best) = best_step_size(&curve) {
            let at = STEP_SIZES.iter().position(|size| *size == best.write_lr);
            let at = at.unwrap_or(0);
            let near = at.saturating_sub(3)..(at + 4).min(STEP_SIZES.len());
            let near: Vec<usize> = near.filter(|near| *near != at).collect();
            curve.extend(self.step_sizes(contexts, &sizes(&near))?.1);
            curve.sort_by(|a, b| a.write_lr.total_cmp(&b.write_lr));
        }
        Ok((before, curve))
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;
    use crate::memory::GradMemConfig;
    use crate::model::LlamaConfig;

    #[test]
    fn the_best_step_size_is_that_of_the_lowest_loss() {
        type B = burn_flex::Flex;
        let device = Default::default();
        let model = LlamaConfig::new(20, 16, 1, 2)
            .init::<B>(3, &device)
            .unwrap();
        let gradmem = GradMemConfig::new().init(model, 1, &device).unwrap();
        let contexts = Tokens::<B>::new(&[&[4, 5, 6, 7][..], &[9, 4], &[11, 3, 3]], &device);
        let contexts = contexts.unwrap();
        let whole = std::slice::from_ref(&contexts);
        let (before, curve) = gradmem.step_sizes(whole, &STEP_SIZES).unwrap();
        assert_eq!(curve.len(), 33);
        assert!(curve.iter().all(|size| size.loss.is_finite()));
        let best = best_step_size(&curve).unwrap();
        assert!(best.loss < before && best.better > 0.5);
        // It is a number of the curve that a WRITE of that size has.
        let written = gradmem.clone().with_write_lr(best.write_lr).unwrap();
        let after = written.write_loss(&written.write(&contexts).unwrap(), &contexts);
        let after = after.unwrap().to_data().iter::<f64>().collect::<Vec<_>>();
        let after = mean(&after);
        assert!((after - best.loss).abs() < 1e-6);
        // Steps of next to nothing change next to nothing.
        assert!((curve[0].loss - before).abs() < 1e-3);
        assert!(curve[0].loss > best.loss);
        let parts = [
            contexts.slice(0..2).trimmed(),
            contexts.slice(2..3).trimmed(),
        ];
        let (also, in_parts) = gradmem.step_sizes(&parts, &STEP_SIZES).unwrap();
        assert!((also - before).abs() < 1e-6);
        let near =
            |a: &StepSize, b: &StepSize| (a.loss - b.loss).abs() < 1e-3 && a.better == b.better;
        assert!(curve.iter().zip(&in_parts).all(|(a, b)| near(a, b)));
        // The search finds it with fewer.
        let (_, searched) = gradmem.line_search(whole).unwrap();
        assert_eq!(searched.len(), 15);
        assert_eq!(best_step_size(&searched), Some(best));
        assert!(STEP_SIZES.is_sorted());
        let one = |loss| StepSize {
            write_lr: 1.0,
            loss,
            better: 0.0,
        };
        assert_eq!(best_step_size(&[one(f64::NAN)]), None);
        assert_eq!(best_step_size(&[one(f64::NAN), one(2.0)]), Some(one(2.0)));
        assert!(gradmem.step_sizes(whole, &[0.0]).is_err());
    }
}
