use std::path::Path;

use sha2::{Digest, Sha256};
use tokenizers::Tokenizer;
use tokenizers::decoders::fuse::Fuse;
use tokenizers::models::wordlevel::WordLevel;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::pre_tokenizers::whitespace::WhitespaceSplit;
use tokenizers::tokenizer::normalizer::SplitDelimiterBehavior;

use super::{Asked, Question};
use crate::error::Error;
use crate::support::fs::hex;
use crate::tokenizer;
use crate::tokenizer::json::{self as tokenizer_json, catch_panic};

/// Tokens 0 to 3 of the tokenizers that this crate makes.
pub(super) const SPECIAL: [&str; 4] = ["[PAD]", "[BOS]", "[EOS]", "[UNK]"];

/// Names of the token that ends a text in well-known tokenizers.
const ENDS: [&str; 6] = [
    "[EOS]",
    "</s>",
    "<|endoftext|>",
    "<eos>",
    "<|end_of_text|>",
    "<|im_end|>",
];

/// Names of the padding token. Without one, the end token pads.
const PADS: [&str; 4] = ["[PAD]", "<pad>", "<|padding|>", "<|pad|>"];

/// A task's tokenizer: a Hugging Face tokenizer with the padding token, the token that ends an answer, and the
/// tokens that the metrics ignore.
#[derive(Clone, Debug)]
pub struct TextTokenizer {
    tokenizer: Tokenizer,
    pad: u32,
    /// The token that ends an answer.
    end: u32,
    /// The token for what is not in the vocabulary.
    unknown: Option<u32>,
    /// Whether it leaves out what is not in the vocabulary, which is an error then.
    leaves_out: bool,
    /// If the vocabulary is closed: text outside it is an error, and targets contain their end token already.
    closed: Option<Unit>,
    /// Tokens that the metrics ignore.
    marks: Vec<u32>,
}

/// What has one token in a closed vocabulary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unit {
    Character,
    /// What stands between white space.
    Word,
}

pub(super) fn problem(e: impl std::fmt::Display) -> Error {
    Error::Input(format!("tokenizer: {e}"))
}

impl TextTokenizer {
    /// One token per character of a closed alphabet: `[PAD]` `[BOS]` `[EOS]` `[UNK]`, then `alphabet` in this
    /// order. `marks` are the characters of it that delimit an answer: they count in the loss but not in the
    /// metrics. The last of them ends an answer.
    ///
    /// # Errors
    ///
    /// If the alphabet has a character twice or lacks one of the marks, or there is no mark.
    pub fn closed(alphabet: impl IntoIterator<Item = char>, marks: &str) -> Result<Self, Error> {
        let tokenizer = characters(alphabet)?;
        let marks = marks
            .chars()
            .map(|mark| {
                let token = tokenizer.token_to_id(&mark.to_string());
                token.ok_or_else(|| problem(format!("its alphabet lacks the mark `{mark}`")))
            })
            .collect::<Result<Vec<_>, _>>()?;
        let end = marks.last().copied();
        Ok(Self {
            tokenizer,
            pad: 0,
            end: end.ok_or_else(|| problem("it has no mark to end an answer with"))?,
            unknown: Some(3),
            leaves_out: false,
            closed: Some(Unit::Character),
            marks,
        })
    }

    /// One token per word of a closed vocabulary, numbered in this order; words are separated by white space. The first
    /// of them pads. `end` ends an answer: it counts in the loss but not in the metrics.
    ///
    /// # Errors
    ///
    /// If a word is there twice, or `end` is none of them.
    pub fn words(words: impl IntoIterator<Item = String>, end: &str) -> Result<Self, Error> {
        let mut tokenizer = word_level(words)?;
        tokenizer.with_pre_tokenizer(Some(WhitespaceSplit {}));
        let end = tokenizer.token_to_id(end);
        let end = end.ok_or_else(|| problem("its end is none of its words"))?;
        Ok(Self {
            tokenizer,
            pad: 0,
            end,
            unknown: None,
            leaves_out: false,
            closed: Some(Unit::Word),
            marks: vec![end],
        })
    }

    /// Any tokenizer, without the special tokens that it would put around a text. Its end token is appended to targets; it
    /// counts in the loss but not in the metrics.
    ///
    /// # Errors
    ///
    /// If it has no token named `pad` or `end`, or, without these names, no end token under a usual name.
    pub fn new(tokenizer: Tokenizer, pad: Option<&str>, end: Option<&str>) -> Result<Self, Error> {
        let mut tokenizer = tokenizer::without_special(tokenizer);
        // The name of a special token in a text is text, not the token.
        tokenizer.set_encode_special_tokens(true);
        let find = |name: Option<&str>, key: &str, usual: &[&str]| match name {
            Some(name) => tokenizer.token_to_id(name).map(Some).ok_or_else(|| {
                let problem = "is not a token of the tokenizer";
                Error::config(format!("tokens.{key}"), name, problem)
            }),
            None => Ok(usual.iter().find_map(|name| tokenizer.token_to_id(name))),
        };
        let end = find(end, "end", &ENDS)?.ok_or_else(|| {
            Error::Input(format!(
                "the tokenizer has no token to end an answer with (none of {}): name one of its tokens as \
                 tokens.end",
                ENDS.join(", ")
            ))
        })?;
        let pad = find(pad, "pad", &PADS)?.unwrap_or(end);
        Ok(Self {
            unknown: tokenizer::unknown(&tokenizer),
            leaves_out: tokenizer::leaves_out(&tokenizer),
            tokenizer,
            pad,
            end,
            closed: None,
            marks: vec![end],
        })
    }

    /// Size of the vocabulary: the largest id plus one.
    pub fn vocab_size(&self) -> usize {
        let ids = self.tokenizer.get_vocab(true).into_values();
        ids.max().map_or(0, |id| id as usize + 1)
    }

    /// The padding token.
    pub fn pad(&self) -> u32 {
        self.pad
    }

    /// The token that ends an answer.
    pub fn end(&self) -> u32 {
        self.end
    }

    /// Whether the metrics ignore this token.
    pub fn is_mark(&self, token: u32) -> bool {
        self.marks.contains(&token)
    }

    /// Whether this is the token for text that is not in the vocabulary.
    pub fn is_unknown(&self, token: u32) -> bool {
        self.unknown == Some(token)
    }

    /// Whether it has one token per character or word of a closed vocabulary.
    pub fn is_closed(&self) -> bool {
        self.closed.is_some()
    }

    /// Token ids of a text.
    ///
    /// # Errors
    ///
    /// With a closed vocabulary: a character or a word outside it. The error names the first one and its position.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, Error> {
        if self.closed == Some(Unit::Word) {
            let unknown = |word: &str| self.tokenizer.token_to_id(word).is_none();
            let mut words = text.split_whitespace().enumerate();
            if let Some((at, word)) = words.find(|(_, word)| unknown(word)) {
                return Err(Error::Input(format!(
                    "word {word:?} at position {at} is none of this task's tokens, {}",
                    self.span()
                )));
            }
        }
        let ids = tokenizer::encode_knowing(&self.tokenizer, text, false, self.leaves_out)?;
        let unknown = || ids.iter().position(|id| self.is_unknown(*id));
        match self.is_closed().then(unknown).flatten() {
            Some(at) => {
                let character = text.chars().nth(at).unwrap_or_default();
                let alphabet = self.alphabet();
                Err(Error::Input(format!(
                    "character {character:?} at position {at} is not in the alphabet {alphabet}"
                )))
            }
            None => Ok(ids),
        }
    }

    /// Encodes a query and its target as one text. The target's tokens are those that contain a character of the
    /// target, so the first of them may begin in the query.
    ///
    /// # Errors
    ///
    /// As [`TextTokenizer::encode`]; a target without a token that the metrics count.
    pub fn encode_question(&self, question: &Question) -> Result<Asked, Error> {
        self.encode_joined(question).map(|(asked, _)| asked)
    }

    /// As [`TextTokenizer::encode_question`], and whether the first token of the target has a word's part from the query.
    pub(super) fn encode_joined(&self, question: &Question) -> Result<(Asked, bool), Error> {
        let Question {
            query,
            target,
            answers,
        } = question;
        let text = match self.closed {
            Some(Unit::Word) => format!("{query} {target}"),
            _ => format!("{query}{target}"),
        };
        let (mut tokens, start, joined) = match self.closed {
            Some(Unit::Character) => (self.encode(&text)?, query.chars().count(), false),
            Some(Unit::Word) => (self.encode(&text)?, query.split_whitespace().count(), false),
            None => {
                let (ids, start, first) = self.divided(&text, query.len())?;
                (ids, start, first < query.trim_end().len())
            }
        };
        let counted = tokens.iter().skip(start).any(|token| !self.is_mark(*token));
        if !counted {
            return Err(Error::Input(format!(
                "the target {target:?} of the query {query:?} has no token that counts"
            )));
        }
        if !self.is_closed() {
            tokens.push(self.end);
        }
        let asked = Asked {
            tokens,
            target: start,
            answers: match answers.as_slice() {
                [] => vec![self.answer(target)],
                answers => answers.to_vec(),
            },
            direction: None,
        };
        Ok((asked, joined))
    }

    /// Encodes a query whose target is not known: the tokens that [`TextTokenizer::encode_question`] has in front of those of the
    /// target. The space at the end of a query is no part of the query's where it begins the first token of a target, which it
    /// does if it does so before any letter.
    ///
    /// # Errors
    ///
    /// As [`TextTokenizer::encode`].
    pub fn encode_query(&self, query: &str) -> Result<Vec<u32>, Error> {
        let alone = self.encode(query)?;
        let end = query.trim_end().len();
        if self.is_closed() || end == query.len() {
            return Ok(alone);
        }
        let letters = ('a'..='z').chain('A'..='Z');
        let before = letters.filter_map(|letter| {
            let (mut ids, start, first) = self
                .divided(&format!("{query}{letter}"), query.len())
                .ok()?;
            ids.truncate(start);
            (first >= end).then_some(ids)
        });
        Ok(before
            .chain([alone])
            .min_by_key(Vec::len)
            .unwrap_or_default())
    }

    /// Encodes a text by an open vocabulary; the first token that contains a character from byte `at` on, and where it begins.
    pub(super) fn divided(&self, text: &str, at: usize) -> Result<(Vec<u32>, usize, usize), Error> {
        let (tokenizer, leaves_out) = (&self.tokenizer, self.leaves_out);
        let encoding = tokenizer::encode_with_offsets(tokenizer, text, false, leaves_out)?;
        let ids = encoding.get_ids().to_vec();
        let offsets = encoding.get_offsets();
        let overlaps = |(start, end): &(usize, usize)| *end > at && end > start;
        let start = offsets.iter().position(overlaps).unwrap_or(ids.len());
        let first = offsets.get(start).map_or(text.len(), |(first, _)| *first);
        Ok((ids, start, first))
    }

    /// A target's text without its delimiters.
    fn answer(&self, target: &str) -> String {
        match self.encode(target) {
            Ok(ids) if self.is_closed() => self.decode_answer(&ids).unwrap_or_default(),
            _ => target.into(),
        }
    }

    /// The text of token ids. With a closed vocabulary, special tokens are shown by their names.
    ///
    /// # Errors
    ///
    /// If the tokenizer cannot decode them.
    pub fn decode(&self, ids: &[u32]) -> Result<String, Error> {
        let names = ids.iter().map(|id| self.tokenizer.id_to_token(*id));
        let names = names.map(Option::unwrap_or_default);
        match self.closed {
            Some(Unit::Character) => Ok(names.collect()),
            Some(Unit::Word) => Ok(names.collect::<Vec<_>>().join(" ")),
            None => tokenizer::decode(&self.tokenizer, ids),
        }
    }

    /// The text of an answer, without the tokens that the metrics ignore, and without the space in front of it, which is the query's.
    ///
    /// # Errors
    ///
    /// As [`TextTokenizer::decode`].
    pub fn decode_answer(&self, ids: &[u32]) -> Result<String, Error> {
        let ids = ids.iter().copied().filter(|id| !self.is_mark(*id));
        let mut text = self.decode(&ids.collect::<Vec<_>>())?;
        if !self.is_closed() && text.starts_with(' ') {
            text.remove(0);
        }
        Ok(text)
    }

    /// The text of an answer as this tokenizer tells it again: one that splits at punctuation tells `3.5` as `3 . 5`. An answer
    /// with a part that it does not know stays as it is.
    ///
    /// # Errors
    ///
    /// As [`TextTokenizer::decode`].
    pub fn as_decoded(&self, answer: &str) -> Result<String, Error> {
        match self.encode(answer) {
            Ok(ids) if !ids.iter().any(|id| self.is_unknown(*id)) => self.decode_answer(&ids),
            _ => Ok(answer.into()),
        }
    }

    /// The Hugging Face tokenizer.
    pub fn as_tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The contents of a Hugging Face `tokenizer.json`.
    ///
    /// # Errors
    ///
    /// If the tokenizer cannot be serialized.
    pub fn to_json(&self) -> Result<String, Error> {
        catch_panic(|| self.tokenizer.to_string(true)).map_err(problem)
    }

    /// See [`tokenizer_fingerprint`].
    pub fn fingerprint(&self) -> String {
        tokenizer_fingerprint(&self.tokenizer)
    }

    /// Checks that a `tokenizer.json` has the same vocabulary.
    ///
    /// # Errors
    ///
    /// If it cannot be read or has another vocabulary.
    pub fn check(&self, path: impl AsRef<Path>) -> Result<(), Error> {
        let path = path.as_ref();
        let found = tokenizer_json::open(path)?;
        let ours = self.tokenizer.get_vocab(true);
        match found.get_vocab(true) == ours {
            true => Ok(()),
            false => Err(Error::file(path, "is not the tokenizer of this run's task")),
        }
    }

    /// The first and the last of the vocabulary.
    fn span(&self) -> String {
        let name = |id| self.tokenizer.id_to_token(id).unwrap_or_default();
        let last = (self.vocab_size() as u32).saturating_sub(1);
        format!("{} {} {} … {}", name(0), name(1), name(2), name(last))
    }

    fn alphabet(&self) -> String {
        (SPECIAL.len() as u32..self.vocab_size() as u32)
            .filter_map(|id| self.tokenizer.id_to_token(id))
            .collect()
    }
}

/// A short hash of a `tokenizer.json` without its truncation and padding. Tokenizers with the same hash give the
/// same tokens for any text.
pub fn tokenizer_fingerprint(tokenizer: &Tokenizer) -> String {
    let json = catch_panic(|| tokenizer.to_string(false));
    let json = json.ok().and_then(|json| serde_json::from_str(&json).ok());
    let mut json: serde_json::Map<String, serde_json::Value> = json.unwrap_or_default();
    json.retain(|key, _| !["padding", "truncation"].contains(&key.as_str()));
    let digest = Sha256::digest(serde_json::Value::Object(json).to_string());
    hex(&digest[..8])
}

/// A tokenizer with one token per character: the special tokens, then `alphabet` in this order.
pub(super) fn characters(alphabet: impl IntoIterator<Item = char>) -> Result<Tokenizer, Error> {
    let tokens = SPECIAL.iter().map(|token| token.to_string());
    let mut tokenizer = word_level(tokens.chain(alphabet.into_iter().map(String::from)))?;
    let each = SplitPattern::Regex("(?s).".into());
    let split = Split::new(each, SplitDelimiterBehavior::Isolated, false).map_err(problem)?;
    tokenizer.with_pre_tokenizer(Some(split));
    // Decoding joins characters without spaces.
    tokenizer.with_decoder(Some(Fuse::default()));
    Ok(tokenizer)
}

/// A tokenizer with these tokens, numbered in this order. `[UNK]`, if it is one of them, is for all others.
fn word_level(tokens: impl IntoIterator<Item = String>) -> Result<Tokenizer, Error> {
    let vocab: Vec<(String, u32)> = tokens.into_iter().zip(0..).collect();
    let count = vocab.len();
    let model = WordLevel::builder()
        .vocab(vocab.into_iter().collect())
        .unk_token("[UNK]".into())
        .build()
        .map_err(problem)?;
    let tokenizer = Tokenizer::new(model);
    match tokenizer.get_vocab_size(false) == count {
        true => Ok(tokenizer),
        false => Err(problem("its alphabet has a token twice")),
    }
}

#[cfg(test)]
mod tests;
