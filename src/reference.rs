//! The reference implementation's folders (github.com/yurakuratov/gradmem): its `config.json`,
//! read as settings of ours. Its weights need no translation: parameters carry the same names.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::error::Error;
use crate::memory::{GradMemConfig, GradMode};
use crate::model::LlamaConfig;

/// What a folder's `config.json` describes.
pub enum Reference {
    /// `grad_memgpt`: a language model with a memory.
    GradMem(LlamaConfig, GradMemConfig),
    /// A plain language model.
    Llama(LlamaConfig),
}

/// A `config.json`, as read.
pub struct ReferenceConfig {
    path: PathBuf,
    json: Map<String, Value>,
}

/// The part of a `grad_memgpt` configuration that has a counterpart here.
#[derive(Deserialize)]
struct GradMemGpt {
    n_mem_tokens: usize,
    #[serde(rename = "K")]
    steps: usize,
    lr: f64,
    grad_mode: GradMode,
    #[serde(rename = "last_K_second_order")]
    second_order_steps: Option<usize>,
    inner_clip_value: Option<f64>,
    inner_clip_norm: Option<f64>,
    #[serde(default)]
    use_write_head: bool,
    #[serde(default)]
    add_inner_loss_to_outer: bool,
    inner_loss_weight: Option<f64>,
}

impl ReferenceConfig {
    /// Reads a `config.json`.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        let text = std::fs::read_to_string(path).map_err(Error::io(path, "cannot read"))?;
        let json = serde_json::from_str(&text)
            .map_err(|e| Error::file(path, format!("is not a JSON object: {e}")))?;
        Ok(Self {
            path: path.into(),
            json,
        })
    }

    /// The settings it stands for.
    ///
    /// # Errors
    ///
    /// If a value is missing or of the wrong kind, or asks for something this crate does not have.
    pub fn into_model(self) -> Result<Reference, Error> {
        match self.json.get("model_type").and_then(Value::as_str) {
            Some("llama") => Ok(Reference::Llama(self.llama(&self.json)?)),
            Some("grad_memgpt") => {
                let Some(Value::Object(base)) = self.json.get("base_config") else {
                    return Err(self.problem("`base_config` is not an object: a grad_memgpt needs its language model there"));
                };
                match base.get("model_type").and_then(Value::as_str) {
                    Some("llama") => {}
                    other => return Err(self.unknown("base_config.model_type", other, "llama")),
                }
                let model = self.llama(base)?;
                let memory = self.memory(base)?;
                Ok(Reference::GradMem(model, memory))
            }
            other => Err(self.unknown("model_type", other, "llama, grad_memgpt")),
        }
    }

    fn memory(&self, base: &Map<String, Value>) -> Result<GradMemConfig, Error> {
        let off = |key: &str, allowed: &[Value]| match self.json.get(key) {
            None | Some(Value::Null) => Ok(()),
            Some(value) if allowed.contains(value) => Ok(()),
            Some(value) => Err(self.problem(format!("`{key}` = {value} is not supported"))),
        };
        off("use_adam", &[false.into()])?;
        off("mem_proj_mode", &["none".into()])?;
        off("use_mem_proj", &[false.into()])?;
        off("n_ctrl_tokens", &[0.into()])?;
        off("use_write_lora", &[false.into()])?;
        off("freeze_backbone", &[false.into()])?;
        off("memory_update", &["gradient".into()])?;
        off("use_hopfield_memory", &[false.into()])?;
        let read: GradMemGpt = serde_json::from_value(Value::Object(self.json.clone()))
            .map_err(|e| self.problem(e.to_string()))?;
        let pad_token = base.get("pad_token_id").and_then(Value::as_u64);
        let weight = match read.add_inner_loss_to_outer {
            true => read.inner_loss_weight.unwrap_or(1.0),
            false => 0.0,
        };
        Ok(GradMemConfig {
            memory_tokens: read.n_mem_tokens,
            write_steps: read.steps,
            write_lr: read.lr,
            grad_mode: read.grad_mode,
            second_order_steps: read.second_order_steps,
            inner_clip_value: read.inner_clip_value,
            inner_clip_norm: read.inner_clip_norm,
            write_head: read.use_write_head,
            inner_loss_weight: weight,
            pad_token: pad_token.unwrap_or(0) as usize,
            ..GradMemConfig::default()
        })
    }

    fn llama(&self, json: &Map<String, Value>) -> Result<LlamaConfig, Error> {
        match json.get("rope_scaling") {
            None | Some(Value::Null) => {}
            Some(value) => {
                return Err(self.problem(format!("`rope_scaling` = {value} is not supported")));
            }
        }
        match json.get("hidden_act") {
            None => {}
            Some(Value::String(act)) if act == "silu" => {}
            Some(value) => {
                let problem = format!("`hidden_act` = {value} is not supported: only \"silu\" is");
                return Err(self.problem(problem));
            }
        }
        for key in [
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
        ] {
            if !json.contains_key(key) {
                return Err(self.problem(format!("has no `{key}`")));
            }
        }
        serde_json::from_value(Value::Object(json.clone())).map_err(|e| self.problem(e.to_string()))
    }

    fn unknown(&self, key: &str, found: Option<&str>, known: &str) -> Error {
        let found = found.map_or("nothing".into(), |found| format!("`{found}`"));
        self.problem(format!("`{key}` is {found}, not one of {known}"))
    }

    fn problem(&self, problem: impl Into<String>) -> Error {
        Error::file(&self.path, problem)
    }
}
