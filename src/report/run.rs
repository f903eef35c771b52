//! Reads a run folder: `config.toml`, `metrics.jsonl`, and `eval.json` if there is one.

use std::io::ErrorKind::{NotADirectory, NotFound};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Map, Value as Json};

use crate::error::Error;
use crate::support::fs::{is_file, read_if_exists};
use crate::train::checkpoint::RunFolder;
use crate::train::config::RunConfig;
use crate::train::evaluation::{Evaluation, Row};
use crate::train::metrics::Measure;

/// Measured values, by key.
pub type Values = Map<String, Json>;

/// An evaluation on the validation set during training.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Point {
    /// Optimizer step.
    pub step: usize,
    /// Stage of a curriculum, 0 if there is none.
    pub stage: usize,
    /// The measured values.
    pub values: Values,
}

/// A run, finished or not.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Run {
    /// Its folder's name; its path, if another run of the report is called so.
    pub name: String,
    /// Its settings.
    pub config: RunConfig,
    /// Evaluations on the validation set, in the order of the log.
    pub valid: Vec<Point>,
    /// The last step in the log.
    pub step: usize,
    /// The lines of the log.
    pub(super) log: Vec<Line>,
    /// The results of `gradmem eval`, if there are any.
    pub eval: Option<Evaluation>,
    /// The step of the best weights.
    kept: Option<usize>,
}

impl Run {
    /// Reads a run folder. Training may still write to it: an unfinished last line of the log is ignored.
    ///
    /// # Errors
    ///
    /// A configuration that is missing or wrong; a log or evaluation that is damaged.
    pub fn open(folder: impl AsRef<Path>) -> Result<Self, Error> {
        let folder = folder.as_ref();
        let config = RunConfig::open(folder.join("config.toml"))?;
        let lines = log_of(folder)?;
        let (valid, step) = evaluations(&lines);
        let file = folder.join("eval.json");
        let eval = read_if_exists(&file)?.map(|bytes| {
            serde_json::from_slice(&bytes).map_err(|e| {
                let again = "evaluate the run again, or remove the file";
                Error::file(
                    &file,
                    format!("is not what `gradmem eval` writes ({e}): {again}"),
                )
            })
        });
        let eval = eval.transpose()?.filter(|eval: &Evaluation| {
            let now = RunFolder::open(folder).and_then(|folder| folder.weights_hash());
            let current = eval.weights.is_empty() || now.is_ok_and(|now| now == eval.weights);
            if !current {
                log::warn!(
                    "{} is of other weights than the run has now and is ignored: evaluate the run again",
                    file.display()
                );
            }
            current
        });
        Ok(Self {
            name: name_of(folder),
            config,
            valid,
            step,
            log: lines,
            eval,
            kept: RunFolder::open(folder)
                .ok()
                .and_then(|folder| folder.best_step()),
        })
    }

    /// The evaluations on the run's own task, without those on the easier data of earlier curriculum stages.
    pub fn last_stage(&self) -> impl Iterator<Item = &Point> {
        let last = self.config.train.curriculum.len();
        self.valid.iter().filter(move |point| point.stage == last)
    }

    /// The curriculum's easier version of the task that the run has not finished, by its first setting; none if
    /// the run is at its own task.
    pub fn unfinished_stage(&self) -> Option<&str> {
        unfinished(&self.config, &self.valid)
    }

    /// The evaluation at which `measure` was best; the last one if several are equal.
    pub fn best(&self, measure: Measure) -> Option<&Point> {
        let mut best: Option<(&Point, f64)> = None;
        for point in self.last_stage() {
            if let Some(value) = measure.in_values(&point.values)
                && best.is_none_or(|(_, before)| value == before || measure.better(value, before))
            {
                best = Some((point, value));
            }
        }
        best.map(|(point, _)| point)
    }

    /// `measure` at the evaluation of the best weights, or where there are none at that at which `by` was best; without one, the
    /// result of `gradmem eval` with the trained K.
    pub fn value(&self, measure: Measure, by: Measure) -> Option<f64> {
        let kept = self.kept;
        let kept = self.last_stage().find(|point| Some(point.step) == kept);
        let logged = kept
            .or_else(|| self.best(by))
            .and_then(|point| measure.in_values(&point.values));
        logged.or_else(|| measure.in_values(&self.trained_row()?.scores))
    }

    /// The step of the first evaluation at which `measure` was at least `value`.
    pub fn steps_to(&self, measure: Measure, value: f64) -> Option<usize> {
        let reached = |point: &&Point| measure.in_values(&point.values).is_some_and(|x| x >= value);
        self.last_stage().find(reached).map(|point| point.step)
    }

    /// K in training; none for a method without WRITE, or with random numbers of steps.
    pub fn write_steps(&self) -> Option<usize> {
        use crate::method::MethodName;
        match self.config.method {
            // There is none where they are random.
            MethodName::GradMem => match self.config.memory.random_write_steps {
                Some(_) => None,
                None => Some(self.config.memory.write_steps),
            },
            MethodName::Rmt => Some(self.config.rmt.write_steps),
            MethodName::Armt => Some(1),
            MethodName::InContext => None,
        }
    }

    fn trained_row(&self) -> Option<&Row> {
        let rows = &self.eval.as_ref()?.rows;
        rows.iter()
            .find(|row| row.write_steps == self.write_steps())
    }
}

/// The last part of a run's path; of one of several seeds, which is called `seed-N`, also the part before it.
fn name_of(folder: &Path) -> String {
    let part = |path: &Path| {
        path.file_name()
            .map(|name| name.to_string_lossy().into_owned())
    };
    // A path such as `runs/a/..` has no file name.
    let name = part(folder).unwrap_or_else(|| folder.display().to_string());
    match folder.parent().and_then(part).filter(|_| is_seed(folder)) {
        Some(parent) => format!("{parent}/{name}"),
        None => name,
    }
}

/// Whether it is called as `gradmem train --seeds` calls the folders of its runs.
fn is_seed(folder: &Path) -> bool {
    let name = folder.file_name().unwrap_or_default();
    name.to_string_lossy().starts_with("seed-")
}

/// Whether a folder is a run: whether it has a `config.toml`.
///
/// # Errors
///
/// If the system does not say: the folder must not be read, for example.
pub fn is_run(folder: impl AsRef<Path>) -> Result<bool, Error> {
    is_file(&folder.as_ref().join("config.toml"))
}

/// Whether a folder among others is a run. One that cannot be read is no reason not to show the others: a warning says so.
fn is_run_among_others(folder: &Path) -> Option<bool> {
    let found = is_run(folder);
    found
        .inspect_err(|e| log::warn!("{e}: it is left out"))
        .ok()
}

/// The runs of several seeds in a folder, which may itself be a run.
fn seeds_in(folder: &Path) -> Vec<PathBuf> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) if [NotADirectory, NotFound].contains(&e.kind()) => return Vec::new(),
        Err(e) => {
            let e = Error::io(folder, "cannot read")(e);
            log::warn!("{e}: runs in it are left out");
            return Vec::new();
        }
    };
    let paths = entries.flatten().map(|entry| entry.path());
    let mut seeds: Vec<_> = paths
        .filter(|path| is_seed(path) && is_run_among_others(path) == Some(true))
        .collect();
    seeds.sort();
    seeds
}

/// The run folders among `folders`, directly inside them, and the seeds' folders in all of these, each once.
///
/// # Errors
///
/// A folder that neither is a run nor contains one, or cannot be read.
pub fn find_folders(folders: &[impl AsRef<Path>]) -> Result<Vec<PathBuf>, Error> {
    let mut found = Vec::new();
    for folder in folders {
        let folder = folder.as_ref();
        if is_run(folder)? {
            found.push(folder.to_path_buf());
            found.extend(seeds_in(folder));
            continue;
        }
        let entries = std::fs::read_dir(folder).map_err(Error::io(folder, "cannot read"))?;
        let mut inside = Vec::new();
        for entry in entries {
            let path = entry.map_err(Error::io(folder, "cannot read"))?.path();
            if let Some(is_run) = is_run_among_others(&path) {
                inside.extend(seeds_in(&path));
                inside.extend(is_run.then_some(path));
            }
        }
        if inside.is_empty() {
            let problem = "is neither a run folder, which has a config.toml, nor a folder of runs";
            return Err(Error::file(folder, problem));
        }
        inside.sort();
        found.extend(inside);
    }
    let mut seen = std::collections::HashSet::new();
    found.retain(|folder| seen.insert(folder.canonicalize().unwrap_or_else(|_| folder.clone())));
    Ok(found)
}

/// A line of the log.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Line {
    pub step: usize,
    pub split: String,
    #[serde(default)]
    pub stage: Option<usize>,
    #[serde(flatten)]
    pub values: Values,
}

/// The lines of a run's log; none if it has no log.
fn log_of(folder: &Path) -> Result<Vec<Line>, Error> {
    let log = folder.join("metrics.jsonl");
    match read_if_exists(&log)? {
        Some(bytes) => parse_log(&bytes).map_err(|problem| Error::file(&log, problem)),
        None => Ok(Vec::new()),
    }
}

fn unfinished<'a>(config: &'a RunConfig, valid: &[Point]) -> Option<&'a str> {
    let stage = valid.iter().map(|point| point.stage).max()?;
    let version = config.train.curriculum.get(stage)?;
    version.split_whitespace().next()
}

/// As [`Run::unfinished_stage`], of a run's folder and its settings, by its log alone.
///
/// # Errors
///
/// A log that is damaged.
pub fn unfinished_stage(
    folder: impl AsRef<Path>,
    config: &RunConfig,
) -> Result<Option<&str>, Error> {
    let (valid, _) = evaluations(&log_of(folder.as_ref())?);
    Ok(unfinished(config, &valid))
}

/// The lines of a log; or an error that names the malformed line.
fn parse_log(bytes: &[u8]) -> Result<Vec<Line>, String> {
    let mut parsed = Vec::new();
    let lines: Vec<&[u8]> = bytes.split(|byte| *byte == b'\n').collect();
    for (at, line) in lines.iter().enumerate() {
        let unfinished = at + 1 == lines.len();
        match serde_json::from_slice(line) {
            Ok(line) => parsed.push(line),
            Err(_) if unfinished => break,
            Err(e) => {
                let number = at + 1;
                return Err(format!("line {number} is not a line of a run's log ({e})"));
            }
        }
    }
    Ok(parsed)
}

/// The evaluations in a log and its last step.
fn evaluations(lines: &[Line]) -> (Vec<Point>, usize) {
    let step = lines.iter().map(|line| line.step).max().unwrap_or(0);
    let points = lines
        .iter()
        .filter(|line| line.split == "valid")
        .map(|line| Point {
            step: line.step,
            stage: line.stage.unwrap_or(0),
            values: line.values.clone(),
        });
    (points.collect(), step)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A run with this log, and with overrides of a preset's settings.
    pub fn run(overrides: &[&str], log: &str) -> Run {
        let name = overrides.join("-");
        let overrides = [&["train.curriculum=[]"], overrides].concat();
        let overrides: Vec<String> = overrides.iter().map(|o| o.to_string()).collect();
        let lines = parse_log(log.as_bytes()).unwrap();
        let (valid, step) = evaluations(&lines);
        Run {
            name,
            config: RunConfig::resolve("kv-quick", &overrides).unwrap(),
            valid,
            step,
            log: lines,
            eval: None,
            kept: None,
        }
    }

    const LOG: &str = r#"{"step":50,"split":"train","lr":0.1,"exact_match":0.95}
{"step":100,"split":"valid","exact_match":0.5,"read_loss":1.5,"new":null}
{"step":200,"split":"valid","exact_match":0.92,"read_loss":0.4}
{"step":300,"split":"valid","exact_match":0.91,"read_loss":0.2}
"#;

    #[test]
    fn a_log_may_end_in_the_middle_of_a_line_but_not_break_before() {
        let exact = Measure::ExactMatch;
        for cut in [LOG.len(), LOG.len() - 1] {
            let whole = run(&[], &LOG[..cut]);
            assert_eq!((whole.valid.len(), whole.step), (3, 300));
        }
        let unfinished = run(&[], &LOG[..LOG.len() - 9]);
        assert_eq!((unfinished.valid.len(), unfinished.step), (2, 200));
        assert_eq!(run(&[], "").best(exact), None);
        assert_eq!(run(&[], "{\"step\":5").valid, []);

        let broken = LOG.replace("{\"step\":200,", "{\"step\":2");
        let error = parse_log(broken.as_bytes()).unwrap_err();
        assert!(error.contains("line 3"), "{error}");
        assert!(parse_log(b"{}\n{").unwrap_err().contains("line 1"));
    }

    #[test]
    fn best_evaluation_and_first_above_a_threshold_are_found() {
        let (exact, loss) = (Measure::ExactMatch, Measure::ReadLoss);
        let mut run = run(&[], LOG);
        assert_eq!(run.best(exact).map(|p| p.step), Some(200));
        assert_eq!(run.best(loss).map(|p| p.step), Some(300));
        assert_eq!(run.value(loss, exact), Some(0.4));
        // The best weights are those that were kept, by whatever measure.
        run.kept = Some(300);
        assert_eq!(run.value(exact, exact), run.value(exact, loss));
        assert_eq!(run.steps_to(exact, 0.9), Some(200));
        assert_eq!(run.steps_to(exact, 0.93), None);
    }

    #[test]
    fn only_the_last_stage_of_a_curriculum_counts() {
        let log = r#"{"step":1,"split":"valid","stage":0,"exact_match":1.0}
{"step":2,"split":"valid","stage":1,"exact_match":0.3}
{"step":3,"split":"valid","stage":1,"exact_match":0.95}
"#;
        let versions = r#"train.curriculum=["pairs=1 queries_per_context=1"]"#;
        let done = run(&[versions], log);
        let exact = Measure::ExactMatch;
        assert_eq!(done.best(exact).map(|p| p.step), Some(3));
        assert_eq!(done.steps_to(exact, 0.9), Some(3));
        assert_eq!(done.unfinished_stage(), None);
        let begun = run(&[versions], log.lines().next().unwrap_or_default());
        assert_eq!(begun.best(exact), None);
        let begun = run(
            &[versions],
            &format!("{}\n", log.lines().next().unwrap_or_default()),
        );
        assert_eq!(begun.best(exact), None);
        assert_eq!(begun.unfinished_stage(), Some("pairs=1"));
    }

    #[test]
    fn an_evaluation_may_have_any_of_its_parts() {
        let eval: Evaluation = serde_json::from_str("{}").unwrap();
        assert!(eval.rows.is_empty() && eval.adaptive.is_none());
        let text = r#"{"samples":5,"later":[1],"rows":[{"write_steps":null,"exact_match":0.5},
            {"write_steps":2,"exact_match":0.25,"write_accuracy":1}]}"#;
        let eval: Evaluation = serde_json::from_str(text).unwrap();
        let exact = Measure::ExactMatch;
        assert_eq!(eval.rows[0].write_steps, None);
        assert_eq!(exact.in_values(&eval.rows[1].scores), Some(0.25));

        let mut run = run(&["memory.write_steps=2"], "");
        run.eval = Some(eval);
        let accuracy = Measure::WriteAccuracy;
        assert_eq!(run.value(accuracy, exact), Some(1.0));
    }
}
