//! The outer loop: the READ loss after WRITE, to be minimised over the model, M0 and the WRITE head
//! *through* the WRITE updates.
//!
//! Two strategies give the same gradient. *Unrolled* keeps one graph over all K steps. *Replay* is gradient
//! checkpointing by steps: it keeps `M_0 … M_{K−1}` alone. WRITE's first steps build no graph, the last one
//! shares READ's; then, from the last but one back to the first, each step's graph is built again and
//! differentiated:
//!
//! ```text
//! v_K−1 = ∂L/∂M_{K−1}        v_k = ∂⟨M_{k+1}(M_k, θ), v_{k+1}⟩/∂M_k        ∂L/∂θ = Σ_k ∂⟨M_{k+1}(M_k, θ), v_{k+1}⟩/∂θ
//! ```

use burn::module::{AutodiffModule, Module};
use burn::optim::{GradientsAccumulator, GradientsParams};
use burn::tensor::Tensor;
use burn::tensor::backend::{AutodiffBackend, Backend};
use serde::{Deserialize, Serialize};

use super::write::detached;
use super::{GradMem, GradMode, Memory};
use crate::episode::Episode;
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
    /// One graph over all K steps: fastest; memory grows with K.
    Unrolled,
    /// One step's graph at a time: memory does not grow with K; all second-order steps but the last are
    /// taken twice.
    Replay,
}

/// The outer loss of a batch and what it was made of.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Outer<B: Backend> {
    /// Mean `−log p` of the labelled tokens, `[1]`.
    pub read_loss: Tensor<B, 1>,
    /// `inner_loss_weight` times the batch mean of the WRITE loss before the last step, `[1]`, if it
    /// has a part in the outer loss.
    pub write_term: Option<Tensor<B, 1>>,
    /// `[batch · r, seq + 1, vocab_size]`
    pub logits: Tensor<B, 3>,
    /// The memory after WRITE.
    pub memory: Memory<B>,
}

impl<B: Backend> Outer<B> {
    /// What training minimises, `[1]`.
    pub fn loss(&self) -> Tensor<B, 1> {
        match &self.write_term {
            Some(term) => self.read_loss.clone() + term.clone(),
            None => self.read_loss.clone(),
        }
    }

    /// What an episode adds to the loss of the batch that it is a part of, `[1]`.
    fn share_of_loss(&self, episode: &Episode<B>) -> Tensor<B, 1> {
        let read_loss = episode.share(self.read_loss.clone(), |totals| totals.labels);
        match self.write_term.clone() {
            Some(term) => read_loss + episode.share(term, |totals| totals.contexts),
            None => read_loss,
        }
    }
}

impl<B: Backend, M: Writable<B>> GradMem<B, M> {
    /// Writes the contexts, reads the queries and takes the outer loss. On an autodiff backend
    /// `outer.loss().backward()` is the meta-gradient: one graph over all K steps.
    ///
    /// # Errors
    ///
    /// As [`GradMem::write`] and [`GradMem::read`]; also labels beyond the vocabulary.
    pub fn outer(&self, episode: &Episode<B>) -> Result<Outer<B>, Error> {
        self.check_episode(episode)?;
        self.read_out(self.all_steps(episode.contexts()), episode)
    }

    fn check_episode(&self, episode: &Episode<B>) -> Result<(), Error> {
        self.check_contexts(episode.contexts())?;
        episode.check_questions(&self.model, self.config.prefix_len())
    }

    /// READ and the losses.
    fn read_out(&self, memory: Memory<B>, episode: &Episode<B>) -> Result<Outer<B>, Error> {
        let (logits, read_loss) = timed::<B, _>(Phase::Read, &episode.device(), || {
            let logits = self.read(&memory, episode.queries())?;
            let read_loss = episode.read_loss(logits.clone());
            Ok::<_, Error>((logits, read_loss))
        })?;
        let weight = self.config.inner_loss_weight;
        let write_term = match memory.losses.last() {
            Some(inner) if weight > 0.0 => Some(inner.clone().mean().mul_scalar(weight)),
            _ => None,
        };
        Ok(Outer {
            read_loss,
            write_term,
            logits,
            memory,
        })
    }
}

impl<B, M> GradMem<B, M>
where
    B: AutodiffBackend,
    M: Writable<B>,
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
        self.check_episode(episode)?;
        let contexts = episode.contexts();
        let size = [contexts.len(), contexts.width()];
        if self.choose(strategy, size) == MetaGradient::Replay {
            return self.replay(episode);
        }
        let outer = self.read_out(self.all_steps(contexts), episode)?;
        let gradients = self.outer_backward(outer.share_of_loss(episode));
        Ok((GradientsParams::from_grads(gradients, self), outer))
    }

    fn outer_backward(&self, loss: Tensor<B, 1>) -> B::Gradients {
        let device = loss.device();
        timed::<B, _>(Phase::OuterBackward, &device, || loss.backward())
    }

    /// The same gradient, one step's graph at a time.
    fn replay(&self, episode: &Episode<B>) -> Result<(GradientsParams, Outer<B>), Error> {
        let contexts = episode.contexts();
        let last = self.config.write_steps - 1;
        let constant = self.clone().no_grad();
        let start = detached(&constant.start(contexts.len()));
        let mut path = vec![Memory::from_fast(start)];
        for k in 0..last {
            let fast = path[k].fast().to_vec();
            path.push(constant.steps(k..k + 1, fast, contexts));
        }

        let mut total = GradientsAccumulator::new();
        let mut walk = |loss: Tensor<B, 1>, from: &[Tensor<B, 3>]| {
            let gradients = self.outer_backward(loss);
            let to_memory: Vec<_> = from
                .iter()
                .map(|x| match x.grad(&gradients) {
                    Some(gradient) => Tensor::from_inner(gradient),
                    None => x.zeros_like(),
                })
                .collect();
            total.accumulate(self, GradientsParams::from_grads(gradients, self));
            to_memory
        };
        let from = leaves(&path[last]);
        let mut memory = self.steps(last..last + 1, from.clone(), contexts);
        for (k, before) in path.iter_mut().skip(1).enumerate() {
            memory.losses.insert(k, before.losses.remove(0));
            memory.grad_norms.insert(k, before.grad_norms.remove(0));
        }
        let outer = self.read_out(memory, episode)?;
        let mut v = walk(outer.share_of_loss(episode), &from);
        // Where a step is not of second order, M_{k+1} is M_k and a constant: v stays.
        for k in (0..last).rev().filter(|k| self.config.is_second_order(*k)) {
            let from = leaves(&path[k]);
            let next = self.steps(k..k + 1, from.clone(), contexts);
            v = walk(product(next.fast(), v), &from);
        }
        if self.config.grad_mode != GradMode::None {
            walk(product(&self.start(contexts.len()), v), &[]);
        }
        Ok((total.grads(), outer))
    }
}

/// The same values, where a graph begins.
fn leaves<B: Backend>(memory: &Memory<B>) -> Vec<Tensor<B, 3>> {
    let fast = detached(memory.fast()).into_iter();
    fast.map(Tensor::require_grad).collect()
}

/// `Σ ⟨x, v⟩`, `[1]`.
fn product<B: Backend>(x: &[Tensor<B, 3>], v: Vec<Tensor<B, 3>>) -> Tensor<B, 1> {
    let products = x.iter().zip(v).map(|(x, v)| (x.clone() * v).sum());
    products
        .reduce(|sum, product| sum + product)
        .expect("a memory has vectors")
}
