//! `gradmem tune`: the WRITE loss against the step size of WRITE.

use std::path::PathBuf;
use std::process::ExitCode;

use gradmem::Error;
use gradmem::episode::Tokens;
use gradmem::kernels::KernelBackend;
use gradmem::memory::STEP_SIZES;
use gradmem::method::AnyMethod;
use gradmem::report::is_run;
use gradmem::support::counted;
use gradmem::train::Trained;
use gradmem::train::tune::{SAMPLES, Tuning};

use crate::args::{Backend, at_least_one};
use crate::backend::{Job, dispatch};
use crate::input::read_texts;
use crate::model::{Model, gradmem_of, with_write_steps};
use crate::output::say;

/// Print the WRITE loss after K steps of each size α, and the α of the lowest.
///
/// Of a run it is measured on contexts of its training set, with the exact match of their questions. Of a
/// checkpoint, which has no data, on the texts given with --context. `memory.write_lr=auto` chooses α in the same
/// way when a training begins.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  gradmem tune runs/kv-quick
  gradmem tune runs/kv-quick --write-steps 5 --write-lr 0.1,0.2,0.5,1
  gradmem tune checkpoints/gradmem --context notes.txt other.txt")]
pub struct Args {
    /// Folder of a run or of a checkpoint.
    #[arg(value_name = "RUN_OR_MODEL")]
    folder: PathBuf,
    /// Texts to write, for a folder that is no run.
    #[arg(long, value_name = "TEXT", num_args = 1..)]
    context: Vec<PathBuf>,
    /// Number of training contexts of a run, evenly spaced among all; equal ones count once.
    #[arg(long, value_name = "N", default_value_t = SAMPLES, conflicts_with = "context")]
    samples: usize,
    /// Number of WRITE steps [default: as in training].
    #[arg(long, value_name = "K")]
    write_steps: Option<usize>,
    /// Step sizes to try [default: from 0.0001 to 10000, four to a decade].
    #[arg(long, value_name = "ALPHA", value_delimiter = ',')]
    write_lr: Vec<f64>,
    /// Print one JSON object instead of a table.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    backend: Backend,
}

pub fn run(args: Args) -> Result<ExitCode, Error> {
    at_least_one(&[
        ("--samples", args.samples),
        ("--write-steps", args.write_steps.unwrap_or(1)),
    ])?;
    if let Some(bad) = args
        .write_lr
        .iter()
        .find(|lr| !(**lr > 0.0 && lr.is_finite()))
    {
        return Err(Error::Input(format!(
            "--write-lr {bad}: must be a positive number"
        )));
    }
    let backend = args.backend.clone();
    dispatch(&backend, args)?;
    Ok(ExitCode::SUCCESS)
}

impl Job for Args {
    type Output = ();

    fn run<B: KernelBackend>(self, device: &B::Device) -> Result<(), Error> {
        let sizes = match self.write_lr.is_empty() {
            true => STEP_SIZES.to_vec(),
            false => self.write_lr.clone(),
        };
        let found = match is_run(&self.folder)? && self.context.is_empty() {
            true => {
                let mut trained = Trained::<B>::open(&self.folder, device)?;
                trained.method = self.with_steps(trained.method)?;
                trained.tune(self.samples, &sizes)?
            }
            false => self.of_texts::<B>(&sizes, device)?,
        };
        match self.json {
            true => print_json(&found),
            false => print_table(&found),
        }
        Ok(())
    }
}

impl Args {
    /// The method with the number of steps that is asked for; fails where it takes none, so that all sizes are equal.
    fn with_steps<B: KernelBackend>(&self, method: AnyMethod<B>) -> Result<AnyMethod<B>, Error> {
        let method = match self.write_steps {
            Some(steps) => with_write_steps(method, steps)?,
            None => method,
        };
        match &method {
            AnyMethod::GradMem(gradmem) if gradmem.config().write_steps == 0 => Err(Error::file(
                &self.folder,
                "takes no WRITE steps (memory.write_steps = 0): give a number with --write-steps",
            )),
            _ => Ok(method),
        }
    }

    fn of_texts<B: KernelBackend>(
        &self,
        sizes: &[f64],
        device: &B::Device,
    ) -> Result<Tuning, Error> {
        let mut model = Model::<B>::open(&self.folder, device)?;
        if self.context.is_empty() {
            return Err(Error::Input(format!(
                "{}: is no run, so there are no training contexts: give texts with --context",
                self.folder.display()
            )));
        }
        gradmem_of(&model.method, &self.folder, "tune")?;
        model.method = self.with_steps(model.method)?;
        let texts = read_texts(&self.context)?;
        let contexts = self.context.iter().zip(&texts);
        let contexts = contexts.map(|(path, text)| model.encode_file(path, text));
        let contexts = Tokens::new(&contexts.collect::<Result<Vec<_>, _>>()?, device)?;
        let gradmem = gradmem_of(&model.method, &self.folder, "tune")?;
        Tuning::new(gradmem, &[contexts], sizes)
    }
}

fn print_json(found: &Tuning) {
    let exact = found.exact_match.clone();
    let curve = found.curve.iter().enumerate().map(|(at, size)| {
        let exact = exact.as_ref().and_then(|exact| exact[at]);
        serde_json::json!({
            "write_lr": size.write_lr,
            "write_loss": size.loss,
            "better": size.better,
            "exact_match": exact,
        })
    });
    let json = serde_json::json!({
        "samples": found.samples,
        "write_steps": found.write_steps,
        "write_loss_before": found.before,
        "best": found.best().map(|best| best.write_lr),
        "curve": curve.collect::<Vec<_>>(),
    });
    say!("{json}");
}

/// With at most six digits.
fn short(number: f64) -> String {
    plain(format!("{number:.5e}").parse().unwrap_or(number))
}

/// Without a row of zeros.
fn plain(number: f64) -> String {
    match (1e-3..1e6).contains(&number) {
        true => number.to_string(),
        false => format!("{number:e}"),
    }
}

fn print_table(found: &Tuning) {
    say!(
        "WRITE loss of {} after {} of size α; {:.3} at M0",
        counted(found.samples, "context"),
        counted(found.write_steps, "step"),
        found.before
    );
    let best = found.best();
    let exact = |at: usize| match &found.exact_match {
        Some(exact) => match exact[at] {
            Some(share) => format!("  {:>7.1} %", 100.0 * share),
            None => format!("  {:>9}", "-"),
        },
        None => String::new(),
    };
    let title = match found.exact_match {
        Some(_) => "  exact match",
        None => "",
    };
    say!(
        "{:>9}  {:>10}  {:>9}{title}",
        "α",
        "WRITE loss",
        "lower for"
    );
    for (at, size) in found.curve.iter().enumerate() {
        let mark = match Some(size) == best.as_ref() {
            true => "  lowest loss",
            false => "",
        };
        say!(
            "{:>9}  {:>10.3}  {:>7.1} %{}{mark}",
            short(size.write_lr),
            size.loss,
            100.0 * size.better,
            exact(at)
        );
    }
    match best {
        Some(best) if best.loss < found.before => {
            say!("memory.write_lr={}", plain(best.write_lr));
        }
        Some(_) => say!("no size lowers the WRITE loss"),
        None => say!("WRITE is non-finite at every one of these sizes"),
    }
}
