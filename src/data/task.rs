//! A task by its name, and its samples.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use burn::data::dataset::Dataset;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::source::{Examples, Sources};
use super::{
    BabiConfig, Example, JsonlConfig, KvConfig, PhonebookConfig, Sample, Split, SquadConfig,
    TextConfig, TextTokenizer, TokensConfig,
};
use crate::error::Error;
use crate::support::fs::hex;

/// Where contexts, queries and targets come from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "task", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum DataConfig {
    /// Key-value retrieval.
    Kv(KvConfig),
    /// bAbI's first five tasks.
    Babi(BabiConfig),
    /// SQuAD.
    Squad(SquadConfig),
    /// Names and numbers.
    Phonebook(PhonebookConfig),
    /// Running text, to be reconstructed or gone on with.
    Text(TextConfig),
    /// Lines of JSON.
    Jsonl(JsonlConfig),
}

impl Default for DataConfig {
    fn default() -> Self {
        Self::Kv(KvConfig::default())
    }
}

/// Samples, each made when it is asked for.
pub type Samples = Arc<dyn Dataset<Result<Sample, Error>>>;

/// A task's samples and their tokenizer.
#[derive(Clone)]
#[non_exhaustive]
pub struct Task {
    /// What is learned from.
    pub train: Samples,
    /// What is held out.
    pub valid: Samples,
    /// What made them.
    pub tokenizer: Arc<TextTokenizer>,
    /// Whether the training samples come from a file, in whose order they are not to be learned.
    pub shuffle: bool,
    /// The longest of them.
    pub lengths: Lengths,
    /// A hash of those that were looked at, in tokens; none where the settings say it all.
    pub fingerprint: Option<String>,
}

impl fmt::Debug for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Task")
            .field("train", &self.train.len())
            .field("valid", &self.valid.len())
            .field("shuffle", &self.shuffle)
            .field("lengths", &self.lengths)
            .field("fingerprint", &self.fingerprint)
            .finish_non_exhaustive()
    }
}

/// How long a task's samples are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Lengths {
    /// Tokens of the longest context.
    pub context: usize,
    /// Tokens of the longest query and its target together.
    pub question: usize,
    /// Tokens of the longest target.
    pub target: usize,
    /// Contexts that are cut off at `tokens.max_context`.
    pub cut: usize,
    /// Contexts that were looked at to know.
    pub seen: usize,
}

/// The most samples of each half that are looked at before a training begins, those of a file or those
/// that are made up. What is behind them is checked when its turn comes.
fn looked_at(is_file: bool) -> usize {
    if is_file { 100_000 } else { 10_000 }
}

impl DataConfig {
    /// The tasks' names.
    pub const TASKS: &'static [&'static str] =
        &["kv", "babi", "squad", "phonebook", "text", "jsonl"];

    /// A task's default settings.
    pub fn of_task(name: &str) -> Option<Self> {
        Some(match name {
            "kv" => Self::Kv(KvConfig::default()),
            "babi" => Self::Babi(BabiConfig::default()),
            "squad" => Self::Squad(SquadConfig::default()),
            "phonebook" => Self::Phonebook(PhonebookConfig::default()),
            "text" => Self::Text(TextConfig::default()),
            "jsonl" => Self::Jsonl(JsonlConfig::default()),
            _ => return None,
        })
    }

    /// Checks every value.
    ///
    /// # Errors
    ///
    /// The first value that cannot work, by its key and with the reason: [`Error::Config`].
    pub fn validate(&self) -> Result<(), Error> {
        match self {
            Self::Kv(config) => config.validate(),
            Self::Babi(config) => config.validate(),
            Self::Squad(config) => config.validate(),
            Self::Phonebook(config) => config.validate(),
            Self::Text(config) => config.validate(),
            Self::Jsonl(config) => config.validate(),
        }
    }

    /// Questions to each context.
    pub fn queries_per_context(&self) -> Option<usize> {
        match self {
            Self::Kv(config) => Some(config.queries_per_context),
            Self::Phonebook(config) => Some(config.queries_per_context),
            Self::Babi(config) => Some(config.queries_per_context),
            Self::Squad(_) | Self::Text(_) => Some(1),
            Self::Jsonl(_) => None,
        }
    }

    /// What it is, in words.
    pub fn describe(&self) -> String {
        match self {
            Self::Kv(config) => format!("key-value retrieval, {} pairs", config.pairs),
            Self::Babi(config) => {
                let tasks = config.tasks.iter().map(|task| format!("qa{task}"));
                let tasks: Vec<_> = tasks.collect();
                format!("bAbI {}", tasks.join(", "))
            }
            Self::Squad(config) => format!("SQuAD {}", config.train_file.display()),
            Self::Phonebook(config) => format!("phonebook, {} names", config.entries),
            Self::Text(config) => format!("text {}", config.path.display()),
            Self::Jsonl(config) => format!("{}", config.train_file.display()),
        }
    }

    /// A user's text or question in the form that this task's contexts and queries have: stories, paragraphs
    /// and their questions end with a space; whatever else is as it is.
    pub fn form(&self, text: &str) -> String {
        match self {
            Self::Babi(_) => format!("{} ", text.trim()),
            Self::Squad(config) if config.variant.asks() => format!("{} ", text.trim()),
            _ => text.into(),
        }
    }

    /// The tokenizer that a run of this task kept in `path`.
    ///
    /// # Errors
    ///
    /// If it cannot be read or is another task's.
    pub fn kept_tokenizer(
        &self,
        tokens: &TokensConfig,
        path: impl AsRef<Path>,
    ) -> Result<TextTokenizer, Error> {
        match self {
            Self::Kv(config) => {
                let tokenizer = config.tokenizer()?;
                tokenizer.check(path)?;
                Ok(tokenizer)
            }
            _ => tokens.open(path),
        }
    }

    /// The task's samples. `made` is the tokenizer that a run of it has already; without it, the tokenizer
    /// is the task's own, a file's, or made from the training texts.
    ///
    /// # Errors
    ///
    /// Files that are missing, damaged or contradict themselves; texts that do not fit `tokens`.
    pub fn open(
        &self,
        tokens: &TokensConfig,
        seed: u64,
        made: Option<TextTokenizer>,
    ) -> Result<Task, Error> {
        self.validate().map_err(|e| e.in_section("data"))?;
        tokens.validate().map_err(|e| e.in_section("tokens"))?;
        let (sources, shuffle) = match self {
            Self::Kv(config) => return Task::of_pairs(config, tokens, seed),
            Self::Text(config) => return config.open(tokens, seed, made),
            Self::Babi(config) => (config.open(seed)?, config.train_file.is_some()),
            Self::Phonebook(config) => (config.open(seed)?, config.train_file.is_some()),
            Self::Squad(config) => (config.open(seed)?, true),
            Self::Jsonl(config) => (config.open(seed)?, true),
        };
        let tokenizer = match made {
            Some(made) => made,
            None => tokens.make(|| texts(&sources.0, looked_at(shuffle)))?,
        };
        let task = Task::new(sources, tokenizer, tokens);
        Task { shuffle, ..task }.measured()
    }
}

/// The texts of a data set's first samples, a context that follows itself taken once.
fn texts(train: &Examples, most: usize) -> Result<impl Iterator<Item = String> + Send, Error> {
    let mut texts: Vec<String> = Vec::new();
    let mut last = String::new();
    for index in 0..train.len().min(most) {
        let Some(example) = train.get(index) else {
            break;
        };
        let Example {
            context, questions, ..
        } = example?;
        for question in questions {
            texts.push(question.query + &question.target);
        }
        if context != last {
            texts.push(context.clone());
            last = context;
        }
    }
    Ok(texts.into_iter())
}

/// Texts made into token ids.
struct Encoded {
    examples: Examples,
    tokenizer: Arc<TextTokenizer>,
    max_context: usize,
    truncate: bool,
    /// Whether this is what is held out.
    split: Split,
}

impl Encoded {
    fn sample(&self, index: usize, example: Example) -> Result<Sample, Error> {
        let half = self.split.of("training", "held-out");
        self.encode(example).map_err(|e| match e {
            Error::Input(problem) => Error::Input(format!("{half} sample {index}: {problem}")),
            other => other,
        })
    }

    fn encode(&self, example: Example) -> Result<Sample, Error> {
        let tokenizer = &self.tokenizer;
        let mut context = tokenizer.encode(&example.context)?;
        let (tokens, most) = (context.len(), self.max_context);
        if tokens == 0 {
            return Err(Error::Input("its context is empty".into()));
        }
        let cut = tokens.saturating_sub(most);
        if cut > 0 && !self.truncate {
            return Err(Error::Input(format!(
                "its context has {tokens} tokens, more than tokens.max_context = {most}: \
                 raise it, or cut such contexts off with tokens.truncate=true"
            )));
        }
        if cut > 0 {
            let (head, tail) = example
                .context
                .split_at(example.context.len() - example.tail);
            let tail = tokenizer.encode(tail)?;
            if tail.len() >= most {
                return Err(Error::Input(format!(
                    "the {} tokens that must stay at the end of its context leave nothing of \
                     tokens.max_context = {most}",
                    tail.len()
                )));
            }
            context = tokenizer.encode(head)?;
            context.truncate(most - tail.len());
            context.extend(tail);
        }
        let asked = example.questions.iter();
        Ok(Sample {
            context,
            asked: asked
                .map(|question| tokenizer.encode_question(question))
                .collect::<Result<_, _>>()?,
            cut,
        })
    }
}

impl Dataset<Result<Sample, Error>> for Encoded {
    fn get(&self, index: usize) -> Option<Result<Sample, Error>> {
        let example = self.examples.get(index)?;
        Some(example.and_then(|example| self.sample(index, example)))
    }

    fn len(&self) -> usize {
        self.examples.len()
    }
}

impl Task {
    /// All that is to be known of key-value pairs follows from their settings, unless they are cut off.
    fn of_pairs(config: &KvConfig, tokens: &TokensConfig, seed: u64) -> Result<Self, Error> {
        let task = Self::new(config.open(seed)?, config.tokenizer()?, tokens);
        let lengths = Lengths {
            context: config.context_len(),
            question: config.question_len(),
            target: config.target_len(),
            ..Lengths::default()
        };
        match tokens.max_context.is_some_and(|max| max < lengths.context) {
            true => task.measured(),
            false => Ok(Self { lengths, ..task }),
        }
    }

    fn new((train, valid): Sources, tokenizer: TextTokenizer, tokens: &TokensConfig) -> Self {
        let tokenizer = Arc::new(tokenizer);
        let encoded = |examples, split| -> Samples {
            Arc::new(Encoded {
                examples,
                split,
                tokenizer: tokenizer.clone(),
                max_context: tokens.max_context.unwrap_or(usize::MAX),
                truncate: tokens.truncate,
            })
        };
        Self {
            train: encoded(train, Split::Train),
            valid: encoded(valid, Split::Valid),
            tokenizer,
            shuffle: false,
            lengths: Lengths::default(),
            fingerprint: None,
        }
    }

    /// The same with the lengths of its samples, all of which are made once, up to a number.
    fn measured(self) -> Result<Self, Error> {
        let mut lengths = Lengths::default();
        let most = looked_at(self.shuffle);
        let mut print = Sha256::new();
        for (half, name) in [(&self.train, "training"), (&self.valid, "held-out")] {
            if half.is_empty() {
                return Err(Error::Input(format!("there are no {name} samples")));
            }
            for index in 0..half.len().min(most) {
                let Some(sample) = half.get(index) else { break };
                let sample = sample?;
                let ids = sample.asked.iter().flat_map(|asked| &asked.tokens);
                for id in sample.context.iter().chain(ids) {
                    print.update(id.to_le_bytes());
                }
                lengths.context = lengths.context.max(sample.context.len());
                for asked in &sample.asked {
                    let tokens = asked.tokens.len();
                    lengths.question = lengths.question.max(tokens);
                    lengths.target = lengths.target.max(tokens - asked.target);
                }
                lengths.cut += usize::from(sample.cut > 0);
                lengths.seen += 1;
            }
        }
        let Lengths { cut, seen, .. } = lengths;
        if cut > 0 {
            log::warn!(
                "{cut} of {seen} contexts are longer than tokens.max_context and are cut off there"
            );
        }
        Ok(Self {
            lengths,
            fingerprint: Some(hex(&print.finalize())),
            ..self
        })
    }
}

#[cfg(test)]
mod tests {
    use burn::data::dataset::InMemDataset;

    use super::super::Question;
    use super::super::source::boxed;
    use super::*;

    fn jsonl(lines: &str) -> (tempfile::TempDir, DataConfig) {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("train.jsonl");
        std::fs::write(&file, lines).unwrap();
        let config = DataConfig::Jsonl(JsonlConfig {
            train_file: file,
            valid_samples: 1,
            ..JsonlConfig::default()
        });
        (folder, config)
    }

    const LINES: &str = r#"{"context": "Ann is in the hall. ", "query": "Where is Ann? ", "target": "hall"}
{"context": "Bob is at home. ", "query": "Where is Bob? ", "target": "home"}
{"context": "Eve is in the hall. ", "query": "Where is Eve? ", "target": "hall"}
"#;

    #[test]
    fn a_task_measures_its_samples_and_keeps_its_tokenizer() {
        let (folder, config) = jsonl(LINES);
        let task = config.open(&TokensConfig::default(), 0, None).unwrap();
        assert_eq!((task.train.len(), task.valid.len()), (2, 1));
        // Ann is in the hall . | Where is Ann ? hall [EOS]
        assert_eq!((task.lengths.context, task.lengths.question), (6, 6));
        assert!(task.shuffle);
        let file = folder.path().join("tokenizer.json");
        std::fs::write(&file, task.tokenizer.to_json().unwrap()).unwrap();
        let kept = config
            .kept_tokenizer(&TokensConfig::default(), &file)
            .unwrap();
        let again = config
            .open(&TokensConfig::default(), 0, Some(kept))
            .unwrap();
        assert_eq!(
            again.valid.get(0).unwrap().unwrap(),
            task.valid.get(0).unwrap().unwrap()
        );
    }

    #[test]
    fn what_must_stay_at_the_end_stays_where_a_context_is_cut() {
        let tokens = TokensConfig {
            max_context: Some(5),
            truncate: true,
            ..TokensConfig::default()
        };
        let question = Question {
            query: "Answer: ".into(),
            target: "hall".into(),
            answers: Vec::new(),
        };
        let example = Example {
            tail: "Where is Ann? ".len(),
            ..Example::new("Ann is in the hall. Where is Ann? ", vec![question])
        };
        let set = || boxed(InMemDataset::new(vec![example.clone()]));
        let all = set();
        let tokenizer = tokens.make(|| texts(&all, 1)).unwrap();
        let of = |max_context| {
            let tokens = TokensConfig {
                max_context: Some(max_context),
                ..tokens.clone()
            };
            let task = Task::new((set(), set()), tokenizer.clone(), &tokens);
            let sample = task.train.get(0).unwrap();
            sample.map(|sample| task.tokenizer.decode(&sample.context).unwrap())
        };
        assert_eq!(of(6).unwrap(), "Ann is Where is Ann ?");
        assert_eq!(of(10).unwrap(), "Ann is in the hall . Where is Ann ?");
        let error = of(4).unwrap_err().to_string();
        assert!(
            error.contains("training sample 0") && error.contains("must stay"),
            "{error}"
        );
    }

    #[test]
    fn a_long_context_is_an_error_unless_it_may_be_cut() {
        let (_folder, config) = jsonl(LINES);
        let mut tokens = TokensConfig {
            max_context: Some(5),
            ..TokensConfig::default()
        };
        let error = config.open(&tokens, 0, None).err().unwrap().to_string();
        assert!(
            error.contains("6 tokens") && error.contains("truncate"),
            "{error}"
        );
        tokens.truncate = true;
        let task = config.open(&tokens, 0, None).unwrap();
        assert_eq!(
            (task.lengths.context, task.lengths.cut, task.lengths.seen),
            (5, 2, 3)
        );
    }
}
