//! A model whose maps of one input are one product (`CausalLm::joined`) against the same model with these apart, in f64.

use burn::backend::Autodiff;
use burn::module::{AutodiffModule, Module, ModuleMapper, Param};
use burn::optim::GradientsParams;
use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor, TensorData};
use gradmem::model::{CausalLm, Llama, LlamaConfig};

use crate::shared::{self, gradients, values};

type I = burn_ndarray::NdArray<f64>;
type B = Autodiff<I>;

fn model(biases: bool) -> Llama<B> {
    let config = LlamaConfig {
        attention_bias: biases,
        mlp_bias: biases,
        initializer_range: 0.4,
        ..LlamaConfig::new(11, 8, 2, 2).with_kv_heads(1)
    };
    config.init(3, &Default::default()).unwrap()
}

fn tokens() -> Tensor<B, 2, Int> {
    let ids = TensorData::new(vec![4i64, 7, 2, 9, 5, 10, 3, 0], [2, 4]);
    Tensor::from_data(ids, &Default::default())
}

/// Changes the parameters of the modules of this name.
struct Change<F> {
    name: &'static str,
    path: Vec<String>,
    change: F,
}

impl<F, T: Backend> ModuleMapper<T> for Change<F>
where
    F: Fn(Tensor<T, 1>) -> Tensor<T, 1>,
{
    fn enter_module(&mut self, name: &str, _: &str) {
        self.path.push(name.into());
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<T, D>>) -> Param<Tensor<T, D>> {
        if !self.path.iter().any(|name| name == self.name) {
            return param;
        }
        param.map(|x| {
            let shape = x.shape();
            (self.change)(x.flatten(0, D - 1)).reshape(shape)
        })
    }
}

fn changed(
    model: Llama<B>,
    name: &'static str,
    change: impl Fn(Tensor<B, 1>) -> Tensor<B, 1>,
) -> Llama<B> {
    model.map(&mut Change {
        name,
        path: Vec::new(),
        change,
    })
}

/// Without gradients to the parameters of the modules of this name.
fn frozen(model: Llama<B>, name: &'static str) -> Llama<B> {
    struct Freeze(&'static str, Vec<String>);
    impl<T: Backend> ModuleMapper<T> for Freeze {
        fn enter_module(&mut self, name: &str, _: &str) {
            self.1.push(name.into());
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.1.pop();
        }
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<T, D>>) -> Param<Tensor<T, D>> {
            match self.1.iter().any(|name| name == self.0) {
                true => param.set_require_grad(false),
                false => param,
            }
        }
    }
    model.map(&mut Freeze(name, Vec::new()))
}

/// The hidden states, and the gradient of a function of them to each parameter of `model`, from which `computing` was made.
fn derivatives(model: &Llama<B>, computing: &Llama<B>) -> Vec<Vec<f64>> {
    let hidden = computing.hidden(model.embed(tokens()));
    let found = hidden.clone().sin().sum().backward();
    let found = GradientsParams::from_grads(found, model);
    let gradients = gradients(model, &found).into_iter();
    let gradients = gradients.map(|(_, gradient)| gradient);
    [values(hidden)].into_iter().chain(gradients).collect()
}

fn assert_close(found: &[Vec<f64>], expected: &[Vec<f64>], what: &str) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        shared::assert_close(what, found, expected, 1e-11);
    }
}

fn is_zero(gradient: &[f64]) -> bool {
    gradient.iter().all(|x| *x == 0.0)
}

#[test]
fn one_product_gives_what_several_give() {
    for biases in [false, true] {
        let model = model(biases);
        let what = format!("biases: {biases}");
        let apart = derivatives(&model, &model);
        assert!(!apart.iter().any(|gradient| is_zero(gradient)));
        assert_close(&derivatives(&model, &model.joined()), &apart, &what);
        for name in ["q_proj", "v_proj", "up_proj"] {
            let model = frozen(model.clone(), name);
            let apart = derivatives(&model, &model);
            assert!(apart.iter().any(|gradient| is_zero(gradient)));
            let joined = derivatives(&model, &model.joined());
            assert_close(&joined, &apart, &format!("{what}, {name} frozen"));
        }
    }
}

/// It computes with the weights that it was made of, so that the test before compares two ways.
#[test]
fn a_joined_model_has_copies_of_the_weights() {
    let model = model(true);
    let before = derivatives(&model, &model);
    for name in ["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"] {
        let zeros = |x: Tensor<B, 1>| x.zeros_like();
        let joined = changed(model.joined(), name, zeros);
        assert_close(&derivatives(&model, &joined)[..1], &before[..1], name);
        let hidden = |model: &Llama<B>| derivatives(model, model)[0].clone();
        let other = changed(model.clone(), name, zeros);
        assert_ne!(hidden(&other), before[0], "{name}");
        // Made again it has what was changed.
        assert_close(&[hidden(&other.joined())], &[hidden(&other)], name);
    }
    let plain = model.valid();
    assert_eq!(plain.num_params(), model.joined().valid().num_params());
}
