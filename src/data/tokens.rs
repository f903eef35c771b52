//! Which tokens a task's texts become.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::models::wordlevel::{WordLevel, WordLevelTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::whitespace::Whitespace;
use tokenizers::{AddedToken, Tokenizer};

use super::TextTokenizer;
use super::tokenizer::{SPECIAL, characters, problem};
use crate::error::{Error, require, sizes};
use crate::tokenizer::json as tokenizer_json;

/// How texts become tokens. (Key-value retrieval has tokens of its own.)
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TokensConfig {
    /// `words`, `characters` or `bpe` (of bytes), made from the training texts; or the path of a Hugging
    /// Face `tokenizer.json`.
    pub tokenizer: String,
    /// The most tokens that a tokenizer made from the training texts may have.
    pub vocab_size: usize,
    /// The token that fills shorter texts, by its name [default: a usual name, or else the end].
    pub pad: Option<String>,
    /// The token that ends an answer, by its name [default: a usual name].
    pub end: Option<String>,
    /// The most tokens of a context [default: what the model has room for].
    pub max_context: Option<usize>,
    /// Cuts longer contexts off there; otherwise they are an error.
    pub truncate: bool,
}

impl Default for TokensConfig {
    fn default() -> Self {
        Self {
            tokenizer: "words".into(),
            vocab_size: 4096,
            pad: None,
            end: None,
            max_context: None,
            truncate: false,
        }
    }
}

impl TokensConfig {
    /// The tokenizers that are made here.
    pub const KINDS: &'static [&'static str] = &["words", "characters", "bpe"];

    /// Checks every value.
    ///
    /// # Errors
    ///
    /// The first value that cannot work, by its key and with the reason: [`Error::Config`].
    pub fn validate(&self) -> Result<(), Error> {
        sizes([("vocab_size", self.vocab_size)])?;
        let max = self.max_context;
        require(max != Some(0), "max_context", 0, "must be at least 1")?;
        let problem = format!(
            "must be one of {} or the path of a tokenizer.json",
            Self::KINDS.join(", ")
        );
        let known = self.file().is_some() || Self::KINDS.contains(&self.tokenizer.as_str());
        require(known, "tokenizer", &self.tokenizer, problem)?;
        let smallest = match self.tokenizer.as_str() {
            "bpe" => SPECIAL.len() + 256,
            _ => SPECIAL.len() + 1,
        };
        let problem = format!("must be at least {smallest} for {}", self.tokenizer);
        let made = self.file().is_none();
        let fits = !made || self.vocab_size >= smallest;
        require(fits, "vocab_size", self.vocab_size, problem)
    }

    /// The `tokenizer.json` it names, if it does.
    pub(crate) fn file(&self) -> Option<PathBuf> {
        let name = &self.tokenizer;
        (name.ends_with(".json") || name.contains('/')).then(|| name.into())
    }

    /// The tokenizer, made from `texts` unless it is a file.
    ///
    /// # Errors
    ///
    /// A file that cannot be read or is no tokenizer; texts that cannot be read; see also
    /// [`TextTokenizer::new`].
    pub fn make<I>(&self, texts: impl Fn() -> Result<I, Error>) -> Result<TextTokenizer, Error>
    where
        I: Iterator<Item = String> + Send,
    {
        let tokenizer = match self.file() {
            Some(file) => tokenizer_json::open(&file)?,
            None => self.train(texts()?)?,
        };
        self.of(tokenizer)
    }

    /// The tokenizer that a run was begun with.
    ///
    /// # Errors
    ///
    /// As [`TokensConfig::make`].
    pub fn open(&self, path: impl AsRef<Path>) -> Result<TextTokenizer, Error> {
        self.of(tokenizer_json::open(path.as_ref())?)
    }

    fn of(&self, tokenizer: Tokenizer) -> Result<TextTokenizer, Error> {
        TextTokenizer::new(tokenizer, self.pad.as_deref(), self.end.as_deref())
    }

    fn train(&self, texts: impl Iterator<Item = String> + Send) -> Result<Tokenizer, Error> {
        let special = SPECIAL.map(|name| AddedToken::from(name, true)).to_vec();
        if self.tokenizer == "characters" {
            let mut tokenizer = characters(self.commonest(texts))?;
            tokenizer.add_special_tokens(&special);
            return Ok(tokenizer);
        }
        let (mut tokenizer, mut trainer): (Tokenizer, TrainerWrapper) =
            match self.tokenizer.as_str() {
                "words" => {
                    let model = WordLevel::builder().unk_token("[UNK]".into()).build();
                    let mut tokenizer = Tokenizer::new(model.map_err(problem)?);
                    tokenizer.with_pre_tokenizer(Some(Whitespace {}));
                    let trainer = WordLevelTrainer::builder()
                        .vocab_size(self.vocab_size)
                        .show_progress(false)
                        .special_tokens(special)
                        .build();
                    (tokenizer, trainer.map_err(problem)?.into())
                }
                _ => {
                    let mut tokenizer = Tokenizer::new(BPE::default());
                    tokenizer.with_pre_tokenizer(Some(ByteLevel::new(false, true, true)));
                    tokenizer.with_decoder(Some(ByteLevel::default()));
                    let trainer = BpeTrainer::builder()
                        .vocab_size(self.vocab_size)
                        .show_progress(false)
                        .special_tokens(special)
                        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
                        .build();
                    (tokenizer, trainer.into())
                }
            };
        tokenizer
            .train(&mut trainer, texts.flat_map(broken))
            .map_err(problem)?;
        Ok(tokenizer)
    }

    /// As many of the commonest characters as there is room for, in their own order.
    fn commonest(&self, texts: impl Iterator<Item = String>) -> Vec<char> {
        let mut counts = BTreeMap::new();
        for text in texts {
            for c in text.chars() {
                *counts.entry(c).or_insert(0usize) += 1;
            }
        }
        let mut found: Vec<(char, usize)> = counts.into_iter().collect();
        found.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        found.truncate(self.vocab_size - SPECIAL.len());
        let mut alphabet: Vec<char> = found.into_iter().map(|(c, _)| c).collect();
        alphabet.sort_unstable();
        alphabet
    }
}

/// The longest word that a tokenizer learns from, in bytes.
const LONGEST_WORD: usize = 1 << 12;

/// A text in pieces, so that no word is endless: merging tokens takes the square of a word's length.
fn broken(text: String) -> Vec<String> {
    let (mut ends, mut start) = (Vec::new(), 0);
    for (at, c) in text.char_indices() {
        if c.is_whitespace() {
            start = at;
        } else if at - start >= LONGEST_WORD {
            ends.push(at);
            start = at;
        }
    }
    if ends.is_empty() {
        return vec![text];
    }
    let starts = std::iter::once(0).chain(ends.clone());
    let ends = ends.into_iter().chain([text.len()]);
    starts.zip(ends).map(|(a, b)| text[a..b].into()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_endless_words_are_broken() {
        let plain = "é word\n ".repeat(5000);
        assert_eq!(broken(plain.clone()), [plain]);
        let endless = format!("a {} b", "é".repeat(5000));
        let pieces = broken(endless.clone());
        assert_eq!(pieces.len(), 3);
        assert_eq!(pieces.concat(), endless);
    }
}
