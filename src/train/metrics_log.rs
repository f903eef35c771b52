//! The log of a run, `metrics.jsonl`: a JSON object per line.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::PathBuf;

use crate::error::Error;
use crate::support::fs::write_atomically;

/// The log, open for appending.
#[derive(Debug)]
pub(super) struct MetricsLog {
    file: File,
    path: PathBuf,
}

impl MetricsLog {
    /// Opens the log and removes the lines after `step`: a run that resumes there writes them again.
    pub(super) fn open(path: PathBuf, step: usize) -> Result<Self, Error> {
        let text = match std::fs::read(&path) {
            // A line that is not UTF-8 is no JSON, and is removed too.
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(e) => return Err(Error::io(&path, "cannot read")(e)),
        };
        let kept: String = text
            .lines()
            .filter(|line| {
                let line: Option<serde_json::Value> = serde_json::from_str(line).ok();
                let at = line.and_then(|line| line.get("step")?.as_u64());
                at.is_some_and(|at| at <= step as u64)
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

    /// Appends a line.
    pub(super) fn push(&mut self, line: serde_json::Value) -> Result<(), Error> {
        let written = self.file.write_all(format!("{line}\n").as_bytes());
        written.map_err(Error::io(&self.path, "cannot write"))
    }
}
