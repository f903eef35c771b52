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
use std::path::{Path, PathBuf};

use burn::tensor::backend::Backend;
use burn::tensor::{DType, TensorData};
use serde_json::{Map, Value};

use super::weights::{self, Tensors};
use super::{AnyLm, ModelConfig, adapter};
use crate::error::Error;
use crate::support::fs::{read_object, write_atomically};
use crate::tokenizer::{self, Tokenizer};

/// The contents of a folder.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Pretrained<B: Backend> {
    /// The model.
    pub model: AnyLm<B>,
    /// Its tokenizer, if the folder has one (feature `data`).
    pub tokenizer: Option<Tokenizer>,
    /// The tokens that pad, begin and end a text.
    pub special: SpecialTokens,
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
        special: SpecialTokens::of(&json, folder)?,
    })
}

/// Tokens that a folder's `config.json` and `generation_config.json` name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpecialTokens {
    /// What fills shorter rows: `pad_token_id` of `config.json`, or else its `eos_token_id`, or else 0.
    pub pad: u32,
    /// What ends an answer: `eos_token_id` of `generation_config.json`, or else of `config.json`. There may be several,
    /// or none.
    pub ends: Vec<u32>,
    /// What begins a text: `bos_token_id` of `config.json`, if it has one. The tokenizer says whether a text is given it.
    pub begin: Option<u32>,
}

impl SpecialTokens {
    /// Those of a folder; of a checkpoint of the reference, those of its language model.
    ///
    /// # Errors
    ///
    /// If a file cannot be read, or has something else than tokens there.
    pub fn open(folder: impl AsRef<Path>) -> Result<Self, Error> {
        let folder = folder.as_ref();
        Self::of(&read_object(&folder.join("config.json"))?, folder)
    }

    fn of(config: &Map<String, Value>, folder: &Path) -> Result<Self, Error> {
        let [path, generation] =
            ["config.json", "generation_config.json"].map(|name| folder.join(name));
        let base = config.get("base_config").and_then(Value::as_object);
        let base = base.unwrap_or(config);
        let size = base.get("vocab_size").and_then(Value::as_u64);
        let mut ends = Vec::new();
        if generation.exists() {
            let json = read_object(&generation)?;
            ends = tokens(&json, "eos_token_id", size, &generation)?;
        }
        let pad = tokens(base, "pad_token_id", size, &path)?.first().copied();
        let own = match (pad, ends.as_slice()) {
            (Some(_), [_, ..]) => Vec::new(),
            _ => tokens(base, "eos_token_id", size, &path)?,
        };
        let pad = pad.or(own.first().copied()).unwrap_or(0);
        if ends.is_empty() {
            ends = own;
        }
        let begin = tokens(base, "bos_token_id", size, &path)?.first().copied();
        Ok(Self { pad, ends, begin })
    }

    /// Puts them into a `config.json`, unless nothing is known of them: there `transformers` takes its defaults for ids that
    /// are not said.
    pub(crate) fn write(&self, config: &mut Map<String, Value>) {
        if *self == Self::default() {
            return;
        }
        let ends = match self.ends.as_slice() {
            [] => Value::Null,
            [end] => (*end).into(),
            ends => ends.into(),
        };
        config.insert("pad_token_id".into(), self.pad.into());
        config.insert("bos_token_id".into(), self.begin.into());
        config.insert("eos_token_id".into(), ends);
    }

    /// The `tokenizer_config.json` with which `transformers` takes the `tokenizer.json` beside it as it is. Without one it
    /// chooses a class by the model's type, which may have a token of its own begin each text.
    fn tokenizer_config(&self, tokenizer: &Tokenizer) -> Map<String, Value> {
        let mut json = Map::new();
        json.insert("tokenizer_class".into(), "PreTrainedTokenizerFast".into());
        json.insert("clean_up_tokenization_spaces".into(), false.into());
        if *self == Self::default() {
            return json;
        }
        let ids = [
            ("pad_token", Some(self.pad)),
            ("bos_token", self.begin),
            ("eos_token", self.ends.first().copied()),
        ];
        for (key, id) in ids {
            if let Some(token) = id.and_then(|id| tokenizer.id_to_token(id)) {
                json.insert(key.into(), token.into());
            }
        }
        json
    }
}

/// The token or tokens of a key; none if there is no such key. Small models often keep the default of a large one, and some
/// have a padding token without a row in the embedding: a token that the model does not have is left out, with a warning.
fn tokens(
    json: &Map<String, Value>,
    key: &str,
    vocab_size: Option<u64>,
    path: &Path,
) -> Result<Vec<u32>, Error> {
    let values = match json.get(key) {
        None | Some(Value::Null) => &[][..],
        Some(Value::Array(several)) => several,
        Some(one) => std::slice::from_ref(one),
    };
    let size = vocab_size.unwrap_or(u32::MAX.into());
    let mut ids = Vec::new();
    for value in values {
        match value.as_u64() {
            Some(id) if vocab_size.is_some_and(|size| id >= size) => log::warn!(
                "{}: `{key}` = {value} is not one of the model's tokens and is ignored",
                path.display()
            ),
            // Some old configurations say so that there is none.
            None if value.as_i64() == Some(-1) => {}
            id => ids.push(id.and_then(|id| u32::try_from(id).ok()).ok_or_else(|| {
                let last = size.saturating_sub(1);
                let problem =
                    format!("`{key}` = {value} is not one of the model's tokens 0 … {last}");
                Error::file(path, problem)
            })?),
        }
    }
    Ok(ids)
}

/// A model of this configuration with the weights of a folder.
pub(crate) fn load_weights<B: Backend>(
    config: &ModelConfig,
    folder: &Path,
    device: &B::Device,
) -> Result<AnyLm<B>, Error> {
    let tensors = Tensors::open_folder(folder)?;
    tensors.check_layers(config.layers())?;
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
    let (config, head) = head(config, &tensors, name)?;
    let tied = config.tied_head();
    let ignored = |name: &str| {
        let head = HEADS.contains(&name);
        (tied && head) || BUFFERS.iter().any(|buffer| name.ends_with(buffer))
    };
    let model = tensors.fill_as(config.blank(device)?, head, ignored)?;
    adapter::apply(model, folder)
}

/// What the heads of the models are called.
pub(crate) const HEADS: [&str; 2] = ["lm_head.weight", "embed_out.weight"];

/// What a stored head means for a model whose configuration ties it to the embedding: the configuration as the
/// weights have it, and the names of its tensors.
///
/// A head that differs from the embedding was trained apart, so it is kept and the model is not tied, as in
/// `transformers` 5. A head without an embedding is both: `safetensors.torch.save_model` keeps one of a tensor's names.
pub(crate) fn head(
    config: &ModelConfig,
    tensors: &Tensors,
    name: impl Fn(&str) -> String,
) -> Result<(ModelConfig, impl Fn(&str) -> String), Error> {
    let embedding = match config {
        ModelConfig::Gpt2(_) => "transformer.wte.weight",
        ModelConfig::GptNeoX(_) => "gpt_neox.embed_in.weight",
        ModelConfig::Llama(_) => "model.embed_tokens.weight",
        ModelConfig::Mamba(_) => "backbone.embeddings.weight",
    };
    let [newer, own] = HEADS;
    // Newer versions of transformers call GPT-NeoX's head as other models do.
    let name = move |path: &str| match name(path) {
        found if path != own || tensors.contains(&found) => found,
        found => Some(name(newer))
            .filter(|other| tensors.contains(other))
            .unwrap_or(found),
    };
    let stored = HEADS.iter().map(|head| name(head));
    let mut stored = stored.filter(|_| config.tied_head());
    let stored = stored.find(|head| tensors.contains(head));
    let theirs = name(embedding);
    let mut config = config.clone();
    let mut only = None;
    if let Some(head) = stored {
        if !tensors.contains(&theirs) {
            only = Some(head);
        } else if !tensors.equal(&head, &theirs)? {
            log::warn!(
                "{}: `{head}` differs from `{theirs}`, to which the configuration ties it: both are kept, and the head is \
                 not tied",
                tensors.path().display()
            );
            config = config.with_tied_head(false);
        }
    }
    let names = move |path: &str| match &only {
        Some(head) if path == embedding => head.clone(),
        _ => name(path),
    };
    Ok((config, names))
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

/// Saves a model in the format that `transformers` and [`load`] read: `config.json`, `model.safetensors` and, with a tokenizer,
/// `tokenizer.json` and `tokenizer_config.json`. What an older model left in the folder that would change this one's reading is
/// removed; an adapter, which would be added to it, is an error. If the process is interrupted, each file is either the old or
/// the new one. The old `config.json` is removed first and the new one written last, so that it never describes other weights.
///
/// # Errors
///
/// If a file cannot be written.
pub fn save<B: Backend>(
    folder: impl AsRef<Path>,
    model: &AnyLm<B>,
    tokenizer: Option<&Tokenizer>,
    special: &SpecialTokens,
) -> Result<(), Error> {
    let mut config = model.config().to_json();
    special.write(&mut config);
    write_folder(
        folder.as_ref(),
        weights::parameters(model),
        config,
        tokenizer,
        special,
    )
}

/// Replaces a folder's tensors, configuration and tokenizer. If that fails, files and folders that were not there before are removed,
/// so that the same can be tried again.
pub(crate) fn write_folder(
    folder: &Path,
    tensors: Vec<(String, TensorData)>,
    config: Map<String, Value>,
    tokenizer: Option<&Tokenizer>,
    special: &SpecialTokens,
) -> Result<(), Error> {
    let is_new = |path: &Path| path.symlink_metadata().is_err();
    let new_folders = folder
        .ancestors()
        .take_while(|path| !path.as_os_str().is_empty() && is_new(path));
    let new_folders: Vec<&Path> = new_folders.collect();
    let files = [WEIGHTS].into_iter().chain(FILES);
    let files = files.map(|name| folder.join(name));
    let new_files: Vec<PathBuf> = files.filter(|path| is_new(path)).collect();
    let written = write_files(folder, tensors, config, tokenizer, special);
    if written.is_err() {
        // What cannot be removed is left.
        for file in new_files {
            std::fs::remove_file(file).ok();
        }
        for folder in new_folders {
            std::fs::remove_dir(folder).ok();
        }
    }
    written
}

fn write_files(
    folder: &Path,
    tensors: Vec<(String, TensorData)>,
    mut config: Map<String, Value>,
    tokenizer: Option<&Tokenizer>,
    special: &SpecialTokens,
) -> Result<(), Error> {
    std::fs::create_dir_all(folder).map_err(Error::io(folder, "cannot make the folder"))?;
    let adapter = folder.join(adapter::CONFIG);
    if adapter.exists() {
        let problem = "is an adapter, which would be added to the weights that are saved beside it: save in another folder";
        return Err(Error::file(adapter, problem));
    }
    for old in FILES {
        let old = folder.join(old);
        match std::fs::remove_file(&old) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::io(&old, "cannot replace")(e));
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
    write_atomically(folder.join(WEIGHTS), &bytes)?;
    if let Some(tokenizer) = tokenizer {
        let json = tokenizer
            .to_string(true)
            .map_err(|e| Error::Input(format!("the tokenizer cannot be saved: {e}")))?;
        write_atomically(folder.join("tokenizer.json"), json.as_bytes())?;
        let beside = special.tokenizer_config(tokenizer);
        write_json(&folder.join("tokenizer_config.json"), &beside)?;
    }
    write_json(&folder.join("config.json"), &config)
}

/// The tensors.
const WEIGHTS: &str = "model.safetensors";

/// What [`load`] or `transformers` reads beside the tensors.
const FILES: [&str; 6] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
];

fn write_json(path: &Path, json: &Map<String, Value>) -> Result<(), Error> {
    let text = serde_json::to_string_pretty(json)
        .map_err(|e| Error::file(path, format!("cannot be written: {e}")))?;
    write_atomically(path, format!("{text}\n").as_bytes())
}
