//! Key-value retrieval, the paper's capacity task (section 4.1): a context of random pairs
//! `!aB:9x!!Qe:tT!|`, a query `?!Qe:`, a target `tT!|`; optionally among random letters, or with the value first.

mod samples;

use serde::{Deserialize, Serialize};

use super::source::Sources;
use super::{Lengths, TextTokenizer, generated};
use crate::error::{Error, at_least_one, require, sizes};
use crate::support::counted;

/// The characters of keys and values.
const ALPHABET: &str = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";
/// Further characters of the larger alphabet, from these blocks of Unicode: Latin-1, Latin Extended-A, Greek,
/// Cyrillic, arrows, mathematical operators.
const EXTENSION: [std::ops::RangeInclusive<char>; 7] = [
    'À'..='Ö',
    'Ø'..='ö',
    'ø'..='ſ',
    'α'..='ω',
    'А'..='я',
    '←'..='⇿',
    '∀'..='⋿',
];
/// The sizes that an alphabet can have.
const ALPHABET_SIZES: [usize; 2] = [62, 512];
/// The delimiters; they count in the loss but not in the metrics.
const MARKS: &str = "!?:|";

/// In which order a context's pairs are written. A query has the key, and its target the value, in each of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum PairOrder {
    /// `!key:value!`, key first.
    #[default]
    Forward,
    /// `!value:key!`, value first.
    Inverse,
    /// One of both for a whole context, at random. The context begins with `F` if its keys are first and with `B` if its
    /// values are.
    Mix,
}

/// Settings of key-value retrieval.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct KvConfig {
    /// `N`: pairs in a context; keys are unique, values need not be. 0 is the copy task: the context is random
    /// letters in segments, the query is `?!:`, and the target is the context.
    pub pairs: usize,
    /// Characters of a key.
    pub key_len: usize,
    /// Characters of a value.
    pub value_len: usize,
    /// `forward`: a pair is `!key:value!`; `inverse`: `!value:key!`; `mix`: each context is one of both, after an `F` or
    /// a `B` that says which.
    pub order: PairOrder,
    /// `R`: queries per context, for different pairs, all answered from one WRITE.
    pub queries_per_context: usize,
    /// Size of the alphabet of keys, values and the letters between pairs: 62, or 512 with other scripts.
    pub alphabet: usize,
    /// The share of a context's characters that are random letters between the pairs.
    pub noise: f64,
    /// Number of segments of random length, each with a `|` behind it, as in the paper's `S4(32-64)`; 0 for none. Each
    /// pair is in a random segment, at a random position among random letters.
    pub segments: usize,
    /// The shortest segment, in characters before its `|`.
    pub segment_min: usize,
    /// The longest segment, in characters before its `|`. One whose pairs are longer has no letters.
    pub segment_max: usize,
    /// Training contexts; they are generated on demand, so their number takes no memory.
    pub train_samples: usize,
    /// Validation contexts.
    pub valid_samples: usize,
}

impl PairOrder {
    /// Its name in settings.
    fn name(self) -> &'static str {
        match self {
            Self::Forward => "forward",
            Self::Inverse => "inverse",
            Self::Mix => "mix",
        }
    }
}

impl Default for KvConfig {
    fn default() -> Self {
        Self {
            pairs: 16,
            key_len: 2,
            value_len: 2,
            order: PairOrder::Forward,
            queries_per_context: 1,
            alphabet: 62,
            noise: 0.0,
            segments: 0,
            segment_min: 32,
            segment_max: 64,
            train_samples: 1_000_000,
            valid_samples: 5_000,
        }
    }
}

impl KvConfig {
    /// Checks every value.
    ///
    /// # Errors
    ///
    /// The first value that cannot work, by its key and with the reason: [`Error::Config`].
    pub fn validate(&self) -> Result<(), Error> {
        sizes([
            ("key_len", self.key_len),
            ("value_len", self.value_len),
            ("queries_per_context", self.queries_per_context),
            ("segment_min", self.segment_min),
            ("segment_max", self.segment_max),
        ])?;
        at_least_one([
            ("train_samples", self.train_samples),
            ("valid_samples", self.valid_samples),
        ])?;
        let length = self.key_len;
        let longest = 1 << 16;
        for (key, value) in [
            ("pairs", self.pairs),
            ("key_len", length),
            ("value_len", self.value_len),
            ("segments", self.segments),
        ] {
            let problem = format!("must be at most {longest}");
            require(value <= longest, key, value, problem)?;
        }
        let known = ALPHABET_SIZES.contains(&self.alphabet);
        require(known, "alphabet", self.alphabet, "must be 62 or 512")?;
        let keys = u32::try_from(length)
            .ok()
            .and_then(|length| (self.alphabet as u128).checked_pow(length))
            .unwrap_or(u128::MAX);
        let problem = format!(
            "there are only {keys} different keys of {}; use fewer pairs or a longer data.key_len",
            counted(length, "character")
        );
        require(self.pairs as u128 <= keys, "pairs", self.pairs, problem)?;
        let ordered = self.pairs > 0 || self.order == PairOrder::Forward;
        let problem = "the copy task has no pairs to turn round: leave it at forward";
        require(ordered, "order", self.order.name(), problem)?;
        self.validate_layout()?;
        let queries = self.queries_per_context;
        let (most, problem) = match self.pairs {
            0 => (1, "must be 1: the copy task has one question".to_string()),
            pairs => (pairs, format!("must be at most data.pairs = {pairs}")),
        };
        require(queries <= most, "queries_per_context", queries, problem)
    }

    /// The training and the validation data.
    ///
    /// # Errors
    ///
    /// See [`KvConfig::validate`].
    pub fn open(&self, seed: u64) -> Result<Sources, Error> {
        generated::open(self, seed)
    }

    /// A short description for people.
    pub(super) fn describe(&self) -> String {
        let order = match self.order {
            PairOrder::Forward => "",
            PairOrder::Inverse => ", value first",
            PairOrder::Mix => ", key first or value first",
        };
        match self.pairs {
            0 => "copying of segments".into(),
            pairs => format!("key-value retrieval, {}{order}", counted(pairs, "pair")),
        }
    }

    /// Checks the settings of noise and segments.
    fn validate_layout(&self) -> Result<(), Error> {
        let noise = self.noise;
        let problem = "must be at least 0 and at most 0.99";
        require((0.0..=0.99).contains(&noise), "noise", noise, problem)?;
        let (min, max) = (self.segment_min, self.segment_max);
        let problem = format!("must be at most data.segment_max = {max}");
        require(min <= max, "segment_min", min, problem)?;
        if self.segments == 0 {
            let problem = "the copy task copies segments: set data.segments too";
            return require(self.pairs > 0, "pairs", 0, problem);
        }
        let problem = "with segments their lengths determine the number of letters: leave it at 0";
        require(noise == 0.0, "noise", noise, problem)
    }

    /// Characters of the mark that a context's direction has.
    fn mark_len(&self) -> usize {
        usize::from(self.order == PairOrder::Mix)
    }

    /// Characters of `!key:value!`.
    fn pair_len(&self) -> usize {
        self.key_len + self.value_len + 3
    }

    /// Number of random letters among the pairs, without segments.
    fn noise_letters(&self) -> usize {
        let pairs = self.pairs * self.pair_len();
        (pairs as f64 * self.noise / (1.0 - self.noise)).round() as usize
    }

    /// Tokens of the longest context: `N (K + V + 3) + 1` where there are only pairs, and one more for the mark of
    /// [`PairOrder::Mix`].
    pub fn context_len(&self) -> usize {
        let pairs = self.pairs * self.pair_len();
        let text = match self.segments {
            0 => pairs + self.noise_letters() + 1,
            // The longest is the one with all pairs in a segment.
            segments => (segments - 1) * self.segment_max + self.segment_max.max(pairs) + segments,
        };
        self.mark_len() + text
    }

    /// The largest lengths of its samples.
    pub(super) fn lengths(&self) -> Lengths {
        Lengths {
            context: self.context_len(),
            question: self.question_len(),
            questions: self.queries_per_context,
            target: self.target_len(),
            ..Lengths::default()
        }
    }

    /// Tokens of the longest query and its target together.
    pub fn question_len(&self) -> usize {
        match self.pairs {
            0 => 3 + self.context_len(),
            _ => self.key_len + 3 + self.target_len(),
        }
    }

    /// Tokens of the longest target.
    pub fn target_len(&self) -> usize {
        match self.pairs {
            0 => self.context_len(),
            _ => self.value_len + 2,
        }
    }

    /// The task's tokenizer: `[PAD]` 0, `[BOS]` 1, `[EOS]` 2, `[UNK]` 3, the alphabet, then `! ? : |`.
    ///
    /// # Errors
    ///
    /// None for settings that [`KvConfig::validate`] accepts.
    pub fn tokenizer(&self) -> Result<TextTokenizer, Error> {
        TextTokenizer::closed(self.alphabet().into_iter().chain(MARKS.chars()), MARKS)
    }

    fn alphabet(&self) -> Vec<char> {
        let extension = EXTENSION.into_iter().flatten();
        ALPHABET
            .chars()
            .chain(extension)
            .take(self.alphabet)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_larger_alphabet_has_512_characters_and_520_tokens() {
        let config = KvConfig {
            alphabet: 512,
            ..KvConfig::default()
        };
        assert_eq!(config.tokenizer().unwrap().vocab_size(), 520);
    }

    #[test]
    fn impossible_layouts_are_errors() {
        let wrong = |change: fn(&mut KvConfig)| {
            let mut config = KvConfig::default();
            change(&mut config);
            config.validate().unwrap_err().to_string()
        };
        assert!(wrong(|c| c.pairs = 0).contains("segments"));
        assert!(wrong(|c| c.noise = 1.0).contains("noise"));
        assert!(wrong(|c| c.alphabet = 100).contains("62 or 512"));
        assert!(wrong(|c| c.segment_min = 99).contains("segment_max"));
        let error = wrong(|c| (c.pairs, c.segments, c.queries_per_context) = (0, 1, 2));
        assert!(error.contains("copy task"), "{error}");
        let error = wrong(|c| (c.pairs, c.segments, c.order) = (0, 1, PairOrder::Mix));
        assert!(
            error.contains("`order` = mix") && error.contains("forward"),
            "{error}"
        );
    }
}
