//! The log of a run, `metrics.jsonl`: a JSON object per line.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::error::Error;
use crate::support::fs::{read_if_exists, write_atomically};

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
                mark_of(line).is_some_and(|mark| match mark.split.as_deref() {
                    Some("valid") => mark.step <= evaluated,
                    _ => mark.step <= step,
                })
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
        let text = text(path)?;
        Ok(text.lines().filter_map(mark_of).map(|mark| mark.step).max())
    }

    /// Appends a line.
    pub(super) fn push(&mut self, line: serde_json::Value) -> Result<(), Error> {
        let written = self.file.write_all(format!("{line}\n").as_bytes());
        written.map_err(Error::io(&self.path, "cannot write"))
    }

    /// Waits until all lines are on the disk.
    pub(super) fn sync(&self) -> Result<(), Error> {
        let synced = self.file.sync_data();
        synced.map_err(Error::io(&self.path, "cannot write"))
    }
}

/// The text of a log; that of one that is not there is empty. A line that is not UTF-8 is no JSON.
fn text(path: &Path) -> Result<String, Error> {
    let bytes = read_if_exists(path)?.unwrap_or_default();
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// What says where a line belongs.
#[derive(Deserialize)]
struct Mark {
    step: usize,
    #[serde(default)]
    split: Option<String>,
}

fn mark_of(line: &str) -> Option<Mark> {
    serde_json::from_str(line).ok()
}
