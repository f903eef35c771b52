//! AdamW, and a check of its saved state.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use burn::module::{AutodiffModule, Module, ModuleDisplay, ModuleVisitor, Param, ParamId};
use burn::optim::adaptor::OptimizerAdaptor;
use burn::optim::record::{AdaptorRecord, AdaptorRecordV1};
use burn::optim::{
    AdamWState, AdaptiveMomentumState, GradientsParams, LearningRate, MultiGradientsParams,
    Optimizer, SimpleOptimizer,
};
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::ops::FloatTensor;
use burn::tensor::{Tensor, TensorPrimitive};
use gradmem_kernels::reference::adamw::adamw;
use gradmem_kernels::{AdamWStep, LayerBackend};

use super::config::TrainConfig;
use super::learner::MetaLearner;
use crate::error::Error;
use crate::model::paths::{ModulePath, follows_path};
use crate::support::is_narrow;

/// AdamW (arXiv 1711.05101) with the formula and the state of Burn's, whose records it reads; a step on a parameter is one
/// launch on a GPU, and one pass on flex, where its numbers are Burn's bit for bit.
///
/// It is a [`SimpleOptimizer`]: `OptimizerAdaptor::from(adamw)` is an optimizer for modules. Parameters of rank 1, biases and the
/// gains of normalisations, are not decayed, as by the Trainer of `transformers`; Burn's AdamW decays them too.
///
/// # Panics
///
/// In a step on a parameter of 16 bits. Its moments would have its type, as Burn's have: in f16 the squares of small gradients are zero, and
/// bf16 loses what a step adds to them. Hold parameters in f32; [`Precision::Bf16`](crate::kernels::Precision) multiplies them in bf16.
#[derive(Clone)]
pub struct AdamW<B: Backend> {
    beta1: f32,
    beta2: f32,
    epsilon: f32,
    weight_decay: f64,
    update: Update<B>,
}

/// A step on a parameter and its moments.
type Update<B> = fn(&AdamWStep, [FloatTensor<B>; 3], FloatTensor<B>) -> [FloatTensor<B>; 3];

impl<B: Backend> AdamW<B> {
    /// With the β1, β2, ε and weight decay of these settings, by the kernels.
    pub fn new(config: &TrainConfig) -> Self
    where
        B: LayerBackend,
    {
        Self::by(B::adamw, config)
    }

    /// The same on any backend, in tensor operations.
    pub fn plain(config: &TrainConfig) -> Self {
        Self::by(adamw::<B>, config)
    }

    fn by(update: Update<B>, config: &TrainConfig) -> Self {
        Self {
            beta1: config.beta1 as f32,
            beta2: config.beta2 as f32,
            epsilon: config.epsilon as f32,
            // As Burn's rounds it.
            weight_decay: f64::from(config.weight_decay as f32),
            update,
        }
    }
}

impl<B: Backend> fmt::Debug for AdamW<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AdamW")
            .field("beta1", &self.beta1)
            .field("beta2", &self.beta2)
            .field("epsilon", &self.epsilon)
            .field("weight_decay", &self.weight_decay)
            .finish_non_exhaustive()
    }
}

impl<B: Backend> SimpleOptimizer<B> for AdamW<B> {
    type State<const D: usize> = AdamWState<B, D>;

    fn step<const D: usize>(
        &self,
        lr: LearningRate,
        tensor: Tensor<B, D>,
        grad: Tensor<B, D>,
        state: Option<Self::State<D>>,
    ) -> (Tensor<B, D>, Option<Self::State<D>>) {
        assert!(!is_narrow(tensor.dtype()), "{NARROW}");
        let mut momentum = match state {
            Some(state) => state.momentum,
            None => AdaptiveMomentumState::new(0, grad.zeros_like(), grad.zeros_like()),
        };
        momentum.time += 1;
        let step = AdamWStep {
            beta1: self.beta1,
            beta2: self.beta2,
            epsilon: self.epsilon,
            time: momentum.time as i32,
            lr,
            weight_decay: if D == 1 { 0.0 } else { self.weight_decay },
        };
        let before = [tensor, momentum.moment_1, momentum.moment_2].map(primitive);
        let [tensor, moment_1, moment_2] =
            (self.update)(&step, before, primitive(grad)).map(tensor_of);
        momentum.moment_1 = moment_1;
        momentum.moment_2 = moment_2;
        (tensor, Some(AdamWState::new(momentum)))
    }

    fn to_device<const D: usize>(mut state: Self::State<D>, device: &B::Device) -> Self::State<D> {
        state.momentum = state.momentum.to_device(device);
        state
    }
}

const NARROW: &str = "AdamW does not step on parameters of 16 bits: their type cannot hold the means of squared gradients. Train on a \
                      backend of f32; precision bf16 multiplies f32 parameters in bf16";

/// Fails if a parameter has a type that [`AdamW`] does not step on.
pub(super) fn check_types<B: Backend, M: Module<B>>(module: &M) -> Result<(), Error> {
    struct Check {
        path: ModulePath,
        narrow: Option<Error>,
    }
    impl<B: Backend> ModuleVisitor<B> for Check {
        follows_path!();
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
            let dtype = param.val().dtype();
            if is_narrow(dtype) {
                let name = self.path.name();
                let problem = format!("`{name}` is {dtype:?}: {NARROW}");
                self.narrow.get_or_insert(Error::Input(problem));
            }
        }
    }
    let mut check = Check {
        path: ModulePath::default(),
        narrow: None,
    };
    module.visit(&mut check);
    check.narrow.map_or(Ok(()), Err)
}

fn primitive<B: Backend, const D: usize>(x: Tensor<B, D>) -> FloatTensor<B> {
    x.into_primitive().tensor()
}

fn tensor_of<B: Backend, const D: usize>(x: FloatTensor<B>) -> Tensor<B, D> {
    Tensor::from_primitive(TensorPrimitive::Float(x))
}

/// AdamW for the method `M`.
type AdamWOf<B, M> =
    OptimizerAdaptor<AdamW<<B as AutodiffBackend>::InnerBackend>, MetaLearner<B, M>, B>;

/// AdamW behind a shared handle: burn-train's learner does not give out its optimizer, and a checkpoint
/// needs the optimizer's state.
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
    /// Without moments.
    pub(super) fn new(adamw: AdamW<B::InnerBackend>) -> Self {
        Self(Arc::new(Mutex::new(adamw.into())))
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

/// The optimizer's record for the method `M`.
pub(super) type RecordOf<B, M> = <SharedOptimizer<B, M> as Optimizer<MetaLearner<B, M>, B>>::Record;

/// The moments of a parameter, by its id.
pub(super) type Moments<'a, B> = &'a dyn Fn(&ParamId) -> Option<&'a MomentsOf<B>>;

/// The moments of one parameter.
pub(super) type MomentsOf<B> = AdaptorRecord<AdamW<<B as AutodiffBackend>::InnerBackend>, B>;

/// Fails unless all moments have the shapes of their parameters and values in range.
pub(super) fn check_moments<B: AutodiffBackend, M: Module<B>>(
    module: &M,
    moments: Moments<'_, B>,
) -> Result<(), String> {
    struct Check<'a, B: AutodiffBackend> {
        moments: Moments<'a, B>,
        path: ModulePath,
        problem: Option<String>,
    }
    impl<B: AutodiffBackend> ModuleVisitor<B> for Check<'_, B> {
        follows_path!();
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
            use AdaptorRecordV1::{Rank1, Rank2, Rank3, Rank4, Rank5, Rank6, Rank7, Rank8};
            let Some(AdaptorRecord::V1(moments)) = (self.moments)(&param.id) else {
                return;
            };
            let shape = param.lazy_shape().to_vec();
            let fits = match moments {
                Rank1(state) => fits(state, &shape),
                Rank2(state) => fits(state, &shape),
                Rank3(state) => fits(state, &shape),
                Rank4(state) => fits(state, &shape),
                Rank5(state) => fits(state, &shape),
                Rank6(state) => fits(state, &shape),
                Rank7(state) => fits(state, &shape),
                Rank8(state) => fits(state, &shape),
                _ => false,
            };
            if !fits {
                let name = self.path.name();
                let problem = format!("has an optimizer's state that `{name}` cannot have");
                self.problem.get_or_insert(problem);
            }
        }
    }
    /// Whether the means of gradients and of squared gradients have this shape, are finite, and the latter
    /// are not negative.
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

#[cfg(all(test, feature = "flex"))]
mod tests {
    use burn::optim::AdamWConfig;
    use burn::tensor::{DType, Distribution, TensorData};
    use burn_flex::Flex;

    use super::*;

    #[test]
    fn parameters_of_16_bits_are_refused() {
        let of = |dtype| {
            let x = Tensor::<Flex, 1>::from_data([1f32], (&Default::default(), dtype));
            check_types::<Flex, _>(&Param::from_tensor(x))
        };
        assert!(of(DType::F32).is_ok());
        for dtype in [DType::F16, DType::BF16] {
            let error = of(dtype).unwrap_err().to_string();
            assert!(error.contains("Train on a backend of f32"), "{error}");
        }
    }

    #[test]
    fn biases_and_gains_are_not_decayed() {
        let config = TrainConfig {
            weight_decay: 0.5,
            ..TrainConfig::default()
        };
        let device = Default::default();
        let adamw = AdamW::<Flex>::new(&config);
        let (gain, _) = adamw.step(
            1.0,
            Tensor::<Flex, 1>::ones([3], &device),
            Tensor::zeros([3], &device),
            None,
        );
        assert_eq!(gain.to_data(), TensorData::from([1f32; 3]));
        let grad = Tensor::zeros([1, 3], &device);
        let (weight, _) = adamw.step(1.0, Tensor::<Flex, 2>::ones([1, 3], &device), grad, None);
        assert_eq!(weight.to_data(), TensorData::from([[0.5f32; 3]]));
    }

    /// Bit for bit, by the one-pass loop and by tensor operations, and in state, too.
    #[test]
    fn it_steps_as_burns_adamw() {
        let device = Default::default();
        for weight_decay in [0.0f32, 0.1] {
            let burns = AdamWConfig::new()
                .with_beta_2(0.95)
                .with_epsilon(1e-8)
                .with_weight_decay(weight_decay)
                .build();
            let config = TrainConfig {
                beta2: 0.95,
                weight_decay: weight_decay.into(),
                ..TrainConfig::default()
            };
            for ours in [AdamW::<Flex>::new(&config), AdamW::plain(&config)] {
                let start = Tensor::<Flex, 2>::random([7, 33], Distribution::Default, &device);
                let (mut x, mut y) = (start.clone(), start);
                let (mut of_x, mut of_y) = (None, None);
                for step in 1..=5 {
                    let g = Tensor::random([7, 33], Distribution::Normal(0.0, 0.1), &device);
                    let lr = 1e-3 * f64::from(step);
                    (x, of_x) = burns.step(lr, x, g.clone(), of_x);
                    (y, of_y) = ours.step(lr, y, g, of_y);
                    assert_eq!(x.to_data(), y.to_data(), "step {step}");
                    let [a, b] = [&of_x, &of_y].map(|state| {
                        let momentum = &state.as_ref().unwrap().momentum;
                        let moments = [&momentum.moment_1, &momentum.moment_2];
                        (momentum.time, moments.map(Tensor::to_data))
                    });
                    assert_eq!(a, b, "step {step}");
                }
            }
        }
    }
}
