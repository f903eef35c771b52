//! Gradients against central differences of a loss, along one direction in which all parameters move: an error in any of
//! them shows there, and there are four losses to compute, however many parameters a model has.

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};

use crate::shared::{Gradients, values};

/// How far each of a parameter's numbers moves: a vector of length 1 without zeros.
fn direction(parameter: usize, count: usize) -> impl Iterator<Item = f64> {
    let at = move |at: usize| ((1.7 + parameter as f64) * at as f64 + 0.4).sin();
    let length = (0..count).map(|i| at(i) * at(i)).sum::<f64>().sqrt();
    (0..count).map(move |i| at(i) / length)
}

/// The module with its parameters moved so far along their directions: all of them, or only the one at a place.
pub fn moved<B: Backend, M: Module<B>>(module: &M, only: Option<usize>, by: f64) -> M {
    struct Move {
        parameter: usize,
        only: Option<usize>,
        by: f64,
    }
    impl<B: Backend> ModuleMapper<B> for Move {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
            let parameter = self.parameter;
            self.parameter += 1;
            if self.only.is_some_and(|only| only != parameter) {
                return param;
            }
            param.map(|tensor| {
                let (shape, device) = (tensor.dims(), tensor.device());
                let values = values(tensor);
                let steps = direction(parameter, values.len());
                let moved = values.iter().zip(steps);
                let moved = moved.map(|(value, step)| value + self.by * step);
                let data = TensorData::new(moved.collect::<Vec<f64>>(), shape);
                Tensor::from_data(data, &device)
            })
        }
    }
    module.clone().map(&mut Move {
        parameter: 0,
        only,
        by,
    })
}

/// How far gradients are from the differences of `loss`, relative to the norm of the largest gradient.
///
/// `loss` takes what [`moved`] does; `step` is the distance of its places.
pub fn off_by(gradients: &Gradients, step: f64, loss: impl Fn(Option<usize>, f64) -> f64) -> f64 {
    off_along(None, gradients, step, &loss)
}

/// Fails where [`off_by`] is more than `most`, and says how far each parameter is off alone.
pub fn assert_exact(
    what: &str,
    gradients: &Gradients,
    step: f64,
    most: f64,
    loss: impl Fn(Option<usize>, f64) -> f64,
) {
    let off = off_along(None, gradients, step, &loss);
    if off <= most {
        return;
    }
    for (parameter, (name, _)) in gradients.iter().enumerate() {
        let off = off_along(Some(parameter), gradients, step, &loss);
        println!("{what}: {name} is off by {off:.1e}");
    }
    panic!("{what}: off by {off:.1e}");
}

fn off_along(
    only: Option<usize>,
    gradients: &Gradients,
    step: f64,
    loss: &impl Fn(Option<usize>, f64) -> f64,
) -> f64 {
    let norm = |gradient: &[f64]| gradient.iter().map(|g| g * g).sum::<f64>().sqrt();
    let norms = gradients.iter().map(|(_, gradient)| norm(gradient));
    let largest = norms.fold(0.0, f64::max);
    assert!(largest > 1e-3, "there is no gradient: {largest}");
    let moving = gradients.iter().enumerate();
    let moving = moving.filter(|(parameter, _)| only.is_none_or(|only| only == *parameter));
    let found: f64 = moving
        .map(|(parameter, (_, gradient))| {
            let steps = direction(parameter, gradient.len());
            gradient
                .iter()
                .zip(steps)
                .map(|(g, step)| g * step)
                .sum::<f64>()
        })
        .sum();
    // Of fourth order: WRITE bends a loss so much that plain ones would be the less exact side.
    let plain = |step: f64| (loss(only, step) - loss(only, -step)) / (2.0 * step);
    let expected = (4.0 * plain(step) - plain(2.0 * step)) / 3.0;
    (found - expected).abs() / largest
}
