//! Cramming (arXiv 2502.13063): a memory optimised for one text until the model reconstructs the text from it. The model is frozen
//! and need not have been trained for this.
//!
//! WRITE's loss is minimised as by WRITE, by many steps of Adam (arXiv 1412.6980) instead of a few of gradient descent.

use burn::module::Module;
use burn::tensor::backend::Backend;
use burn::tensor::{Bool, Tensor, TensorData};

use super::step::{StepModel, detached};
use super::{GradMem, LiftedObjective, Memory};
use crate::episode::Tokens;
use crate::error::{Error, at_least_one, positive, require};
use crate::model::Writable;
use crate::support::readback::Readback;
use crate::support::setters::setters;
use crate::support::wide;

/// Settings of [`GradMem::cram`].
#[derive(Clone, Copy, Debug, PartialEq)]
#[must_use]
pub struct CramConfig {
    /// Step size of Adam.
    pub lr: f64,
    /// The share of its tokens, each predicted after those before it, with which a sample is done.
    pub until: f64,
    /// The most steps.
    pub max_steps: usize,
    /// Steps between looks at that share, each of which costs a forward pass.
    pub look_every: usize,
}

impl Default for CramConfig {
    fn default() -> Self {
        Self {
            lr: 0.01,
            until: 0.99,
            max_steps: 1000,
            look_every: 10,
        }
    }
}

impl CramConfig {
    /// The defaults: steps of 0.01 until 99 %, at most 1,000.
    pub fn new() -> Self {
        Self::default()
    }

    setters! {
        /// Sets the step size.
        with_lr(lr: f64);
        /// Sets the share of tokens with which a sample is done.
        with_until(until: f64);
        /// Sets the most steps.
        with_max_steps(max_steps: usize);
        /// Sets the steps between looks.
        with_look_every(look_every: usize);
    }

    /// Whether a sample has all that it is to have, up to rounding.
    fn is_done(&self, sample: &Crammed) -> bool {
        sample.accuracy >= self.until - 1e-9
    }

    /// Checks every value.
    ///
    /// # Errors
    ///
    /// The first value that cannot work: [`Error::Config`].
    pub fn validate(&self) -> Result<(), Error> {
        at_least_one([
            ("max_steps", self.max_steps),
            ("look_every", self.look_every),
        ])?;
        positive([("lr", self.lr)])?;
        let until = self.until;
        let fits = until > 0.0 && until <= 1.0;
        require(fits, "until", until, "must be above 0 and at most 1")
    }
}

/// What a sample's memory holds.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Crammed {
    /// Steps that were taken when it was looked at last.
    pub steps: usize,
    /// The share of its tokens that are predicted, each after those before it.
    pub accuracy: f64,
    /// Its WRITE loss, in nats a token.
    pub loss: f64,
}

/// β1, β2 and ε of Adam.
const BETAS: [f64; 2] = [0.9, 0.999];
const EPSILON: f64 = 1e-8;

impl<B: Backend, M: Writable<B>, O: LiftedObjective<B, M>> GradMem<B, M, O> {
    /// Optimises a memory for each context, from M0 on, until it tells the context. A sample that is done stays as it is. `seen`
    /// is given all samples at each look.
    ///
    /// # Errors
    ///
    /// As [`GradMem::write`]; settings that cannot work; contexts in several chunks; an objective that tells no tokens; a
    /// loss that becomes non-finite.
    pub fn cram(
        &self,
        contexts: &Tokens<B>,
        config: &CramConfig,
        mut seen: impl FnMut(usize, &[Crammed]),
    ) -> Result<(Memory<B>, Vec<Crammed>), Error> {
        config.validate()?;
        let segments = self.segments(contexts)?;
        let piece = match segments.pieces.as_slice() {
            [piece] if piece.times == 1 => piece,
            _ => {
                let problem = "a memory is optimised for a context at once, not for one in chunks";
                return Err(Error::Input(problem.into()));
            }
        };
        let model = StepModel::new(&self.clone().no_grad(), piece);
        let mut fast = detached(&self.start(contexts.len()));
        let mut moments: Vec<_> = fast
            .iter()
            .map(|x| [(); 2].map(|()| wide(x.zeros_like())))
            .collect();
        let mut found: Vec<Crammed> = Vec::new();
        let shape = [contexts.len(), 1, 1];
        let mut done = Tensor::<B, 3, Bool>::empty(shape, &contexts.device());
        for step in 0..=config.max_steps {
            if step % config.look_every == 0 || step == config.max_steps {
                let memory = Memory::from_fast(fast.clone());
                found = self.look(&memory, contexts, step, &found, config)?;
                seen(step, &found);
                let each = found.iter().map(|sample| config.is_done(sample));
                let each: Vec<bool> = each.collect();
                if each.iter().all(|done| *done) {
                    break;
                }
                done = Tensor::from_data(TensorData::new(each, shape), &contexts.device());
            }
            if step == config.max_steps {
                break;
            }
            let (_, gradients) = model.gradients(fast.clone(), piece);
            let [first, second] = BETAS.map(|beta| 1.0 - beta.powi(step as i32 + 1));
            for ((x, moments), gradient) in fast.iter_mut().zip(&mut moments).zip(gradients) {
                // In f16 ε would be zero, and so would the squares of small gradients.
                let gradient = wide(gradient);
                let [mean, square] = moments.clone();
                let mean = mean * BETAS[0] + gradient.clone() * (1.0 - BETAS[0]);
                let square = square * BETAS[1] + gradient.square() * (1.0 - BETAS[1]);
                let length = square
                    .clone()
                    .mul_scalar(1.0 / second)
                    .sqrt()
                    .add_scalar(EPSILON);
                let step = mean.clone() / length * (config.lr / first);
                let moved = (wide(x.clone()) - step).cast(x.dtype());
                let done = done.clone().expand(x.shape());
                *x = moved.mask_where(done, x.clone());
                *moments = [mean, square];
            }
        }
        Ok((Memory::from_fast(fast), found))
    }

    /// What the memories hold after so many steps; those that were done before are what they were.
    fn look(
        &self,
        memory: &Memory<B>,
        contexts: &Tokens<B>,
        step: usize,
        before: &[Crammed],
        config: &CramConfig,
    ) -> Result<Vec<Crammed>, Error> {
        let held = self.reconstruction(memory, contexts)?;
        let mut readback = Readback::new();
        let (loss, accuracy) = (readback.push(held.loss), readback.push(held.accuracy));
        let values = readback.read();
        // Whole tokens: a share in the backend's type may be a little less than it is.
        let lengths = self.segments(contexts)?.predicted(self.first_predicted());
        let samples = values.of(loss).iter().zip(values.of(accuracy));
        let samples = samples.zip(lengths).enumerate();
        let samples = samples.map(|(sample, ((loss, accuracy), length))| {
            if !loss.is_finite() {
                return Err(Error::Failed(format!(
                    "sample {sample}: the WRITE loss is {loss} after {step} steps of {}: try smaller ones",
                    config.lr
                )));
            }
            Ok(match before.get(sample) {
                Some(done) if config.is_done(done) => *done,
                _ => Crammed {
                    steps: step,
                    accuracy: match length as f64 {
                        0.0 => 1.0,
                        length => (accuracy * length).round() / length,
                    },
                    loss: *loss,
                },
            })
        });
        samples.collect()
    }
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;
    use crate::memory::GradMemConfig;
    use crate::model::{Llama, LlamaConfig};

    type B = burn_flex::Flex;

    fn gradmem() -> GradMem<B, Llama<B>> {
        let device = Default::default();
        let config = LlamaConfig {
            initializer_range: 0.3,
            ..LlamaConfig::new(20, 32, 1, 2)
        };
        let model = config.init(3, &device).unwrap();
        let config = GradMemConfig::new().with_memory_tokens(4);
        config.init(model, 1, &device).unwrap()
    }

    fn contexts() -> Tokens<B> {
        let rows = [&[4, 5, 6, 7, 9, 2][..], &[9, 4], &[11, 3, 3]];
        Tokens::new(&rows, &Default::default()).unwrap()
    }

    #[test]
    fn shares_are_counted_in_whole_tokens() {
        let gradmem = gradmem();
        let config = CramConfig::new().with_lr(0.1).with_until(0.5);
        for length in [12, 19, 23] {
            let row: Vec<u32> = (0..length).map(|at| 4 + at % 3).collect();
            let contexts = Tokens::new(&[row], &Default::default()).unwrap();
            let (_, held) = gradmem.cram(&contexts, &config, |_, _| {}).unwrap();
            let right = held[0].accuracy * f64::from(length);
            assert!((right - right.round()).abs() < 1e-9, "{held:?}");
        }
    }

    #[test]
    fn a_random_model_is_made_to_tell_a_text_by_its_memory_alone() {
        let gradmem = gradmem();
        let config = CramConfig::new().with_lr(0.1).with_until(1.0);
        let mut looks = Vec::new();
        let (memory, held) = gradmem
            .cram(&contexts(), &config, |step, _| looks.push(step))
            .unwrap();
        assert!(held.iter().all(|sample| sample.accuracy == 1.0), "{held:?}");
        // Samples are done one by one, and the memory is what was looked at.
        assert!(held[1].steps < held[0].steps, "{held:?}");
        assert_eq!(looks.last(), held.iter().map(|sample| &sample.steps).max());
        let again = gradmem.reconstruction(&memory, &contexts()).unwrap();
        let loss = again.loss.into_data().to_vec::<f32>().unwrap();
        for (sample, loss) in held.iter().zip(loss) {
            assert!((sample.loss - f64::from(loss)).abs() < 1e-5);
        }
        // Reconstructed from nothing, token by token.
        let found = gradmem.reconstruct(&memory, &[6, 2, 3]).unwrap();
        let rows: Vec<Vec<u32>> = (0..3).map(|row| contexts().row(row).to_vec()).collect();
        assert_eq!(found, rows);
    }

    #[test]
    fn a_sample_is_what_it_is_alone() {
        let gradmem = gradmem();
        let config = CramConfig::new().with_max_steps(30).with_until(1.0);
        let (_, together) = gradmem.cram(&contexts(), &config, |_, _| {}).unwrap();
        for (row, together) in together.iter().enumerate() {
            let alone = Tokens::new(&[contexts().row(row)], &Default::default()).unwrap();
            let (_, alone) = gradmem.cram(&alone, &config, |_, _| {}).unwrap();
            assert_eq!(alone[0].steps, together.steps);
            assert!((alone[0].loss - together.loss).abs() < 1e-4);
        }
    }

    #[test]
    fn settings_that_cannot_work_are_named() {
        let problem = |config: CramConfig| {
            let error = gradmem().cram(&contexts(), &config, |_, _| {}).unwrap_err();
            error.to_string()
        };
        assert!(problem(CramConfig::new().with_lr(0.0)).contains("lr"));
        assert!(problem(CramConfig::new().with_until(1.5)).contains("until"));
        assert!(problem(CramConfig::new().with_max_steps(0)).contains("max_steps"));
    }
}
