//! Logits that are computed some rows at a time against logits that exist at once.

use burn::backend::Autodiff;
use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor};
use gradmem::episode::{Episode, Tokens};
use gradmem::memory::{GradMem, GradMemConfig, MetaGradient, WriteObjective};
use gradmem::model::{CausalLm, Llama, LlamaConfig};

use crate::shared::{assert_close, gradients};

type I = burn_flex::Flex;
type B = Autodiff<I>;

/// Two contexts of 70 tokens have more than 2²³ logits.
const VOCAB: u32 = 70_000;

/// The reconstruction by logits that exist at once.
#[derive(Module, Debug)]
struct AtOnce<B: Backend> {
    backend: std::marker::PhantomData<B>,
}

impl<B: Backend, M: CausalLm<B>> WriteObjective<B, M> for AtOnce<B> {
    fn losses(&self, model: &M, hidden: Tensor<B, 3>, next: Tensor<B, 2, Int>) -> Tensor<B, 2> {
        model.token_losses(model.logits(hidden), next)
    }
}

fn tokens(rows: usize, length: usize, seed: u32) -> Vec<Vec<u32>> {
    let id = |row: usize, at: usize| (seed + 977 * row as u32 + 7919 * at as u32) % VOCAB;
    let row = |row| (0..length).map(|at| id(row, at)).collect();
    (0..rows).map(row).collect()
}

#[test]
fn outer_gradients_are_those_of_logits_that_exist_at_once() {
    for label_smoothing in [0.0, 0.3] {
        compare(label_smoothing);
    }
}

fn compare(label_smoothing: f64) {
    let device = Default::default();
    let lm = LlamaConfig {
        initializer_range: 0.3,
        ..LlamaConfig::new(VOCAB as usize, 8, 1, 2)
    };
    let lm: Llama<B> = lm.init(3, &device).unwrap();
    let config = GradMemConfig::new()
        .with_memory_tokens(2)
        .with_write_steps(1)
        .with_write_lr(0.3);
    let in_parts: GradMem<B, _> = config.init(lm.clone(), 4, &device).unwrap();
    let backend = std::marker::PhantomData;
    let at_once = config.init_with(lm, AtOnce { backend }, 4, &device);
    let at_once: GradMem<B, _, AtOnce<B>> = at_once.unwrap();

    let contexts = Tokens::new(&tokens(2, 70, 5), &device).unwrap();
    let targets = tokens(2, 65, 11);
    let answers: Vec<_> = targets.iter().map(|target| ([1u32, 2], target)).collect();
    let episode = Episode::from_answers(contexts, &answers).unwrap();
    let episode = episode.with_label_smoothing(label_smoothing);

    let (found, outer) = in_parts
        .outer_gradient(&episode, MetaGradient::Unrolled)
        .unwrap();
    let memory = at_once.outer(&episode).unwrap().memory;
    let logits = at_once.read(&memory, episode.queries()).unwrap();
    let told = logits.clone().argmax(2).into_data();
    let told: Vec<i64> = told.iter::<i64>().collect();
    let loss = episode.read_loss(logits);
    let expected = GradientsParams::from_grads(loss.backward(), &at_once);

    // Row 2 + i of a query's 68 predicts token i of its target.
    let labelled = [&told[2..67], &told[68 + 2..68 + 67]].concat();
    let tokens = outer.predicted.tokens.unwrap().into_data();
    assert_eq!(tokens.iter::<i64>().collect::<Vec<_>>(), labelled);
    let [a, b] = [outer.read_loss, loss].map(|x| x.into_scalar());
    assert!((a - b).abs() < 1e-5, "{a} is not {b}");
    let (found, expected) = (gradients(&in_parts, &found), gradients(&at_once, &expected));
    assert_eq!(found.len(), expected.len());
    for ((name, found), (_, expected)) in found.iter().zip(&expected) {
        assert_close(name, found, expected, 1e-4);
    }
}
