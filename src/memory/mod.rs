//! GradMem itself: a context is written into memory vectors by gradient descent, and queries are
//! answered from the memory alone (arXiv 2603.13875).
//!
//! | the paper | here |
//! |---|---|
//! | WRITE: `M_{k+1} = M_k − α ∇_M L_write(M_k; C)` | [`GradMem::write`], `write.rs` |
//! | READ: predict the target from `[M_K; Q]` | [`GradMem::read`], `read.rs` |
//! | outer loss, differentiated through WRITE | [`GradMem::outer`], [`GradMem::outer_gradient`], `meta.rs` |
//!
//! Everything is written once for a backend `B`. On a plain backend it is inference: first order,
//! no graph kept. On `Autodiff<B>` the same code is training: the updates stay on the outer tape and
//! `loss.backward()` is the second-order meta-gradient.

mod budget;
mod contexts;
mod lora;
mod meta;
mod read;
mod stop;
pub(crate) mod store;
mod write;

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use serde::{Deserialize, Serialize};

pub(crate) use contexts::Contexts;
pub use lora::Lora;
pub(crate) use meta::check_labels;
pub use meta::{MetaGradient, Outer, Share};
pub use read::next_token_loss;
pub(crate) use read::{check_memory, read_behind};
pub use stop::StopRule;
pub use store::{MemoryFile, MemoryFloat, Origin, Written};
pub use write::{Memory, Reconstruction};

use crate::error::{Error, positive, require, sizes};
use crate::model::CausalLm;
use crate::model::layers::{Init, Linear, affine};

/// How the outer gradient passes through the WRITE steps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GradMode {
    /// It does not: the memory is cut from the outer graph and its start M0 is not trained.
    /// Cheapest; the model learns to read whatever WRITE happens to leave.
    None,
    /// The inner gradient counts as a constant (first-order MAML): M0 gets the gradient of M_K.
    First,
    /// In full, through the inner gradient: WRITE itself is trained. The paper's method.
    #[default]
    Second,
}

/// A linear map between the memory and the model, `mem′ = W mem + b`, the identity at the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum MemProj {
    /// None: `mem′ = mem`.
    #[default]
    None,
    /// One map for all, trained by the outer loop: it shapes the steps that WRITE takes.
    Proj,
    /// Every sample has its own, which WRITE changes along with its memory; the outer loop trains
    /// their common start.
    PerSample,
}

/// Settings of WRITE and READ, and of what is trained beside the model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[must_use]
pub struct GradMemConfig {
    /// `m`: memory vectors.
    pub memory_tokens: usize,
    /// `K`: WRITE steps. Any number may be used at evaluation, whatever was trained with.
    pub write_steps: usize,
    /// `α`: step size of WRITE.
    pub write_lr: f64,
    /// How the outer gradient passes through WRITE.
    pub grad_mode: GradMode,
    /// With `grad_mode = "second"`: only the last so many steps are second order, those before them
    /// first order. All of them unless given.
    pub second_order_steps: Option<usize>,
    /// Clamps each element of the inner gradient to ± this value.
    pub inner_clip_value: Option<f64>,
    /// Rescales each sample's inner gradient to at most this L2 norm (after `inner_clip_value`).
    pub inner_clip_norm: Option<f64>,
    /// A linear map between the memory and the model.
    pub mem_proj: MemProj,
    /// Learned vectors on either side of the memory, this many each, others in WRITE than in READ.
    pub ctrl_tokens: usize,
    /// Rank of the adapters (LoRA) that the model has in WRITE only; 0 for none.
    pub write_lora_rank: usize,
    /// α of these adapters: they are scaled by `α / rank`.
    pub write_lora_alpha: f64,
    /// Names of the modules that are adapted, such as `q_proj`; empty for every matrix in the model's
    /// repeated blocks.
    pub write_lora_targets: Vec<String>,
    /// Whether the model's own weights stay as they are, and only the memory's start, projection,
    /// control tokens, adapters and WRITE head are trained.
    pub freeze_backbone: bool,
    /// Whether WRITE predicts with a head of its own, which starts as a copy of the model's.
    pub write_head: bool,
    /// `w`: the outer loss is the READ loss plus `w` times the batch mean of the WRITE loss before
    /// the last step.
    pub inner_loss_weight: f64,
    /// Standard deviation of M0's initial values.
    pub memory_std: f64,
    /// The token that fills a batch's shorter contexts on the right; it is never written.
    pub pad_token: usize,
}

impl Default for GradMemConfig {
    fn default() -> Self {
        Self {
            memory_tokens: 8,
            write_steps: 2,
            write_lr: 0.04,
            grad_mode: GradMode::Second,
            second_order_steps: None,
            inner_clip_value: None,
            inner_clip_norm: None,
            mem_proj: MemProj::None,
            ctrl_tokens: 0,
            write_lora_rank: 0,
            write_lora_alpha: 16.0,
            write_lora_targets: Vec::new(),
            freeze_backbone: false,
            write_head: false,
            inner_loss_weight: 0.0,
            memory_std: 0.02,
            pad_token: 0,
        }
    }
}

impl GradMemConfig {
    /// The defaults: m = 8, K = 2, α = 0.04, full second order.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets `m`.
    pub fn with_memory_tokens(mut self, memory_tokens: usize) -> Self {
        self.memory_tokens = memory_tokens;
        self
    }

    /// Sets `K`.
    pub fn with_write_steps(mut self, write_steps: usize) -> Self {
        self.write_steps = write_steps;
        self
    }

    /// Sets `α`.
    pub fn with_write_lr(mut self, write_lr: f64) -> Self {
        self.write_lr = write_lr;
        self
    }

    /// Sets how the outer gradient passes through WRITE.
    pub fn with_grad_mode(mut self, grad_mode: GradMode) -> Self {
        self.grad_mode = grad_mode;
        self
    }

    /// Makes only the last `steps` WRITE steps second order.
    pub fn with_second_order_steps(mut self, steps: Option<usize>) -> Self {
        self.second_order_steps = steps;
        self
    }

    /// Sets the clipping of the inner gradient's elements.
    pub fn with_inner_clip_value(mut self, clip: Option<f64>) -> Self {
        self.inner_clip_value = clip;
        self
    }

    /// Sets the clipping of the inner gradient's norm.
    pub fn with_inner_clip_norm(mut self, clip: Option<f64>) -> Self {
        self.inner_clip_norm = clip;
        self
    }

    /// Sets the map between the memory and the model.
    pub fn with_mem_proj(mut self, mem_proj: MemProj) -> Self {
        self.mem_proj = mem_proj;
        self
    }

    /// Sets the number of control tokens on either side of the memory.
    pub fn with_ctrl_tokens(mut self, ctrl_tokens: usize) -> Self {
        self.ctrl_tokens = ctrl_tokens;
        self
    }

    /// Gives WRITE adapters of this rank and α.
    pub fn with_write_lora(mut self, rank: usize, alpha: f64) -> Self {
        self.write_lora_rank = rank;
        self.write_lora_alpha = alpha;
        self
    }

    /// Names the modules that WRITE's adapters change.
    pub fn with_write_lora_targets<S: Into<String>>(
        mut self,
        targets: impl IntoIterator<Item = S>,
    ) -> Self {
        self.write_lora_targets = targets.into_iter().map(Into::into).collect();
        self
    }

    /// Keeps the model's own weights as they are.
    pub fn with_freeze_backbone(mut self, freeze: bool) -> Self {
        self.freeze_backbone = freeze;
        self
    }

    /// Gives WRITE a head of its own.
    pub fn with_write_head(mut self, write_head: bool) -> Self {
        self.write_head = write_head;
        self
    }

    /// Sets the token that fills shorter contexts.
    pub fn with_pad_token(mut self, pad_token: usize) -> Self {
        self.pad_token = pad_token;
        self
    }

    /// Sets the weight of the WRITE loss in the outer loss.
    pub fn with_inner_loss_weight(mut self, weight: f64) -> Self {
        self.inner_loss_weight = weight;
        self
    }

    /// Sets the standard deviation of M0's initial values.
    pub fn with_memory_std(mut self, std: f64) -> Self {
        self.memory_std = std;
        self
    }

    /// Checks every value.
    ///
    /// # Errors
    ///
    /// The first value that cannot work, by its key and with the reason: [`Error::Config`].
    pub fn validate(&self) -> Result<(), Error> {
        sizes([
            ("memory_tokens", self.memory_tokens),
            ("ctrl_tokens", self.ctrl_tokens.max(1)),
            ("write_lora_rank", self.write_lora_rank.max(1)),
        ])?;
        positive([("write_lr", self.write_lr)])?;
        if self.write_lora_rank > 0 {
            positive([("write_lora_alpha", self.write_lora_alpha)])?;
        }
        for (key, clip) in [
            ("inner_clip_value", self.inner_clip_value),
            ("inner_clip_norm", self.inner_clip_norm),
        ] {
            if let Some(clip) = clip {
                let problem = "must be a positive number (leave it out for no clipping)";
                require(clip > 0.0 && clip.is_finite(), key, clip, problem)?;
            }
        }
        let not_negative = |value: f64| value >= 0.0 && value.is_finite();
        for (key, value) in [
            ("inner_loss_weight", self.inner_loss_weight),
            ("memory_std", self.memory_std),
        ] {
            require(
                not_negative(value),
                key,
                value,
                "must be 0 or a positive number",
            )?;
        }
        Ok(())
    }

    /// Puts a memory on `model`, with M0 drawn from N(0, `memory_std`²) by `seed`.
    ///
    /// # Errors
    ///
    /// See [`GradMemConfig::validate`]; also if the model has no room for the memory.
    pub fn init<B: Backend, M: CausalLm<B>>(
        &self,
        model: M,
        seed: u64,
        device: &B::Device,
    ) -> Result<GradMem<B, M>, Error> {
        self.validate()?;
        self.build(model, Init::new(seed), device)
    }

    /// The same with weights that are yet to be loaded, as the model's may be.
    ///
    /// # Errors
    ///
    /// As [`GradMemConfig::init`].
    pub fn blank<B: Backend, M: CausalLm<B>>(
        &self,
        model: M,
        device: &B::Device,
    ) -> Result<GradMem<B, M>, Error> {
        self.validate()?;
        self.build(model, Init::blank(), device)
    }

    fn build<B: Backend, M: CausalLm<B>>(
        &self,
        model: M,
        mut init: Init,
        device: &B::Device,
    ) -> Result<GradMem<B, M>, Error> {
        let m = self.memory_tokens;
        check_room(&model, "memory_tokens", self.prefix_len())?;
        check_pad(&model, self.pad_token)?;
        let d = model.d_model();
        let mem = init.normal([m, d], self.memory_std, device);
        let projects = self.mem_proj != MemProj::None;
        let mem_proj = projects.then(|| Linear::identity(d, &init, device));
        let [write_st, write_end, read_st, read_end] =
            control_tokens([self.ctrl_tokens, d], self.memory_std, &mut init, device);
        let write_head = self.write_head.then(|| copy_of_head(&model, &init, device));
        let lora = (self.write_lora_rank > 0).then(|| {
            Lora::new(
                &model,
                self.write_lora_rank,
                self.write_lora_alpha,
                &self.write_lora_targets,
                &mut init,
                device,
            )
        });
        Ok(GradMem {
            model: match self.freeze_backbone {
                true => model.map(&mut Freeze),
                false => model,
            },
            mem,
            mem_proj,
            write_st,
            write_end,
            read_st,
            read_end,
            write_head,
            write_lora: lora.transpose()?,
            config: self.clone(),
        })
    }

    /// Vectors before the first token: the memory, and control tokens on either side.
    pub fn prefix_len(&self) -> usize {
        self.memory_tokens
            .saturating_add(self.ctrl_tokens.saturating_mul(2))
    }

    /// Whether step `k` of `K` is differentiated in full.
    fn is_second_order(&self, k: usize) -> bool {
        let last = self.second_order_steps.unwrap_or(self.write_steps);
        self.grad_mode == GradMode::Second && k.saturating_add(last) >= self.write_steps
    }

    /// Whether step `k` leaves a graph: a second-order step does, and a last step whose loss is trained.
    fn needs_graph(&self, k: usize) -> bool {
        let is_last = k + 1 == self.write_steps;
        self.is_second_order(k) || (is_last && self.inner_loss_weight > 0.0)
    }
}

/// Takes gradients away from parameters, from those that are yet to be loaded too.
struct Freeze;

impl<B: Backend> ModuleMapper<B> for Freeze {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        param.set_require_grad(false)
    }
}

/// Fails unless the model has positions for `prefix` vectors and a token.
pub(crate) fn check_room<B: Backend, M: CausalLm<B>>(
    model: &M,
    key: &str,
    prefix: usize,
) -> Result<(), Error> {
    let Some(positions) = model.max_positions() else {
        return Ok(());
    };
    let problem = format!("must leave room for tokens in the model's {positions} positions");
    require(prefix < positions, key, prefix, problem)
}

/// Fails unless the padding token is one of the model's.
pub(crate) fn check_pad<B: Backend, M: CausalLm<B>>(model: &M, pad: usize) -> Result<(), Error> {
    let vocab = model.vocab_size();
    let problem = format!(
        "must be a token of the model, 0 … {}",
        vocab.saturating_sub(1)
    );
    require(pad < vocab, "pad_token", pad, problem)
}

/// Control tokens `[n, d_model]` for WRITE's and READ's two sides of the memory, if n is not 0.
pub(crate) fn control_tokens<B: Backend>(
    shape: [usize; 2],
    std: f64,
    init: &mut Init,
    device: &B::Device,
) -> [Option<Param<Tensor<B, 2>>>; 4] {
    [(); 4].map(|()| (shape[0] > 0).then(|| init.normal(shape, std, device)))
}

/// A head of WRITE's own, as the model's is now; the model's is not looked at if weights are to be loaded.
pub(crate) fn copy_of_head<B: Backend, M: CausalLm<B>>(
    model: &M,
    init: &Init,
    device: &B::Device,
) -> Linear<B> {
    let shape = [model.vocab_size(), model.d_model()];
    Linear::copy(shape, || model.head(), init, device)
}

/// `start` and `end`, learned vectors `[n, d_model]`, around each sample's `vectors` `[batch, m, d_model]`.
pub(crate) fn frame<B: Backend>(
    start: Option<&Param<Tensor<B, 2>>>,
    vectors: Tensor<B, 3>,
    end: Option<&Param<Tensor<B, 2>>>,
) -> Tensor<B, 3> {
    let batch = vectors.dims()[0];
    let each = |control: &Param<Tensor<B, 2>>| {
        let [n, d] = control.val().dims();
        control.val().unsqueeze::<3>().expand([batch, n, d])
    };
    let parts = [start.map(each), Some(vectors), end.map(each)];
    let mut parts: Vec<_> = parts.into_iter().flatten().collect();
    match parts.len() {
        1 => parts.remove(0),
        _ => Tensor::cat(parts, 1),
    }
}

/// A language model with a writable prefix memory.
///
/// Parameters carry the reference implementation's names: `model.…`, `mem`, `mem_proj.…`, `write_st`,
/// `write_head.weight` and so on; adapters are `write_lora.adapters.0.lora_A` and so on.
#[derive(Module, Debug)]
pub struct GradMem<B: Backend, M> {
    /// The language model.
    pub model: M,
    /// M0, where every WRITE starts: `[memory_tokens, d_model]`.
    pub mem: Param<Tensor<B, 2>>,
    /// The map between memory and model, or where every sample's own starts.
    pub mem_proj: Option<Linear<B>>,
    /// Before the memory in WRITE: `[ctrl_tokens, d_model]`.
    pub write_st: Option<Param<Tensor<B, 2>>>,
    /// Behind the memory in WRITE.
    pub write_end: Option<Param<Tensor<B, 2>>>,
    /// Before the memory in READ.
    pub read_st: Option<Param<Tensor<B, 2>>>,
    /// Behind the memory in READ.
    pub read_end: Option<Param<Tensor<B, 2>>>,
    /// WRITE's own head, if it has one: `[vocab_size, d_model]`.
    pub write_head: Option<Linear<B>>,
    /// What the model has in WRITE only.
    pub write_lora: Option<Lora<B>>,
    #[module(skip)]
    config: GradMemConfig,
}

impl<B: Backend, M: Module<B>> GradMem<B, M> {
    /// The settings in force.
    pub fn config(&self) -> &GradMemConfig {
        &self.config
    }

    /// The same weights with another number of WRITE steps.
    pub fn with_write_steps(mut self, write_steps: usize) -> Self {
        self.config.write_steps = write_steps;
        self
    }

    /// The same weights with another WRITE step size.
    ///
    /// # Errors
    ///
    /// If it is not a positive number.
    pub fn with_write_lr(mut self, write_lr: f64) -> Result<Self, Error> {
        self.config.write_lr = write_lr;
        self.config.validate()?;
        Ok(self)
    }

    /// What the model is given for a memory: `mem′ = W mem + b`, `[batch, memory_tokens, d_model]`.
    fn project(&self, fast: &[Tensor<B, 3>]) -> Tensor<B, 3> {
        match (fast, &self.mem_proj) {
            ([vectors, weight, bias], _) => {
                vectors.clone().matmul(weight.clone().swap_dims(1, 2)) + bias.clone()
            }
            ([vectors, ..], Some(shared)) => affine(shared, vectors.clone()),
            ([vectors, ..], None) => vectors.clone(),
            ([], _) => unreachable!("a memory has vectors"),
        }
    }
}
