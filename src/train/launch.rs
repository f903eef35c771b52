//! A training in a run's folder, begun or gone on with: burn-train's learner and display, our strategy and checkpoints.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use burn::data::dataloader::DataLoaderBuilder;
use burn::data::dataloader::batcher::Batcher;
use burn::data::dataset::Dataset;
use burn::module::{AutodiffModule, ModuleDisplay};
use burn::optim::Optimizer;
use burn::tensor::backend::AutodiffBackend;
use burn::train::logger::MetricLogger;
use burn::train::metric::store::{EpochSummary, MetricsUpdate, Split};
use burn::train::metric::{LearningRateMetric, MetricDefinition, NumericEntry};
use burn::train::{Learner, SupervisedTraining, TrainingStrategy};
use tempfile::TempDir;

use super::checkpoint::{Last, RunState, with_plain_ids};
use super::config::TrainConfig;
use super::folder::{BEST, LAST, RunFolder};
use super::learner::{MetaLearner, OuterStep};
use super::metrics::{Measure, MeasureMetric};
use super::optimizer::{AdamW, RecordOf, SharedOptimizer, check_moments, check_types};
use super::options::TrainOptions;
use super::render::{Silent, dashboard};
use super::schedule::Schedule;
use super::strategy::{Components, Loaders, MetaTraining, Outcome};
use super::world::{World, all_or_none, check_leaves, from_the_first, leaf_size};
use crate::data::{Batch, Cycle};
use crate::error::Error;
use crate::memory::MetaGradient;
use crate::method::Method;

/// The batches of one version of a task, the validation samples `valid_batch` at once. Training samples are repeated for
/// as many steps as there are, in another order each time if they are to be `shuffled`.
pub(super) fn loaders<B, I, C>(
    (train, valid): (impl Dataset<I> + 'static, impl Dataset<I> + 'static),
    batcher: C,
    settings: &TrainConfig,
    shuffled: bool,
    valid_batch: usize,
    device: &B::Device,
) -> Loaders<B>
where
    B: AutodiffBackend,
    I: Send + Sync + Clone + std::fmt::Debug + 'static,
    C: Batcher<B, I, Result<Batch<B>, Error>>
        + Batcher<B::InnerBackend, I, Result<Batch<B::InnerBackend>, Error>>
        + Clone
        + 'static,
{
    // More than can be counted is refused by `validate`.
    let items = settings.steps.saturating_mul(settings.batch_size);
    let items = match shuffled {
        true => Cycle::shuffled(train, items, settings.seed),
        false => Cycle::new(train, items),
    };
    let train = DataLoaderBuilder::new(batcher.clone())
        .batch_size(settings.batch_size)
        .set_device(device.clone())
        .build(items);
    let valid = DataLoaderBuilder::new(batcher)
        .batch_size(valid_batch)
        .set_device(device.clone())
        .build(valid);
    (train, valid)
}

/// Settles what the settings leave open: as in the run that `begun` before, since it changes the rounding, or by the
/// processes and the memory that there are. `context` is the longest one; a run that `resumes` has a checkpoint.
pub(super) fn settle<B: AutodiffBackend, M: Method<B>>(
    train: &mut TrainConfig,
    method: &M,
    begun: Option<&TrainConfig>,
    resumes: bool,
    context: usize,
    processes: usize,
) -> Result<(), Error> {
    let in_section = |e: Error| e.in_section("train");
    if let Some(begun) = begun {
        if train.meta_gradient == MetaGradient::Auto {
            train.meta_gradient = begun.meta_gradient;
        }
        if resumes && train.micro_batch.is_none() {
            train.micro_batch = begun.micro_batch;
            check_leaves(train.micro_batch, processes).map_err(in_section)?;
        }
    }
    train.micro_batch =
        leaf_size(train.batch_size, train.micro_batch, processes).map_err(in_section)?;
    let at_once = [train.contexts_at_once(), context];
    train.meta_gradient = method.settle(train.meta_gradient, at_once)?;
    Ok(())
}

/// What a training begins with or goes on from.
struct Start<B, M>
where
    B: AutodiffBackend,
    M: AutodiffModule<B> + ModuleDisplay,
    M::InnerModule: ModuleDisplay,
{
    method: M,
    average: Option<M::InnerModule>,
    optimizer: SharedOptimizer<B, M>,
    state: RunState,
}

impl<B, M> Start<B, M>
where
    B: AutodiffBackend,
    M: Method<B> + AutodiffModule<B> + 'static,
    M::InnerModule: Method<B::InnerBackend>,
{
    fn new(method: M, settings: &TrainConfig, adamw: AdamW<B::InnerBackend>) -> Self {
        let method = with_plain_ids(method);
        Self {
            average: settings.ema_decay.map(|_| method.valid()),
            method,
            optimizer: SharedOptimizer::new(adamw),
            state: RunState::default(),
        }
    }

    /// From the last checkpoint of a folder, if there is one.
    fn go_on(self, folder: &RunFolder) -> Result<Self, Error> {
        let path = folder.path();
        if !path.join(LAST).exists() {
            return Ok(self);
        }
        let device = self.method.devices().into_iter().next();
        let last: Last<_, _, RecordOf<B, M>> =
            folder.load_last(self.method, &device.unwrap_or_default())?;
        let moments = &last.optimizer;
        check_moments(&last.module, &|id| moments.get(id)).map_err(|e| Error::file(path, e))?;
        if last.average.is_some() != self.average.is_some() {
            let problem = "has a checkpoint of another train.ema_decay";
            return Err(Error::file(path, problem));
        }
        let mut state = last.state;
        // The other processes have the state of the first one, and no best weights.
        if let Some((_, step)) = state.best.filter(|_| folder.is_locked() && !state.lost) {
            let found = folder.best_step();
            state.lost = found != Some(step);
            match found {
                Some(found) if found == step => {}
                Some(found) => log::warn!(
                    "{}: ended while it saved, between the best weights, of step {found}, and its checkpoint: the next evaluation replaces them",
                    path.display()
                ),
                None => log::warn!(
                    "{}: the best weights, of step {step}, are missing or cannot be read: the next evaluation replaces them",
                    path.join(BEST).display()
                ),
            }
        }
        Ok(Self {
            method: last.module,
            average: last.average,
            optimizer: Optimizer::load_record(self.optimizer, last.optimizer),
            state,
        })
    }

    /// That of the first process in all, as the files of a checkpoint.
    fn of_the_first(self, world: &dyn World) -> Result<Self, Error> {
        let files = from_the_first(world, || {
            let folder = temporary()?;
            self.save(&RunFolder::unlocked(folder.path()))?;
            read_all(folder.path())
        })?;
        let own = match world.rank() {
            0 => Ok(self),
            _ => with_files(files, |folder| self.go_on(&RunFolder::unlocked(folder))),
        };
        all_or_none(world, own)
    }

    fn save(&self, folder: &RunFolder) -> Result<(), Error> {
        let last = Last {
            module: &self.method,
            average: self.average.as_ref(),
            optimizer: Optimizer::to_record(&self.optimizer),
            state: self.state.clone(),
        };
        folder.save_last(last, 0)
    }
}

/// A temporary folder.
fn temporary() -> Result<TempDir, Error> {
    tempfile::tempdir().map_err(Error::io("", "cannot make a temporary folder"))
}

/// Opens files, by name, in a temporary folder.
pub(super) fn with_files<T>(
    files: Vec<(String, Vec<u8>)>,
    open: impl FnOnce(&Path) -> Result<T, Error>,
) -> Result<T, Error> {
    let folder = temporary()?;
    for (name, bytes) in files {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).map_err(Error::io(&path, "cannot write"))?;
    }
    open(folder.path())
}

/// A folder's files, by name.
fn read_all(folder: &Path) -> Result<Vec<(String, Vec<u8>)>, Error> {
    let entries = std::fs::read_dir(folder).map_err(Error::io(folder, "cannot read"))?;
    let files = entries.flatten().map(|entry| {
        let bytes = std::fs::read(entry.path()).map_err(Error::io(entry.path(), "cannot read"))?;
        Ok((entry.file_name().to_string_lossy().into_owned(), bytes))
    });
    files.collect()
}

/// Trains `method` on the batches of each version of the task, from the folder's last checkpoint if there is one. All
/// `measures` are shown. The first process alone has a folder.
pub(super) fn launch<B, M>(
    method: M,
    stages: Vec<Loaders<B>>,
    settings: &TrainConfig,
    measures: &[Measure],
    folder: Option<RunFolder>,
    adamw: AdamW<B::InnerBackend>,
    options: TrainOptions,
) -> Result<Outcome, Error>
where
    B: AutodiffBackend,
    M: Method<B> + AutodiffModule<B> + 'static,
    M::InnerModule: Method<B::InnerBackend>,
{
    check_types(&method)?;
    let world = options.world;
    let start = Start::new(method, settings, adamw);
    let start = match &folder {
        Some(folder) => start.go_on(folder),
        None => Ok(start),
    };
    let mut start = all_or_none(&*world, start)?;
    if world.size() > 1 {
        start = start.of_the_first(&*world)?;
    }
    let Start {
        method,
        average,
        optimizer,
        state,
    } = start;
    let path = folder.as_ref().map(|folder| folder.path().to_path_buf());
    let path = path.unwrap_or_default();
    let learner = Learner::new(
        MetaLearner::new(
            method,
            OuterStep {
                meta_gradient: settings.meta_gradient,
                micro_batch: settings.micro_batch,
                clip_norm: settings.clip_norm,
                seed: Some(settings.seed),
                world: world.clone(),
            },
        ),
        optimizer.clone(),
        Schedule::new(settings, state.step),
    );

    let Some((train_loader, valid_loader)) = stages.get(state.stage).cloned() else {
        return Err(Error::file(&path, "has a checkpoint of another curriculum"));
    };
    let outcome = Arc::new(Mutex::new(None));
    let is_first = world.rank() == 0;
    let dashboard = is_first.then(|| dashboard(options.plain, &options.interrupter));
    let strategy = MetaTraining {
        config: settings.clone(),
        folder,
        world,
        start: state,
        average,
        optimizer,
        stages,
        prints: matches!(dashboard, Some(None)),
        outcome: outcome.clone(),
    };
    let mut training: SupervisedTraining<Components<B, M>> =
        SupervisedTraining::new(path, train_loader, valid_loader)
            .with_interrupter(options.interrupter)
            .with_application_logger(None)
            .with_metric_logger(NoMetricLogger)
            .metric_train_numeric(LearningRateMetric::new());
    for measure in measures.iter().copied() {
        training = training.metric_valid_numeric(MeasureMetric::new(measure));
        if !measure.is_of_validation() {
            training = training.metric_train_numeric(MeasureMetric::new(measure));
        }
    }
    let training = match dashboard.flatten() {
        Some(dashboard) => training.renderer(dashboard),
        None => training.renderer(Silent),
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
