//! A method of another crate with what draws at random and keeps statistics, in a training that is stopped and goes on. A program of its
//! own: Burn's generator is the process's, and other tests draw from it.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use burn::backend::Autodiff;
use burn::data::dataloader::batcher::Batcher;
use burn::data::dataset::Dataset;
use burn::module::Module;
use burn::nn::{
    BatchNorm, BatchNormConfig, Dropout, DropoutConfig, Embedding, EmbeddingConfig, Linear,
    LinearConfig,
};
use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor};
use burn::train::Interrupter;
use gradmem::Error;
use gradmem::baselines::Answers;
use gradmem::data::Batch;
use gradmem::episode::{Episode, Tokens, Totals};
use gradmem::method::Method;
use gradmem::model::CausalLm;
use gradmem::model::weights::Tensors;
use gradmem::train::config::TrainConfig;
use gradmem::train::{Ending, TrainOptions, Training};

type B = Autodiff<burn_flex::Flex>;

const LETTERS: usize = 7;
const D_MODEL: usize = 8;

/// Each token predicts the next one by itself.
#[derive(Module, Debug)]
struct Pairs<B: Backend> {
    tokens: Embedding<B>,
    norm: BatchNorm<B>,
    dropout: Dropout,
    out: Linear<B>,
}

impl<B: Backend> Pairs<B> {
    fn new(device: &B::Device) -> Self {
        B::seed(device, 3);
        let made = Self {
            tokens: EmbeddingConfig::new(LETTERS + 1, D_MODEL).init(device),
            norm: BatchNormConfig::new(D_MODEL).init(device),
            dropout: DropoutConfig::new(0.3).init(),
            out: LinearConfig::new(D_MODEL, D_MODEL)
                .with_bias(false)
                .init(device),
        };
        // Burn draws a weight when it is first used.
        _ = made.tokens.weight.val();
        _ = made.out.weight.val();
        made
    }
}

impl<B: Backend> CausalLm<B> for Pairs<B> {
    fn d_model(&self) -> usize {
        D_MODEL
    }

    fn vocab_size(&self) -> usize {
        LETTERS + 1
    }

    fn max_positions(&self) -> Option<usize> {
        None
    }

    fn embed(&self, tokens: Tensor<B, 2, Int>) -> Tensor<B, 3> {
        self.tokens.forward(tokens)
    }

    fn hidden(&self, embeds: Tensor<B, 3>) -> Tensor<B, 3> {
        let normed = self.norm.forward(embeds.swap_dims(1, 2)).swap_dims(1, 2);
        self.out.forward(self.dropout.forward(normed))
    }

    fn head(&self) -> Tensor<B, 2> {
        self.tokens.weight.val()
    }
}

/// Answers without any context.
#[derive(Module, Debug)]
struct Forgetful<B: Backend> {
    lm: Pairs<B>,
}

impl<B: Backend> Method<B> for Forgetful<B> {
    fn answers(&self, episode: &Episode<B>) -> Result<Answers<B>, Error> {
        let hidden = self.lm.hidden(self.lm.embed(episode.queries().ids()));
        let (read_loss, predicted) = episode.answered(&self.lm, hidden);
        Ok(Answers::new(read_loss, predicted))
    }

    fn counted_labels(&self, totals: Totals) -> usize {
        totals.later_labels
    }
}

/// Letters in the order of the alphabet, from any.
struct Alphabet;

impl Dataset<u32> for Alphabet {
    fn get(&self, index: usize) -> Option<u32> {
        (index < self.len()).then_some((index % LETTERS) as u32)
    }

    fn len(&self) -> usize {
        3 * LETTERS
    }
}

#[derive(Clone)]
struct Next {
    /// Stops the training when a batch of training is made for the time that this says.
    stop: Option<(Interrupter, Arc<AtomicUsize>)>,
}

impl<B: Backend> Batcher<B, u32, Result<Batch<B>, Error>> for Next {
    fn batch(&self, letters: Vec<u32>, device: &B::Device) -> Result<Batch<B>, Error> {
        if let Some((interrupter, left)) = &self.stop
            && left.fetch_sub(1, Ordering::Relaxed) == 1
        {
            interrupter.stop(Some("enough"));
        }
        let next = |letter: u32, by: u32| (letter + by) % LETTERS as u32;
        let contexts: Vec<[u32; 1]> = letters.iter().map(|_| [LETTERS as u32]).collect();
        let answers: Vec<([u32; 1], [u32; 2])> = letters
            .iter()
            .map(|letter| ([*letter], [next(*letter, 1), next(*letter, 2)]))
            .collect();
        Ok(Episode::from_answers(Tokens::new(&contexts, device)?, &answers)?.into())
    }
}

fn train(folder: &Path, stop_after: Option<usize>) -> Ending {
    let device = Default::default();
    let options = TrainOptions {
        plain: true,
        ..TrainOptions::default()
    };
    let stop = stop_after.map(|after| (options.interrupter.clone(), Arc::new(after.into())));
    let settings = TrainConfig {
        steps: 12,
        batch_size: 6,
        micro_batch: Some(3),
        lr: 1e-2,
        eval_every: 4,
        log_every: 1,
        ema_decay: Some(0.9),
        ..TrainConfig::default()
    };
    let method = Forgetful {
        lm: Pairs::<B>::new(&device),
    };
    // What others draw in between changes nothing.
    B::seed(&device, stop_after.map_or(0, |after| after as u64));
    let (_, outcome) = Training::<B>::new(settings)
        .stage(Alphabet, Alphabet, Next { stop }, &device)
        .run(method, folder, options)
        .unwrap();
    outcome.ending
}

#[test]
fn what_draws_and_what_keeps_statistics_goes_on_as_if_nothing_had_stopped_it() {
    let folder = tempfile::TempDir::new().unwrap();
    let [whole, parts] = ["whole", "parts"].map(|name| folder.path().join(name));
    assert_eq!(train(&whole, None), Ending::Steps);
    assert_eq!(train(&parts, Some(6)), Ending::Interrupted("enough".into()));
    assert_eq!(train(&parts, None), Ending::Steps);
    for file in ["best.safetensors", "metrics.jsonl"] {
        let [a, b] = [&whole, &parts].map(|folder| std::fs::read(folder.join(file)).unwrap());
        assert!(a == b, "{file}");
    }
    // Beside weights it has Burn's ids of running statistics, which are drawn.
    let [a, b] = [&whole, &parts].map(|run| Tensors::open(run.join("last.safetensors")).unwrap());
    for name in a.names() {
        assert_eq!(a.get(name).unwrap(), b.get(name).unwrap(), "{name}");
    }
    // The average of the weights is scored with the statistics of the training.
    let best = Tensors::open(whole.join("best.safetensors")).unwrap();
    let mean = best.get("lm.norm.running_mean").unwrap();
    assert!(mean.iter::<f32>().any(|mean| mean.abs() > 1e-3), "{mean:?}");
}
