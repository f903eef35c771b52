//! Settings that are valid, but do nothing beside the others.

use super::config::RunConfig;
use crate::baselines::{ArmtConfig, RmtConfig};
use crate::data::{DataConfig, KvConfig, Objective};
use crate::memory::{GradMemConfig, GradMode, MemoryKind};
use crate::method::MethodName;

impl RunConfig {
    /// Why a setting, by its key, has no effect beside the others; none if it has one, or is not known here.
    pub fn without_effect(&self, key: &str) -> Option<String> {
        let (section, key) = key.split_once('.')?;
        let own = self.method.section();
        if MethodName::SECTIONS.contains(&section) && section != own {
            let method = self.method.as_str();
            return Some(format!(
                "the method is {method}, whose settings are under [{own}]"
            ));
        }
        let reason = match section {
            "memory" => of_memory(&self.memory, key),
            "rmt" => of_rmt(&self.rmt, key),
            "armt" => of_armt(&self.armt, key),
            // What a part of the curriculum uses has an effect.
            "data" => of_data(&self.data, key).filter(|_| {
                let has_none = |data: &DataConfig| of_data(data, key).is_some();
                self.stages()
                    .map_or(true, |stages| stages.iter().all(has_none))
            }),
            "tokens" => self.of_tokens(key),
            "train" => self.of_train(key),
            _ => None,
        };
        reason.map(str::to_string)
    }

    fn of_tokens(&self, key: &str) -> Option<&'static str> {
        let own = self.data.own_tokenizer().is_ok_and(|own| own.is_some());
        match key {
            "vocab_size" | "pad" | "end" if own => Some("this task has tokens of its own"),
            "vocab_size" if self.tokens.file().is_some() => {
                Some("tokens.tokenizer is a file, which has its vocabulary")
            }
            _ => None,
        }
    }

    fn of_train(&self, key: &str) -> Option<&'static str> {
        match key {
            "meta_gradient" if self.method != MethodName::GradMem => {
                Some("it is of gradmem's outer gradient")
            }
            "curriculum_value" if self.train.curriculum.is_empty() => {
                Some("train.curriculum is empty")
            }
            _ => None,
        }
    }
}

/// What only WRITE's steps use.
const OF_STEPS: [&str; 14] = [
    "write_lr",
    "grad_mode",
    "second_order_steps",
    "inner_clip_value",
    "inner_clip_norm",
    "inner_loss_weight",
    "write_lora_rank",
    "write_lora_alpha",
    "write_lora_targets",
    "write_head",
    "gate",
    "memory_noise",
    "chunk_size",
    "chunks",
];

fn of_memory(memory: &GradMemConfig, key: &str) -> Option<&'static str> {
    let is_lora = memory.kind == MemoryKind::Lora;
    let steps = memory.most_steps();
    let second_order = memory.grad_mode == GradMode::Second && memory.second_order_steps != Some(0);
    match key {
        _ if steps == 0 && OF_STEPS.contains(&key) => {
            Some("WRITE takes no steps: memory.write_steps is 0")
        }
        "lora_rank" | "lora_alpha" | "lora_place" if !is_lora => Some("it is of kind = \"lora\""),
        "chunks" if memory.chunk_size.is_none() => {
            Some("contexts are written whole: there is no memory.chunk_size")
        }
        "memory_tokens" if is_lora => Some("maps of kind = \"lora\" have a rank instead"),
        "memory_std" if is_lora && memory.ctrl_tokens == 0 => {
            Some("maps of kind = \"lora\" are drawn by their rank")
        }
        "write_lora_alpha" if memory.write_lora_rank == 0 => {
            Some("there are no adapters: memory.write_lora_rank is 0")
        }
        "write_head" | "write_lora_rank" | "write_lora_alpha" | "write_lora_targets"
            if !second_order && memory.inner_loss_weight == 0.0 =>
        {
            Some(
                "nothing trains it: no WRITE step is second order, and memory.inner_loss_weight is 0",
            )
        }
        "second_order_steps" if memory.second_order_steps >= Some(steps.max(1)) => {
            Some("all steps are second order: memory.write_steps is no larger")
        }
        "momentum" if steps < 2 => Some("there is one WRITE step, and momentum is of those before"),
        _ => None,
    }
}

fn of_rmt(rmt: &RmtConfig, key: &str) -> Option<&'static str> {
    let once = rmt.write_steps == 1 && key == "mem_residual";
    once.then_some("it is of the passes after the first, and rmt.write_steps is 1")
}

fn of_armt(armt: &ArmtConfig, key: &str) -> Option<&'static str> {
    let plain = !armt.use_denom && key == "correction";
    plain.then_some("it is of the normalisation, and armt.use_denom is false")
}

fn of_data(data: &DataConfig, key: &str) -> Option<&'static str> {
    const ALL_OF_FILE: &str = "data.valid_file is held out, all of it";
    const OF_GENERATED: &str = "it is of generated samples, and data.train_file names others";
    let names = |key| data.files().iter().any(|(found, _)| *found == key);
    match (data, key) {
        // The most of a file that are used.
        (DataConfig::Squad(_), "valid_samples") => None,
        (_, "valid_samples") if names("valid_file") => Some(ALL_OF_FILE),
        (_, "train_samples") if names("train_file") => Some(OF_GENERATED),
        (DataConfig::Phonebook(_), "entries" | "queries_per_context") if names("train_file") => {
            Some(OF_GENERATED)
        }
        (_, "valid_share") if names("valid_path") => Some("data.valid_path is held out instead"),
        (DataConfig::Text(text), "target_tokens") if text.objective == Objective::Compression => {
            Some("data.objective is \"compression\": the context is the target")
        }
        (DataConfig::Kv(KvConfig { segments: 0, .. }), "segment_min" | "segment_max") => {
            Some("contexts have no segments: data.segments is 0")
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_nothing_is_told() {
        let config = RunConfig::default();
        let reason = |key: &str| config.without_effect(key);
        assert!(reason("rmt.write_steps").unwrap().contains("[memory]"));
        assert!(reason("memory.lora_rank").unwrap().contains("lora"));
        assert!(reason("data.segment_min").is_some());
        assert!(reason("train.curriculum_value").is_some());
        assert_eq!(reason("train.meta_gradient"), None);
        assert!(reason("tokens.vocab_size").unwrap().contains("its own"));
        let rmt = RunConfig {
            method: MethodName::Rmt,
            ..RunConfig::default()
        };
        assert!(rmt.without_effect("rmt.mem_residual").is_some());
        assert!(rmt.without_effect("train.meta_gradient").is_some());
        for key in ["memory.write_lr", "data.pairs", "train.steps", "method"] {
            assert_eq!(reason(key), None, "{key}");
        }
        let mut config = config;
        let part = "segments=1 queries_per_context=1".to_string();
        config.train.curriculum = vec![part];
        assert_eq!(config.without_effect("data.segment_min"), None);
        config.memory.kind = MemoryKind::Lora;
        assert_eq!(config.without_effect("memory.lora_rank"), None);
        config.memory.second_order_steps = Some(config.memory.write_steps);
        assert!(config.without_effect("memory.second_order_steps").is_some());
        config.memory.second_order_steps = Some(1);
        config.memory.write_steps = 2;
        assert!(config.without_effect("memory.second_order_steps").is_none());
        config.memory.random_write_steps = Some([1, 1]);
        assert!(config.without_effect("memory.momentum").is_some());
        config.memory.random_write_steps = None;
        assert!(config.without_effect("memory.write_head").is_none());
        config.memory.grad_mode = GradMode::First;
        assert!(config.without_effect("memory.write_head").is_some());
        config.memory.inner_loss_weight = 0.1;
        assert!(config.without_effect("memory.write_head").is_none());
        config.memory.write_steps = 0;
        for key in OF_STEPS {
            assert!(config.without_effect(&format!("memory.{key}")).is_some());
        }
    }
}
