//! `gradmem train`: one run, or one for each of several seeds.

mod signals;
mod summary;

use std::collections::HashSet;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use burn::train::Interrupter;
use gradmem::Error;
use gradmem::kernels::{KernelBackend, Precision};
use gradmem::train::checkpoint::RunFolder;
use gradmem::train::config::{LrDecay, RunConfig};
use gradmem::train::evaluation::{EvalOptions, Shown};
use gradmem::train::world::{World, all_or_none};
use gradmem::train::{Ending, Outcome, TrainOptions, Trained};

use self::signals::{stop_after, stop_on_signals};
use crate::args::{Backend, META_GRADIENTS, one_of, parse_numbers};
use crate::backend::{Job, dispatch, usable};
use crate::files::check_folder;
use crate::output::{Errors, accompany, failed, shown};
use crate::processes::{is_silent, join};

/// The exit status of a program that Ctrl-C ended.
pub const INTERRUPTED: u8 = 130;

/// Meta-train a model, or resume a training that was stopped.
///
/// The same command resumes from the run's last checkpoint, with the result of an uninterrupted run. On a
/// terminal it shows a dashboard (q, then s, stops and saves); elsewhere it prints one line per log interval.
/// Ctrl-C stops and saves, and so does SIGUSR1.
///
/// `mpirun -n N gradmem train …` trains on N processes, with the result of one (build with --features mpi).
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
    #[arg(long, value_parser = one_of(META_GRADIENTS))]
    meta_gradient: Option<String>,
    /// Print lines instead of showing the dashboard.
    #[arg(long)]
    plain: bool,
    /// Stop and save after so many hours, such as 1.5, as Ctrl-C does: the same command goes on.
    #[arg(long, value_name = "HOURS", value_parser = hours)]
    until: Option<Duration>,
    /// Of several processes (mpirun -n 2 gradmem train …), how many seconds one waits for the others before it takes
    /// them for gone and ends [default: 600].
    #[arg(long, value_name = "SECONDS")]
    patience: Option<u64>,
    #[command(flatten)]
    backend: Backend,
    /// What `--precision` says (short for train.precision=…).
    #[arg(skip)]
    precision: Option<Precision>,
}

pub fn run(mut args: Args) -> Result<ExitCode, Error> {
    let patience = args.patience.unwrap_or(600).max(1);
    let world = join(Duration::from_secs(patience))?;
    if args.patience.is_some() && world.size() == 1 {
        log::warn!(
            "--patience has no effect on one process: it is how long several wait for each other (train.patience ends a training that gets \
             no better)"
        );
    }
    args.backend.device = world.local_rank();
    // A setting of the run, which sets it.
    args.precision = args.backend.precision.take().map(Into::into);
    match run_in(&args, &world) {
        // Said before this process leaves the others: a launcher may end it as soon as one of them is gone.
        Err(error) if world.size() > 1 => Ok(failed(&error)),
        result => result,
    }
}

/// What fails in one process fails in all.
fn run_in(args: &Args, world: &Arc<dyn World>) -> Result<ExitCode, Error> {
    let settings = args
        .check_from()
        .and_then(|()| RunConfig::resolve(&args.preset, &args.all_overrides()))
        .and_then(|config| Ok((args.folder(&config)?, config)))
        .and_then(|settings| check_folder(&settings.0, "--run").map(|()| settings))
        .and_then(|settings| usable(&args.backend).map(|()| settings));
    let (folder, config) = all_or_none(&**world, settings)?;
    args.check_said_once()?;
    let fits = match args.seeds.is_some() && RunFolder::open(&folder).is_ok() {
        true => Err(Error::file(
            &folder,
            "is a run: --seeds needs a folder for runs of each seed. Name another one with --run",
        )),
        false => Ok(()),
    };
    // The others may not see the folder.
    all_or_none(&**world, fits)?;
    args.warn_of_settings_without_effect(&config);
    let interrupter = Interrupter::new();
    stop_on_signals(&interrupter)?;
    if let Some(until) = args.until {
        stop_after(until, &interrupter)?;
    }
    let options = TrainOptions {
        plain: args.plain,
        interrupter,
        world: world.clone(),
    };
    let Some(seeds) = &args.seeds else {
        let outcome = train_one(args, &config, &folder, &options)?;
        return Ok(exit_code(&outcome.ending));
    };
    let mut seeds = parse_numbers("--seeds", seeds, u64::MAX >> 1)?;
    let mut seen = HashSet::new();
    seeds.retain(|seed| seen.insert(*seed));
    let (mut outcomes, mut failed) = (Vec::new(), None);
    for seed in seeds.iter().copied() {
        let mut config = config.clone();
        config.train.seed = seed;
        let folder = folder.join(format!("seed-{seed}"));
        match train_one(args, &config, &folder, &options) {
            Ok(outcome) => {
                let interrupted = matches!(outcome.ending, Ending::Interrupted(_));
                outcomes.push((seed, outcome));
                if interrupted {
                    break;
                }
            }
            // A training that failed says nothing of the others; a mistake of the user's does.
            Err(error) if !error.is_user_error() => {
                log::error!("seed {seed}: {error}");
                failed.get_or_insert(error);
            }
            Err(error) => {
                failed = Some(error);
                break;
            }
        }
    }
    if !outcomes.is_empty() {
        let summary = summary::of_seeds(&config, &outcomes, seeds.len());
        accompany(format_args!("{summary}"));
    }
    if let Some(error) = failed {
        return Err(error);
    }
    let last = outcomes.last();
    Ok(last.map_or(ExitCode::SUCCESS, |(_, outcome)| exit_code(&outcome.ending)))
}

impl Args {
    /// The options that are short for a setting: option, setting, and the value that is given.
    fn short_for(&self) -> [(&'static str, &'static str, Option<String>); 4] {
        let micro_batch = self.micro_batch.map(|n| n.to_string());
        let precision = self.precision.map(|x| x.as_str().to_string());
        // As a text of TOML, whatever the path is made of.
        let text = |path: &PathBuf| toml::Value::String(path.display().to_string()).to_string();
        let from = self.from.as_ref().map(text);
        [
            ("--from", "model.from", from),
            ("--micro-batch", "train.micro_batch", micro_batch),
            (
                "--meta-gradient",
                "train.meta_gradient",
                self.meta_gradient.clone(),
            ),
            ("--precision", "train.precision", precision),
        ]
    }

    /// The overrides, with the options that are short for one.
    fn all_overrides(&self) -> Vec<String> {
        let short = self.short_for().into_iter();
        let short = short.filter_map(|(_, key, value)| Some(format!("{key}={}", value?)));
        self.overrides.iter().cloned().chain(short).collect()
    }

    /// Fails on a folder whose path a run's settings, a text, cannot hold.
    fn check_from(&self) -> Result<(), Error> {
        match self.from.as_ref().filter(|path| path.to_str().is_none()) {
            Some(path) => Err(Error::Input(format!(
                "--from {}: the path is not UTF-8, as the settings of a run are: give the folder another name",
                path.display()
            ))),
            None => Ok(()),
        }
    }

    /// Fails where an option and a setting say the same: one of them would have no effect.
    fn check_said_once(&self) -> Result<(), Error> {
        let seeds = self.seeds.as_ref().map(|_| ("--seeds", "train.seed"));
        let short = self.short_for().into_iter();
        let short = short.filter_map(|(option, key, value)| value.map(|_| (option, key)));
        for (option, key) in short.chain(seeds) {
            if let Some(setting) = self.set(key) {
                return Err(Error::Input(format!(
                    "{setting} beside {option}, which sets it: leave one of them out"
                )));
            }
        }
        Ok(())
    }

    /// The last override of a key.
    fn set(&self, key: &str) -> Option<&str> {
        let overrides = self.overrides.iter().rev();
        let mut of_key = overrides.filter(|text| {
            text.split_once('=')
                .is_some_and(|(found, _)| found.trim() == key)
        });
        of_key.next().map(String::as_str)
    }

    /// Warns of settings that are valid, but do not do what whoever wrote them wanted.
    fn warn_of_settings_without_effect(&self, config: &RunConfig) {
        warn_without_effect(config, &self.all_overrides());
        let train = &config.train;
        // Shares are printed in percent. A little above 1 says never.
        let curriculum = Some(train.curriculum_value).filter(|_| !train.curriculum.is_empty());
        for (key, value) in [
            ("stop_value", train.stop_value),
            ("curriculum_value", curriculum),
        ] {
            if let Some(value) = value.filter(|value| train.stop_metric.is_share() && *value > 2.0)
            {
                let metric = train.stop_metric.key();
                log::warn!(
                    "train.{key} = {value} is never reached: {metric} is a share, between 0 and 1"
                );
            }
        }
        if train.lr_decay != LrDecay::Constant && train.warmup_steps >= train.steps {
            let [warmup, steps] = [train.warmup_steps, train.steps];
            log::warn!(
                "train.warmup_steps = {warmup} of train.steps = {steps}: the learning rate rises until the end, and does not fall"
            );
        }
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
        if config.method != RunConfig::method_of(&self.preset)? {
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
    options: &TrainOptions,
) -> Result<Outcome, Error> {
    let before = shown(&summary::before(config, folder));
    accompany(format_args!("{before}\n"));
    let start = Instant::now();
    let job = TrainJob {
        config: config.clone(),
        folder: folder.to_path_buf(),
        options: options.clone(),
    };
    let trained = dispatch(&args.backend, job);
    // What was said while there was a dashboard.
    Errors.flush().ok();
    let (outcome, answers) = trained?;
    if is_silent() {
        return Ok(outcome);
    }
    // The run is done: what cannot be said of it is no error of it.
    match summary::after(config, folder, &outcome, start.elapsed(), &answers) {
        Ok(text) => accompany(format_args!("{text}")),
        Err(error) => log::warn!("{error}"),
    }
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
            _ if is_silent() => Vec::new(),
            _ => first_answers::<B>(&self.folder, device).unwrap_or_else(|e| {
                log::warn!("{e}");
                Vec::new()
            }),
        };
        Ok((outcome, answers))
    }
}

/// Warns of each `key=value` that has no effect beside the other settings.
pub fn warn_without_effect(config: &RunConfig, settings: &[String]) {
    for text in settings {
        let key = text.split('=').next().unwrap_or_default().trim();
        if let Some(reason) = config.without_effect(key) {
            log::warn!("{text} has no effect: {reason}");
        }
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
    // What there is to warn of the data was said when the training opened them.
    let level = log::max_level();
    log::set_max_level(log::LevelFilter::Error);
    let found = Trained::<B>::open(folder, device).and_then(|run| run.evaluate(&options));
    log::set_max_level(level);
    Ok(found?.examples)
}

/// A positive number of hours.
fn hours(text: &str) -> Result<Duration, String> {
    let hours = text.parse::<f64>().ok().filter(|hours| *hours > 0.0);
    let time = hours.and_then(|hours| Duration::try_from_secs_f64(3600.0 * hours).ok());
    time.ok_or_else(|| "must be a positive number of hours, such as 1.5".into())
}
