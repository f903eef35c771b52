//! Text to token ids and back, with a tokenizer of Hugging Face's (`tokenizer.json`).
//!
//! A file is checked before the `tokenizers` crate reads it, and a panic of that crate becomes an [`Error`]. Feature `data`:
//! without it there are no tokenizers, and a model's folder is read without its own.

pub(crate) mod json;

use std::path::Path;

pub use tokenizers::Tokenizer;
use tokenizers::models::ModelWrapper;
use tokenizers::normalizers::NormalizerWrapper;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::processors::PostProcessorWrapper;
use tokenizers::processors::sequence::Sequence;
use tokenizers::{Encoding, Model, NormalizedString, Normalizer};

use crate::error::Error;
use crate::support::fs::read_object;
use json::catch_panic;

/// Usual names of the token for text that is not in the vocabulary.
const UNKNOWN: [&str; 4] = ["[UNK]", "<unk>", "<|unk|>", "[unk]"];

/// Opens the `tokenizer.json` of a model's folder, for a model of `vocab_size` tokens; `None` if the folder
/// has no such file. An added token without a row in the embedding is no error, but a warning: some have one for padding.
///
/// # Errors
///
/// If the file cannot be read, or has another token whose id is not below `vocab_size`.
pub fn open_folder(
    folder: impl AsRef<Path>,
    vocab_size: usize,
) -> Result<Option<Tokenizer>, Error> {
    let path = folder.as_ref().join("tokenizer.json");
    if !path.exists() {
        return Ok(None);
    }
    let tokenizer = json::open(&path)?;
    let largest = |added| {
        let tokens = tokenizer.get_vocab(added).into_iter();
        let largest = tokens.max_by_key(|(_, id)| *id);
        largest.filter(|(_, id)| *id as usize >= vocab_size)
    };
    if let Some((token, id)) = largest(false) {
        let problem = format!(
            "has a token {id} ({token:?}), but the model's embedding has {vocab_size} rows: they do not belong together"
        );
        return Err(Error::file(&path, problem));
    }
    if let Some((token, id)) = largest(true) {
        log::warn!(
            "{}: its added token {token:?} is {id}, but the model's embedding has {vocab_size} rows: a text with it is refused",
            path.display()
        );
    }
    warn_of_other_settings(&tokenizer, folder.as_ref())?;
    Ok(Some(tokenizer))
}

/// Warns where a folder's `tokenizer_config.json` says of the tokens that begin and end a text, or of a space before it, what its
/// `tokenizer.json` does not do: version 4 of `transformers` follows the former for some models, version 5 the latter.
fn warn_of_other_settings(tokenizer: &Tokenizer, folder: &Path) -> Result<(), Error> {
    let path = folder.join("tokenizer_config.json");
    if !path.exists() {
        return Ok(());
    }
    let json = read_object(&path)?;
    let ids = |special| encode(tokenizer, "a", special);
    let (Ok(bare), Ok(given)) = (ids(false), ids(true)) else {
        return Ok(());
    };
    let added = given.len() > bare.len();
    let does = [
        ("add_bos_token", added && !given.starts_with(&bare)),
        ("add_eos_token", added && !given.ends_with(&bare)),
    ];
    let mut does = does.to_vec();
    if let Some(adds) = adds_prefix_space(tokenizer) {
        does.push(("add_prefix_space", adds));
    }
    for (key, does) in does {
        if let Some(says) = json.get(key).and_then(|value| value.as_bool())
            && says != does
        {
            let what = if does { "adds one" } else { "adds none" };
            log::warn!(
                "{}: `{key}` = {says}, but tokenizer.json {what}: tokenizer.json is used, as by transformers 5",
                path.display()
            );
        }
    }
    Ok(())
}

/// Whether a tokenizer of bytes puts a space before a text.
fn adds_prefix_space(tokenizer: &Tokenizer) -> Option<bool> {
    let of = |step: &PreTokenizerWrapper| match step {
        PreTokenizerWrapper::ByteLevel(bytes) => Some(bytes.add_prefix_space),
        _ => None,
    };
    match tokenizer.get_pre_tokenizer()? {
        PreTokenizerWrapper::Sequence(steps) => steps.as_ref().iter().find_map(of),
        step => of(step),
    }
}

/// The tokenizer without what adds special tokens to a text.
pub(crate) fn without_special(mut tokenizer: Tokenizer) -> Tokenizer {
    let adds = |step: &PostProcessorWrapper| {
        matches!(
            step,
            PostProcessorWrapper::Template(_)
                | PostProcessorWrapper::Bert(_)
                | PostProcessorWrapper::Roberta(_)
        )
    };
    let kept = match tokenizer.get_post_processor() {
        Some(PostProcessorWrapper::Sequence(steps)) => {
            let steps = steps.as_ref().iter().filter(|step| !adds(step));
            let steps: Vec<_> = steps.cloned().collect();
            (!steps.is_empty()).then(|| PostProcessorWrapper::Sequence(Sequence::new(steps)))
        }
        Some(step) if adds(step) => None,
        _ => return tokenizer,
    };
    tokenizer.with_post_processor(kept);
    tokenizer
}

/// The token ids of a text. With `special`, the tokenizer adds the special tokens that it puts around a text.
///
/// # Errors
///
/// If the tokenizer fails on the text, or leaves a part of it out because it has no token for it.
pub fn encode(tokenizer: &Tokenizer, text: &str, special: bool) -> Result<Vec<u32>, Error> {
    encode_knowing(tokenizer, text, special, leaves_out(tokenizer))
}

/// As [`encode`], where it is known whether the tokenizer [`leaves_out`] text.
pub(crate) fn encode_knowing(
    tokenizer: &Tokenizer,
    text: &str,
    special: bool,
    leaves_out: bool,
) -> Result<Vec<u32>, Error> {
    let encoding = match leaves_out {
        true => encode_with_offsets(tokenizer, text, special, leaves_out)?,
        false => encoded(text, || tokenizer.encode_fast(text, special))?,
    };
    Ok(encoding.get_ids().to_vec())
}

/// As [`encode_knowing`], with the bytes of the text that each token stands for.
pub(crate) fn encode_with_offsets(
    tokenizer: &Tokenizer,
    text: &str,
    special: bool,
    leaves_out: bool,
) -> Result<Encoding, Error> {
    let encoding = encoded(text, || tokenizer.encode(text, special))?;
    let missing = match leaves_out {
        true => left_out(tokenizer, text, encoding.get_offsets()),
        false => None,
    };
    match missing.filter(|_| is_left_out_of_normalized(tokenizer, text)) {
        None => Ok(encoding),
        Some((at, c)) => Err(Error::Input(format!(
            "{c:?} at byte {at} of a text has no token, and the tokenizer has none for what it does not know: it \
             would be left out"
        ))),
    }
}

fn encoded(
    text: &str,
    encode: impl FnOnce() -> tokenizers::Result<Encoding>,
) -> Result<Encoding, Error> {
    catch_panic(encode).map_err(|e| Error::Input(format!("{text:?} cannot be tokenized: {e}")))
}

/// Whether the tokenizer leaves out what it has no token for: byte-pair encoding without a token for the unknown, and without
/// one for each byte. It looks for all of these: not for each text.
pub(crate) fn leaves_out(tokenizer: &Tokenizer) -> bool {
    let ModelWrapper::BPE(bpe) = tokenizer.get_model() else {
        return false;
    };
    let known = |token: &str| tokenizer.token_to_id(token).is_some();
    let has_unknown = bpe.unk_token.as_deref().is_some_and(known);
    let bytes_first =
        |step: &PreTokenizerWrapper| matches!(step, PreTokenizerWrapper::ByteLevel(_));
    let of_bytes = match tokenizer.get_pre_tokenizer() {
        Some(PreTokenizerWrapper::Sequence(steps)) => steps.as_ref().iter().any(bytes_first),
        Some(step) => bytes_first(step),
        None => false,
    };
    let of_bytes = of_bytes
        || matches!(
            tokenizer.get_normalizer(),
            Some(NormalizerWrapper::ByteLevel(_))
        );
    let has_bytes = || {
        ByteLevel::alphabet()
            .iter()
            .all(|c| known(c.encode_utf8(&mut [0; 4])))
    };
    // Without one of them, the crate falls back for no character that has its byte.
    let falls_back = bpe.byte_fallback && (0..=255).all(|byte| known(&format!("<0x{byte:02X}>")));
    !(has_unknown || falls_back || of_bytes && has_bytes())
}

/// The first character of a text that no token stands for, and its byte. White space, and what the tokenizer's normalizer takes
/// away, need none.
fn left_out(
    tokenizer: &Tokenizer,
    text: &str,
    offsets: &[(usize, usize)],
) -> Option<(usize, char)> {
    let mut covered = vec![false; text.len()];
    for (start, end) in offsets {
        covered[*start..*end].fill(true);
    }
    let is_kept = |c: char| {
        let mut one = NormalizedString::from(c.to_string());
        let normalizer = tokenizer.get_normalizer();
        normalizer.is_none_or(|n| n.normalize(&mut one).is_err() || !one.get().is_empty())
    };
    let mut characters = text.char_indices();
    characters.find(|(at, c)| !covered[*at] && !c.is_whitespace() && is_kept(*c))
}

/// Whether that is so of the normalized text too: where several characters become one, its token's offsets are those of the first.
fn is_left_out_of_normalized(tokenizer: &Tokenizer, text: &str) -> bool {
    let mut normalized = NormalizedString::from(text);
    let done = tokenizer
        .get_normalizer()
        .map(|n| n.normalize(&mut normalized));
    let Some(Ok(())) = done else { return true };
    let text = normalized.get();
    match encoded(text, || tokenizer.encode(text, false)) {
        Ok(encoding) => left_out(tokenizer, text, encoding.get_offsets()).is_some(),
        Err(_) => true,
    }
}

/// The token for what is not in the vocabulary: the one that the tokenizer's model names, or one of a usual name.
pub fn unknown(tokenizer: &Tokenizer) -> Option<u32> {
    let named = match tokenizer.get_model() {
        ModelWrapper::BPE(model) => model.unk_token.as_deref(),
        ModelWrapper::WordLevel(model) => Some(model.unk_token.as_str()),
        ModelWrapper::WordPiece(model) => Some(model.unk_token.as_str()),
        // It names none, but makes it of a character that no text has.
        ModelWrapper::Unigram(model) => {
            let tokens = catch_panic(|| model.tokenize("\u{10ffff}")).unwrap_or_default();
            match tokens.first().filter(|_| !model.byte_fallback()) {
                Some(token) => return Some(token.id),
                None => None,
            }
        }
    };
    let usual = UNKNOWN.iter().copied();
    let names = named.into_iter().chain(usual);
    names.filter_map(|name| tokenizer.token_to_id(name)).next()
}

/// The text of token ids, without special tokens but for the one of text that is not in the vocabulary.
///
/// # Errors
///
/// If the tokenizer fails on the ids.
pub fn decode(tokenizer: &Tokenizer, ids: &[u32]) -> Result<String, Error> {
    let added = tokenizer.get_added_vocabulary();
    let unknown = unknown(tokenizer);
    let is_text = |id: &u32| {
        let token = tokenizer.id_to_token(*id);
        Some(*id) == unknown || token.is_some_and(|token| !added.is_special_token(&token))
    };
    let ids: Vec<u32> = ids.iter().copied().filter(is_text).collect();
    // Some decoders of the library subtract one from the number of tokens.
    if ids.is_empty() {
        return Ok(String::new());
    }
    catch_panic(|| tokenizer.decode(&ids, false))
        .map_err(|e| Error::Input(format!("tokens {ids:?} cannot be decoded: {e}")))
}
