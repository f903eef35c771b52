//! One step of training and one of evaluation, as burn-train calls them.

use std::sync::Arc;

use burn::module::{AutodiffModule, Module, ModuleDisplay, ModuleVisitor, Param};
use burn::optim::{GradientsAccumulator, GradientsParams};
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{Tensor, TensorData};
use burn::train::{InferenceStep, ItemLazy, TrainOutput, TrainStep};

pub use super::fault::Fault;
use super::metrics::Scores;
use super::scoring::{Pending, PendingReconstruction};
use super::world::{Alone, TreeSum, World, block, exchanged};
use crate::data::Batch;
use crate::error::Error;
use crate::memory::MetaGradient;
use crate::method::Method;
use crate::support::mix;
use crate::support::readback::{Readback, Values};

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
#[derive(Clone, Debug)]
pub struct OuterStep {
    /// The way through WRITE.
    pub meta_gradient: MetaGradient,
    /// Takes at most so many contexts at once, and sums the gradients of such parts.
    pub micro_batch: Option<usize>,
    /// Rescales the outer gradient to at most this global L2 norm.
    pub clip_norm: Option<f64>,
    /// Seeds the backend's random numbers before each part of a batch, together with the batch's step and the part's number, so that a
    /// resumed training and any number of processes draw what one training draws, as for dropout. None leaves them alone.
    pub seed: Option<u64>,
    /// The processes among which the parts of a batch are divided.
    pub world: Arc<dyn World>,
}

impl Default for OuterStep {
    fn default() -> Self {
        Self {
            meta_gradient: MetaGradient::default(),
            micro_batch: None,
            clip_norm: None,
            seed: None,
            world: Arc::new(Alone),
        }
    }
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
    /// The scores, or the fault.
    pub(super) fn result(self) -> Result<Scores, Fault> {
        match self.error {
            Some(fault) => Err(fault),
            None => Ok(self.scores),
        }
    }

    pub(super) fn of(result: Result<Scores, Fault>) -> Self {
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
        let (grads, result) = match self.gradients(batch) {
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
    /// The batch's clipped outer gradient and its scores: one read-back from the device for all numbers, and two more if
    /// there are several processes.
    fn gradients(
        &self,
        batch: Result<Batch<B>, Error>,
    ) -> Result<(GradientsParams, Scores), Fault> {
        let (method, world) = (&self.method, &*self.settings.world);
        let mut readback = Readback::new();
        let mut squares = None;
        let computed = self.block(batch, &mut readback);
        if world.size() == 1
            && let Ok(block) = &computed
        {
            squares = sum_of_squares(&block.grads, method).map(|sum| readback.push(sum));
        }
        let mut values = readback.read();
        let leaves = match &computed {
            Ok(block) => block.scores(&values),
            Err((at, fault)) => vec![(*at, Err(fault.clone()))],
        };
        let scores = scores_of_all(world, leaves)?;
        let mut grads = computed.map_err(|(_, fault)| fault)?.grads;
        if world.size() > 1 {
            grads = summed(world, method, grads).map_err(Fault::Error)?;
            let mut readback = Readback::new();
            squares = sum_of_squares(&grads, method).map(|sum| readback.push(sum));
            values = readback.read();
        }
        let Some(squares) = squares else {
            let problem =
                "nothing is trained: no parameter that is not frozen has a part in the loss";
            return Err(Fault::Error(Error::Input(problem.into())));
        };
        let norm = values.of(squares)[0].sqrt();
        if !norm.is_finite() {
            return Err(Fault::Gradient(norm));
        }
        if let Some(clip) = self.settings.clip_norm
            && norm > clip
        {
            let factor = clip / (norm + 1e-6);
            let grads = &mut grads;
            method.visit(&mut Scale { grads, factor });
        }
        Ok((grads, scores))
    }

    /// The sum of the gradients of this process's leaves, and what will be read of each. The error has the leaf's number.
    fn block(
        &self,
        batch: Result<Batch<B>, Error>,
        readback: &mut Readback<B::InnerBackend>,
    ) -> Result<Block, (usize, Fault)> {
        let OuterStep {
            meta_gradient,
            micro_batch,
            seed,
            world,
            ..
        } = &self.settings;
        let method = &self.method;
        let batch = batch.map_err(|e| (0, Fault::Error(e)))?;
        let contexts = micro_batch.unwrap_or(batch.len());
        let leaves = batch.split(contexts);
        let own = block(leaves.len(), &**world).map_err(|e| (0, Fault::Error(e)))?;
        let mut sum = TreeSum::new(|a, b| added(method, a, b));
        let mut parts = Vec::new();
        for (index, part) in leaves.into_iter().enumerate() {
            if !own.contains(&index) {
                continue;
            }
            if let Some(seed) = seed {
                let at = mix(part.episode.step() as u64 ^ mix(index as u64));
                B::seed(&part.episode.device(), mix(seed ^ at));
            }
            let gradient = method.gradient(&part.episode, *meta_gradient);
            let (grads, answers) = gradient.map_err(|e| (index, Fault::Error(e)))?;
            let labels = method.counted_labels(part.episode.totals());
            let pending = Pending::new(&answers.inner(), &part, labels, readback);
            parts.push((index, pending));
            sum.push(grads);
        }
        Ok(Block {
            grads: sum.finish().unwrap_or_default(),
            parts,
            contexts,
        })
    }
}

/// What a process computed of a batch.
struct Block {
    /// The sum of the leaves' gradients.
    grads: GradientsParams,
    /// What is to be read of each leaf, with the leaf's number.
    parts: Vec<(usize, Pending)>,
    /// The contexts of a leaf.
    contexts: usize,
}

impl Block {
    fn scores(&self, values: &Values) -> Vec<(usize, Result<Scores, Fault>)> {
        let scores = |(index, part): &(usize, Pending)| {
            let scores = part.scores(values);
            (
                *index,
                scores.map_err(|fault| fault.behind(index * self.contexts)),
            )
        };
        self.parts.iter().map(scores).collect()
    }
}

/// The scores of all processes' leaves together, or the fault of the first one that has any: the same in every process.
fn scores_of_all(
    world: &dyn World,
    leaves: Vec<(usize, Result<Scores, Fault>)>,
) -> Result<Scores, Fault> {
    let mut scores = Scores::default();
    for leaf in exchanged(world, leaves) {
        scores.merge(&leaf?);
    }
    Ok(scores)
}

/// `a + b`, for every parameter that has both; else what there is.
fn added<B: AutodiffBackend, M: AutodiffModule<B>>(
    module: &M,
    a: GradientsParams,
    b: GradientsParams,
) -> GradientsParams {
    let mut sum = GradientsAccumulator::new();
    sum.accumulate(module, a);
    sum.accumulate(module, b);
    sum.grads()
}

/// The sum of all processes' gradients, of the parameters for which any process has one.
fn summed<B: AutodiffBackend, M: AutodiffModule<B>>(
    world: &dyn World,
    module: &M,
    grads: GradientsParams,
) -> Result<GradientsParams, Error> {
    /// Which parameters have a gradient, in the module's order.
    struct Present<'a>(&'a GradientsParams, Vec<u8>);
    impl<B: AutodiffBackend> ModuleVisitor<B> for Present<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
            let grad = self.0.get::<B::InnerBackend, D>(param.id);
            self.1.push(grad.is_some().into());
        }
    }
    /// These gradients, one behind the other.
    struct Flatten<'a, B: AutodiffBackend> {
        grads: &'a GradientsParams,
        wanted: std::slice::Iter<'a, bool>,
        flat: Vec<Tensor<B::InnerBackend, 1>>,
    }
    impl<B: AutodiffBackend> ModuleVisitor<B> for Flatten<'_, B> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
            if self.wanted.next() == Some(&true) {
                let grad = self.grads.get::<B::InnerBackend, D>(param.id);
                // x + (−0) is x, also where x is −0.
                let grad = grad.unwrap_or_else(|| param.val().inner().full_like(-0.0));
                self.flat.push(grad.flatten(0, D - 1));
            }
        }
    }
    struct Restore<'a, B: AutodiffBackend> {
        flat: Tensor<B::InnerBackend, 1>,
        wanted: std::slice::Iter<'a, bool>,
        at: usize,
        grads: GradientsParams,
    }
    impl<B: AutodiffBackend> ModuleVisitor<B> for Restore<'_, B> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
            if self.wanted.next() == Some(&true) {
                let shape = param.val().shape();
                let length = shape.num_elements();
                let grad = self.flat.clone().narrow(0, self.at, length);
                self.at += length;
                self.grads.register(param.id, grad.reshape::<D, _>(shape));
            }
        }
    }
    let mut present = Present(&grads, Vec::new());
    module.visit(&mut present);
    let of_all = world.gather(&present.1);
    let wanted = (0..present.1.len()).map(|i| of_all.iter().any(|one| one[i] == 1));
    let wanted: Vec<bool> = wanted.collect();
    if !wanted.contains(&true) {
        return Ok(grads);
    }
    let mut flatten = Flatten::<B> {
        grads: &grads,
        wanted: wanted.iter(),
        flat: Vec::new(),
    };
    module.visit(&mut flatten);
    let flat = Tensor::cat(flatten.flat, 0);
    let device = flat.device();
    let Ok(mut numbers) = flat.into_data().into_vec::<f32>() else {
        return Err(Error::Input(
            "several processes train in f32 only: use a backend of f32".into(),
        ));
    };
    world.sum(&mut numbers);
    let mut restore = Restore::<B> {
        flat: Tensor::from_data(TensorData::from(&numbers[..]), &device),
        wanted: wanted.iter(),
        at: 0,
        grads: GradientsParams::new(),
    };
    module.visit(&mut restore);
    Ok(restore.grads)
}

/// Scores of a batch on a backend without outer tape, WRITE loss at M_K included: one read-back.
///
/// # Errors
///
/// If the batch does not fit the model, or WRITE becomes non-finite.
pub fn evaluate<B: Backend, M: Method<B>>(method: &M, batch: Batch<B>) -> Result<Scores, Fault> {
    let answers = method.answers(&batch.episode).map_err(Fault::Error)?;
    let labels = method.counted_labels(batch.episode.totals());
    let mut readback = Readback::new();
    let mut pending = Pending::new(&answers, &batch, labels, &mut readback);
    let written = method.reconstruction(&answers, &batch.episode);
    let written = written.map_err(Fault::Error)?;
    pending.reconstruction = written.map(|x| PendingReconstruction::new(x, &mut readback));
    let start = method.start_loss(&batch.episode).map_err(Fault::Error)?;
    pending.start = start.map(|x| readback.push(x));
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
