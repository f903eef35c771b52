//! A run from its settings to its result.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use burn::backend::Autodiff;
use burn::data::dataloader::DataLoaderBuilder;
use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::optim::lr_scheduler::linear::{LinearLrScheduler, LinearLrSchedulerConfig};
use burn::optim::record::{AdaptorRecord, AdaptorRecordV1};
use burn::optim::{AdamW, AdamWConfig, AdamWState, AdaptiveMomentumState, Optimizer};
use burn::tensor::Tensor;
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::train::metric::LearningRateMetric;
use burn::train::{Interrupter, Learner, SupervisedTraining, TrainingStrategy};
use gradmem_kernels::KernelBackend;
use serde_json::{Map, Value};

use super::checkpoint::{RunFolder, RunState, TOKENIZER};
use super::config::{RunConfig, TrainConfig};
use super::learner::{MetaLearner, OuterStep};
use super::metrics::{Measure, MeasureMetric};
use super::render::{LineRenderer, dashboard};
use super::strategy::{
    Components, Loaders, MetaTraining, NoMetricLogger, Outcome, SharedOptimizer,
};
use crate::data::{Cycle, DataConfig, ExampleBatcher, Task, TextTokenizer};
use crate::error::Error;
use crate::interop::checkpoint;
use crate::memory::{GradMem, MetaGradient};
use crate::method::{AnyMethod, MethodName};
use crate::model::weights::{self, ModulePath, Tensors};
use crate::model::{AnyLm, ModelConfig, settings};

/// What a training is started with, beside its settings.
#[derive(Clone, Default)]
pub struct TrainOptions {
    /// Begins with the best weights of this run, or with those of this checkpoint or pretrained model,
    /// instead of random ones.
    pub init_from: Option<PathBuf>,
    /// Shows lines even on a terminal.
    pub plain: bool,
    /// Stops the training when asked to.
    pub interrupter: Interrupter,
}

impl fmt::Debug for TrainOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TrainOptions")
            .field("init_from", &self.init_from)
            .field("plain", &self.plain)
            .finish_non_exhaustive()
    }
}

/// Trains, or goes on training, in `folder`.
///
/// # Errors
///
/// Anything wrong with the settings, the folder, or the weights it begins with is found before
/// anything is written. If the training itself fails, its last checkpoint stays.
pub fn train<B: KernelBackend>(
    config: &RunConfig,
    folder: impl AsRef<Path>,
    options: TrainOptions,
    device: &B::Device,
) -> Result<Outcome, Error> {
    let folder = folder.as_ref();
    config.validate()?;
    let resumes = folder.join("last.safetensors").exists();
    let from = options.init_from.as_deref().filter(|_| !resumes);
    let tasks = stages(config, folder, from)?;
    let tokenizer = tasks[0].tokenizer.clone();
    let mut config = config.clone();
    let mut method = match &options.init_from {
        Some(from) if !resumes => begin_with::<Autodiff<B>>(&config, from, device)?,
        _ => model(&config, device)?,
    };

    let context = tasks.iter().map(|task| task.lengths.context).max();
    let at_once = contexts_at_once(&config.train, context.unwrap_or(0));
    config.train.meta_gradient = settled(&config, &method, folder, at_once)?;
    let settings = &config.train;
    let prints = tasks.iter().filter_map(|task| task.fingerprint.clone());
    let prints = prints.collect::<Vec<_>>().join("\n");
    let folder = RunFolder::for_training(folder, &config, &tokenizer, &prints)?;
    if !resumes {
        notices(&config, &method, at_once);
    }
    let path = folder.path().to_path_buf();
    let adamw = AdamWConfig::new()
        .with_epsilon(1e-8)
        .with_weight_decay(settings.weight_decay as f32);
    let mut optimizer = SharedOptimizer::new(adamw.init());
    let mut state = RunState::default();
    if resumes {
        let record: RecordOf<Autodiff<B>>;
        (method, record, state) = folder.load_last(method, device)?;
        check_moments(&method, &|id| record.get(id)).map_err(|e| Error::file(folder.path(), e))?;
        optimizer = Optimizer::load_record(optimizer, record);
    }
    let learner = Learner::new(
        MetaLearner::new(
            method,
            OuterStep {
                meta_gradient: settings.meta_gradient,
                micro_batch: settings.micro_batch,
                clip_norm: settings.clip_norm,
            },
        ),
        optimizer.clone(),
        schedule(settings)?,
    );

    let batcher = ExampleBatcher::new(tokenizer);
    let loaders = |task: Task| -> Loaders<Autodiff<B>> {
        let items = settings.steps * settings.batch_size;
        let items = match task.shuffle {
            true => Cycle::shuffled(task.train, items, settings.seed),
            false => Cycle::new(task.train, items),
        };
        let train = DataLoaderBuilder::new(batcher.clone())
            .batch_size(settings.batch_size)
            .set_device(device.clone())
            .build(items);
        let valid = DataLoaderBuilder::new(batcher.clone())
            .batch_size(VALID_BATCH)
            .set_device(device.clone())
            .build(task.valid);
        (train, valid)
    };
    let stages: Vec<_> = tasks.into_iter().map(loaders).collect();
    if state.stage >= stages.len() {
        return Err(Error::file(&path, "has a checkpoint of another curriculum"));
    }
    let (train_loader, valid_loader) = stages[state.stage].clone();
    let outcome = Arc::new(Mutex::new(None));
    let dashboard = dashboard(options.plain, &options.interrupter);
    let lines = LineRenderer::new(settings.log_every, settings.steps);
    let strategy = MetaTraining {
        config: settings.clone(),
        folder,
        start: state,
        optimizer,
        stages,
        outcome: outcome.clone(),
    };
    let mut training: SupervisedTraining<Components<Autodiff<B>, AnyMethod<Autodiff<B>>>> =
        SupervisedTraining::new(path, train_loader, valid_loader)
            .with_interrupter(options.interrupter)
            .with_application_logger(None)
            .with_metric_logger(NoMetricLogger)
            .metric_train_numeric(LearningRateMetric::new());
    for measure in Measure::of(config.method).iter().copied() {
        training = training.metric_valid_numeric(MeasureMetric::new(measure));
        if !measure.is_of_validation() {
            training = training.metric_train_numeric(MeasureMetric::new(measure));
        }
    }
    let training = match dashboard {
        Some(dashboard) => training.renderer(dashboard),
        None => training.renderer(lines),
    };
    let result = training
        .with_training_strategy(TrainingStrategy::Custom(Arc::new(strategy)))
        .launch(learner);
    // The dashboard gives the terminal back when it is dropped.
    drop(result);
    let outcome = outcome
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .take();
    outcome.unwrap_or_else(|| Err(Error::Failed("the training ended without a result".into())))
}

/// What an optimizer keeps of a method.
type RecordOf<B> =
    <SharedOptimizer<B, AnyMethod<B>> as Optimizer<MetaLearner<B, AnyMethod<B>>, B>>::Record;

/// What it keeps of a parameter, by its id.
type Moments<'a, B> = &'a dyn Fn(&ParamId) -> Option<&'a AdaptorRecord<AdamW, B>>;

/// Fails unless an optimizer's moments are such as their parameters can have.
fn check_moments<B: AutodiffBackend, M: Module<B>>(
    module: &M,
    moments: Moments<'_, B>,
) -> Result<(), String> {
    struct Check<'a, B: AutodiffBackend> {
        moments: Moments<'a, B>,
        path: ModulePath,
        problem: Option<String>,
    }
    impl<B: AutodiffBackend> ModuleVisitor<B> for Check<'_, B> {
        fn enter_module(&mut self, name: &str, container: &str) {
            self.path.enter(name, container);
        }
        fn exit_module(&mut self, _: &str, container: &str) {
            self.path.exit(container);
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
            use AdaptorRecordV1::{Rank1, Rank2, Rank3, Rank4};
            let Some(AdaptorRecord::V1(moments)) = (self.moments)(&param.id) else {
                return;
            };
            let shape = param.lazy_shape().to_vec();
            let fits = match moments {
                Rank1(state) => fits(state, &shape),
                Rank2(state) => fits(state, &shape),
                Rank3(state) => fits(state, &shape),
                Rank4(state) => fits(state, &shape),
                _ => false,
            };
            if !fits {
                let name = self.path.name();
                let problem = format!("has an optimizer's state that `{name}` cannot have");
                self.problem.get_or_insert(problem);
            }
        }
    }
    /// Whether means of gradients and of their squares are of a parameter's shape, and numbers.
    fn fits<B: Backend, const D: usize>(state: &AdamWState<B, D>, shape: &[usize]) -> bool {
        let AdaptiveMomentumState {
            moment_1,
            moment_2,
            max_moment_2,
            ..
        } = &state.momentum;
        let fits = |moment: &Tensor<B, D>, least: f64| {
            let numbers = least..=f64::MAX;
            moment.dims() == *shape && moment.to_data().iter::<f64>().all(|x| numbers.contains(&x))
        };
        fits(moment_1, f64::MIN)
            && fits(moment_2, 0.0)
            && max_moment_2.as_ref().is_none_or(|moment| fits(moment, 0.0))
    }
    let mut check = Check {
        moments,
        path: ModulePath::default(),
        problem: None,
    };
    module.visit(&mut check);
    check.problem.map_or(Ok(()), Err)
}

/// The versions of the task that a training goes through, by one tokenizer: the one the run in `folder`
/// began with, or that of the model it begins with, or else that of the last version, the task itself.
fn stages(config: &RunConfig, folder: &Path, from: Option<&Path>) -> Result<Vec<Task>, Error> {
    let begun = folder.join("config.toml").exists();
    let kept = match begun {
        true => Some(folder.join(TOKENIZER)),
        false => from
            .map(|from| from.join(TOKENIZER))
            .filter(|path| path.exists()),
    };
    if let (Some(path), false, Some(file)) = (&kept, begun, config.tokens.file()) {
        config.tokens.open(file)?.check(path)?;
    }
    let kept = kept.map(|path| config.data.kept_tokenizer(&config.tokens, path));
    let kept = kept.transpose()?;
    let open = |data: &DataConfig, made| -> Result<Task, Error> {
        let task = data.open(&config.tokens, config.train.seed, made)?;
        config.check_vocab(&task.tokenizer)?;
        config.check_room(&task.lengths)?;
        Ok(task)
    };
    let mut stages = config.stages()?;
    let last = stages.pop().unwrap_or_default();
    let last = open(&last, kept)?;
    let tokenizer = last.tokenizer.as_ref();
    let earlier = stages
        .iter()
        .map(|data| open(data, Some(tokenizer.clone())));
    let mut tasks = earlier.collect::<Result<Vec<_>, _>>()?;
    tasks.push(last);
    Ok(tasks)
}

/// What a run says when it begins.
fn notices<B: KernelBackend>(
    config: &RunConfig,
    method: &AnyMethod<Autodiff<B>>,
    at_once: [usize; 2],
) {
    if let AnyMethod::GradMem(gradmem) = method {
        log::info!(
            target: "gradmem::notice",
            "outer gradient: {:?}; a WRITE step's graph takes about {:.0} MiB, and there are {}",
            config.train.meta_gradient,
            gradmem.graph_bytes(at_once) / f64::from(1 << 20),
            config.memory.write_steps,
        );
    }
}

/// The way to the outer gradient, which stays: the one the run in `folder` began with, or else the one to
/// begin with. Another moment's free memory must not change a run's rounding.
fn settled<B: KernelBackend>(
    config: &RunConfig,
    method: &AnyMethod<Autodiff<B>>,
    folder: &Path,
    at_once: [usize; 2],
) -> Result<MetaGradient, Error> {
    let begun = folder.join("config.toml");
    Ok(match (method, config.train.meta_gradient) {
        (AnyMethod::GradMem(gradmem), MetaGradient::Auto) => match begun.exists() {
            true => RunConfig::open(begun)?.train.meta_gradient,
            false => gradmem.choose(MetaGradient::Auto, at_once),
        },
        (_, chosen) => chosen,
    })
}

/// `[batch, seq]` of a step whose contexts have `context` tokens.
fn contexts_at_once(settings: &TrainConfig, context: usize) -> [usize; 2] {
    let batch = settings.batch_size;
    [settings.micro_batch.unwrap_or(batch).min(batch), context]
}

/// Contexts a step of evaluation.
pub(super) const VALID_BATCH: usize = 100;

/// The method and model of a configuration with the initial weights of its seed.
///
/// # Errors
///
/// See [`RunConfig::validate`].
fn model<B: KernelBackend>(config: &RunConfig, device: &B::Device) -> Result<AnyMethod<B>, Error> {
    config.validate()?;
    let section = match config.method {
        MethodName::GradMem => "memory",
        MethodName::Rmt => "rmt",
        MethodName::InContext => "model",
    };
    config
        .method_config()
        .init(&config.model, config.train.seed, device)
        .map_err(|e| e.in_section(section))
}

/// The method of a trained run, of a checkpoint of the reference implementation, or, as the in-context
/// baseline, of a pretrained language model.
///
/// # Errors
///
/// If the folder is none of these, or is damaged.
pub fn open_method<B: KernelBackend>(
    folder: impl AsRef<Path>,
    device: &B::Device,
) -> Result<AnyMethod<B>, Error> {
    let folder = folder.as_ref();
    let (run, checkpoint) = (folder.join("config.toml"), folder.join("config.json"));
    match (run.is_file(), checkpoint.is_file()) {
        (true, _) => Ok(Trained::open(folder, device)?.method),
        (false, true) => checkpoint::load(folder, device),
        (false, false) => Err(Error::file(
            folder,
            "is not a run folder (it has no config.toml; `gradmem train` makes one) \
             and not a checkpoint (it has no config.json)",
        )),
    }
}

/// The method of a configuration with the weights in `from`: all of them if it is of the same method, or
/// else those of its language model.
fn begin_with<B: KernelBackend>(
    config: &RunConfig,
    from: &Path,
    device: &B::Device,
) -> Result<AnyMethod<B>, Error> {
    let loaded = open_method::<B>(from, device)?;
    let of = |model: &ModelConfig| match settings(model) {
        Value::Object(json) => json,
        _ => Map::new(),
    };
    let (ours, theirs) = (of(&config.model), of(&loaded.model().config()));
    let keys: BTreeSet<_> = ours.keys().chain(theirs.keys()).collect();
    if let Some(key) = keys
        .into_iter()
        .find(|key| ours.get(*key) != theirs.get(*key))
    {
        let show = |json: &Map<String, Value>| {
            json.get(key)
                .map_or("unset".into(), |value| value.to_string())
        };
        let (ours, theirs) = (show(&ours), show(&theirs));
        let problem = format!("is a model with {key} = {theirs}, but model.{key} is {ours}");
        return Err(Error::file(from, problem));
    }
    let method = config.method_config();
    if loaded.config().name() != method.name() {
        let seed = !config.train.seed;
        return method.attach(loaded.into(), seed, device);
    }
    let blank = method.blank(&config.model, device)?;
    weights::transfer(&loaded, blank)
        .map_err(|e| Error::file(from, format!("has other parameters than this run: {e}")))
}

/// Linear warm-up from zero, then constant.
fn schedule(config: &TrainConfig) -> Result<LinearLrScheduler, Error> {
    let steps = config.warmup_steps.max(1);
    LinearLrSchedulerConfig::new(config.lr / steps as f64, config.lr, (steps - 1).max(1))
        .init()
        .map_err(|e| Error::config("train.lr", config.lr, e))
}

/// A trained run, ready to be used.
#[derive(Debug)]
#[non_exhaustive]
pub struct Trained<B: Backend> {
    /// Its settings.
    pub config: RunConfig,
    /// Its method and model, with its best weights.
    pub method: AnyMethod<B>,
    /// Its tokenizer.
    pub tokenizer: TextTokenizer,
    /// The weights' file as it was opened: a training that goes on may replace it.
    pub(super) weights: Tensors,
    path: PathBuf,
}

impl<B: KernelBackend> Trained<B> {
    /// Loads the best weights of a run.
    ///
    /// # Errors
    ///
    /// If the folder is no run, has no weights yet, or they are damaged.
    pub fn open(folder: impl AsRef<Path>, device: &B::Device) -> Result<Self, Error> {
        let folder = RunFolder::open(folder)?;
        let config = folder.config()?;
        let kept = folder.path().join(TOKENIZER);
        let tokenizer = config.data.kept_tokenizer(&config.tokens, kept)?;
        let weights = folder.best()?;
        weights.check_layers(config.model.layers())?;
        let method = weights.fill(config.method_config().blank(&config.model, device)?)?;
        Ok(Self {
            config,
            method,
            tokenizer,
            weights,
            path: folder.path().into(),
        })
    }

    /// The method, if it is GradMem.
    ///
    /// # Errors
    ///
    /// If it is another one.
    pub fn into_gradmem(self) -> Result<GradMem<B, AnyLm<B>>, Error> {
        match self.method {
            AnyMethod::GradMem(gradmem) => Ok(gradmem),
            _ => Err(Error::Input(format!(
                "the run trained {}, not gradmem",
                self.config.method.as_str()
            ))),
        }
    }

    /// The run's task, the curriculum's last version.
    ///
    /// # Errors
    ///
    /// If its files are not what they were, or are gone.
    pub fn task(&self) -> Result<Task, Error> {
        let RunConfig {
            data,
            tokens,
            train,
            ..
        } = &self.config;
        let task = data.open(tokens, train.seed, Some(self.tokenizer.clone()))?;
        if let Some(print) = &task.fingerprint {
            RunFolder::open(&self.path)?.check_data(print)?;
        }
        Ok(task)
    }
}
