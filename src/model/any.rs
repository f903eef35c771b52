//! The models of this crate as one type, by the name of their configuration.

use burn::module::Module;
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use gradmem_kernels::KernelBackend;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::decoder::{Decoder, DecoderConfig, Dimensions};
use super::layers::{Affine, Embedding, Init};
use super::{
    Cache, Gpt2, Gpt2Config, GptNeoX, GptNeoXConfig, Llama, LlamaConfig, Mamba, MambaConfig, Slots,
};
use crate::error::Error;
use crate::support::memory::check_free;

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
        serde_json::from_value(serde_json::json!({ "model_type": model_type })).ok()
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

    /// Where in its layers a memory can be.
    pub fn slots(&self) -> Slots {
        each!(self, Self, config => config.slots())
    }

    /// Whether the head is the embedding, transposed.
    pub fn tied_head(&self) -> bool {
        each!(self, Self, config => config.tie_word_embeddings)
    }

    /// Sets whether the head is the embedding, transposed (`true`), or has weights of its own (`false`).
    pub(crate) fn with_tied_head(mut self, tied: bool) -> Self {
        each!(&mut self, Self, config => config.tie_word_embeddings = tied);
        self
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
    /// See [`ModelConfig::validate`]; also weights that certainly do not fit into the memory that is free, where that is known.
    pub fn init<B: Backend>(&self, seed: u64, device: &B::Device) -> Result<AnyLm<B>, Error> {
        self.validate()?;
        let advice = "a smaller model, of fewer layers or a smaller width";
        let needed = 4.0 * self.least_weights();
        check_free::<B>(device, needed, "the model's weights need", advice)?;
        self.build(Init::new(seed), device)
    }

    /// The weights of the embedding and of the layers' products, of which a model has others beside.
    fn least_weights(&self) -> f64 {
        self.vocab_size() as f64 * self.d_model() as f64 + self.slots().weights()
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

    /// As a `config.json` that `transformers` reads.
    pub fn to_json(&self) -> Map<String, Value> {
        let Ok(Value::Object(mut json)) = serde_json::to_value(self) else {
            return Map::new();
        };
        json.retain(|_, value| !value.is_null());
        // Of the values of other rules, `transformers` would complain.
        if let Some(Value::Object(rope)) = json.get_mut("rope_scaling") {
            match rope["rope_type"].as_str() {
                Some("linear") => rope.retain(|key, _| ["rope_type", "factor"].contains(&&key[..])),
                Some("default") => _ = json.remove("rope_scaling"),
                _ => {}
            }
        }
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

impl<B: KernelBackend> Decoder for AnyLm<B> {
    type Backend = B;

    fn config(&self) -> &dyn DecoderConfig {
        each!(self, Self, model => model.config())
    }

    fn embedding(&self) -> &Embedding<B> {
        each!(self, Self, model => model.embedding())
    }

    fn own_head(&self) -> Option<&Affine<B>> {
        each!(self, Self, model => model.own_head())
    }

    fn joined(&self) -> Self {
        match self {
            Self::Gpt2(model) => Self::Gpt2(Decoder::joined(model)),
            Self::GptNeoX(model) => Self::GptNeoX(Decoder::joined(model)),
            Self::Llama(model) => Self::Llama(Decoder::joined(model)),
            Self::Mamba(model) => Self::Mamba(Decoder::joined(model)),
        }
    }

    fn forward(
        &self,
        embeds: Tensor<B, 3>,
        rows: usize,
        cache: Option<&mut Cache<B>>,
    ) -> Tensor<B, 3> {
        each!(self, Self, model => model.forward(embeds, rows, cache))
    }
}
