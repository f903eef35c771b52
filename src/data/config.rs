//! The configuration of any task, and opening of its data.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::source::{Examples, single_spaces};
use super::squad::ANSWER;
use super::task::{Task, max_inspected};
use super::{
    BabiConfig, Example, JsonlConfig, KvConfig, Lengths, MqarConfig, MultihopConfig,
    PhonebookConfig, SquadConfig, SquadVariant, TextConfig, TextTokenizer, TokensConfig,
};
use crate::error::Error;
use crate::support::counted;

/// The settings of a task: where contexts, queries and targets come from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "task", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum DataConfig {
    /// Key-value retrieval.
    Kv(KvConfig),
    /// Associative recall with many queries.
    Mqar(MqarConfig),
    /// Association over several hops.
    Multihop(MultihopConfig),
    /// bAbI, tasks 1 to 5.
    Babi(BabiConfig),
    /// SQuAD.
    Squad(SquadConfig),
    /// A phone book of names and numbers.
    Phonebook(PhonebookConfig),
    /// Running text, to be reconstructed or continued.
    Text(TextConfig),
    /// A JSON Lines file.
    Jsonl(JsonlConfig),
}

impl Default for DataConfig {
    fn default() -> Self {
        Self::Kv(KvConfig::default())
    }
}

impl DataConfig {
    /// The names of the tasks.
    pub const TASKS: &'static [&'static str] = &[
        "kv",
        "mqar",
        "multihop",
        "babi",
        "squad",
        "phonebook",
        "text",
        "jsonl",
    ];

    /// The default settings of a task; none if there is no task of this name.
    pub fn of_task(name: &str) -> Option<Self> {
        serde_json::from_value(serde_json::json!({ "task": name })).ok()
    }

    /// Checks every value.
    ///
    /// # Errors
    ///
    /// The first value that cannot work, by its key and with the reason: [`Error::Config`].
    pub fn validate(&self) -> Result<(), Error> {
        match self {
            Self::Kv(config) => config.validate(),
            Self::Mqar(config) => config.validate(),
            Self::Multihop(config) => config.validate(),
            Self::Babi(config) => config.validate(),
            Self::Squad(config) => config.validate(),
            Self::Phonebook(config) => config.validate(),
            Self::Text(config) => config.validate(),
            Self::Jsonl(config) => config.validate(),
        }
    }

    /// Questions per context; none if the file decides.
    pub fn queries_per_context(&self) -> Option<usize> {
        match self {
            Self::Kv(config) => Some(config.queries_per_context),
            Self::Mqar(config) => Some(config.queries_per_context),
            Self::Multihop(config) => Some(config.queries_per_context),
            Self::Phonebook(config) if config.train_file.is_some() => None,
            Self::Phonebook(config) => Some(config.queries_per_context),
            Self::Babi(config) => Some(config.queries_per_context),
            Self::Squad(_) | Self::Text(_) => Some(1),
            Self::Jsonl(_) => None,
        }
    }

    /// The files and folders that the samples are read from, each with the key of its setting.
    pub fn files(&self) -> Vec<(&'static str, &Path)> {
        let (train, valid) = match self {
            Self::Kv(_) | Self::Mqar(_) | Self::Multihop(_) => return Vec::new(),
            Self::Text(config) => {
                let valid = config
                    .valid_path
                    .as_deref()
                    .map(|path| ("valid_path", path));
                return [("path", &*config.path)].into_iter().chain(valid).collect();
            }
            Self::Babi(config) => (config.train_file.as_deref(), config.valid_file.as_deref()),
            Self::Squad(config) => (Some(&*config.train_file), config.valid_file.as_deref()),
            Self::Phonebook(config) => (config.train_file.as_deref(), config.valid_file.as_deref()),
            Self::Jsonl(config) => (Some(&*config.train_file), config.valid_file.as_deref()),
        };
        let train = train.map(|path| ("train_file", path));
        let valid = valid.map(|path| ("valid_file", path));
        train.into_iter().chain(valid).collect()
    }

    /// A short description for people.
    pub fn describe(&self) -> String {
        match self {
            Self::Kv(config) => config.describe(),
            Self::Mqar(config) => format!("MQAR, {}", counted(config.pairs, "pair")),
            Self::Multihop(config) => {
                let MultihopConfig { pairs, hops, .. } = config;
                let [hops, pairs] =
                    [(*hops, "hop"), (*pairs, "pair")].map(|(n, one)| counted(n, one));
                format!("association over {hops}, {pairs}")
            }
            Self::Babi(BabiConfig {
                train_file: Some(file),
                ..
            }) => format!("bAbI {}", file.display()),
            Self::Babi(config) => {
                let tasks = config.tasks.iter().map(|task| format!("qa{task}"));
                let tasks: Vec<_> = tasks.collect();
                format!("bAbI {}", tasks.join(", "))
            }
            Self::Squad(config) => format!("SQuAD {}", config.train_file.display()),
            Self::Phonebook(PhonebookConfig {
                train_file: Some(file),
                ..
            }) => format!("phonebook {}", file.display()),
            Self::Phonebook(config) => format!("phonebook, {}", counted(config.entries, "name")),
            Self::Text(config) => format!("text {}", config.path.display()),
            Self::Jsonl(config) => format!("{}", config.train_file.display()),
        }
    }

    /// A user's text as this task's contexts are: line breaks are `\n`; bAbI's sentences and running text have single
    /// spaces as their white space; bAbI's and SQuAD's contexts end with a space, a generated phonebook's with a line
    /// break. What is read from JSON lines has no form of its own.
    pub fn form_context(&self, text: &str) -> String {
        let text = text.replace("\r\n", "\n").replace('\r', "\n");
        match self {
            Self::Babi(_) => format!("{} ", single_spaces(&text)),
            Self::Text(_) => single_spaces(&text),
            Self::Squad(_) => format!("{} ", text.trim()),
            Self::Phonebook(book) if book.train_file.is_none() => format!("{}\n", text.trim()),
            _ => text,
        }
    }

    /// A user's question as this task's queries are: as a context, but for a name in a generated phonebook.
    ///
    /// # Errors
    ///
    /// A question other than `Answer:` to SQuAD's variants that have the question in the context.
    pub fn form_question(&self, text: &str) -> Result<String, Error> {
        let context = self.form_context(text);
        let asked = context.trim();
        Ok(match self {
            Self::Phonebook(book) if book.train_file.is_none() => {
                format!(
                    "\n{}: ",
                    asked.strip_suffix(':').unwrap_or(asked).trim_end()
                )
            }
            Self::Squad(squad) if asked != ANSWER.trim() && squad.variant.asks_in_context() => {
                return Err(Error::Input(format!(
                    "is {asked:?}, but the model was trained with the question in the context, {}: write both, and ask {:?}",
                    match squad.variant {
                        SquadVariant::QcA => "before the paragraph",
                        _ => "behind the paragraph",
                    },
                    ANSWER.trim()
                )));
            }
            _ => context,
        })
    }

    /// Reads the tokenizer that a run of this task has saved in `path`.
    ///
    /// # Errors
    ///
    /// If it cannot be read or belongs to another task.
    pub fn kept_tokenizer(
        &self,
        tokens: &TokensConfig,
        path: impl AsRef<Path>,
    ) -> Result<TextTokenizer, Error> {
        match self.own_tokenizer()? {
            Some(tokenizer) => {
                tokenizer.check(path)?;
                Ok(tokenizer)
            }
            None => tokens.open(path),
        }
    }

    /// The tokenizer of a task that has its own.
    pub(crate) fn own_tokenizer(&self) -> Result<Option<TextTokenizer>, Error> {
        match self {
            Self::Kv(config) => config.tokenizer().map(Some),
            Self::Mqar(config) => config.tokenizer().map(Some),
            Self::Multihop(_) => MultihopConfig::tokenizer().map(Some),
            _ => Ok(None),
        }
    }

    /// The largest lengths of a task's samples, if its settings alone determine them.
    pub(crate) fn lengths(&self) -> Option<Lengths> {
        match self {
            Self::Kv(config) => Some(config.lengths()),
            Self::Mqar(config) => Some(config.lengths()),
            Self::Multihop(config) => Some(config.lengths()),
            _ => None,
        }
    }

    /// Opens the task's data. `made` is the tokenizer of a run that is resumed or evaluated, or of the whole task where this is a
    /// part of its curriculum; without it, the tokenizer is the task's own, read from a file, or trained on the training texts.
    ///
    /// # Errors
    ///
    /// Files that are missing, damaged or inconsistent; texts that do not fit `tokens`.
    pub fn open(
        &self,
        tokens: &TokensConfig,
        seed: u64,
        made: Option<TextTokenizer>,
    ) -> Result<Task, Error> {
        self.validate().map_err(|e| e.in_section("data"))?;
        tokens.validate().map_err(|e| e.in_section("tokens"))?;
        let (sources, shuffle) = match self {
            Self::Kv(config) => (config.open(seed)?, false),
            Self::Mqar(config) => (config.open(seed)?, false),
            Self::Multihop(config) => (config.open(seed)?, false),
            Self::Text(config) => return config.open(tokens, seed, made),
            Self::Babi(config) => (config.open(seed)?, config.train_file.is_some()),
            Self::Phonebook(config) => (config.open(seed)?, config.train_file.is_some()),
            Self::Squad(config) => (config.open(seed)?, true),
            Self::Jsonl(config) => (config.open(seed)?, true),
        };
        if let (Some(own), Some(lengths)) = (self.own_tokenizer()?, self.lengths()) {
            return Task::of_lengths(sources, made.unwrap_or(own), tokens, lengths);
        }
        let tokenizer = match made {
            Some(made) => made,
            None => tokens.make(|| first_texts(&sources.0, max_inspected(shuffle)))?,
        };
        let task = Task::new(sources, tokenizer, tokens);
        Task { shuffle, ..task }.with_lengths()
    }
}

/// The texts of a dataset's first examples; consecutive equal contexts are used once.
fn first_texts(
    train: &Examples,
    most: usize,
) -> Result<impl Iterator<Item = String> + Send, Error> {
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
    fn a_task_has_lengths_and_a_saved_tokenizer_can_be_reused() {
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

    #[cfg(feature = "train")]
    #[test]
    fn what_a_task_trains_on_that_another_one_holds_out_is_counted() {
        let (_folder, config) = jsonl(LINES);
        let task = config.open(&TokensConfig::default(), 0, None).unwrap();
        let held_out = task.held_out().unwrap();
        assert_eq!(task.trains_on(&held_out).unwrap(), 0);
        let last = LINES.lines().next_back().unwrap();
        let (_folder, config) = jsonl(&format!("{last}\n{LINES}"));
        let vocabulary = (*task.tokenizer).clone();
        let config = match config {
            DataConfig::Jsonl(config) => DataConfig::Jsonl(JsonlConfig {
                valid_file: Some(config.train_file.clone()),
                ..config
            }),
            other => other,
        };
        let part = config.open(&TokensConfig::default(), 0, Some(vocabulary));
        assert_eq!(part.unwrap().trains_on(&held_out).unwrap(), 2);
    }

    #[test]
    fn a_smaller_alphabet_is_encoded_by_the_tokenizer_that_is_given() {
        let of = |alphabet, made| {
            let config = KvConfig {
                alphabet,
                ..KvConfig::default()
            };
            DataConfig::Kv(config).open(&TokensConfig::default(), 0, made)
        };
        let [own, large] = [62, 512].map(|alphabet| of(alphabet, None).unwrap());
        let made = of(62, Some((*large.tokenizer).clone())).unwrap();
        let text = |task: &Task| {
            let sample = task.valid.get(3).unwrap().unwrap();
            task.tokenizer.decode(&sample.context).unwrap()
        };
        assert_eq!(text(&made), text(&own));
        let small = Some((*own.tokenizer).clone());
        let sample = of(512, small).unwrap().valid.get(0).unwrap();
        assert!(sample.is_err(), "a character that is not in the alphabet");
    }

    #[test]
    fn truncation_keeps_the_protected_end_of_a_context() {
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
        let tokenizer = tokens.make(|| first_texts(&all, 1)).unwrap();
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
            error.contains("training sample 0") && error.contains("must be kept"),
            "{error}"
        );
    }

    #[test]
    fn a_text_is_formed_as_the_task_formed_its_own() {
        let text = DataConfig::Text(super::super::TextConfig::default());
        assert_eq!(
            text.form_context(" One\r\ntwo\u{a0}three.\n\nFour\t5 "),
            "One two three. Four 5"
        );
        let kv = DataConfig::Kv(super::super::KvConfig::default());
        assert_eq!(kv.form_context("!a:1!|"), "!a:1!|");
        let babi = DataConfig::Babi(super::super::BabiConfig::default());
        let story = "Mary went home.\r\nAnn left.\n";
        assert_eq!(babi.form_context(story), "Mary went home. Ann left. ");
        let question = |data: &DataConfig, text| data.form_question(text).unwrap();
        assert_eq!(question(&babi, "Where is Mary?"), "Where is Mary? ");
        let squad = DataConfig::Squad(super::super::SquadConfig::default());
        assert_eq!(
            squad.form_context("One.\r\nTwo.  Three."),
            "One.\nTwo.  Three. "
        );
        let in_context = DataConfig::Squad(super::super::SquadConfig {
            variant: SquadVariant::QcA,
            ..Default::default()
        });
        assert_eq!(question(&squad, "Who?"), "Who? ");
        assert_eq!(question(&in_context, "Answer:"), "Answer: ");
        let error = in_context.form_question("Who?").unwrap_err().to_string();
        assert!(error.contains("before the paragraph"), "{error}");
        let book = DataConfig::Phonebook(super::super::PhonebookConfig::default());
        assert_eq!(
            book.form_context("Ann Lee: 1\r\nBo Ray: 2"),
            "Ann Lee: 1\nBo Ray: 2\n"
        );
        for asked in ["Ann Lee", "Ann Lee:", "\nAnn Lee: "] {
            assert_eq!(question(&book, asked), "\nAnn Lee: ");
        }
    }

    #[test]
    fn a_long_context_is_an_error_unless_truncation_is_allowed() {
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
            (
                task.lengths.context,
                task.lengths.truncated,
                task.lengths.inspected
            ),
            (5, 2, 3)
        );
    }
}
