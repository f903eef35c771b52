//! burn-train's own `SupervisedTraining`, its dashboard and any optimizer, on a GPT of `burn::nn` modules that learns to copy
//! a few letters through its memory: `cargo run --release --example own_learner`.

mod model;

use burn::backend::Autodiff;
use burn::data::dataloader::DataLoaderBuilder;
use burn::optim::AdamConfig;
use burn::tensor::backend::Backend;
use burn::train::metric::LossMetric;
use burn::train::{Learner, SupervisedTraining};
use gradmem::data::{DataConfig, ExampleBatcher, KvConfig, TokensConfig};
use gradmem::train::learner::{MetaLearner, OuterStep};
use gradmem::train::metrics::{Measure, MeasureMetric};

type B = Autodiff<burn_flex::Flex>;

fn main() -> Result<(), gradmem::Error> {
    let device = Default::default();
    B::seed(&device, 0);
    let mut letters = KvConfig {
        pairs: 0,
        segments: 1,
        ..KvConfig::default()
    };
    (letters.segment_min, letters.segment_max) = (2, 6);
    (letters.train_samples, letters.valid_samples) = (3200, 200);
    let task = DataConfig::Kv(letters).open(&TokensConfig::default(), 0, None)?;

    let lm = model::Gpt::<B>::new(task.tokenizer.vocab_size(), &device);
    let learner = MetaLearner::new(model::memory().init(lm, 1, &device)?, OuterStep::default());

    let batcher = ExampleBatcher::new(task.tokenizer);
    let train = DataLoaderBuilder::new(batcher.clone())
        .batch_size(32)
        .build(task.train);
    let valid = DataLoaderBuilder::new(batcher)
        .batch_size(100)
        .build(task.valid);
    let right = || MeasureMetric::new(Measure::ExactMatch);
    let training = SupervisedTraining::new("runs/own-learner", train, valid)
        .metrics((LossMetric::<burn_flex::Flex>::new(), right()))
        .num_epochs(3)
        .summary();
    training.launch(Learner::new(learner, AdamConfig::new().init(), 1e-3));
    Ok(())
}
