//! `gradmem completions`: a script by which a shell completes the command's arguments.

use std::process::ExitCode;

use clap::Command;
use clap_complete::{Shell, generate};
use gradmem::Error;

use crate::output::put;

/// Print a script by which a shell completes subcommands and options.
///
/// For bash, for example: gradmem completions bash > ~/.local/share/bash-completion/completions/gradmem
#[derive(clap::Args)]
pub struct Args {
    /// The shell.
    shell: Shell,
}

pub fn run(args: Args, mut program: Command) -> Result<ExitCode, Error> {
    let mut script = Vec::new();
    generate(args.shell, &mut program, "gradmem", &mut script);
    put(format_args!("{}", String::from_utf8_lossy(&script)));
    Ok(ExitCode::SUCCESS)
}
