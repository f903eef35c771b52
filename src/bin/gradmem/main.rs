//! `gradmem`: train, evaluate, write and read from a shell. Each subcommand has a file of its own, with its
//! arguments beside its code.
//!
//! Exit status: 0 success, 1 failure, 2 a mistake in the arguments or files, 130 interrupted.
// Without a backend the program only reports that none is compiled in.
#![cfg_attr(
    not(any(
        feature = "flex",
        feature = "ndarray",
        feature = "wgpu",
        feature = "cuda",
        feature = "rocm"
    )),
    allow(dead_code, unused)
)]

mod args;
mod backend;
mod bench;
mod completions;
mod eval;
mod export;
mod files;
mod generate;
mod input;
mod inspect;
#[cfg(any(feature = "cuda", feature = "vulkan"))]
mod kernel_cache;
mod memories;
mod model;
mod output;
mod parity;
mod preset;
mod processes;
mod read;
mod report;
mod startup;
mod train;
mod tune;
mod write;

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Write a context into a few memory vectors by gradient descent; answer from the memory alone.
///
/// GradMem (arXiv 2603.13875) stores a text in prefix vectors of a language model. It takes a few gradient
/// steps on the reconstruction loss of the text, with frozen weights. After that the text is not needed. The
/// model is meta-trained through these steps, so that the memory holds what questions ask for.
#[derive(Parser)]
#[command(version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Train(train::Args),
    Eval(eval::Args),
    Report(report::Args),
    Write(write::Args),
    Read(read::Args),
    Inspect(inspect::Args),
    Tune(tune::Args),
    Generate(generate::Args),
    Export(export::Args),
    Parity(parity::Args),
    Preset(preset::Args),
    Bench(bench::Args),
    Completions(completions::Args),
}

fn main() -> ExitCode {
    startup::keep_pages();
    startup::start_log();
    startup::catch_size_limit();
    startup::report_panics();
    startup::unset_empty_variables();
    let arguments = args::with_negative_numbers(Cli::command()).try_get_matches();
    let command = match arguments.and_then(|arguments| Cli::from_arg_matches(&arguments)) {
        Ok(cli) => cli.command,
        Err(answer) => return output::answer(&answer),
    };
    let alone = match &command {
        Command::Train(_) => Ok(()),
        _ => processes::refuse_several(),
    };
    let result = alone.and_then(|()| match command {
        Command::Train(args) => train::run(args),
        Command::Eval(args) => eval::run(args),
        Command::Report(args) => report::run(args),
        Command::Write(args) => write::run(args),
        Command::Read(args) => read::run(args),
        Command::Inspect(args) => inspect::run(args),
        Command::Tune(args) => tune::run(args),
        Command::Generate(args) => generate::run(args),
        Command::Export(args) => export::run(args),
        Command::Parity(args) => parity::run(args),
        Command::Preset(args) => preset::run(args),
        Command::Bench(args) => bench::run(args),
        Command::Completions(args) => completions::run(args, Cli::command()),
    });
    match result {
        Ok(code) => code,
        Err(error) => output::failed(&error),
    }
}
