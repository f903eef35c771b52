//! What settings of GradMem can work, alone and together.

use super::super::choices::{Chunks, GradMode, LoraPlace, MemProj, MemoryKind, MemoryStart};
use super::super::{GateKind, LearnedLr};
use super::{GradMemConfig, MOST_STEPS};
use crate::error::{Error, not_negative, positive, require, sizes};

impl GradMemConfig {
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
            ("lora_rank", self.lora_rank),
        ])?;
        self.validate_kind()?;
        self.validate_chunks()?;
        self.validate_auxiliary()?;
        positive([("write_lr", self.write_lr)])?;
        let problem = format!("must be at most {MOST_STEPS}");
        let random = self.random_write_steps.map_or(0, |[_, most]| most);
        for (key, steps) in [
            ("write_steps", self.write_steps),
            ("random_write_steps", random),
        ] {
            require(steps <= MOST_STEPS, key, steps, &problem)?;
        }
        self.validate_inner()?;
        let fits = self.kind == MemoryKind::Prefix || self.memory_start == MemoryStart::Noise;
        let problem = "is for vectors in front of the tokens: it needs kind = \"prefix\"";
        let start = self.memory_start.as_str();
        require(fits, "memory_start", start, problem)?;
        if self.write_lora_rank > 0 {
            positive([("write_lora_alpha", self.write_lora_alpha)])?;
        }
        let targets = &self.write_lora_targets;
        let problem = "is for adapters in WRITE: it needs write_lora_rank of at least 1";
        let fits = self.write_lora_rank > 0 || targets.is_empty();
        require(fits, "write_lora_targets", format!("{targets:?}"), problem)?;
        let steps = self.second_order_steps;
        let problem =
            "is how many of the last steps are second order: it needs grad_mode = \"second\"";
        let fits = self.grad_mode == GradMode::Second || steps.is_none();
        let shown = steps.unwrap_or_default();
        require(fits, "second_order_steps", shown, problem)?;
        let problem = "is for a gate: it needs gate = \"convex\" or \"mamba\"";
        let fits = self.gate != GateKind::None || self.gate_dimensions;
        require(fits, "gate_dimensions", false, problem)?;
        for (key, clip) in [
            ("inner_clip_value", self.inner_clip_value),
            ("inner_clip_norm", self.inner_clip_norm),
        ] {
            if let Some(clip) = clip {
                let problem = "must be a positive number (leave it out for no clipping)";
                require(clip > 0.0 && clip.is_finite(), key, clip, problem)?;
            }
        }
        if let Some(steps) = self.inner_loss_steps {
            let problem =
                "is how long inner_loss_weight falls: it needs one above 0, and at least 1 step";
            let fits = steps > 0 && self.inner_loss_weight > 0.0;
            require(fits, "inner_loss_steps", steps, problem)?;
        }
        let trains = !self.freeze_backbone
            || self.grad_mode != GradMode::None
            || (self.inner_loss_weight > 0.0
                && self.inner_loss_steps.is_none()
                && self.most_steps() > 0
                && (self.write_head || self.write_lora_rank > 0))
            || self.ctrl_tokens > 0
            || self.mem_proj == MemProj::Proj;
        let problem = "leaves nothing to be trained: grad_mode = \"none\" cuts the memory off, and READ has no weights but the model's";
        require(trains, "freeze_backbone", true, problem)?;
        not_negative([
            ("inner_loss_weight", self.inner_loss_weight),
            ("memory_std", self.memory_std),
            ("step_alignment_weight", self.step_alignment_weight),
            ("intermediate_read_weight", self.intermediate_read_weight),
            ("memory_alignment_weight", self.memory_alignment_weight),
            ("memory_noise", self.memory_noise),
            ("star_weight", self.star_weight),
            ("star_radius", self.star_radius),
            ("star_step", self.star_step),
        ])?;
        let problem = "must be greater than 0 where star_weight is: at the memory itself the divergence has no gradient";
        let moves = self.star_weight == 0.0 || self.star_radius > 0.0;
        require(moves, "star_radius", self.star_radius, problem)
    }

    /// What is learned of WRITE's steps, and how many there are.
    fn validate_inner(&self) -> Result<(), Error> {
        if let Some([least, most]) = self.random_write_steps {
            let shown = format!("[{least}, {most}]");
            let problem =
                "must be two numbers of steps, the first at least 1 and at most the second";
            require(
                (1..=most).contains(&least),
                "random_write_steps",
                &shown,
                problem,
            )?;
            let problem = "needs write_steps of at least 1, the number in evaluation";
            require(self.write_steps > 0, "random_write_steps", shown, problem)?;
        }
        if let Some(beta) = self.momentum {
            let problem = "must be between 0 and 1 (leave it out for none)";
            require(beta > 0.0 && beta < 1.0, "momentum", beta, problem)?;
        }
        let learned = format!("{:?}", self.learned_lr).to_lowercase();
        let twice = |axis: &LearnedLr| self.learned_lr.iter().filter(|x| *x == axis).count() > 1;
        let problem = "names one of them twice";
        require(
            !self.learned_lr.iter().any(twice),
            "learned_lr",
            &learned,
            problem,
        )?;
        let trained = self.grad_mode != GradMode::None && self.write_steps > 0;
        let problem = "is trained through WRITE: it needs grad_mode = \"second\" or \"first\", and write_steps of at least 1";
        for (key, given, shown) in [
            ("learned_lr", !self.learned_lr.is_empty(), learned),
            (
                "momentum",
                self.momentum.is_some(),
                self.momentum.unwrap_or_default().to_string(),
            ),
        ] {
            require(trained || !given, key, shown, problem)?;
        }
        Ok(())
    }

    /// What is for another kind of memory.
    fn validate_kind(&self) -> Result<(), Error> {
        let kind = self.kind.as_str();
        if self.kind == MemoryKind::Lora {
            positive([("lora_alpha", self.lora_alpha)])?;
        }
        let only = |key: &str, given: bool, shown: &str, kinds: &str| {
            let problem = format!("is for a memory of kind {kinds}, not `{kind}`");
            require(!given, key, shown, problem)
        };
        let is = |kinds: &[MemoryKind]| kinds.contains(&self.kind);
        let prefix = is(&[MemoryKind::Prefix]);
        only(
            "ctrl_tokens",
            !prefix && self.ctrl_tokens > 0,
            &self.ctrl_tokens.to_string(),
            "`prefix`",
        )?;
        let projects = self.mem_proj != MemProj::None && is(&[MemoryKind::Lora]);
        only("mem_proj", projects, "proj", "`prefix` or `kv`")?;
        let gated = !prefix && self.gate != GateKind::None;
        only("gate", gated, "convex or mamba", "`prefix`")?;
        let cut = self.gate != GateKind::None && self.grad_mode == GradMode::None;
        let problem = "is trained through WRITE: it needs grad_mode = \"second\" or \"first\"";
        require(!cut, "gate", "convex or mamba", problem)?;
        let both = self.gate != GateKind::None && self.mem_proj == MemProj::PerSample;
        let problem = "is for memory vectors alone: mem_proj = \"per_sample\" has other matrices";
        require(!both, "gate", "convex or mamba", problem)?;
        let own = self.mem_proj == MemProj::PerSample && !prefix;
        only("mem_proj", own, "per_sample", "`prefix`")?;
        let layers = format!("{:?}", self.layers);
        only(
            "layers",
            prefix && !self.layers.is_empty(),
            &layers,
            "`lora` or `kv`",
        )?;
        let lora = is(&[MemoryKind::Lora]);
        let targets = format!("{:?}", self.lora_targets);
        only(
            "lora_targets",
            !lora && !self.lora_targets.is_empty(),
            &targets,
            "`lora`",
        )?;
        let modules = self.lora_place == LoraPlace::Modules;
        only("lora_place", !lora && modules, "modules", "`lora`")?;
        let problem = "is for lora_place = \"modules\"";
        require(
            modules || self.lora_targets.is_empty(),
            "lora_targets",
            targets,
            problem,
        )
    }

    fn validate_chunks(&self) -> Result<(), Error> {
        let Some(size) = self.chunk_size else {
            let problem = "needs `chunk_size`, the number of tokens in a chunk";
            let chunks = serde_json::to_value(self.chunks).unwrap_or_default();
            let name = chunks.as_str().unwrap_or_default();
            require(self.chunks == Chunks::Sequential, "chunks", name, problem)?;
            return require(!self.reference_chunks, "reference_chunks", true, problem);
        };
        let problem = "must be at least 2: with reference_chunks a chunk of one token is dropped";
        require(
            !self.reference_chunks || size > 1,
            "chunk_size",
            size,
            problem,
        )?;
        let least = self.first_predicted() + 1;
        let problem = match least {
            1 => "must be at least 1".to_string(),
            _ => format!(
                "must be at least {least}: nothing predicts the first token of a chunk with a memory of kind `{}`",
                self.kind.as_str()
            ),
        };
        require(size >= least, "chunk_size", size, problem)
    }

    /// Losses that ask READ before all chunks are written make no sense.
    fn validate_auxiliary(&self) -> Result<(), Error> {
        let one_by_one = self.chunk_size.is_some() && self.chunks != Chunks::Parallel;
        for (key, weight) in [
            ("step_alignment_weight", self.step_alignment_weight),
            ("intermediate_read_weight", self.intermediate_read_weight),
        ] {
            let problem = "asks READ after every step, but a question may be about a chunk that is not written yet: \
                           leave it out, or write with chunks = \"parallel\" or without chunk_size";
            require(!one_by_one || weight == 0.0, key, weight, problem)?;
        }
        let (key, weight) = ("memory_alignment_weight", self.memory_alignment_weight);
        let problem = "compares one memory with its start, but READ is given those of all chunks";
        require(!self.concatenates() || weight == 0.0, key, weight, problem)?;
        // With constant steps the alignment is a constant too.
        let trained = self.grad_mode == GradMode::Second
            && self.second_order_steps != Some(0)
            && self.write_steps > 0;
        for (key, weight) in [
            ("step_alignment_weight", self.step_alignment_weight),
            ("memory_alignment_weight", self.memory_alignment_weight),
        ] {
            let problem = "compares WRITE's steps with READ, which trains nothing unless the steps are second order: it needs \
                           grad_mode = \"second\" and write_steps of at least 1";
            require(trained || weight == 0.0, key, weight, problem)?;
        }
        let few = self.most_steps() < 2;
        let (key, weight) = ("intermediate_read_weight", self.intermediate_read_weight);
        let problem = "is for the memories before the last: it needs write_steps of at least 2";
        require(!few || weight == 0.0, key, weight, problem)?;
        let (key, weight) = ("star_weight", self.star_weight);
        let problem = "is for what WRITE ends with: it needs write_steps of at least 1";
        require(self.most_steps() > 0 || weight == 0.0, key, weight, problem)?;
        let default = Self::default();
        for (key, value, default) in [
            ("star_radius", self.star_radius, default.star_radius),
            ("star_step", self.star_step, default.star_step),
        ] {
            let problem = "is for star_weight above 0";
            require(weight > 0.0 || value == default, key, value, problem)?;
        }
        let problem = "is for step_alignment_weight above 0";
        let aligned = self.step_alignment_weight > 0.0;
        require(
            aligned || !self.align_last_step,
            "align_last_step",
            true,
            problem,
        )?;
        let problem = "is for step_alignment_weight or memory_alignment_weight above 0";
        let aligned = aligned || self.memory_alignment_weight > 0.0;
        require(
            aligned || !self.alignment_norm,
            "alignment_norm",
            true,
            problem,
        )
    }
}
