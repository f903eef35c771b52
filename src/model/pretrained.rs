//! Folders of Hugging Face's `transformers`: `config.json`, `model.safetensors` (or several files and
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
use tokenizers::Tokenizer;

use super::weights::{self, Tensors};
use super::{AnyLm, ModelConfig};
use crate::error::Error;
use crate::files::write_atomically;

/// What a folder holds.
#[derive(Clone, Debug)]
pub struct Pretrained<B: Backend> {
    /// The model.
    pub model: AnyLm<B>,
    /// Its tokenizer, if the folder has one.
    pub tokenizer: Option<Tokenizer>,
}

/// Loads a model, in the backend's element type, from files in f32, f16, bf16 or f64.
///
/// # Errors
///
/// As [`ModelConfig::open`]; a file that is missing or cut short; tensors that are missing, unexpected,
/// of another shape or not finite; a tokenizer with more tokens than the model.
pub fn load<B: Backend>(
    folder: impl AsRef<Path>,
    device: &B::Device,
) -> Result<Pretrained<B>, Error> {
    let folder = folder.as_ref();
    let config = ModelConfig::open(folder.join("config.json"))?;
    let tokenizer = tokenizer(folder, config.vocab_size())?;
    let model = load_into(config.blank(device)?, folder)?;
    Ok(Pretrained { model, tokenizer })
}

/// Fills a model with the weights of a folder.
///
/// # Errors
///
/// As [`load`].
pub fn load_into<B: Backend>(model: AnyLm<B>, folder: impl AsRef<Path>) -> Result<AnyLm<B>, Error> {
    let tensors = Tensors::open_folder(folder)?;
    let config = model.config();
    let trunk = trunk(&config);
    // Checkpoints of the bare trunk leave its name out.
    let bare = !tensors.names().any(|name| name.starts_with(trunk));
    let name = |path: &str| {
        let name = match path.strip_prefix(trunk) {
            Some(rest) if bare => rest.to_string(),
            _ => path.to_string(),
        };
        // The first Mamba checkpoints have this in the singular.
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
    tensors.fill_as(model, &name, &ignored)
}

/// What old checkpoints hold beside the weights: masks, and frequencies that are computed.
const BUFFERS: [&str; 5] = [
    ".attn.bias",
    ".attn.masked_bias",
    ".attention.bias",
    ".attention.masked_bias",
    ".rotary_emb.inv_freq",
];

/// The name of the part below the head.
fn trunk(config: &ModelConfig) -> &'static str {
    match config {
        ModelConfig::Gpt2(_) => "transformer.",
        ModelConfig::GptNeoX(_) => "gpt_neox.",
        ModelConfig::Llama(_) => "model.",
        ModelConfig::Mamba(_) => "backbone.",
    }
}

/// The `tokenizer.json` of a folder, if there is one, for a model of `vocab_size` tokens.
///
/// # Errors
///
/// If it cannot be read or has tokens that the model does not have.
pub fn tokenizer(folder: impl AsRef<Path>, vocab_size: usize) -> Result<Option<Tokenizer>, Error> {
    let path = folder.as_ref().join("tokenizer.json");
    if !path.exists() {
        return Ok(None);
    }
    let bytes = std::fs::read(&path).map_err(Error::io(&path, "cannot read"))?;
    let tokenizer = Tokenizer::from_bytes(&bytes)
        .map_err(|e| Error::file(&path, format!("is not a tokenizer: {e}")))?;
    let largest = tokenizer.get_vocab(true).into_values().max();
    match largest {
        Some(largest) if largest as usize >= vocab_size => {
            let token = tokenizer.id_to_token(largest).unwrap_or_default();
            Err(Error::file(
                &path,
                format!(
                    "has a token {largest} ({token:?}), but the model's embedding has {vocab_size} \
                     rows: they do not belong together"
                ),
            ))
        }
        _ => Ok(Some(tokenizer)),
    }
}

/// Saves a model so that `transformers` and [`load`] read it. Each file is either the old one or the
/// new one, whatever happens meanwhile.
///
/// # Errors
///
/// If a file cannot be written.
pub fn save<B: Backend>(
    folder: impl AsRef<Path>,
    model: &AnyLm<B>,
    tokenizer: Option<&Tokenizer>,
) -> Result<(), Error> {
    let folder = folder.as_ref();
    std::fs::create_dir_all(folder).map_err(Error::io(folder, "cannot make the folder"))?;
    // `transformers` asks for this entry.
    let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
    let bytes = weights::encode(&weights::parameters(model), metadata)?;
    write_atomically(folder.join("model.safetensors"), &bytes)?;
    if let Some(tokenizer) = tokenizer {
        let json = tokenizer
            .to_string(true)
            .map_err(|e| Error::Input(format!("the tokenizer cannot be saved: {e}")))?;
        write_atomically(folder.join("tokenizer.json"), json.as_bytes())?;
    }
    write_json(&folder.join("config.json"), &model.config().to_json())
}

/// Writes a JSON object for people to read.
pub(crate) fn write_json(
    path: &Path,
    json: &serde_json::Map<String, serde_json::Value>,
) -> Result<(), Error> {
    let text = serde_json::to_string_pretty(json)
        .map_err(|e| Error::file(path, format!("cannot be written: {e}")))?;
    write_atomically(path, format!("{text}\n").as_bytes())
}
