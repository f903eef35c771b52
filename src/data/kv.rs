//! Key-value retrieval, the paper's capacity task (section 4.1): a context of random pairs
//! `!aB:9x!!Qe:tT!|`, a query `?!Qe:`, a target `tT!|`; optionally among random letters.

use burn::data::dataset::Dataset;
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::source::{Sources, boxed};
use super::{Example, Question, Split, TextTokenizer};
use crate::error::{Error, at_least_one, require, sizes};

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
    /// `R`: queries per context, for different pairs, all answered from one WRITE.
    pub queries_per_context: usize,
    /// Size of the alphabet of keys, values and the letters between pairs: 62, or 512 with other scripts.
    pub alphabet: usize,
    /// The share of a context's characters that are random letters between the pairs.
    pub noise: f64,
    /// Number of segments of random length, each ending in `|`, with the pairs at random positions among random
    /// letters, as in the paper's `S4(32-64)`; 0 for none.
    pub segments: usize,
    /// The shortest segment, in characters.
    pub segment_min: usize,
    /// The longest segment, in characters.
    pub segment_max: usize,
    /// Training contexts; they are generated on demand, so their number takes no memory.
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
            "there are only {keys} different keys of {length} characters; \
             use fewer pairs or a longer data.key_len"
        );
        require(self.pairs as u128 <= keys, "pairs", self.pairs, problem)?;
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
        let samples = |split| KvDataset::new(self.clone(), split, seed).map(boxed);
        Ok((samples(Split::Train)?, samples(Split::Valid)?))
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
        let problem = "must be at least 2 for the copy task: a letter and the `|` after it";
        require(self.pairs > 0 || min > 1, "segment_min", min, problem)?;
        let problem = "with segments their lengths determine the number of letters: leave it at 0";
        require(noise == 0.0, "noise", noise, problem)?;
        let most = self.segments * ((min - 1) / self.pair_len());
        let problem = format!(
            "{} segments of {min} characters can hold at most {most} pairs of {}; use fewer pairs, or more \
             or longer segments",
            self.segments,
            self.pair_len()
        );
        require(self.pairs <= most, "pairs", self.pairs, problem)
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

    /// Tokens of the longest context: `N (K + V + 3) + 1` where there are only pairs.
    pub fn context_len(&self) -> usize {
        match self.segments {
            0 => self.pairs * self.pair_len() + self.noise_letters() + 1,
            segments => segments * self.segment_max,
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

/// Key-value samples, generated on demand; each depends only on the seed, the split and its index.
#[derive(Clone, Debug)]
pub struct KvDataset {
    config: KvConfig,
    alphabet: Vec<char>,
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
            alphabet: config.alphabet(),
            config,
            split,
            seed,
        })
    }

    fn word(&self, rng: &mut ChaCha8Rng, length: usize) -> String {
        let letters = &self.alphabet;
        (0..length)
            .map(|_| letters[rng.random_range(0..letters.len())])
            .collect()
    }

    /// `words` in this order, at random positions among `letters` random letters.
    fn scatter(&self, rng: &mut ChaCha8Rng, words: &[String], letters: usize) -> String {
        let mut gaps = vec![0; words.len() + 1];
        for _ in 0..letters {
            gaps[rng.random_range(0..=words.len())] += 1;
        }
        let words = words.iter().map(String::as_str).chain([""]);
        gaps.into_iter()
            .zip(words)
            .map(|(letters, word)| self.word(rng, letters) + word)
            .collect()
    }

    fn context(&self, rng: &mut ChaCha8Rng, pairs: &[String]) -> String {
        let config = &self.config;
        if config.segments == 0 {
            return match config.noise_letters() {
                0 => pairs.concat() + "|",
                letters => self.scatter(rng, pairs, letters) + "|",
            };
        }
        let length = config.segment_min..=config.segment_max;
        let lengths: Vec<usize> = (0..config.segments)
            .map(|_| rng.random_range(length.clone()))
            .collect();
        let mut segments = vec![Vec::new(); config.segments];
        for pair in pairs {
            let with_space = |(at, held): (usize, &Vec<String>)| {
                let fits = (lengths[at] - 1) / config.pair_len();
                (held.len() < fits).then_some(at)
            };
            let open: Vec<usize> = segments.iter().enumerate().filter_map(with_space).collect();
            segments[open[rng.random_range(0..open.len())]].push(pair.clone());
        }
        let segment = |(held, length): (&Vec<String>, &usize)| {
            let letters = length - 1 - held.len() * config.pair_len();
            self.scatter(rng, held, letters) + "|"
        };
        segments.iter().zip(&lengths).map(segment).collect()
    }
}

impl Dataset<Example> for KvDataset {
    fn get(&self, index: usize) -> Option<Example> {
        (index < self.len()).then(|| self.example(index))
    }

    fn len(&self) -> usize {
        let config = &self.config;
        self.split.of(config.train_samples, config.valid_samples)
    }
}

impl KvDataset {
    /// The sample of an index, which may exceed the number of samples.
    pub fn example(&self, index: usize) -> Example {
        let config = &self.config;
        let mut rng = self.split.rng(b"gradmem0", self.seed, index);
        let mut pairs: Vec<(String, String)> = Vec::with_capacity(config.pairs);
        let mut keys = std::collections::HashSet::with_capacity(config.pairs);
        while pairs.len() < config.pairs {
            let key = self.word(&mut rng, config.key_len);
            if keys.insert(key.clone()) {
                pairs.push((key, self.word(&mut rng, config.value_len)));
            }
        }
        let mut questions: Vec<Question> = match pairs.len() {
            0 => Vec::new(),
            count => rand::seq::index::sample(&mut rng, count, config.queries_per_context)
                .into_iter()
                .map(|at| Question {
                    query: format!("?!{}:", pairs[at].0),
                    target: format!("{}!|", pairs[at].1),
                    answers: Vec::new(),
                })
                .collect(),
        };
        let pairs: Vec<String> = pairs.iter().map(|(k, v)| format!("!{k}:{v}!")).collect();
        let context = self.context(&mut rng, &pairs);
        if questions.is_empty() {
            questions.push(Question {
                query: "?!:".into(),
                target: context.clone(),
                answers: Vec::new(),
            });
        }
        Example::new(context, questions)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dataset(split: Split, seed: u64) -> KvDataset {
        KvDataset::new(KvConfig::default(), split, seed).unwrap()
    }

    #[test]
    fn samples_have_unique_keys_and_questions_about_their_pairs() {
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
            assert_eq!(queries.len(), 4, "two questions about the same pair");
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
    fn samples_depend_on_seed_split_and_index_only() {
        let train = dataset(Split::Train, 1);
        assert_eq!(train.get(999_999), dataset(Split::Train, 1).get(999_999));
        assert_ne!(train.get(0), train.get(1));
        assert_ne!(train.get(0), dataset(Split::Valid, 1).get(0));
        assert_ne!(train.get(0), dataset(Split::Train, 2).get(0));
        assert_eq!(train.get(1_000_000), None);
    }

    #[test]
    fn pairs_are_among_letters_with_segments_and_with_noise() {
        let segments = KvConfig {
            pairs: 6,
            segments: 4,
            ..KvConfig::default()
        };
        let noise = KvConfig {
            pairs: 6,
            noise: 0.5,
            alphabet: 512,
            ..KvConfig::default()
        };
        for config in [segments, noise] {
            let tokenizer = config.tokenizer().unwrap();
            let set = KvDataset::new(config.clone(), Split::Train, 3).unwrap();
            for index in 0..100 {
                let Example {
                    context, questions, ..
                } = set.get(index).unwrap();
                tokenizer.encode(&context).unwrap();
                let parts: Vec<&str> = context.split_terminator('|').collect();
                let chars = context.chars().count();
                match config.segments {
                    0 => assert_eq!((parts.len(), chars), (1, config.context_len())),
                    n => {
                        assert_eq!(parts.len(), n);
                        let fits = |part: &&str| (32..=64).contains(&(part.chars().count() + 1));
                        assert!(parts.iter().all(fits), "{context}");
                    }
                }
                assert_eq!(context.matches(':').count(), 6);
                let [key, value] = [&questions[0].query[2..], &questions[0].target];
                assert_eq!(
                    context
                        .matches(&format!("!{key}{}", &value[..value.len() - 1]))
                        .count(),
                    1
                );
            }
        }
    }

    #[test]
    fn the_target_of_the_copy_task_is_the_context() {
        let config = KvConfig {
            pairs: 0,
            segments: 2,
            ..KvConfig::default()
        };
        let example = KvDataset::new(config, Split::Valid, 0)
            .unwrap()
            .get(5)
            .unwrap();
        assert_eq!(example.questions[0].query, "?!:");
        assert_eq!(example.questions[0].target, example.context);
        assert_eq!(example.context.matches('|').count(), 2);
    }

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
        assert!(wrong(|c| c.segments = 2).contains("at most 8 pairs"));
        assert!(wrong(|c| c.noise = 1.0).contains("noise"));
        assert!(wrong(|c| c.alphabet = 100).contains("62 or 512"));
        assert!(wrong(|c| c.segment_min = 99).contains("segment_max"));
        let error = wrong(|c| (c.pairs, c.segments, c.queries_per_context) = (0, 1, 2));
        assert!(error.contains("copy task"), "{error}");
    }

    #[test]
    fn generated_samples_do_not_change_between_versions() {
        let example = dataset(Split::Valid, 3).get(5).unwrap();
        assert_eq!(&example.context[..14], "!z3:Oi!!ul:VT!");
    }

    #[test]
    fn there_can_be_as_many_pairs_as_keys() {
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
