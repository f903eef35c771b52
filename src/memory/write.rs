//! WRITE (section 3.1): `M_{k+1} = M_k − α ∇_M L_write(M_k; C)` from the learned `M_0`, the weights frozen.
//!
//! `L_write(M; C) = mean_i −log p(c_i | [M; c_<i])` is each sample's mean over its own tokens, so that α means
//! the same in a batch of one and of a hundred. (The paper prints a sum; its values of α belong to the mean.)
//! The last memory vector, or the last control token behind it, predicts the first token; with memories of other kinds
//! nothing does.
//!
//! A context in chunks takes K steps for each of them ([`Chunks`](super::Chunks)); what is said of K holds within each.

use std::ops::Range;

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use super::noise::{noise, rms};
use super::reconstruct::check_as_many;
use super::segments::{Reading, Segments};
use super::step::{Order, State, Step, StepModels, detached};
use super::{Chunks, GradMem, GradMode, LiftedObjective, Memory};
use crate::episode::Tokens;
use crate::error::Error;
use crate::model::Writable;

impl<B: Backend, M: Writable<B>, O: LiftedObjective<B, M>> GradMem<B, M, O> {
    /// Writes each context into a memory of its own by K gradient steps.
    ///
    /// On a plain backend nothing is kept between steps. On an autodiff backend the result is differentiable
    /// with respect to the model, M0 and whatever else WRITE uses, as far as [`GradMode`] says. May be called in several threads,
    /// which wait for each other ([`GraphLock`](super::GraphLock)); one call with all contexts as a batch is faster. Steps that are too large are no error:
    /// [`Memory::check_finite`] tells.
    ///
    /// # Errors
    ///
    /// An empty context, a token the model does not have, or more tokens than the model has positions.
    pub fn write(&self, contexts: &Tokens<B>) -> Result<Memory<B>, Error> {
        let segments = self.segments(contexts)?;
        let start = self.outer_start(contexts.len());
        Ok(self.steps(self.every_step(&segments), start, &segments))
    }

    /// Writes more into memories, one context to each: WRITE goes on from where it ended, or, if READ is given the
    /// memories of all chunks, the new ones are added.
    ///
    /// # Errors
    ///
    /// As [`GradMem::write`]; also memories of another layout, or not as many as contexts; concatenated
    /// [`reference_chunks`](super::GradMemConfig::reference_chunks).
    pub fn write_on(&self, memory: Memory<B>, contexts: &Tokens<B>) -> Result<Memory<B>, Error> {
        memory.check(&self.layout())?;
        let segments = self.segments(contexts)?;
        check_as_many(&memory, contexts)?;
        let start = memory.fast().to_vec();
        if self.config.reference_chunks && self.config.concatenates() {
            return Err(Error::Input(
                "`reference_chunks` and `chunks = \"concatenated\"`: a memory may hold parts of no text, behind which nothing can be written"
                    .into(),
            ));
        }
        if memory.parts().len() > 1 && !self.config.concatenates() {
            return Err(Error::Input(
                "the memory is of several chunks, which this method does not read: WRITE would leave out all but the last".into(),
            ));
        }
        let written = self.steps(self.every_step(&segments), start, &segments);
        if !self.config.concatenates() {
            return Ok(written);
        }
        let (losses, norms) = (written.losses.clone(), written.grad_norms.clone());
        let memory = memory.followed_by(written)?;
        let chunks = memory.parts().len();
        let taken = self.in_read().positions(chunks);
        if let Some(positions) = self.model.max_positions()
            && taken >= positions
        {
            return Err(Error::Input(format!(
                "the memories of {chunks} chunks take {taken} positions, but the model has {positions}, and a query needs some"
            )));
        }
        Ok(memory.after(losses, norms))
    }

    /// The memories after the first chunk of each context, after the second, and so on.
    ///
    /// # Errors
    ///
    /// As [`GradMem::write`]; also if contexts are not written in chunks one after another.
    pub fn after_each_chunk(&self, contexts: &Tokens<B>) -> Result<Vec<Memory<B>>, Error> {
        if self.config.chunk_size.is_none() || self.config.chunks == Chunks::Parallel {
            return Err(Error::Input(
                "the contexts are not written in chunks one after another: there is no memory between them".into(),
            ));
        }
        let segments = self.segments(contexts)?;
        let steps = self.config.write_steps;
        let mut fast = detached(&self.start(contexts.len()));
        let mut parts: Vec<Vec<Tensor<B, 3>>> = Vec::new();
        let memories = (0..segments.pieces.len()).map(|piece| {
            let written = self.steps(piece * steps..(piece + 1) * steps, fast.clone(), &segments);
            fast = written.fast().to_vec();
            if !self.config.concatenates() {
                parts.clear();
            }
            parts.push(fast.clone());
            let counts = segments.counts.clone();
            Memory::from_parts(parts.clone(), Some(counts))
                .after(written.losses, written.grad_norms)
        });
        Ok(memories.collect())
    }

    /// The chunks of contexts that can be written.
    pub(super) fn segments(&self, contexts: &Tokens<B>) -> Result<Segments<B>, Error> {
        self.check_contexts(contexts)?;
        Segments::new(&self.config, contexts, self.first_predicted())
    }

    /// The K steps of each piece.
    pub(super) fn every_step(&self, segments: &Segments<B>) -> Range<usize> {
        0..segments.pieces.len() * self.config.write_steps
    }

    /// M_0, on the outer tape unless the outer gradient ends at WRITE.
    pub(super) fn outer_start(&self, batch: usize) -> Vec<Tensor<B, 3>> {
        match self.config.grad_mode {
            GradMode::None => detached(&self.start(batch)),
            GradMode::First | GradMode::Second => self.start(batch),
        }
    }

    /// Some of WRITE's steps, from what they begin with.
    pub(super) fn steps(
        &self,
        steps: Range<usize>,
        fast: Vec<Tensor<B, 3>>,
        segments: &Segments<B>,
    ) -> Memory<B> {
        let start = State::at_rest(fast);
        self.seen_steps(steps, start, segments, |_| None, |_| {}).0
    }

    /// The same as in training, with noise if there is to be any, and the velocity that the last of them leaves within its
    /// chunk. `seen` is shown each of them.
    pub(super) fn training_steps(
        &self,
        steps: Range<usize>,
        start: State<B>,
        segments: &Segments<B>,
        seen: impl FnMut(Step<'_, B>),
    ) -> (Memory<B>, Vec<Tensor<B, 3>>) {
        let sigma = self.config.memory_noise;
        let like = start.fast.clone();
        let sizes: Vec<_> = match sigma > 0.0 {
            true => detached(&self.start(1)).iter().map(rms).collect(),
            false => Vec::new(),
        };
        let beside = |n: usize| {
            let contexts = &segments.contexts;
            let noise = noise(contexts, segments.outer_step, n as u64, &like);
            let noise = noise.into_iter().zip(&sizes);
            noise
                .map(|(noise, size)| noise * size.clone().mul_scalar(sigma))
                .collect()
        };
        let beside = |n: usize| (sigma > 0.0).then(|| beside(n));
        self.seen_steps(steps, start, segments, beside, seen)
    }

    /// `beside`: where a step takes its gradient, as the distance from the memory.
    fn seen_steps(
        &self,
        steps: Range<usize>,
        start: State<B>,
        segments: &Segments<B>,
        beside: impl Fn(usize) -> Option<Vec<Tensor<B, 3>>>,
        mut seen: impl FnMut(Step<'_, B>),
    ) -> (Memory<B>, Vec<Tensor<B, 3>>) {
        let State { mut fast, velocity } = start;
        let mut models = StepModels::behind(steps.start % self.config.write_steps.max(1), velocity);
        let (mut losses, mut grad_norms) = (Vec::new(), Vec::new());
        let mut parts = Vec::new();
        for n in steps {
            let k = n % self.config.write_steps;
            if models.taken == self.config.write_steps {
                models = StepModels::default();
            }
            let order = match (self.config.needs_graph(k), self.config.is_second_order(k)) {
                (true, true) => Order::Second,
                (true, false) => Order::First,
                (false, _) => Order::None,
            };
            let reading = Reading {
                beside: beside(n),
                ..segments.reading(n / self.config.write_steps)
            };
            let (loss, norm, after) = models.step(self, reading, fast.clone(), order);
            if models.taken == self.config.write_steps {
                models.velocity.clear();
            }
            seen(Step {
                n,
                before: &fast,
                after: &after,
                velocity: &models.velocity,
                loss: &loss,
            });
            fast = after;
            losses.push(loss);
            grad_norms.push(norm);
            if self.config.concatenates() && k + 1 == self.config.write_steps {
                parts.push(fast.clone());
            }
        }
        if parts.is_empty() {
            parts.push(fast);
        }
        let memory = Memory::from_parts(parts, Some(segments.counts.clone()));
        (memory.after(losses, grad_norms), models.velocity)
    }

    /// The same with WRITE's adapters added to the model's weights.
    pub(super) fn with_adapters(&self) -> Self {
        let mut writing = self.clone();
        if let Some(lora) = writing.write_lora.take() {
            writing.model = lora.adapt(writing.model, M::product);
        }
        writing
    }

    /// With the model made ready for many passes.
    pub(super) fn joined(mut self) -> Self {
        self.model = self.model.joined();
        self
    }
}
