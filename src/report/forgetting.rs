//! What is left of each chunk after those behind it.

use super::Report;
use super::figure::Figure;
use super::heatmap::{self, Heatmap};
use crate::error::Error;

/// The forgetting matrix of each run that has one, in answers or else in tokens reconstructed.
///
/// # Errors
///
/// If the figure cannot be drawn, which is a bug in this crate.
pub fn by_chunk(report: &Report) -> Result<Option<Figure>, Error> {
    let mut maps = Vec::new();
    let mut answers = true;
    for group in &report.groups {
        for run in &group.runs {
            let Some(found) = run.eval.as_ref().and_then(|eval| eval.forgetting.as_ref()) else {
                continue;
            };
            answers &= found.answered.is_some();
            let cells = found.answered.as_ref().unwrap_or(&found.reconstructed);
            let chunks: Vec<usize> = (1..=cells.len()).collect();
            let cells = cells.iter().map(|row| {
                let mut row = row.clone();
                row.resize(chunks.len(), None);
                row
            });
            maps.push(Heatmap {
                title: match group.runs.len() {
                    1 => group.label(),
                    _ => format!("{}, seed {}", group.label(), run.config.train.seed),
                },
                axes: ["after chunk", "of chunk"],
                cells: cells.collect(),
                rows: chunks.iter().map(|at| (*at, String::new())).collect(),
                columns: chunks,
            });
        }
    }
    if maps.is_empty() {
        return Ok(None);
    }
    let what = match answers {
        true => "Exact match of questions about a chunk",
        false => {
            "Share of a chunk's tokens that are reconstructed, or exact match of questions about it where it is known"
        }
    };
    Ok(Some(Figure {
        name: "forgetting".into(),
        title: "What is left of earlier chunks".into(),
        caption: format!("{what}, in percent, after it and after each chunk behind it."),
        svg: heatmap::draw(&maps)?,
    }))
}
