//! A phone book: the context has names and numbers, a query asks for the number of a name.

use std::path::PathBuf;

use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::generated::{self, Generates};
use super::source::Sources;
use super::{Example, JsonlConfig, Question, Split};
use crate::error::{Error, at_least_one, require, sizes};

const FIRST: [&str; 50] = [
    "Ada", "Alan", "Alice", "Amir", "Anna", "Bella", "Boris", "Carl", "Carmen", "Chloe", "Clara",
    "Dario", "David", "Diana", "Edgar", "Elena", "Emma", "Felix", "Fiona", "Frank", "George",
    "Grace", "Hana", "Henry", "Ida", "Igor", "Irene", "Ivan", "Jane", "Jonas", "Julia", "Karl",
    "Kate", "Laura", "Leo", "Linda", "Lucas", "Maria", "Martin", "Mia", "Nina", "Noah", "Olga",
    "Oscar", "Paula", "Peter", "Rosa", "Simon", "Tara", "Victor",
];
const LAST: [&str; 50] = [
    "Adams", "Baker", "Barnes", "Bennett", "Brooks", "Carter", "Chen", "Clark", "Cole", "Cooper",
    "Diaz", "Evans", "Fischer", "Foster", "Garcia", "Gray", "Hall", "Harris", "Hill", "Hughes",
    "Ivanov", "Jensen", "Jones", "Keller", "Kim", "King", "Lee", "Lopez", "Marino", "Mills",
    "Moore", "Morgan", "Nguyen", "Novak", "Olsen", "Parker", "Patel", "Price", "Reed", "Rossi",
    "Sato", "Scott", "Silva", "Stone", "Turner", "Wagner", "Walker", "Ward", "Wood", "Young",
];
/// Number of different names.
const NAMES: usize = FIRST.len() * LAST.len();

/// Settings of the phone book. Generated are a context of lines `Ada Novak: 555-0142`, queries `\nAda Novak: `, targets `555-0142`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PhonebookConfig {
    /// Lines of a generated context; names are unique, numbers random.
    pub entries: usize,
    /// Queries per generated context, for different names, all answered from one WRITE.
    pub queries_per_context: usize,
    /// Training contexts that are generated, on demand; of a file all samples are used.
    pub train_samples: usize,
    /// Validation contexts that are generated or, without a `valid_file`, held out: the last lines of
    /// `train_file`.
    pub valid_samples: usize,
    /// Training contexts, in the format of [`JsonlConfig`]; without it they are generated.
    pub train_file: Option<PathBuf>,
    /// Validation contexts; without it they are the end of `train_file`.
    pub valid_file: Option<PathBuf>,
}

impl Default for PhonebookConfig {
    fn default() -> Self {
        Self {
            entries: 16,
            queries_per_context: 1,
            train_samples: 100_000,
            valid_samples: 1_000,
            train_file: None,
            valid_file: None,
        }
    }
}

impl PhonebookConfig {
    /// Checks every value.
    ///
    /// # Errors
    ///
    /// The first value that cannot work, by its key and with the reason: [`Error::Config`].
    pub fn validate(&self) -> Result<(), Error> {
        let (entries, queries) = (self.entries, self.queries_per_context);
        sizes([("entries", entries), ("queries_per_context", queries)])?;
        at_least_one([
            ("train_samples", self.train_samples),
            ("valid_samples", self.valid_samples),
        ])?;
        let problem = format!("there are only {NAMES} different names");
        require(entries <= NAMES, "entries", entries, problem)?;
        let problem = format!("must be at most data.entries = {entries}");
        require(queries <= entries, "queries_per_context", queries, problem)?;
        if let (Some(valid), None) = (&self.valid_file, &self.train_file) {
            let problem =
                "needs data.train_file too: generated contexts have generated validation data";
            return Err(Error::config("valid_file", valid.display(), problem));
        }
        Ok(())
    }

    /// The training and the validation data; `seed` is for generated contexts.
    ///
    /// # Errors
    ///
    /// See [`PhonebookConfig::validate`] and, for files, [`JsonlConfig::open`].
    pub fn open(&self, seed: u64) -> Result<Sources, Error> {
        self.validate()?;
        if let Some(train_file) = self.train_file.clone() {
            let files = JsonlConfig {
                train_file,
                valid_file: self.valid_file.clone(),
                valid_samples: self.valid_samples,
            };
            return files.open(seed);
        }
        generated::open(self, seed)
    }
}

impl Generates for PhonebookConfig {
    const STREAM: &'static [u8; 8] = b"phoneboo";

    fn validate(&self) -> Result<(), Error> {
        PhonebookConfig::validate(self)
    }

    fn samples(&self, split: Split) -> usize {
        split.of(self.train_samples, self.valid_samples)
    }

    fn example(&self, _: Split, _: usize, rng: &mut ChaCha8Rng) -> Example {
        let names = rand::seq::index::sample(rng, NAMES, self.entries);
        let entries: Vec<(String, String)> = names
            .into_iter()
            .map(|name| {
                let (first, last) = (FIRST[name / LAST.len()], LAST[name % LAST.len()]);
                let (area, line) = (rng.random_range(200..1000), rng.random_range(0..10_000));
                (format!("{first} {last}"), format!("{area}-{line:04}"))
            })
            .collect();
        let asked = rand::seq::index::sample(rng, entries.len(), self.queries_per_context);
        let questions = asked
            .into_iter()
            .map(|at| Question {
                query: format!("\n{}: ", entries[at].0),
                target: entries[at].1.clone(),
                answers: Vec::new(),
            })
            .collect();
        let lines = entries.iter().map(|(n, t)| format!("{n}: {t}\n"));
        Example::new(lines.collect::<String>(), questions)
    }
}

#[cfg(test)]
mod tests {
    use burn::data::dataset::Dataset;

    use super::*;
    use crate::data::Generated;
    use std::collections::{HashMap, HashSet};

    #[test]
    fn names_are_unique_and_targets_are_their_numbers() {
        let config = PhonebookConfig {
            entries: 2_000,
            queries_per_context: 50,
            ..PhonebookConfig::default()
        };
        let example = Generated::new(config, Split::Train, 3)
            .unwrap()
            .get(9)
            .unwrap();
        let lines = example
            .context
            .lines()
            .map(|line| line.split_once(": ").unwrap());
        let book: HashMap<_, _> = lines.collect();
        assert_eq!(book.len(), 2_000);
        assert!(example.context.ends_with('\n'));
        let mut asked = HashSet::new();
        for Question { query, target, .. } in &example.questions {
            let name = query
                .strip_prefix('\n')
                .unwrap()
                .strip_suffix(": ")
                .unwrap();
            assert_eq!(book[name], target);
            assert!(target.len() == 8 && asked.insert(name), "{target}");
        }
        assert_eq!(asked.len(), 50);
        assert_eq!(FIRST.iter().collect::<HashSet<_>>().len(), 50);
        assert_eq!(LAST.iter().collect::<HashSet<_>>().len(), 50);
    }

    #[test]
    fn files_replace_generated_samples() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("book.jsonl");
        let line = r#"{"context": "Bo Li: 1\n", "query": "\nBo Li: ", "target": "1"}"#;
        std::fs::write(&path, [line; 3].join("\n")).unwrap();
        let config = PhonebookConfig {
            train_file: Some(path),
            valid_samples: 1,
            ..PhonebookConfig::default()
        };
        let (train, valid) = config.open(0).unwrap();
        assert_eq!((train.len(), valid.len()), (2, 1));
        assert_eq!(
            valid.get(0).unwrap().unwrap().questions[0].query,
            "\nBo Li: "
        );
    }

    #[test]
    fn impossible_settings_are_errors() {
        let base = PhonebookConfig::default();
        for (config, word) in [
            (
                PhonebookConfig {
                    entries: 0,
                    ..base.clone()
                },
                "entries",
            ),
            (
                PhonebookConfig {
                    entries: 2_501,
                    ..base.clone()
                },
                "only 2500 different names",
            ),
            (
                PhonebookConfig {
                    queries_per_context: 17,
                    ..base.clone()
                },
                "data.entries = 16",
            ),
            (
                PhonebookConfig {
                    train_samples: 0,
                    ..base.clone()
                },
                "train_samples",
            ),
            (
                PhonebookConfig {
                    valid_file: Some("x".into()),
                    ..base
                },
                "data.train_file",
            ),
        ] {
            let error = config.open(0).err().unwrap().to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
