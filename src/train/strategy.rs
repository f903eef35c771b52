//! The outer loop, as a burn-train strategy: steps, evaluations, checkpoints, and the reasons to stop.
//!
//! burn-train's own strategies checkpoint whole epochs; this one can stop and go on at any step.

use std::sync::{Arc, Mutex, PoisonError};

use burn::data::dataloader::{DataLoader, Progress};
use burn::module::{AutodiffModule, ModuleDisplay};
use burn::optim::adaptor::OptimizerAdaptor;
use burn::optim::lr_scheduler::linear::LinearLrScheduler;
use burn::optim::{AdamW, GradientsParams, LearningRate, MultiGradientsParams, Optimizer};
use burn::tensor::backend::AutodiffBackend;
use burn::train::logger::MetricLogger;
use burn::train::metric::store::{EpochSummary, MetricsUpdate, Split};
use burn::train::metric::{MetricDefinition, NumericEntry};
use burn::train::{
    EventProcessorTraining, InferenceStep, Learner, LearnerEvent, LearningComponentsMarker,
    SupervisedLearningStrategy, SupervisedTrainingEventProcessor, TrainLoader, TrainingComponents,
    TrainingItem, ValidLoader,
};

use super::checkpoint::{MetricsLog, RunFolder, RunState};
use super::config::TrainConfig;
use super::learner::{Fault, MetaLearner};
use super::metrics::Scores;
use crate::data::Batch;
use crate::error::Error;
use crate::method::Method;
use crate::support::profile::{self, Phase, timed};

/// The parts burn-train needs to know of a training.
pub(super) type Components<B, M> =
    LearningComponentsMarker<B, LinearLrScheduler, MetaLearner<B, M>, SharedOptimizer<B, M>>;

type AdamWOf<B, M> = OptimizerAdaptor<AdamW, MetaLearner<B, M>, B>;

/// An optimizer with two owners. burn-train's learner keeps its optimizer to itself, and a
/// checkpoint needs the optimizer's state.
#[derive(Clone)]
pub(super) struct SharedOptimizer<B, M>(Arc<Mutex<AdamWOf<B, M>>>)
where
    B: AutodiffBackend,
    M: AutodiffModule<B> + ModuleDisplay,
    M::InnerModule: ModuleDisplay;

impl<B, M> SharedOptimizer<B, M>
where
    B: AutodiffBackend,
    M: AutodiffModule<B> + ModuleDisplay,
    M::InnerModule: ModuleDisplay,
{
    /// Shares `optimizer`.
    pub(super) fn new(optimizer: AdamWOf<B, M>) -> Self {
        Self(Arc::new(Mutex::new(optimizer)))
    }

    fn with<R>(&self, run: impl FnOnce(&mut AdamWOf<B, M>) -> R) -> R {
        run(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl<B, M> Optimizer<MetaLearner<B, M>, B> for SharedOptimizer<B, M>
where
    B: AutodiffBackend,
    M: AutodiffModule<B> + ModuleDisplay,
    M::InnerModule: ModuleDisplay,
{
    type Record = <AdamWOf<B, M> as Optimizer<MetaLearner<B, M>, B>>::Record;

    fn step(
        &mut self,
        lr: LearningRate,
        module: MetaLearner<B, M>,
        grads: GradientsParams,
    ) -> MetaLearner<B, M> {
        self.with(|optimizer| optimizer.step(lr, module, grads))
    }

    fn step_multi(
        &mut self,
        lr: LearningRate,
        module: MetaLearner<B, M>,
        grads: MultiGradientsParams,
    ) -> MetaLearner<B, M> {
        self.with(|optimizer| optimizer.step_multi(lr, module, grads))
    }

    fn to_record(&self) -> Self::Record {
        self.with(|optimizer| optimizer.to_record())
    }

    fn load_record(self, record: Self::Record) -> Self {
        self.with(|optimizer| *optimizer = optimizer.clone().load_record(record));
        self
    }
}

/// Why a training ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Ending {
    /// All steps are done.
    Steps,
    /// `stop_value` was reached.
    Reached,
    /// Somebody asked for it, in these words.
    Interrupted(String),
}

/// How a training ended.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Outcome {
    /// Why.
    pub ending: Ending,
    /// Where the run stands.
    pub state: RunState,
    /// The last evaluation, if there was one.
    pub valid: Option<Scores>,
}

/// Batches of samples, or what was wrong with one of them.
pub(super) type Batches<B> = Arc<dyn DataLoader<B, Result<Batch<B>, Error>>>;

/// The training and the validation batches of one version of the task.
pub(super) type Loaders<B> = (Batches<B>, Batches<<B as AutodiffBackend>::InnerBackend>);

/// The strategy.
pub(super) struct MetaTraining<B, M>
where
    B: AutodiffBackend,
    M: AutodiffModule<B> + ModuleDisplay,
    M::InnerModule: ModuleDisplay,
{
    /// Settings of the outer loop.
    pub(super) config: TrainConfig,
    /// Where the run is kept.
    pub(super) folder: RunFolder,
    /// Where it begins.
    pub(super) start: RunState,
    /// The learner's optimizer.
    pub(super) optimizer: SharedOptimizer<B, M>,
    /// The versions of the task that it goes through, each with its training and validation batches.
    pub(super) stages: Vec<Loaders<B>>,
    /// What came of it, for whoever launched it: burn-train's own result cannot say.
    pub(super) outcome: Arc<Mutex<Option<Result<Outcome, Error>>>>,
}

impl<B, M> SupervisedLearningStrategy<Components<B, M>> for MetaTraining<B, M>
where
    B: AutodiffBackend,
    M: Method<B> + AutodiffModule<B> + 'static,
    M::InnerModule: Method<B::InnerBackend>,
{
    fn fit(
        &self,
        components: TrainingComponents<Components<B, M>>,
        learner: Learner<Components<B, M>>,
        _: TrainLoader<Components<B, M>>,
        _: ValidLoader<Components<B, M>>,
        _: usize,
    ) -> (
        MetaLearner<B, M>,
        SupervisedTrainingEventProcessor<Components<B, M>>,
    ) {
        let mut run = Run {
            strategy: self,
            learner,
            processor: components.event_processor,
            state: self.start.clone(),
            valid_scores: None,
        };
        let stop = || {
            let message = || components.interrupter.get_message().unwrap_or_default();
            components.interrupter.should_stop().then(message)
        };
        let ending = run.steps(stop);
        let outcome = ending.map(|ending| Outcome {
            ending,
            state: run.state.clone(),
            valid: run.valid_scores,
        });
        *self.outcome.lock().unwrap_or_else(PoisonError::into_inner) = Some(outcome);
        (run.learner.model(), run.processor)
    }
}

struct Run<'a, B, M>
where
    B: AutodiffBackend,
    M: Method<B> + AutodiffModule<B> + 'static,
    M::InnerModule: Method<B::InnerBackend>,
{
    strategy: &'a MetaTraining<B, M>,
    learner: Learner<Components<B, M>>,
    processor: SupervisedTrainingEventProcessor<Components<B, M>>,
    state: RunState,
    valid_scores: Option<Scores>,
}

impl<B, M> Run<'_, B, M>
where
    B: AutodiffBackend,
    M: Method<B> + AutodiffModule<B> + 'static,
    M::InnerModule: Method<B::InnerBackend>,
{
    fn steps(&mut self, stop: impl Fn() -> Option<String>) -> Result<Ending, Error> {
        let config = &self.strategy.config;
        let mut log = self.strategy.folder.metrics(self.state.step)?;
        // The learning rate stays as it is after the warm-up.
        for _ in 0..self.state.step.min(config.warmup_steps.saturating_add(1)) {
            self.learner.lr_step();
        }
        loop {
            if let Some(message) = stop() {
                self.save_last()?;
                return Ok(Ending::Interrupted(message));
            }
            let step = self.state.step;
            let due = step == config.steps || step.is_multiple_of(config.eval_every);
            if due && step > self.state.evaluated {
                self.evaluate(&mut log)?;
                while self.may_go_on() {
                    self.state.stage += 1;
                    self.state.best = None;
                    self.evaluate(&mut log)?;
                }
                self.save_last()?;
            }
            if self.reached() {
                return Ok(Ending::Reached);
            }
            if step >= config.steps {
                return Ok(Ending::Steps);
            }
            let end = self.interval_end();
            let items = step * config.batch_size..end * config.batch_size;
            let strategy = self.strategy;
            let (train, _) = &strategy.stages[self.state.stage];
            for batch in train.slice(items.start, items.end).iter() {
                self.step(batch, end, &mut log)?;
                if stop().is_some() {
                    break;
                }
            }
            let epoch = self.epoch();
            self.processor.process_train(LearnerEvent::EndEpoch(epoch));
        }
    }

    /// Whether the best weights are as good as asked for.
    fn reached(&self) -> bool {
        let stop = self.strategy.config.stop_value;
        self.is_last_stage() && stop.is_some_and(|stop| self.has(stop))
    }

    /// Whether the curriculum's next version of the task is due.
    fn may_go_on(&self) -> bool {
        !self.is_last_stage() && self.has(self.strategy.config.curriculum_value)
    }

    fn is_last_stage(&self) -> bool {
        self.state.stage + 1 == self.strategy.stages.len()
    }

    /// Whether the best weights have this value of the stop metric or a better one.
    fn has(&self, value: f64) -> bool {
        let measure = self.strategy.config.stop_metric;
        let best = self.state.best.map(|(best, _)| best);
        best.is_some_and(|best| best == value || measure.better(best, value))
    }

    /// The step of the next evaluation.
    fn interval_end(&self) -> usize {
        let config = &self.strategy.config;
        let next = (self.state.step / config.eval_every + 1) * config.eval_every;
        next.min(config.steps)
    }

    /// The evaluation interval the run is in, from 1.
    fn epoch(&self) -> usize {
        self.state.step.div_ceil(self.strategy.config.eval_every)
    }

    fn progress(&self) -> Progress {
        let config = &self.strategy.config;
        Progress::new(self.epoch(), config.steps.div_ceil(config.eval_every))
    }

    fn step(
        &mut self,
        batch: Result<Batch<B>, Error>,
        end: usize,
        log: &mut MetricsLog,
    ) -> Result<(), Error> {
        let config = &self.strategy.config;
        self.learner.lr_step();
        let device = batch.as_ref().map(|batch| batch.episode.device());
        let device = device.unwrap_or_default();
        let output = self.learner.train_step(batch);
        let step = self.state.step + 1;
        if let Some(fault) = output.item.error {
            return Err(blame(fault, step, step - 1));
        }
        timed::<B, _>(Phase::Optimizer, &device, || {
            self.learner.optimizer_step(output.grads);
        });
        profile::report(step);
        self.state.step = step;
        self.state.since_log.merge(&output.item.scores);
        let lr = self.learner.lr_current();
        if step.is_multiple_of(config.log_every) || step == config.steps {
            let scores = std::mem::take(&mut self.state.since_log);
            log.push(self.line("train", Some(lr), &scores))?;
        }
        let in_interval = |step: usize| (step - 1) % config.eval_every + 1;
        let progress = Progress::new(
            in_interval(step) * config.batch_size,
            in_interval(end) * config.batch_size,
        );
        let item = TrainingItem::new(output.item, progress, self.progress(), Some(step), Some(lr));
        self.processor
            .process_train(LearnerEvent::ProcessedItem(item));
        Ok(())
    }

    /// Scores the validation set, logs it, and keeps the weights if they are the best so far, or as good
    /// as the best: those that have learned longer.
    fn evaluate(&mut self, log: &mut MetricsLog) -> Result<(), Error> {
        let strategy = self.strategy;
        let config = &strategy.config;
        let (_, valid) = &strategy.stages[self.state.stage];
        let step = self.state.step;
        let model = self.learner.model().valid();
        let mut scores = Scores::default();
        let mut iterator = valid.iter();
        let mut index = 0;
        while let Some(batch) = iterator.next() {
            let output = InferenceStep::step(&model, batch);
            if let Some(fault) = output.error {
                return Err(blame(fault, step, index));
            }
            index += 1;
            scores.merge(&output.scores);
            let progress = iterator.progress();
            let item = TrainingItem::new(output, progress, self.progress(), Some(step), None);
            self.processor
                .process_valid(LearnerEvent::ProcessedItem(item));
        }
        let epoch = self.epoch();
        self.processor.process_valid(LearnerEvent::EndEpoch(epoch));
        log.push(self.line("valid", None, &scores))?;
        self.valid_scores = Some(scores);
        self.state.evaluated = step;
        let measure = config.stop_metric;
        let Some(value) = scores.mean(measure) else {
            return Ok(());
        };
        if self
            .state
            .best
            .is_none_or(|(best, _)| value == best || measure.better(value, best))
        {
            self.state.best = Some((value, step));
            self.strategy
                .folder
                .save_best(&model.method, step, measure, value)?;
        }
        Ok(())
    }

    /// A line of the log.
    fn line(&self, split: &str, lr: Option<f64>, scores: &Scores) -> serde_json::Value {
        let mut line = serde_json::Map::new();
        line.insert("step".into(), self.state.step.into());
        line.insert("split".into(), split.into());
        if self.strategy.stages.len() > 1 {
            line.insert("stage".into(), self.state.stage.into());
        }
        line.extend(lr.map(|lr| ("lr".to_string(), lr.into())));
        line.extend(scores.to_json());
        line.into()
    }

    fn save_last(&self) -> Result<(), Error> {
        let model = self.learner.model();
        let record = Optimizer::to_record(&self.strategy.optimizer);
        self.strategy
            .folder
            .save_last::<B, _, _>(&model.method, record, &self.state)
    }
}

/// The error a fault is, with the step and batch it happened in.
pub(super) fn blame(fault: Fault, step: usize, batch: usize) -> Error {
    let hint = "try a smaller train.lr or, with gradmem, a smaller memory.write_lr, \
                or set memory.inner_clip_norm";
    match fault {
        Fault::Error(error) => error,
        Fault::Gradient(norm) => Error::Failed(format!(
            "the outer gradient's norm became {norm} at step {step}, batch {batch}: {hint}"
        )),
        Fault::NotFinite { sample, value } => Error::NotFinite {
            value,
            step,
            batch,
            sample,
            hint: hint.into(),
        },
    }
}

/// burn-train's own log, which this crate does not keep: its file would not survive going on in the
/// middle of an interval. `metrics.jsonl` takes its place.
pub(super) struct NoMetricLogger;

impl MetricLogger for NoMetricLogger {
    fn log(&mut self, _: MetricsUpdate, _: usize, _: &Split) {}

    fn read_numeric(&mut self, _: &str, _: usize, _: &Split) -> Result<Vec<NumericEntry>, String> {
        Ok(Vec::new())
    }

    fn log_metric_definition(&mut self, _: MetricDefinition) {}

    fn log_epoch_summary(&mut self, _: EpochSummary) {}
}
