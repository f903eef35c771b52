//! `gradmem bench`: the time and memory of a training step, of attention alone, and of many questions to one
//! context.

mod attention;
mod read;
mod step;

use std::process::ExitCode;

use burn::tensor::backend::Backend as BurnBackend;
use gradmem::Error;
use gradmem::support::host_bytes;
use serde::Serialize;

use crate::output::say;

/// Measure a training step on random contexts, attention alone, or many questions to one context.
///
/// A step is K WRITE steps, READ, the outer gradient through both and AdamW, as in
/// benches/torch_baseline.py. Times are medians. Peak memory is that of the whole process, so each process
/// measures one size.
#[derive(clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:
  gradmem bench --batch 64 --context 64 --steps 2
  gradmem bench attention --seq 1024 --backend cuda --attention reference
  gradmem bench read --model runs/kv-quick --context 512 --queries 1000"
)]
pub struct Args {
    #[command(subcommand)]
    part: Option<Part>,
    #[command(flatten)]
    step: step::StepArgs,
}

#[derive(clap::Subcommand)]
enum Part {
    Attention(attention::AttentionArgs),
    Read(read::ReadArgs),
}

pub fn run(args: Args) -> Result<ExitCode, Error> {
    match args.part {
        None => step::run(args.step),
        Some(Part::Attention(args)) => attention::run(args),
        Some(Part::Read(args)) => read::run(args),
    }
}

/// Fails unless a tensor of these sizes, of which none is 0, has fewer than 2³² elements.
fn check_shape(sizes: &[usize]) -> Result<(), Error> {
    let elements = sizes.iter().try_fold(1u32, |elements, size| {
        u32::try_from(*size)
            .ok()
            .and_then(|size| elements.checked_mul(size))
    });
    match elements {
        Some(1..) => Ok(()),
        _ => Err(Error::Input(format!(
            "a tensor of shape {sizes:?}: the product of its sizes must be below 2³²"
        ))),
    }
}

/// Fails unless so many rounds can be counted.
fn check_rounds(iters: usize, warmup: usize) -> Result<(), Error> {
    match u32::try_from(iters.max(warmup)) {
        Ok(_) => Ok(()),
        Err(_) => Err(Error::Input(
            "--iters and --warmup must be below 2³²".into(),
        )),
    }
}

/// Waits until the device has computed everything.
fn synchronize<B: BurnBackend>(device: &B::Device) -> Result<(), Error> {
    B::sync(device).map_err(|error| Error::Failed(format!("the device failed: {error:?}")))
}

fn median(seconds: &mut [f64]) -> f64 {
    seconds.sort_by(f64::total_cmp);
    let half = seconds.len() / 2;
    match seconds.len() % 2 {
        0 => (seconds[half - 1] + seconds[half]) / 2.0,
        _ => seconds[half],
    }
}

/// The peak resident memory of the process, on Linux.
fn peak_rss_bytes() -> Option<u64> {
    host_bytes("/proc/self/status", "VmHWM")
}

fn print_json(report: &impl Serialize) -> Result<(), Error> {
    let json = serde_json::to_string(report).map_err(|error| Error::Input(error.to_string()))?;
    say!("{json}");
    Ok(())
}

fn print_memory(rss: Option<u64>, device: Option<u64>) {
    for (bytes, what) in [
        (rss, "peak resident memory"),
        (device, "peak memory on the device"),
    ] {
        if let Some(bytes) = bytes {
            say!("{:.1} MiB {what}", bytes as f64 / (1 << 20) as f64);
        }
    }
}
