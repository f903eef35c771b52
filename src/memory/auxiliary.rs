//! What training may add to the outer loss so that WRITE learns sooner: the agreement of its steps with the READ
//! loss's gradient (alignment), the READ loss after each step (intermediate READ), and the change of READ's answers when the memory
//! is moved (STAR).
//!
//! With `u_k = M_{k−1} − M_k`, the READ loss `L_k` of `M_k` and `ĝ_k` its gradient to `M_k`, a constant:
//!
//! | loss | is | costs |
//! |---|---|---|
//! | step alignment | `mean_k (1 − mean_batch cos(u_k, ĝ_k))` | K READs and their gradients to the memory |
//! | … with its last step | the same with the pair `(∇L_write(M_K), ĝ_K)` in the mean | one more WRITE gradient, one more READ and its gradient |
//! | intermediate READ | `Σ_{k<K} w_k L_k`, `w_k` in proportion to `1/(K − k + 1)`, of sum 1 | K − 1 READs |
//! | memory alignment | `1 − mean_batch cos(M_0 − M_K, ĝ_K)` | a READ and its gradient to the memory |
//! | STAR | the divergence of READ's answers from `m` and from `m + δ` at the end of each chunk | three READs |

use burn::module::{AutodiffModule, Module};
use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};
use gradmem_kernels::Tape;

use super::noise::{noise, rms, sample_squares};
use super::segments::Segments;
use super::step::{Step, StepModel, detached, gradients_to, on_tape};
use super::{GradMem, GradMemConfig, GraphLock, LiftedObjective, Memory};
use crate::episode::{Episode, Totals};
use crate::error::Error;
use crate::model::Writable;

/// The losses beside READ's, none of them weighted.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Auxiliary<B: Backend> {
    /// The batch mean of the WRITE loss before the last step of a chunk, the mean over a sample's chunks: `[1]`.
    pub write: Option<Tensor<B, 1>>,
    /// Step alignment: `[1]`.
    pub step_alignment: Option<Tensor<B, 1>>,
    /// Intermediate READ: `[1]`.
    pub intermediate_read: Option<Tensor<B, 1>>,
    /// Memory alignment: `[1]`.
    pub memory_alignment: Option<Tensor<B, 1>>,
    /// STAR: `[1]`.
    pub star: Option<Tensor<B, 1>>,
}

impl<B: Backend> Auxiliary<B> {
    fn all(&mut self) -> [&mut Option<Tensor<B, 1>>; 5] {
        [
            &mut self.write,
            &mut self.step_alignment,
            &mut self.intermediate_read,
            &mut self.memory_alignment,
            &mut self.star,
        ]
    }

    /// The sums of both.
    pub(super) fn add(&mut self, mut other: Self) {
        for (sum, term) in self.all().into_iter().zip(other.all()) {
            *sum = match (sum.take(), term.take()) {
                (Some(sum), Some(term)) => Some(sum + term),
                (one, None) | (None, one) => one,
            };
        }
    }

    /// The same values without their graph.
    pub(super) fn detach(mut self) -> Self {
        for term in self.all() {
            *term = term.take().map(Tensor::detach);
        }
        self
    }

    /// What they add to the outer loss, `[1]`. `share` gives what a mean over the part of a batch adds to the same mean
    /// over the whole, by what the mean is over.
    pub(super) fn weighted(
        &self,
        config: &GradMemConfig,
        labels: fn(Totals) -> usize,
        share: impl Fn(Tensor<B, 1>, fn(Totals) -> usize) -> Tensor<B, 1>,
    ) -> Option<Tensor<B, 1>> {
        let contexts: fn(Totals) -> usize = |totals| totals.contexts;
        let terms = [
            (&self.write, config.inner_loss_weight, contexts),
            (&self.step_alignment, config.step_alignment_weight, contexts),
            (
                &self.intermediate_read,
                config.intermediate_read_weight,
                labels,
            ),
            (
                &self.memory_alignment,
                config.memory_alignment_weight,
                contexts,
            ),
            (&self.star, config.star_weight, labels),
        ];
        let terms = terms.into_iter().filter_map(|(term, weight, count)| {
            let term = term.clone()?;
            (weight > 0.0).then(|| share(term.mul_scalar(weight), count))
        });
        terms.reduce(|sum, term| sum + term)
    }
}

impl<B: Backend, M: Writable<B>, O: LiftedObjective<B, M>> GradMem<B, M, O> {
    /// What a step of WRITE adds.
    pub(super) fn terms_of_step(
        &self,
        step: &Step<'_, B>,
        segments: &Segments<B>,
        episode: &Episode<B>,
    ) -> Result<Auxiliary<B>, Error> {
        let config = &self.config;
        let steps = config.write_steps;
        // M_k is what the step leads to.
        let k = step.n % steps + 1;
        let mut terms = Auxiliary::default();
        if k == steps && config.inner_loss_weight > 0.0 {
            let shares = segments.shares(step.n / steps);
            let shares = TensorData::new(shares, [episode.len()]);
            let loss = step.loss.clone() * Tensor::from_data(shares, &episode.device());
            terms.write = Some(loss.mean());
        }
        if config.step_alignment_weight > 0.0 {
            let wanted = self.read_gradient(step.after, episode)?;
            let taken: Vec<_> = difference(step.before, step.after);
            let pairs = steps + usize::from(config.align_last_step);
            let term = self
                .misalignment(&taken, &wanted)
                .mul_scalar(1.0 / pairs as f64);
            terms.step_alignment = Some(term);
        }
        if config.intermediate_read_weight > 0.0 && k < steps {
            let total: f64 = (1..steps).map(|k| 1.0 / (steps - k + 1) as f64).sum();
            let weight = 1.0 / (steps - k + 1) as f64 / total;
            let memory = Memory::from_fast(step.after.to_vec());
            let (read_loss, _) = self.read_answers(&memory, episode)?;
            terms.intermediate_read = Some(read_loss.mul_scalar(weight));
        }
        if config.star_weight > 0.0 && k == steps {
            let shares = segments.shares(step.n / steps);
            terms.star = Some(self.divergence(step.after, &shares, episode)?);
        }
        Ok(terms)
    }

    /// What the memory that WRITE ends with adds.
    pub(super) fn terms_of_end(
        &self,
        start: &[Tensor<B, 3>],
        end: &[Tensor<B, 3>],
        segments: &Segments<B>,
        episode: &Episode<B>,
    ) -> Result<Auxiliary<B>, Error> {
        let config = &self.config;
        let mut terms = Auxiliary::default();
        let last_step = config.step_alignment_weight > 0.0 && config.align_last_step;
        if !last_step && config.memory_alignment_weight == 0.0 {
            return Ok(terms);
        }
        let wanted = self.read_gradient(end, episode)?;
        if last_step {
            // The gradient of the step that would come next.
            let piece = &segments.pieces[segments.pieces.len() - 1];
            let (_, next) = StepModel::new(self, piece).gradients(end.to_vec(), piece);
            let pairs = config.write_steps + 1;
            let term = self.misalignment(&next, &wanted);
            terms.step_alignment = Some(term.mul_scalar(1.0 / pairs as f64));
        }
        if config.memory_alignment_weight > 0.0 {
            let taken = difference(start, end);
            terms.memory_alignment = Some(self.misalignment(&taken, &wanted));
        }
        Ok(terms)
    }

    /// Whether the last memory adds anything.
    pub(super) fn has_terms_of_end(&self) -> bool {
        let config = &self.config;
        config.memory_alignment_weight > 0.0
            || (config.step_alignment_weight > 0.0 && config.align_last_step)
    }

    /// `1 − mean_batch cos(u, ĝ)`, or with `alignment_norm` `mean_batch (1 − ‖ĝ‖ cos(u, ĝ))`: `[1]`.
    fn misalignment(&self, taken: &[Tensor<B, 3>], wanted: &[Tensor<B, 3>]) -> Tensor<B, 1> {
        let sum = |terms: Vec<Tensor<B, 3>>| {
            let sum = terms.into_iter().reduce(|sum, term| sum + term);
            sum.unwrap_or_else(|| unreachable!("a memory has matrices"))
        };
        let norm = |x: &[Tensor<B, 3>]| {
            let squares = sum(x.iter().map(|x| sample_squares(x.clone())).collect());
            // Where nothing moves the root is taken of no zero, whose slope is infinite.
            squares.clamp_min(1e-16).sqrt()
        };
        let dot = taken.iter().zip(wanted);
        let dot = sum(dot
            .map(|(u, g)| (u.clone() * g.clone()).sum_dim(2).sum_dim(1))
            .collect());
        let cosine = match self.config.alignment_norm {
            true => dot / norm(taken),
            false => dot / (norm(taken) * norm(wanted)),
        };
        cosine.mean().neg().add_scalar(1.0)
    }

    /// `ĝ`: the gradient of the READ loss to a memory, a constant. Of a part of a batch it is what it is in the whole.
    fn read_gradient(
        &self,
        fast: &[Tensor<B, 3>],
        episode: &Episode<B>,
    ) -> Result<Vec<Tensor<B, 3>>, Error> {
        let episode = episode.lift();
        let counted = self.counted();
        self.gradient_at(detached(fast), |model, memory| {
            let (read_loss, _) = model.read_answers(memory, &episode)?;
            Ok(episode.share(read_loss, counted))
        })
    }

    /// The gradient to `fast` of what `loss` makes of it, all of it constants.
    fn gradient_at(
        &self,
        fast: Vec<Tensor<B, 3>>,
        loss: impl FnOnce(
            &GradMem<Tape<B>, M::Lifted, O::Lifted>,
            &Memory<Tape<B>>,
        ) -> Result<Tensor<Tape<B>, 1>, Error>,
    ) -> Result<Vec<Tensor<B, 3>>, Error> {
        let _lock = GraphLock::inner();
        let model = GradMem::from_inner(self.clone().no_grad()).no_grad();
        let fast = on_tape(fast);
        let gradients = loss(&model, &Memory::from_fast(fast.clone()))?.backward();
        Ok(detached(&gradients_to(&fast, &gradients)))
    }

    /// STAR: `KL(READ(m) ‖ READ(m + δ))` over the labelled tokens, `[1]`. `δ` is a constant: from a random direction of
    /// length `star_radius` one step of length `star_step` along the divergence's gradient, both lengths relative to the
    /// root mean square of the memory's numbers.
    /// Each sample counts by its share.
    fn divergence(
        &self,
        fast: &[Tensor<B, 3>],
        shares: &[f64],
        episode: &Episode<B>,
    ) -> Result<Tensor<B, 1>, Error> {
        let config = &self.config;
        let constant = detached(fast);
        let scale = constant.iter().map(rms).collect::<Vec<_>>();
        let random = noise(episode.contexts(), episode.step(), STAR, &constant);
        let near: Vec<_> = constant
            .iter()
            .zip(random.into_iter().zip(&scale))
            .map(|(x, (noise, rms))| x.clone() + noise * rms.clone().mul_scalar(config.star_radius))
            .collect();
        let lifted = episode.lift();
        let here = self.read(&Memory::from_fast(fast.to_vec()), episode.queries())?;
        let answers = here.clone().detach();
        let gradients = self.gradient_at(near.clone(), |model, memory| {
            let moved = model.read(memory, lifted.queries())?;
            let answers = Tensor::from_inner(answers);
            Ok(lifted.labels().mean_divergence(answers, moved, shares))
        })?;
        let steps = near.into_iter().zip(gradients.into_iter().zip(scale));
        let shifts = steps.zip(&constant).map(|((near, (gradient, rms)), x)| {
            let [_, rows, columns] = gradient.dims();
            let length = sample_squares(gradient.clone()).sqrt().clamp_min(1e-16);
            let unit = (gradient / length).mul_scalar(((rows * columns) as f64).sqrt());
            near + unit * rms.mul_scalar(config.star_step) - x.clone()
        });
        let moved = fast.iter().zip(shifts);
        let moved = moved.map(|(x, shift)| x.clone() + shift.detach());
        let moved = Memory::from_fast(moved.collect());
        let there = self.read(&moved, episode.queries())?;
        Ok(episode.labels().mean_divergence(here, there, shares))
    }

    /// Which labels READ's loss is a mean over.
    pub(crate) fn counted(&self) -> fn(Totals) -> usize {
        match self.first_predicted() {
            0 => |totals| totals.labels,
            _ => |totals| totals.later_labels,
        }
    }
}

/// `a − b`, matrix by matrix.
fn difference<B: Backend>(a: &[Tensor<B, 3>], b: &[Tensor<B, 3>]) -> Vec<Tensor<B, 3>> {
    let pairs = a.iter().zip(b);
    pairs.map(|(a, b)| a.clone() - b.clone()).collect()
}

/// The stream that STAR draws from; steps of WRITE have their numbers.
const STAR: u64 = u64::MAX;
