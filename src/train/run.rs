//! Training: from settings to the result.

use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use burn::backend::Autodiff;
use burn::data::dataloader::DataLoaderBuilder;
use burn::module::{AutodiffModule, Module};
use burn::optim::Optimizer;
use burn::train::logger::MetricLogger;
use burn::train::metric::store::{EpochSummary, MetricsUpdate, Split};
use burn::train::metric::{LearningRateMetric, MetricDefinition, NumericEntry};
use burn::train::{Interrupter, Learner, SupervisedTraining, TrainingStrategy};
use gradmem_kernels::KernelBackend;

use super::base::Base;
use super::checkpoint::{Last, RunFolder, RunState};
use super::config::{RunConfig, TrainConfig};
use super::evaluation::batch_size;
use super::folder::{CONFIG, LAST, TOKENIZER};
use super::learner::{MetaLearner, OuterStep};
use super::metrics::{Measure, MeasureMetric};
use super::optimizer::{RecordOf, SharedOptimizer, check_moments};
use super::render::{LineRenderer, dashboard};
use super::schedule::Schedule;
use super::strategy::{Components, Loaders, MetaTraining, Outcome};
use super::trained::{fingerprint, frozen, open_method};
use super::tune;
use crate::data::{Cycle, DataConfig, ExampleBatcher, Task};
use crate::error::Error;
use crate::memory::{MemoryKind, MetaGradient, RequireGrad};
use crate::method::{AnyMethod, MethodConfig, MethodName};
use crate::model::{AnyLm, weights};

/// Options of a training that are not settings of the run.
#[derive(Clone, Default)]
pub struct TrainOptions {
    /// Prints lines instead of the dashboard, even on a terminal.
    pub plain: bool,
    /// Stops the training on request.
    pub interrupter: Interrupter,
}

impl fmt::Debug for TrainOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TrainOptions")
            .field("plain", &self.plain)
            .finish_non_exhaustive()
    }
}

/// Trains in `folder`: begins a run, or resumes the one that is there.
///
/// # Errors
///
/// Errors in the settings, the folder or the initial weights are found before anything is written. If the
/// training itself fails, its last checkpoint stays.
pub fn train<B: KernelBackend>(
    config: &RunConfig,
    folder: impl AsRef<Path>,
    options: TrainOptions,
    device: &B::Device,
) -> Result<Outcome, Error> {
    let folder = folder.as_ref();
    config.validate()?;
    let resumes = folder.join(LAST).exists();
    let mut config = config.clone();
    let begun = match folder.join(CONFIG).exists() {
        true => Some(RunConfig::open(folder.join(CONFIG))?),
        false => None,
    };
    let begun = begun.as_ref();
    settle_base(&mut config, begun.filter(|_| resumes), folder)?;
    let base = config.base.clone().filter(|_| !resumes);
    let tasks = tasks(&config, folder, base.as_ref())?;
    let tokenizer = tasks[0].tokenizer.clone();
    let mut method = match &config.base {
        Some(base) if resumes && config.keeps_model_elsewhere() => {
            let model = frozen(base, folder, device)?;
            config.method_config().blank_on(model, device)?
        }
        Some(base) if !resumes => {
            let mut base = base.clone();
            let loaded = open_method::<Autodiff<B>>(&base.folder, device)?;
            config.model = loaded.model().config();
            let method = begun_from(&config, loaded, &base.folder, device)?;
            let keeps_elsewhere = config.keeps_model_elsewhere();
            base.fingerprint = keeps_elsewhere.then(|| fingerprint(method.model()));
            config.base = Some(base);
            method
        }
        _ => initialized(&config, device)?,
    };

    if config.find_write_lr {
        (config, method) = with_step_size(config, method, &tasks, begun, device)?;
    }
    let context = tasks.iter().map(|task| task.lengths.context).max();
    let at_once = contexts_at_once(&config.train, context.unwrap_or(0));
    config.train.meta_gradient = outer_gradient_strategy(&config, &method, begun, at_once);
    if let AnyMethod::GradMem(gradmem) = &method {
        gradmem.check_memory(config.train.meta_gradient, at_once)?;
    }
    let settings = &config.train;
    let prints = tasks.iter().filter_map(|task| task.fingerprint.clone());
    let prints = prints.collect::<Vec<_>>().join("\n");
    let folder = RunFolder::for_training(folder, &config, &tokenizer, &prints)?;
    if !resumes {
        log_strategy(&config, &method, at_once);
    }
    let batcher = ExampleBatcher::new(tokenizer);
    let stages = tasks.into_iter();
    let stages = stages.map(|task| loaders(task, &method, &batcher, settings, device));
    let stages: Vec<Loaders<Autodiff<B>>> = stages.collect();
    let path = folder.path().to_path_buf();
    let mut optimizer = SharedOptimizer::new(settings);
    let mut state = RunState::default();
    let mut average = settings.ema_decay.map(|_| method.valid());
    if resumes {
        let last: Last<_, _, RecordOf<Autodiff<B>, AnyMethod<Autodiff<B>>>> =
            folder.load_last(method, device)?;
        let moments = &last.optimizer;
        check_moments(&last.module, &|id| moments.get(id)).map_err(|e| Error::file(&path, e))?;
        if last.average.is_some() != average.is_some() {
            let problem = "has a checkpoint of another train.ema_decay";
            return Err(Error::file(&path, problem));
        }
        (method, average, state) = (last.module, last.average, last.state);
        optimizer = Optimizer::load_record(optimizer, last.optimizer);
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
        Schedule::new(settings, state.step),
    );

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
        average,
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
    // Dropping the dashboard restores the terminal.
    drop(result);
    let outcome = outcome
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .take();
    outcome.unwrap_or_else(|| Err(Error::Failed("the training ended without a result".into())))
}

/// Where the model of a run comes from, by absolute path. A run that goes on is what it `begun` as: its own weights and
/// settings count, and where they came from stays on record.
fn settle_base(
    config: &mut RunConfig,
    begun: Option<&RunConfig>,
    folder: &Path,
) -> Result<(), Error> {
    let keeps_elsewhere = config.keeps_model_elsewhere();
    let Some(base) = &mut config.base else {
        return Ok(());
    };
    if let Ok(absolute) = base.folder.canonicalize() {
        if folder.canonicalize().is_ok_and(|own| own == absolute) {
            let problem = "is the run's own folder: a run cannot begin from itself. Name another one with --run";
            return Err(Error::file(&base.folder, problem));
        }
        base.folder = absolute;
    }
    let Some(begun) = begun else {
        return base.check();
    };
    match base.folder.is_dir() {
        // Whether the head is tied was settled by the folder's weights.
        true => config.model = config.model.clone().with_tied_head(begun.model.tied_head()),
        false => {
            config.model = begun.model.clone();
            config.tokens.tokenizer = begun.tokens.tokenizer.clone();
        }
    }
    if let Some(first) = &begun.base {
        base.fingerprint = first.fingerprint.clone();
        if !keeps_elsewhere {
            base.folder = first.folder.clone();
        }
    }
    Ok(())
}

/// The batches of one version of the task.
fn loaders<B: KernelBackend>(
    task: Task,
    method: &AnyMethod<Autodiff<B>>,
    batcher: &ExampleBatcher,
    settings: &TrainConfig,
    device: &B::Device,
) -> Loaders<Autodiff<B>> {
    let valid_batch = batch_size(method, &task);
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
        .batch_size(valid_batch)
        .set_device(device.clone())
        .build(task.valid);
    (train, valid)
}

/// Opens the versions of the task, all with one tokenizer: that of the run in `folder`, or else that of the
/// model that it begins with, or else that of the last version, the task itself.
fn tasks(config: &RunConfig, folder: &Path, base: Option<&Base>) -> Result<Vec<Task>, Error> {
    let begun = folder.join(CONFIG).exists();
    let kept = match begun {
        true => Some(folder.join(TOKENIZER)),
        false => base.and_then(Base::tokenizer),
    };
    if let (Some(path), false, Some(file)) = (&kept, begun, config.tokens.file()) {
        config.tokens.open(file)?.check(path)?;
    }
    let kept = kept.map(|path| config.data.kept_tokenizer(&config.tokens, path));
    let kept = kept.transpose()?;
    let open = |data: &DataConfig, made| -> Result<Task, Error> {
        let task = data.open(&config.tokens, config.train.seed, made)?;
        config.check_vocab(&task.tokenizer)?;
        config.check_positions(&task.lengths)?;
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

/// With α found: that of the run that `begun` before, or by a line search on the task's training contexts if the run begins.
fn with_step_size<B: KernelBackend>(
    mut config: RunConfig,
    method: AnyMethod<Autodiff<B>>,
    tasks: &[Task],
    begun: Option<&RunConfig>,
    device: &B::Device,
) -> Result<(RunConfig, AnyMethod<Autodiff<B>>), Error> {
    let AnyMethod::GradMem(gradmem) = method else {
        return Ok((config, method));
    };
    let found = match begun {
        Some(begun) => begun.memory.write_lr,
        None => {
            let task = &tasks[tasks.len() - 1];
            let found = tune::search(&gradmem.valid(), task, device)?;
            let lower = found.best().filter(|best| best.loss < found.before);
            let Some(best) = lower else {
                let problem =
                    "no step size lowers the WRITE loss of training contexts: give it as a number";
                return Err(Error::config("memory.write_lr", "auto", problem));
            };
            log::info!(target: "gradmem::notice", "{found}");
            best.write_lr
        }
    };
    config.memory.write_lr = found;
    Ok((config, AnyMethod::GradMem(gradmem.with_write_lr(found)?)))
}

/// Logs the outer-gradient strategy of a run that begins.
fn log_strategy<B: KernelBackend>(
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
            config.memory.most_steps(),
        );
    }
}

/// The outer-gradient strategy. `auto` is that of the run that `begun` before, or chosen by free memory if the run
/// begins: the choice changes the rounding, and a resumed run must not depend on free memory.
fn outer_gradient_strategy<B: KernelBackend>(
    config: &RunConfig,
    method: &AnyMethod<Autodiff<B>>,
    begun: Option<&RunConfig>,
    at_once: [usize; 2],
) -> MetaGradient {
    match (method, config.train.meta_gradient) {
        (AnyMethod::GradMem(gradmem), MetaGradient::Auto) => match begun {
            Some(begun) => begun.train.meta_gradient,
            None => gradmem.choose(MetaGradient::Auto, at_once),
        },
        (_, chosen) => chosen,
    }
}

/// `[batch, seq]` of the contexts that a step computes at once, if they have `context` tokens.
fn contexts_at_once(settings: &TrainConfig, context: usize) -> [usize; 2] {
    let batch = settings.batch_size;
    [settings.micro_batch.unwrap_or(batch).min(batch), context]
}

/// The method with the initial weights of the seed.
fn initialized<B: KernelBackend>(
    config: &RunConfig,
    device: &B::Device,
) -> Result<AnyMethod<B>, Error> {
    let section = match config.method {
        MethodName::GradMem => "memory",
        MethodName::Rmt => "rmt",
        MethodName::Armt => "armt",
        MethodName::InContext => "model",
    };
    config
        .method_config()
        .init(&config.model, config.train.seed, device)
        .map_err(|e| e.in_section(section))
}

/// The method with the weights that were loaded from a folder: all of them if that is the same method, or else those of
/// its language model.
fn begun_from<B: KernelBackend>(
    config: &RunConfig,
    loaded: AnyMethod<B>,
    from: &Path,
    device: &B::Device,
) -> Result<AnyMethod<B>, Error> {
    let method = config.method_config();
    if loaded.config().name() != method.name() {
        // What another method froze is trained by this one.
        let model = AnyLm::from(loaded).map(&mut RequireGrad(true));
        return method.attach(model, !config.train.seed, device);
    }
    let blank = method.blank(&config.model, device)?;
    let loaded = match (loaded, &method) {
        (AnyMethod::GradMem(gradmem), MethodConfig::GradMem(ours)) => {
            let (stored, tokens) = (gradmem.config().memory_tokens, ours.memory_tokens);
            if tokens < stored && ours.kind != MemoryKind::Lora {
                log::info!(
                    "the first {tokens} of the {stored} memory vectors of {} are taken",
                    from.display()
                );
            }
            let theirs = gradmem.config();
            for (key, same, found) in [
                (
                    "memory.kind",
                    theirs.kind == ours.kind,
                    format!("{:?}", theirs.kind),
                ),
                (
                    "memory.layers",
                    theirs.layers == ours.layers,
                    format!("{:?}", theirs.layers),
                ),
                (
                    "memory.lora_place",
                    theirs.lora_place == ours.lora_place,
                    format!("{:?}", theirs.lora_place),
                ),
                (
                    "memory.learned_lr",
                    theirs.learned_lr.is_empty() || theirs.learned_lr == ours.learned_lr,
                    format!("{:?}", theirs.learned_lr),
                ),
                (
                    "memory.momentum",
                    theirs.momentum.is_none() || ours.momentum.is_some(),
                    theirs.momentum.unwrap_or_default().to_string(),
                ),
                (
                    "memory.lora_targets",
                    theirs.lora_targets == ours.lora_targets,
                    format!("{:?}", theirs.lora_targets),
                ),
            ] {
                if !same {
                    let found = found.to_lowercase();
                    return Err(Error::file(
                        from,
                        format!("has {key} = {found}, unlike this run"),
                    ));
                }
            }
            AnyMethod::GradMem(gradmem.with_first_tokens(tokens).with_inner(ours))
        }
        (loaded, _) => loaded,
    };
    weights::transfer(&loaded, blank)
        .map_err(|e| Error::file(from, format!("has other parameters than this run: {e}")))
}

/// Replaces burn-train's metric logger, whose files cannot be resumed inside an evaluation interval.
/// `metrics.jsonl` is written instead.
struct NoMetricLogger;

impl MetricLogger for NoMetricLogger {
    fn log(&mut self, _: MetricsUpdate, _: usize, _: &Split) {}

    fn read_numeric(&mut self, _: &str, _: usize, _: &Split) -> Result<Vec<NumericEntry>, String> {
        Ok(Vec::new())
    }

    fn log_metric_definition(&mut self, _: MetricDefinition) {}

    fn log_epoch_summary(&mut self, _: EpochSummary) {}
}
