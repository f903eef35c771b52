//! Text to token ids and back, with a tokenizer of Hugging Face's (`tokenizer.json`).
//!
//! A file is checked before the `tokenizers` crate reads it, and a panic of that crate becomes an [`Error`]. Feature `data`:
//! without it there are no tokenizers, and a model's folder is read without its own.

pub(crate) mod json;

use std::path::Path;

pub use tokenizers::Tokenizer;

use crate::error::Error;
use json::catch_panic;

/// Opens the `tokenizer.json` of a model's folder, for a model of `vocab_size` tokens; `None` if the folder
/// has no such file.
///
/// # Errors
///
/// If the file cannot be read, or has a token id that is not below `vocab_size`.
pub fn open_folder(
    folder: impl AsRef<Path>,
    vocab_size: usize,
) -> Result<Option<Tokenizer>, Error> {
    let path = folder.as_ref().join("tokenizer.json");
    if !path.exists() {
        return Ok(None);
    }
    let tokenizer = json::open(&path)?;
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

/// The token ids of a text. With `special`, the tokenizer adds the special tokens that it puts around a text.
///
/// # Errors
///
/// If the tokenizer fails on the text.
pub fn encode(tokenizer: &Tokenizer, text: &str, special: bool) -> Result<Vec<u32>, Error> {
    catch_panic(|| tokenizer.encode_fast(text, special))
        .map(|encoding| encoding.get_ids().to_vec())
        .map_err(|e| Error::Input(format!("{text:?} cannot be tokenized: {e}")))
}

/// The text of token ids, without special tokens.
///
/// # Errors
///
/// If the tokenizer fails on the ids.
pub fn decode(tokenizer: &Tokenizer, ids: &[u32]) -> Result<String, Error> {
    let added = tokenizer.get_added_vocabulary();
    let has_text = |id: &u32| {
        let token = tokenizer.id_to_token(*id);
        token.is_some_and(|token| !added.is_special_token(&token))
    };
    // Some decoders of the library subtract one from the number of tokens.
    if !ids.iter().any(has_text) {
        return Ok(String::new());
    }
    catch_panic(|| tokenizer.decode(ids, true))
        .map_err(|e| Error::Input(format!("tokens {ids:?} cannot be decoded: {e}")))
}
