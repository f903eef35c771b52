//! Model folders of Hugging Face's `transformers`: `config.json`, `model.safetensors` (or several files and
//! their index), `tokenizer.json`.
//!
//! ```no_run
//! # fn main() -> Result<(), gradmem::Error> {
//! # #[cfg(feature = "flex")] {
//! use gradmem::model::pretrained;
//!
//! let gpt2 = pretrained::load::<burn_flex::Flex>("models/gpt2", &Default::default())?;
//! println!("{}: {} tokens", gpt2.model.config().model_type(), gpt2.model.config().vocab_size());
//! # }
//! # Ok(()) }
//! ```

use std::collections::HashMap;
use std::path::Path;

use burn::tensor::backend::Backend;
use burn::tensor::{DType, TensorData};
use serde_json::{Map, Value};
use tokenizers::Tokenizer;

use super::any::read_object;
use super::weights::{self, Tensors};
use super::{AnyLm, ModelConfig};
use crate::error::Error;
use crate::support::fs::write_atomically;
use crate::tokenizer;

/// The contents of a folder.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Pretrained<B: Backend> {
    /// The model.
    pub model: AnyLm<B>,
    /// Its tokenizer, if the folder has one.
    pub tokenizer: Option<Tokenizer>,
    /// The token for padding: `pad_token_id` of `config.json`, or else `eos_token_id`, or else 0.
    pub pad_token: usize,
}

/// Loads a model from files in f32, f16, bf16 or f64, and converts it to the backend's element type.
///
/// # Errors
///
/// As [`ModelConfig::open`]; a file that is missing or truncated; tensors that are missing, unexpected, of
/// another shape or non-finite; a tokenizer with more tokens than the model.
pub fn load<B: Backend>(
    folder: impl AsRef<Path>,
    device: &B::Device,
) -> Result<Pretrained<B>, Error> {
    let folder = folder.as_ref();
    let path = folder.join("config.json");
    let json = read_object(&path)?;
    let config = ModelConfig::from_json(&json, &path)?;
    let tokenizer = tokenizer::open_folder(folder, config.vocab_size())?;
    Ok(Pretrained {
        model: load_weights(&config, folder, device)?,
        tokenizer,
        pad_token: pad_token(&json),
    })
}

/// The token for padding that a configuration names, or else 0.
pub(crate) fn pad_token(json: &Map<String, Value>) -> usize {
    let token = token(json, "pad_token_id").or(token(json, "eos_token_id"));
    token.unwrap_or(0)
}

/// A token that a configuration names, or the first if it names several.
pub(crate) fn token(json: &Map<String, Value>, key: &str) -> Option<usize> {
    let value = match json.get(key)? {
        Value::Array(several) => several.first()?,
        one => one,
    };
    usize::try_from(value.as_u64()?).ok()
}

/// A model of this configuration with the weights of a folder.
pub(crate) fn load_weights<B: Backend>(
    config: &ModelConfig,
    folder: &Path,
    device: &B::Device,
) -> Result<AnyLm<B>, Error> {
    let tensors = Tensors::open_folder(folder)?;
    tensors.check_layers(config.layers())?;
    let model = config.blank(device)?;
    let trunk = trunk(config);
    // Checkpoints of a model without its head leave out this prefix.
    let bare = !tensors.names().any(|name| name.starts_with(trunk));
    let name = |path: &str| {
        let name = match path.strip_prefix(trunk) {
            Some(rest) if bare => rest.to_string(),
            _ => path.to_string(),
        };
        // The first Mamba checkpoints call it `embedding`.
        match name.replace("embeddings.", "embedding.") {
            old if !tensors.contains(&name) && tensors.contains(&old) => old,
            _ => name,
        }
    };
    let tied = config.tied_head();
    let ignored = |name: &str| {
        let head = name == "lm_head.weight" || name == "embed_out.weight";
        (tied && head) || BUFFERS.iter().any(|buffer| name.ends_with(buffer))
    };
    tensors.fill_as(model, name, ignored)
}

/// Tensors of old checkpoints that are not weights: masks and rotary frequencies.
const BUFFERS: [&str; 5] = [
    ".attn.bias",
    ".attn.masked_bias",
    ".attention.bias",
    ".attention.masked_bias",
    ".rotary_emb.inv_freq",
];

/// The prefix of the names of all tensors but the head's.
fn trunk(config: &ModelConfig) -> &'static str {
    match config {
        ModelConfig::Gpt2(_) => "transformer.",
        ModelConfig::GptNeoX(_) => "gpt_neox.",
        ModelConfig::Llama(_) => "model.",
        ModelConfig::Mamba(_) => "backbone.",
    }
}

/// Saves a model in the format that `transformers` and [`load`] read. If the process is interrupted, each file
/// is either the old or the new one. The old `config.json` is removed first and the new one written last, so
/// that it never describes other weights.
///
/// # Errors
///
/// If a file cannot be written.
pub fn save<B: Backend>(
    folder: impl AsRef<Path>,
    model: &AnyLm<B>,
    tokenizer: Option<&Tokenizer>,
) -> Result<(), Error> {
    let config = model.config().to_json();
    write_folder(
        folder.as_ref(),
        weights::parameters(model),
        config,
        tokenizer,
    )
}

/// Replaces a folder's tensors, configuration and tokenizer.
pub(crate) fn write_folder(
    folder: &Path,
    tensors: Vec<(String, TensorData)>,
    mut config: Map<String, Value>,
    tokenizer: Option<&Tokenizer>,
) -> Result<(), Error> {
    std::fs::create_dir_all(folder).map_err(Error::io(folder, "cannot make the folder"))?;
    let [config_file, tokenizer_file] =
        ["config.json", "tokenizer.json"].map(|name| folder.join(name));
    for old in [&config_file, &tokenizer_file] {
        match std::fs::remove_file(old) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::io(old, "cannot replace")(e));
            }
            _ => {}
        }
    }
    if let Some((_, data)) = tensors.first() {
        let dtype = match data.dtype {
            DType::F64 => "float64",
            DType::F16 => "float16",
            DType::BF16 => "bfloat16",
            _ => "float32",
        };
        config.insert("torch_dtype".into(), dtype.into());
    }
    // `transformers` requires this entry.
    let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
    let bytes = weights::encode(&tensors, metadata)?;
    write_atomically(folder.join("model.safetensors"), &bytes)?;
    if let Some(tokenizer) = tokenizer {
        let json = tokenizer
            .to_string(true)
            .map_err(|e| Error::Input(format!("the tokenizer cannot be saved: {e}")))?;
        write_atomically(&tokenizer_file, json.as_bytes())?;
    }
    let text = serde_json::to_string_pretty(&config)
        .map_err(|e| Error::file(&config_file, format!("cannot be written: {e}")))?;
    write_atomically(&config_file, format!("{text}\n").as_bytes())
}
