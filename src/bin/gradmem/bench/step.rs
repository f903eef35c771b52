//! `gradmem bench`: one training step on random contexts.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use burn::backend::Autodiff;
use burn::module::AutodiffModule;
use burn::optim::adaptor::OptimizerAdaptor;
use burn::optim::{GradientsAccumulator, Optimizer};
use burn::tensor::Tensor;
use burn::tensor::backend::Backend as BurnBackend;
use gradmem::Error;
use gradmem::episode::{Episode, Tokens};
use gradmem::kernels::KernelBackend;
use gradmem::memory::{GradMemConfig, GradMode, MetaGradient};
use gradmem::model::{AnyLm, CausalLm, LlamaConfig, pretrained};
use gradmem::support::profile::{self, Phase, timed};
use gradmem::train::AdamW;
use gradmem::train::config::TrainConfig;
use serde::Serialize;

use super::{
    check_rounds, check_shape, median, peak_rss_bytes, print_json, print_memory, synchronize,
};
use crate::args::{Backend, META_GRADIENTS, at_least_one, by_options, setting};
use crate::backend::{Job, device_bytes, dispatch};
use crate::output::say;

#[derive(clap::Args)]
pub struct StepArgs {
    /// Contexts per step.
    #[arg(long, default_value_t = 64)]
    batch: usize,
    /// Tokens per context.
    #[arg(long, default_value_t = 64)]
    context: usize,
    /// Tokens of a query and its target together, half each.
    #[arg(long, default_value_t = 16)]
    query: usize,
    /// A pretrained model's folder, instead of a Llama with random weights of these sizes.
    #[arg(long, value_name = "FOLDER", conflicts_with_all = ["layers", "heads", "dim", "vocab"])]
    model: Option<PathBuf>,
    /// Layers of the model, a Llama.
    #[arg(long, default_value_t = 4)]
    layers: usize,
    /// Attention heads.
    #[arg(long, default_value_t = 4)]
    heads: usize,
    /// Width of the model.
    #[arg(long, default_value_t = 128)]
    dim: usize,
    /// Memory vectors.
    #[arg(long, default_value_t = 8)]
    memory: usize,
    /// WRITE steps.
    #[arg(long, default_value_t = 2)]
    steps: usize,
    /// Queries per context.
    #[arg(long, default_value_t = 1)]
    queries: usize,
    /// How the outer gradient passes through the WRITE steps.
    #[arg(long, value_parser = setting::<GradMode, _>(GRAD_MODES), default_value = "second")]
    grad_mode: GradMode,
    /// Outer-gradient strategy.
    #[arg(long, value_parser = setting::<MetaGradient, _>(META_GRADIENTS), default_value = "auto")]
    meta_gradient: MetaGradient,
    /// Compute at most N contexts at once, and sum the gradients.
    #[arg(long, value_name = "N")]
    micro_batch: Option<usize>,
    /// Measure WRITE and READ alone, as at test time: no outer gradient, no optimizer.
    #[arg(long, conflicts_with_all = ["grad_mode", "meta_gradient", "micro_batch"])]
    test_time: bool,
    /// Size of the vocabulary.
    #[arg(long, default_value_t = 70)]
    vocab: usize,
    /// Steps that are timed, after the warm-up.
    #[arg(long, default_value_t = 5)]
    iters: usize,
    /// Steps before those that are timed.
    #[arg(long, default_value_t = 2)]
    warmup: usize,
    /// Seed of the initial weights.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Step size of WRITE.
    #[arg(long, default_value_t = 0.04)]
    write_lr: f64,
    /// Print one line of JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    backend: Backend,
}

/// The values of `memory.grad_mode` and what they mean.
const GRAD_MODES: [(&str, &str); 3] = [
    ("none", "Not at all: M0 is not trained"),
    ("first", "With the inner gradient as a constant"),
    ("second", "In full, through the inner gradient"),
];

/// The settings of the model and of GradMem, and their options.
const OPTIONS: [(&str, &str); 7] = [
    ("vocab_size", "--vocab"),
    ("hidden_size", "--dim"),
    ("num_hidden_layers", "--layers"),
    ("num_attention_heads", "--heads"),
    ("memory_tokens", "--memory"),
    ("write_steps", "--steps"),
    ("write_lr", "--write-lr"),
];

/// The result, as `--json` prints it. The keys are those of `benches/torch_baseline.py`.
#[derive(Serialize)]
struct Report {
    /// Median over the timed steps.
    seconds_per_step: f64,
    loss: f64,
    /// The outer-gradient strategy used; none with --test-time.
    meta_gradient: Option<MetaGradient>,
    peak_rss_bytes: Option<u64>,
    peak_device_bytes: Option<u64>,
}

pub fn run(args: StepArgs) -> Result<ExitCode, Error> {
    let (backend, json) = (args.backend.clone(), args.json);
    let (mut seconds, loss, meta_gradient) = dispatch(&backend, args)?;
    let report = Report {
        seconds_per_step: median(&mut seconds),
        loss,
        meta_gradient,
        peak_rss_bytes: peak_rss_bytes(),
        peak_device_bytes: device_bytes(&backend.name),
    };
    if json {
        print_json(&report)?;
        return Ok(ExitCode::SUCCESS);
    }
    say!(
        "{:.4} s a step (median of {}), loss {:.4}{}",
        report.seconds_per_step,
        seconds.len(),
        report.loss,
        report
            .meta_gradient
            .map_or(String::new(), |strategy| format!(", {strategy:?}")),
    );
    print_memory(report.peak_rss_bytes, report.peak_device_bytes);
    Ok(ExitCode::SUCCESS)
}

impl Job for StepArgs {
    /// The seconds of each timed step, the last loss, and the strategy.
    type Output = (Vec<f64>, f64, Option<MetaGradient>);

    /// The work of `benches/torch_baseline.py`: a Llama with a tied head, mean losses, AdamW.
    fn run<B: KernelBackend>(self, device: &B::Device) -> Result<Self::Output, Error> {
        at_least_one(&[
            ("--batch", self.batch),
            ("--context", self.context),
            ("--layers", self.layers),
            ("--heads", self.heads),
            ("--dim", self.dim),
            ("--memory", self.memory),
            ("--queries", self.queries),
            ("--micro-batch", self.micro_batch.unwrap_or(1)),
            ("--vocab", self.vocab),
            ("--iters", self.iters),
        ])?;
        if self.query < 2 {
            return Err(Error::Input("--query must be at least 2".into()));
        }
        if !self.dim.is_multiple_of(self.heads.saturating_mul(2)) {
            return Err(Error::Input(format!(
                "--dim {} must be a multiple of twice --heads {}",
                self.dim, self.heads
            )));
        }
        check_rounds(self.iters, self.warmup)?;
        let positions = self.memory.saturating_add(self.context.max(self.query));
        check_shape(&[self.batch, self.queries, positions, self.dim])?;
        let model: AnyLm<Autodiff<B>> = match &self.model {
            Some(folder) => pretrained::load(folder, device)?.model,
            None => {
                let config = LlamaConfig::new(self.vocab, self.dim, self.layers, self.heads)
                    .with_tied_head(true)
                    .with_max_positions(positions);
                let model = config.init(self.seed, device);
                AnyLm::Llama(model.map_err(|e| by_options(e, &OPTIONS))?)
            }
        };
        let vocab = model.vocab_size() as u64;
        let mut gradmem = GradMemConfig::new()
            .with_memory_tokens(self.memory)
            .with_write_steps(self.steps)
            .with_write_lr(self.write_lr)
            .with_grad_mode(self.grad_mode)
            .init(model, self.seed, device)
            .map_err(|e| by_options(e, &OPTIONS))?;
        let adamw = AdamW::<B>::new(&TrainConfig::default());
        let mut optimizer = OptimizerAdaptor::from(adamw);

        let rows = |count: usize, columns: usize, seed: u64| -> Vec<Vec<u32>> {
            let first = 4.min(vocab - 1);
            let count_of_ids = vocab - first;
            let id = |i: u64| (first + (i * 2654435761 + seed * 40503) / 7 % count_of_ids) as u32;
            let ids: Vec<u32> = (0..(count * columns) as u64).map(id).collect();
            ids.chunks(columns).map(<[u32]>::to_vec).collect()
        };
        let contexts = Tokens::new(&rows(self.batch, self.context, 1), device)?;
        // The second half of each query is the target.
        let queries = rows(self.batch * self.queries, self.query, 2);
        let half = self.query / 2;
        let answers: Vec<_> = queries.iter().map(|row| row.split_at(half)).collect();
        let episode = Episode::<Autodiff<B>>::from_answers(contexts, &answers)?;
        let contexts = self.micro_batch.unwrap_or(self.batch).clamp(1, self.batch);
        let strategy = gradmem.choose(self.meta_gradient, [contexts, self.context]);

        let mut seconds = Vec::new();
        let mut last = f64::NAN;
        for iteration in 0..self.warmup + self.iters {
            let start = Instant::now();
            if self.test_time {
                let outer = gradmem.valid().outer(&episode.inner())?;
                last = scalar(outer.loss());
            } else {
                let mut total = GradientsAccumulator::new();
                last = 0.0;
                for part in episode.clone().split(contexts) {
                    let share = part.len() as f64 / self.batch as f64;
                    let (gradient, outer) = gradmem.outer_gradient(&part, strategy)?;
                    total.accumulate(&gradmem, gradient);
                    last += share * scalar(outer.loss());
                }
                gradmem = timed::<B, _>(Phase::Optimizer, device, || {
                    optimizer.step(1e-4, gradmem, total.grads())
                });
            }
            profile::report(iteration + 1);
            synchronize::<B>(device)?;
            if iteration >= self.warmup {
                seconds.push(start.elapsed().as_secs_f64());
            }
        }
        Ok((seconds, last, (!self.test_time).then_some(strategy)))
    }
}

fn scalar<B: BurnBackend>(x: Tensor<B, 1>) -> f64 {
    x.into_data().iter::<f64>().next().unwrap_or(f64::NAN)
}
