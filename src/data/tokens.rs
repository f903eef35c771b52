//! Settings of a task's tokenizer, and training of tokenizers.

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
use crate::tokenizer::json::{self as tokenizer_json, LONGEST};

/// How texts are tokenized. (Key-value retrieval, MQAR and multi-hop association have their own tokenizers.)
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TokensConfig {
    /// `words`, `characters` or `bpe` (byte-level), trained on the training texts; or the path of a Hugging
    /// Face `tokenizer.json`.
    pub tokenizer: String,
    /// The largest vocabulary of a tokenizer that is trained on the training texts.
    pub vocab_size: usize,
    /// The name of the padding token [default: a usual name, otherwise the end token].
    pub pad: Option<String>,
    /// The name of the token that ends an answer [default: a usual name].
    pub end: Option<String>,
    /// The most tokens of a context [default: as many as the model can process].
    pub max_context: Option<usize>,
    /// Truncates contexts longer than `max_context`; otherwise they are an error.
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
    /// The tokenizers that can be trained.
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
        let problem = "needs max_context, the number of tokens that are kept";
        require(max.is_some() || !self.truncate, "truncate", true, problem)?;
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

    /// The path of the `tokenizer.json`, if `tokenizer` is one.
    pub(crate) fn file(&self) -> Option<PathBuf> {
        let name = &self.tokenizer;
        (name.ends_with(".json") || name.contains('/')).then(|| name.into())
    }

    /// The tokenizer: read from its file, or trained on `texts`.
    ///
    /// # Errors
    ///
    /// A file that cannot be read or is not a tokenizer; texts that cannot be read; see also
    /// [`TextTokenizer::new`].
    pub fn make<I>(&self, texts: impl Fn() -> Result<I, Error>) -> Result<TextTokenizer, Error>
    where
        I: Iterator<Item = String> + Send,
    {
        let tokenizer = match self.file() {
            Some(file) if !file.exists() => {
                return Err(Error::Input(format!(
                    "{}: there is no such file (tokens.tokenizer); a model's folder brings its own with --from",
                    file.display()
                )));
            }
            Some(file) => tokenizer_json::open(&file)?,
            None => self.train(texts()?)?,
        };
        self.wrap(tokenizer)
    }

    /// Reads the tokenizer that a run has saved.
    ///
    /// # Errors
    ///
    /// As [`TokensConfig::make`].
    pub fn open(&self, path: impl AsRef<Path>) -> Result<TextTokenizer, Error> {
        self.wrap(tokenizer_json::open(path.as_ref())?)
    }

    fn wrap(&self, tokenizer: Tokenizer) -> Result<TextTokenizer, Error> {
        TextTokenizer::new(tokenizer, self.pad.as_deref(), self.end.as_deref())
    }

    fn train(&self, texts: impl Iterator<Item = String> + Send) -> Result<Tokenizer, Error> {
        let special = SPECIAL.map(|name| AddedToken::from(name, true)).to_vec();
        if self.tokenizer == "characters" {
            let mut tokenizer = characters(self.most_frequent(texts))?;
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
            .train(&mut trainer, texts.flat_map(split_long_words))
            .map_err(problem)?;
        Ok(tokenizer)
    }

    /// The most frequent characters, as many as the vocabulary can hold, in Unicode order.
    fn most_frequent(&self, texts: impl Iterator<Item = String>) -> Vec<char> {
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

/// The longest word that a tokenizer is trained on, in bytes: where bytes are merged, each is a character of up to two in the name
/// of a token, and a file with longer tokens is not read.
const MAX_WORD: usize = LONGEST / 2 - 8;

/// Splits a text where a word is too long: the time of merging tokens is quadratic in a word's length.
fn split_long_words(text: String) -> Vec<String> {
    let (mut ends, mut start) = (Vec::new(), 0);
    for (at, c) in text.char_indices() {
        if c.is_whitespace() {
            start = at;
        } else if at - start >= MAX_WORD {
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

    /// An answer counts as the tokenizer tells it, too.
    #[test]
    fn answers_are_told_with_spaces_around_punctuation() {
        let config = TokensConfig::default();
        assert_eq!(config.tokenizer, "words");
        let texts = ["It is 3.5 in the U.S. now"].map(String::from).into_iter();
        let tokenizer = config.wrap(config.train(texts).unwrap()).unwrap();
        assert_eq!(tokenizer.as_decoded("3.5").unwrap(), "3 . 5");
        assert_eq!(tokenizer.as_decoded("now").unwrap(), "now");
        // What it does not know stays.
        assert_eq!(tokenizer.as_decoded("4.6").unwrap(), "4.6");
    }

    #[test]
    fn only_long_words_are_split() {
        let plain = "é word\n ".repeat(5000);
        assert_eq!(split_long_words(plain.clone()), [plain]);
        let endless = format!("a {} b", "é".repeat(5000));
        let pieces = split_long_words(endless.clone());
        assert!(pieces.iter().all(|piece| piece.len() < LONGEST / 2));
        assert_eq!(pieces.concat(), endless);
    }
}
