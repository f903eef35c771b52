//! All figures that the runs have the numbers for.

use super::figure::Figure;
use super::{Report, comparison, curves, forgetting, parts, write_steps};
use crate::error::Error;

/// Every figure that has something to show, in the order of the page.
///
/// # Errors
///
/// If a figure cannot be drawn, which is a bug in this crate.
pub fn all(report: &Report) -> Result<Vec<Figure>, Error> {
    let mut figures = Vec::new();
    figures.extend(curves::learning_curves(report)?);
    figures.extend(parts::by_position(report)?);
    figures.extend(parts::by_direction(report)?);
    for key in comparison::settings_to_compare(report) {
        figures.extend(comparison::by_setting(report, &key)?);
    }
    figures.extend(write_steps::by_evaluated(report)?);
    figures.extend(write_steps::by_trained_and_evaluated(report)?);
    figures.extend(forgetting::by_chunk(report)?);
    Ok(figures)
}
