//! `gradmem preset`: the presets that come with the program.

use std::process::ExitCode;

use gradmem::Error;
use gradmem::train::config::presets;

use crate::output::{put, say};

/// List the presets, or print one to copy and edit.
#[derive(clap::Args)]
pub struct Args {
    /// Preset to print, as TOML [default: list the names of all].
    name: Option<String>,
}

pub fn run(args: Args) -> Result<ExitCode, Error> {
    match args.name {
        None => presets().for_each(|(name, _)| say!("{name}")),
        Some(name) => match presets().find(|(known, _)| *known == name) {
            Some((_, text)) => put(format_args!("{text}")),
            None => {
                let names: Vec<_> = presets().map(|(name, _)| name).collect();
                return Err(Error::Input(format!(
                    "unknown preset `{name}`: there are {}",
                    names.join(", ")
                )));
            }
        },
    }
    Ok(ExitCode::SUCCESS)
}
