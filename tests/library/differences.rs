//! Gradients against central differences of a loss, each parameter along one direction in which all its numbers move.

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{Tensor, TensorData};

/// How far each of a parameter's numbers moves: a vector of length 1 without zeros.
fn direction(parameter: usize, count: usize) -> impl Iterator<Item = f64> {
    let at = move |at: usize| ((1.7 + parameter as f64) * at as f64 + 0.4).sin();
    let length = (0..count).map(|i| at(i) * at(i)).sum::<f64>().sqrt();
    (0..count).map(move |i| at(i) / length)
}

/// How the loss rises along a parameter's direction by its gradient.
pub fn along(parameter: usize, gradient: &[f64]) -> f64 {
    let steps = direction(parameter, gradient.len());
    gradient.iter().zip(steps).map(|(g, step)| g * step).sum()
}

/// The gradient of every parameter; zeros of those that have none.
pub fn gradients<B: AutodiffBackend>(
    module: &impl Module<B>,
    found: &GradientsParams,
) -> Vec<(String, Vec<f64>)> {
    struct Collect<'a> {
        found: &'a GradientsParams,
        path: Vec<String>,
        all: Vec<(String, Vec<f64>)>,
    }
    impl<B: AutodiffBackend> ModuleVisitor<B> for Collect<'_> {
        fn enter_module(&mut self, name: &str, _: &str) {
            self.path.push(name.into());
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.path.pop();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
            let gradient = match self.found.get::<B::InnerBackend, D>(param.id) {
                Some(gradient) => values(gradient),
                None => vec![0.0; param.val().shape().num_elements()],
            };
            self.all.push((self.path.join("."), gradient));
        }
    }
    let mut collect = Collect {
        found,
        path: Vec::new(),
        all: Vec::new(),
    };
    module.visit(&mut collect);
    collect.all
}

/// The module with one parameter moved by so much along its direction.
pub fn moved<B: Backend, M: Module<B>>(module: &M, parameter: usize, by: f64) -> M {
    struct Move {
        /// Parameters before it that are still to come.
        left: Option<usize>,
        parameter: usize,
        by: f64,
    }
    impl<B: Backend> ModuleMapper<B> for Move {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
            let here = self.left == Some(0);
            self.left = self.left.and_then(|left| left.checked_sub(1));
            if !here {
                return param;
            }
            param.map(|tensor| {
                let shape = tensor.dims();
                let mut values = values(tensor.clone());
                let steps = direction(self.parameter, values.len());
                values
                    .iter_mut()
                    .zip(steps)
                    .for_each(|(value, step)| *value += self.by * step);
                Tensor::from_data(TensorData::new(values, shape), &tensor.device())
            })
        }
    }
    module.clone().map(&mut Move {
        left: Some(parameter),
        parameter,
        by,
    })
}

/// The slope of `loss` at 0 by central differences of fourth order: WRITE bends a loss so much that plain ones would be
/// the less exact side.
pub fn slope(loss: impl Fn(f64) -> f64, step: f64) -> f64 {
    let plain = |step: f64| (loss(step) - loss(-step)) / (2.0 * step);
    (4.0 * plain(step) - plain(2.0 * step)) / 3.0
}

pub fn values<B: Backend, const D: usize>(x: Tensor<B, D>) -> Vec<f64> {
    x.to_data().iter::<f64>().collect()
}
