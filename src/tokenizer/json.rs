//! Checks of a `tokenizer.json` before and after the `tokenizers` crate reads it. That crate panics on some
//! inconsistent files, and does not limit the memory and time that a file can cost.

use std::path::Path;

use serde_json::Value;
use tokenizers::Tokenizer;

use crate::error::Error;
use crate::support::fs::{check_file, read_text};

/// The most ids below the largest that may have no token: the crate iterates over all ids when it saves a
/// vocabulary, and a model's embedding has a row for each.
const HOLES: usize = 1 << 16;

/// The largest factor by which all replacements together may lengthen a text.
const GROWTH: f64 = 1e4;

/// The longest token in bytes. Preparing the search for special tokens takes the square of it, and the tree of
/// all tokens is dropped by recursion of this depth.
const LONGEST: usize = 1000;

/// The deepest nesting of the file, more than any known tokenizer has. The crate tries every type of component
/// at every level.
const DEEPEST: usize = 16;

/// Texts that a tokenizer must encode and decode without a panic.
const TEXTS: [&str; 4] = [
    "Mary went to the garden.",
    "  é e\u{301}\t\n\n中文 👩‍👩‍👧 0123456789",
    "aaaaaaaaaaaaaaaaaaaaaaaa",
    "\u{0}\u{ad}\u{200b}\u{feff}ﬁ ▁ ## <0x41>",
];

/// Reads a `tokenizer.json`, without its truncation and padding.
///
/// # Errors
///
/// If it cannot be read, is not a `tokenizer.json`, panics on ordinary texts, or would take far too much memory
/// or time.
pub(crate) fn open(path: &Path) -> Result<Tokenizer, Error> {
    check_file(path)?;
    let text = read_text(path)?;
    let problem = |e: String| {
        Error::file(
            path,
            format!("is not a tokenizer.json of Hugging Face's: {e}"),
        )
    };
    let json: Value = serde_json::from_str(&text).map_err(|e| problem(e.to_string()))?;
    check(&json).map_err(problem)?;
    let mut tokenizer = catch_panic(|| Tokenizer::from_bytes(&text)).map_err(problem)?;
    let plain = tokenizer.with_truncation(None);
    plain
        .map_err(|e| problem(e.to_string()))?
        .with_padding(None);
    let vocab = tokenizer.get_vocab(true);
    let count = vocab.len();
    if let Some((token, id)) = vocab.into_iter().max_by_key(|(_, id)| *id)
        && id as usize > count + HOLES
    {
        return Err(problem(format!(
            "it has {count} tokens, and {token:?} is number {id}: ids must count up from 0"
        )));
    }
    for text in TEXTS {
        let round = || {
            let ids = tokenizer.encode_fast(text, true);
            let ids = ids.map(|encoding| encoding.get_ids().to_vec());
            // An error for a text that it has no tokens for is allowed.
            let _ = tokenizer.decode(&ids.unwrap_or_default(), false);
            Ok(())
        };
        catch_panic(round).map_err(|e| problem(format!("it fails on {text:?}: {e}")))?;
    }
    Ok(tokenizer)
}

/// Calls a tokenizer, and turns a panic into an error without printing it.
///
/// The crate's assumptions are spread over all its components (a decoder that strips more than a token has, a
/// merge of two tokens without their prefix, a table of replacements that points beyond its end), so they cannot
/// be checked beforehand without writing it again. A panic leaves no partial state: tokenizing does not change
/// the tokenizer.
pub(crate) fn catch_panic<T>(run: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, String> {
    match crate::support::panics::catch_panic(run) {
        Some(result) => result.map_err(|e| e.to_string()),
        None => Err("it is inconsistent".into()),
    }
}

/// Fails on a file whose size or work is beyond the limits, before the crate reads it.
fn check(json: &Value) -> Result<(), String> {
    let added = json.get("added_tokens").and_then(Value::as_array);
    let added = added.into_iter().flatten();
    let added = added.filter_map(|token| token.get("content")?.as_str());
    let vocab = json.get("model").and_then(|model| model.get("vocab"));
    let named = vocab.and_then(Value::as_object).into_iter().flatten();
    let named = named.map(|(token, _)| token.as_str());
    // A pair of a token and its score.
    let scored = vocab.and_then(Value::as_array).into_iter().flatten();
    let scored = scored.filter_map(|pair| pair.get(0)?.as_str());
    if let Some(long) = added
        .chain(named)
        .chain(scored)
        .find(|token| token.len() > LONGEST)
    {
        let problem = format!("a token has {} bytes, more than {LONGEST}", long.len());
        return Err(problem);
    }
    let mut growth = 1.0;
    let mut parts = vec![(json, 0)];
    while let Some((part, depth)) = parts.pop() {
        if depth > DEEPEST {
            return Err(format!("it is nested more than {DEEPEST} deep"));
        }
        match part {
            Value::Array(inner) => parts.extend(inner.iter().map(|part| (part, depth + 1))),
            Value::Object(inner) => {
                table(part)?;
                growth *= lengthens(part);
                parts.extend(inner.values().map(|part| (part, depth + 1)));
            }
            _ => {}
        }
    }
    match growth <= GROWTH {
        true => Ok(()),
        false => Err("its replacements make a text thousands of times longer".into()),
    }
}

/// Fails on a table of replacements (bytes in base64) that claims more bytes than it has, because the crate
/// allocates as many. The table begins with the length of its first half, a little-endian u32.
fn table(part: &Value) -> Result<(), String> {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let table = part.get("precompiled_charsmap");
    let Some(table) = table.and_then(Value::as_str) else {
        return Ok(());
    };
    let value = |digit: &u8| DIGITS.iter().position(|known| known == digit);
    let digits = table.as_bytes().iter().take(6).map(value);
    let digits: Option<Vec<usize>> = digits.collect();
    let Some(Ok([a, b, c, d, e, f])) = digits.map(<[usize; 6]>::try_from) else {
        return Err("its `precompiled_charsmap` is not a table in base64".into());
    };
    let bytes = [
        a << 2 | b >> 4,
        b << 4 | c >> 2,
        c << 6 | d,
        e << 2 | f >> 4,
    ];
    let claimed = u32::from_le_bytes(bytes.map(|byte| byte as u8)) as usize;
    let held = table.len() / 4 * 3;
    match claimed <= held {
        true => Ok(()),
        false => Err(format!(
            "its `precompiled_charsmap` claims {claimed} bytes and has {held} at most"
        )),
    }
}

/// The largest factor by which a replacement lengthens a text.
fn lengthens(part: &Value) -> f64 {
    let content = part
        .get("content")
        .and_then(Value::as_str)
        .map_or(0, str::len);
    let Some(pattern) = part.get("pattern") else {
        // Prepended to each piece, which has at least one character.
        let prepended = part.get("prepend").and_then(Value::as_str);
        return 1.0 + prepended.map_or(0, str::len) as f64 / 16.0;
    };
    // A regular expression may match the empty string at every character.
    let pattern = pattern.get("String").and_then(Value::as_str);
    let matched = pattern.map_or(1, str::len).max(1);
    (content as f64 / matched as f64).max(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opened(json: &str) -> Result<Tokenizer, Error> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokenizer.json");
        std::fs::write(&path, json).unwrap();
        open(&path)
    }

    fn words(vocab: &str, more: &str) -> String {
        format!(
            r#"{{"added_tokens": [], {more} "model": {{"type": "WordLevel", "unk_token": "a", "vocab": {vocab}}}}}"#
        )
    }

    #[test]
    fn files_that_would_panic_or_not_terminate_are_errors() {
        opened(&words(r#"{"a": 0, "b": 65537}"#, "")).unwrap();
        let bomb = r#"{"type": "Replace", "pattern": {"String": "a"}, "content": "aaaaaaaaaa"},"#;
        let bomb = format!(
            r#""normalizer": {{"type": "Sequence", "normalizers": [{}]}},"#,
            bomb.repeat(5).trim_end_matches(',')
        );
        let table = |bytes: &str| {
            format!(
                r#""normalizer": {{"type": "Precompiled", "precompiled_charsmap": "{bytes}"}},"#
            )
        };
        let strip = r#""decoder": {"type": "Strip", "content": "a", "start": 0, "stop": 9},"#;
        let empty = r#""pre_tokenizer": {"type": "FixedLength", "length": 0},"#;
        for (json, word) in [
            (
                words(r#"{"a": 0, "b": 4294967295}"#, ""),
                "number 4294967295",
            ),
            (words(r#"{"a": 0}"#, &bomb), "thousands of times longer"),
            (
                words(r#"{"a": 0}"#, &table("qgAAAA==")),
                "claims 170 bytes and has 6",
            ),
            (
                words(r#"{"a": 0}"#, &table("AABp")),
                "not a table in base64",
            ),
            (words(r#"{"a": 0}"#, strip), "it fails on"),
            (words(r#"{"a": 0}"#, empty), "it fails on"),
            (
                words(
                    r#"{"a": 0}"#,
                    &format!("\"x\": {}1{},", "[".repeat(20), "]".repeat(20)),
                ),
                "nested",
            ),
            (
                words(&format!(r#"{{"a": 0, "{}": 1}}"#, "b".repeat(1001)), ""),
                "1001 bytes",
            ),
            ("[".repeat(10_000), "recursion"),
        ] {
            let error = opened(&json).unwrap_err();
            assert!(error.is_user_error());
            assert!(error.to_string().contains(word), "{error}");
        }
    }
}
