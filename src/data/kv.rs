//! Key-value retrieval, the paper's capacity task (section 4.1): a context of random pairs
//! `!aB:9x!!Qe:tT!|`, a query `?!Qe:`, a target `tT!|`.

use burn::data::dataset::Dataset;
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use serde::{Deserialize, Serialize};

use super::{CharTokenizer, Example, Question};
use crate::error::{Error, at_least_one, require, sizes};

/// The characters of keys and values.
const ALPHABET: &str = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";
/// The characters around them; they count in the loss but not in the metrics.
const MARKS: &str = "!?:|";

/// Sizes of the key-value task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct KvConfig {
    /// `N`: pairs in a context; keys are unique, values need not be.
    pub pairs: usize,
    /// Characters of a key.
    pub key_len: usize,
    /// Characters of a value.
    pub value_len: usize,
    /// `R`: different pairs of one context that are asked for, all answered from one WRITE.
    pub queries_per_context: usize,
    /// Training contexts; they are made on demand, so their number costs no memory.
    pub train_samples: usize,
    /// Validation contexts.
    pub valid_samples: usize,
}

impl Default for KvConfig {
    fn default() -> Self {
        Self {
            pairs: 16,
            key_len: 2,
            value_len: 2,
            queries_per_context: 1,
            train_samples: 1_000_000,
            valid_samples: 5_000,
        }
    }
}

impl KvConfig {
    /// What ends a target.
    pub const END: &str = "|";

    /// Says which value cannot work, and why.
    pub fn validate(&self) -> Result<(), Error> {
        sizes([
            ("pairs", self.pairs),
            ("key_len", self.key_len),
            ("value_len", self.value_len),
            ("queries_per_context", self.queries_per_context),
        ])?;
        at_least_one([
            ("train_samples", self.train_samples),
            ("valid_samples", self.valid_samples),
        ])?;
        let length = self.key_len;
        let longest = 1 << 16;
        for (key, value) in [("key_len", length), ("value_len", self.value_len)] {
            let problem = format!("must be at most {longest}");
            require(value <= longest, key, value, problem)?;
        }
        let letters = ALPHABET.len() as u128;
        let keys = u32::try_from(length)
            .ok()
            .and_then(|length| letters.checked_pow(length))
            .unwrap_or(u128::MAX);
        let problem = format!(
            "there are only {keys} different keys of {length} characters; \
             ask for fewer pairs or a longer data.key_len"
        );
        require(self.pairs as u128 <= keys, "pairs", self.pairs, problem)?;
        let queries = self.queries_per_context;
        let problem = format!("must be at most data.pairs = {}", self.pairs);
        require(
            queries <= self.pairs,
            "queries_per_context",
            queries,
            problem,
        )
    }

    /// Tokens of a context: `N (K + V + 3) + 1`.
    pub fn context_len(&self) -> usize {
        self.pairs
            .saturating_mul(self.key_len + self.value_len + 3)
            .saturating_add(1)
    }

    /// Tokens of a query and its target together.
    pub fn question_len(&self) -> usize {
        self.key_len + 3 + self.target_len()
    }

    /// Tokens of a target.
    pub fn target_len(&self) -> usize {
        self.value_len + 2
    }

    /// The task's tokenizer: `[PAD]` 0, `[BOS]` 1, `[EOS]` 2, `[UNK]` 3, the alphabet, then `! ? : |`.
    pub fn tokenizer() -> Result<CharTokenizer, Error> {
        CharTokenizer::new(ALPHABET.chars().chain(MARKS.chars()), MARKS)
    }
}

/// The halves of a task's data. They never share a sample: each draws from a stream of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// What is learned from.
    Train,
    /// What is held out.
    Valid,
}

/// Key-value samples, each made when it is asked for from the seed, the split and its index alone.
#[derive(Clone, Debug)]
pub struct KvDataset {
    config: KvConfig,
    split: Split,
    seed: u64,
}

impl KvDataset {
    /// # Errors
    ///
    /// See [`KvConfig::validate`].
    pub fn new(config: KvConfig, split: Split, seed: u64) -> Result<Self, Error> {
        config.validate()?;
        Ok(Self {
            config,
            split,
            seed,
        })
    }

    /// The generator of one sample: its 32 seed bytes name the seed, the split and the index, so no two
    /// samples of any split share them.
    fn rng(&self, index: usize) -> ChaCha8Rng {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&self.seed.to_le_bytes());
        bytes[8..16].copy_from_slice(&(index as u64).to_le_bytes());
        bytes[16] = self.split as u8;
        bytes[24..].copy_from_slice(b"gradmem0");
        ChaCha8Rng::from_seed(bytes)
    }
}

impl Dataset<Example> for KvDataset {
    fn get(&self, index: usize) -> Option<Example> {
        if index >= self.len() {
            return None;
        }
        let config = &self.config;
        let mut rng = self.rng(index);
        let letters = ALPHABET.as_bytes();
        let mut word = |length: usize| -> String {
            (0..length)
                .map(|_| char::from(letters[rng.random_range(0..letters.len())]))
                .collect()
        };
        let mut pairs: Vec<(String, String)> = Vec::with_capacity(config.pairs);
        let mut keys = std::collections::HashSet::with_capacity(config.pairs);
        while pairs.len() < config.pairs {
            let key = word(config.key_len);
            if keys.insert(key.clone()) {
                pairs.push((key, word(config.value_len)));
            }
        }
        let context: String = pairs.iter().map(|(k, v)| format!("!{k}:{v}!")).collect();
        let asked = rand::seq::index::sample(&mut rng, pairs.len(), config.queries_per_context);
        let questions = asked
            .into_iter()
            .map(|at| Question {
                query: format!("?!{}:", pairs[at].0),
                target: format!("{}!|", pairs[at].1),
            })
            .collect();
        Some(Example {
            context: context + "|",
            questions,
        })
    }

    fn len(&self) -> usize {
        match self.split {
            Split::Train => self.config.train_samples,
            Split::Valid => self.config.valid_samples,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dataset(split: Split, seed: u64) -> KvDataset {
        KvDataset::new(KvConfig::default(), split, seed).unwrap()
    }

    #[test]
    fn a_sample_has_unique_keys_and_asks_for_what_it_holds() {
        let config = KvConfig {
            pairs: 4,
            key_len: 1,
            value_len: 3,
            queries_per_context: 4,
            ..KvConfig::default()
        };
        let dataset = KvDataset::new(config.clone(), Split::Train, 7).unwrap();
        for index in 0..200 {
            let example = dataset.get(index).unwrap();
            assert_eq!(example.context.len(), config.context_len());
            let mut queries: Vec<_> = example.questions.iter().map(|q| &q.query).collect();
            queries.sort();
            queries.dedup();
            assert_eq!(queries.len(), 4, "the same pair is asked for twice");
            for question in &example.questions {
                assert_eq!(
                    question.query.len() + question.target.len(),
                    config.question_len()
                );
                let key = question.query.trim_matches(['?', '!', ':']);
                let value = question.target.trim_matches(['!', '|']);
                let pair = format!("!{key}:{value}!");
                assert!(example.context.contains(&pair), "{example:?}");
                assert_eq!(example.context.matches(&format!("!{key}:")).count(), 1);
            }
        }
    }

    #[test]
    fn samples_follow_from_seed_split_and_index_alone() {
        let train = dataset(Split::Train, 1);
        assert_eq!(train.get(999_999), dataset(Split::Train, 1).get(999_999));
        assert_ne!(train.get(0), train.get(1));
        assert_ne!(train.get(0), dataset(Split::Valid, 1).get(0));
        assert_ne!(train.get(0), dataset(Split::Train, 2).get(0));
        assert_eq!(train.get(1_000_000), None);
    }

    #[test]
    fn every_possible_key_can_be_used_but_no_more() {
        let mut config = KvConfig {
            pairs: 62,
            key_len: 1,
            ..KvConfig::default()
        };
        let full = KvDataset::new(config.clone(), Split::Train, 0).unwrap();
        assert!(full.get(0).is_some());
        config.pairs = 63;
        let error = KvDataset::new(config, Split::Train, 0).unwrap_err();
        assert!(error.to_string().contains("only 62 different keys"));
    }
}
