//! The log of a run, `metrics.jsonl`: a JSON object per line.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::error::Error;
use crate::support::fs::write_atomically;

/// The log, open for appending.
#[derive(Debug)]
pub(super) struct MetricsLog {
    file: File,
    path: PathBuf,
}

impl MetricsLog {
    /// Opens the log and removes the lines after `step`, and evaluations after `evaluated`: a run that resumes there writes them
    /// again.
    pub(super) fn open(path: PathBuf, step: usize, evaluated: usize) -> Result<Self, Error> {
        let kept: String = text(&path)?
            .lines()
            .filter(|line| {
                let end = match split_of(line).as_deref() {
                    Some("valid") => evaluated,
                    _ => step,
                };
                step_of(line).is_some_and(|at| at <= end)
            })
            .map(|line| format!("{line}\n"))
            .collect();
        write_atomically(&path, kept.as_bytes())?;
        let file = OpenOptions::new().append(true).open(&path);
        Ok(Self {
            file: file.map_err(Error::io(&path, "cannot open"))?,
            path,
        })
    }

    /// The last step of a log, if there is one.
    pub(super) fn last_step(path: &Path) -> Result<Option<usize>, Error> {
        Ok(text(path)?.lines().filter_map(step_of).max())
    }

    /// Appends a line.
    pub(super) fn push(&mut self, line: serde_json::Value) -> Result<(), Error> {
        let written = self.file.write_all(format!("{line}\n").as_bytes());
        written.map_err(Error::io(&self.path, "cannot write"))
    }
}

/// The text of a log; that of one that is not there is empty. A line that is not UTF-8 is no JSON.
fn text(path: &Path) -> Result<String, Error> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        Err(e) => Err(Error::io(path, "cannot read")(e)),
    }
}

fn step_of(line: &str) -> Option<usize> {
    let line: serde_json::Value = serde_json::from_str(line).ok()?;
    line.get("step")?.as_u64().map(|step| step as usize)
}

fn split_of(line: &str) -> Option<String> {
    let line: serde_json::Value = serde_json::from_str(line).ok()?;
    line.get("split")?.as_str().map(str::to_string)
}
