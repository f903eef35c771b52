//! WRITE (section 3.1): `M_{k+1} = M_k − α ∇_M L_write(M_k; C)` from the learned `M_0`, the weights frozen.
//!
//! `L_write(M; C) = mean_i −log p(c_i | [M; c_<i])` is each sample's mean over its own tokens, so that α means
//! the same in a batch of one and of a hundred. (The paper prints a sum; its values of α belong to the mean.)
//! The last memory vector, or the last control token behind it, predicts the first token.

use std::ops::Range;

use burn::backend::Autodiff;
use burn::module::{AutodiffModule, Module};
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use super::kinds::Attach;
use super::{GradMem, GradMode, Memory};
use crate::episode::Tokens;
use crate::error::Error;
use crate::model::layers::affine;
use crate::model::{CausalLm, Writable};
use crate::support::profile::{Phase, timed};

impl<B: Backend, M: Writable<B>> GradMem<B, M> {
    /// Writes each context into a memory of its own by K gradient steps.
    ///
    /// On a plain backend nothing is kept between steps. On an autodiff backend the result is differentiable
    /// with respect to the model, M0 and whatever else WRITE uses, as far as [`GradMode`] says.
    ///
    /// # Errors
    ///
    /// An empty context, a token the model does not have, or more tokens than the model has positions.
    pub fn write(&self, contexts: &Tokens<B>) -> Result<Memory<B>, Error> {
        self.check_contexts(contexts)?;
        Ok(self.all_steps(contexts))
    }

    /// WRITE of contexts that passed their checks.
    pub(super) fn all_steps(&self, contexts: &Tokens<B>) -> Memory<B> {
        let start = self.outer_start(contexts.len());
        self.steps(0..self.config.write_steps, start, contexts)
    }

    /// M_0, on the outer tape unless the outer gradient ends at WRITE.
    pub(super) fn outer_start(&self, batch: usize) -> Vec<Tensor<B, 3>> {
        match self.config.grad_mode {
            GradMode::None => detached(&self.start(batch)),
            GradMode::First | GradMode::Second => self.start(batch),
        }
    }

    /// Those of WRITE's K steps, from what they begin with.
    pub(super) fn steps(
        &self,
        steps: Range<usize>,
        mut fast: Vec<Tensor<B, 3>>,
        contexts: &Tokens<B>,
    ) -> Memory<B> {
        let mut models = StepModels::default();
        let (mut losses, mut grad_norms) = (Vec::new(), Vec::new());
        for k in steps {
            let order = match (self.config.needs_graph(k), self.config.is_second_order(k)) {
                (true, true) => Order::Second,
                (true, false) => Order::First,
                (false, _) => Order::None,
            };
            let (loss, norm);
            (loss, norm, fast) = models.step(self, contexts, fast, order);
            losses.push(loss);
            grad_norms.push(norm);
        }
        Memory::after(fast, losses, grad_norms)
    }

    /// The same with WRITE's adapters added to the model's weights.
    pub(super) fn with_adapters(&self) -> Self {
        let mut writing = self.clone();
        if let Some(lora) = writing.write_lora.take() {
            writing.model = lora.adapt(writing.model, M::product);
        }
        writing
    }

    /// Clips the inner gradient to one of the matrices: elements to ± `inner_clip_value`, then each sample
    /// to the norm `inner_clip_norm`.
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

/// What of a step the outer gradient passes through.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// Nothing: the step has no outer graph.
    None,
    /// The memory it began with; the inner gradient is a constant.
    First,
    /// Everything.
    Second,
}

/// The models that steps are taken on, made when they are first needed.
pub(super) struct StepModels<B: Backend, M: Writable<B>> {
    /// With weights on the outer tape.
    tracked: Option<StepModel<B, M>>,
    /// With weights that are constants.
    constant: Option<StepModel<B, M>>,
}

impl<B: Backend, M: Writable<B>> Default for StepModels<B, M> {
    fn default() -> Self {
        Self {
            tracked: None,
            constant: None,
        }
    }
}

impl<B: Backend, M: Writable<B>> StepModels<B, M> {
    /// One step from `fast`: the loss before it `[batch]`, the norm of the inner gradient to the first matrix
    /// `[batch]`, and what `fast` becomes.
    pub(super) fn step(
        &mut self,
        gradmem: &GradMem<B, M>,
        contexts: &Tokens<B>,
        fast: Vec<Tensor<B, 3>>,
        order: Order,
    ) -> (Tensor<B, 1>, Tensor<B, 1>, Vec<Tensor<B, 3>>) {
        let (loss, gradients) = match order {
            Order::First | Order::Second => self
                .tracked
                .get_or_insert_with(|| StepModel::new(gradmem, contexts))
                .gradients(fast.clone()),
            Order::None => self
                .constant
                .get_or_insert_with(|| StepModel::new(&gradmem.clone().no_grad(), contexts))
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

/// The model on one more tape, the inner one, where only the memory requires a gradient: the weights are
/// constants there, and stay what they are on the outer tape.
struct StepModel<B: Backend, M: Writable<B>> {
    gradmem: GradMem<Autodiff<B>, M::Lifted>,
    /// `[batch, seq, d_model]`
    embeds: Tensor<Autodiff<B>, 3>,
    contexts: Tokens<Autodiff<B>>,
}

impl<B: Backend, M: Writable<B>> StepModel<B, M> {
    fn new(gradmem: &GradMem<B, M>, contexts: &Tokens<B>) -> Self {
        let embeds = gradmem.model.embed(contexts.ids());
        Self {
            gradmem: GradMem::from_inner(gradmem.with_adapters()).no_grad(),
            embeds: Tensor::from_inner(embeds),
            contexts: contexts.lift(),
        }
    }

    /// Each sample's WRITE loss `[batch]` at `fast`, and the gradients to it, all tensors of `B`: if `B`
    /// records, they are differentiable in turn.
    fn gradients(&self, fast: Vec<Tensor<B, 3>>) -> (Tensor<B, 1>, Vec<Tensor<B, 3>>) {
        let fast: Vec<Tensor<Autodiff<B>, 3>> = fast
            .into_iter()
            .map(|x| Tensor::from_inner(x).require_grad())
            .collect();
        let device = self.embeds.device();
        let loss = timed::<B, _>(Phase::WriteForward, &device, || {
            let logits = self
                .gradmem
                .reconstruction_logits(&fast, self.embeds.clone());
            self.gradmem.write_losses(logits, &self.contexts)
        });
        // No sample sees another, so the gradient of their sum is each sample's own.
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
    /// The logits that predict each token of `embeds` from the [first](Attach::first) on: `[batch, seq, d_model]`
    /// → `[batch, seq − first, vocab_size]`.
    pub(super) fn reconstruction_logits(
        &self,
        fast: &[Tensor<B, 3>],
        embeds: Tensor<B, 3>,
    ) -> Tensor<B, 3> {
        let seq = embeds.dims()[1];
        // Nothing that is written follows the last token, so it need not be read.
        let read = (seq > 1).then(|| embeds.narrow(1, 0, seq - 1));
        self.write_logits(self.in_write().hidden(&self.model, fast, read))
    }

    /// By WRITE's own head if it has one.
    pub(super) fn write_logits(&self, hidden: Tensor<B, 3>) -> Tensor<B, 3> {
        match &self.write_head {
            Some(head) => affine(head, hidden, M::product),
            None => self.model.logits(hidden),
        }
    }

    /// `L_write`: each sample's mean of `−log p` over its tokens, `[batch]`.
    pub(super) fn write_losses(&self, logits: Tensor<B, 3>, contexts: &Tokens<B>) -> Tensor<B, 1> {
        let first = self.first_predicted();
        let losses = self.model.token_losses(logits, contexts.targets(first));
        let batch = contexts.len();
        (losses * contexts.mean_weights(first))
            .sum_dim(1)
            .reshape([batch])
    }
}

/// Each sample's sum of squares: `[batch, rows, columns]` → `[batch, 1, 1]`.
fn sample_squares<B: Backend>(x: Tensor<B, 3>) -> Tensor<B, 3> {
    x.square().sum_dim(2).sum_dim(1)
}

pub(super) fn detached<B: Backend>(tensors: &[Tensor<B, 3>]) -> Vec<Tensor<B, 3>> {
    tensors.iter().map(|x| x.clone().detach()).collect()
}
