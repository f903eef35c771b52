use std::path::Path;

use tokenizers::Tokenizer;
use tokenizers::decoders::fuse::Fuse;
use tokenizers::models::wordlevel::WordLevel;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::tokenizer::normalizer::SplitDelimiterBehavior;

use crate::error::Error;

/// `[PAD]` `[BOS]` `[EOS]` `[UNK]`, tokens 0 to 3.
const SPECIAL: [&str; 4] = ["[PAD]", "[BOS]", "[EOS]", "[UNK]"];

/// One token a character, over a closed alphabet: a Hugging Face tokenizer that refuses what it does
/// not know.
#[derive(Clone, Debug)]
pub struct CharTokenizer {
    tokenizer: Tokenizer,
    unknown: u32,
    /// Tokens that the metrics leave out.
    marks: Vec<u32>,
}

impl CharTokenizer {
    /// Tokens for `alphabet` in this order, after the four special ones. `marks` are those of its
    /// characters that frame an answer: they count in the loss, not in the metrics.
    ///
    /// # Errors
    ///
    /// If the alphabet names a character twice or lacks one of the marks.
    pub fn new(alphabet: impl IntoIterator<Item = char>, marks: &str) -> Result<Self, Error> {
        let tokens = SPECIAL.iter().map(|token| token.to_string());
        let tokens = tokens.chain(alphabet.into_iter().map(String::from));
        let vocab: Vec<(String, u32)> = tokens.zip(0..).collect();
        let count = vocab.len();
        let problem = |e: &dyn std::fmt::Display| Error::Input(format!("tokenizer: {e}"));
        let model = WordLevel::builder()
            .vocab(vocab.into_iter().collect())
            .unk_token("[UNK]".into())
            .build()
            .map_err(|e| problem(&e))?;
        let mut tokenizer = Tokenizer::new(model);
        if tokenizer.get_vocab_size(false) != count {
            return Err(problem(&"its alphabet names a character twice"));
        }
        let each = SplitPattern::Regex("(?s).".into());
        let split =
            Split::new(each, SplitDelimiterBehavior::Isolated, false).map_err(|e| problem(&e))?;
        tokenizer.with_pre_tokenizer(Some(split));
        // Characters come back side by side, not as words.
        tokenizer.with_decoder(Some(Fuse::default()));
        let marks = marks
            .chars()
            .map(|mark| {
                let token = tokenizer.token_to_id(&mark.to_string());
                token.ok_or_else(|| problem(&format!("its alphabet lacks the mark `{mark}`")))
            })
            .collect::<Result<_, _>>()?;
        Ok(Self {
            unknown: 3,
            tokenizer,
            marks,
        })
    }

    /// Number of tokens.
    pub fn vocab_size(&self) -> usize {
        self.tokenizer.get_vocab_size(true)
    }

    /// The token that fills shorter texts.
    pub fn pad(&self) -> u32 {
        0
    }

    /// Whether the metrics leave this token out.
    pub fn is_mark(&self, token: u32) -> bool {
        self.marks.contains(&token)
    }

    /// Token ids of a text.
    ///
    /// # Errors
    ///
    /// Names the first character outside the alphabet and where it stands.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, Error> {
        let encoding = self
            .tokenizer
            .encode_fast(text, false)
            .map_err(|e| Error::Input(format!("{text:?} cannot be tokenized: {e}")))?;
        let ids = encoding.get_ids().to_vec();
        match ids.iter().position(|id| *id == self.unknown) {
            None => Ok(ids),
            Some(at) => {
                let character = text.chars().nth(at).unwrap_or_default();
                let alphabet = self.alphabet();
                Err(Error::Input(format!(
                    "character {character:?} at position {at} is not in the alphabet {alphabet}"
                )))
            }
        }
    }

    /// The text of token ids, special ones by name.
    pub fn decode(&self, ids: &[u32]) -> String {
        ids.iter()
            .map(|id| self.tokenizer.id_to_token(*id).unwrap_or_default())
            .collect()
    }

    /// The Hugging Face tokenizer that it is.
    pub fn as_tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Saves it as a Hugging Face `tokenizer.json`.
    pub fn to_json(&self) -> Result<String, Error> {
        self.tokenizer
            .to_string(true)
            .map_err(|e| Error::Input(format!("tokenizer: {e}")))
    }

    /// Checks that a `tokenizer.json` has these very tokens.
    ///
    /// # Errors
    ///
    /// If it cannot be read or holds another one.
    pub fn check(&self, path: impl AsRef<Path>) -> Result<(), Error> {
        let path = path.as_ref();
        let bytes = std::fs::read(path).map_err(Error::io(path, "cannot read"))?;
        let found = Tokenizer::from_bytes(&bytes).ok();
        let ours = self.tokenizer.get_vocab(true);
        match found.is_some_and(|found| found.get_vocab(true) == ours) {
            true => Ok(()),
            false => Err(Error::file(path, "is not the tokenizer of this run's task")),
        }
    }

    fn alphabet(&self) -> String {
        (SPECIAL.len() as u32..self.vocab_size() as u32)
            .filter_map(|id| self.tokenizer.id_to_token(id))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use crate::data::KvConfig;

    #[test]
    fn tokens_are_the_papers() {
        let tokenizer = KvConfig::tokenizer().unwrap();
        assert_eq!(tokenizer.vocab_size(), 70);
        let ids = tokenizer.encode("azAZ09!?:|").unwrap();
        assert_eq!(ids, [4, 29, 30, 55, 56, 65, 66, 67, 68, 69]);
        assert_eq!(tokenizer.decode(&ids), "azAZ09!?:|");
        assert!(tokenizer.is_mark(66) && !tokenizer.is_mark(4));
        assert_eq!(tokenizer.encode("").unwrap(), [0u32; 0]);
    }

    #[test]
    fn a_character_outside_the_alphabet_is_named_with_its_place() {
        let tokenizer = KvConfig::tokenizer().unwrap();
        for (text, character, at) in [("ab c", "' '", 2), ("aé", "'é'", 1), ("\n", "'\\n'", 0)] {
            let error = tokenizer.encode(text).unwrap_err().to_string();
            assert!(error.contains(character), "{error}");
            assert!(error.contains(&format!("position {at}")), "{error}");
        }
    }
}
