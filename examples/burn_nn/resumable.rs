//! Data of one's own and a model of `burn::nn` modules in a training that stops and goes on: `cargo run --release --example
//! resumable`, Ctrl-C at any time, and the same again.

mod model;

use burn::backend::Autodiff;
use burn::data::dataloader::batcher::Batcher;
use burn::data::dataset::Dataset;
use burn::tensor::backend::Backend;
use gradmem::data::Batch;
use gradmem::episode::{Episode, Tokens};
use gradmem::train::{TrainOptions, Training, config::TrainConfig};

type B = Autodiff<burn_flex::Flex>;

const LETTERS: u32 = 26;

/// Words of two to five random letters, as token ids.
struct Words {
    first: u64,
    len: usize,
}

impl Dataset<Vec<u32>> for Words {
    fn get(&self, index: usize) -> Option<Vec<u32>> {
        // A sample depends on its index alone.
        let mut random = self.first + index as u64;
        let mut draw = |below: u32| {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) as u32 % below
        };
        (0..8).for_each(|_| _ = draw(2));
        let letters = 2 + draw(4);
        (index < self.len).then(|| (0..letters).map(|_| draw(LETTERS)).collect())
    }

    fn len(&self) -> usize {
        self.len
    }
}

/// The question to each word is the word itself.
#[derive(Clone)]
struct Repeat;

impl<B: Backend> Batcher<B, Vec<u32>, Result<Batch<B>, gradmem::Error>> for Repeat {
    fn batch(&self, words: Vec<Vec<u32>>, device: &B::Device) -> Result<Batch<B>, gradmem::Error> {
        let answers: Vec<_> = words.iter().map(|word| ([LETTERS], word)).collect();
        Ok(Episode::from_answers(Tokens::new(&words, device)?, &answers)?.into())
    }
}

fn main() -> Result<(), gradmem::Error> {
    let device = Default::default();
    B::seed(&device, 0);
    let lm = model::Gpt::<B>::new(LETTERS as usize + 1, &device);
    let settings = TrainConfig {
        steps: 1000,
        batch_size: 32,
        lr: 1e-3,
        warmup_steps: 100,
        clip_norm: Some(1.0),
        eval_every: 50,
        stop_value: Some(0.99),
        ..TrainConfig::default()
    };
    let options = TrainOptions::default();
    let stop = options.interrupter.clone();
    ctrlc::set_handler(move || stop.stop(Some("saved; the same command goes on"))).ok();
    let [train, valid] = [(0, 3200), (1 << 40, 200)].map(|(first, len)| Words { first, len });
    let (_gradmem, outcome) = Training::<B>::new(settings)
        .about(&model::memory())?
        .stage(train, valid, Repeat, &device)
        .run(model::memory().init(lm, 1, &device)?, "runs/words", options)?;
    println!("{:?} after {} steps", outcome.ending, outcome.state.step);
    Ok(())
}
