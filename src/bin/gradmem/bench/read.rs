//! `gradmem bench read`: three ways to answer many questions to one context.

use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use gradmem::Error;
use gradmem::episode::Tokens;
use gradmem::kernels::KernelBackend;
use gradmem::memory::GradMem;
use gradmem::model::generate::{GenerateConfig, Reader, continue_prompts};
use gradmem::model::{AnyLm, CausalLm as _, ModelConfig, weights};
use gradmem::train::open_method;
use serde::Serialize;

use super::{check_shape, median, print_json, synchronize};
use crate::args::{Backend, ModelFolder, at_least_one};
use crate::backend::{Job, dispatch};
use crate::model::gradmem_of;
use crate::output::say;

/// Compare the time of many questions to one context: answered from its memory, with the context in every
/// prompt, and from the key-value cache of one prompt.
///
/// The model is a run's. If it has fewer positions than the longest prompt needs, it gets more; that changes
/// its answers, not its speed. Answers are decoded greedily and have a fixed length. Times are medians of
/// rounds that measure the three in turn.
#[derive(clap::Args)]
pub struct ReadArgs {
    #[command(flatten)]
    model: ModelFolder,
    /// Tokens of the context.
    #[arg(long, default_value_t = 512)]
    context: usize,
    /// Number of questions.
    #[arg(long, default_value_t = 1000)]
    queries: usize,
    /// Tokens per question.
    #[arg(long, default_value_t = 4)]
    query: usize,
    /// Tokens per answer.
    #[arg(long, default_value_t = 2)]
    answer: usize,
    /// Questions that are answered at once.
    #[arg(long, default_value_t = 50)]
    batch: usize,
    /// Rounds that are timed, after one warm-up round.
    #[arg(long, default_value_t = 3)]
    iters: usize,
    /// Print one line of JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    backend: Backend,
}

/// The result, as `--json` prints it.
#[derive(Default, Serialize)]
pub struct Report {
    write_seconds: f64,
    /// All questions from memory, without WRITE.
    read_seconds: f64,
    /// All questions, each with the context in its prompt.
    prompt_seconds: f64,
    /// All questions from the cache of one prompt, with the time to fill it.
    cached_seconds: f64,
    /// `prompt_seconds` divided by the time of WRITE and READ.
    times_cheaper: f64,
    /// `cached_seconds` divided by the time of WRITE and READ.
    times_cheaper_than_cached: f64,
    memory_bytes: usize,
    cache_bytes: usize,
}

pub fn run(args: ReadArgs) -> Result<ExitCode, Error> {
    let (backend, json) = (args.backend.clone(), args.json);
    let (queries, context) = (args.queries, args.context);
    let report = dispatch(&backend, args)?;
    if json {
        print_json(&report)?;
        return Ok(ExitCode::SUCCESS);
    }
    let all = report.write_seconds + report.read_seconds;
    let kib = |bytes: usize| bytes as f64 / 1024.0;
    say!("{queries} questions to a context of {context} tokens");
    say!(
        "from the memory:        {all:8.3} s (WRITE {:.3} s), {:.1} KiB",
        report.write_seconds,
        kib(report.memory_bytes)
    );
    say!(
        "context in each prompt: {:8.3} s: {:.1} times as long",
        report.prompt_seconds,
        report.times_cheaper
    );
    say!(
        "cache of one prompt:    {:8.3} s: {:.1} times as long, {:.1} KiB",
        report.cached_seconds,
        report.times_cheaper_than_cached,
        kib(report.cache_bytes)
    );
    Ok(ExitCode::SUCCESS)
}

impl Job for ReadArgs {
    type Output = Report;

    fn run<B: KernelBackend>(self, device: &B::Device) -> Result<Report, Error> {
        at_least_one(&[
            ("--context", self.context),
            ("--queries", self.queries),
            ("--query", self.query),
            ("--answer", self.answer),
            ("--batch", self.batch),
            ("--iters", self.iters),
        ])?;
        check_shape(&[self.queries, self.query, self.answer, self.iters])?;
        let positions = [self.context, self.query, self.answer];
        let positions = positions.into_iter().fold(0, usize::saturating_add);
        check_shape(&[self.batch, positions])?;
        let gradmem = with_positions::<B>(&self.model.folder, positions, device)?;
        let model = &gradmem.model;
        let vocab = model.vocab_size() as u32;
        let first = 4.min(vocab - 1);
        let ids = |count: usize, seed: u32| -> Vec<u32> {
            let id = |at: u32| {
                first + at.wrapping_mul(2_654_435_761).wrapping_add(seed) / 7 % (vocab - first)
            };
            (0..count as u32).map(id).collect()
        };
        let context = ids(self.context, 1);
        let queries: Vec<Vec<u32>> = (0..self.queries)
            .map(|at| ids(self.query, 40_503 * (at as u32 + 1)))
            .collect();
        let prompts: Vec<_> = queries
            .iter()
            .map(|query| [&context[..], query].concat())
            .collect();
        let tokens = || Tokens::<B>::new(&[&context], device);
        let config = GenerateConfig::greedy(self.answer);
        let ask = |reader: &Reader<'_, B, AnyLm<B>>| {
            queries
                .chunks(self.batch)
                .try_for_each(|queries| reader.generate(queries, &config).map(drop))
        };
        let timed = |work: &mut dyn FnMut() -> Result<(), Error>| -> Result<f64, Error> {
            let start = Instant::now();
            work()?;
            synchronize::<B>(device)?;
            Ok(start.elapsed().as_secs_f64())
        };

        let mut seconds: [Vec<f64>; 4] = Default::default();
        let mut report = Report::default();
        for round in 0..=self.iters {
            let mut memory = None;
            let write = timed(&mut || {
                memory = Some(gradmem.write(&tokens()?)?);
                Ok(())
            })?;
            let memory = memory.ok_or_else(|| Error::Failed("nothing was written".into()))?;
            let read = timed(&mut || ask(&gradmem.reader(&memory)?))?;
            let prompt = timed(&mut || {
                prompts
                    .chunks(self.batch)
                    .try_for_each(|prompts| continue_prompts(model, prompts, &config).map(drop))
            })?;
            let cached = timed(&mut || {
                let reader = Reader::new(model, model.embed(tokens()?.ids()))?;
                report.cache_bytes = reader.cache_bytes();
                ask(&reader)
            })?;
            report.memory_bytes = gradmem.files().pack(&memory)?.bytes_each();
            if round > 0 {
                for (all, one) in seconds.iter_mut().zip([write, read, prompt, cached]) {
                    all.push(one);
                }
            }
        }
        let [write, read, prompt, cached] = seconds.each_mut().map(|all| median(all));
        Ok(Report {
            write_seconds: write,
            read_seconds: read,
            prompt_seconds: prompt,
            cached_seconds: cached,
            times_cheaper: prompt / (write + read),
            times_cheaper_than_cached: cached / (write + read),
            ..report
        })
    }
}

/// A run's GradMem, on a model with at least this many positions after the memory.
fn with_positions<B: KernelBackend>(
    run: &Path,
    positions: usize,
    device: &B::Device,
) -> Result<GradMem<B, AnyLm<B>>, Error> {
    let method = open_method::<B>(run, device)?;
    let mut config = method.model().config();
    let gradmem = gradmem_of(&method, run, "bench read")?;
    let needed = positions + gradmem.config().prefix_len();
    match &mut config {
        ModelConfig::Llama(config) => {
            config.max_position_embeddings = config.max_position_embeddings.max(needed)
        }
        ModelConfig::GptNeoX(config) => {
            config.max_position_embeddings = config.max_position_embeddings.max(needed)
        }
        ModelConfig::Gpt2(config) if config.n_positions < needed => {
            return Err(Error::Input(format!(
                "{needed} positions are needed, but this GPT-2 has {}: try a shorter --context",
                config.n_positions
            )));
        }
        _ => {}
    }
    let blank = gradmem.config().blank(config.blank(device)?, device)?;
    weights::transfer(gradmem, blank)
}
