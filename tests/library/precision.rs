//! Products and attention of bf16 in WRITE and through it, against f64.

use burn::backend::Autodiff;
use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::backend::AutodiffBackend;
use burn::tensor::{Tensor, TensorData};
use burn::train::TrainStep;
use gradmem::data::Batch;
use gradmem::episode::{Episode, Tokens};
use gradmem::kernels::{KernelBackend, LayerBackend, Precision, set_precision};
use gradmem::memory::{GradMemConfig, MetaGradient};
use gradmem::method::{AnyMethod, MethodConfig};
use gradmem::model::{LlamaConfig, ModelConfig};
use gradmem::train::learner::{MetaLearner, OuterStep};

type F64 = burn_ndarray::NdArray<f64>;
type F32 = burn_flex::Flex;

fn batch<B: AutodiffBackend>() -> Batch<B> {
    let device = Default::default();
    let row = |sample: usize, length: usize| -> Vec<u32> {
        (0..length)
            .map(|at| ((at * 31 + sample * 17 + at * sample * 7) % 23) as u32)
            .collect()
    };
    let contexts: Vec<_> = (0..4).map(|sample| row(sample, 12 + sample)).collect();
    let queries: Vec<_> = (4..8).map(|sample| row(sample, 5)).collect();
    let label = |row: &Vec<u32>| row.iter().map(|token| i64::from(*token)).collect();
    let labels: Vec<Vec<i64>> = queries.iter().map(label).collect();
    let contexts = Tokens::new(&contexts, &device).unwrap();
    let queries = Tokens::new(&queries, &device).unwrap();
    Batch {
        episode: Episode::new(contexts, queries, &labels).unwrap(),
        scored: labels,
        asked: Vec::new(),
    }
}

/// The outer gradient to each parameter of a model with the usual initial weights.
fn outer_gradient<I: KernelBackend>(write_steps: usize, how: MetaGradient) -> Vec<TensorData> {
    struct Collect<'a>(&'a GradientsParams, Vec<TensorData>);
    impl<I: KernelBackend> ModuleVisitor<Autodiff<I>> for Collect<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<Autodiff<I>, D>>) {
            let gradient = self.0.get::<I, D>(param.id).unwrap();
            self.1.push(gradient.into_data());
        }
    }
    let model = ModelConfig::Llama(LlamaConfig {
        initializer_range: 0.02,
        ..LlamaConfig::new(23, 32, 2, 4)
    });
    let config = MethodConfig::GradMem(GradMemConfig {
        memory_tokens: 4,
        write_steps,
        write_lr: 0.5,
        write_head: true,
        ..GradMemConfig::default()
    });
    let method: AnyMethod<Autodiff<I>> = config.init(&model, 3, &Default::default()).unwrap();
    let settings = OuterStep {
        meta_gradient: how,
        ..OuterStep::default()
    };
    let output = MetaLearner::new(method.clone(), settings).step(Ok(batch()));
    let mut collected = Collect(&output.grads, Vec::new());
    method.visit(&mut collected);
    collected.1
}

/// The norm of the difference between two lists of tensors, relative to that of the second.
fn distance(found: &[TensorData], expected: &[TensorData]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let numbers = |tensors: &[TensorData]| -> Vec<f64> {
        tensors
            .iter()
            .flat_map(|data| data.iter::<f64>().collect::<Vec<_>>())
            .collect()
    };
    let (found, expected) = (numbers(found), numbers(expected));
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    let differences = &mut found.iter().zip(&expected).map(|(a, b)| a - b);
    norm(differences) / norm(&mut expected.iter().copied())
}

/// One test: the precision is a setting of the process.
#[test]
fn bf16_changes_the_outer_gradient_by_less_than_a_hundredth() {
    for (write_steps, bound) in [(1, 8e-3), (3, 8e-3)] {
        for how in [MetaGradient::Unrolled, MetaGradient::Replay] {
            let expected = outer_gradient::<F64>(write_steps, how);
            let exact = distance(&outer_gradient::<F32>(write_steps, how), &expected);
            set_precision(Precision::Bf16);
            let rounded = outer_gradient::<F32>(write_steps, how);
            set_precision(Precision::F32);
            let rounded = distance(&rounded, &expected);
            println!("K = {write_steps}, {how:?}: {exact:.1e} in f32, {rounded:.1e} in bf16");
            assert!(exact < 2e-6, "{exact:.1e}");
            // It does round.
            assert!(rounded > 1e-4 && rounded < bound, "{rounded:.1e}");
        }
    }
}

#[test]
fn a_backend_says_what_it_computes_in() {
    let (flex, ndarray) = (Default::default(), Default::default());
    let on_flex = |precision| <Autodiff<F32> as LayerBackend>::computes_in(&flex, precision);
    let on_ndarray = |precision| F64::computes_in(&ndarray, precision);
    assert!(on_flex(Precision::F32) && on_flex(Precision::Bf16) && !on_flex(Precision::Tf32));
    assert!(on_ndarray(Precision::F32) && !on_ndarray(Precision::Bf16));
}
