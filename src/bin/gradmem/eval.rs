//! `gradmem eval`: scores of a run on held-out samples.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use gradmem::Error;
use gradmem::kernels::KernelBackend;
use gradmem::memory::MOST_STEPS;
use gradmem::report::unfinished_stage;
use gradmem::support::counted;
use gradmem::train::Trained;
use gradmem::train::checkpoint::RunFolder;
use gradmem::train::config::RunConfig;
use gradmem::train::evaluation::{EvalOptions, Evaluation, Row};
use gradmem::train::metrics::Measure;

use crate::args::{Backend, at_least_one, by_options, parse_numbers};
use crate::backend::{Job, dispatch};
use crate::files::check_writable;
use crate::output::{format_answer, format_measure, say, shown_path};
use crate::train::warn_without_effect;

/// Score a trained run on held-out samples, for any numbers of WRITE steps in one pass.
///
/// The results are printed, and saved in the run's eval.json for `gradmem report` unless they are on other data.
/// Token accuracy is also given for each of the first eight scored tokens of the targets, and exact match for each
/// direction of a task that has both.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  gradmem eval runs/kv-quick
  gradmem eval runs/kv-quick --write-steps 0..30 --adaptive 30
  gradmem eval runs/kv-quick --generate
  gradmem eval runs/kv-quick --answers answers.jsonl
  gradmem eval runs/mine data.valid_file=test.jsonl
  gradmem eval runs/in-chunks --forgetting")]
pub struct Args {
    /// Folder of the run.
    run: PathBuf,
    /// Settings of the run's data that differ, such as data.valid_file=test.jsonl: its samples are scored then instead of the run's
    /// own, and the results are printed only.
    #[arg(value_name = "data.KEY=VALUE")]
    data: Vec<String>,
    /// Numbers of WRITE steps: a list of numbers and ranges, such as 0,1,2,5..10 [default: as in training].
    #[arg(long, value_name = "K")]
    write_steps: Option<String>,
    /// Also choose the number of WRITE steps for each sample: stop when its reconstruction loss stops falling,
    /// after at most CAP steps (30 if CAP is left out). The stop rule is chosen on contexts of the training
    /// set.
    #[arg(long, value_name = "CAP", num_args = 0..=1, default_missing_value = "30", value_parser = steps)]
    adaptive: Option<usize>,
    /// Also generate answers greedily and reconstruct the contexts from memory. This adds exact match and F1
    /// of the generated answers, over all right answers, and prints a few answers.
    #[arg(long)]
    generate: bool,
    /// Also generate answers, and write all of them to this new file: one JSON object per line with context, query, target (the first right
    /// answer), answer and right.
    #[arg(long, value_name = "FILE")]
    answers: Option<PathBuf>,
    /// Also find out what is forgotten: after each chunk of the contexts, how well it and the chunks before it are answered
    /// and reconstructed. For runs with memory.chunk_size.
    #[arg(long)]
    forgetting: bool,
    /// Number of contexts, evenly spaced among those held out [default: all of them].
    #[arg(long)]
    samples: Option<usize>,
    /// Print one JSON object per line instead of a table.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    backend: Backend,
}

/// Generated answers that are printed.
const EXAMPLES: usize = 6;

pub fn run(args: Args) -> Result<ExitCode, Error> {
    let steps = args.write_steps.as_deref();
    let steps = steps.map(|text| parse_numbers("--write-steps", text, MOST_STEPS as u64));
    at_least_one(&[
        ("--samples", args.samples.unwrap_or(1)),
        ("--adaptive", args.adaptive.unwrap_or(1)),
    ])?;
    // A link to nothing is something, too.
    let is_there = |file: &&PathBuf| file.symlink_metadata().is_ok();
    if let Some(file) = args.answers.as_ref().filter(is_there) {
        return Err(Error::file(
            file,
            "is there already, and is not replaced: name a new file",
        ));
    }
    if let Some(file) = &args.answers {
        check_writable(file)?;
    }
    let options = EvalOptions {
        write_steps: steps
            .transpose()?
            .map(|steps| steps.into_iter().map(|k| k as usize).collect()),
        samples: args.samples,
        adaptive: args.adaptive,
        generate: args.generate || args.answers.is_some(),
        examples: match args.answers {
            Some(_) => usize::MAX,
            None => EXAMPLES,
        },
        forgetting: args.forgetting,
    };
    let backend = args.backend.clone();
    dispatch(&backend, EvalJob { args, options })?;
    Ok(ExitCode::SUCCESS)
}

/// A number of steps after an option that may stand without one.
fn steps(text: &str) -> Result<usize, String> {
    text.parse().map_err(|_| {
        "must be a number of steps: put --adaptive without one after the other arguments".into()
    })
}

struct EvalJob {
    args: Args,
    options: EvalOptions,
}

impl Job for EvalJob {
    type Output = ();

    fn run<B: KernelBackend>(self, device: &B::Device) -> Result<(), Error> {
        let Self { args, options } = self;
        let mut trained = Trained::<B>::open(&args.run, device)?;
        if !args.data.is_empty() {
            trained = trained.on_data(&of_data(&args.data)?)?;
            // The parts of a curriculum are not evaluated.
            let mut config = trained.config.clone();
            config.train.curriculum.clear();
            warn_without_effect(&config, &args.data);
        } else {
            warn_of_unfinished(&args.run, &trained.config);
        }
        let names = [("write_steps", "--write-steps")];
        let found = trained.evaluate(&options);
        let mut found = found.map_err(|e| by_options(e, &names))?;
        let saved = match &args.answers {
            Some(file) => found.save_answers(file),
            None => Ok(()),
        };
        let mut kept = [0; 2];
        found.examples.retain(|shown| {
            let kept = &mut kept[usize::from(shown.right)];
            *kept += 1;
            *kept <= EXAMPLES
        });
        let method = trained.config.method.as_str();
        // Saved before it is printed: a pipe may be closed. The results are printed also if the folder cannot be written to.
        let stored = match args.data.is_empty() {
            true => RunFolder::open(&args.run)
                .and_then(|run| run.save_evaluation(found.clone()).map(|_| ())),
            false => Ok(()),
        };
        match args.json {
            true => print_json(&found, method),
            false => print_table(&found, method, &args),
        }
        if let Err(e) = stored {
            log::warn!("{e}");
        }
        saved
    }
}

/// Warns of weights that are not yet of the task itself. A log that does not tell is no reason not to evaluate.
fn warn_of_unfinished(run: &Path, config: &RunConfig) {
    match unfinished_stage(run, config) {
        Ok(None) => {}
        Ok(Some(part)) => log::warn!(
            "{}: stopped in the part {part} of its curriculum, and its weights were chosen there",
            run.display()
        ),
        Err(error) => log::warn!("{error}"),
    }
}

/// The settings without their section.
fn of_data(settings: &[String]) -> Result<Vec<String>, Error> {
    let own = |setting: &String| match setting.trim().strip_prefix("data.") {
        Some(own) => Ok(own.to_string()),
        None => Err(Error::Input(format!(
            "`{setting}` is no data.KEY=VALUE: everything but the data is as it was trained"
        ))),
    };
    settings.iter().map(own).collect()
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
    if let Some(forgetting) = &found.forgetting {
        say!("{}", serde_json::json!({ "forgetting": forgetting }));
    }
}

fn print_table(found: &Evaluation, method: &str, args: &Args) {
    let data = match &args.data[..] {
        [] => String::new(),
        data => format!(" with {}", data.join(" ")),
    };
    say!(
        "{} of {}{data} ({method})",
        counted(found.samples, "held-out context"),
        shown_path(&args.run)
    );
    let measured = |measures: &[Measure]| -> Vec<Measure> {
        let has = |measure: &Measure| found.rows.iter().any(|row| row.value(*measure).is_some());
        measures.iter().copied().filter(has).collect()
    };
    let parts = [Measure::POSITIONS, Measure::DIRECTIONS];
    let is_whole = |measure: &Measure| !parts.concat().contains(measure);
    let whole = measured(Measure::ALL);
    print_rows(
        found,
        &whole.into_iter().filter(is_whole).collect::<Vec<_>>(),
    );
    // One part alone is the whole again.
    for parts in parts.map(measured).iter().filter(|parts| parts.len() > 1) {
        say!("");
        print_rows(found, parts);
    }
    if let Some(adaptive) = &found.adaptive {
        let rule = &adaptive.rule;
        say!(
            "\nEach sample by itself, until its WRITE loss has not fallen by more than {} for {}, at most {}:\n{} exact match from the memory of step {:.1} on \
             average (rule chosen on {}: {})",
            rule.tolerance,
            counted(rule.patience, "step"),
            counted(rule.cap, "step"),
            format_measure(Measure::ExactMatch, adaptive.exact_match),
            adaptive.mean_write_steps,
            counted(adaptive.chosen_on.0, "training context"),
            format_measure(Measure::ExactMatch, adaptive.chosen_on.1),
        );
    }
    if let Some(forgetting) = &found.forgetting {
        let matrices = [
            ("answered exactly", forgetting.answered.as_ref()),
            ("tokens reconstructed", Some(&forgetting.reconstructed)),
        ];
        for (name, matrix) in matrices {
            let Some(matrix) = matrix else { continue };
            say!("\nAfter chunk (row), of the chunk (column) {name}, in %:");
            let columns = (1..=matrix.len()).map(|chunk| format!("{chunk:>6}"));
            say!("{:>6}{}", "", columns.collect::<String>());
            for (row, cells) in matrix.iter().enumerate() {
                let cells = cells.iter().map(|cell| match cell {
                    Some(share) => format!("{:>6.1}", 100.0 * share),
                    None => format!("{:>6}", "–"),
                });
                say!("{:>6}{}", row + 1, cells.collect::<String>());
            }
        }
    }
    let reconstructs = |row: &Row| row.value(Measure::Reconstructed).is_some();
    if args.generate && method == "gradmem" && !found.rows.iter().any(reconstructs) {
        say!(
            "The contexts are not reconstructed: a memory of several chunks written one after another, or one that predicts no \
             first token, does not tell with what to begin."
        );
    }
    for shown in &found.examples {
        say!("{}", format_answer(shown));
    }
}

/// A long name in two lines, divided at the space nearest to its middle; a short one in the second.
fn in_two(name: &str) -> [String; 2] {
    if name.len() <= 9 {
        return [String::new(), name.into()];
    }
    let spaces = name.match_indices(' ').map(|(at, _)| at);
    match spaces.min_by_key(|at| at.abs_diff(name.len() / 2)) {
        Some(at) => [name[..at].into(), name[at + 1..].into()],
        None => [String::new(), name.into()],
    }
}

/// A line for each number of WRITE steps, a column for each measure.
fn print_rows(found: &Evaluation, measures: &[Measure]) {
    // Two lines of names, so that more columns fit into a terminal.
    let names: Vec<[String; 2]> = measures.iter().map(|m| in_two(m.name())).collect();
    let width = |name: &[String; 2]| name.iter().map(|part| part.chars().count()).max();
    let widths: Vec<usize> = names
        .iter()
        .map(|name| width(name).unwrap_or(0).max(7) + 2)
        .collect();
    let in_one = names.iter().all(|[above, _]| above.is_empty());
    for line in usize::from(in_one)..2 {
        let parts = names.iter().zip(&widths);
        let parts = parts.map(|(name, width)| format!("{:>width$}", name[line]));
        say!("{:>4}{}", ["", "K"][line], parts.collect::<String>());
    }
    for row in &found.rows {
        let values = measures.iter().zip(&widths).map(|(m, width)| {
            let value = row.value(*m).map_or("–".into(), |v| format_measure(*m, v));
            format!("{value:>width$}")
        });
        let k = row.write_steps.map_or("–".into(), |k| k.to_string());
        say!("{k:>4}{}", values.collect::<String>());
    }
}
