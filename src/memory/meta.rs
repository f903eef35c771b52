//! The outer loop: the READ loss after WRITE, to be minimised over the model, M0 and the WRITE head
//! *through* the WRITE updates.
//!
//! Two ways lead to the same gradient. *Unrolled* keeps one graph over all K steps. *Replay* keeps
//! `M_0 … M_{K−1}` alone: WRITE's first steps leave no graph, the last one shares READ's, and then, from
//! the last but one back to the first, each step's graph is built again for as long as it is walked:
//!
//! ```text
//! v_K−1 = ∂L/∂M_{K−1}        v_k = ∂⟨M_{k+1}(M_k, θ), v_{k+1}⟩/∂M_k        ∂L/∂θ = Σ_k ∂⟨M_{k+1}(M_k, θ), v_{k+1}⟩/∂θ
//! ```

use burn::module::{AutodiffModule, Module};
use burn::optim::{GradientsAccumulator, GradientsParams};
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{Int, Tensor};
use serde::{Deserialize, Serialize};

use super::{Contexts, GradMem, GradMode, Memory, next_token_loss};
use crate::error::Error;
use crate::model::Writable;
use crate::support::profile::{Phase, timed};

/// How the outer gradient is computed; its numbers are the same to rounding.
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

/// What a part of a batch counts in the loss of the whole, from 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Share {
    /// Of the labels, over which the READ loss is a mean.
    pub labels: f64,
    /// Of what a reconstruction loss is a mean over: for GradMem, the contexts.
    pub written: f64,
}

impl Share {
    /// The whole batch.
    pub const WHOLE: Self = Self {
        labels: 1.0,
        written: 1.0,
    };

    /// The sum of both losses, weighted.
    pub(crate) fn of<B: Backend>(
        self,
        read_loss: &Tensor<B, 1>,
        write_term: Option<&Tensor<B, 1>>,
    ) -> Tensor<B, 1> {
        let weighted = |loss: &Tensor<B, 1>, weight: f64| match weight {
            1.0 => loss.clone(),
            _ => loss.clone().mul_scalar(weight),
        };
        let read_loss = weighted(read_loss, self.labels);
        match write_term {
            Some(term) => read_loss + weighted(term, self.written),
            None => read_loss,
        }
    }
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
        Share::WHOLE.of(&self.read_loss, self.write_term.as_ref())
    }
}

impl<B: Backend, M: Writable<B>> GradMem<B, M> {
    /// Writes `contexts`, reads `queries` and takes the outer loss. On an autodiff backend
    /// `outer.loss().backward()` is the meta-gradient: one graph over all K steps.
    ///
    /// # Shapes
    ///
    /// - `contexts`: `[batch, context_len]`
    /// - `queries`: `[batch · r, seq]`, query and target together
    /// - `labels`: `[batch · r, seq]`, the tokens to predict, negative where there is none
    ///
    /// # Errors
    ///
    /// As [`GradMem::write`] and [`GradMem::read`]; also labels of another shape than the queries, or
    /// beyond the vocabulary.
    pub fn outer(
        &self,
        contexts: Tensor<B, 2, Int>,
        queries: Tensor<B, 2, Int>,
        labels: Tensor<B, 2, Int>,
    ) -> Result<Outer<B>, Error> {
        check_labels(&queries, &labels, self.model.vocab_size())?;
        self.read_out(self.write(contexts)?, queries, labels)
    }

    /// READ and the losses.
    fn read_out(
        &self,
        memory: Memory<B>,
        queries: Tensor<B, 2, Int>,
        labels: Tensor<B, 2, Int>,
    ) -> Result<Outer<B>, Error> {
        let device = self.mem.device();
        let (logits, read_loss) = timed::<B, _>(Phase::Read, &device, || {
            let logits = self.read(&memory, queries)?;
            let read_loss = next_token_loss(logits.clone(), labels);
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
    /// The meta-gradient of a batch, or of a part that counts as `share` of one, and the outer loss it
    /// belongs to.
    ///
    /// # Shapes
    ///
    /// As [`GradMem::outer`].
    ///
    /// # Errors
    ///
    /// As [`GradMem::outer`].
    pub fn outer_gradient(
        &self,
        contexts: Tensor<B, 2, Int>,
        queries: Tensor<B, 2, Int>,
        labels: Tensor<B, 2, Int>,
        how: MetaGradient,
        share: Share,
    ) -> Result<(GradientsParams, Outer<B>), Error> {
        check_labels(&queries, &labels, self.model.vocab_size())?;
        let contexts = self.contexts(contexts)?;
        if self.choose(how, contexts.tokens.dims()) == MetaGradient::Unrolled {
            let outer = self.read_out(self.all_steps(&contexts), queries, labels)?;
            let loss = share.of(&outer.read_loss, outer.write_term.as_ref());
            let gradients = self.outer_backward(loss);
            return Ok((GradientsParams::from_grads(gradients, self), outer));
        }
        self.replay(&contexts, queries, labels, share)
    }

    fn outer_backward(&self, loss: Tensor<B, 1>) -> B::Gradients {
        let device = loss.device();
        timed::<B, _>(Phase::OuterBackward, &device, || loss.backward())
    }

    fn replay(
        &self,
        contexts: &Contexts<B>,
        queries: Tensor<B, 2, Int>,
        labels: Tensor<B, 2, Int>,
        share: Share,
    ) -> Result<(GradientsParams, Outer<B>), Error> {
        let samples = contexts.lengths.len();
        let last = self.config.write_steps - 1;
        let constant = self.clone().no_grad();
        let mut path = vec![Memory::from_fast(constant.start(samples))];
        for k in 0..last {
            path.push(constant.steps(k..k + 1, path[k].fast(), contexts));
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
        let outer = self.read_out(memory, queries, labels)?;
        let mut v = walk(share.of(&outer.read_loss, outer.write_term.as_ref()), &from);
        // Where a step is not of second order, M_{k+1} is M_k and a constant: v stays.
        for k in (0..last).rev().filter(|k| self.config.is_second_order(*k)) {
            let from = leaves(&path[k]);
            let next = self.steps(k..k + 1, from.clone(), contexts);
            v = walk(product(&next.fast(), v), &from);
        }
        if self.config.grad_mode != GradMode::None {
            walk(product(&self.start(samples), v), &[]);
        }
        Ok((total.grads(), outer))
    }
}

/// The same values, where a graph begins.
fn leaves<B: Backend>(memory: &Memory<B>) -> Vec<Tensor<B, 3>> {
    let fast = memory.fast().into_iter();
    fast.map(|x| x.detach().require_grad()).collect()
}

/// `Σ ⟨x, v⟩`, `[1]`.
fn product<B: Backend>(x: &[Tensor<B, 3>], v: Vec<Tensor<B, 3>>) -> Tensor<B, 1> {
    let products = x.iter().zip(v).map(|(x, v)| (x.clone() * v).sum());
    products
        .reduce(|sum, product| sum + product)
        .expect("a memory has vectors")
}

/// Fails on labels `[rows, seq]` of another shape than the queries, or beyond the vocabulary.
pub(crate) fn check_labels<B: Backend>(
    queries: &Tensor<B, 2, Int>,
    labels: &Tensor<B, 2, Int>,
    vocab: usize,
) -> Result<(), Error> {
    if queries.dims() != labels.dims() {
        return Err(Error::Input(format!(
            "queries are {:?}, but labels {:?}",
            queries.dims(),
            labels.dims()
        )));
    }
    if queries.dims()[1] == 0 {
        return Err(Error::Input(
            "the queries have no tokens to be labelled".into(),
        ));
    }
    let largest = labels.to_data().iter::<i64>().max().unwrap_or(-1);
    match largest < vocab as i64 {
        true => Ok(()),
        false => Err(Error::Input(format!(
            "there is a label {largest}, but the model's tokens are 0 … {}",
            vocab - 1
        ))),
    }
}
