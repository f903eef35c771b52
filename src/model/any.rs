//! The models of this crate as one type, by the name of their configuration.

use std::path::Path;

use burn::module::Module;
use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor};
use gradmem_kernels::KernelBackend;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::decoder::{DecoderConfig, Dimensions};
use super::layers::Init;
use super::{
    Cache, CausalLm, Gpt2, Gpt2Config, GptNeoX, GptNeoXConfig, Llama, LlamaConfig, Mamba,
    MambaConfig,
};
use crate::error::Error;
use crate::support::fs::read_text;

/// The settings of a language model, by its Hugging Face type.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "model_type", rename_all = "snake_case")]
#[non_exhaustive]
pub enum ModelConfig {
    /// [`Gpt2`]
    Gpt2(Gpt2Config),
    /// [`GptNeoX`]
    #[serde(rename = "gpt_neox")]
    GptNeoX(GptNeoXConfig),
    /// [`Llama`]
    Llama(LlamaConfig),
    /// [`Mamba`]
    Mamba(MambaConfig),
}

impl Default for ModelConfig {
    fn default() -> Self {
        Self::Llama(LlamaConfig::default())
    }
}

/// Evaluates the same expression for each variant.
macro_rules! each {
    ($value:expr, $enum:ident, $inner:ident => $body:expr) => {
        match $value {
            $enum::Gpt2($inner) => $body,
            $enum::GptNeoX($inner) => $body,
            $enum::Llama($inner) => $body,
            $enum::Mamba($inner) => $body,
        }
    };
}

impl ModelConfig {
    /// The names of all types.
    pub const TYPES: &'static [&'static str] = &["gpt2", "gpt_neox", "llama", "mamba"];

    /// The name of this type.
    pub fn model_type(&self) -> &'static str {
        match self {
            Self::Gpt2(_) => "gpt2",
            Self::GptNeoX(_) => "gpt_neox",
            Self::Llama(_) => "llama",
            Self::Mamba(_) => "mamba",
        }
    }

    /// The default settings of a type.
    pub fn of_type(model_type: &str) -> Option<Self> {
        Some(match model_type {
            "gpt2" => Self::Gpt2(Gpt2Config::default()),
            "gpt_neox" => Self::GptNeoX(GptNeoXConfig::default()),
            "llama" => Self::Llama(LlamaConfig::default()),
            "mamba" => Self::Mamba(MambaConfig::default()),
            _ => return None,
        })
    }

    /// Number of tokens.
    pub fn vocab_size(&self) -> usize {
        self.dimensions().vocab_size
    }

    /// Number of blocks.
    pub fn layers(&self) -> usize {
        self.dimensions().layers
    }

    /// Width of an embedding.
    pub fn d_model(&self) -> usize {
        self.dimensions().d_model
    }

    /// Longest sequence and the setting that limits it; `None` if there is no limit.
    pub fn max_positions(&self) -> Option<(&'static str, usize)> {
        self.dimensions().max_positions
    }

    fn dimensions(&self) -> Dimensions {
        each!(self, Self, config => config.dimensions())
    }

    /// Whether the head is the embedding, transposed.
    pub fn tied_head(&self) -> bool {
        each!(self, Self, config => config.tie_word_embeddings)
    }

    /// Checks every value.
    ///
    /// # Errors
    ///
    /// The first value that cannot work, by its key and with the reason: [`Error::Config`].
    pub fn validate(&self) -> Result<(), Error> {
        each!(self, Self, config => config.validate())
    }

    /// A model with random weights, drawn by `seed`, the same on every backend.
    ///
    /// # Errors
    ///
    /// See [`ModelConfig::validate`].
    pub fn init<B: Backend>(&self, seed: u64, device: &B::Device) -> Result<AnyLm<B>, Error> {
        self.build(Init::new(seed), device)
    }

    /// A model whose weights are not allocated until they are loaded.
    ///
    /// # Errors
    ///
    /// See [`ModelConfig::validate`].
    pub fn blank<B: Backend>(&self, device: &B::Device) -> Result<AnyLm<B>, Error> {
        self.build(Init::blank(), device)
    }

    fn build<B: Backend>(&self, init: Init, device: &B::Device) -> Result<AnyLm<B>, Error> {
        Ok(match self {
            Self::Gpt2(config) => AnyLm::Gpt2(config.build(init, device)?),
            Self::GptNeoX(config) => AnyLm::GptNeoX(config.build(init, device)?),
            Self::Llama(config) => AnyLm::Llama(config.build(init, device)?),
            Self::Mamba(config) => AnyLm::Mamba(config.build(init, device)?),
        })
    }

    /// Reads a `config.json` of Hugging Face's `transformers`.
    ///
    /// # Errors
    ///
    /// An unknown `model_type`, a missing size, a value of the wrong type, sizes that are inconsistent, or an
    /// activation or type of rotary scaling that is not supported.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        Self::from_json(&read_object(path)?, path)
    }

    /// [`ModelConfig::open`] of an object that was read from `path`.
    pub(crate) fn from_json(json: &Map<String, Value>, path: &Path) -> Result<Self, Error> {
        let problem = |problem: String| Error::file(path, problem);
        let found = json.get("model_type");
        let model_type = found.and_then(Value::as_str).unwrap_or_default();
        let sizes: &[&str] = match model_type {
            "gpt2" => &["vocab_size", "n_embd", "n_layer", "n_head"],
            "mamba" => &["vocab_size", "hidden_size", "num_hidden_layers"],
            "gpt_neox" | "llama" => &[
                "vocab_size",
                "hidden_size",
                "intermediate_size",
                "num_hidden_layers",
                "num_attention_heads",
            ],
            _ => {
                let found = found.map_or("missing".into(), Value::to_string);
                let known = Self::TYPES.join(", ");
                return Err(problem(format!(
                    "`model_type` is {found}, not one of {known}"
                )));
            }
        };
        let missing = |size: &&&str| json.get(**size).is_none_or(Value::is_null);
        if let Some(size) = sizes.iter().find(missing) {
            return Err(problem(format!("has no `{size}`")));
        }
        let mut json = json.clone();
        json.retain(|_, value| !value.is_null());
        unify_keys(&mut json);
        if model_type == "llama" {
            // The defaults of `transformers`; those of `LlamaConfig` are for small models.
            for (key, value) in [
                ("rope_theta", Value::from(10_000.0)),
                ("rms_norm_eps", 1e-6.into()),
                ("max_position_embeddings", 2048.into()),
                ("tie_word_embeddings", false.into()),
            ] {
                json.entry(key).or_insert(value);
            }
        }
        if let Some((a, b, ours)) = [("n_embd", "hidden_size"), ("n_layer", "num_hidden_layers")]
            .into_iter()
            .map(|(a, b)| (a, b, (json.get(a).cloned(), json.get(b).cloned())))
            .find(|(_, _, pair)| matches!(pair, (Some(a), Some(b)) if a != b))
        {
            let (one, two) = (ours.0.unwrap_or_default(), ours.1.unwrap_or_default());
            return Err(problem(format!("`{a}` = {one} contradicts `{b}` = {two}")));
        }
        let config: Self = serde_json::from_value(Value::Object(json.clone())).map_err(|e| {
            problem(unsupported_key(&json, model_type).unwrap_or_else(|| e.to_string()))
        })?;
        config.validate().map_err(|e| problem(e.to_string()))?;
        Ok(config)
    }

    /// As a `config.json` that `transformers` reads.
    pub fn to_json(&self) -> Map<String, Value> {
        let Ok(Value::Object(mut json)) = serde_json::to_value(self) else {
            return Map::new();
        };
        json.retain(|_, value| !value.is_null());
        let architecture = match self {
            Self::Gpt2(_) => "GPT2LMHeadModel",
            Self::GptNeoX(_) => "GPTNeoXForCausalLM",
            Self::Llama(_) => "LlamaForCausalLM",
            Self::Mamba(_) => "MambaForCausalLM",
        };
        json.insert("architectures".into(), vec![architecture].into());
        json
    }
}

/// Reduces the keys of several versions of `transformers` to one name each. Newer versions put the rotary
/// settings under one key, and some values are written under two names.
fn unify_keys(json: &mut Map<String, Value>) {
    if let Some(Value::Object(rope)) = json.remove("rope_parameters") {
        for key in ["rope_theta", "partial_rotary_factor"] {
            if let Some(value) = rope.get(key) {
                json.entry(key).or_insert(value.clone());
            }
        }
        let kind = rope.get("rope_type").or(rope.get("type"));
        if kind.is_some_and(|kind| kind != "default") {
            json.entry("rope_scaling").or_insert(Value::Object(rope));
        }
    }
    if let Some(Value::Object(scaling)) = json.get_mut("rope_scaling")
        && scaling.contains_key("rope_type")
    {
        scaling.remove("type");
    }
    for (ours, theirs) in [
        ("rotary_pct", "partial_rotary_factor"),
        ("rotary_emb_base", "rope_theta"),
    ] {
        if json.contains_key(ours) {
            json.remove(theirs);
        }
    }
}

/// The key whose value cannot be read, found by reading each one alone.
fn unsupported_key(json: &Map<String, Value>, model_type: &str) -> Option<String> {
    json.iter().find_map(|(key, value)| {
        let alone = serde_json::json!({ "model_type": model_type, key: value });
        let error = serde_json::from_value::<ModelConfig>(alone).err()?;
        Some(format!("`{key}` = {value} is not supported: {error}"))
    })
}

/// Reads a file that holds one JSON object.
pub(crate) fn read_object(path: &Path) -> Result<Map<String, Value>, Error> {
    let text = read_text(path)?;
    serde_json::from_str(&text).map_err(|e| Error::file(path, format!("is not a JSON object: {e}")))
}

/// A language model whose type is known at run time only, for programs that read the type's name from a file.
#[derive(Module, Debug)]
#[non_exhaustive]
pub enum AnyLm<B: Backend> {
    /// `gpt2`
    Gpt2(Gpt2<B>),
    /// `gpt_neox`
    GptNeoX(GptNeoX<B>),
    /// `llama`
    Llama(Llama<B>),
    /// `mamba`
    Mamba(Mamba<B>),
}

impl<B: Backend> AnyLm<B> {
    /// The settings it was made with.
    pub fn config(&self) -> ModelConfig {
        match self {
            Self::Gpt2(model) => ModelConfig::Gpt2(model.config().clone()),
            Self::GptNeoX(model) => ModelConfig::GptNeoX(model.config().clone()),
            Self::Llama(model) => ModelConfig::Llama(model.config().clone()),
            Self::Mamba(model) => ModelConfig::Mamba(model.config().clone()),
        }
    }
}

impl<B: KernelBackend> CausalLm<B> for AnyLm<B> {
    fn d_model(&self) -> usize {
        each!(self, Self, model => model.d_model())
    }

    fn vocab_size(&self) -> usize {
        each!(self, Self, model => model.vocab_size())
    }

    fn max_positions(&self) -> Option<usize> {
        each!(self, Self, model => model.max_positions())
    }

    fn settings(&self) -> String {
        each!(self, Self, model => model.settings())
    }

    fn embed(&self, tokens: Tensor<B, 2, Int>) -> Tensor<B, 3> {
        each!(self, Self, model => model.embed(tokens))
    }

    fn hidden(&self, embeds: Tensor<B, 3>) -> Tensor<B, 3> {
        each!(self, Self, model => model.hidden(embeds))
    }

    fn hidden_after(&self, embeds: Tensor<B, 3>, past: &mut Cache<B>) -> Tensor<B, 3> {
        each!(self, Self, model => model.hidden_after(embeds, past))
    }

    fn logits(&self, hidden: Tensor<B, 3>) -> Tensor<B, 3> {
        each!(self, Self, model => model.logits(hidden))
    }

    fn token_losses(&self, logits: Tensor<B, 3>, targets: Tensor<B, 2, Int>) -> Tensor<B, 2> {
        each!(self, Self, model => model.token_losses(logits, targets))
    }

    fn head(&self) -> Tensor<B, 2> {
        each!(self, Self, model => model.head())
    }
}
