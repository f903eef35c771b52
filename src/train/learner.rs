//! One step of training and one of evaluation, as burn-train calls them.

use burn::module::{AutodiffModule, Module, ModuleDisplay, ModuleVisitor, Param};
use burn::optim::{GradientsAccumulator, GradientsParams};
use burn::tensor::Tensor;
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::train::{InferenceStep, ItemLazy, TrainOutput, TrainStep};

pub use super::fault::Fault;
use super::metrics::Scores;
use super::scoring::{Pending, Unread};
use crate::data::Batch;
use crate::error::Error;
use crate::memory::MetaGradient;
use crate::method::Method;
use crate::support::readback::Readback;

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

    /// # Panics
    ///
    /// With the message of a step that failed, which ends a training by burn-train's own loop: it would go on without a
    /// gradient otherwise. A loop of one's own looks at `error` first.
    fn sync(self) -> Scores {
        match self.error {
            Some(fault) => panic!("{fault}"),
            None => self.scores,
        }
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
    /// The batch's clipped outer gradient and its scores: one read-back from the device for all numbers.
    fn gradients(&self, batch: Batch<B>) -> Result<(GradientsParams, Scores), Fault> {
        let OuterStep {
            meta_gradient,
            micro_batch,
            clip_norm,
        } = self.settings;
        let method = &self.method;
        let contexts = micro_batch.unwrap_or(batch.len());
        let mut total = GradientsAccumulator::new();
        let mut readback = Readback::new();
        let mut parts = Vec::new();
        for part in batch.split(contexts) {
            let gradient = method.gradient(&part.episode, meta_gradient);
            let (grads, answers) = gradient.map_err(Fault::Error)?;
            let labels = method.counted_labels(part.episode.totals());
            let unread = Unread::of(&answers, &part, labels).inner();
            parts.push(Pending::new(unread, &mut readback));
            total.accumulate(method, grads);
        }
        let mut grads = total.grads();
        let squares = sum_of_squares(&grads, method).map(|sum| readback.push(sum));
        let values = readback.read();

        let mut scores = Scores::default();
        for (index, part) in parts.iter().enumerate() {
            let part = part.scores(&values);
            scores.merge(&part.map_err(|fault| fault.behind(index * contexts))?);
        }
        let norm = squares.map_or(0.0, |sum| values.of(sum)[0]).sqrt();
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

/// Scores of a batch on a backend without outer tape, WRITE loss at M_K included: one read-back.
///
/// # Errors
///
/// If the batch does not fit the model, or WRITE becomes non-finite.
pub fn evaluate<B: Backend, M: Method<B>>(method: &M, batch: Batch<B>) -> Result<Scores, Fault> {
    let answers = method.answers(&batch.episode).map_err(Fault::Error)?;
    let labels = method.counted_labels(batch.episode.totals());
    let mut unread = Unread::of(&answers, &batch, labels);
    let written = method.reconstruction(&answers, &batch.episode);
    unread.reconstruction = written.map_err(Fault::Error)?;
    let mut readback = Readback::new();
    let pending = Pending::new(unread, &mut readback);
    pending.scores(&readback.read())
}

/// The sum of all gradients' squares, `[1]`, if there are any.
fn sum_of_squares<B: AutodiffBackend, M: AutodiffModule<B>>(
    grads: &GradientsParams,
    module: &M,
) -> Option<Tensor<B::InnerBackend, 1>> {
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
    squares.sum
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
