//! The outer loop: the READ loss after WRITE, to be minimised over the model, M0 and the WRITE head
//! *through* the WRITE updates.
//!
//! Two strategies give the same gradient. *Unrolled* keeps one graph over all K steps. *Replay* is gradient
//! checkpointing by steps: it keeps `M_0 … M_{K−1}` alone, and with momentum the velocities, for which `v` has a part too.
//! WRITE's first steps build no graph, the last one shares READ's; then, from the last but one back to the first, each
//! step's graph is built again and differentiated:
//!
//! ```text
//! v_K−1 = ∂L/∂M_{K−1}        v_k = ∂⟨M_{k+1}(M_k, θ), v_{k+1}⟩/∂M_k        ∂L/∂θ = Σ_k ∂⟨M_{k+1}(M_k, θ), v_{k+1}⟩/∂θ
//! ```
//!
//! The steps of all chunks are one row of steps. What a step adds to the loss itself ([`Auxiliary`]) is added to its product;
//! where READ is given the memories of all chunks, the gradient to a chunk's is added to `v` there.

use burn::module::{AutodiffModule, Module};
use burn::optim::{GradientsAccumulator, GradientsParams};
use burn::tensor::Tensor;
use burn::tensor::backend::{AutodiffBackend, Backend};
use serde::{Deserialize, Serialize};

use super::segments::Segments;
use super::step::{State, Step, detached, gradients_to};
use super::{Auxiliary, GradMem, GradMode, GraphLock, LiftedObjective, Memory};
use crate::episode::{Episode, Predicted};
use crate::error::Error;
use crate::model::Writable;
use crate::support::profile::{Phase, timed};

/// The strategy by which the outer gradient is computed; all give the same numbers to rounding.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum MetaGradient {
    /// Unrolled if its graphs fit into half of the memory that is free, else Replay.
    #[default]
    Auto,
    /// One graph over all K steps: fastest; memory grows with K and the number of chunks.
    Unrolled,
    /// One step's graph at a time: memory does not grow with K or the number of chunks; all steps but the last that
    /// are of second order, or have anything to be learned, are taken twice.
    Replay,
}

/// The outer loss of a batch and what it was made of.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Outer<B: Backend> {
    /// Mean `−log p` of the labelled tokens, `[1]`; of [smoothed labels](Episode::with_label_smoothing) their loss.
    pub read_loss: Tensor<B, 1>,
    /// The losses beside it, not weighted.
    pub auxiliary: Auxiliary<B>,
    /// What they add to what training minimises, `[1]`, if anything.
    pub term: Option<Tensor<B, 1>>,
    /// The most probable tokens where there are labels.
    pub predicted: Predicted<B>,
    /// The memory after WRITE.
    pub memory: Memory<B>,
    /// How far the WRITE losses of a step that Replay took twice are apart, the largest over one plus their size: `[1]`. Above rounding
    /// the model is not the same function twice, as with dropout, and Replay's gradient is that of no function.
    pub drift: Option<Tensor<B, 1>>,
}

impl<B: Backend> Outer<B> {
    /// What training minimises, `[1]`.
    pub fn loss(&self) -> Tensor<B, 1> {
        match &self.term {
            Some(term) => self.read_loss.clone() + term.clone(),
            None => self.read_loss.clone(),
        }
    }
}

impl<B: Backend, M: Writable<B>, O: LiftedObjective<B, M>> GradMem<B, M, O> {
    /// Writes the contexts, reads the queries and takes the outer loss as training does. On an autodiff backend
    /// `outer.loss().backward()` is the meta-gradient: one graph over all K steps.
    ///
    /// # Errors
    ///
    /// As [`GradMem::write`] and [`GradMem::read`]; also labels beyond the vocabulary.
    pub fn outer(&self, episode: &Episode<B>) -> Result<Outer<B>, Error> {
        let drawn = self.for_batch(episode);
        let segments = drawn.segments_of(episode)?;
        drawn.unrolled(episode, &segments)
    }

    /// With the number of WRITE steps and the weight of their loss that the batch is trained with.
    fn for_batch(&self, episode: &Episode<B>) -> Self {
        let mut drawn = self.clone();
        let config = &mut drawn.config;
        if let Some([least, most]) = config.random_write_steps.take() {
            config.write_steps = episode.draw(least..=most);
        }
        if let Some(steps) = config.inner_loss_steps.take() {
            let left = 1.0 - episode.step() as f64 / steps as f64;
            config.inner_loss_weight *= left.max(0.0);
        }
        drawn
    }

    /// Writes the contexts and reads the queries, without what only training has: of the losses beside READ's there is
    /// WRITE's alone, and there is no noise.
    ///
    /// # Errors
    ///
    /// As [`GradMem::outer`].
    pub fn answer(&self, episode: &Episode<B>) -> Result<Outer<B>, Error> {
        let quiet = self.without_auxiliary();
        let segments = quiet.segments_of(episode)?;
        quiet.unrolled(episode, &segments)
    }

    fn without_auxiliary(&self) -> Self {
        let mut quiet = self.clone();
        let config = &mut quiet.config;
        for weight in [
            &mut config.step_alignment_weight,
            &mut config.intermediate_read_weight,
            &mut config.memory_alignment_weight,
            &mut config.star_weight,
            &mut config.memory_noise,
        ] {
            *weight = 0.0;
        }
        quiet
    }

    /// The chunks of an episode that passed its checks.
    fn segments_of(&self, episode: &Episode<B>) -> Result<Segments<B>, Error> {
        let contexts = episode.contexts();
        let mut segments = self.segments(contexts)?;
        segments.outer_step = episode.step();
        episode.check_questions(&self.model, self.config.read_after(contexts.width()))?;
        Ok(segments)
    }

    fn unrolled(&self, episode: &Episode<B>, segments: &Segments<B>) -> Result<Outer<B>, Error> {
        let ready = self.ready();
        let start = ready.outer_start(episode.len());
        let mut terms = Ok(Auxiliary::default());
        let memory = ready
            .training_steps(
                ready.every_step(segments),
                State::at_rest(start.clone()),
                segments,
                |step| self.add_terms(&mut terms, &step, segments, episode),
            )
            .0;
        let mut terms = terms?;
        terms.add(self.terms_of_end(&start, memory.fast(), segments, episode)?);
        ready.read_out(memory, terms, episode)
    }

    /// With the model made ready once for all of WRITE's steps and READ, where all of them have the same weights on the same tape:
    /// without adapters of WRITE's own, or steps that the outer gradient does not pass through. For one graph: it can be
    /// differentiated once. What is a constant beside it is computed on `self`, whose copies have no graph.
    fn ready(&self) -> Self {
        let config = &self.config;
        let alike = (0..config.write_steps).all(|k| config.is_second_order(k));
        match alike && self.write_lora.is_none() {
            true => self.clone().joined(),
            false => self.clone(),
        }
    }

    fn add_terms(
        &self,
        sum: &mut Result<Auxiliary<B>, Error>,
        step: &Step<'_, B>,
        segments: &Segments<B>,
        episode: &Episode<B>,
    ) {
        let terms = self.terms_of_step(step, segments, episode);
        match (sum.as_mut(), terms) {
            (Ok(sum), Ok(terms)) => sum.add(terms),
            (Ok(_), Err(error)) => *sum = Err(error),
            (Err(_), _) => {}
        }
    }

    /// READ and the losses.
    fn read_out(
        &self,
        memory: Memory<B>,
        auxiliary: Auxiliary<B>,
        episode: &Episode<B>,
    ) -> Result<Outer<B>, Error> {
        let (read_loss, predicted) = timed::<B, _>(Phase::Read, &episode.device(), || {
            self.read_answers(&memory, episode)
        })?;
        Ok(Outer {
            read_loss,
            term: auxiliary.weighted(&self.config, self.counted(), |mean, _| mean),
            auxiliary,
            predicted,
            memory,
            drift: None,
        })
    }

    /// What losses add to that of the batch that the episode is a part of, `[1]`.
    fn term_of_part(&self, terms: &Auxiliary<B>, episode: &Episode<B>) -> Option<Tensor<B, 1>> {
        terms.weighted(&self.config, self.counted(), |mean, count| {
            episode.share(mean, count)
        })
    }
}

impl<B, M, O> GradMem<B, M, O>
where
    B: AutodiffBackend,
    M: Writable<B>,
    O: LiftedObjective<B, M>,
    Self: AutodiffModule<B>,
{
    /// The meta-gradient of an episode and the outer loss it belongs to. Of a [part](Episode::split) of a
    /// batch it is what the part adds to the gradient of the whole.
    ///
    /// # Errors
    ///
    /// As [`GradMem::outer`].
    pub fn outer_gradient(
        &self,
        episode: &Episode<B>,
        strategy: MetaGradient,
    ) -> Result<(GradientsParams, Outer<B>), Error> {
        let _lock = GraphLock::new();
        let drawn = self.for_batch(episode);
        let segments = drawn.segments_of(episode)?;
        let contexts = episode.contexts();
        let size = [contexts.len(), contexts.width()];
        if drawn.choose(strategy, size) == MetaGradient::Replay {
            return drawn.replay(episode, &segments);
        }
        let outer = drawn.unrolled(episode, &segments)?;
        let loss = drawn.loss_of_part(&outer, episode);
        let gradients = drawn.outer_backward(loss);
        Ok((GradientsParams::from_grads(gradients, self), outer))
    }

    fn loss_of_part(&self, outer: &Outer<B>, episode: &Episode<B>) -> Tensor<B, 1> {
        let read_loss = episode.share(outer.read_loss.clone(), self.counted());
        sum(read_loss, self.term_of_part(&outer.auxiliary, episode))
    }

    fn outer_backward(&self, loss: Tensor<B, 1>) -> B::Gradients {
        let device = loss.device();
        timed::<B, _>(Phase::OuterBackward, &device, || loss.backward())
    }

    /// The same gradient, one step's graph at a time. A model that draws at random must draw the same when a step is taken
    /// again, which nothing here can see to: [`Outer::drift`] tells.
    fn replay(
        &self,
        episode: &Episode<B>,
        segments: &Segments<B>,
    ) -> Result<(GradientsParams, Outer<B>), Error> {
        let steps = self.config.write_steps;
        let last = self.every_step(segments).end - 1;
        let path = self.path(last, segments, episode);
        let mut total = GradientsAccumulator::new();
        let (outer, to) = self.last_step(&path, segments, episode, &mut total)?;

        // Back along the path: `v` is the gradient to M_{n+1}.
        let mut v = to.before_last.tensors();
        let mut auxiliary = outer.auxiliary.clone().detach();
        let mut drift: Option<Tensor<B, 1>> = None;
        for n in (0..last).rev() {
            if (n + 1) % steps == 0
                && let Some(to_end) = to.ends.get((n + 1) / steps - 1)
            {
                v = plus(v, to_end);
            }
            let k = n % steps;
            let has_terms = self.config.has_terms(k);
            // Where a step is not of second order, M_{k+1} is M_k and a constant: v stays. Not behind a gate, or where steps
            // are learned.
            let learned = self.gate.is_some() || self.inner.is_some();
            if !self.config.is_second_order(k) && !has_terms && !learned {
                continue;
            }
            let from = path.states[n].map(leaves);
            let (next, velocity, terms) = self.step_with_terms(n, &from, segments, episode)?;
            let apart = apart(&next.losses[0], &path.losses[n]);
            drift = Some(match drift {
                Some(drift) => drift.max_pair(apart),
                None => apart,
            });
            let reached = [next.fast(), &velocity].concat();
            let loss = sum(dot(&reached, v), self.term_of_part(&terms, episode));
            v = self.pull(loss, &from.tensors(), &mut total);
            auxiliary.add(terms.detach());
        }
        if self.config.grad_mode != GradMode::None {
            let v = match to.origin.is_empty() {
                true => v,
                false => plus(v, &to.origin),
            };
            self.pull(dot(&self.start(episode.len()), v), &[], &mut total);
        }
        let term = auxiliary.weighted(&self.config, self.counted(), |mean, _| mean);
        let outer = Outer {
            term,
            auxiliary,
            drift,
            ..outer
        };
        Ok((total.grads(), outer))
    }

    /// The first `last` steps, on weights without a graph.
    fn path(&self, last: usize, segments: &Segments<B>, episode: &Episode<B>) -> Trajectory<B> {
        let constant = self.clone().no_grad();
        let start = State::at_rest(detached(&constant.start(episode.len())));
        let mut states = vec![start.clone()];
        let (memory, _) = constant.training_steps(0..last, start, segments, |step| {
            states.push(State {
                fast: step.after.to_vec(),
                velocity: step.velocity.to_vec(),
            });
        });
        Trajectory {
            states,
            losses: memory.losses,
            norms: memory.grad_norms,
        }
    }

    /// The last step and READ as one graph: the outer loss, whose gradient is added to `total`, and its gradients to the memories
    /// before the last one.
    fn last_step(
        &self,
        path: &Trajectory<B>,
        segments: &Segments<B>,
        episode: &Episode<B>,
        total: &mut GradientsAccumulator<Self>,
    ) -> Result<(Outer<B>, Before<B>), Error> {
        let steps = self.config.write_steps;
        let last = path.states.len() - 1;
        let ends = match self.config.concatenates() {
            true => 1..segments.pieces.len(),
            false => 0..0,
        };
        let from = Before {
            before_last: path.states[last].map(leaves),
            ends: ends
                .map(|piece| leaves(&path.states[piece * steps].fast))
                .collect(),
            origin: match self.has_terms_of_end() && last > 0 {
                true => leaves(&path.states[0].fast),
                false => Vec::new(),
            },
        };
        let (next, _, mut terms) =
            self.step_with_terms(last, &from.before_last, segments, episode)?;
        let start = match from.origin.is_empty() {
            true => &from.before_last.fast,
            false => &from.origin,
        };
        terms.add(self.terms_of_end(start, next.fast(), segments, episode)?);
        let parts = [&from.ends[..], &[next.fast().to_vec()]].concat();
        let counts = (!from.ends.is_empty()).then(|| segments.counts.clone());
        let memory = Memory::from_parts(parts, counts).after(
            [&path.losses[..], &next.losses].concat(),
            [&path.norms[..], &next.grad_norms].concat(),
        );
        let outer = self.read_out(memory, terms, episode)?;
        let loss = self.loss_of_part(&outer, episode);
        let to = from.with(self.pull(loss, &from.tensors(), total));
        Ok((outer, to))
    }

    /// Step `n` of training.
    fn step_with_terms(
        &self,
        n: usize,
        from: &State<B>,
        segments: &Segments<B>,
        episode: &Episode<B>,
    ) -> Result<StepWithTerms<B>, Error> {
        let mut terms = Ok(Auxiliary::default());
        let (next, velocity) = self.training_steps(n..n + 1, from.clone(), segments, |step| {
            self.add_terms(&mut terms, &step, segments, episode);
        });
        Ok((next, velocity, terms?))
    }

    /// Adds the gradient of `loss` to `total`; its gradients to `from`, which are constants.
    fn pull(
        &self,
        loss: Tensor<B, 1>,
        from: &[Tensor<B, 3>],
        total: &mut GradientsAccumulator<Self>,
    ) -> Vec<Tensor<B, 3>> {
        let gradients = self.outer_backward(loss);
        let to = gradients_to(from, &gradients).into_iter();
        let to = to.map(Tensor::from_inner).collect();
        total.accumulate(self, GradientsParams::from_grads(gradients, self));
        to
    }
}

/// The memory after a step, the velocity that it leaves, and what it adds to the loss.
type StepWithTerms<B> = (Memory<B>, Vec<Tensor<B, 3>>, Auxiliary<B>);

/// The steps before the last one, taken without a graph.
struct Trajectory<B: Backend> {
    /// `M_0 …`, and with momentum the velocities.
    states: Vec<State<B>>,
    /// The WRITE loss before each step: `[batch]`.
    losses: Vec<Tensor<B, 1>>,
    /// The norms of each step's gradients: `[batch, matrices]`.
    norms: Vec<Tensor<B, 2>>,
}

/// The memories before the last one that the outer loss is a function of, or its gradients to them.
struct Before<B: Backend> {
    /// What the last step begins with.
    before_last: State<B>,
    /// What the chunks before the last one left, if READ is given them.
    ends: Vec<Vec<Tensor<B, 3>>>,
    /// `M_0`, if a loss compares the last memory with it.
    origin: Vec<Tensor<B, 3>>,
}

impl<B: Backend> Before<B> {
    /// All in a row.
    fn tensors(&self) -> Vec<Tensor<B, 3>> {
        [
            &self.before_last.tensors()[..],
            &self.ends.concat(),
            &self.origin,
        ]
        .concat()
    }

    /// Other tensors in their places.
    fn with(&self, tensors: Vec<Tensor<B, 3>>) -> Self {
        let mut tensors = tensors.into_iter();
        let mut like = |x: &Vec<_>| tensors.by_ref().take(x.len()).collect();
        Self {
            before_last: State {
                fast: like(&self.before_last.fast),
                velocity: like(&self.before_last.velocity),
            },
            ends: self.ends.iter().map(&mut like).collect(),
            origin: like(&self.origin),
        }
    }
}

/// The same values, where a graph begins.
fn leaves<B: Backend>(memory: &[Tensor<B, 3>]) -> Vec<Tensor<B, 3>> {
    let fast = detached(memory).into_iter();
    fast.map(Tensor::require_grad).collect()
}

/// The largest difference of two losses `[batch]` over one plus their size, `[1]`.
fn apart<B: Backend>(x: &Tensor<B, 1>, y: &Tensor<B, 1>) -> Tensor<B, 1> {
    let [x, y] = [x, y].map(|x| x.clone().detach());
    ((x - y.clone()).abs() / y.abs().add_scalar(1.0)).max()
}

/// `Σ ⟨x, v⟩`, `[1]`.
fn dot<B: Backend>(x: &[Tensor<B, 3>], v: Vec<Tensor<B, 3>>) -> Tensor<B, 1> {
    let products = x.iter().zip(v).map(|(x, v)| (x.clone() * v).sum());
    products
        .reduce(|sum, product| sum + product)
        .expect("a memory has vectors")
}

/// The sums of both, tensor by tensor.
fn plus<B: Backend>(v: Vec<Tensor<B, 3>>, more: &[Tensor<B, 3>]) -> Vec<Tensor<B, 3>> {
    let pairs = v.into_iter().zip(more);
    pairs.map(|(v, more)| v + more.clone()).collect()
}

fn sum<B: Backend>(loss: Tensor<B, 1>, term: Option<Tensor<B, 1>>) -> Tensor<B, 1> {
    match term {
        Some(term) => loss + term,
        None => loss,
    }
}
