//! Checks of a `tokenizer.json` before and after the `tokenizers` crate reads it. That crate panics on some
//! inconsistent files, and does not limit the memory and time that a file can cost.

use std::path::Path;

use serde::de::DeserializeOwned;
use serde_json::Value;
use tokenizers::decoders::DecoderWrapper;
use tokenizers::models::ModelWrapper;
use tokenizers::normalizers::NormalizerWrapper;
use tokenizers::{Decoder, NormalizedString, Normalizer, Tokenizer};

use crate::error::Error;
use crate::support::fs::{check_file, read_text};
use crate::support::panics;

/// The most ids below the largest that may have no token: the crate iterates over all ids when it saves a
/// vocabulary, and a model's embedding has a row for each.
const HOLES: usize = 1 << 16;

/// The most steps of a normalizer or decoder: each text of each step goes through all of them.
const STEPS: usize = 1000;

/// The most bytes that all steps together are tried on.
const TRIED: usize = 1 << 25;

/// How many times longer all replacements together may make a text.
const GROWTH: usize = 100;

/// The longest token or replacement in bytes. Preparing the search for special tokens takes the square of it, and the
/// tree of all tokens is dropped by recursion of this depth.
pub(crate) const LONGEST: usize = 2048;

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
    if let ModelWrapper::BPE(bpe) = tokenizer.get_model()
        && bpe.dropout.is_some_and(|share| share > 0.0)
    {
        log::warn!(
            "{}: its `dropout` of merges is left out: a text has the same tokens each time",
            path.display()
        );
        let mut bpe = bpe.clone();
        bpe.dropout = None;
        tokenizer.with_model(bpe);
    }
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
    match panics::catch_panic(run) {
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
    let mut parts = vec![(json, 0)];
    while let Some((part, depth)) = parts.pop() {
        if depth > DEEPEST {
            return Err(format!("it is nested more than {DEEPEST} deep"));
        }
        match part {
            Value::Array(inner) => parts.extend(inner.iter().map(|part| (part, depth + 1))),
            Value::Object(inner) => {
                table(part)?;
                parts.extend(inner.values().map(|part| (part, depth + 1)));
            }
            _ => {}
        }
    }
    let empty = Value::Null;
    let part = |key: &str| json.get(key).unwrap_or(&empty);
    grows(part("normalizer"), |step: &NormalizerWrapper, text| {
        let mut text = NormalizedString::from(text);
        step.normalize(&mut text).ok()?;
        Some(text.get().into())
    })?;
    grows(part("decoder"), |step: &DecoderWrapper, text| {
        Some(step.decode_chain(vec![text.into()]).ok()?.concat())
    })
}

/// Fails if the steps of a component, one after the other, make a text much longer: it takes a text for each string that
/// a step replaces or puts in, so that whatever a step leaves to the next is among them, and the ordinary texts.
fn grows<S: DeserializeOwned>(
    component: &Value,
    apply: impl Fn(&S, &str) -> Option<String>,
) -> Result<(), String> {
    let mut steps = Vec::new();
    let mut open = vec![component];
    while let Some(part) = open.pop() {
        let inner = ["normalizers", "decoders"].map(|key| part.get(key).and_then(Value::as_array));
        match inner.into_iter().flatten().next() {
            Some(inner) => open.extend(inner.iter().rev()),
            None => steps.push(part),
        }
    }
    let strings = |step: &&Value| {
        let pattern = step
            .get("pattern")
            .and_then(|pattern| pattern.get("String"));
        let strings = [pattern, step.get("content"), step.get("prepend")];
        let strings = strings.into_iter().flatten().filter_map(Value::as_str);
        strings.map(String::from).collect::<Vec<_>>()
    };
    let mut texts: Vec<String> = steps.iter().flat_map(strings).collect();
    if let Some(long) = texts.iter().find(|text| text.len() > LONGEST) {
        let problem = format!(
            "a replacement has {} bytes, more than {LONGEST}",
            long.len()
        );
        return Err(problem);
    }
    if steps.len() > STEPS {
        return Err(format!("it has {} steps, more than {STEPS}", steps.len()));
    }
    texts.extend(TEXTS.map(String::from));
    texts.sort_unstable();
    texts.dedup();
    // What does not parse is the concern of whoever reads the whole.
    let parse =
        |step: &&Value| panics::catch_panic(|| serde_json::from_value::<S>((*step).clone()).ok());
    let steps: Vec<S> = steps.iter().filter_map(parse).flatten().collect();
    let mut tried = 0;
    for text in texts.iter().filter(|text| !text.is_empty()) {
        let mut now = text.clone();
        for step in &steps {
            tried += now.len();
            if tried > TRIED {
                return Err(format!(
                    "its {} replacements of long texts take too much work",
                    steps.len()
                ));
            }
            // A step that fails is the concern of whoever uses the whole.
            let changed = panics::catch_panic(|| apply(step, &now)).flatten();
            now = changed.unwrap_or(now);
            let times = now.len() / text.len().max(16);
            if times > GROWTH {
                return Err(format!(
                    "its replacements make {:?} more than {GROWTH} times longer",
                    text.chars().take(20).collect::<String>()
                ));
            }
        }
    }
    Ok(())
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
    fn replacements_on_different_characters_are_not_a_chain() {
        let replace = |from: &str, to: &str| {
            format!(r#"{{"type": "Replace", "pattern": {{{from}}}, "content": "{to}"}}"#)
        };
        // Punctuation set apart, as published tokenizers have it, then typographic characters by expressions.
        let literal = "!?.,;:()[]{}<>+-*/=&%$#@^~_|".chars();
        let literal = literal.map(|c| replace(&format!(r#""String": "{c}""#), &format!(" {c} ")));
        let expressions = ["½", "¼", "™", "©", "€", "£", "–", "—", "…", "№", "µ", "°"];
        let expressions = expressions.map(|c| replace(&format!(r#""Regex": "[{c}]""#), " word "));
        let all: Vec<String> = literal.chain(expressions).collect();
        let normalizer = format!(
            r#""normalizer": {{"type": "Sequence", "normalizers": [{}]}},"#,
            all.join(",")
        );
        opened(&words(r#"{"a": 0}"#, &normalizer)).unwrap();
    }

    #[test]
    fn merges_are_dropped_of_no_text() {
        let json = r#"{"added_tokens": [], "model": {"type": "BPE", "dropout": 0.5, "vocab": {"a": 0, "b": 1, "ab": 2},
            "merges": [["a", "b"]]}}"#;
        let tokenizer = opened(json).unwrap();
        for _ in 0..20 {
            let ids = tokenizer.encode("ababab", false).unwrap();
            assert_eq!(ids.get_ids(), [2, 2, 2]);
        }
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
        // A text of 200 KB goes through hundreds of steps.
        let longer = format!(
            r#""pattern": {{"String": "a"}}, "content": "{}""#,
            "b".repeat(99)
        );
        let other = |at: usize| {
            let content = format!("{at}{}", "a".repeat(2000));
            format!(r#","pattern": {{"String": "never"}}, "content": "{content}"}}"#)
        };
        let others = (0..500).map(|at| format!(r#",{{"type": "Replace"{}"#, other(at)));
        let long = format!(
            r#""normalizer": {{"type": "Sequence", "normalizers": [{{"type": "Replace", {longer}}}{}]}},"#,
            others.collect::<String>()
        );
        let strip = r#""decoder": {"type": "Strip", "content": "a", "start": 0, "stop": 9},"#;
        let empty = r#""pre_tokenizer": {"type": "FixedLength", "length": 0},"#;
        for (json, word) in [
            (
                words(r#"{"a": 0, "b": 4294967295}"#, ""),
                "number 4294967295",
            ),
            (words(r#"{"a": 0}"#, &bomb), "100 times longer"),
            (
                words(r#"{"a": 0}"#, &table("qgAAAA==")),
                "claims 170 bytes and has 6",
            ),
            (
                words(r#"{"a": 0}"#, &table("AABp")),
                "not a table in base64",
            ),
            (words(r#"{"a": 0}"#, &long), "too much work"),
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
                words(&format!(r#"{{"a": 0, "{}": 1}}"#, "b".repeat(2049)), ""),
                "2049 bytes",
            ),
            ("[".repeat(10_000), "recursion"),
        ] {
            let error = opened(&json).unwrap_err();
            assert!(error.is_user_error());
            assert!(error.to_string().contains(word), "{error}");
        }
    }
}
