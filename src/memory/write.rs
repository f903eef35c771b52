//! WRITE: `M_{k+1} = M_k − α ∇_M L_write(M_k; C)` from the learned `M_0`, the weights frozen.
//!
//! `L_write(M; C) = mean_i −log p(c_i | [M; c_<i])` is each sample's mean over its own tokens, so that
//! α means the same in a batch of one and of a hundred. (The paper prints a sum; its values of α
//! belong to the mean.) The last memory vector, or the last control token behind it, predicts the
//! first token.

use std::ops::Range;

use burn::backend::Autodiff;
use burn::module::{AutodiffModule, Module};
use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor};

use super::{Contexts, GradMem, GradMode, MemProj, frame};
use crate::error::Error;
use crate::model::layers::affine;
use crate::model::rows::select;
use crate::model::{Cache, CausalLm, Writable, check_positions};
use crate::support::profile::{Phase, timed};

/// What WRITE leaves of a batch of contexts, and how it went.
#[derive(Clone, Debug)]
#[non_exhaustive]
#[must_use]
pub struct Memory<B: Backend> {
    /// M_K: `[batch, memory_tokens, d_model]`.
    pub vectors: Tensor<B, 3>,
    /// With [`MemProj::PerSample`] each sample's own map, the weight `[batch, d_model, d_model]` and the
    /// bias `[batch, 1, d_model]`.
    pub projection: Option<[Tensor<B, 3>; 2]>,
    /// Each sample's WRITE loss before each of the K steps, in nats a token: K tensors `[batch]`.
    pub losses: Vec<Tensor<B, 1>>,
    /// Each sample's L2 norm of the inner gradient to the vectors at each step, before clipping: K
    /// tensors `[batch]`.
    pub grad_norms: Vec<Tensor<B, 1>>,
}

impl<B: Backend> Memory<B> {
    /// A memory from vectors alone: `[batch, memory_tokens, d_model]`.
    pub fn from_vectors(vectors: Tensor<B, 3>) -> Self {
        Self::from_fast(vec![vectors])
    }

    /// The memories of several batches as one, with what is known of all of them: numbers of WRITE steps that
    /// differ leave no losses.
    ///
    /// # Errors
    ///
    /// If there are none, or they differ in shape or in whether they have projections.
    pub fn cat(memories: Vec<Self>) -> Result<Self, Error> {
        let kind = |memory: &Self| {
            let [_, m, d] = memory.vectors.dims();
            (m, d, memory.projection.is_some())
        };
        let Some(one) = memories.first().map(kind) else {
            return Err(Error::Input("there is no memory".into()));
        };
        if let Some(other) = memories.iter().map(kind).find(|other| *other != one) {
            let of = |(m, d, own): (usize, usize, bool)| {
                let own = if own {
                    " with projections of their own"
                } else {
                    ""
                };
                format!("{m} vectors of width {d}{own}")
            };
            return Err(Error::Input(format!(
                "memories of {} and of {} do not go together",
                of(one),
                of(other)
            )));
        }
        let fast: Vec<_> = memories.iter().map(Self::fast).collect();
        let parts = (0..fast[0].len()).map(|part| {
            let each = fast.iter().map(|fast| fast[part].clone());
            Tensor::cat(each.collect(), 0)
        });
        let steps = |of: fn(&Self) -> &Vec<Tensor<B, 1>>| -> Vec<Tensor<B, 1>> {
            let steps = of(&memories[0]).len();
            if memories.iter().any(|memory| of(memory).len() != steps) {
                return Vec::new();
            }
            (0..steps)
                .map(|k| Tensor::cat(memories.iter().map(|x| of(x)[k].clone()).collect(), 0))
                .collect()
        };
        Ok(Self {
            losses: steps(|memory| &memory.losses),
            grad_norms: steps(|memory| &memory.grad_norms),
            ..Self::from_fast(parts.collect())
        })
    }

    /// The memories of these indices, in this order, with what is known of them.
    ///
    /// # Errors
    ///
    /// An index beyond them, or none.
    pub fn select(&self, indices: &[usize]) -> Result<Self, Error> {
        check_indices(indices, self.vectors.dims()[0])?;
        let fast = self.fast().into_iter().map(|x| select(x, indices));
        let of_each = |values: &[Tensor<B, 1>]| {
            let values = values.iter().cloned();
            values.map(|x| select(x, indices)).collect()
        };
        Ok(Self {
            losses: of_each(&self.losses),
            grad_norms: of_each(&self.grad_norms),
            ..Self::from_fast(fast.collect())
        })
    }

    /// A memory from all that WRITE changes.
    pub(super) fn from_fast(mut fast: Vec<Tensor<B, 3>>) -> Self {
        let projection = fast.split_off(1).try_into().ok();
        Self {
            vectors: fast.remove(0),
            projection,
            losses: Vec::new(),
            grad_norms: Vec::new(),
        }
    }

    /// All that WRITE changes: the vectors, and each sample's own projection if it has one.
    pub(super) fn fast(&self) -> Vec<Tensor<B, 3>> {
        let projection = self.projection.iter().flatten().cloned();
        std::iter::once(self.vectors.clone())
            .chain(projection)
            .collect()
    }
}

/// Fails unless there are indices, all of them of one of `n` memories.
pub(super) fn check_indices(indices: &[usize], n: usize) -> Result<(), Error> {
    if let Some(index) = indices.iter().find(|index| **index >= n) {
        return Err(Error::Input(format!(
            "there is no memory {index}: there are {n}, from 0 on"
        )));
    }
    match indices.is_empty() {
        true => Err(Error::Input("no memory is selected".into())),
        false => Ok(()),
    }
}

impl<B: Backend, M: Writable<B>> GradMem<B, M> {
    /// Writes each context into memory vectors of its own by K gradient steps.
    ///
    /// On a plain backend nothing is kept between steps. On an autodiff backend the result is
    /// differentiable with respect to the model, M0 and whatever else WRITE uses, as far as
    /// [`GradMode`] says.
    ///
    /// # Shapes
    ///
    /// - `contexts`: token ids `[batch, seq]`, shorter ones filled with `pad_token` on the right
    ///
    /// # Errors
    ///
    /// An empty context, a token the model does not have, padding between tokens, or more tokens
    /// than the model has positions.
    pub fn write(&self, contexts: Tensor<B, 2, Int>) -> Result<Memory<B>, Error> {
        Ok(self.all_steps(&self.contexts(contexts)?))
    }

    /// WRITE of contexts that passed their checks.
    pub(super) fn all_steps(&self, contexts: &Contexts<B>) -> Memory<B> {
        let start = self.start(contexts.lengths.len());
        self.steps(0..self.config.write_steps, start, contexts)
    }

    /// Those of WRITE's K steps, from what they begin with.
    pub(super) fn steps(
        &self,
        steps: Range<usize>,
        mut fast: Vec<Tensor<B, 3>>,
        contexts: &Contexts<B>,
    ) -> Memory<B> {
        let config = &self.config;
        let mut writers = Writers::default();
        let (mut losses, mut grad_norms) = (Vec::new(), Vec::new());
        for k in steps {
            let order = match (config.needs_graph(k), config.is_second_order(k)) {
                (true, true) => Order::Second,
                (true, false) => Order::First,
                (false, _) => Order::None,
            };
            let (loss, norm);
            (loss, norm, fast) = writers.step(self, contexts, fast, order);
            losses.push(loss);
            grad_norms.push(norm);
        }
        Memory {
            losses,
            grad_norms,
            ..Memory::from_fast(fast)
        }
    }

    /// `M_0, M_1, M_2, …` of each context, without end: what other numbers of WRITE steps would give, each
    /// for the price of one step more. For test time: no graph for an outer gradient is kept.
    ///
    /// # Shapes
    ///
    /// As [`GradMem::write`].
    ///
    /// # Errors
    ///
    /// As [`GradMem::write`].
    pub fn trajectory(
        &self,
        contexts: Tensor<B, 2, Int>,
    ) -> Result<impl Iterator<Item = Memory<B>>, Error> {
        let contexts = self.contexts(contexts)?;
        let mut writers = Writers::default();
        let mut memory = Memory::from_fast(detached(&self.start(contexts.lengths.len())));
        let mut begun = false;
        Ok(std::iter::from_fn(move || {
            if std::mem::replace(&mut begun, true) {
                let (loss, norm, fast) = writers.step(self, &contexts, memory.fast(), Order::None);
                let mut next = Memory::from_fast(fast);
                next.losses = [std::mem::take(&mut memory.losses), vec![loss]].concat();
                next.grad_norms = [std::mem::take(&mut memory.grad_norms), vec![norm]].concat();
                memory = next;
            }
            Some(memory.clone())
        }))
    }

    /// Each sample's WRITE loss at `memory`, `[batch]`: how well it reconstructs its context, in
    /// nats a token.
    ///
    /// # Errors
    ///
    /// As [`GradMem::write`]; also memories of another shape, or not as many as contexts.
    pub fn write_loss(
        &self,
        memory: &Memory<B>,
        contexts: Tensor<B, 2, Int>,
    ) -> Result<Tensor<B, 1>, Error> {
        Ok(self.reconstruction(memory, contexts)?.loss)
    }

    /// How well `memory` reconstructs its contexts.
    ///
    /// # Errors
    ///
    /// As [`GradMem::write_loss`].
    pub fn reconstruction(
        &self,
        memory: &Memory<B>,
        contexts: Tensor<B, 2, Int>,
    ) -> Result<Reconstruction<B>, Error> {
        let contexts = self.contexts(contexts)?;
        self.check(memory)?;
        let (memories, samples) = (memory.vectors.dims()[0], contexts.lengths.len());
        if memories != samples {
            return Err(Error::Input(format!(
                "there are {memories} memories, but {samples} contexts"
            )));
        }
        let embeds = self.model.embed(contexts.tokens.clone());
        let logits = self
            .writing()
            .reconstruction_logits(&memory.fast(), embeds, &contexts);
        let right = logits.clone().argmax(2).reshape(contexts.tokens.dims());
        let right = right.equal(contexts.tokens.clone()).float();
        Ok(Reconstruction {
            accuracy: (right * contexts.weights.clone()).sum_dim(1).flatten(0, 1),
            loss: self.write_losses(logits, &contexts),
        })
    }

    /// The contexts that the memories hold, told by WRITE's own model from the memories alone: greedily, each
    /// token behind those told before it, as many as `lengths` says.
    ///
    /// # Errors
    ///
    /// If the memories are of another shape, not as many as lengths, or a length is beyond the model's
    /// positions.
    pub fn tell(&self, memory: &Memory<B>, lengths: &[usize]) -> Result<Vec<Vec<u32>>, Error> {
        self.check(memory)?;
        let samples = memory.vectors.dims()[0];
        if samples != lengths.len() {
            return Err(Error::Input(format!(
                "there are {samples} memories, but {} lengths",
                lengths.len()
            )));
        }
        let longest = lengths.iter().copied().max().unwrap_or(0);
        let writing = self.writing();
        let prefix = writing.write_prefix(&memory.fast());
        let before = prefix.dims()[1];
        check_positions(&self.model, longest, before, "context")?;
        let mut cache = Cache::new();
        let mut hidden = writing
            .model
            .hidden_after(prefix, &mut cache)
            .narrow(1, before - 1, 1);
        let mut told = vec![Vec::with_capacity(longest); samples];
        for at in 0..longest {
            let next = writing
                .write_logits(hidden.clone())
                .argmax(2)
                .reshape([samples, 1]);
            for (told, id) in told.iter_mut().zip(next.to_data().iter::<i64>()) {
                told.push(id as u32);
            }
            if at + 1 < longest {
                let embeds = writing.model.embed(next);
                hidden = writing.model.hidden_after(embeds, &mut cache);
            }
        }
        for (told, length) in told.iter_mut().zip(lengths) {
            told.truncate(*length);
        }
        Ok(told)
    }

    pub(super) fn contexts(&self, tokens: Tensor<B, 2, Int>) -> Result<Contexts<B>, Error> {
        let config = &self.config;
        Contexts::new(&self.model, tokens, config.pad_token, config.prefix_len())
    }

    /// M_0 of each of `batch` samples, and where its own projection starts if it has one.
    pub(super) fn start(&self, batch: usize) -> Vec<Tensor<B, 3>> {
        let each = |x: Tensor<B, 2>| {
            let [rows, d] = x.dims();
            x.unsqueeze::<3>().expand([batch, rows, d])
        };
        let mut start = vec![each(self.mem.val())];
        if let (MemProj::PerSample, Some(proj)) = (self.config.mem_proj, &self.mem_proj) {
            start.push(each(proj.weight.val()));
            start.extend(proj.bias.as_ref().map(|bias| each(bias.val().unsqueeze())));
        }
        match self.config.grad_mode {
            GradMode::None => detached(&start),
            _ => start,
        }
    }

    /// The same with the adapters that WRITE uses.
    fn writing(&self) -> Self {
        let mut writing = self.clone();
        if let Some(lora) = writing.write_lora.take() {
            writing.model = lora.adapt(writing.model);
        }
        writing
    }

    /// Clips the inner gradient of one of the things WRITE changes: elements to ± `inner_clip_value`,
    /// then each sample to the norm `inner_clip_norm`.
    fn clip(&self, gradient: Tensor<B, 3>) -> Tensor<B, 3> {
        let gradient = match self.config.inner_clip_value {
            Some(clip) => gradient.clamp(-clip, clip),
            None => gradient,
        };
        let Some(clip) = self.config.inner_clip_norm else {
            return gradient;
        };
        let squares = sample_squares(gradient.clone());
        let within = squares.clone().lower_equal_elem(clip * clip);
        // Where nothing is clipped the root is taken of one, not of a zero whose slope is infinite.
        let norm = squares.mask_fill(within.clone(), 1.0).sqrt();
        let scale = norm.add_scalar(1e-6).recip().mul_scalar(clip);
        gradient * scale.mask_fill(within, 1.0)
    }
}

/// Each sample's sum of squares: `[batch, rows, d]` → `[batch, 1, 1]`.
fn sample_squares<B: Backend>(x: Tensor<B, 3>) -> Tensor<B, 3> {
    x.square().sum_dim(2).sum_dim(1)
}

fn detached<B: Backend>(tensors: &[Tensor<B, 3>]) -> Vec<Tensor<B, 3>> {
    tensors.iter().map(|x| x.clone().detach()).collect()
}

/// How well memories reconstruct their contexts.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Reconstruction<B: Backend> {
    /// Each sample's WRITE loss, in nats a token: `[batch]`.
    pub loss: Tensor<B, 1>,
    /// The share of each sample's tokens that are the likeliest behind those before them: `[batch]`.
    pub accuracy: Tensor<B, 1>,
}

/// What of a step the outer gradient passes through.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Order {
    /// Nothing: the step has no outer graph.
    None,
    /// The memory it began with; the inner gradient is a constant.
    First,
    /// Everything.
    Second,
}

/// The models that steps are taken on, made when they are first needed.
struct Writers<B: Backend, M: Writable<B>> {
    tracked: Option<Writer<B, M>>,
    constant: Option<Writer<B, M>>,
}

impl<B: Backend, M: Writable<B>> Default for Writers<B, M> {
    fn default() -> Self {
        Self {
            tracked: None,
            constant: None,
        }
    }
}

impl<B: Backend, M: Writable<B>> Writers<B, M> {
    /// One step from `fast`: the loss before it `[batch]`, the gradient's norm `[batch]`, and what `fast`
    /// becomes.
    fn step(
        &mut self,
        gradmem: &GradMem<B, M>,
        contexts: &Contexts<B>,
        fast: Vec<Tensor<B, 3>>,
        order: Order,
    ) -> (Tensor<B, 1>, Tensor<B, 1>, Vec<Tensor<B, 3>>) {
        let (loss, gradients) = match order {
            Order::First | Order::Second => self
                .tracked
                .get_or_insert_with(|| Writer::new(gradmem, contexts))
                .gradients(fast.clone()),
            Order::None => self
                .constant
                .get_or_insert_with(|| Writer::new(&gradmem.clone().no_grad(), contexts))
                .gradients(detached(&fast)),
        };
        let gradients = match order {
            Order::Second => gradients,
            Order::First | Order::None => detached(&gradients),
        };
        let norm = sample_squares(gradients[0].clone().detach()).sqrt();
        let steps = gradients.into_iter().map(|g| gradmem.clip(g));
        let lr = gradmem.config.write_lr;
        let fast = fast.into_iter().zip(steps);
        let fast = fast.map(|(x, step)| x - step.mul_scalar(lr)).collect();
        (loss, norm.flatten(0, 2), fast)
    }
}

/// The model on one more tape, on which only the memory requires a gradient: its weights are
/// constants there, and stay what they are on the tape below.
struct Writer<B: Backend, M: Writable<B>> {
    gradmem: GradMem<Autodiff<B>, M::Lifted>,
    /// `[batch, seq, d_model]`
    embeds: Tensor<Autodiff<B>, 3>,
    contexts: Contexts<Autodiff<B>>,
}

impl<B: Backend, M: Writable<B>> Writer<B, M> {
    fn new(gradmem: &GradMem<B, M>, contexts: &Contexts<B>) -> Self {
        let embeds = gradmem.model.embed(contexts.tokens.clone());
        Self {
            gradmem: GradMem::from_inner(gradmem.writing()).no_grad(),
            embeds: Tensor::from_inner(embeds),
            contexts: contexts.lift(),
        }
    }

    /// Each sample's WRITE loss `[batch]` at what WRITE changes, and the gradients to each of these,
    /// all tensors of `B`: if `B` records, they are differentiable in turn.
    fn gradients(&self, fast: Vec<Tensor<B, 3>>) -> (Tensor<B, 1>, Vec<Tensor<B, 3>>) {
        let fast: Vec<Tensor<Autodiff<B>, 3>> = fast
            .into_iter()
            .map(|x| Tensor::from_inner(x).require_grad())
            .collect();
        let device = self.embeds.device();
        let loss = timed::<B, _>(Phase::WriteForward, &device, || {
            let embeds = self.embeds.clone();
            self.gradmem
                .reconstruction_loss(&fast, embeds, &self.contexts)
        });
        // Samples do not meet, so the gradient of their sum is each sample's own.
        let gradients = timed::<B, _>(Phase::WriteBackward, &device, || {
            loss.clone().sum().backward()
        });
        let gradients = fast.iter().map(|x| {
            x.grad(&gradients)
                .unwrap_or_else(|| x.clone().inner().zeros_like())
        });
        (loss.inner(), gradients.collect())
    }
}

impl<B: Backend, M: CausalLm<B>> GradMem<B, M> {
    /// `L_write`: each sample's mean of −log p(c_i | [M; c_<i]), `[batch]`.
    fn reconstruction_loss(
        &self,
        fast: &[Tensor<B, 3>],
        embeds: Tensor<B, 3>,
        contexts: &Contexts<B>,
    ) -> Tensor<B, 1> {
        let logits = self.reconstruction_logits(fast, embeds, contexts);
        self.write_losses(logits, contexts)
    }

    /// What WRITE predicts each of the contexts' tokens with: `[batch, seq, vocab_size]`.
    fn reconstruction_logits(
        &self,
        fast: &[Tensor<B, 3>],
        embeds: Tensor<B, 3>,
        contexts: &Contexts<B>,
    ) -> Tensor<B, 3> {
        let seq = contexts.tokens.dims()[1];
        let prefix = self.write_prefix(fast);
        let before = prefix.dims()[1];
        // The last token predicts nothing that is written, so it need not be read.
        let embeds = match seq {
            1 => prefix,
            _ => Tensor::cat(vec![prefix, embeds.narrow(1, 0, seq - 1)], 1),
        };
        self.write_logits(self.model.hidden(embeds).narrow(1, before - 1, seq))
    }

    /// What WRITE begins with: `[write_st; W mem + b; write_end]`.
    fn write_prefix(&self, fast: &[Tensor<B, 3>]) -> Tensor<B, 3> {
        let vectors = self.project(fast);
        frame(self.write_st.as_ref(), vectors, self.write_end.as_ref())
    }

    /// By WRITE's own head if it has one.
    fn write_logits(&self, hidden: Tensor<B, 3>) -> Tensor<B, 3> {
        match &self.write_head {
            Some(head) => affine(head, hidden),
            None => self.model.logits(hidden),
        }
    }

    /// Each sample's mean over its tokens, `[batch]`.
    fn write_losses(&self, logits: Tensor<B, 3>, contexts: &Contexts<B>) -> Tensor<B, 1> {
        let losses = self.model.token_losses(logits, contexts.tokens.clone());
        let batch = losses.dims()[0];
        (losses * contexts.weights.clone())
            .sum_dim(1)
            .reshape([batch])
    }
}
