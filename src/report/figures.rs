//! Which plots the runs have the numbers for.

use super::axis::Axis;
use super::group::{Group, is_data};
use super::look::Palette;
use super::pen::Svg;
use super::plot::{Item, Panel, Plot};
use super::run::Run;
use super::{Report, against, evaluated};
use crate::error::Error;
use crate::train::metrics::Measure;

/// A picture with words.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Figure {
    /// The name of its file, without an ending.
    pub name: String,
    /// What it is.
    pub title: String,
    /// How to read it.
    pub caption: String,
    /// The picture.
    pub svg: Svg,
}

/// Every figure there is something to show in.
///
/// # Errors
///
/// If one cannot be drawn, which is a fault of this crate.
pub fn all(report: &Report) -> Result<Vec<Figure>, Error> {
    let mut figures = Vec::new();
    figures.extend(curves(report)?);
    for key in against::axes(report) {
        figures.extend(against::setting(report, &key)?);
    }
    figures.extend(evaluated::write_steps(report)?);
    figures.extend(evaluated::by_trained(report)?);
    Ok(figures)
}

/// A series' name where panels say what was learned from.
pub fn series(group: &Group) -> String {
    group.label_without(is_data)
}

/// The same looks in every figure that names series in the same way.
pub fn palette(report: &Report, name: impl Fn(&Group) -> String) -> Palette {
    let groups = report.groups.iter();
    Palette::new(groups.map(|group| (group.hue, name(group))))
}

/// What panels are of, each once, in order.
pub fn panels_of(report: &Report, name: impl Fn(&Group) -> String) -> Vec<String> {
    let mut names = Vec::new();
    for group in &report.groups {
        let name = name(group);
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

/// The measure at each evaluation of a run, a line for each stage of its curriculum.
fn curve(run: &Run, measure: Measure) -> Vec<Vec<(f64, f64)>> {
    let stages = run.valid.chunk_by(|a, b| a.stage == b.stage);
    let points = stages.map(|stage| {
        let points = stage.iter();
        let points = points.filter_map(|at| Some((at.step as f64, measure.in_values(&at.values)?)));
        points.collect()
    });
    points.collect()
}

fn curves(report: &Report) -> Result<Option<Figure>, Error> {
    let measure = report.measure;
    let palette = palette(report, series);
    let mut shown = Vec::new();
    let mut panels = Vec::new();
    for data in panels_of(report, |group| group.data_label(|_| false)) {
        let groups = report.groups.iter();
        let mut items = Vec::new();
        for group in groups.filter(|group| group.data_label(|_| false) == data) {
            let name = series(group);
            let Some(look) = palette.get(&name) else {
                continue;
            };
            for points in group.runs.iter().flat_map(|run| curve(run, measure)) {
                items.extend(match points.len() {
                    0 => None,
                    1 => Some(Item::Points(points, look, 3.0)),
                    _ => Some(Item::Line(points, look, 1.3)),
                });
                shown.push(name.clone());
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
            y: Axis::of(measure, points.iter().map(|point| point.1)),
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
            legend: palette.legend(&shown),
            signs: Vec::new(),
        }
        .draw()?,
    }))
}
