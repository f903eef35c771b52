//! A moving average of the weights, scored and kept in place of the weights themselves.

use std::collections::HashMap;

use burn::module::{AutodiffModule, Module, ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::tensor::Tensor;
use burn::tensor::backend::{AutodiffBackend, Backend};

/// The part of the average that stays at a step, from 1: in the first steps less than `decay`, so that the initial
/// weights are soon forgotten.
pub(super) fn kept(decay: f64, step: usize) -> f64 {
    let step = step as f64;
    decay.min((1.0 + step) / (10.0 + step))
}

/// `average + (1 − kept) · (weights − average)`, of the weights that are trained; frozen ones are left, and stay one copy
/// with the model's. Weights that do not change stay what they are, to the bit.
pub(super) fn averaged<B: AutodiffBackend, M: AutodiffModule<B>>(
    average: M::InnerModule,
    weights: &M,
    kept: f64,
) -> M::InnerModule {
    let mut trained = Trained::<B>(HashMap::new());
    weights.visit(&mut trained);
    average.map(&mut Average::<B::InnerBackend> {
        weights: trained.0,
        kept,
    })
}

struct Trained<B: AutodiffBackend>(HashMap<ParamId, Tensor<B::InnerBackend, 1>>);

impl<B: AutodiffBackend> ModuleVisitor<B> for Trained<B> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        if param.is_require_grad() {
            let weights = param.val().inner().flatten(0, D - 1);
            self.0.insert(param.id, weights);
        }
    }
}

struct Average<B: Backend> {
    weights: HashMap<ParamId, Tensor<B, 1>>,
    kept: f64,
}

impl<B: Backend> ModuleMapper<B> for Average<B> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        let (id, average, mapper) = param.consume();
        let average = match self.weights.get(&id) {
            Some(weights) => {
                let shape = average.shape();
                let change = weights.clone().reshape(shape) - average.clone();
                average + change * (1.0 - self.kept)
            }
            None => average,
        };
        Param::from_mapped_value(id, average, mapper)
    }
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use burn::backend::Autodiff;

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
        assert_eq!(values(found.bias.unwrap().val()), [-8.0; 3]);
    }

    #[test]
    fn the_first_steps_keep_less() {
        assert_eq!(kept(0.999, 1), 2.0 / 11.0);
        assert_eq!(kept(0.999, 8_989), 8_990.0 / 8_999.0);
        assert_eq!(kept(0.999, 8_991), 0.999);
    }
}
