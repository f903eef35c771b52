//! `gradmem preset`: the presets that come with the program.

use std::process::ExitCode;

use gradmem::Error;
use gradmem::train::config::presets;

use crate::output::{put, say};

/// List the presets, or print one to copy and edit.
#[derive(clap::Args)]
pub struct Args {
    /// Preset to print, as TOML [default: list all].
    name: Option<String>,
}

pub fn run(args: Args) -> Result<ExitCode, Error> {
    match args.name {
        None => {
            let width = presets().map(|(name, _)| name.len()).max().unwrap_or(0);
            presets().for_each(|(name, text)| say!("{name:width$}  {}", about(text)));
        }
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

/// What a preset is, by the comment at its head: up to its first full stop, colon or semicolon.
fn about(text: &str) -> String {
    let comment = text.lines().map_while(|line| line.strip_prefix('#'));
    let comment: Vec<&str> = comment.flat_map(str::split_whitespace).collect();
    let comment = comment.join(" ");
    let end = comment
        .find([':', ';'])
        .into_iter()
        .chain(comment.find(". "));
    comment[..end.min().unwrap_or(comment.len())].into()
}
