//! WRITE and outer gradients in several threads at once are those of one thread, to the bit.

use burn::backend::Autodiff;
use burn::module::{AutodiffModule, Module, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::Tensor;
use gradmem::episode::{Episode, Tokens};
use gradmem::memory::{GradMem, GradMemConfig, MetaGradient};
use gradmem::model::{Llama, LlamaConfig};

type B = burn_flex::Flex;
type Train = Autodiff<B>;
type Model = GradMem<Train, Llama<Train>>;

const CONTEXTS: [[u32; 6]; 2] = [[4, 7, 2, 9, 4, 1], [5, 10, 3, 0, 8, 6]];

fn model() -> Model {
    let device = Default::default();
    let lm = LlamaConfig::new(11, 16, 2, 2).init(3, &device).unwrap();
    let config = GradMemConfig::new()
        .with_memory_tokens(3)
        .with_write_steps(3);
    config.init(lm, 4, &device).unwrap()
}

fn numbers<const D: usize>(tensor: Tensor<B, D>) -> Vec<f32> {
    tensor.to_data().iter::<f32>().collect()
}

fn written(model: &Model) -> Vec<f32> {
    let contexts = Tokens::new(&CONTEXTS, &Default::default()).unwrap();
    numbers(model.valid().write(&contexts).unwrap().vectors())
}

fn gradient(model: &Model, strategy: MetaGradient) -> Vec<f32> {
    let contexts = Tokens::<Train>::new(&CONTEXTS, &Default::default()).unwrap();
    let answers = [([4], [7]), ([5], [10])];
    let episode = Episode::from_answers(contexts, &answers).unwrap();
    let (found, _): (GradientsParams, _) = model.outer_gradient(&episode, strategy).unwrap();
    let mut all = All {
        gradients: &found,
        numbers: Vec::new(),
    };
    model.visit(&mut all);
    assert!(all.numbers.iter().any(|number| *number != 0.0));
    all.numbers
}

/// The gradients to all parameters.
struct All<'a> {
    gradients: &'a GradientsParams,
    numbers: Vec<f32>,
}

impl ModuleVisitor<Train> for All<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<Train, D>>) {
        let gradient = self.gradients.get::<B, D>(param.id);
        self.numbers.extend(numbers(gradient.unwrap()));
    }
}

/// Without the lock a gradient of these differed within 100 to 400 rounds of two threads.
#[test]
fn threads_compute_what_one_does() {
    let model = model();
    let [unrolled, replay] =
        [MetaGradient::Unrolled, MetaGradient::Replay].map(|it| gradient(&model, it));
    let memory = written(&model);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                for round in 0..300 {
                    let found = gradient(&model, MetaGradient::Unrolled);
                    assert_eq!(found, unrolled, "round {round}");
                }
            });
        }
        scope.spawn(|| {
            for round in 0..100 {
                assert_eq!(written(&model), memory, "round {round}");
                let found = gradient(&model, MetaGradient::Replay);
                assert_eq!(found, replay, "round {round}");
            }
        });
    });
}
