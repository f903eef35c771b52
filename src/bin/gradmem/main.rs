//! `gradmem`: train, evaluate, write and read from a shell.
//!
//! Exit status: 0 done, 1 something failed, 2 a mistake in what was asked for, 130 interrupted.

mod args;
mod backend;
mod commands;

use std::process::ExitCode;

use clap::Parser;
use gradmem::Error;

use args::{Args, Command};

/// Training frees and takes the same large tensors again and again; this allocator keeps their pages.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let Args { command } = Args::parse();
    let result = match command {
        Command::Train(args) => commands::train(args),
        Command::Eval(args) => commands::eval(args),
        Command::Write(args) => commands::write(args),
        Command::Read(args) => commands::read(args),
        Command::Parity(args) => commands::parity(args),
        Command::Preset(args) => commands::preset(args),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("gradmem: {error}");
            ExitCode::from(if is_mistake(&error) { 2 } else { 1 })
        }
    }
}

fn is_mistake(error: &Error) -> bool {
    error.is_user_error()
}
