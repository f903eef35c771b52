//! The settings of GradMem.

mod validate;

use serde::{Deserialize, Serialize};

use super::choices::{Chunks, GradMode, LoraPlace, MemProj, MemoryKind, MemoryStart};
use super::{GateKind, LearnedLr};
use crate::support::setters::setters;

/// The most WRITE steps.
pub const MOST_STEPS: usize = 10_000;

/// Settings of WRITE and READ, and of what is trained beside the model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[must_use]
pub struct GradMemConfig {
    /// What a memory is.
    pub kind: MemoryKind,
    /// `m`: memory vectors, or keys and values of each layer. LoRA has none.
    pub memory_tokens: usize,
    /// Rank of LoRA's maps.
    pub lora_rank: usize,
    /// α of LoRA's maps: they are scaled by `α / rank`.
    pub lora_alpha: f64,
    /// Where LoRA's maps are.
    pub lora_place: LoraPlace,
    /// The modules that have maps, such as `gate_proj`, with `lora_place = "modules"`; empty for every linear module.
    pub lora_targets: Vec<String>,
    /// The layers that have a memory of kind `lora` or `kv`, from 0; empty for all.
    pub layers: Vec<usize>,
    /// Tokens of a chunk, if contexts are written in chunks. Each chunk takes K steps and is a sequence of its own: its
    /// positions begin anew.
    pub chunk_size: Option<usize>,
    /// What WRITE does with the chunks.
    pub chunks: Chunks,
    /// Whether chunks count as in the reference, for its checkpoints: a sample has as many as the longest of its batch,
    /// or, in training, of the [part](crate::episode::Episode::split) of it that is computed at once, so that what it learns depends on the others; and `parallel` divides the mean gradient by that number once more.
    pub reference_chunks: bool,
    /// `K`: WRITE steps. Any number may be used at evaluation, whatever was trained with.
    pub write_steps: usize,
    /// In training, each batch is written with a number of steps drawn from these, both included; in evaluation it is
    /// `write_steps`.
    pub random_write_steps: Option<[usize; 2]>,
    /// `α`: step size of WRITE.
    pub write_lr: f64,
    /// What has a step size of its own, learned by the outer loop from α on; nothing if empty.
    pub learned_lr: Vec<LearnedLr>,
    /// Momentum of WRITE's steps within a chunk, between 0 and 1, learned by the outer loop from this value on. None if
    /// it is not given.
    pub momentum: Option<f64>,
    /// How the outer gradient passes through WRITE.
    pub grad_mode: GradMode,
    /// With `grad_mode = "second"`: only the last so many steps are second order, those before them
    /// first order. All of them unless given.
    pub second_order_steps: Option<usize>,
    /// Clamps each element of the inner gradient to ± this value.
    pub inner_clip_value: Option<f64>,
    /// Rescales each sample's inner gradient to each matrix of the memory to at most this L2 norm (after `inner_clip_value`).
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
    /// In training, `w` falls along a line from there to 0 over so many steps of the outer loop, by
    /// [`Episode::step`](crate::episode::Episode::step). It stays unless given.
    pub inner_loss_steps: Option<usize>,
    /// What decides how much of the memory a WRITE step keeps.
    pub gate: GateKind,
    /// Whether the gate is one for each dimension of a vector, or one for the vector.
    pub gate_dimensions: bool,
    /// What M0's initial vectors are, beside noise; for memories of kind `prefix`.
    pub memory_start: MemoryStart,
    /// Standard deviation of the noise in M0's initial values.
    pub memory_std: f64,
    /// Weight of step alignment in the outer loss: how each WRITE step agrees with the READ loss's gradient to the memory it
    /// leads to. 0 for none, as with the others.
    pub step_alignment_weight: f64,
    /// Whether step alignment also counts the step that would come after the last.
    pub align_last_step: bool,
    /// Whether alignment is weighted by the length of READ's gradient.
    pub alignment_norm: bool,
    /// Weight of the READ losses of the memories before the last step.
    pub intermediate_read_weight: f64,
    /// Weight of the alignment of all that WRITE changed with the READ loss's gradient to the last memory.
    pub memory_alignment_weight: f64,
    /// σ: in training each WRITE step takes its gradient at the memory plus noise of σ times the root mean square of M0.
    pub memory_noise: f64,
    /// Weight of the divergence of READ's answers from a memory and from one near it.
    pub star_weight: f64,
    /// The length of the first, random shift to that one, relative to the memory's root mean square.
    pub star_radius: f64,
    /// The length of the second shift, along the divergence's gradient.
    pub star_step: f64,
}

impl Default for GradMemConfig {
    fn default() -> Self {
        Self {
            kind: MemoryKind::Prefix,
            memory_tokens: 8,
            lora_rank: 8,
            lora_alpha: 16.0,
            lora_place: LoraPlace::Layers,
            lora_targets: Vec::new(),
            layers: Vec::new(),
            chunk_size: None,
            chunks: Chunks::Sequential,
            reference_chunks: false,
            write_steps: 2,
            random_write_steps: None,
            write_lr: 0.04,
            learned_lr: Vec::new(),
            momentum: None,
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
            inner_loss_steps: None,
            gate: GateKind::None,
            gate_dimensions: true,
            memory_start: MemoryStart::Noise,
            memory_std: 0.02,
            step_alignment_weight: 0.0,
            align_last_step: false,
            alignment_norm: false,
            intermediate_read_weight: 0.0,
            memory_alignment_weight: 0.0,
            memory_noise: 0.0,
            star_weight: 0.0,
            star_radius: 0.01,
            star_step: 0.01,
        }
    }
}

/// `save` and `load` of Burn's configurations: JSON.
impl burn::config::Config for GradMemConfig {}

impl GradMemConfig {
    /// The defaults: m = 8, K = 2, α = 0.04, full second order.
    pub fn new() -> Self {
        Self::default()
    }

    setters! {
        /// Sets what a memory is.
        with_kind(kind: MemoryKind);
        /// Sets `m`.
        with_memory_tokens(memory_tokens: usize);
        /// Sets `K`.
        with_write_steps(write_steps: usize);
        /// Sets `α`.
        with_write_lr(write_lr: f64);
        /// Draws the number of steps in training from these, both included.
        with_random_write_steps(random_write_steps: Option<[usize; 2]>);
        /// Gives WRITE's steps momentum.
        with_momentum(momentum: Option<f64>);
        /// Sets how the outer gradient passes through WRITE.
        with_grad_mode(grad_mode: GradMode);
        /// How many of the last WRITE steps are second order; `None`: all.
        with_second_order_steps(second_order_steps: Option<usize>);
        /// Sets the clipping of the inner gradient's elements.
        with_inner_clip_value(inner_clip_value: Option<f64>);
        /// Sets the clipping of the inner gradient's norm.
        with_inner_clip_norm(inner_clip_norm: Option<f64>);
        /// Sets the map between the memory and the model.
        with_mem_proj(mem_proj: MemProj);
        /// Sets the number of control tokens on either side of the memory.
        with_ctrl_tokens(ctrl_tokens: usize);
        /// Keeps the model's own weights as they are.
        with_freeze_backbone(freeze_backbone: bool);
        /// Gives WRITE a head of its own.
        with_write_head(write_head: bool);
        /// Sets the weight of the WRITE loss in the outer loss.
        with_inner_loss_weight(inner_loss_weight: f64);
        /// Makes that weight fall to 0 over so many steps of the outer loop.
        with_inner_loss_steps(inner_loss_steps: Option<usize>);
        /// Sets what M0's initial vectors are, beside noise.
        with_memory_start(memory_start: MemoryStart);
        /// Sets the standard deviation of M0's initial values.
        with_memory_std(memory_std: f64);
    }

    /// Puts LoRA's maps beside the modules of these names; beside every linear module if there are none.
    pub fn with_lora_modules<S: Into<String>>(
        mut self,
        targets: impl IntoIterator<Item = S>,
    ) -> Self {
        self.lora_place = LoraPlace::Modules;
        self.lora_targets = targets.into_iter().map(Into::into).collect();
        self
    }

    /// Sets the layers that have a memory.
    pub fn with_layers(mut self, layers: impl IntoIterator<Item = usize>) -> Self {
        self.layers = layers.into_iter().collect();
        self
    }

    /// Writes contexts in chunks of so many tokens.
    pub fn with_chunks(mut self, size: usize, chunks: Chunks) -> Self {
        (self.chunk_size, self.chunks) = (Some(size), chunks);
        self
    }

    /// Sets what has a step size of its own.
    pub fn with_learned_lr(mut self, learned: impl IntoIterator<Item = LearnedLr>) -> Self {
        self.learned_lr = learned.into_iter().collect();
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

    /// The first token of a context or a query that is predicted: 0 where the memory alone predicts one, or else 1.
    pub fn first_predicted(&self) -> usize {
        usize::from(self.kind != MemoryKind::Prefix)
    }

    /// Positions before the first token: the memory's, and those of control tokens on either side.
    pub fn prefix_len(&self) -> usize {
        match self.kind {
            MemoryKind::Lora => 0,
            MemoryKind::Kv => self.memory_tokens,
            MemoryKind::Prefix => self
                .memory_tokens
                .saturating_add(self.ctrl_tokens.saturating_mul(2)),
        }
    }

    /// The most steps that a context, or a chunk of one, is written with in training.
    pub(crate) fn most_steps(&self) -> usize {
        self.random_write_steps
            .map_or(self.write_steps, |[_, most]| most)
    }

    /// Whether READ is given the memories of all chunks.
    pub(super) fn concatenates(&self) -> bool {
        self.chunk_size.is_some() && self.chunks == Chunks::Concatenated
    }

    /// How many chunks a context of so many tokens has. Where the first token of a chunk is not predicted, a last chunk of
    /// one token is none; the reference drops it in any case.
    pub(crate) fn chunks_of(&self, tokens: usize) -> usize {
        let Some(size) = self.chunk_size else {
            return 1;
        };
        let first = match self.reference_chunks {
            true => 1,
            false => self.first_predicted(),
        };
        tokens.saturating_sub(first).div_ceil(size.max(1)).max(1)
    }

    /// How many of them WRITE takes one after another.
    pub(crate) fn chunks_in_a_row(&self, tokens: usize) -> usize {
        match self.chunks {
            Chunks::Sequential | Chunks::Concatenated => self.chunks_of(tokens),
            Chunks::Parallel => 1,
        }
    }

    /// The most WRITE steps that a context of so many tokens takes one after another.
    pub(crate) fn steps_in_a_row(&self, tokens: usize) -> usize {
        self.most_steps() * self.chunks_in_a_row(tokens)
    }

    /// The most tokens of a context of so many that are read as one sequence.
    pub(crate) fn longest_chunk(&self, tokens: usize) -> usize {
        self.chunk_size.map_or(tokens, |size| size.min(tokens))
    }

    /// The longest context in chunks that a model of so many positions can read of, in tokens; none if there is no limit.
    pub(crate) fn longest_in_chunks(&self, positions: usize) -> Option<usize> {
        let size = self.chunk_size?;
        let takes = self.kind != MemoryKind::Lora && self.concatenates();
        let others = positions.saturating_sub(self.prefix_len() + 1) / self.memory_tokens.max(1);
        takes.then(|| size.saturating_mul(others + 1))
    }

    /// Positions before the first token of a query about a context of so many tokens.
    pub(crate) fn read_after(&self, tokens: usize) -> usize {
        let memories = match self.chunks {
            Chunks::Concatenated => self.chunks_in_a_row(tokens),
            Chunks::Sequential | Chunks::Parallel => 1,
        };
        let own = self.prefix_len();
        let of_one = match self.kind {
            MemoryKind::Lora => 0,
            MemoryKind::Prefix | MemoryKind::Kv => self.memory_tokens,
        };
        own.saturating_add(of_one.saturating_mul(memories - 1))
    }

    /// Whether step `k` of `K` is differentiated in full.
    pub(super) fn is_second_order(&self, k: usize) -> bool {
        let last = self.second_order_steps.unwrap_or(self.write_steps);
        self.grad_mode == GradMode::Second && k.saturating_add(last) >= self.write_steps
    }

    /// Whether step `k` of a chunk adds to the outer loss, beside the memory it leads to.
    pub(super) fn has_terms(&self, k: usize) -> bool {
        let is_last = k + 1 == self.write_steps;
        let at_the_end = self.inner_loss_weight > 0.0 || self.star_weight > 0.0;
        self.step_alignment_weight > 0.0
            || (is_last && at_the_end)
            || (!is_last && self.intermediate_read_weight > 0.0)
    }

    /// Whether step `k` leaves a graph: a second-order step does, and a last step whose loss is trained.
    pub(super) fn needs_graph(&self, k: usize) -> bool {
        let is_last = k + 1 == self.write_steps;
        self.is_second_order(k) || (is_last && self.inner_loss_weight > 0.0)
    }
}
