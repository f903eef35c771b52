use serde::{Deserialize, Serialize};

use crate::error::{Error, positive, require, sizes};

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

    /// Vectors before the first token: the memory, and control tokens on either side.
    pub fn prefix_len(&self) -> usize {
        self.memory_tokens
            .saturating_add(self.ctrl_tokens.saturating_mul(2))
    }

    /// Whether step `k` of `K` is differentiated in full.
    pub(super) fn is_second_order(&self, k: usize) -> bool {
        let last = self.second_order_steps.unwrap_or(self.write_steps);
        self.grad_mode == GradMode::Second && k.saturating_add(last) >= self.write_steps
    }

    /// Whether step `k` leaves a graph: a second-order step does, and a last step whose loss is trained.
    pub(super) fn needs_graph(&self, k: usize) -> bool {
        let is_last = k + 1 == self.write_steps;
        self.is_second_order(k) || (is_last && self.inner_loss_weight > 0.0)
    }
}
