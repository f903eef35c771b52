//! The runs' logs as one table of comma-separated values.

use std::collections::BTreeSet;

use serde_json::Value as Json;

use super::run::Run;
use crate::error::Error;

/// The columns in front.
pub const FIRST: [&str; 6] = ["run", "seed", "split", "step", "stage", "lr"];

/// A row for each line of the runs' logs, a column for each key that one of them has; what a line lacks is empty.
pub fn csv<'a>(runs: impl Iterator<Item = &'a Run> + Clone) -> Result<Vec<u8>, Error> {
    let keys = runs
        .clone()
        .flat_map(|run| &run.log)
        .flat_map(|line| line.values.keys());
    let keys: BTreeSet<&str> = keys.map(String::as_str).collect();
    let rest: Vec<&str> = keys
        .into_iter()
        .filter(|key| !FIRST.contains(key))
        .collect();
    let mut table = csv::Writer::from_writer(Vec::new());
    let failed = |e: csv::Error| Error::Failed(format!("the logs cannot be written as CSV: {e}"));
    table
        .write_record(FIRST.iter().chain(&rest))
        .map_err(failed)?;
    for run in runs {
        for line in &run.log {
            let cell = |key: &&str| match (*key, line.values.get(*key)) {
                ("run", _) => run.name.clone(),
                ("seed", _) => run.config.train.seed.to_string(),
                ("split", _) => line.split.clone(),
                ("step", _) => line.step.to_string(),
                ("stage", _) => line
                    .stage
                    .map(|stage| stage.to_string())
                    .unwrap_or_default(),
                (_, None | Some(Json::Null)) => String::new(),
                (_, Some(Json::String(text))) => text.clone(),
                (_, Some(value)) => value.to_string(),
            };
            let row = FIRST.iter().chain(&rest).map(cell);
            table.write_record(row).map_err(failed)?;
        }
    }
    table
        .into_inner()
        .map_err(|e| Error::Failed(format!("the logs cannot be written as CSV: {e}")))
}
