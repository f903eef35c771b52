//! WRITE: `M_{k+1} = M_k − α ∇_M L_write(M_k; C)` from the learned `M_0`, the weights frozen.
//!
//! `L_write(M; C) = mean_i −log p(c_i | [M; c_<i])` is each sample's mean over its own tokens, so that
//! α means the same in a batch of one and of a hundred. (The paper prints a sum; its values of α
//! belong to the mean.) The last memory vector predicts the first token.

use burn::backend::Autodiff;
use burn::module::{AutodiffModule, Module};
use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor};

use super::read::token_losses;
use super::{GradMem, GradMode};
use crate::error::Error;
use crate::model::layers::Linear;
use crate::model::{CausalLm, Writable};

/// What WRITE leaves of a batch of contexts, and how it went.
#[derive(Clone, Debug)]
pub struct Memory<B: Backend> {
    /// M_K, all that READ needs: `[batch, memory_tokens, d_model]`.
    pub vectors: Tensor<B, 3>,
    /// Each sample's WRITE loss before each of the K steps, in nats a token: K tensors `[batch]`.
    pub losses: Vec<Tensor<B, 1>>,
    /// Each sample's L2 norm of the inner gradient at each step, before clipping: K tensors `[batch]`.
    pub grad_norms: Vec<Tensor<B, 1>>,
}

impl<B: Backend> Memory<B> {
    /// A memory from vectors alone: `[batch, memory_tokens, d_model]`.
    pub fn from_vectors(vectors: Tensor<B, 3>) -> Self {
        Self {
            vectors,
            losses: Vec::new(),
            grad_norms: Vec::new(),
        }
    }

    /// Repeats each sample's memory `times` times, for as many queries each:
    /// `[batch, …]` → `[batch · times, …]`, a sample's copies side by side.
    pub fn repeat(&self, times: usize) -> Tensor<B, 3> {
        let [batch, m, d] = self.vectors.dims();
        self.vectors
            .clone()
            .unsqueeze_dim::<4>(1)
            .expand([batch, times, m, d])
            .reshape([batch * times, m, d])
    }
}

impl<B: Backend, M: Writable<B>> GradMem<B, M> {
    /// Writes each context into memory vectors of its own by K gradient steps.
    ///
    /// On a plain backend nothing is kept between steps. On an autodiff backend the result is
    /// differentiable with respect to the model, M0 and the WRITE head, as far as
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
        let config = &self.config;
        let contexts = Contexts::new(self, contexts)?;
        let batch = contexts.tokens.dims()[0];
        let start = self.mem.val().unsqueeze::<3>();
        let [_, m, d] = start.dims();
        let mut vectors = start.expand([batch, m, d]);
        if config.grad_mode == GradMode::None {
            vectors = vectors.detach();
        }
        let writer = Writer::new(self, &contexts);
        // What first-order steps use: their gradient is a constant, so they need no outer graph.
        let constant = Writer::new(&self.clone().no_grad(), &contexts);

        let (mut losses, mut grad_norms) = (Vec::new(), Vec::new());
        for k in 0..config.write_steps {
            let keeps_loss = config.inner_loss_weight > 0.0 && k + 1 == config.write_steps;
            let (loss, gradient) = match (config.is_second_order(k), keeps_loss) {
                (true, _) => writer.gradient(vectors.clone()),
                (false, true) => {
                    let (loss, gradient) = writer.gradient(vectors.clone());
                    (loss, gradient.detach())
                }
                (false, false) => constant.gradient(vectors.clone().detach()),
            };
            losses.push(loss);
            grad_norms.push(
                sample_squares(gradient.clone().detach())
                    .sqrt()
                    .reshape([batch]),
            );
            vectors = vectors - self.clip(gradient).mul_scalar(config.write_lr);
        }
        Ok(Memory {
            vectors,
            losses,
            grad_norms,
        })
    }

    /// Each sample's WRITE loss at `memory`, `[batch]`: how well it reconstructs its context, in
    /// nats a token.
    ///
    /// # Errors
    ///
    /// As [`GradMem::write`].
    pub fn write_loss(
        &self,
        memory: &Memory<B>,
        contexts: Tensor<B, 2, Int>,
    ) -> Result<Tensor<B, 1>, Error> {
        let contexts = Contexts::new(self, contexts)?;
        let embeds = self.model.embed(contexts.tokens.clone());
        Ok(reconstruction_loss(
            &self.model,
            self.write_head.as_ref(),
            memory.vectors.clone(),
            embeds,
            contexts.tokens,
            contexts.weights,
        ))
    }

    /// Clips the inner gradient `[batch, m, d]`: elements to ± `inner_clip_value`, then each sample to
    /// the norm `inner_clip_norm`.
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

/// Each sample's sum of squares: `[batch, m, d]` → `[batch, 1, 1]`.
fn sample_squares<B: Backend>(x: Tensor<B, 3>) -> Tensor<B, 3> {
    x.square().sum_dim(2).sum_dim(1)
}

/// A batch of contexts that passed its checks.
struct Contexts<B: Backend> {
    /// `[batch, seq]`
    tokens: Tensor<B, 2, Int>,
    /// One over the sample's length on its tokens, zero on padding: `[batch, seq]`.
    weights: Tensor<B, 2>,
}

impl<B: Backend> Contexts<B> {
    fn new<M: CausalLm<B>>(
        gradmem: &GradMem<B, M>,
        tokens: Tensor<B, 2, Int>,
    ) -> Result<Self, Error> {
        let [batch, seq] = tokens.dims();
        gradmem.check_tokens(&tokens, "context")?;
        let pad = gradmem.config.pad_token as i64;
        let ids: Vec<i64> = tokens.to_data().iter::<i64>().collect();
        for (sample, ids) in ids.chunks(seq.max(1)).enumerate() {
            let length = ids.iter().rposition(|id| *id != pad).map_or(0, |at| at + 1);
            if length == 0 {
                return Err(Error::Input(format!(
                    "context {sample} of {batch} is empty: there is nothing to write"
                )));
            }
            if let Some(at) = ids[..length].iter().position(|id| *id == pad) {
                return Err(Error::Input(format!(
                    "context {sample} has the padding token {pad} at {at}, before its last token: \
                     contexts are padded on the right only"
                )));
            }
        }
        let real = tokens.clone().not_equal_elem(pad).float();
        let weights = real.clone() / real.sum_dim(1);
        Ok(Self { tokens, weights })
    }
}

/// The model on one more tape, on which only the memory requires a gradient: its weights are
/// constants there, and stay what they are on the tape below.
struct Writer<B: Backend, M: Writable<B>> {
    model: M::Lifted,
    head: Option<Linear<Autodiff<B>>>,
    /// `[batch, seq, d_model]`
    embeds: Tensor<Autodiff<B>, 3>,
    /// `[batch, seq]`
    tokens: Tensor<Autodiff<B>, 2, Int>,
    /// `[batch, seq]`
    weights: Tensor<Autodiff<B>, 2>,
}

impl<B: Backend, M: Writable<B>> Writer<B, M> {
    fn new(gradmem: &GradMem<B, M>, contexts: &Contexts<B>) -> Self {
        let embeds = gradmem.model.embed(contexts.tokens.clone());
        let head = gradmem.write_head.clone();
        Self {
            model: M::Lifted::from_inner(gradmem.model.clone()).no_grad(),
            head: head.map(|head| Linear::from_inner(head).no_grad()),
            embeds: Tensor::from_inner(embeds),
            tokens: Tensor::from_inner(contexts.tokens.clone()),
            weights: Tensor::from_inner(contexts.weights.clone()),
        }
    }

    /// Each sample's WRITE loss `[batch]` at `memory` and its gradient `[batch, m, d]`, both tensors of
    /// `B`: if `B` records, they are differentiable in turn.
    fn gradient(&self, memory: Tensor<B, 3>) -> (Tensor<B, 1>, Tensor<B, 3>) {
        let memory = Tensor::<Autodiff<B>, 3>::from_inner(memory).require_grad();
        let loss = reconstruction_loss(
            &self.model,
            self.head.as_ref(),
            memory.clone(),
            self.embeds.clone(),
            self.tokens.clone(),
            self.weights.clone(),
        );
        // Samples do not meet, so the gradient of their sum is each sample's own.
        let gradients = loss.clone().sum().backward();
        let gradient = memory
            .grad(&gradients)
            .unwrap_or_else(|| memory.clone().inner().zeros_like());
        (loss.inner(), gradient)
    }
}

/// `L_write`: `[batch]`, the weighted mean of −log p(c_i | [M; c_<i]).
fn reconstruction_loss<B: Backend, M: CausalLm<B>>(
    model: &M,
    head: Option<&Linear<B>>,
    memory: Tensor<B, 3>,
    embeds: Tensor<B, 3>,
    tokens: Tensor<B, 2, Int>,
    weights: Tensor<B, 2>,
) -> Tensor<B, 1> {
    let [batch, m, _] = memory.dims();
    let [_, seq] = tokens.dims();
    // The last token predicts nothing that is written, so it need not be read.
    let embeds = embeds.narrow(1, 0, seq - 1);
    let embeds = match seq {
        1 => memory,
        _ => Tensor::cat(vec![memory, embeds], 1),
    };
    let hidden = model.hidden(embeds).narrow(1, m - 1, seq);
    let logits = match head {
        Some(head) => head.forward(hidden),
        None => model.logits(hidden),
    };
    (token_losses(logits, tokens) * weights)
        .sum_dim(1)
        .reshape([batch])
}
