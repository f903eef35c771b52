//! The settings of the outer loop.

use gradmem_kernels::{Precision, set_precision};
use serde::{Deserialize, Serialize};

use super::metrics::Measure;
use crate::error::{Error, at_least_one, not_negative, require};
use crate::memory::MetaGradient;

/// What the learning rate does behind the warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum LrDecay {
    /// It stays.
    #[default]
    Constant,
    /// It falls along a line to `lr_end`, which it would reach one step after the last.
    Linear,
    /// It falls to that along half a period of a cosine (arXiv 1608.03983).
    Cosine,
}

/// Settings of the outer loop.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TrainConfig {
    /// Seed of the initial weights and of the data.
    pub seed: u64,
    /// Number of optimizer steps.
    pub steps: usize,
    /// Contexts per step.
    pub batch_size: usize,
    /// Learning rate of AdamW after the warm-up.
    pub lr: f64,
    /// Steps in which the learning rate rises along a line from `lr / warmup_steps`.
    pub warmup_steps: usize,
    /// What the learning rate does behind the warm-up.
    pub lr_decay: LrDecay,
    /// The share of `lr` that it falls to.
    pub lr_end: f64,
    /// β1 of AdamW.
    pub beta1: f64,
    /// β2 of AdamW.
    pub beta2: f64,
    /// ε of AdamW.
    pub epsilon: f64,
    /// Decoupled weight decay of AdamW.
    pub weight_decay: f64,
    /// ε of label smoothing in training: a label is `1 − ε` of the target and `ε` of all tokens alike. The READ losses of training
    /// contain it, those of evaluations do not.
    pub label_smoothing: f64,
    /// Scores and keeps as the best weights an exponential moving average of them, with this decay per step, such as 0.99.
    pub ema_decay: Option<f64>,
    /// Largest global L2 norm of the outer gradient; a larger gradient is scaled down to it.
    pub clip_norm: Option<f64>,
    /// Outer-gradient strategy of GradMem. `auto` chooses when a run begins, and the run keeps that choice.
    pub meta_gradient: MetaGradient,
    /// What products are computed in, in the whole process, which a training sets and leaves so
    /// ([`kernels::set_precision`](gradmem_kernels::set_precision)): `f32`; `tf32` on CUDA; `bf16`, with weights, memories, sums, norms,
    /// losses and the optimizer in f32.
    pub precision: Precision,
    /// Largest number of contexts computed at once. Less memory, and the same gradient up to rounding. Contexts of like length
    /// are computed together, each part only as wide as its longest: less time where lengths differ.
    pub micro_batch: Option<usize>,
    /// Steps between evaluations on the validation set, and between checkpoints.
    pub eval_every: usize,
    /// The checkpoints of so many last evaluations are kept, each in a run's folder of its own, `checkpoints/STEP`.
    pub keep_checkpoints: usize,
    /// Steps between lines of the metrics log.
    pub log_every: usize,
    /// Validation metric that selects the best checkpoint. Training stops when it reaches `stop_value`.
    pub stop_metric: Measure,
    /// See `stop_metric`.
    pub stop_value: Option<f64>,
    /// Training stops when so many evaluations in a row were no better than the best before them.
    pub patience: Option<usize>,
    /// Easier versions of the task to train on first, each as the `[data]` settings that differ, such as
    /// `"pairs=2 queries_per_context=2"` (no spaces inside a value). The next version begins when `stop_metric`
    /// reaches `curriculum_value`.
    pub curriculum: Vec<String>,
    /// See `curriculum`.
    pub curriculum_value: f64,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            seed: 0,
            steps: 10_000,
            batch_size: 64,
            lr: 1e-4,
            warmup_steps: 0,
            lr_decay: LrDecay::Constant,
            lr_end: 0.0,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            weight_decay: 0.0,
            label_smoothing: 0.0,
            ema_decay: None,
            clip_norm: None,
            meta_gradient: MetaGradient::Auto,
            precision: Precision::F32,
            micro_batch: None,
            eval_every: 500,
            keep_checkpoints: 0,
            log_every: 50,
            stop_metric: Measure::ExactMatch,
            stop_value: None,
            patience: None,
            curriculum: Vec::new(),
            curriculum_value: 0.9,
        }
    }
}

impl TrainConfig {
    /// The number of contexts that a step computes at once.
    pub(super) fn contexts_at_once(&self) -> usize {
        self.micro_batch
            .unwrap_or(self.batch_size)
            .min(self.batch_size)
    }

    /// Sets the process's precision, if the device computes in this one.
    pub(super) fn set_precision(
        &self,
        computes_in: impl FnOnce(Precision) -> bool,
    ) -> Result<(), Error> {
        let problem = "this backend does not multiply in it on this device: use one that does, or f32 for a run that begins";
        let fits = computes_in(self.precision);
        require(fits, "precision", self.precision.as_str(), problem)?;
        set_precision(self.precision);
        Ok(())
    }

    /// Checks every value.
    ///
    /// # Errors
    ///
    /// The first value that cannot work, by its key and with the reason: [`Error::Config`].
    pub fn validate(&self) -> Result<(), Error> {
        at_least_one([
            ("steps", self.steps),
            ("batch_size", self.batch_size),
            ("eval_every", self.eval_every),
            ("log_every", self.log_every),
            ("micro_batch", self.micro_batch.unwrap_or(1)),
            ("patience", self.patience.unwrap_or(1)),
        ])?;
        let lr = self.lr;
        require(
            lr > 0.0 && lr <= 1.0,
            "lr",
            lr,
            "must be above 0 and at most 1",
        )?;
        for (key, beta) in [("beta1", self.beta1), ("beta2", self.beta2)] {
            let fits = (0.0..1.0).contains(&beta) && (beta as f32) < 1.0;
            require(fits, key, beta, "must be at least 0 and below 1")?;
        }
        let (epsilon, end) = (self.epsilon, self.lr_end);
        let fits = epsilon > 0.0 && epsilon <= 1.0 && epsilon as f32 > 0.0;
        require(fits, "epsilon", epsilon, "must be above 0 and at most 1")?;
        let fits = (0.0..=1.0).contains(&end);
        require(fits, "lr_end", end, "must be between 0 and 1")?;
        let falls = self.lr_decay != LrDecay::Constant;
        let problem =
            "is where the learning rate falls to: it needs lr_decay = \"linear\" or \"cosine\"";
        require(falls || end == 0.0, "lr_end", end, problem)?;
        not_negative([("weight_decay", self.weight_decay)])?;
        let smoothing = self.label_smoothing;
        let fits = (0.0..1.0).contains(&smoothing);
        let problem = "must be at least 0 and below 1";
        require(fits, "label_smoothing", smoothing, problem)?;
        if let Some(decay) = self.ema_decay {
            let problem = "must be above 0 and below 1 (leave it out for no average)";
            require(decay > 0.0 && decay < 1.0, "ema_decay", decay, problem)?;
        }
        if let Some(clip) = self.clip_norm {
            let problem = "must be a positive number (leave it out for no clipping)";
            require(clip > 0.0 && clip.is_finite(), "clip_norm", clip, problem)?;
        }
        if let Some(value) = self.stop_value {
            let problem = "must be a number of at least 0: no measure is below";
            require(
                value >= 0.0 && value.is_finite(),
                "stop_value",
                value,
                problem,
            )?;
        }
        let value = self.curriculum_value;
        require(
            value.is_finite(),
            "curriculum_value",
            value,
            "must be a number",
        )?;
        let items = self.steps.checked_mul(self.batch_size);
        let problem = "steps × batch_size is more than this machine can count";
        require(items.is_some(), "steps", self.steps, problem)
    }
}
