//! Settings that are valid, but do nothing beside the others.

use super::config::RunConfig;
use crate::data::{DataConfig, KvConfig};
use crate::memory::{GradMemConfig, MemoryKind};
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
            "data" => of_data(&self.data, key),
            "train" => self.of_train(key),
            _ => None,
        };
        reason.map(str::to_string)
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

fn of_memory(memory: &GradMemConfig, key: &str) -> Option<&'static str> {
    let is_lora = memory.kind == MemoryKind::Lora;
    match key {
        "lora_rank" | "lora_alpha" | "lora_place" if !is_lora => Some("it is of kind = \"lora\""),
        "memory_tokens" if is_lora => Some("maps of kind = \"lora\" have a rank instead"),
        "write_lora_alpha" if memory.write_lora_rank == 0 => {
            Some("there are no adapters: memory.write_lora_rank is 0")
        }
        "second_order_steps" if memory.second_order_steps >= Some(memory.write_steps.max(1)) => {
            Some("all steps are second order: memory.write_steps is no larger")
        }
        _ => None,
    }
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
        let rmt = RunConfig {
            method: MethodName::Rmt,
            ..RunConfig::default()
        };
        assert!(rmt.without_effect("train.meta_gradient").is_some());
        for key in ["memory.write_lr", "data.pairs", "train.steps", "method"] {
            assert_eq!(reason(key), None, "{key}");
        }
        let mut config = config;
        config.memory.kind = MemoryKind::Lora;
        assert_eq!(config.without_effect("memory.lora_rank"), None);
        config.memory.second_order_steps = Some(config.memory.write_steps);
        assert!(config.without_effect("memory.second_order_steps").is_some());
        config.memory.second_order_steps = Some(1);
        config.memory.write_steps = 2;
        assert!(config.without_effect("memory.second_order_steps").is_none());
    }
}
