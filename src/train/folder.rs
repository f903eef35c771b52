//! The folder of a run.
//!
//! | file | contents |
//! |---|---|
//! | `config.toml` | every setting of the run; of a method of another program (`Training`) it is `training.toml` |
//! | `tokenizer.json` | the task's tokenizer |
//! | `data.sha256` | hashes of the tokenized samples, one line for each version of the task |
//! | `metrics.jsonl` | a line for each log interval and each evaluation |
//! | `eval.json` | results of `gradmem eval` |
//! | `best.safetensors` | the weights with the best validation metric |
//! | `last.safetensors` | the latest weights and the run's state |
//! | `optimizer-STEP.bin` | the optimizer's moments at that state |
//! | `average-STEP.safetensors` | the average of the weights at that state, if there is one |
//! | `checkpoints/STEP` | an earlier checkpoint, as the run's folder was then (`train.keep_checkpoints`): itself a run, which stays once it was trained on or evaluated |

use std::fs::{File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::config::{LrDecay, RunConfig, TrainConfig};
use super::metrics_log::MetricsLog;
use super::overrides::Difference;
use super::own_settings::{OWN, OwnSettings};
use super::results::Evaluation;
use crate::data::TextTokenizer;
use crate::error::Error;
use crate::support::fs::{
    finished, hex, is_file, read_if_exists, remove_unfinished, write_atomically,
};

/// The settings. A folder with this file is a run.
pub(super) const CONFIG: &str = "config.toml";
/// The tokenizer.
pub(super) const TOKENIZER: &str = "tokenizer.json";
/// The best weights.
pub(super) const BEST: &str = "best.safetensors";
/// The latest weights.
pub(super) const LAST: &str = "last.safetensors";
/// The log.
pub(super) const METRICS: &str = "metrics.jsonl";
/// The folder of earlier checkpoints.
pub(super) const KEPT: &str = "checkpoints";
/// What makes a folder a run, beside the files of a checkpoint that have its step in their names; those that make it one to
/// open come last.
pub(super) const RUN_FILES: [&str; 7] = [TOKENIZER, DATA, BEST, LAST, METRICS, OWN, CONFIG];
/// What the names of the language model's parameters begin with.
const MODEL: &str = "model.";
/// The hashes of the samples that the run began with.
const DATA: &str = "data.sha256";
/// The results of evaluations.
const EVAL: &str = "eval.json";
/// What a training locks.
const LOCK: &str = ".lock";

/// The settings that may change when a run resumes.
/// A path may be another one, but not be there or not: data are known by their hash.
const MAY_CHANGE: [&str; 12] = [
    "model.from",
    "data.path",
    "data.train_file",
    "data.valid_file",
    "data.valid_path",
    "train.steps",
    "train.stop_metric",
    "train.stop_value",
    "train.patience",
    "train.keep_checkpoints",
    "train.meta_gradient",
    "train.micro_batch",
];

/// Whether a training in this folder goes on from a checkpoint.
///
/// # Errors
///
/// If there is none, and the log goes on behind the first evaluation: there was one. To begin again would remove the log and the best
/// weights.
pub(super) fn has_checkpoint(folder: &Path, eval_every: usize) -> Result<bool, Error> {
    let last = folder.join(LAST);
    if last.exists() {
        return Ok(true);
    }
    let step = MetricsLog::last_step(&folder.join(METRICS))?;
    match step.filter(|step| *step > eval_every) {
        None => Ok(false),
        Some(step) => Err(Error::file(
            last,
            format!(
                "is missing, and metrics.jsonl goes on to step {step}: put it back, or train in another folder to begin again"
            ),
        )),
    }
}

/// A run's folder.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    /// Held while a training runs in the folder.
    lock: Option<File>,
    /// Whether checkpoints are without the language model's weights.
    without_model: bool,
}

impl RunFolder {
    /// The folder of an existing run, for reading.
    ///
    /// # Errors
    ///
    /// If the folder holds no run.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        if !is_file(&path.join(CONFIG))? {
            return Err(Error::file(
                path,
                match is_file(&path.join(OWN))? {
                    true => "is a run of another program (training.toml): that program opens it",
                    false => {
                        "is not a run folder (it has no config.toml); `gradmem train` makes one"
                    }
                },
            ));
        }
        Ok(Self::unlocked(path))
    }

    /// A folder in which nobody trains, with all weights in its checkpoints.
    pub(super) fn unlocked(path: &Path) -> Self {
        Self {
            path: path.into(),
            lock: None,
            without_model: false,
        }
    }

    /// The folder for a training: a new one, or that of a run to resume, which may differ from `config` in the settings of
    /// [`MAY_CHANGE`] only. `data` has the hashes of the samples, one line for each version of the task.
    ///
    /// # Errors
    ///
    /// If the folder holds a run of another configuration or other samples, another process trains in it,
    /// or it holds files that belong to no run.
    pub(super) fn for_training(
        path: impl AsRef<Path>,
        config: &RunConfig,
        tokenizer: &TextTokenizer,
        data: &str,
    ) -> Result<Self, Error> {
        let path = path.as_ref();
        let file = path.join(CONFIG);
        let begun = file.exists().then(|| RunConfig::open(&file)).transpose()?;
        let begun = begun.as_ref();
        let begun = begun.map(|begun| (config.differences(begun), &begun.train));
        let folder = Self::begun(path, begun, &config.train, data)?.of_run(config);
        write_atomically(path.join(TOKENIZER), tokenizer.to_json()?.as_bytes())?;
        // Last: this file makes the folder a run.
        write_atomically(&file, config.to_toml()?.as_bytes())?;
        Ok(folder)
    }

    /// The same for a training of another program's method, with its settings.
    pub(super) fn for_own(
        path: impl AsRef<Path>,
        settings: &OwnSettings,
        data: &str,
    ) -> Result<Self, Error> {
        let path = path.as_ref();
        let file = path.join(OWN);
        let begun = OwnSettings::open(path)?;
        let begun = begun.as_ref();
        let begun = begun.map(|begun| (settings.differences(begun), &begun.train));
        let folder = Self::begun(path, begun, &settings.train, data)?;
        write_atomically(&file, settings.to_toml()?.as_bytes())?;
        Ok(folder)
    }

    /// The folder, made if there is none, and locked for this process: that of the run that `begun` before, of which it
    /// says the settings that differ and those of the outer loop, or an empty one.
    fn begun(
        path: &Path,
        begun: Option<(Vec<Difference>, &TrainConfig)>,
        train: &TrainConfig,
        data: &str,
    ) -> Result<Self, Error> {
        let is_new = begun.is_none();
        match begun {
            Some((differences, begun)) => check_settings(path, differences, [train, begun])?,
            None if path.is_dir() => check_empty(path)?,
            None => {}
        }
        std::fs::create_dir_all(path).map_err(Error::io(path, "cannot make the folder"))?;
        let lock = lock(path)?;
        remove_unfinished(path, |name| finished(name).is_some_and(is_of_a_run));
        let folder = Self {
            lock: Some(lock),
            ..Self::unlocked(path)
        };
        match is_new {
            true => write_atomically(path.join(DATA), data.as_bytes())?,
            false => folder.check_data(|begun| begun == data)?,
        }
        Ok(folder)
    }

    /// Fails unless `data`, the hash of the samples of the run's own task, is that of the last version of the task that the run
    /// began with.
    pub(super) fn check_own_data(&self, data: &str) -> Result<(), Error> {
        self.check_data(|begun| begun.lines().last() == Some(data))
    }

    /// Fails unless `data`, hashes of samples, are those of the run by what it began with.
    fn check_data(&self, are_those: impl Fn(&str) -> bool) -> Result<(), Error> {
        let file = self.path.join(DATA);
        let Some(begun) = read_if_exists(&file)? else {
            return Ok(());
        };
        let begun = String::from_utf8_lossy(&begun);
        if are_those(&begun) {
            return Ok(());
        }
        Err(Error::file(
            &self.path,
            "began with other samples or another tokenizer than there are now: \
             put its files back, or begin another run",
        ))
    }

    /// The path of the folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The same, as a run of these settings has it.
    pub(super) fn of_run(self, config: &RunConfig) -> Self {
        Self {
            without_model: config.keeps_model_elsewhere(),
            ..self
        }
    }

    /// Whether checkpoints have this parameter.
    pub(super) fn keeps(&self, name: &str) -> bool {
        !(self.without_model && name.starts_with(MODEL))
    }

    /// Whether this process trains in the folder.
    pub(super) fn is_locked(&self) -> bool {
        self.lock.is_some()
    }

    /// The run's settings.
    ///
    /// # Errors
    ///
    /// As [`RunConfig::open`].
    pub fn config(&self) -> Result<RunConfig, Error> {
        RunConfig::open(self.path.join(CONFIG))
    }

    /// The file of the best weights, or of the latest weights if there has been no evaluation.
    pub(super) fn weights(&self) -> Result<PathBuf, Error> {
        weights_in(&self.path)
    }

    /// SHA-256 of the file of the best weights, or of the latest weights if there has been no evaluation, as
    /// hexadecimal digits.
    ///
    /// # Errors
    ///
    /// If there are no weights yet, or the file cannot be read.
    pub fn weights_hash(&self) -> Result<String, Error> {
        let weights = self.weights()?;
        let bytes = std::fs::read(&weights).map_err(Error::io(&weights, "cannot read"))?;
        Ok(hash(&bytes))
    }

    /// Opens the log of metrics of a run that begins or resumes at `step`.
    pub(super) fn metrics(&self, step: usize, evaluated: usize) -> Result<MetricsLog, Error> {
        MetricsLog::open(self.path.join(METRICS), step, evaluated)
    }

    /// Saves the results of an evaluation and returns the file's path. Earlier results of the same weights
    /// and samples are kept where `found` has none.
    ///
    /// # Errors
    ///
    /// If the file cannot be read or written, or it holds results of the same weights on more samples.
    pub fn save_evaluation(&self, found: Evaluation) -> Result<PathBuf, Error> {
        let path = self.path.join(EVAL);
        // Evaluations that end at the same time are added one after another. Where there are no locks, nothing is locked.
        let config = File::open(self.path.join(CONFIG)).ok();
        if let Some(config) = &config {
            config.lock().ok();
        }
        let earlier = read_if_exists(&path)?;
        let earlier = earlier.and_then(|bytes| serde_json::from_slice::<Evaluation>(&bytes).ok());
        let all = match earlier {
            Some(earlier)
                if earlier.weights == found.weights && earlier.samples > found.samples =>
            {
                return Err(Error::file(
                    &path,
                    format!(
                        "keeps what was found on {} contexts; this evaluation of {} is not kept",
                        earlier.samples, found.samples
                    ),
                ));
            }
            Some(earlier) => {
                if earlier.weights == found.weights && !found.completes(&earlier) {
                    log::warn!(
                        "{}: its results on {} contexts in {} are replaced, also those that this evaluation has not",
                        path.display(),
                        earlier.samples,
                        earlier.precision.as_str()
                    );
                }
                found.or(earlier)
            }
            None => found,
        };
        let json = serde_json::to_string_pretty(&all)
            .map_err(|e| Error::Failed(format!("the evaluation cannot be saved: {e}")))?;
        write_atomically(&path, (json + "\n").as_bytes())?;
        Ok(path)
    }
}

/// The file of the best weights in a folder, or of the latest weights if there has been no evaluation.
pub(super) fn weights_in(folder: &Path) -> Result<PathBuf, Error> {
    let found = [BEST, LAST].map(|name| folder.join(name));
    let found = found.into_iter().find(|path| path.exists());
    let missing = "has no weights yet: its training has not reached a checkpoint";
    found.ok_or_else(|| Error::file(folder, missing))
}

/// Fails if the run in `path` differs in a setting that may not change: `differences` are keys with the value here and
/// that of the run, `train` has both settings of the outer loop.
fn check_settings(
    path: &Path,
    differences: Vec<Difference>,
    train: [&TrainConfig; 2],
) -> Result<(), Error> {
    // A run whose model or data came from nowhere has no other place for them.
    let may_change = |(key, ours, theirs): &Difference| {
        let appears = [ours, theirs].iter().any(|value| *value == "null");
        let is_path = key == "model.from" || key.starts_with("data.");
        MAY_CHANGE.contains(&key.as_str()) && !(is_path && appears)
    };
    let differs = differences.into_iter().find(|found| !may_change(found));
    let [steps, begun] = train.map(|train| train.steps);
    match differs {
        None if train[1].lr_decay != LrDecay::Constant && steps != begun => Err(Error::file(
            path,
            format!(
                "is a run whose learning rate falls until step {begun}: its train.steps cannot be {steps}; \
                 begin another run, from its weights with --from"
            ),
        )),
        None => Ok(()),
        Some((key, ours, theirs)) => Err(Error::file(
            path,
            format!(
                "is a run with {key} = {theirs}, not {ours}: use its values, or another folder (--run)"
            ),
        )),
    }
}

/// Whether a run has a file of this name.
fn is_of_a_run(name: &str) -> bool {
    RUN_FILES.contains(&name) || name == EVAL || is_beside_weights(name)
}

/// Whether a file of this name has what a step's weights go on with. Others of a similar name are somebody else's.
pub(super) fn is_beside_weights(name: &str) -> bool {
    let optimizer = name.strip_prefix("optimizer-");
    let average = name.strip_prefix("average-");
    let step = optimizer.and_then(|rest| rest.strip_suffix(".bin"));
    let step = step.or(average.and_then(|rest| rest.strip_suffix(".safetensors")));
    step.is_some_and(|step| step.parse::<usize>().is_ok())
}

/// Fails if the folder has files that a run which was killed at its start cannot have left.
fn check_empty(path: &Path) -> Result<(), Error> {
    let entries = std::fs::read_dir(path).map_err(Error::io(path, "cannot read"))?;
    // A run writes its tokenizer after these: one that stands alone is somebody else's.
    let begun = [LOCK, DATA].iter().any(|name| path.join(name).exists());
    let left = |name: &str| name.starts_with('.') || name == DATA || (name == TOKENIZER && begun);
    let foreign = |name: std::ffi::OsString| !left(&name.to_string_lossy());
    match entries.flatten().any(|entry| foreign(entry.file_name())) {
        false => Ok(()),
        true => Err(Error::file(
            path,
            "is neither empty nor a run folder: name another one with --run",
        )),
    }
}

/// Locks the folder for this process, until the file is dropped.
fn lock(path: &Path) -> Result<File, Error> {
    let lock_file = path.join(LOCK);
    let lock = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&lock_file)
        .map_err(Error::io(&lock_file, "cannot open"))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => {
            Err(Error::file(path, "is being trained in by another process"))
        }
        Err(TryLockError::Error(e)) => Err(Error::io(&lock_file, "cannot lock")(e)),
    }
}

/// SHA-256 as hexadecimal digits.
pub(super) fn hash(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}
