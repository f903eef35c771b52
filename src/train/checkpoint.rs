//! A run on disk, so that it can go on where it stopped.
//!
//! | file | holds |
//! |---|---|
//! | `config.toml` | every setting of the run |
//! | `tokenizer.json` | the task's tokenizer |
//! | `data.sha256` | hashes of the samples of each version of the task, in tokens |
//! | `metrics.jsonl` | a line for each log interval and each evaluation |
//! | `eval.json` | what `gradmem eval` found |
//! | `best.safetensors` | the weights with the best validation metric |
//! | `last.safetensors` | the latest weights and the run's state |
//! | `optimizer-STEP.bin` | the optimizer's moments at that state |
//!
//! `last.safetensors` names its optimizer file and that file's hash, and is written after it in one
//! move: whatever moment a run dies at, the two fit together.

use std::collections::HashMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};

use burn::module::{Module, ModuleMapper, Param, ParamId, list_param_ids};
use burn::record::{BinBytesRecorder, FullPrecisionSettings, Record, Recorder};
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use sha2::{Digest, Sha256};

use super::config::RunConfig;
use super::evaluation::Evaluation;
use super::metrics::{Measure, Scores};
use crate::data::TextTokenizer;
use crate::error::Error;
use crate::model::weights::{self, Tensors};
use crate::support::fs::{hex, remove_unfinished, write_atomically};
use crate::support::panics::guarded;

/// The tokenizer's file.
pub(super) const TOKENIZER: &str = "tokenizer.json";

/// The hashes of the samples that the run began with.
const DATA: &str = "data.sha256";

/// The key of the state in a checkpoint's metadata.
const STATE: &str = "gradmem_run";

/// Where a run stands.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct RunState {
    /// Optimizer steps taken.
    pub step: usize,
    /// The best validation metric so far, and the step it was reached at.
    pub best: Option<(f64, usize)>,
    /// The step of the last evaluation.
    pub evaluated: usize,
    /// Which of the curriculum's versions of the task is learned, from 0.
    #[serde(default)]
    pub stage: usize,
    /// Training scores since the last line of the log.
    pub since_log: Scores,
}

/// A state and what ties its optimizer file to it.
#[derive(Serialize, Deserialize)]
struct Saved {
    state: RunState,
    /// Ids of the parameters, in the model's order: the optimizer's state is kept by them.
    parameter_ids: Vec<u64>,
    /// Hash of the optimizer's file.
    optimizer_hash: String,
}

/// A run's folder.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    /// Held while a training runs in the folder.
    lock: Option<File>,
}

type Bytes = BinBytesRecorder<FullPrecisionSettings>;

/// What [`Bytes`] writes of an optimizer, as far as lengths go: its metadata, and of each parameter its id,
/// two variants, the steps and the moments. [`Bytes`] believes any length, and sets as much memory aside;
/// reading this sets none aside, and fails where the file ends before a length does.
type Written = ([String; 5], Vec<(String, u32, u32, u64, Moments)>);
type Moments = (Moment, Moment, Option<Moment>);
/// Bytes, shape and element type.
type Moment = (Skipped, Vec<u64>, u32);

/// Bytes that are counted and not kept.
struct Skipped(u64);

impl<'de> Deserialize<'de> for Skipped {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Count;
        impl<'de> Visitor<'de> for Count {
            type Value = Skipped;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("bytes")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut bytes: A) -> Result<Skipped, A::Error> {
                let mut count = 0;
                while bytes.next_element::<u8>()?.is_some() {
                    count += 1;
                }
                Ok(Skipped(count))
            }
        }
        deserializer.deserialize_seq(Count)
    }
}

/// Whether an optimizer's file is as long as it says, and its tensors are.
fn is_whole(file: &[u8]) -> bool {
    let read = bincode::serde::decode_from_slice::<Written, _>(file, bincode::config::standard());
    let Ok(((_, parameters), length)) = read else {
        return false;
    };
    // A number has eight bytes at most.
    let fits = |(Skipped(bytes), shape, _): &Moment| {
        let numbers = shape
            .iter()
            .try_fold(1u64, |count, size| count.checked_mul(*size));
        numbers.is_some_and(|numbers| numbers <= *bytes && *bytes <= numbers.saturating_mul(8))
    };
    let mut moments = parameters.iter().map(|(.., moments)| moments);
    length == file.len()
        && moments.all(|(a, b, c)| fits(a) && fits(b) && c.as_ref().is_none_or(fits))
}

impl RunFolder {
    /// A folder with a run in it, to read from.
    ///
    /// # Errors
    ///
    /// If there is none.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        if !path.join("config.toml").is_file() {
            return Err(Error::file(
                path,
                "is not a run folder (it has no config.toml); `gradmem train` makes one",
            ));
        }
        Ok(Self {
            path: path.into(),
            lock: None,
        })
    }

    /// The folder for a training: a new one, or one of the same configuration to go on with. Only the
    /// number of steps, the stop, and the way to the outer gradient may differ from what the folder holds.
    ///
    /// # Errors
    ///
    /// If the folder belongs to another configuration, another process trains in it, or it holds other
    /// things than a run.
    pub(super) fn for_training(
        path: impl AsRef<Path>,
        config: &RunConfig,
        tokenizer: &TextTokenizer,
        data: &str,
    ) -> Result<Self, Error> {
        const MAY_CHANGE: [&str; 5] = [
            "train.steps",
            "train.stop_metric",
            "train.stop_value",
            "train.meta_gradient",
            "train.micro_batch",
        ];
        let path = path.as_ref();
        let config_file = path.join("config.toml");
        if config_file.exists() {
            let existing = RunConfig::open(&config_file)?;
            let differs = config
                .differences(&existing)
                .into_iter()
                .find(|(key, ..)| !MAY_CHANGE.contains(&key.as_str()));
            if let Some((key, ours, theirs)) = differs {
                return Err(Error::file(
                    path,
                    format!(
                        "is a run with {key} = {theirs}, not {ours}: \
                         use its values, or another folder with --run"
                    ),
                ));
            }
        } else if path.is_dir() {
            let entries = std::fs::read_dir(path).map_err(Error::io(path, "cannot read"))?;
            // What a run that was killed as it began may have left.
            let left = |name: &str| name.starts_with('.') || [TOKENIZER, DATA].contains(&name);
            let foreign = |name: std::ffi::OsString| !left(&name.to_string_lossy());
            if entries.flatten().any(|entry| foreign(entry.file_name())) {
                return Err(Error::file(
                    path,
                    "is neither empty nor a run folder: name another one with --run",
                ));
            }
        }
        std::fs::create_dir_all(path).map_err(Error::io(path, "cannot make the folder"))?;
        let lock_file = path.join(".lock");
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_file)
            .map_err(Error::io(&lock_file, "cannot open"))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Error::file(path, "is being trained in by another process"));
            }
            Err(TryLockError::Error(e)) => return Err(Error::io(&lock_file, "cannot lock")(e)),
        }
        remove_unfinished(path, ".");
        let folder = Self {
            path: path.into(),
            lock: Some(lock),
        };
        match config_file.exists() {
            true => folder.check_data(data)?,
            false => write_atomically(path.join(DATA), data.as_bytes())?,
        }
        write_atomically(path.join(TOKENIZER), tokenizer.to_json()?.as_bytes())?;
        // Last: it is what makes the folder a run.
        write_atomically(&config_file, config.to_toml()?.as_bytes())?;
        Ok(folder)
    }

    /// Fails unless a task's samples, by their hashes, are those the run began with: of all versions of
    /// its task, or of the last.
    ///
    /// # Errors
    ///
    /// If they are others.
    pub(super) fn check_data(&self, data: &str) -> Result<(), Error> {
        let file = self.path.join(DATA);
        let begun = match std::fs::read(&file) {
            Ok(begun) => String::from_utf8_lossy(&begun).into_owned(),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(Error::io(&file, "cannot read")(e)),
        };
        match begun == data || begun.lines().last() == Some(data) {
            true => Ok(()),
            false => Err(Error::file(
                &self.path,
                "began with other samples or another tokenizer than there are now: \
                 put its files back, or begin another run",
            )),
        }
    }

    /// Hash of the best weights, or of the latest ones.
    ///
    /// # Errors
    ///
    /// If there are none yet, or they cannot be read.
    pub fn weights_hash(&self) -> Result<String, Error> {
        let weights = self.weights()?;
        let bytes = std::fs::read(&weights).map_err(Error::io(&weights, "cannot read"))?;
        Ok(hash(&bytes))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The run's settings.
    ///
    /// # Errors
    ///
    /// As [`RunConfig::open`].
    pub fn config(&self) -> Result<RunConfig, Error> {
        RunConfig::open(self.path.join("config.toml"))
    }

    /// Fills `module` with the best weights, or with the latest ones if no evaluation chose any.
    ///
    /// # Errors
    ///
    /// If there are none yet, or they are damaged or of another model.
    pub fn load_best<B: Backend, M: Module<B>>(&self, module: M) -> Result<M, Error> {
        self.best()?.fill(module)
    }

    /// The best weights, or the latest ones if no evaluation chose any.
    pub(super) fn best(&self) -> Result<Tensors, Error> {
        Tensors::open(self.weights()?)
    }

    /// Adds what an evaluation of the best weights found to what earlier ones of the same weights did, and
    /// says where.
    ///
    /// # Errors
    ///
    /// If the file cannot be written, or it keeps what was found on more samples.
    pub fn save_evaluation(&self, found: Evaluation) -> Result<PathBuf, Error> {
        let path = self.path.join("eval.json");
        let earlier = std::fs::read(&path).ok();
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
            Some(earlier) => found.or(earlier),
            None => found,
        };
        let json = serde_json::to_string_pretty(&all)
            .map_err(|e| Error::Failed(format!("the evaluation cannot be saved: {e}")))?;
        write_atomically(&path, (json + "\n").as_bytes())?;
        Ok(path)
    }

    /// The best weights' file, or the latest ones' if no evaluation chose any.
    fn weights(&self) -> Result<PathBuf, Error> {
        let best = self.path.join("best.safetensors");
        let last = self.path.join("last.safetensors");
        let found = [best, last].into_iter().find(|path| path.exists());
        found.ok_or_else(|| {
            Error::file(
                &self.path,
                "has no weights yet: its training has not reached a checkpoint",
            )
        })
    }

    /// Replaces the best weights, which have this `value` of `measure` at `step`.
    pub(super) fn save_best<B: Backend, M: Module<B>>(
        &self,
        module: &M,
        step: usize,
        measure: Measure,
        value: f64,
    ) -> Result<(), Error> {
        // One entry: the order of several would change from one writing to the next.
        let about = serde_json::json!({ "step": step, measure.key(): value });
        let metadata = HashMap::from([(STATE.to_string(), about.to_string())]);
        let bytes = weights::encode(&weights::parameters(module), metadata)?;
        write_atomically(self.path.join("best.safetensors"), &bytes)
    }

    /// Replaces the latest weights and state; `optimizer` is its record.
    pub(super) fn save_last<B: Backend, M: Module<B>, R: Record<B>>(
        &self,
        module: &M,
        optimizer: R,
        state: &RunState,
    ) -> Result<(), Error> {
        let optimizer = Recorder::<B>::record(&Bytes::default(), optimizer, ())
            .map_err(|e| Error::Failed(format!("the optimizer's state cannot be saved: {e}")))?;
        let saved = Saved {
            state: state.clone(),
            parameter_ids: list_param_ids(module).iter().map(|id| id.val()).collect(),
            optimizer_hash: hash(&optimizer),
        };
        write_atomically(self.optimizer_file(state.step), &optimizer)?;
        let saved = serde_json::to_string(&saved)
            .map_err(|e| Error::Failed(format!("the run's state cannot be saved: {e}")))?;
        let metadata = HashMap::from([(STATE.to_string(), saved)]);
        let bytes = weights::encode(&weights::parameters(module), metadata)?;
        write_atomically(self.path.join("last.safetensors"), &bytes)?;
        self.remove_optimizers_except(state.step);
        Ok(())
    }

    /// Reads the latest weights, the optimizer's record and the state.
    ///
    /// # Errors
    ///
    /// If any of the files is missing, cut short, or not of this run.
    pub(super) fn load_last<B: Backend, M: Module<B>, R: Record<B>>(
        &self,
        module: M,
        device: &B::Device,
    ) -> Result<(M, R, RunState), Error> {
        let path = self.path.join("last.safetensors");
        let tensors = Tensors::open(&path)?;
        let saved = tensors.metadata().get(STATE);
        let Saved {
            state,
            parameter_ids,
            optimizer_hash,
        } = saved
            .and_then(|saved| serde_json::from_str(saved).ok())
            .ok_or_else(|| Error::file(&path, "is not a checkpoint of this program"))?;
        let module = tensors.fill(module)?;
        let mut ids = Ids {
            ids: parameter_ids.into_iter(),
        };
        let module = module.map(&mut ids);

        let optimizer_file = self.optimizer_file(state.step);
        let optimizer =
            std::fs::read(&optimizer_file).map_err(Error::io(&optimizer_file, "cannot read"))?;
        let damaged = || Error::file(&optimizer_file, "is not the file this run wrote");
        if hash(&optimizer) != optimizer_hash {
            return Err(damaged());
        }
        if !is_whole(&optimizer) {
            return Err(damaged());
        }
        // What is still wrong with it, such as an element type of no number, panics.
        let record = guarded(|| Recorder::<B>::load(&Bytes::default(), optimizer, device));
        let record = record.and_then(Result::ok).ok_or_else(damaged)?;
        Ok((module, record, state))
    }

    /// Opens the log of metrics, and drops from it what came after `step`: a run that goes on from
    /// `step` will write that again.
    pub(super) fn metrics(&self, step: usize) -> Result<MetricsLog, Error> {
        let path = self.path.join("metrics.jsonl");
        let text = match std::fs::read(&path) {
            // What is not UTF-8 is no line of a log, and dropped like any other.
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(e) => return Err(Error::io(&path, "cannot read")(e)),
        };
        let kept: String = text
            .lines()
            .filter(|line| {
                let line: Option<serde_json::Value> = serde_json::from_str(line).ok();
                let at = line.and_then(|line| line.get("step")?.as_u64());
                at.is_some_and(|at| at <= step as u64)
            })
            .map(|line| format!("{line}\n"))
            .collect();
        write_atomically(&path, kept.as_bytes())?;
        let file = OpenOptions::new().append(true).open(&path);
        Ok(MetricsLog {
            file: file.map_err(Error::io(&path, "cannot open"))?,
            path,
        })
    }

    fn optimizer_file(&self, step: usize) -> PathBuf {
        self.path.join(format!("optimizer-{step}.bin"))
    }

    fn remove_optimizers_except(&self, step: usize) {
        let keep = self.optimizer_file(step);
        let Ok(entries) = std::fs::read_dir(&self.path) else {
            return;
        };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            let old = name.starts_with("optimizer-") && entry.path() != keep;
            if self.lock.is_some() && old {
                // Left over at worst; the next checkpoint tries again.
                std::fs::remove_file(entry.path()).ok();
            }
        }
    }
}

/// `metrics.jsonl`, open at its end.
#[derive(Debug)]
pub(super) struct MetricsLog {
    file: File,
    path: PathBuf,
}

impl MetricsLog {
    /// Adds a line.
    pub(super) fn push(&mut self, line: serde_json::Value) -> Result<(), Error> {
        let written = self.file.write_all(format!("{line}\n").as_bytes());
        written.map_err(Error::io(&self.path, "cannot write"))
    }
}

fn hash(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Gives a module's parameters the ids they had when their run was saved.
struct Ids<I> {
    ids: I,
}

impl<B: Backend, I: Iterator<Item = u64>> ModuleMapper<B> for Ids<I> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        let (id, tensor, mapper) = param.consume();
        let id = self.ids.next().map_or(id, ParamId::from);
        Param::from_mapped_value(id, tensor, mapper)
    }
}
