//! `gradmem train`: one run, or one for each of several seeds.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use burn::train::Interrupter;
use clap::ValueEnum;
use gradmem::Error;
use gradmem::data::{DataConfig, KvDataset, Split};
use gradmem::kernels::KernelBackend;
use gradmem::method::MethodName;
use gradmem::train::config::RunConfig;
use gradmem::train::metrics::{Measure, Scores};
use gradmem::train::{Ending, Outcome, TrainOptions, duration, leave_dashboard};

use crate::args;
use crate::backend::{Job, dispatch};
use crate::commands::program;
use crate::eval::{numbers, show, show_value};
use crate::output::{put, say};

/// What a shell reports of a program stopped by Ctrl-C.
pub const INTERRUPTED: u8 = 130;

pub fn train(args: args::Train) -> Result<ExitCode, Error> {
    let mut overrides = args.overrides.clone();
    let micro_batch = args.micro_batch.map(|n| format!("train.micro_batch={n}"));
    let how = args.meta_gradient.map(|how| {
        let name = how
            .to_possible_value()
            .map(|value| value.get_name().to_string());
        format!("train.meta_gradient={}", name.unwrap_or_default())
    });
    overrides.extend(micro_batch.into_iter().chain(how));
    let config = RunConfig::resolve(&args.preset, &overrides)?;
    let folder = match &args.run {
        Some(folder) => folder.clone(),
        None => {
            // The same preset by another method is another run.
            let name = Path::new(&args.preset).file_stem().unwrap_or_default();
            let own = RunConfig::resolve(&args.preset, &[])?.method;
            let mut name = name.to_os_string();
            if config.method != own {
                name.push("-");
                name.push(config.method.as_str());
            }
            Path::new("runs").join(name)
        }
    };
    let interrupter = Interrupter::new();
    stop_on_ctrl_c(&interrupter)?;
    let Some(seeds) = &args.seeds else {
        let outcome = one(&args, &config, &folder, &interrupter)?;
        return Ok(exit_code(&outcome.ending));
    };
    let mut outcomes = Vec::new();
    let mut seeds = numbers("--seeds", seeds, u64::MAX >> 1)?;
    let mut seen = std::collections::HashSet::new();
    seeds.retain(|seed| seen.insert(*seed));
    for seed in seeds {
        let mut config = config.clone();
        config.train.seed = seed;
        let folder = folder.join(format!("seed-{seed}"));
        let outcome = one(&args, &config, &folder, &interrupter)?;
        let ending = outcome.ending.clone();
        outcomes.push((seed, outcome));
        if let Ending::Interrupted(_) = ending {
            break;
        }
    }
    put(format_args!("{}", of_all(&config, &outcomes)));
    let last = outcomes
        .last()
        .map(|(_, outcome)| exit_code(&outcome.ending));
    Ok(last.unwrap_or(ExitCode::SUCCESS))
}

fn exit_code(ending: &Ending) -> ExitCode {
    match ending {
        Ending::Interrupted(_) => ExitCode::from(INTERRUPTED),
        _ => ExitCode::SUCCESS,
    }
}

fn one(
    args: &args::Train,
    config: &RunConfig,
    folder: &Path,
    interrupter: &Interrupter,
) -> Result<Outcome, Error> {
    say!("{}", overview(config, folder));
    let start = Instant::now();
    let outcome = dispatch(
        &args.backend,
        TrainJob {
            config: config.clone(),
            folder: folder.to_path_buf(),
            options: TrainOptions {
                init_from: args.init_from.clone(),
                plain: args.plain,
                interrupter: interrupter.clone(),
            },
        },
    )?;
    put(format_args!(
        "{}",
        summary(config, folder, &outcome, start.elapsed())?
    ));
    Ok(outcome)
}

struct TrainJob {
    config: RunConfig,
    folder: PathBuf,
    options: TrainOptions,
}

impl Job for TrainJob {
    type Output = Outcome;

    fn run<B: KernelBackend>(self, device: &B::Device) -> Result<Outcome, Error> {
        gradmem::train::train::<B>(&self.config, &self.folder, self.options, device)
    }
}

fn overview(config: &RunConfig, folder: &Path) -> String {
    let (memory, rmt) = (&config.memory, &config.rmt);
    let how = match config.method {
        MethodName::GradMem => format!(
            "into {} memory vectors by K = {} gradient steps of α = {}",
            memory.memory_tokens, memory.write_steps, memory.write_lr
        ),
        MethodName::Rmt => format!(
            "into {} memory vectors by {} forward passes (RMT)",
            rmt.memory_tokens, rmt.write_steps
        ),
        MethodName::InContext => "in the prompt".into(),
        other => format!("by {}", other.as_str()),
    };
    let questions = match config.data.queries_per_context() {
        None | Some(1) => String::new(),
        Some(questions) => format!(" × {questions} questions"),
    };
    let stages = match config.train.curriculum.as_slice() {
        [] => String::new(),
        stages => format!(" behind {}", stages.join(", ")),
    };
    format!(
        "{}{stages} {how}, {}, up to {} steps of {} contexts{questions}; seed {}; run in {}",
        config.data.describe(),
        config.model.model_type(),
        config.train.steps,
        config.train.batch_size,
        config.train.seed,
        folder.display()
    )
}

fn summary(
    config: &RunConfig,
    folder: &Path,
    outcome: &Outcome,
    time: Duration,
) -> Result<String, Error> {
    let state = &outcome.state;
    let took = duration(time);
    if let Ending::Interrupted(why) = &outcome.ending {
        return Ok(format!(
            "\n{why} Saved at step {} after {took}; the same command goes on from there.\n",
            state.step
        ));
    }
    let measure = config.train.stop_metric;
    let mut text = match (outcome.valid, state.best) {
        (Some(valid), _) => format!(
            "\nstep {} after {took}: {} {} on {} held-out questions{}{}\n",
            state.step,
            measure.name().to_lowercase(),
            show(measure, &valid),
            valid.count(Measure::ExactMatch),
            written(config.method, &valid),
            stage(config, outcome),
        ),
        (None, Some((value, step))) => format!(
            "\nnothing left to do: the run is at step {}; its best {} is {} (step {step}){}\n",
            state.step,
            measure.name().to_lowercase(),
            show_value(measure, value),
            stage(config, outcome),
        ),
        (None, None) => format!("\nnothing left to do: the run is at step {}\n", state.step),
    };
    text += &next(config, folder)?;
    Ok(text)
}

fn written(method: MethodName, valid: &Scores) -> String {
    let write = |measure| valid.mean(measure).unwrap_or(f64::NAN);
    match method {
        MethodName::GradMem => format!(
            "; WRITE loss {:.3} → {:.3}",
            write(Measure::WriteLossBefore),
            write(Measure::WriteLossAfter)
        ),
        _ => String::new(),
    }
}

/// Says so if a curriculum's last version was not reached.
fn stage(config: &RunConfig, outcome: &Outcome) -> String {
    match config.train.curriculum.get(outcome.state.stage) {
        Some(version) => format!(", of the curriculum's {version} still"),
        None => String::new(),
    }
}

/// What can be done with the run.
fn next(config: &RunConfig, folder: &Path) -> Result<String, Error> {
    let (program, run) = (program(), folder.display());
    let DataConfig::Kv(data) = &config.data else {
        return Ok(format!("\n  {program} eval {run}\n"));
    };
    let example = KvDataset::new(data.clone(), Split::Valid, config.train.seed)?.example(0);
    let Some(question) = example.questions.first() else {
        return Ok(String::new());
    };
    Ok(match config.method {
        MethodName::GradMem | MethodName::Rmt => format!(
            "
Write a context of your own to a file, and ask it:

  printf '%s' '{}' > context.txt
  {program} write --model {run} context.txt -o context.mem.safetensors
  {program} read --model {run} context.mem.safetensors '{}'
",
            example.context, question.query
        ),
        _ => String::new(),
    })
}

/// A line for each seed, and their mean.
fn of_all(config: &RunConfig, outcomes: &[(u64, Outcome)]) -> String {
    let measure = config.train.stop_metric;
    let name = measure.name().to_lowercase();
    let mut text = "\n".to_string();
    let mut values = Vec::new();
    for (seed, outcome) in outcomes {
        let Outcome { ending, state, .. } = outcome;
        let so_far = match ending {
            Ending::Interrupted(_) => ", interrupted",
            _ => "",
        };
        let best = match state.best {
            Some((value, step)) => {
                if state.stage >= config.train.curriculum.len() {
                    values.push(value);
                }
                let (value, stage) = (show_value(measure, value), stage(config, outcome));
                format!("best {name} {value} at step {step}{stage}")
            }
            None => format!("no evaluation by step {}", state.step),
        };
        text += &format!("seed {seed}: {best}{so_far}\n");
    }
    // Of all seeds or of none.
    if values.len() > 1 && values.len() == outcomes.len() {
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        let spread = |pick: fn(f64, f64) -> f64| {
            let value = values.iter().copied().reduce(pick).unwrap_or(mean);
            show_value(measure, value)
        };
        text += &format!(
            "mean {}, from {} to {}\n",
            show_value(measure, mean),
            spread(f64::min),
            spread(f64::max)
        );
    }
    text
}

/// Asks the training to stop at the next step; a second Ctrl-C does not wait.
fn stop_on_ctrl_c(interrupter: &Interrupter) -> Result<(), Error> {
    static ASKED: AtomicBool = AtomicBool::new(false);
    let interrupter = interrupter.clone();
    ctrlc::set_handler(move || {
        if ASKED.swap(true, Ordering::Relaxed) {
            leave_dashboard();
            std::process::exit(INTERRUPTED.into());
        }
        eprintln!("gradmem: stopping at the next step, to save; once more stops at once");
        interrupter.stop(Some("Interrupted."));
    })
    .map_err(|e| Error::Failed(format!("Ctrl-C cannot be caught: {e}")))
}
