//! Multi-query associative recall (Arora et al. 2023): a context of keys and values, `17 5000 42 7011`, a query `42`, a
//! target `7011`; optionally among random keys and values. Each word is a token, the number its id.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::generated::{self, Generates};
use super::source::Sources;
use super::{Example, Lengths, Question, Split, TextTokenizer};
use crate::error::{Error, at_least_one, require, sizes};

/// The token that ends an answer; it stands before a pair that is among others.
const END: usize = 0;
/// The token after a pair that is among others.
const CLOSE: usize = 1;

/// The largest vocabulary.
const MAX_VOCAB: usize = 1 << 16;

/// Settings of multi-query associative recall.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct MqarConfig {
    /// `N`: pairs in a context; keys are unique, and so are values.
    pub pairs: usize,
    /// `V`: number of tokens. Keys are `1 … V/2 − 1`, values `V/2 … V − 1`; token 0 ends an answer.
    pub vocab_size: usize,
    /// `ρ`: the share of a context's keys and values that belong to no pair. If it is above 0, a pair is `0 key value 1`,
    /// keys begin at 2, and `ρ / (1 − ρ) · 2N` random keys and values stand before, between and behind the pairs.
    pub noise: f64,
    /// `R`: queries per context, for different pairs, all answered from one WRITE.
    pub queries_per_context: usize,
    /// Training contexts; they are generated on demand, so their number takes no memory.
    pub train_samples: usize,
    /// Validation contexts.
    pub valid_samples: usize,
}

impl Default for MqarConfig {
    fn default() -> Self {
        Self {
            pairs: 8,
            vocab_size: 8192,
            noise: 0.0,
            queries_per_context: 1,
            train_samples: 1_000_000,
            valid_samples: 5_000,
        }
    }
}

impl MqarConfig {
    /// Checks every value.
    ///
    /// # Errors
    ///
    /// The first value that cannot work, by its key and with the reason: [`Error::Config`].
    pub fn validate(&self) -> Result<(), Error> {
        let (pairs, queries, vocab) = (self.pairs, self.queries_per_context, self.vocab_size);
        sizes([("pairs", pairs), ("queries_per_context", queries)])?;
        at_least_one([
            ("train_samples", self.train_samples),
            ("valid_samples", self.valid_samples),
        ])?;
        let noise = self.noise;
        let problem = "must be at least 0 and at most 0.99";
        require((0.0..=0.99).contains(&noise), "noise", noise, problem)?;
        let fits = (6..=MAX_VOCAB).contains(&vocab) && vocab.is_multiple_of(2);
        let problem = format!(
            "must be an even number from 6 to {MAX_VOCAB}: one half are keys, the other values"
        );
        require(fits, "vocab_size", vocab, problem)?;
        let keys = vocab / 2 - self.first_key();
        let problem = format!(
            "there are only {keys} different keys; use fewer pairs or a larger data.vocab_size"
        );
        require(pairs <= keys, "pairs", pairs, problem)?;
        let problem = format!("must be at most data.pairs = {pairs}");
        require(queries <= pairs, "queries_per_context", queries, problem)
    }

    /// The training and the validation data.
    ///
    /// # Errors
    ///
    /// See [`MqarConfig::validate`].
    pub fn open(&self, seed: u64) -> Result<Sources, Error> {
        generated::open(self, seed)
    }

    /// The task's tokenizer: the words `0 … V − 1`, each the token of its number.
    ///
    /// # Errors
    ///
    /// None for settings that [`MqarConfig::validate`] accepts.
    pub fn tokenizer(&self) -> Result<TextTokenizer, Error> {
        let words = (0..self.vocab_size).map(|id| id.to_string());
        TextTokenizer::words(words, &END.to_string())
    }

    /// The lengths of its samples; a target is a value and the end token.
    pub(super) fn lengths(&self) -> Lengths {
        let pair = if self.is_noisy() { 4 } else { 2 };
        Lengths {
            context: self.pairs * pair + self.noise_tokens(),
            question: 3,
            questions: self.queries_per_context,
            target: 2,
            ..Lengths::default()
        }
    }

    fn is_noisy(&self) -> bool {
        self.noise > 0.0
    }

    /// The smallest key.
    fn first_key(&self) -> usize {
        1 + if self.is_noisy() { CLOSE } else { END }
    }

    /// Number of random keys and values that belong to no pair.
    fn noise_tokens(&self) -> usize {
        let useful = (2 * self.pairs) as f64;
        (useful * self.noise / (1.0 - self.noise)).round() as usize
    }

    /// So many different tokens of `first..end`, in random order.
    fn different(&self, rng: &mut ChaCha8Rng, first: usize, end: usize) -> Vec<usize> {
        let chosen = rand::seq::index::sample(rng, end - first, self.pairs);
        chosen.into_iter().map(|at| first + at).collect()
    }

    /// The tokens of a context.
    fn context(&self, rng: &mut ChaCha8Rng, keys: &[usize], values: &[usize]) -> Vec<usize> {
        let pairs = keys.iter().zip(values);
        if !self.is_noisy() {
            return pairs.flat_map(|(key, value)| [*key, *value]).collect();
        }
        let half = self.vocab_size / 2;
        let mut gaps = vec![Vec::new(); self.pairs + 1];
        for _ in 0..self.noise_tokens() {
            let token = match rng.random() {
                true => rng.random_range(self.first_key()..half),
                false => rng.random_range(half..self.vocab_size),
            };
            gaps[rng.random_range(0..=self.pairs)].push(token);
        }
        let last = gaps.pop().unwrap_or_default();
        let framed = gaps
            .into_iter()
            .zip(pairs)
            .flat_map(|(gap, (key, value))| gap.into_iter().chain([END, *key, *value, CLOSE]));
        framed.chain(last).collect()
    }
}

impl Generates for MqarConfig {
    const STREAM: &'static [u8; 8] = b"mqar-one";

    fn validate(&self) -> Result<(), Error> {
        MqarConfig::validate(self)
    }

    fn samples(&self, split: Split) -> usize {
        split.of(self.train_samples, self.valid_samples)
    }

    fn example(&self, _: Split, _: usize, rng: &mut ChaCha8Rng) -> Example {
        let half = self.vocab_size / 2;
        let keys = self.different(rng, self.first_key(), half);
        let values = self.different(rng, half, self.vocab_size);
        let asked = rand::seq::index::sample(rng, keys.len(), self.queries_per_context);
        let questions = asked.into_iter().map(|at| Question {
            query: keys[at].to_string(),
            target: format!("{} {END}", values[at]),
            answers: Vec::new(),
        });
        let questions = questions.collect();
        let context = self.context(rng, &keys, &values);
        let words: Vec<String> = context.iter().map(usize::to_string).collect();
        Example::new(words.join(" "), questions)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};

    use burn::data::dataset::Dataset;

    use super::*;
    use crate::data::Generated;
    use crate::data::{DataConfig, TokensConfig};

    fn config() -> MqarConfig {
        MqarConfig {
            pairs: 6,
            vocab_size: 32,
            queries_per_context: 3,
            ..MqarConfig::default()
        }
    }

    #[test]
    fn words_are_token_ids_and_a_value_follows_its_key() {
        let task = DataConfig::Mqar(config());
        let task = task.open(&TokensConfig::default(), 3, None).unwrap();
        assert_eq!(task.tokenizer.vocab_size(), 32);
        assert_eq!((task.lengths.context, task.lengths.question), (12, 3));
        for index in 0..100 {
            let sample = task.train.get(index).unwrap().unwrap();
            let pairs = sample.context.chunks(2).map(|pair| (pair[0], pair[1]));
            let pairs: HashMap<u32, u32> = pairs.collect();
            let values: HashSet<_> = pairs.values().collect();
            assert_eq!((pairs.len(), values.len()), (6, 6));
            assert!(pairs.keys().all(|key| (1..16).contains(key)));
            assert!(pairs.values().all(|value| (16..32).contains(value)));
            let mut asked = HashSet::new();
            for question in &sample.asked {
                let [key, value, end] = question.tokens[..] else {
                    panic!("{question:?}");
                };
                assert_eq!((pairs[&key], end, question.target), (value, 0, 1));
                assert_eq!(question.answers, [value.to_string()]);
                asked.insert(key);
            }
            assert_eq!(asked.len(), 3);
        }
    }

    #[test]
    fn pairs_in_frames_are_among_keys_and_values_of_no_pair() {
        let config = MqarConfig {
            noise: 0.25,
            ..config()
        };
        let set = Generated::new(config.clone(), Split::Train, 3).unwrap();
        let mut found = HashSet::new();
        for index in 0..100 {
            let example = set.get(index).unwrap();
            let ids = config.tokenizer().unwrap().encode(&example.context);
            let ids = ids.unwrap();
            // 0.25 / 0.75 · 12 = 4 tokens among 6 · 4.
            assert_eq!((ids.len(), config.lengths().context), (28, 28));
            let mut pairs = HashMap::new();
            let mut at = 0;
            while at < ids.len() {
                match ids[at] {
                    0 => {
                        assert_eq!(ids[at + 3], 1);
                        pairs.insert(ids[at + 1].to_string(), format!("{} 0", ids[at + 2]));
                        at += 4;
                    }
                    token => {
                        assert!(token > 1);
                        found.insert(token);
                        at += 1;
                    }
                }
            }
            assert_eq!(pairs.len(), 6);
            for question in &example.questions {
                assert_eq!(pairs[&question.query], question.target);
            }
        }
        assert_eq!(found.len(), 30, "all keys and values are noise somewhere");
    }

    #[test]
    fn impossible_settings_are_errors() {
        let wrong = |change: fn(&mut MqarConfig)| {
            let mut config = config();
            change(&mut config);
            config.validate().unwrap_err().to_string()
        };
        assert!(wrong(|c| c.pairs = 0).contains("pairs"));
        assert!(wrong(|c| c.pairs = 16).contains("only 15 different keys"));
        let error = wrong(|c| (c.pairs, c.noise) = (15, 0.5));
        assert!(error.contains("only 14 different keys"), "{error}");
        for vocab in [0, 4, 33, 1 << 17] {
            let config = MqarConfig {
                vocab_size: vocab,
                ..config()
            };
            let error = config.validate().unwrap_err().to_string();
            assert!(
                error.contains("vocab_size") && error.contains("even"),
                "{error}"
            );
        }
        assert!(wrong(|c| c.noise = 1.0).contains("noise"));
        assert!(wrong(|c| c.queries_per_context = 7).contains("data.pairs = 6"));
        assert!(wrong(|c| c.valid_samples = 0).contains("valid_samples"));
    }
}
