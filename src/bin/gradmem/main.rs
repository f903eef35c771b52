//! `gradmem`: train, evaluate, write and read from a shell.
//!
//! Exit status: 0 done, 1 something failed, 2 a mistake in what was asked for, 130 interrupted.

mod args;
mod backend;
mod commands;
mod model;

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

fn main() -> ExitCode {
    keep_pages();
    let Args { command } = Args::parse();
    let result = match command {
        Command::Train(args) => commands::train(args),
        Command::Eval(args) => commands::eval(args),
        Command::Write(args) => commands::write(args),
        Command::Read(args) => commands::read(args),
        Command::Generate(args) => commands::generate(args),
        Command::Export(args) => commands::export(args),
        Command::Parity(args) => commands::parity(args),
        Command::Preset(args) => commands::preset(args),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("gradmem: {error}");
            ExitCode::from(if error.is_user_error() { 2 } else { 1 })
        }
    }
}
