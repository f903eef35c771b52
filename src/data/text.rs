//! Running text, to be compressed into memory and reconstructed (paper, appendix on text compression), or
//! stored and continued (language modelling on wikitext-103).

use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::data::dataset::Dataset;
use rand::RngExt;
use serde::{Deserialize, Serialize};

use super::task::{Inspection, Lengths, Samples, Task};
use super::{Asked, Corpus, Sample, Split, TextTokenizer, TokensConfig};
use crate::error::{Error, at_least_one, require, sizes};

/// What is to be predicted from a stored piece of text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Objective {
    /// The same text, from memory alone.
    #[default]
    Compression,
    /// The text that follows it: the earlier text is written, the later one predicted.
    Continuation,
}

/// Settings of running text. A context begins at the beginning of a sentence.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TextConfig {
    /// A text file, or a folder of `.txt` files.
    pub path: PathBuf,
    /// What is to be predicted.
    pub objective: Objective,
    /// Tokens of a context.
    pub context_tokens: usize,
    /// Tokens of a continuation.
    pub target_tokens: usize,
    /// Text that is validation data, as in `path`, which is then all trained on; without it, a share of `path`.
    pub valid_path: Option<PathBuf>,
    /// The share of each file, at its end, that is validation data; not used with `valid_path`.
    pub valid_share: f64,
    /// Training contexts, each from a random sentence.
    pub train_samples: usize,
    /// Validation contexts, from evenly spaced sentences.
    pub valid_samples: usize,
}

impl Default for TextConfig {
    fn default() -> Self {
        Self {
            path: PathBuf::new(),
            objective: Objective::Compression,
            context_tokens: 128,
            target_tokens: 128,
            valid_path: None,
            valid_share: 0.1,
            train_samples: 1_000_000,
            valid_samples: 500,
        }
    }
}

impl TextConfig {
    /// Checks every value.
    ///
    /// # Errors
    ///
    /// The first value that cannot work, by its key and with the reason: [`Error::Config`].
    pub fn validate(&self) -> Result<(), Error> {
        let named = !self.path.as_os_str().is_empty();
        let problem =
            "must name a text file or a folder of .txt files, such as PG19's or wikitext-103's";
        require(named, "path", "\"\"", problem)?;
        if let Some(valid) = &self.valid_path {
            let problem = "must name another text than data.path, which is trained on; leave it out to hold out a share of it";
            require(*valid != self.path, "valid_path", valid.display(), problem)?;
        }
        sizes([
            ("context_tokens", self.context_tokens),
            ("target_tokens", self.target_tokens),
        ])?;
        at_least_one([
            ("train_samples", self.train_samples),
            ("valid_samples", self.valid_samples),
        ])?;
        let share = self.valid_share;
        let problem = "must be above 0 and below 1";
        require(share > 0.0 && share < 1.0, "valid_share", share, problem)
    }

    pub(super) fn open(
        &self,
        tokens: &TokensConfig,
        seed: u64,
        made: Option<TextTokenizer>,
    ) -> Result<Task, Error> {
        if let Some(max) = tokens.max_context {
            let problem = "a text's contexts have data.context_tokens tokens: set that instead";
            return Err(Error::config("tokens.max_context", max, problem));
        }
        for (key, path) in [
            ("path", Some(&self.path)),
            ("valid_path", self.valid_path.as_ref()),
        ] {
            if let Some(path) = path.filter(|path| !path.exists()) {
                let problem =
                    "there is no such file or folder: name a text file or a folder of .txt files";
                let key = format!("data.{key}");
                return Err(Error::config(key, path.display(), problem));
            }
        }
        let train = Corpus::open(&self.path)?;
        let (train, valid) = match &self.valid_path {
            Some(path) => {
                let valid = Corpus::open(path)?;
                (apart(train, &valid, path)?, valid)
            }
            None => train
                .split(self.valid_share)
                .map_err(|e| e.in_section("data"))?,
        };
        let tokenizer = match made {
            Some(made) => made,
            None => tokens.make(|| sentences(&train))?,
        };
        let tokenizer = Arc::new(tokenizer);
        let mut seen = Inspection::new(&tokenizer);
        for print in train.prints().chain(valid.prints()) {
            seen.add_bytes(print);
        }
        let samples = |corpus, split| -> Samples {
            Arc::new(TextSamples {
                corpus,
                split,
                seed,
                config: self.clone(),
                tokenizer: tokenizer.clone(),
            })
        };
        let target = match self.objective {
            Objective::Compression => self.context_tokens,
            Objective::Continuation => self.target_tokens,
        };
        let (train, valid) = (samples(train, Split::Train), samples(valid, Split::Valid));
        if valid.len() < self.valid_samples {
            log::warn!(
                "only {} sentences are held out: they are all of the {} validation samples",
                valid.len(),
                self.valid_samples
            );
        }
        // Finds a corpus that is too short now, and hashes some samples: other settings make others of the same files.
        for (samples, count, split) in [(&train, 20, Split::Train), (&valid, 200, Split::Valid)] {
            for sample in (0..count).map_while(|index| samples.get(index)) {
                seen.add(&sample?, split);
            }
        }
        let lengths = Lengths {
            context: self.context_tokens,
            question: target,
            questions: 1,
            target,
            ..Lengths::default()
        };
        let fingerprint = Some(seen.finish());
        Ok(Task {
            train,
            valid,
            fingerprint,
            tokenizer,
            shuffle: false,
            lengths,
        })
    }

    /// Tokens that a sample needs: those of the context and of its continuation, if there is one.
    fn sample_tokens(&self) -> usize {
        match self.objective {
            Objective::Compression => self.context_tokens,
            Objective::Continuation => self.context_tokens.saturating_add(self.target_tokens),
        }
    }
}

/// The training text without the files that are held out.
fn apart(train: Corpus, valid: &Corpus, path: &Path) -> Result<Corpus, Error> {
    let (train, left_out) = train.without(valid);
    if left_out > 0 && train.is_some() {
        log::warn!(
            "{left_out} files of data.path are not trained on, because data.valid_path has them"
        );
    }
    train.ok_or_else(|| {
        let problem = "has all files of data.path: none is left to train on; leave it out to hold out a share of each";
        Error::config("data.valid_path", path.display(), problem)
    })
}

/// The most sentences that a tokenizer is trained on.
const MAX_TOKENIZER_SENTENCES: usize = 100_000;

/// Evenly spaced sentences, for a tokenizer to be trained on.
fn sentences(corpus: &Corpus) -> Result<impl Iterator<Item = String> + Send, Error> {
    let all = corpus.sentences();
    let count = all.min(MAX_TOKENIZER_SENTENCES);
    let sentences = (0..count).map(|index| corpus.text_from(index * all / count, 1));
    Ok(sentences.collect::<Result<Vec<_>, _>>()?.into_iter())
}

/// Samples of a corpus, read and tokenized on demand.
struct TextSamples {
    corpus: Corpus,
    split: Split,
    seed: u64,
    config: TextConfig,
    tokenizer: Arc<TextTokenizer>,
}

/// How many sentences are tried to find one that enough text follows.
const MAX_ATTEMPTS: usize = 100;

impl TextSamples {
    fn sample(&self, index: usize) -> Result<Sample, Error> {
        let sentences = self.corpus.sentences();
        let mut rng = self.split.rng(b"gradtext", self.seed, index);
        for attempt in 0..MAX_ATTEMPTS {
            let sentence = match (self.split, attempt) {
                (Split::Valid, 0) => index * sentences / self.len(),
                _ => rng.random_range(0..sentences),
            };
            if let Some(tokens) = self.tokens_from(sentence)? {
                return self.to_sample(tokens);
            }
        }
        let held_out = self.config.valid_path.as_ref();
        let held_out = held_out.filter(|_| self.split == Split::Valid);
        Err(Error::Input(format!(
            "{} does not have {} tokens in a row after the beginning of any of {MAX_ATTEMPTS} sentences: \
             use a smaller data.context_tokens",
            held_out.unwrap_or(&self.config.path).display(),
            self.config.sample_tokens()
        )))
    }

    /// The tokens of a sample, from the beginning of a sentence; none if the text is too short.
    fn tokens_from(&self, sentence: usize) -> Result<Option<Vec<u32>>, Error> {
        let wanted = self.config.sample_tokens();
        let mut bytes = 8 * wanted;
        loop {
            let text = self.corpus.text_from(sentence, bytes)?;
            let mut tokens = self.tokenizer.encode(&text)?;
            // The last token may change when more text follows it: one more is needed.
            if tokens.len() > wanted {
                tokens.truncate(wanted);
                return Ok(Some(tokens));
            }
            if text.len() < bytes {
                return Ok(None);
            }
            bytes = 2 * text.len();
        }
    }

    fn to_sample(&self, tokens: Vec<u32>) -> Result<Sample, Error> {
        let (context, asked) = match self.config.objective {
            Objective::Compression => (tokens.clone(), tokens),
            Objective::Continuation => {
                let (context, asked) = tokens.split_at(self.config.context_tokens);
                (context.to_vec(), asked.to_vec())
            }
        };
        Ok(Sample {
            context,
            asked: vec![Asked {
                answers: vec![self.tokenizer.decode(&asked)?],
                tokens: asked,
                target: 0,
                direction: None,
            }],
            cut: 0,
        })
    }
}

impl Dataset<Result<Sample, Error>> for TextSamples {
    fn get(&self, index: usize) -> Option<Result<Sample, Error>> {
        (index < self.len()).then(|| self.sample(index))
    }

    fn len(&self) -> usize {
        let config = &self.config;
        // A sentence that is held out is asked for once.
        let valid = config.valid_samples.min(self.corpus.sentences());
        self.split.of(config.train_samples, valid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::DataConfig;

    /// Sentences of many bytes and few words, so that twice the bytes are still one sentence.
    #[test]
    fn a_sentence_of_long_words_is_not_the_end_of_the_text() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.txt");
        let line = |i: usize| {
            format!(
                "{}.\n",
                vec![format!("W{}", "x".repeat(64)); 9 + i % 3].join(" ")
            )
        };
        std::fs::write(&path, (0..99).map(line).collect::<String>()).unwrap();
        let config = DataConfig::Text(TextConfig {
            path,
            context_tokens: 16,
            valid_samples: 10,
            ..TextConfig::default()
        });
        let tokens = TokensConfig {
            tokenizer: "words".into(),
            ..TokensConfig::default()
        };
        let task = config.open(&tokens, 1, None).unwrap();
        let sample = task.train.get(5).unwrap().unwrap();
        assert_eq!(sample.context.len(), 16);
    }

    fn task(objective: Objective, context_tokens: usize) -> Result<Task, Error> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.txt");
        let names = ["Ann", "Bob", "Eve", "Dan"];
        let lines = (0..400).map(|i| format!("{} has {i} apples.\n", names[i % 4]));
        std::fs::write(&path, lines.collect::<String>()).unwrap();
        let config = DataConfig::Text(TextConfig {
            path,
            objective,
            context_tokens,
            target_tokens: 3,
            valid_samples: 10,
            ..TextConfig::default()
        });
        let task = config.open(&TokensConfig::default(), 1, None)?;
        let valid = task.valid.get(3).unwrap();
        // The files are read when a sample is requested.
        let sample = task.train.get(5).unwrap().and(valid)?;
        assert_eq!(sample.context.len(), context_tokens);
        let asked = &sample.asked[0];
        match objective {
            Objective::Compression => assert_eq!(asked.tokens, sample.context),
            Objective::Continuation => assert_eq!(asked.tokens.len(), 3),
        }
        let text = task.tokenizer.decode(&sample.context)?;
        assert!(names.iter().any(|name| text.starts_with(name)), "{text}");
        Ok(task)
    }

    #[test]
    fn samples_begin_with_a_sentence_and_have_the_requested_length() {
        task(Objective::Compression, 12).unwrap();
        task(Objective::Continuation, 7).unwrap();
    }

    #[test]
    fn the_earlier_text_is_written_and_the_later_one_predicted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.txt");
        let text: String = (0..400).map(|i| format!("Ann has {i} apples.\n")).collect();
        std::fs::write(&path, &text).unwrap();
        let config = DataConfig::Text(TextConfig {
            path,
            objective: Objective::Continuation,
            context_tokens: 7,
            target_tokens: 4,
            valid_samples: 10,
            ..TextConfig::default()
        });
        let task = config.open(&TokensConfig::default(), 1, None).unwrap();
        let whole = task.tokenizer.encode(&text).unwrap();
        let is_there = |first: &[u32], second: &[u32]| {
            let both = [first, second].concat();
            whole.windows(both.len()).any(|part| part == both)
        };
        for samples in [&task.train, &task.valid] {
            for index in 0..10 {
                let sample = samples.get(index).unwrap().unwrap();
                let [asked] = &sample.asked[..] else {
                    panic!("{sample:?}");
                };
                // All of the later text is predicted, its first token from the memory alone.
                assert_eq!((asked.tokens.len(), asked.target), (4, 0));
                assert!(is_there(&sample.context, &asked.tokens));
                assert!(!is_there(&asked.tokens, &sample.context));
            }
        }
    }

    #[test]
    fn a_text_of_its_own_is_held_out_instead_of_a_share() {
        let folder = tempfile::tempdir().unwrap();
        let [path, valid_path] = ["Ann", "Bob"].map(|name| {
            let path = folder.path().join(name);
            let text: String = (0..200)
                .map(|i| format!("{name} has {i} pears.\n"))
                .collect();
            std::fs::write(&path, text).unwrap();
            path
        });
        let mut config = TextConfig {
            path,
            valid_path: Some(valid_path.clone()),
            context_tokens: 9,
            valid_samples: 20,
            ..TextConfig::default()
        };
        let data = DataConfig::Text(config.clone());
        let task = data.open(&TokensConfig::default(), 1, None).unwrap();
        // The tokenizer is made of the training text alone, and has no Bob.
        for (samples, is_trained) in [(&task.train, true), (&task.valid, false)] {
            for index in 0..20 {
                let sample = samples.get(index).unwrap().unwrap();
                let text = task.tokenizer.decode(&sample.context).unwrap();
                assert_eq!(text.starts_with("Ann"), is_trained, "{text}");
            }
        }
        // A text in the folder that is trained on is held out from it.
        config.path = folder.path().into();
        let path = folder.path().join("Ann");
        std::fs::rename(&path, path.with_extension("txt")).unwrap();
        let inside = valid_path.with_extension("txt");
        std::fs::rename(&valid_path, &inside).unwrap();
        config.valid_path = Some(folder.path().join(".").join("Bob.txt"));
        config.valid_samples = 5000;
        let data = DataConfig::Text(config.clone());
        let task = data.open(&TokensConfig::default(), 1, None).unwrap();
        assert_eq!(task.valid.len(), 200);
        for index in 0..20 {
            let sample = task.train.get(index).unwrap().unwrap();
            let text = task.tokenizer.decode(&sample.context).unwrap();
            assert!(text.starts_with("Ann"), "{text}");
        }
        config.path = inside;
        let data = DataConfig::Text(config.clone());
        let error = data.open(&TokensConfig::default(), 1, None).err().unwrap();
        assert!(error.to_string().contains("valid_path"), "{error}");
        config.path = config.valid_path.clone().unwrap();
        let error = config.validate().unwrap_err().to_string();
        assert!(error.contains("valid_path"), "{error}");
    }

    #[test]
    fn a_text_that_is_too_short_is_an_error() {
        let error = task(Objective::Compression, 5000)
            .err()
            .unwrap()
            .to_string();
        assert!(error.contains("5000 tokens"), "{error}");
    }
}
