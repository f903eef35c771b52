//! `gradmem`: train, evaluate, write and read from a shell.
//!
//! Exit status: 0 done, 1 something failed, 2 a mistake in what was asked for, 130 interrupted.
// Without a backend there is nothing to run; it says so.
#![cfg_attr(
    not(any(
        feature = "flex",
        feature = "ndarray",
        feature = "wgpu",
        feature = "cuda"
    )),
    allow(dead_code, unused)
)]

mod args;
mod backend;
mod bench;
mod commands;
mod eval;
mod memories;
mod model;
mod output;
mod train;

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser;

use args::{Args, Command};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Training frees and takes the same large tensors again and again: their pages are kept rather than
/// given back to the system, which would clear them each time.
fn keep_pages() {
    /// `mi_option_purge_delay` of mimalloc.h, which the bindings leave out; −1 is never.
    const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;
    // SAFETY: it sets a number that the allocator reads, before any thread is started.
    unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, -1) };
}

/// Warnings go to standard error; RUST_LOG shows more, as in RUST_LOG=gradmem=debug.
fn start_log() {
    let default = "error,gradmem=warn,gradmem_kernels=warn,gradmem::notice=info";
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or(default))
        .format(|out, record| {
            let level = record.level().as_str().to_lowercase();
            writeln!(out, "gradmem: {level}: {}", record.args())
        })
        .init();
}

/// GPU backends work on threads of their own, and a panic there (a kernel that does not compile, a
/// lost device) would leave numbers that nobody computed: it ends the program instead.
fn end_with_device_threads() {
    let hook = std::panic::take_hook();
    let main = std::thread::current().id();
    std::panic::set_hook(Box::new(move |info| {
        let of_device = std::thread::current().id() != main && is_of_a_device(info);
        if of_device && info.to_string().contains("No possible adapter") {
            eprintln!(
                "gradmem: no such GPU is found: install its driver (on Linux without a GPU, mesa-vulkan-drivers has one in software), or compute elsewhere, as with --backend flex"
            );
            std::process::exit(2);
        }
        // What the dashboard's k key does; it has given the terminal back.
        if info
            .to_string()
            .contains("Killing training from user input")
        {
            eprintln!(
                "gradmem: killed; the last checkpoint is whole, and the same command goes on from it"
            );
            std::process::exit(train::INTERRUPTED.into());
        }
        hook(info);
        if of_device {
            eprintln!(
                "gradmem: the device failed, and nothing after that can be trusted; what was saved before is whole"
            );
            std::process::exit(1);
        }
    }));
}

fn is_of_a_device(info: &std::panic::PanicHookInfo<'_>) -> bool {
    let of_gpu = |file: &str| {
        ["cubecl", "wgpu", "cudarc", "cubek"]
            .iter()
            .any(|x| file.contains(x))
    };
    info.location().is_some_and(|at| of_gpu(at.file()))
}

fn main() -> ExitCode {
    keep_pages();
    start_log();
    end_with_device_threads();
    let Args { command } = Args::parse();
    let result = match command {
        Command::Train(args) => train::train(args),
        Command::Eval(args) => eval::eval(args),
        Command::Report(args) => commands::report(args),
        Command::Write(args) => memories::write(args),
        Command::Read(args) => memories::read(args),
        Command::Inspect(args) => memories::inspect(args),
        Command::Generate(args) => commands::generate(args),
        Command::Export(args) => commands::export(args),
        Command::Parity(args) => commands::parity(args),
        Command::Preset(args) => commands::preset(args),
        Command::Bench(args) => bench::bench(args),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("gradmem: {error}");
            ExitCode::from(if error.is_user_error() { 2 } else { 1 })
        }
    }
}
