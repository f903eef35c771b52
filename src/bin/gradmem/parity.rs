//! `gradmem parity`: a comparison with the numbers of another implementation.

use std::path::PathBuf;
use std::process::ExitCode;

use gradmem::Error;
use gradmem::interop::parity::{Report, compare};
use gradmem::kernels::KernelBackend;
use gradmem::memory::MetaGradient;

use crate::args::{Backend, META_GRADIENTS, setting};
use crate::backend::{Job, dispatch};
use crate::output::say;

/// Compare losses, logits, memory and every gradient with the numbers of another implementation.
///
/// The folder holds config.json, model.safetensors, batch.safetensors and expected.safetensors. Prints
/// max |a - b| / max(0.001, max |b|) for each tensor. The exit status is 0 if all are within the tolerance,
/// and 1 if not.
#[derive(clap::Args)]
pub struct Args {
    /// Folder with the model, the batch and the expected numbers.
    folder: PathBuf,
    /// Largest relative error allowed.
    #[arg(long, default_value_t = 1e-4)]
    tolerance: f64,
    /// Outer-gradient strategy.
    #[arg(long, value_parser = setting::<MetaGradient, _>(META_GRADIENTS), default_value = "auto")]
    meta_gradient: MetaGradient,
    #[command(flatten)]
    backend: Backend,
}

pub fn run(args: Args) -> Result<ExitCode, Error> {
    let tolerance = args.tolerance;
    if tolerance.is_nan() || tolerance < 0.0 {
        return Err(Error::Input(
            "--tolerance must be 0 or a positive number".into(),
        ));
    }
    let backend = args.backend.clone();
    let report = dispatch(&backend, args)?;
    let width = report.rows.iter().map(|row| row.tensor.len()).max();
    let width = width.unwrap_or(0);
    say!("{:width$}  max relative error", "tensor");
    for row in &report.rows {
        let mark = if row.error <= tolerance { "" } else { "  ✗" };
        say!("{:width$}  {:.1e}{mark}", row.tensor, row.error);
    }
    let worst = report.worst();
    let within = worst <= tolerance;
    say!(
        "{} tensors, worst {worst:.1e}: {} the tolerance of {tolerance:.0e}",
        report.rows.len(),
        if within { "within" } else { "beyond" },
    );
    Ok(if within {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

impl Job for Args {
    type Output = Report;

    fn run<B: KernelBackend>(self, device: &B::Device) -> Result<Report, Error> {
        compare::<B>(self.folder, self.meta_gradient, device)
    }
}
