//! A GPT of `burn::nn` modules learns to hold four key-value pairs in eight vectors, with a loop of one's own, and Burn's
//! recorder saves it: `cargo run --release --example nn_train`. Then `--example nn_answer` reads it.

mod model;

use burn::backend::Autodiff;
use burn::grad_clipping::GradientClippingConfig;
use burn::module::{AutodiffModule, Module};
use burn::optim::{AdamWConfig, Optimizer};
use burn::record::DefaultRecorder;
use burn::tensor::backend::Backend;
use gradmem::data::{DataConfig, ExampleBatcher, KvConfig, TokensConfig};
use gradmem::memory::MetaGradient;
use gradmem::train::learner::evaluate;
use gradmem::train::metrics::Measure;

type B = Autodiff<burn_flex::Flex>;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let device = Default::default();
    B::seed(&device, 0);
    let vocab_size = KvConfig::default().tokenizer()?.vocab_size();
    let lm = model::Gpt::<B>::new(vocab_size, &device);
    let mut gradmem = model::memory().init(lm, 1, &device)?;
    let clipping = GradientClippingConfig::Norm(1.0);
    let optimizer = AdamWConfig::new().with_weight_decay(0.0);
    let mut optimizer = optimizer.with_grad_clipping(Some(clipping)).init();
    let mut step = 0;
    // Copying a few letters, then two pairs, then four: each teaches what the next needs.
    for (pairs, until) in [(0, 0.8), (2, 0.8), (4, 0.97)] {
        let task = data(pairs).open(&TokensConfig::default(), 0, None)?;
        let batcher = ExampleBatcher::new(task.tokenizer);
        let held_out = (0..200)
            .filter_map(|index| task.valid.get(index))
            .collect::<Vec<_>>();
        loop {
            let batch = (step * 32..(step + 1) * 32).filter_map(|index| task.train.get(index));
            let batch = batcher.try_batch::<B>(batch.collect(), &device)?;
            let (gradients, _) = gradmem.outer_gradient(&batch.episode, MetaGradient::Unrolled)?;
            let lr = 1e-3 * (step as f64 / 100.0).min(1.0);
            gradmem = optimizer.step(lr, gradmem, gradients);
            step += 1;
            if step % 50 == 0 {
                let batch = batcher.try_batch(held_out.clone(), &device)?;
                let scores = evaluate(&gradmem.valid(), batch)?;
                let right = scores.mean(Measure::ExactMatch).unwrap_or(0.0);
                println!("step {step}, {pairs} pairs: {:.1} % right", 100.0 * right);
                if right >= until {
                    break;
                }
                if step >= 3000 {
                    return Err("3,000 steps were not enough".into());
                }
            }
        }
    }
    gradmem.save_file("nn_gpt", &DefaultRecorder::new())?;
    Ok(())
}

/// Copying with no pairs; else that many, each of which is asked for.
fn data(pairs: usize) -> DataConfig {
    DataConfig::Kv(KvConfig {
        pairs,
        key_len: 1,
        value_len: 1,
        queries_per_context: pairs.max(1),
        segments: usize::from(pairs == 0),
        segment_min: 2,
        segment_max: 6,
        ..KvConfig::default()
    })
}
