//! The outer loop as a burn-train strategy: steps, evaluations, checkpoints and stopping.
//!
//! burn-train's own strategies save checkpoints after whole epochs. This one can stop and resume at any step.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use burn::data::dataloader::{DataLoader, Progress};
use burn::module::{AutodiffModule, ModuleDisplay};
use burn::optim::Optimizer;
use burn::tensor::backend::AutodiffBackend;
use burn::train::{
    EventProcessorTraining, InferenceStep, Learner, LearnerEvent, LearningComponentsMarker,
    SupervisedLearningStrategy, SupervisedTrainingEventProcessor, TrainLoader, TrainingComponents,
    TrainingItem, ValidLoader,
};

use super::average::{averaged, kept};
use super::checkpoint::{Last, RunFolder, RunState};
use super::config::TrainConfig;
use super::folder::hash;
use super::learner::{MetaLearner, StepOutput};
use super::metrics::Scores;
use super::metrics_log::MetricsLog;
use super::optimizer::SharedOptimizer;
use super::render::Lines;
use super::schedule::Schedule;
use super::world::{World, agreed_stop, all_or_none, exchanged, same};
use crate::data::Batch;
use crate::error::Error;
use crate::method::Method;
use crate::model::weights;
use crate::support::profile::{self, Phase, timed};

/// The types of the components that burn-train trains with.
pub(super) type Components<B, M> =
    LearningComponentsMarker<B, Schedule, MetaLearner<B, M>, SharedOptimizer<B, M>>;

/// Why a training ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Ending {
    /// All `train.steps` were taken.
    Steps,
    /// The stop metric reached `train.stop_value`.
    Reached,
    /// No evaluation of the last `train.patience` was better than the best before.
    Patience,
    /// The training was interrupted, with this message.
    Interrupted(String),
}

/// The result of a training.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Outcome {
    /// Why it ended.
    pub ending: Ending,
    /// The run's progress.
    pub state: RunState,
    /// The scores of the last evaluation, if there was one.
    pub valid: Option<Scores>,
}

/// Batches of samples, or the error of making one.
pub(super) type Batches<B> = Arc<dyn DataLoader<B, Result<Batch<B>, Error>>>;

/// The training and the validation batches of one version of the task.
pub(super) type Loaders<B> = (Batches<B>, Batches<<B as AutodiffBackend>::InnerBackend>);

/// The strategy and what it needs.
pub(super) struct MetaTraining<B, M>
where
    B: AutodiffBackend,
    M: AutodiffModule<B> + ModuleDisplay,
    M::InnerModule: ModuleDisplay,
{
    /// Settings of the outer loop.
    pub(super) config: TrainConfig,
    /// The run's folder; the first process alone has it.
    pub(super) folder: Option<RunFolder>,
    /// The processes that train together.
    pub(super) world: Arc<dyn World>,
    /// The state to start from.
    pub(super) start: RunState,
    /// The average of the weights to start from, if there is one.
    pub(super) average: Option<M::InnerModule>,
    /// The learner's optimizer.
    pub(super) optimizer: SharedOptimizer<B, M>,
    /// The batches of each version of the task, in the curriculum's order.
    pub(super) stages: Vec<Loaders<B>>,
    /// Whether lines are printed.
    pub(super) prints: bool,
    /// The result, set at the end: burn-train's own result has no place for it.
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
            average: self.average.clone(),
            valid_scores: None,
            lines: self.prints.then(|| Lines::new(self.config.steps)),
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

/// Loaders end where a data set gives none, without a word.
fn incomplete(set: &str) -> Error {
    Error::Input(format!(
        "the {set} data set gives no sample (`Dataset::get` is `None`) at an index below its length"
    ))
}

/// A training in progress.
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
    average: Option<M::InnerModule>,
    valid_scores: Option<Scores>,
    lines: Option<Lines>,
}

impl<B, M> Run<'_, B, M>
where
    B: AutodiffBackend,
    M: Method<B> + AutodiffModule<B> + 'static,
    M::InnerModule: Method<B::InnerBackend>,
{
    /// Steps and evaluations until one of the reasons to end.
    fn steps(&mut self, stop: impl Fn() -> Option<String>) -> Result<Ending, Error> {
        let config = &self.strategy.config;
        let world = &*self.strategy.world;
        let folder = self.strategy.folder.as_ref();
        // Best weights that are lost come back with an evaluation: with that of this step once more, where no other follows.
        let again = self.state.lost && self.is_over();
        if again {
            let before = self.state.step.saturating_sub(1);
            self.state.evaluated = self.state.evaluated.min(before);
        }
        let log = folder.map(|folder| folder.metrics(self.state.step, self.state.evaluated));
        let mut log = all_or_none(world, log.transpose())?;
        loop {
            if let Some(message) = agreed_stop(world, self.state.step, stop())? {
                self.save_last(&log)?;
                return Ok(Ending::Interrupted(message));
            }
            let step = self.state.step;
            let due = step == config.steps || step.is_multiple_of(config.eval_every);
            if (due || again) && step > self.state.evaluated {
                let before = self.state.clone();
                let interrupted = self.evaluations(&mut log, &stop)?;
                if let Some(message) = interrupted {
                    // A run that goes on from here scores all of it. A part of the curriculum that was done has other best weights.
                    let lost = before.lost || self.state.stage > before.stage;
                    self.state = RunState { lost, ..before };
                    self.save_last(&log)?;
                    return Ok(Ending::Interrupted(message));
                }
                self.save_last(&log)?;
            }
            if self.reached() {
                return Ok(Ending::Reached);
            }
            if self.is_out_of_patience() {
                return Ok(Ending::Patience);
            }
            if step >= config.steps {
                return Ok(Ending::Steps);
            }
            let end = self.interval_end();
            let items = step * config.batch_size..end * config.batch_size;
            let strategy = self.strategy;
            let (train, _) = &strategy.stages[self.state.stage];
            let interval = train.slice(items.start, items.end);
            let mut batches = interval.iter();
            while self.state.step < end {
                let wanted = (self.state.step + 1 - step) * config.batch_size;
                let batch = batches.next();
                let whole = batch.filter(|_| batches.progress().items_processed >= wanted);
                self.step(whole.ok_or_else(|| incomplete("training"))?, end, &mut log)?;
                if agreed_stop(world, self.state.step, stop())?.is_some() {
                    break;
                }
            }
            let epoch = self.epoch();
            self.processor.process_train(LearnerEvent::EndEpoch(epoch));
        }
    }

    /// Evaluates, also the next versions of the task if they are due. The message if it was interrupted.
    fn evaluations(
        &mut self,
        log: &mut Option<MetricsLog>,
        stop: &impl Fn() -> Option<String>,
    ) -> Result<Option<String>, Error> {
        let mut interrupted = self.evaluate(log, stop)?;
        while interrupted.is_none() && self.may_advance() {
            self.state.stage += 1;
            self.state.best = None;
            if let Some(lines) = &self.lines {
                let settings = self.strategy.config.curriculum.get(self.state.stage);
                let next = match settings {
                    Some(settings) => settings.clone(),
                    None if self.is_last_stage() => "the task itself".into(),
                    None => format!("part {}", self.state.stage + 1),
                };
                lines.stage(self.state.step, &next);
            }
            // A line of the log is about one version.
            self.state.since_log = Scores::default();
            interrupted = self.evaluate(log, stop)?;
        }
        Ok(interrupted)
    }

    /// Whether no step follows.
    fn is_over(&self) -> bool {
        let is_last = self.state.step >= self.strategy.config.steps;
        is_last || self.reached() || self.is_out_of_patience()
    }

    /// Whether the best weights have reached `stop_value`.
    fn reached(&self) -> bool {
        let stop = self.strategy.config.stop_value;
        self.is_last_stage() && stop.is_some_and(|stop| self.has(stop))
    }

    /// Whether the last `patience` evaluations were no better than one before them.
    fn is_out_of_patience(&self) -> bool {
        let config = &self.strategy.config;
        let Some(patience) = config.patience else {
            return false;
        };
        if self.state.best_by(config.stop_metric).is_none() {
            return false;
        }
        // The last step may be evaluated between two others.
        let [evaluated, improved] = [self.state.evaluated, self.state.improved];
        let since = evaluated.div_ceil(config.eval_every) - improved.div_ceil(config.eval_every);
        since >= patience
    }

    /// Whether the curriculum's next version of the task is due: not behind the last step where no evaluation is due otherwise, or a
    /// training that is given more steps would differ from one that had them at once.
    fn may_advance(&self) -> bool {
        let config = &self.strategy.config;
        let due = self.state.step.is_multiple_of(config.eval_every);
        due && !self.is_last_stage() && self.has(config.curriculum_value)
    }

    fn is_last_stage(&self) -> bool {
        self.state.stage + 1 == self.strategy.stages.len()
    }

    /// Whether the best weights have at least this value of the stop metric.
    fn has(&self, value: f64) -> bool {
        let measure = self.strategy.config.stop_metric;
        let best = self.state.best_by(measure).map(|(best, _)| best);
        best.is_some_and(|best| best == value || measure.better(best, value))
    }

    /// The step of the next evaluation.
    fn interval_end(&self) -> usize {
        let config = &self.strategy.config;
        let next = (self.state.step / config.eval_every + 1) * config.eval_every;
        next.min(config.steps)
    }

    /// The current evaluation interval, from 1.
    fn epoch(&self) -> usize {
        self.state.step.div_ceil(self.strategy.config.eval_every)
    }

    fn progress(&self) -> Progress {
        let config = &self.strategy.config;
        Progress::new(self.epoch(), config.steps.div_ceil(config.eval_every))
    }

    /// One step of the outer loop.
    fn step(
        &mut self,
        batch: Result<Batch<B>, Error>,
        end: usize,
        log: &mut Option<MetricsLog>,
    ) -> Result<(), Error> {
        let config = &self.strategy.config;
        self.learner.lr_step();
        let device = batch.as_ref().map(|batch| batch.episode.device());
        let device = device.unwrap_or_default();
        let batch = batch.map(|batch| batch.in_training(self.state.step, config.label_smoothing));
        let output = self.learner.train_step(batch);
        let step = self.state.step + 1;
        if let Some(fault) = output.item.error {
            return Err(fault.locate(step, step - 1));
        }
        timed::<B, _>(Phase::Optimizer, &device, || {
            self.learner.optimizer_step(output.grads);
            if let (Some(average), Some(decay)) = (self.average.take(), config.ema_decay) {
                let weights = &self.learner.model().method;
                self.average = Some(averaged(average, weights, kept(decay, step)));
            }
        });
        profile::report(step);
        self.state.step = step;
        self.state.since_log.merge(&output.item.scores);
        let lr = self.learner.lr_current();
        let due = step.is_multiple_of(config.log_every) || step == config.steps;
        let scores = due.then(|| std::mem::take(&mut self.state.since_log));
        if let Some(scores) = &scores {
            self.log(log, self.line("train", Some(lr), scores))?;
        }
        if let Some(lines) = &mut self.lines {
            lines.train(step, scores.as_ref());
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

    /// Scores the validation set, logs the scores, and saves the weights if they are the best so far. Of equally
    /// good weights the later ones are kept: they were trained longer. The message if it was interrupted, of which nothing is kept.
    fn evaluate(
        &mut self,
        log: &mut Option<MetricsLog>,
        stop: &impl Fn() -> Option<String>,
    ) -> Result<Option<String>, Error> {
        let strategy = self.strategy;
        let (config, world) = (&strategy.config, &*strategy.world);
        let (_, valid) = &strategy.stages[self.state.stage];
        let step = self.state.step;
        let mut model = self.learner.model().valid();
        if let Some(average) = &self.average {
            model.method = average.clone();
        }
        if world.size() > 1 {
            let mut weights = weights::parameters(&model.method);
            if self.average.is_some() {
                weights.extend(
                    weights::parameters(&self.learner.model().valid().method)
                        .into_iter()
                        .map(|(name, data)| (format!("trained.{name}"), data)),
                );
            }
            let print = weights::encode(&weights, HashMap::new()).map(|bytes| hash(&bytes));
            same(world, "weights", &all_or_none(world, print)?)?;
        }
        let mut parts = Vec::new();
        let mut iterator = valid.iter();
        let mut index = 0;
        let mut failed = false;
        while let Some(batch) = iterator.next() {
            if !failed && index % world.size() == world.rank() {
                let part = InferenceStep::step(&model, batch).result();
                failed = part.is_err();
                if let (Ok(scores), 1) = (&part, world.size()) {
                    self.show(scores, iterator.progress());
                }
                parts.push((index, part));
            }
            index += 1;
            // Processes ask each other: all of them, whether they failed or not.
            if let Some(message) = agreed_stop(world, step, stop())? {
                return Ok(Some(message));
            }
            if failed && world.size() == 1 {
                break;
            }
        }
        let read = iterator.progress();
        // Where there are several processes, each goes through all batches.
        let ended = !failed || world.size() > 1;
        if ended && read.items_processed < read.items_total {
            return Err(incomplete("validation"));
        }
        let mut scores = Scores::default();
        let parts = exchanged(world, parts);
        let count = parts.len();
        for (index, part) in parts.into_iter().enumerate() {
            let part = part.map_err(|fault| fault.locate(step, index))?;
            scores.merge(&part);
            if world.size() > 1 {
                self.show(&part, Progress::new(index + 1, count));
            }
        }
        let epoch = self.epoch();
        self.processor.process_valid(LearnerEvent::EndEpoch(epoch));
        self.log(log, self.line("valid", None, &scores))?;
        if let Some(lines) = &mut self.lines {
            lines.valid(step, &scores);
        }
        self.valid_scores = Some(scores);
        self.state.evaluated = step;
        let measure = config.stop_metric;
        let Some(value) = scores.mean(measure) else {
            return Ok(None);
        };
        let best = self.state.best_by(measure).map(|(best, _)| best);
        if best.is_none_or(|best| measure.better(value, best)) {
            self.state.improved = step;
        }
        let is_kept = |best| value == best || measure.better(value, best);
        if self.state.lost || best.is_none_or(is_kept) {
            (self.state.best, self.state.measure) = (Some((value, step)), Some(measure));
            self.state.lost = false;
            self.save(|folder| folder.save_best(&model.method, step, measure, value))?;
        }
        Ok(None)
    }

    /// Shows what a validation batch measured.
    fn show(&mut self, scores: &Scores, progress: Progress) {
        let output = StepOutput::of(Ok(*scores));
        let step = Some(self.state.step);
        let item = TrainingItem::new(output, progress, self.progress(), step, None);
        self.processor
            .process_valid(LearnerEvent::ProcessedItem(item));
    }

    /// Appends a line to the metrics log.
    fn log(&self, log: &mut Option<MetricsLog>, line: serde_json::Value) -> Result<(), Error> {
        let written = log.as_mut().map(|log| log.push(line));
        all_or_none(&*self.strategy.world, written.unwrap_or(Ok(())))
    }

    /// A line of the metrics log.
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

    fn save_last(&self, log: &Option<MetricsLog>) -> Result<(), Error> {
        self.save(|folder| {
            // What the checkpoint is after has to be in the log whatever happens to the machine.
            if let Some(log) = log {
                log.sync()?;
            }
            let last = Last {
                module: &self.learner.model().method,
                average: self.average.as_ref(),
                optimizer: Optimizer::to_record(&self.strategy.optimizer),
                state: self.state.clone(),
            };
            folder.save_last(last, self.strategy.config.keep_checkpoints)
        })
    }

    /// What the first process does in the run's folder. If it fails, it fails in all.
    fn save(&self, save: impl FnOnce(&RunFolder) -> Result<(), Error>) -> Result<(), Error> {
        let saved = self.strategy.folder.as_ref().map(save);
        all_or_none(&*self.strategy.world, saved.unwrap_or(Ok(())))
    }
}
