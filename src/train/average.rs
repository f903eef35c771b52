//! A moving average of the weights, scored and kept in place of the weights themselves.

use std::collections::{HashMap, HashSet};

use burn::module::{AutodiffModule, Module, ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::tensor::Tensor;
use burn::tensor::backend::{AutodiffBackend, Backend};

/// The part of the average that stays at a step, from 1: in the first steps less than `decay`, so that the initial
/// weights are soon forgotten.
pub(super) fn kept(decay: f64, step: usize) -> f64 {
    let step = step as f64;
    decay.min((1.0 + step) / (10.0 + step))
}

/// `average + (1 − kept) · (weights − average)`, of the weights that are trained; what is not trained is as in the model: frozen
/// weights, of which there stays one copy, and the running statistics of a normalisation. Weights that do not change stay what they
/// are, to the bit.
pub(super) fn averaged<B: AutodiffBackend, M: AutodiffModule<B>>(
    average: M::InnerModule,
    weights: &M,
    kept: f64,
) -> M::InnerModule {
    let mut trained = Trained(HashSet::new());
    Module::<B>::visit(weights, &mut trained);
    let mut now = Values(HashMap::new());
    weights.valid().visit(&mut now);
    average.map(&mut Average::<B::InnerBackend> {
        trained: trained.0,
        now: now.0,
        kept,
    })
}

struct Trained(HashSet<ParamId>);

impl<B: Backend> ModuleVisitor<B> for Trained {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        if param.is_require_grad() {
            self.0.insert(param.id);
        }
    }
}

struct Values<B: Backend>(HashMap<ParamId, Tensor<B, 1>>);

impl<B: Backend> ModuleVisitor<B> for Values<B> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        self.0.insert(param.id, param.val().flatten(0, D - 1));
    }
}

struct Average<B: Backend> {
    trained: HashSet<ParamId>,
    now: HashMap<ParamId, Tensor<B, 1>>,
    kept: f64,
}

impl<B: Backend> ModuleMapper<B> for Average<B> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        let (id, average, mapper) = param.consume();
        let now = self.now.get(&id);
        let now = now.map(|now| now.clone().reshape(average.shape()));
        let average = match now {
            Some(now) if self.trained.contains(&id) => {
                let change = now - average.clone();
                average + change * (1.0 - self.kept)
            }
            Some(now) => now,
            None => average,
        };
        Param::from_mapped_value(id, average, mapper)
    }
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use burn::backend::Autodiff;
    use burn::nn::BatchNormConfig;

    use super::*;
    use crate::model::layers::{Affine, AffineConfig, Init};

    type B = Autodiff<burn_flex::Flex>;

    fn filled(layer: Affine<B>, value: f32) -> Affine<B> {
        let weight = layer.weight.map(|weight| weight.full_like(value));
        let bias = layer.bias.map(|bias| {
            bias.map(|bias| bias.full_like(-value))
                .set_require_grad(false)
        });
        Affine::new(weight.set_require_grad(true), bias)
    }

    #[test]
    fn an_average_follows_the_weights_that_are_trained() {
        let layer = AffineConfig::new(2, 3).init::<B>(0.1, &mut Init::new(0), &Default::default());
        let same = filled(layer.clone(), 0.1);
        let found = averaged(same.valid(), &same, 0.99);
        assert_eq!(found.weight.val().to_data(), same.weight.val().to_data());
        let (average, weights) = (filled(layer.clone(), 8.0), filled(layer, 4.0));
        let found = averaged(average.valid(), &weights, 0.75);
        let values = |tensor: Tensor<_, 1>| tensor.to_data().to_vec::<f32>().unwrap();
        assert_eq!(values(found.weight.val().flatten(0, 1)), [7.0; 6]);
        // The bias is frozen.
        assert_eq!(values(found.bias.unwrap().val()), [-4.0; 3]);
    }

    #[test]
    fn running_statistics_are_those_of_the_model() {
        let norm = BatchNormConfig::new(2).init::<B>(&Default::default());
        let before = norm.valid();
        norm.forward(Tensor::<B, 3>::full([4, 2, 1], 10.0, &Default::default()));
        let found = averaged(before, &norm, 0.99).running_mean.value();
        assert_eq!(found.to_data().to_vec::<f32>().unwrap(), [1.0; 2]);
    }

    #[test]
    fn the_first_steps_keep_less() {
        assert_eq!(kept(0.999, 1), 2.0 / 11.0);
        assert_eq!(kept(0.999, 8_989), 8_990.0 / 8_999.0);
        assert_eq!(kept(0.999, 8_991), 0.999);
    }
}
