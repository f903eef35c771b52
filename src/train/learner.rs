//! One step of training and one of evaluation, as burn-train calls them.

use burn::module::{AutodiffModule, Module, ModuleDisplay, ModuleVisitor, Param};
use burn::optim::{GradientsAccumulator, GradientsParams};
use burn::tensor::Tensor;
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::train::{InferenceStep, ItemLazy, TrainOutput, TrainStep};

pub use super::fault::Fault;
use super::metrics::{Measure, Scores};
use crate::data::Batch;
use crate::error::Error;
use crate::memory::{Memory, MetaGradient, Reconstruction};
use crate::method::{Answers, Counted, Method};

/// A [`Method`] and how its outer loop steps.
#[derive(Module, Debug)]
pub struct MetaLearner<B: Backend, M> {
    /// What is trained.
    pub method: M,
    #[module(skip)]
    settings: OuterStep,
    backend: std::marker::PhantomData<B>,
}

/// How the outer gradient of a batch is taken.
#[derive(Clone, Debug, Default)]
pub struct OuterStep {
    /// The way through WRITE.
    pub meta_gradient: MetaGradient,
    /// Takes at most so many contexts at once, and sums the gradients of such parts.
    pub micro_batch: Option<usize>,
    /// Rescales the outer gradient to at most this global L2 norm.
    pub clip_norm: Option<f64>,
}

impl<B: Backend, M> MetaLearner<B, M> {
    /// Trains `method` in steps of this kind.
    pub fn new(method: M, settings: OuterStep) -> Self {
        Self {
            method,
            settings,
            backend: std::marker::PhantomData,
        }
    }
}

/// What a step measured, or why it could not be taken.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct StepOutput {
    /// The measures of the batch.
    pub scores: Scores,
    /// What went wrong; the gradients of such a step are not to be used.
    pub error: Option<Fault>,
}

impl ItemLazy for StepOutput {
    type ItemSync = Scores;

    fn sync(self) -> Scores {
        self.scores
    }
}

impl StepOutput {
    fn of(result: Result<Scores, Fault>) -> Self {
        let (scores, error) = match result {
            Ok(scores) => (scores, None),
            Err(fault) => (Scores::default(), Some(fault)),
        };
        Self { scores, error }
    }
}

impl<B, M> TrainStep for MetaLearner<B, M>
where
    B: AutodiffBackend,
    M: Method<B> + AutodiffModule<B>,
    M::InnerModule: ModuleDisplay,
{
    type Input = Result<Batch<B>, Error>;
    type Output = StepOutput;

    fn step(&self, batch: Self::Input) -> TrainOutput<StepOutput> {
        let (grads, result) = match batch.map_err(Fault::Error).and_then(|b| self.gradients(b)) {
            Ok((grads, scores)) => (grads, Ok(scores)),
            Err(fault) => (GradientsParams::new(), Err(fault)),
        };
        TrainOutput {
            grads,
            item: StepOutput::of(result),
        }
    }
}

impl<B, M> InferenceStep for MetaLearner<B, M>
where
    B: Backend,
    M: Method<B>,
{
    type Input = Result<Batch<B>, Error>;
    type Output = StepOutput;

    fn step(&self, batch: Self::Input) -> StepOutput {
        let scores = batch
            .map_err(Fault::Error)
            .and_then(|batch| evaluate(&self.method, batch));
        StepOutput::of(scores)
    }
}

impl<B, M> MetaLearner<B, M>
where
    B: AutodiffBackend,
    M: Method<B> + AutodiffModule<B>,
    M::InnerModule: ModuleDisplay,
{
    /// The batch's clipped outer gradient and its scores.
    fn gradients(&self, batch: Batch<B>) -> Result<(GradientsParams, Scores), Fault> {
        let OuterStep {
            meta_gradient,
            micro_batch,
            clip_norm,
        } = self.settings;
        let method = &self.method;
        let contexts = micro_batch.unwrap_or(batch.len());
        let parts = batch.split(contexts);
        let counted = parts
            .iter()
            .map(|part| method.counted(&part.contexts, &part.labels));
        let counted: Vec<Counted> = counted.collect();
        let whole = counted.iter().copied().sum();
        let mut total = GradientsAccumulator::new();
        let mut scores = Scores::default();
        for (index, (part, counted)) in parts.into_iter().zip(counted).enumerate() {
            let (grads, answers) = method
                .gradient(
                    part.contexts.clone(),
                    part.queries.clone(),
                    part.labels.clone(),
                    meta_gradient,
                    counted.share(whole),
                )
                .map_err(Fault::Error)?;
            let of_part = self::scores(&answers, &part, counted.labels);
            scores.merge(&of_part.map_err(|fault| fault.behind(index * contexts))?);
            total.accumulate(method, grads);
        }
        let mut grads = total.grads();
        let norm = global_norm(&grads, method);
        if !norm.is_finite() {
            return Err(Fault::Gradient(norm));
        }
        if let Some(clip) = clip_norm
            && norm > clip
        {
            let factor = clip / (norm + 1e-6);
            let grads = &mut grads;
            method.visit(&mut Scale { grads, factor });
        }
        Ok((grads, scores))
    }
}

/// Scores of a batch on a backend without outer tape, WRITE loss at M_K included.
///
/// # Errors
///
/// If the batch does not fit the model, or WRITE leaves the finite numbers.
pub fn evaluate<B: Backend, M: Method<B>>(method: &M, batch: Batch<B>) -> Result<Scores, Fault> {
    let answers = answers(method, &batch)?;
    let labels = method.counted(&batch.contexts, &batch.labels).labels;
    let mut scores = scores(&answers, &batch, labels)?;
    let written = method.reconstruction(&answers, batch.contexts);
    if let Some(written) = written.map_err(Fault::Error)? {
        let starts = answers
            .memory
            .is_some_and(|memory| memory.losses.is_empty());
        add_reconstruction(&mut scores, &written, starts)?;
    }
    Ok(scores)
}

/// Counts how well memories reconstruct; `starts` if they are M0 still.
pub(super) fn add_reconstruction<B: Backend>(
    scores: &mut Scores,
    written: &Reconstruction<B>,
    starts: bool,
) -> Result<(), Fault> {
    let after = finite(&written.loss, "loss after the last step")?;
    let (sum, count) = (after.iter().sum(), after.len());
    scores.add(Measure::WriteLossAfter, sum, count);
    if starts {
        scores.add(Measure::WriteLossBefore, sum, count);
    }
    let accuracy = written.accuracy.to_data().iter::<f64>().sum();
    scores.add(Measure::WriteAccuracy, accuracy, count);
    Ok(())
}

fn answers<B: Backend, M: Method<B>>(method: &M, batch: &Batch<B>) -> Result<Answers<B>, Fault> {
    method
        .answers(
            batch.contexts.clone(),
            batch.queries.clone(),
            batch.labels.clone(),
        )
        .map_err(Fault::Error)
}

/// Reads a step's numbers back to the host and checks WRITE's.
/// `labels` are those that the READ loss is a mean over.
fn scores<B: Backend>(
    answers: &Answers<B>,
    batch: &Batch<B>,
    labels: usize,
) -> Result<Scores, Fault> {
    let mut scores = Scores::default();
    if let Some(memory) = &answers.memory {
        write_scores(memory, &mut scores)?;
    }
    let read_loss: f64 = answers.read_loss.to_data().iter::<f64>().sum();
    scores.add(Measure::ReadLoss, read_loss * labels as f64, labels);

    for hits in hits(&answers.logits, batch) {
        hits.add_to(&mut scores);
    }
    Ok(scores)
}

/// How many of a question's scored tokens are predicted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Hits {
    right: usize,
    count: usize,
}

impl Hits {
    pub fn is_match(self) -> bool {
        self.right == self.count
    }

    pub fn add_to(self, scores: &mut Scores) {
        scores.add(Measure::TokenAccuracy, self.right as f64, self.count);
        scores.add(Measure::ExactMatch, f64::from(self.is_match()), 1);
    }
}

/// Of each question of a batch, from logits `[batch · r, seq + 1, vocab_size]`.
pub(super) fn hits<B: Backend>(logits: &Tensor<B, 3>, batch: &Batch<B>) -> Vec<Hits> {
    let seq = batch.labels.dims()[1];
    let predicted = logits.clone().detach().argmax(2).to_data();
    let predicted: Vec<i64> = predicted.iter::<i64>().collect();
    let rows = batch.scored.iter().zip(predicted.chunks(seq + 1));
    rows.map(|(labels, predicted)| {
        let scored = labels.iter().zip(predicted);
        let scored = scored.filter(|(label, _)| **label >= 0);
        scored.fold(Hits { right: 0, count: 0 }, |hits, (label, predicted)| {
            Hits {
                right: hits.right + usize::from(label == predicted),
                count: hits.count + 1,
            }
        })
    })
    .collect()
}

pub(super) fn write_scores<B: Backend>(
    memory: &Memory<B>,
    scores: &mut Scores,
) -> Result<(), Fault> {
    for (k, (loss, norm)) in memory.losses.iter().zip(&memory.grad_norms).enumerate() {
        let loss = finite(loss, &format!("loss before step {k}"))?;
        let norm = finite(norm, &format!("gradient of step {k}"))?;
        if k == 0 {
            scores.add(Measure::WriteLossBefore, loss.iter().sum(), loss.len());
        }
        scores.add(Measure::InnerGradNorm, norm.iter().sum(), norm.len());
    }
    Ok(())
}

/// The values of `[batch]`, if all are finite.
fn finite<B: Backend>(values: &Tensor<B, 1>, what: &str) -> Result<Vec<f64>, Fault> {
    let values: Vec<f64> = values.to_data().iter::<f64>().collect();
    match values.iter().position(|value| !value.is_finite()) {
        None => Ok(values),
        Some(sample) => Err(Fault::NotFinite {
            sample,
            value: format!("{} ({what})", values[sample]),
        }),
    }
}

/// The L2 norm of all gradients together.
fn global_norm<B: AutodiffBackend, M: AutodiffModule<B>>(
    grads: &GradientsParams,
    module: &M,
) -> f64 {
    struct Squares<'a, B: AutodiffBackend> {
        grads: &'a GradientsParams,
        sum: Option<Tensor<B::InnerBackend, 1>>,
    }
    impl<B: AutodiffBackend> ModuleVisitor<B> for Squares<'_, B> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
            if let Some(grad) = self.grads.get::<B::InnerBackend, D>(param.id) {
                let squares = grad.square().sum();
                self.sum = Some(match self.sum.take() {
                    Some(sum) => sum + squares,
                    None => squares,
                });
            }
        }
    }
    let mut squares = Squares::<B> { grads, sum: None };
    module.visit(&mut squares);
    let sum = squares
        .sum
        .map(|sum| sum.to_data().iter::<f64>().sum::<f64>());
    sum.unwrap_or(0.0).sqrt()
}

/// Multiplies every gradient by `factor`.
struct Scale<'a> {
    grads: &'a mut GradientsParams,
    factor: f64,
}

impl<B: AutodiffBackend> ModuleVisitor<B> for Scale<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        if let Some(grad) = self.grads.remove::<B::InnerBackend, D>(param.id) {
            let grad = grad.mul_scalar(self.factor);
            self.grads.register(param.id, grad);
        }
    }
}
