//! AdamW, and a check of its saved state.

use std::sync::{Arc, Mutex, PoisonError};

use burn::module::{AutodiffModule, Module, ModuleDisplay, ModuleVisitor, Param, ParamId};
use burn::optim::adaptor::OptimizerAdaptor;
use burn::optim::record::{AdaptorRecord, AdaptorRecordV1};
use burn::optim::{
    AdamW, AdamWConfig, AdamWState, AdaptiveMomentumState, GradientsParams, LearningRate,
    MultiGradientsParams, Optimizer,
};
use burn::tensor::Tensor;
use burn::tensor::backend::{AutodiffBackend, Backend};

use super::config::TrainConfig;
use super::learner::MetaLearner;
use crate::model::weights::ModulePath;

type AdamWOf<B, M> = OptimizerAdaptor<AdamW, MetaLearner<B, M>, B>;

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
    /// AdamW with these settings, without moments.
    pub(super) fn new(config: &TrainConfig) -> Self {
        let adamw = AdamWConfig::new()
            .with_beta_1(config.beta1 as f32)
            .with_beta_2(config.beta2 as f32)
            .with_epsilon(config.epsilon as f32)
            .with_weight_decay(config.weight_decay as f32);
        Self(Arc::new(Mutex::new(adamw.init())))
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
pub(super) type Moments<'a, B> = &'a dyn Fn(&ParamId) -> Option<&'a AdaptorRecord<AdamW, B>>;

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
        fn enter_module(&mut self, name: &str, container: &str) {
            self.path.enter(name, container);
        }
        fn exit_module(&mut self, name: &str, container: &str) {
            self.path.exit(name, container);
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
