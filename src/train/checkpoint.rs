//! Checkpoints of a run: weights, the optimizer's state and the run's state.
//!
//! `last.safetensors` holds the weights and, as metadata, the run's state and the hashes of the optimizer's file and of
//! the averaged weights, where there are such. It is written after these and moved into place: whenever a run is
//! killed, the files match.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use burn::module::{
    AutodiffModule, Module, ModuleDisplay, ModuleMapper, ModuleVisitor, Param, ParamId,
};
use burn::record::{BinBytesRecorder, BurnRecord, FullPrecisionSettings, Record, Recorder};
use burn::tensor::Tensor;
use burn::tensor::backend::{AutodiffBackend, Backend};
use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

pub use super::folder::RunFolder;
use super::folder::{BEST, KEPT, LAST, METRICS, RUN_FILES, hash, is_beside_weights};
use super::metrics::{Measure, Scores};
use super::optimizer::{MomentsOf, RecordOf};
use crate::error::Error;
use crate::model::weights::{self, Tensors};
use crate::support::fs::write_atomically;
use crate::support::panics::catch_panic;

/// The key of the state in a checkpoint's metadata.
const STATE: &str = "gradmem_run";

const NOT_OF_THIS_RUN: &str = "is not the file this run wrote";

/// The progress of a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct RunState {
    /// Optimizer steps taken.
    pub step: usize,
    /// The best validation metric so far, and its step.
    pub best: Option<(f64, usize)>,
    /// What `best` is a value of; absent in checkpoints of a version that did not know it.
    #[serde(default)]
    pub measure: Option<Measure>,
    /// Whether the file of the best weights is not of `best`: a training ended between that file and the checkpoint, or it is lost.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub lost: bool,
    /// The step of the last evaluation.
    pub evaluated: usize,
    /// The step of the last evaluation that was better than all before it.
    pub improved: usize,
    /// Index of the curriculum's current version of the task, from 0.
    pub stage: usize,
    /// Training scores since the last line of the log.
    pub since_log: Scores,
}

impl RunState {
    /// The best validation metric so far, and its step, if it is a value of this measure. What is best by another one the next
    /// evaluation says, and until then nothing replaces the best weights.
    pub fn best_by(&self, measure: Measure) -> Option<(f64, usize)> {
        let is_known = self.measure.is_none_or(|known| known == measure);
        self.best.filter(|_| is_known)
    }
}

/// The metadata of a checkpoint.
#[derive(Serialize, Deserialize)]
struct Saved {
    state: RunState,
    /// Ids of the parameters, in the model's order: the optimizer's state is stored by id.
    parameter_ids: Vec<u64>,
    /// Hash of the optimizer's file.
    optimizer_hash: String,
    /// Hash of the averaged weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    average_hash: Option<String>,
}

/// What a run goes on from.
pub(super) struct Last<M, A, R> {
    /// With the latest weights.
    pub module: M,
    /// With the average of the weights.
    pub average: Option<A>,
    /// The optimizer's record.
    pub optimizer: R,
    /// The progress.
    pub state: RunState,
}

type OptimizerFormat = BinBytesRecorder<FullPrecisionSettings>;

impl RunFolder {
    /// The best weights, or the latest weights if there has been no evaluation.
    pub(super) fn best(&self) -> Result<Tensors, Error> {
        Tensors::open(self.weights()?)
    }

    /// Whether there are best weights.
    pub(super) fn has_best(&self) -> bool {
        self.path().join(BEST).exists()
    }

    /// The step of the best weights, if there are some.
    pub(crate) fn best_step(&self) -> Option<usize> {
        let best = Tensors::open(self.path().join(BEST)).ok()?;
        let about: serde_json::Value = serde_json::from_str(best.metadata().get(STATE)?).ok()?;
        about.get("step")?.as_u64().map(|step| step as usize)
    }

    /// The step of a kept checkpoint, if this is one.
    pub(super) fn kept_step(&self) -> Option<usize> {
        let [name, above] = [self.path().file_name(), self.path().parent()?.file_name()];
        name.filter(|_| above == Some(KEPT.as_ref()))?
            .to_str()?
            .parse()
            .ok()
    }

    /// Replaces the best weights. They have this `value` of `measure` at `step`.
    pub(super) fn save_best<B: Backend, M: Module<B>>(
        &self,
        module: &M,
        step: usize,
        measure: Measure,
        value: f64,
    ) -> Result<(), Error> {
        // One entry: several would be written in an order that varies.
        let about = serde_json::json!({ "step": step, measure.key(): value });
        let metadata = HashMap::from([(STATE.to_string(), about.to_string())]);
        let bytes = self.encode(module, metadata)?;
        write_atomically(self.path().join(BEST), &bytes)
    }

    /// The bytes of a checkpoint's file.
    fn encode<B: Backend, M: Module<B>>(
        &self,
        module: &M,
        metadata: HashMap<String, String>,
    ) -> Result<Vec<u8>, Error> {
        let kept = weights::parameters_of(module, |name| self.keeps(name));
        weights::encode(&kept, metadata)
    }

    /// Replaces the latest weights, their average, the optimizer's record and the state; and if that is right behind an
    /// evaluation, keeps the last `count` checkpoints of evaluations, so that a run which was interrupted keeps the same as another.
    pub(super) fn save_last<B, M>(
        &self,
        last: Last<&M, &M::InnerModule, RecordOf<B, M>>,
        count: usize,
    ) -> Result<(), Error>
    where
        B: AutodiffBackend,
        M: AutodiffModule<B> + ModuleDisplay,
        M::InnerModule: ModuleDisplay,
    {
        // Running statistics, as of `BatchNorm`, have the last step's behind it.
        _ = last.module.valid();
        let step = last.state.step;
        let keeps = count > 0 && step > 0 && step == last.state.evaluated;
        let optimizer = encode_moments(last.optimizer)?;
        let average = last.average;
        let average = average.map(|average| self.encode(average, HashMap::new()));
        let average = average.transpose()?;
        let saved = Saved {
            state: last.state,
            parameter_ids: float_ids(last.module),
            optimizer_hash: hash(&optimizer),
            average_hash: average.as_deref().map(hash),
        };
        write_atomically(self.optimizer_file(step), &optimizer)?;
        if let Some(average) = average {
            write_atomically(self.average_file(step), &average)?;
        }
        let saved = serde_json::to_string(&saved)
            .map_err(|e| Error::Failed(format!("the run's state cannot be saved: {e}")))?;
        let metadata = HashMap::from([(STATE.to_string(), saved)]);
        let bytes = self.encode(last.module, metadata)?;
        // Before the checkpoint itself: a training that is killed between the two comes to this step again.
        if keeps {
            self.keep(step, count, &bytes)?;
        }
        write_atomically(self.path().join(LAST), &bytes)?;
        self.remove_except(step);
        Ok(())
    }

    /// Keeps a checkpoint, of which `last` are the latest weights, as a run's folder of its own, `checkpoints/STEP`: of those up
    /// to this step the last `count`. What is kept already stays as it is.
    fn keep(&self, step: usize, count: usize, last: &[u8]) -> Result<(), Error> {
        let kept = self.path().join(KEPT);
        std::fs::create_dir_all(&kept).map_err(Error::io(&kept, "cannot make the folder"))?;
        let entries = std::fs::read_dir(&kept).map_err(Error::io(&kept, "cannot read"))?;
        let mut steps = Vec::new();
        for name in entries.flatten().map(|entry| entry.file_name()) {
            let name = name.to_string_lossy();
            match name.parse::<usize>() {
                Ok(found) if found <= step => steps.push(found),
                // Of a training that was killed here.
                Err(_) if is_unfinished(&name) => drop_folder(&kept.join(&*name)),
                _ => {}
            }
        }
        if !steps.contains(&step) {
            self.copy_to(&kept, step, last)?;
            steps.push(step);
        }
        steps.sort_unstable();
        for old in steps.iter().rev().skip(count) {
            let folder = kept.join(old.to_string());
            let aside = kept.join(format!(".{old}"));
            // Moved away first: a folder is there whole or not at all.
            if is_as_kept(&folder) && std::fs::rename(&folder, &aside).is_ok() {
                drop_folder(&aside);
            }
        }
        Ok(())
    }

    /// Copies what makes the run, with `last` as its latest weights, to the folder of a step in `kept`.
    fn copy_to(&self, kept: &Path, step: usize, last: &[u8]) -> Result<(), Error> {
        let unfinished = kept.join(format!(".{step}"));
        std::fs::create_dir(&unfinished)
            .map_err(Error::io(&unfinished, "cannot make the folder"))?;
        let files = RUN_FILES.iter().map(|name| self.path().join(name));
        let files = files.chain([self.optimizer_file(step), self.average_file(step)]);
        for file in files.filter(|file| file.is_file() && !file.ends_with(LAST)) {
            let copy = unfinished.join(file.file_name().unwrap_or_default());
            let file = file.canonicalize().unwrap_or(file);
            // All but the log are replaced, never changed: two folders can share them.
            let shared = !copy.ends_with(METRICS) && std::fs::hard_link(&file, &copy).is_ok();
            if !shared {
                let bytes = std::fs::read(&file).map_err(Error::io(&file, "cannot read"))?;
                write_atomically(&copy, &bytes)?;
            }
        }
        write_atomically(unfinished.join(LAST), last)?;
        let folder = kept.join(step.to_string());
        std::fs::rename(&unfinished, &folder).map_err(Error::io(&folder, "cannot write"))
    }

    /// Loads the latest weights, their average, the optimizer's record and the state.
    ///
    /// # Errors
    ///
    /// If any of the files is missing, truncated, or not of this run.
    pub(super) fn load_last<B, M, R>(
        &self,
        module: M,
        device: &B::Device,
    ) -> Result<Last<M, M::InnerModule, R>, Error>
    where
        B: AutodiffBackend,
        M: AutodiffModule<B>,
        R: Record<B>,
    {
        let path = self.path().join(LAST);
        let tensors = Tensors::open(&path)?;
        let saved = tensors.metadata().get(STATE);
        let Saved {
            state,
            parameter_ids,
            optimizer_hash,
            average_hash,
        } = saved
            .and_then(|saved| serde_json::from_str(saved).ok())
            .ok_or_else(|| Error::file(&path, "is not a checkpoint of this program"))?;
        let module = tensors.fill_some(module, |name| self.keeps(name))?;
        let mut ids = Ids {
            ids: parameter_ids.into_iter(),
        };
        let module = module.map(&mut ids);
        let average = average_hash.map(|hash| {
            let path = self.average_file(state.step);
            self.read(&path, &hash)?;
            Tensors::open(&path)?.fill_some(module.valid(), |name| self.keeps(name))
        });

        let path = self.optimizer_file(state.step);
        let optimizer = self.read(&path, &optimizer_hash)?;
        let damaged = || Error::file(&path, NOT_OF_THIS_RUN);
        if !is_whole(&optimizer) {
            return Err(damaged());
        }
        // Other defects, such as an unknown element type, make burn panic.
        let load = || Recorder::<B>::load(&OptimizerFormat::default(), optimizer, device);
        Ok(Last {
            module,
            average: average.transpose()?,
            optimizer: catch_panic(load).and_then(Result::ok).ok_or_else(damaged)?,
            state,
        })
    }

    /// A file's bytes, if they have this hash.
    fn read(&self, path: &Path, expected: &str) -> Result<Vec<u8>, Error> {
        let bytes = std::fs::read(path).map_err(Error::io(path, "cannot read"))?;
        match hash(&bytes) == expected {
            true => Ok(bytes),
            false => Err(Error::file(path, NOT_OF_THIS_RUN)),
        }
    }

    fn optimizer_file(&self, step: usize) -> PathBuf {
        self.path().join(format!("optimizer-{step}.bin"))
    }

    fn average_file(&self, step: usize) -> PathBuf {
        self.path().join(format!("average-{step}.safetensors"))
    }

    /// Removes the files beside the latest weights that are of other steps.
    fn remove_except(&self, step: usize) {
        let keep = [self.optimizer_file(step), self.average_file(step)];
        let Ok(entries) = std::fs::read_dir(self.path()) else {
            return;
        };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            let old = is_beside_weights(&name) && !keep.contains(&entry.path());
            if self.is_locked() && old {
                // If this fails, the next checkpoint tries again.
                std::fs::remove_file(entry.path()).ok();
            }
        }
    }
}

/// Whether a kept checkpoint has the files that it was kept with alone: neither was it trained on nor evaluated.
fn is_as_kept(folder: &Path) -> bool {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.all(|name| RUN_FILES.contains(&name.as_str()) || is_beside_weights(&name))
}

/// Whether a folder of this name is a kept checkpoint that is being written or removed.
fn is_unfinished(name: &str) -> bool {
    name.strip_prefix('.')
        .is_some_and(|step| step.parse::<usize>().is_ok())
}

/// If this fails, the next checkpoint tries again.
fn drop_folder(folder: &Path) {
    std::fs::remove_dir_all(folder).ok();
}

/// The moments of all parameters, in the format that [`OptimizerFormat`] reads, in the order of the parameters' ids: equal
/// moments are equal bytes.
fn encode_moments<B: AutodiffBackend>(
    moments: impl IntoIterator<Item = (ParamId, MomentsOf<B>)>,
) -> Result<Vec<u8>, Error> {
    let items: BTreeMap<String, _> = moments
        .into_iter()
        .map(|(id, record)| (id.serialize(), record.into_item::<FullPrecisionSettings>()))
        .collect();
    let record = BurnRecord::<_, B>::new::<OptimizerFormat>(items);
    bincode::serde::encode_to_vec(record, bincode::config::standard())
        .map_err(|e| Error::Failed(format!("the optimizer's state cannot be saved: {e}")))
}

/// The ids of a module's float parameters, in its order.
fn float_ids<B: Backend, M: Module<B>>(module: &M) -> Vec<u64> {
    struct Collect(Vec<u64>);
    impl<B: Backend> ModuleVisitor<B> for Collect {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
            self.0.push(param.id.val());
        }
    }
    let mut collect = Collect(Vec::new());
    module.visit(&mut collect);
    collect.0
}

/// The module with 1, 2, 3, … as the ids of its parameters, which are random otherwise: a checkpoint holds them, and equal
/// runs are to have equal checkpoints. What had one id has one.
pub(super) fn with_plain_ids<B: Backend, M: Module<B>>(module: M) -> M {
    let mut plain = HashMap::new();
    let ids = float_ids(&module).into_iter().map(|id| {
        let next = plain.len() as u64 + 1;
        *plain.entry(id).or_insert(next)
    });
    let ids: Vec<u64> = ids.collect();
    module.map(&mut Ids {
        ids: ids.into_iter(),
    })
}

/// Gives a module's parameters the ids that they had when their run was saved.
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

/// The lengths in an [`OptimizerFormat`] file: its metadata, then for each parameter its id, two variants, the
/// number of steps and the moments. [`OptimizerFormat`] allocates what a length says before it reads; reading
/// this type allocates nothing for the bytes, and fails if a length goes beyond the end of the file.
type Lengths = ([String; 5], Vec<(String, u32, u32, u64, Moments)>);
type Moments = (Moment, Moment, Option<Moment>);
/// Bytes, shape and element type.
type Moment = (Skipped, Vec<u64>, u32);

/// A number of bytes that were read and not kept.
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

/// Whether the lengths in an optimizer's file fit the file and the shapes of its tensors.
fn is_whole(file: &[u8]) -> bool {
    let read = bincode::serde::decode_from_slice::<Lengths, _>(file, bincode::config::standard());
    let Ok(((_, parameters), length)) = read else {
        return false;
    };
    // An element has 1 to 8 bytes.
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
