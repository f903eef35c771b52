//! The presets that come with the crate: the files of `presets/`.

use crate::error::Error;
use crate::support::fs::read_text;

/// Names and texts of the files.
macro_rules! include_presets {
    ($($name:literal),*) => {
        [$(($name, include_str!(concat!("../../presets/", $name, ".toml")))),*]
    };
}

const PRESETS: [(&str, &str); 18] = include_presets![
    "babi",
    "babi-small",
    "jsonl-small",
    "kv",
    "kv-n8",
    "kv-quick",
    "kv-small",
    "lm",
    "lm-small",
    "mix-small",
    "mqar-small",
    "multihop-small",
    "phonebook",
    "phonebook-small",
    "squad",
    "squad-small",
    "text",
    "text-small"
];

/// The names and TOML texts of the presets that come with the crate: the paper's experiments, and smaller
/// ones of the same tasks.
pub fn presets() -> impl Iterator<Item = (&'static str, &'static str)> {
    PRESETS.into_iter()
}

/// The TOML text of a preset, by its name or by the path of a `.toml` file.
///
/// # Errors
///
/// If there is no such preset, or the file cannot be read.
pub(super) fn text_of(preset: &str) -> Result<String, Error> {
    if let Some((_, text)) = PRESETS.iter().find(|(name, _)| *name == preset) {
        return Ok((*text).into());
    }
    if preset.ends_with(".toml") {
        return read_text(preset);
    }
    let names: Vec<_> = PRESETS.iter().map(|(name, _)| *name).collect();
    Err(Error::Input(format!(
        "unknown preset `{preset}`: it is neither one of {} nor a .toml file",
        names.join(", ")
    )))
}
