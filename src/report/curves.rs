//! Learning curves: a measure on the validation set against the optimizer step.

use super::Report;
use super::axis::Axis;
use super::figure::{Figure, palette, panel_names, series_name};
use super::plot::{Item, Panel, Plot};
use super::run::Run;
use crate::error::Error;
use crate::train::metrics::Measure;

/// Learning curves of all runs; none before the first evaluation.
///
/// # Errors
///
/// If the figure cannot be drawn, which is a bug in this crate.
pub fn learning_curves(report: &Report) -> Result<Option<Figure>, Error> {
    let measure = report.measure;
    let palette = palette(report, series_name);
    let mut drawn = Vec::new();
    let mut panels = Vec::new();
    for data in panel_names(report, |group| group.data_label(|_| false)) {
        let groups = report.groups.iter();
        let mut items = Vec::new();
        for group in groups.filter(|group| group.data_label(|_| false) == data) {
            let name = series_name(group);
            let Some(style) = palette.get(&name) else {
                continue;
            };
            for points in group.runs.iter().flat_map(|run| curve(run, measure)) {
                items.extend(match points.len() {
                    0 => None,
                    1 => Some(Item::Points(points, style, 3.0)),
                    _ => Some(Item::Line(points, style, 1.3)),
                });
                drawn.push(name.clone());
            }
        }
        if items.is_empty() {
            continue;
        }
        let points = items.iter().flat_map(|item| match item {
            Item::Line(points, ..) | Item::Points(points, ..) => points.as_slice(),
            _ => &[],
        });
        let points: Vec<_> = points.copied().collect();
        panels.push(Panel {
            title: data,
            x: Axis::from_zero("optimizer step", points.iter().map(|point| point.0)),
            y: Axis::of_measure(measure, points.iter().map(|point| point.1)),
            items,
        });
    }
    if panels.is_empty() {
        return Ok(None);
    }
    let staged = report
        .runs()
        .any(|run| run.valid.iter().any(|point| point.stage > 0));
    let stages = " A line breaks where a curriculum goes on to its next stage.";
    let title = format!("Learning curves: {}", measure.name().to_lowercase());
    Ok(Some(Figure {
        name: "learning-curves".into(),
        caption: format!(
            "{} on the validation set against the optimizer step; one line for each seed.{}",
            measure.name(),
            if staged { stages } else { "" }
        ),
        title,
        svg: Plot {
            panels,
            legend: palette.legend(&drawn),
            symbols: Vec::new(),
        }
        .draw()?,
    }))
}

/// The measure at each evaluation of a run, a line for each stage of its curriculum.
pub(super) fn curve(run: &Run, measure: Measure) -> Vec<Vec<(f64, f64)>> {
    let stages = run.valid.chunk_by(|a, b| a.stage == b.stage);
    let points = stages.map(|stage| {
        let points = stage.iter();
        let points = points.filter_map(|at| Some((at.step as f64, measure.in_values(&at.values)?)));
        points.collect()
    });
    points.collect()
}
