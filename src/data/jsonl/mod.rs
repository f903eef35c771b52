//! A user's contexts, questions and answers in JSON Lines: one JSON object per line.

mod record;

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::data::dataset::Dataset;
use serde::{Deserialize, Serialize};

use self::record::{ParsedLine, parse};
use super::Example;
use super::json::shorten;
use super::positioned::PositionedFile;
use super::source::{BOM, Sources, warn_of_known};
use crate::error::{Error, at_least_one, require};
use crate::support::fs::check_file;

/// Longest line in bytes.
const MAX_LINE: usize = 64 << 20;

/// Settings of data in JSON Lines.
///
/// A file has one JSON object per line, with `context`, `query`, `target` and optionally `answers` (other texts that count as
/// right) and `id` (a string or an integer); or with `context` and `questions`, an array of objects with `query`, `target` and
/// optionally `answers`, not as many in every line. Blank lines and a byte-order mark at the start are ignored.
///
/// ```json
/// {"context": "Mary is in the garden. ", "query": "Where is Mary? ", "target": "garden"}
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct JsonlConfig {
    /// Training samples.
    pub train_file: PathBuf,
    /// Validation samples, all of which are used; without it they are the end of `train_file`.
    pub valid_file: Option<PathBuf>,
    /// Number of samples at the end of `train_file` that are held out without a `valid_file`. Others with a
    /// context of theirs are left out, wherever they are, unless those are all: no context is trained on that is held out.
    pub valid_samples: usize,
}

impl Default for JsonlConfig {
    fn default() -> Self {
        Self {
            train_file: PathBuf::new(),
            valid_file: None,
            valid_samples: 1_000,
        }
    }
}

impl JsonlConfig {
    /// Checks every value.
    ///
    /// # Errors
    ///
    /// The first value that cannot work, by its key and with the reason: [`Error::Config`].
    pub fn validate(&self) -> Result<(), Error> {
        let named = !self.train_file.as_os_str().is_empty();
        let problem = "must name a file with one JSON object per line: \
                       {\"context\": …, \"query\": …, \"target\": …}";
        require(named, "train_file", "\"\"", problem)?;
        at_least_one([("valid_samples", self.valid_samples)])
    }

    /// The training and the validation data. Files need no seed; the parameter is that of other tasks.
    ///
    /// Each file is read once, and every line checked. After that a sample takes one positioned read; any number of threads can
    /// read at the same time. Memory: 16 bytes a sample; while opening also the longest line and about 50 bytes for every sample
    /// with an id.
    ///
    /// # Errors
    ///
    /// If a file has no sample, or a line is not such an object, has an unknown field, is not UTF-8 or longer than 64 MiB, or has the
    /// id of an earlier line: the error names the line and, if there is one, the field. Also too few samples to hold any out.
    pub fn open(&self, seed: u64) -> Result<Sources, Error> {
        let _ = seed;
        self.validate()?;
        let train = JsonlDataset::open(&self.train_file)?;
        let (train, valid) = match &self.valid_file {
            Some(path) => {
                let valid = JsonlDataset::open(path)?;
                let trained = train.contexts();
                let samples = valid.samples.iter();
                warn_of_known(samples.map(|sample| trained.contains(&sample.context)));
                (train, valid)
            }
            None => train.hold_out(self.valid_samples)?,
        };
        Ok((Box::new(train), Box::new(valid)))
    }
}

/// Samples of a file, which stay on disk.
struct JsonlDataset {
    file: Arc<JsonlFile>,
    samples: Arc<[Sample]>,
}

struct JsonlFile {
    path: PathBuf,
    file: PositionedFile,
}

#[derive(Clone, Copy, Debug)]
struct Sample {
    /// The offset in bytes of its line.
    start: u64,
    /// A hash of its context.
    context: u64,
}

impl JsonlDataset {
    /// Opens a file and checks every line.
    fn open(path: &Path) -> Result<Self, Error> {
        check_file(path)?;
        let file = File::open(path).map_err(Error::io(path, "cannot open"))?;
        let mut reader = BufReader::with_capacity(1 << 18, &file);
        let mut checker = LineChecker::default();
        let (mut line, mut number, mut at) = (Vec::new(), 0, 0);
        loop {
            line.clear();
            let mut limited = reader.by_ref().take(MAX_LINE as u64 + 1);
            let read = limited.read_until(b'\n', &mut line);
            match read.map_err(Error::io(path, "cannot read"))? {
                0 => break,
                read => {
                    number += 1;
                    let result = checker.check(&line, number, at);
                    result.map_err(|problem| Error::file(path, problem))?;
                    at += read as u64;
                }
            }
        }
        if checker.samples.is_empty() {
            return Err(Error::file(path, "has no sample: every line is blank"));
        }
        let file = JsonlFile {
            path: path.into(),
            file: PositionedFile::new(file),
        };
        Ok(Self {
            file: Arc::new(file),
            samples: checker.samples.into(),
        })
    }

    /// Splits off the last `count` samples, see [`JsonlConfig::valid_samples`]; fails if that would leave no sample in one of the two.
    fn hold_out(self, count: usize) -> Result<(Self, Self), Error> {
        let all = self.len();
        let path = &self.file.path;
        if count == 0 || count >= all {
            let problem = format!(
                "has {all} samples, so data.valid_samples = {count} cannot be held out: change it or \
                 set data.valid_file"
            );
            return Err(Error::file(path, problem));
        }
        let part = |samples: Arc<[Sample]>| Self {
            file: self.file.clone(),
            samples,
        };
        let (others, held_out) = self.samples.split_at(all - count);
        let held_out = part(held_out.into());
        let contexts = held_out.contexts();
        let others = others.iter().copied();
        let apart = |sample: &Sample| !contexts.contains(&sample.context);
        let train: Arc<[Sample]> = others.clone().filter(apart).collect();
        let path = path.display();
        if train.is_empty() {
            log::warn!(
                "{path}: all samples have a context that is held out: no context is held out, and of the questions those that differ"
            );
            return Ok((part(others.collect()), held_out));
        }
        let before = all - count;
        if train.len() < before {
            log::warn!(
                "{path}: {} of {before} training samples are left out, because their context is held out too; data.valid_file \
                 may name other samples",
                before - train.len()
            );
        }
        Ok((part(train), held_out))
    }

    fn contexts(&self) -> HashSet<u64> {
        self.samples.iter().map(|sample| sample.context).collect()
    }
}

impl Dataset<Result<Example, Error>> for JsonlDataset {
    fn get(&self, index: usize) -> Option<Result<Example, Error>> {
        self.samples
            .get(index)
            .map(|sample| self.file.read(*sample))
    }

    fn len(&self) -> usize {
        self.samples.len()
    }
}

impl JsonlFile {
    fn read(&self, Sample { start, context }: Sample) -> Result<Example, Error> {
        let line = self.file.line(start, MAX_LINE);
        let line = line.map_err(Error::io(&self.path, "cannot read"))?;
        let text = std::str::from_utf8(&line).ok();
        let sample = text.and_then(|text| parse(text, 1).ok());
        let is_same = |example: &Example| hash_of(&example.context) == context;
        match sample.map(|sample| sample.example).filter(is_same) {
            Some(example) => Ok(example),
            None => {
                let problem = format!(
                    "was changed since it was opened: its sample does not begin at byte {start} any more"
                );
                Err(Error::file(&self.path, problem))
            }
        }
    }
}

/// Checks lines, and collects what is needed of them.
#[derive(Default)]
struct LineChecker {
    samples: Vec<Sample>,
    /// The line of each id, by a 128-bit hash of the id.
    ids: HashMap<[u64; 2], usize>,
}

impl LineChecker {
    /// Checks the line that begins at byte `at`; or the problem with it.
    fn check(&mut self, line: &[u8], number: usize, at: u64) -> Result<(), String> {
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        if line.len() > MAX_LINE {
            return Err(format!(
                "line {number}: is longer than {} MiB",
                MAX_LINE >> 20
            ));
        }
        let text = std::str::from_utf8(line)
            .map_err(|e| format!("line {number}, byte {}: is not UTF-8", e.valid_up_to()))?;
        let marked = text.strip_prefix(BOM).filter(|_| number == 1);
        let start = at + marked.map_or(0, |_| BOM.len_utf8() as u64);
        let text = marked.unwrap_or(text);
        if text.trim().is_empty() {
            return Ok(());
        }
        let ParsedLine { example, id } = parse(text, number)?;
        if let Some(id) = id {
            let hashes = [0_u8, 1].map(|salt| hash_of((salt, &id)));
            if let Some(first) = self.ids.insert(hashes, number) {
                let id = shorten(&id);
                return Err(format!(
                    "line {number}, `id`: {id} is already the id of line {first}"
                ));
            }
        }
        self.samples.push(Sample {
            start,
            context: hash_of(&example.context),
        });
        Ok(())
    }
}

fn hash_of(value: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = r#"{"context": "c", "query": "q", "target": "t"}"#;

    fn of(text: impl AsRef<[u8]>) -> Result<Vec<Example>, Error> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mine.jsonl");
        std::fs::write(&path, text).unwrap();
        let dataset = JsonlDataset::open(&path)?;
        assert!(dataset.get(dataset.len()).is_none());
        dataset.iter().collect()
    }

    fn line(context: &str, id: &str) -> String {
        format!(r#"{{"context": "{context}", "query": "q", "target": "t", "id": {id}}}"#)
    }

    #[test]
    fn lines_are_samples_in_order() {
        let text = format!(
            "\u{feff}{}\r\n\n  \n{}\n{LINE}\n\n{}",
            line("é\\n", "\"a\""),
            line("2", "7"),
            line(&"long ".repeat(20_000), "\"7\"")
        );
        let found = of(text).unwrap();
        let contexts: Vec<_> = found.iter().map(|e| e.context.as_str()).collect();
        assert_eq!(contexts[..3], ["é\n", "2", "c"]);
        assert_eq!(contexts[3].len(), 100_000);
        assert_eq!(found[0].questions[0].query, "q");
    }

    #[test]
    fn errors_name_the_line_and_the_field() {
        let id = |id| line("c", id);
        for (lines, words) in [
            (vec![LINE, "{"], vec!["line 2, column 1"]),
            (
                vec![LINE, "", r#"{"context": 5}"#],
                vec!["line 3", "`context`", "integer `5`"],
            ),
            (
                vec![LINE, &LINE.replace("query", "qery")],
                vec!["line 2", "`qery`", "`answers`"],
            ),
            (
                vec![&id("1"), &id("2"), &id("1")],
                vec!["line 3, `id`", "already the id of line 1"],
            ),
            (
                vec![&id("\"x\""), "", &id("\"x\"")],
                vec!["line 3, `id`: \"x\"", "line 1"],
            ),
            (vec!["", " "], vec!["no sample"]),
            (vec![], vec!["no sample"]),
        ] {
            let error = of(lines.join("\n")).unwrap_err();
            assert!(error.is_user_error());
            let error = error.to_string();
            assert!(
                error.contains("mine.jsonl") && !error.contains('\n'),
                "{error}"
            );
            for word in words {
                assert!(error.contains(word), "{error}");
            }
        }
        let bytes = [LINE.as_bytes(), b"\n{\"context\": \"\xff\"}"].concat();
        let error = of(bytes).unwrap_err().to_string();
        assert!(error.contains("line 2, byte 13: is not UTF-8"), "{error}");
    }

    #[test]
    fn a_line_that_is_too_long_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("long.jsonl");
        let file = File::create(&path).unwrap();
        file.set_len(MAX_LINE as u64 + 2).unwrap();
        let error = JsonlDataset::open(&path).err().unwrap().to_string();
        assert!(error.contains("line 1: is longer than 64 MiB"), "{error}");
    }

    #[test]
    fn the_end_is_held_out_and_threads_can_read_at_the_same_time() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mine.jsonl");
        let lines: Vec<_> = (0..50)
            .map(|n| line(&format!("c{n}"), &n.to_string()))
            .collect();
        std::fs::write(&path, lines.join("\n")).unwrap();
        let mut config = JsonlConfig {
            train_file: path.clone(),
            valid_samples: 10,
            ..JsonlConfig::default()
        };
        let (train, valid) = config.open(0).unwrap();
        assert_eq!((train.len(), valid.len()), (40, 10));
        assert_eq!(valid.get(0).unwrap().unwrap().context, "c40");
        assert!(train.get(40).is_none());
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for n in (0..40).rev() {
                        assert_eq!(train.get(n).unwrap().unwrap().context, format!("c{n}"));
                    }
                });
            }
        });
        // Of a context that is held out nothing is trained on.
        let same = lines.iter().enumerate().map(|(n, text)| match n {
            3 | 39..42 => line("same", &n.to_string()),
            _ => text.clone(),
        });
        let other = folder.path().join("same.jsonl");
        std::fs::write(&other, same.collect::<Vec<_>>().join("\n")).unwrap();
        let cut = JsonlConfig {
            train_file: other,
            ..config.clone()
        };
        let (train_of_cut, valid_of_cut) = cut.open(0).unwrap();
        assert_eq!((train_of_cut.len(), valid_of_cut.len()), (38, 10));
        assert_eq!(train_of_cut.get(3).unwrap().unwrap().context, "c4");
        config.valid_samples = 50;
        let error = config.open(0).err().unwrap().to_string();
        assert!(
            error.contains("50 samples") && error.contains("data.valid_file"),
            "{error}"
        );
        config.valid_file = Some(path.clone());
        assert_eq!(config.open(0).unwrap().1.len(), 50);
        // A change of the file is noticed.
        std::fs::write(&path, "x".repeat(10_000)).unwrap();
        let error = train.get(3).unwrap().unwrap_err().to_string();
        assert!(error.contains("was changed"), "{error}");
        std::fs::remove_file(&path).unwrap();
        assert!(config.open(0).err().unwrap().is_user_error());
        assert!(
            JsonlConfig::default()
                .open(0)
                .err()
                .unwrap()
                .to_string()
                .contains("train_file")
        );
    }
}
