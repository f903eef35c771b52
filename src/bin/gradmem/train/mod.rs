//! `gradmem train`: one run, or one for each of several seeds.

mod summary;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use burn::train::Interrupter;
use clap::ValueEnum;
use gradmem::Error;
use gradmem::kernels::KernelBackend;
use gradmem::train::config::RunConfig;
use gradmem::train::evaluation::{EvalOptions, Shown};
use gradmem::train::{Ending, Outcome, TrainOptions, Trained, leave_dashboard};

use crate::args::{Backend, MetaGradient, parse_numbers};
use crate::backend::{Job, dispatch};
use crate::output::{accompany, message};

/// The exit status of a program that Ctrl-C ended.
pub const INTERRUPTED: u8 = 130;

/// Meta-train a model, or resume a training that was stopped.
///
/// The same command resumes from the run's last checkpoint, with the result of an uninterrupted run. On a
/// terminal it shows a dashboard (q, then s, stops and saves); elsewhere it prints one line per log interval.
/// Ctrl-C stops and saves.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  gradmem train kv-quick
  gradmem train kv-quick --run runs/first-order memory.grad_mode=first
  gradmem train kv-quick method=rmt
  gradmem train kv-quick --seeds 1..3
  gradmem train babi --from models/gpt2
  gradmem preset kv-quick > mine.toml && gradmem train mine.toml train.seed=2")]
pub struct Args {
    /// Name of a preset (see `gradmem preset`), or a .toml file.
    preset: String,
    /// Settings that override the preset's, such as memory.write_steps=5 or train.seed=2.
    #[arg(value_name = "KEY=VALUE")]
    overrides: Vec<String>,
    /// Folder of the run, for its settings, metrics and checkpoints [default: runs/PRESET, or
    /// runs/PRESET-METHOD if the method is not the preset's].
    #[arg(long, value_name = "FOLDER")]
    run: Option<PathBuf>,
    /// Train one run for each of these seeds, such as 1,2 or 1..3. Each has a folder seed-N in the run's
    /// folder.
    #[arg(long, value_name = "SEEDS")]
    seeds: Option<String>,
    /// Start from the model in this folder instead of random weights: architecture, weights and tokenizer are those of
    /// a Hugging Face model, of another run or of a checkpoint of the reference implementation (short for
    /// model.from=FOLDER).
    #[arg(long, value_name = "FOLDER")]
    from: Option<PathBuf>,
    /// Compute at most N contexts of a step at once: less memory, and the same gradient up to rounding (short
    /// for train.micro_batch=N).
    #[arg(long, value_name = "N")]
    micro_batch: Option<usize>,
    /// Outer-gradient strategy of GradMem (short for train.meta_gradient=…).
    #[arg(long, value_enum)]
    meta_gradient: Option<MetaGradient>,
    /// Print lines instead of showing the dashboard.
    #[arg(long)]
    plain: bool,
    #[command(flatten)]
    backend: Backend,
}

pub fn run(args: Args) -> Result<ExitCode, Error> {
    let config = RunConfig::resolve(&args.preset, &args.all_overrides())?;
    let folder = args.folder(&config)?;
    let interrupter = Interrupter::new();
    stop_on_signals(&interrupter)?;
    let Some(seeds) = &args.seeds else {
        let outcome = train_one(&args, &config, &folder, &interrupter)?;
        return Ok(exit_code(&outcome.ending));
    };
    let mut seeds = parse_numbers("--seeds", seeds, u64::MAX >> 1)?;
    let mut seen = HashSet::new();
    seeds.retain(|seed| seen.insert(*seed));
    let mut outcomes = Vec::new();
    for seed in seeds {
        let mut config = config.clone();
        config.train.seed = seed;
        let folder = folder.join(format!("seed-{seed}"));
        let outcome = train_one(&args, &config, &folder, &interrupter)?;
        let interrupted = matches!(outcome.ending, Ending::Interrupted(_));
        outcomes.push((seed, outcome));
        if interrupted {
            break;
        }
    }
    accompany(format_args!("{}", summary::of_seeds(&config, &outcomes)));
    let last = outcomes.last();
    Ok(last.map_or(ExitCode::SUCCESS, |(_, outcome)| exit_code(&outcome.ending)))
}

impl Args {
    /// The overrides, with the options that are short for one.
    fn all_overrides(&self) -> Vec<String> {
        let micro_batch = self.micro_batch.map(|n| format!("train.micro_batch={n}"));
        let strategy = self.meta_gradient.and_then(|x| x.to_possible_value());
        let strategy = strategy.map(|x| format!("train.meta_gradient={}", x.get_name()));
        // As a text of TOML, whatever the path is made of.
        let text = |path: &PathBuf| toml::Value::String(path.display().to_string());
        let from = self.from.as_ref().map(text);
        let from = from.map(|text| format!("model.from={text}"));
        let overrides = self.overrides.iter().cloned();
        overrides
            .chain(micro_batch)
            .chain(strategy)
            .chain(from)
            .collect()
    }

    /// The folder of the run. Another method than the preset's is another run.
    fn folder(&self, config: &RunConfig) -> Result<PathBuf, Error> {
        if let Some(folder) = &self.run {
            return Ok(folder.clone());
        }
        let mut name = Path::new(&self.preset)
            .file_stem()
            .unwrap_or_default()
            .to_os_string();
        if config.method != RunConfig::resolve(&self.preset, &[])?.method {
            name.push("-");
            name.push(config.method.as_str());
        }
        Ok(Path::new("runs").join(name))
    }
}

fn exit_code(ending: &Ending) -> ExitCode {
    match ending {
        Ending::Interrupted(_) => ExitCode::from(INTERRUPTED),
        _ => ExitCode::SUCCESS,
    }
}

/// Trains one run, and prints what it is and how it ended.
fn train_one(
    args: &Args,
    config: &RunConfig,
    folder: &Path,
    interrupter: &Interrupter,
) -> Result<Outcome, Error> {
    accompany(format_args!("{}\n", summary::before(config, folder)));
    let start = Instant::now();
    let job = TrainJob {
        config: config.clone(),
        folder: folder.to_path_buf(),
        options: TrainOptions {
            plain: args.plain,
            interrupter: interrupter.clone(),
        },
    };
    let (outcome, answers) = dispatch(&args.backend, job)?;
    let text = summary::after(config, folder, &outcome, start.elapsed(), &answers)?;
    accompany(format_args!("{text}"));
    Ok(outcome)
}

struct TrainJob {
    config: RunConfig,
    folder: PathBuf,
    options: TrainOptions,
}

impl Job for TrainJob {
    type Output = (Outcome, Vec<Shown>);

    fn run<B: KernelBackend>(self, device: &B::Device) -> Result<Self::Output, Error> {
        let outcome = gradmem::train::train::<B>(&self.config, &self.folder, self.options, device)?;
        let answers = match &outcome.ending {
            Ending::Interrupted(_) => Vec::new(),
            _ => first_answers::<B>(&self.folder, device).unwrap_or_else(|e| {
                log::warn!("{e}");
                Vec::new()
            }),
        };
        Ok((outcome, answers))
    }
}

/// What the best weights answer to the questions about the first held-out context.
fn first_answers<B: KernelBackend>(folder: &Path, device: &B::Device) -> Result<Vec<Shown>, Error> {
    let options = EvalOptions {
        samples: Some(1),
        generate: true,
        examples: usize::MAX,
        ..EvalOptions::default()
    };
    Ok(Trained::<B>::open(folder, device)?
        .evaluate(&options)?
        .examples)
}

/// Makes SIGINT (Ctrl-C), SIGTERM and SIGHUP (a closed terminal) stop the training at the next step. A second
/// signal ends the program at once.
fn stop_on_signals(interrupter: &Interrupter) -> Result<(), Error> {
    static PRESSED: AtomicBool = AtomicBool::new(false);
    let interrupter = interrupter.clone();
    ctrlc::set_handler(move || {
        if PRESSED.swap(true, Ordering::Relaxed) {
            leave_dashboard();
            std::process::exit(INTERRUPTED.into());
        }
        // First of all: the message may have no reader any more.
        interrupter.stop(Some("Interrupted."));
        message!("stopping at the next step, to save; press Ctrl-C again to stop at once");
    })
    .map_err(|e| Error::Failed(format!("signals cannot be caught: {e}")))
}
