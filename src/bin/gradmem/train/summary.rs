//! What `gradmem train` prints before and after a run.

use std::path::Path;
use std::time::Duration;

use gradmem::Error;
use gradmem::data::{DataConfig, Generated, Split};
use gradmem::memory::MemoryKind;
use gradmem::method::MethodName;
use gradmem::support::counted;
use gradmem::train::config::RunConfig;
use gradmem::train::evaluation::Shown;
use gradmem::train::metrics::{Measure, Scores};
use gradmem::train::{Ending, Outcome, duration};

use crate::output::{clip, format_answer, format_measure, quoted, shown_path};

/// The most answers that are printed after a training.
const ANSWERS: usize = 8;

/// The task, the method and the size of a run.
pub fn before(config: &RunConfig, folder: &Path) -> String {
    let (memory, rmt, armt) = (&config.memory, &config.rmt, &config.armt);
    let method = match config.method {
        MethodName::GradMem => {
            let what = match memory.kind {
                MemoryKind::Lora => format!("low-rank maps of rank {}", memory.lora_rank),
                MemoryKind::Kv => match memory.memory_tokens {
                    1 => "a key and a value of each layer".into(),
                    tokens => format!("{tokens} keys and values of each layer"),
                },
                _ => counted(memory.memory_tokens, "memory vector"),
            };
            let chunks = memory
                .chunk_size
                .map(|size| format!(", {} at a time,", counted(size, "token")));
            let steps = match memory.random_write_steps {
                Some([least, most]) if least < most => format!("{least} to {most} gradient steps"),
                Some([steps, _]) => counted(steps, "gradient step"),
                None => counted(memory.write_steps, "gradient step"),
            };
            let write_lr = match config.find_write_lr {
                true => "auto".into(),
                false => memory.write_lr.to_string(),
            };
            let momentum = match memory.momentum {
                Some(momentum) => format!(" and momentum {momentum}"),
                None => String::new(),
            };
            let learned = match memory.learned_lr.is_empty() {
                true => "",
                false => ", learned from there on",
            };
            format!(
                "into {what}{} by K = {steps} of α = {write_lr}{momentum}{learned}",
                chunks.unwrap_or_default()
            )
        }
        MethodName::Rmt => format!(
            "into {} by {} (RMT)",
            counted(rmt.memory_tokens, "memory vector"),
            counted(rmt.write_steps, "forward pass")
        ),
        MethodName::Armt => format!(
            "into a matrix of each layer by {} (ARMT)",
            counted(armt.memory_tokens, "memory vector")
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
        stages => format!(" (curriculum: {})", stages.join(", ")),
    };
    format!(
        "{}{stages} {method}, {}, up to {} of {}{questions}; seed {}; run in {}",
        config.data.describe(),
        config.model.model_type(),
        counted(config.train.steps, "step"),
        counted(config.train.batch_size, "context"),
        config.train.seed,
        shown_path(folder)
    )
}

/// The result of a run and what can be done with it.
pub fn after(
    config: &RunConfig,
    folder: &Path,
    outcome: &Outcome,
    time: Duration,
    answers: &[Shown],
) -> Result<String, Error> {
    let state = &outcome.state;
    let time = duration(time);
    if let Ending::Interrupted(why) = &outcome.ending {
        return Ok(format!(
            "\n{why} Saved at step {} after {time}; the same command goes on from there.\n",
            state.step
        ));
    }
    let measure = config.train.stop_metric;
    let mut text = match (outcome.valid, state.best_by(measure)) {
        (Some(valid), best) => format!(
            "\nstep {} after {time}: {} {} on {}{}{}{}\n",
            state.step,
            measure.name().to_lowercase(),
            valid
                .mean(measure)
                .map_or("–".into(), |value| format_measure(measure, value)),
            counted(valid.count(Measure::ExactMatch), "held-out question"),
            write_losses(config.method, &valid),
            stage(config, outcome),
            best.map_or(String::new(), |best| kept(config, outcome, best)),
        ),
        (None, Some((value, step))) => format!(
            "\nnothing left to do: the run is at step {}{}; its best {} is {} (step {step}){}\n",
            state.step,
            match outcome.ending {
                Ending::Reached => ", and train.stop_value is reached",
                Ending::Patience => ", and train.patience is over",
                _ => "",
            },
            measure.name().to_lowercase(),
            format_measure(measure, value),
            stage(config, outcome),
        ),
        (None, None) => format!("\nnothing left to do: the run is at step {}\n", state.step),
    };
    text += &answered(answers);
    text += &next_commands(config, folder)?;
    Ok(text)
}

/// Why the training ended early, and which weights are kept, if they are not the last ones.
fn kept(config: &RunConfig, outcome: &Outcome, (value, step): (f64, usize)) -> String {
    let patience = match (&outcome.ending, config.train.patience) {
        (Ending::Patience, Some(patience)) => {
            let evaluations = counted(patience, "evaluation");
            format!("; no better in {evaluations} (train.patience)")
        }
        _ => String::new(),
    };
    let best = match step == outcome.state.step {
        true => String::new(),
        false => {
            let value = format_measure(config.train.stop_metric, value);
            format!("; kept are the best weights, of step {step}: {value}")
        }
    };
    patience + &best
}

/// The answers to the questions about one context, right and wrong ones.
fn answered(answers: &[Shown]) -> String {
    let Some(first) = answers.first() else {
        return String::new();
    };
    let right = answers.iter().filter(|answer| answer.right).count();
    let mut text = format!(
        "\nThe first held-out context, and {right} of {} about it answered right:\n\n  {}\n",
        counted(answers.len(), "question"),
        clip(&first.context)
    );
    for answer in answers.iter().take(ANSWERS) {
        text += &format!("  {}\n", format_answer(answer));
    }
    if answers.len() > ANSWERS {
        text += "  …\n";
    }
    text
}

/// The WRITE losses of a GradMem run.
fn write_losses(method: MethodName, valid: &Scores) -> String {
    let mean = |measure| valid.mean(measure).unwrap_or(f64::NAN);
    match method {
        MethodName::GradMem => format!(
            "; WRITE loss {:.3} → {:.3}",
            mean(Measure::WriteLossBefore),
            mean(Measure::WriteLossAfter)
        ),
        _ => String::new(),
    }
}

/// Names the version of the task, if it is not the curriculum's last.
fn stage(config: &RunConfig, outcome: &Outcome) -> String {
    match config.train.curriculum.get(outcome.state.stage) {
        Some(version) => format!(" (of the curriculum's {version}, not yet of the task itself)"),
        None => String::new(),
    }
}

/// Commands that use the run; none where a name in them is no text.
fn next_commands(config: &RunConfig, folder: &Path) -> Result<String, Error> {
    let (Some(program), Some(run)) = (program(), folder.to_str()) else {
        return Ok(String::new());
    };
    let (program, run) = (quoted(&program), quoted(run));
    let DataConfig::Kv(data) = &config.data else {
        return Ok(format!("\n  {program} eval {run}\n"));
    };
    let example = Generated::new(data.clone(), Split::Valid, config.train.seed)?.example(0);
    let Some(question) = example.questions.first() else {
        return Ok(String::new());
    };
    Ok(match config.method {
        MethodName::GradMem | MethodName::Rmt | MethodName::Armt => format!(
            "
Write a context of your own and read an answer from its memory:

  printf '%s' {} > context.txt
  {program} write --model {run} context.txt -o context.mem.safetensors
  {program} read --model {run} context.mem.safetensors {}
",
            quoted(&example.context),
            quoted(&question.query)
        ),
        _ => String::new(),
    })
}

/// One line for each seed that has an outcome, and the mean if all `seeds` that were asked for ended uninterrupted.
pub fn of_seeds(config: &RunConfig, outcomes: &[(u64, Outcome)], seeds: usize) -> String {
    let measure = config.train.stop_metric;
    let name = measure.name().to_lowercase();
    let mut text = "\n".to_string();
    let mut values = Vec::new();
    for (seed, outcome) in outcomes {
        let Outcome { ending, state, .. } = outcome;
        let interrupted = matches!(ending, Ending::Interrupted(_));
        let best = match state.best_by(measure) {
            Some((value, step)) => {
                if state.stage >= config.train.curriculum.len() && !interrupted {
                    values.push(value);
                }
                let (value, stage) = (format_measure(measure, value), stage(config, outcome));
                format!("best {name} {value} at step {step}{stage}")
            }
            None => format!("no evaluation by step {}", state.step),
        };
        let end = if interrupted { ", interrupted" } else { "" };
        text += &format!("seed {seed}: {best}{end}\n");
    }
    // A mean of some seeds only would mislead.
    if values.len() > 1 && values.len() == seeds {
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        let extreme = |pick: fn(f64, f64) -> f64| {
            let value = values.iter().copied().reduce(pick).unwrap_or(mean);
            format_measure(measure, value)
        };
        text += &format!(
            "mean {}, from {} to {}\n",
            format_measure(measure, mean),
            extreme(f64::min),
            extreme(f64::max)
        );
    }
    text
}

/// The name under which this program was called, if it is UTF-8.
fn program() -> Option<String> {
    let name = std::env::args_os().next();
    name.map_or_else(|| Some("gradmem".into()), |name| name.into_string().ok())
}
