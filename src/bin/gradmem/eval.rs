//! `gradmem eval`: what a run can do with held-out samples.

use std::process::ExitCode;

use gradmem::Error;
use gradmem::kernels::KernelBackend;
use gradmem::train::Trained;
use gradmem::train::checkpoint::RunFolder;
use gradmem::train::evaluation::{EvalOptions, Evaluation};
use gradmem::train::metrics::{Measure, Scores};

use crate::args;
use crate::backend::{Job, dispatch};
use crate::output::say;

pub fn eval(args: args::Eval) -> Result<ExitCode, Error> {
    let steps = args.write_steps.as_deref();
    let steps = steps.map(|text| numbers("--write-steps", text, 10_000));
    if args.samples == Some(0) {
        return Err(Error::Input("--samples must be at least 1".into()));
    }
    if args.adaptive == Some(0) {
        return Err(Error::Input("--adaptive must be at least 1".into()));
    }
    let options = EvalOptions {
        write_steps: steps
            .transpose()?
            .map(|steps| steps.into_iter().map(|k| k as usize).collect()),
        samples: args.samples,
        adaptive: args.adaptive,
        generate: args.generate,
        examples: 6,
    };
    let backend = args.backend.clone();
    dispatch(&backend, EvalJob { args, options })?;
    Ok(ExitCode::SUCCESS)
}

struct EvalJob {
    args: args::Eval,
    options: EvalOptions,
}

impl Job for EvalJob {
    type Output = ();

    fn run<B: KernelBackend>(self, device: &B::Device) -> Result<(), Error> {
        let Self { args, options } = self;
        let trained = Trained::<B>::open(&args.run, device)?;
        let found = trained.evaluate(&options)?;
        let method = trained.config.method.as_str();
        match args.json {
            true => print_json(&found, method),
            false => print_table(&found, method, &args),
        }
        // The results are on the screen in any case; a folder that cannot be written to is no failure.
        if let Err(e) = RunFolder::open(&args.run)?.save_evaluation(found) {
            log::warn!("{e}");
        }
        Ok(())
    }
}

fn print_json(found: &Evaluation, method: &str) {
    for row in &found.rows {
        let mut line = row.scores.clone();
        line.insert("method".into(), method.into());
        line.insert("write_steps".into(), row.write_steps.into());
        line.insert("samples".into(), found.samples.into());
        say!("{}", serde_json::Value::Object(line));
    }
    if let Some(adaptive) = &found.adaptive {
        let mut line = serde_json::to_value(adaptive).unwrap_or_default();
        if let Some(line) = line.as_object_mut() {
            line.insert("method".into(), method.into());
            line.insert("samples".into(), found.samples.into());
        }
        say!("{line}");
    }
}

fn print_table(found: &Evaluation, method: &str, args: &args::Eval) {
    say!(
        "{} held-out contexts of {} ({method})",
        found.samples,
        args.run.display()
    );
    let measured = |measure: &Measure| found.rows.iter().any(|row| row.value(*measure).is_some());
    let measures: Vec<Measure> = Measure::ALL.iter().copied().filter(measured).collect();
    let names = measures.iter().map(|m| format!("{:>21}", m.name()));
    say!("{:>4}{}", "K", names.collect::<String>());
    for row in &found.rows {
        let values = measures.iter().map(|m| {
            let value = row.value(*m).map_or("–".into(), |v| show_value(*m, v));
            format!("{value:>21}")
        });
        let k = row.write_steps.map_or("–".into(), |k| k.to_string());
        say!("{k:>4}{}", values.collect::<String>());
    }
    if let Some(adaptive) = &found.adaptive {
        let rule = &adaptive.rule;
        say!(
            "\nEach sample by itself, until its WRITE loss has not fallen by more than {} for {} steps, or {} \
             steps:\n{} exact match in {:.1} steps in the mean (rule chosen on {} training contexts: {})",
            rule.tolerance,
            rule.patience,
            rule.cap,
            show_value(Measure::ExactMatch, adaptive.exact_match),
            adaptive.mean_write_steps,
            adaptive.chosen_on.0,
            show_value(Measure::ExactMatch, adaptive.chosen_on.1),
        );
    }
    let width = 60;
    for shown in &found.examples {
        let mark = if shown.right { "✓" } else { "✗" };
        let clip = |text: &str| {
            let text: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
            match text.char_indices().nth(width) {
                Some((at, _)) => format!("{}…", &text[..at]),
                None => text,
            }
        };
        say!(
            "{mark} {} → {} (right: {})",
            clip(&shown.query),
            clip(&shown.answer),
            clip(&shown.target)
        );
    }
}

/// `0,1,2,5..8` → 0 1 2 5 6 7 8
pub fn numbers(option: &str, text: &str, most: u64) -> Result<Vec<u64>, Error> {
    let longest = 10_000;
    let wrong = || {
        Error::Input(format!(
            "{option} `{text}` is not a list of numbers up to {most} and rising ranges of at most {longest}, \
             such as 0,1,2,5..10"
        ))
    };
    let number = |text: &str| -> Result<u64, Error> {
        let number = text.trim().parse().map_err(|_| wrong())?;
        if number <= most {
            Ok(number)
        } else {
            Err(wrong())
        }
    };
    let mut numbers = Vec::new();
    for part in text.split(',') {
        match part.split_once("..") {
            None => numbers.push(number(part)?),
            Some((from, to)) => {
                let (from, to) = (number(from)?, number(to)?);
                if from > to || to - from > longest {
                    return Err(wrong());
                }
                numbers.extend(from..=to);
            }
        }
    }
    Ok(numbers)
}

pub fn show(measure: Measure, scores: &Scores) -> String {
    scores
        .mean(measure)
        .map_or("–".into(), |value| show_value(measure, value))
}

pub fn show_value(measure: Measure, value: f64) -> String {
    match measure {
        measure if measure.is_share() => format!("{:.1} %", 100.0 * value),
        _ => format!("{value:.3}"),
    }
}
