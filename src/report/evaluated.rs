//! What `gradmem eval` found: measures by the number of WRITE steps in evaluation.

use std::collections::BTreeSet;

use super::Report;
use super::axis::Axis;
use super::figures::{Figure, palette, panels_of, series};
use super::group::Group;
use super::heat::{self, HeatMap};
use super::look::{Hue, Look};
use super::plot::{Item, Panel, Plot, Sign};
use super::run::Run;
use super::text::mean;
use crate::error::Error;
use crate::train::metrics::Measure;

/// The setting that evaluation varies.
const WRITE_STEPS: &str = "memory.write_steps";

/// A measure against the number of WRITE steps in evaluation, run by run.
///
/// # Errors
///
/// If it cannot be drawn, which is a fault of this crate.
pub fn write_steps(report: &Report) -> Result<Option<Figure>, Error> {
    let measure = report.measure;
    let palette = palette(report, series);
    let mut shown = Vec::new();
    let mut panels = Vec::new();
    let (mut adaptive, mut unwritten) = (false, false);
    for data in panels_of(report, |group| group.data_label(|_| false)) {
        let groups = report.groups.iter();
        let groups: Vec<_> = groups
            .filter(|group| group.data_label(|_| false) == data)
            .collect();
        let (mut levels, mut lines, mut signs) = (Vec::new(), Vec::new(), Vec::new());
        for group in groups {
            let name = series(group);
            let Some(look) = palette.get(&name) else {
                continue;
            };
            for run in &group.runs {
                let drawn = levels.len() + lines.len();
                evaluated(run, measure, look, &mut levels, &mut lines, &mut signs);
                if levels.len() + lines.len() > drawn {
                    shown.push(name.clone());
                }
            }
        }
        if lines.is_empty() {
            continue;
        }
        unwritten |= !levels.is_empty();
        adaptive |= signs.iter().any(|sign| matches!(sign, Item::Star(..)));
        let items: Vec<Item> = levels.into_iter().chain(lines).chain(signs).collect();
        let points = items.iter().flat_map(|item| match item {
            Item::Line(points, ..) | Item::Points(points, ..) => points.clone(),
            Item::Ring(point, _) | Item::Star(point, _) => vec![*point],
            Item::Level(height, _) => vec![(0.0, *height)],
        });
        let points: Vec<_> = points.collect();
        panels.push(Panel {
            title: data,
            x: Axis::counting("K, WRITE steps in evaluation", points.iter().map(|p| p.0)),
            y: Axis::of(measure, points.iter().map(|p| p.1)),
            items,
        });
    }
    if panels.is_empty() {
        return Ok(None);
    }
    let star = " The star is where an adaptive rule stops writing: its mean number of steps.";
    let level = " A dashed line all across is a method that writes nothing.";
    let mut signs = vec![Sign::Ring("K in training")];
    signs.extend(adaptive.then_some(Sign::Star("adaptive K, mean")));
    Ok(Some(Figure {
        name: "write-steps".into(),
        title: format!("{} against K in evaluation", measure.name()),
        caption: format!(
            "One line for each run; the ring is at the K it was trained with.{}{}",
            if adaptive { star } else { "" },
            if unwritten { level } else { "" }
        ),
        svg: Plot {
            panels,
            legend: palette.legend(&shown),
            signs,
        }
        .draw()?,
    }))
}

/// What `eval.json` adds to a panel: a level, or a line with signs on it.
fn evaluated(
    run: &Run,
    measure: Measure,
    look: Look,
    levels: &mut Vec<Item>,
    lines: &mut Vec<Item>,
    signs: &mut Vec<Item>,
) {
    let Some(eval) = &run.eval else {
        return;
    };
    let mut points = Vec::new();
    for row in &eval.rows {
        match (row.write_steps, measure.in_values(&row.scores)) {
            (Some(k), Some(value)) => points.push((k as f64, value)),
            (None, Some(value)) => levels.push(Item::Level(value, look)),
            (_, None) => {}
        }
    }
    points.sort_by(|a, b| a.0.total_cmp(&b.0));
    if points.len() < 2 {
        return;
    }
    let trained = run.write_steps().map(|k| k as f64);
    let ring = points.iter().find(|point| Some(point.0) == trained);
    signs.extend(ring.map(|point| Item::Ring(*point, look)));
    if let Some(adaptive) = &eval.adaptive
        && measure == Measure::ExactMatch
    {
        let point = (adaptive.mean_write_steps, adaptive.exact_match);
        signs.push(Item::Star(point, look));
    }
    lines.push(Item::Line(points, look, 1.5));
}

/// K in training by K in evaluation, for groups that differ in nothing else.
///
/// # Errors
///
/// If it cannot be drawn, which is a fault of this crate.
pub fn by_trained(report: &Report) -> Result<Option<Figure>, Error> {
    let measure = report.measure;
    let mut maps = Vec::new();
    let name = |group: &Group| group.label_without(|key| key == WRITE_STEPS);
    let written = |group: &Group| matches!(group.hue, Hue::GradMem | Hue::FirstOrder);
    for title in panels_of(report, name) {
        let groups = report.groups.iter();
        let groups: Vec<_> = groups
            .filter(|group| written(group) && name(group) == title)
            .filter(|group| !columns(group, measure).is_empty())
            .collect();
        let trained = |group: &Group| group.config().map_or(0, |c| c.memory.write_steps);
        let rows: Vec<_> = groups.iter().map(|group| trained(group)).collect();
        let all: BTreeSet<_> = groups.iter().flat_map(|g| columns(g, measure)).collect();
        let columns: Vec<_> = all.into_iter().collect();
        if rows.len() < 2 || columns.len() < 2 {
            continue;
        }
        let cells = groups.iter().map(|group| {
            let cells = columns.iter().map(|k| cell(group, measure, *k));
            cells.collect()
        });
        maps.push(HeatMap {
            title,
            cells: cells.collect(),
            rows,
            columns,
        });
    }
    if maps.is_empty() || !measure.is_share() {
        return Ok(None);
    }
    Ok(Some(Figure {
        name: "trained-and-evaluated".into(),
        title: format!("{} by K in training and in evaluation", measure.name()),
        caption: "In percent, the mean over seeds; an orange rim marks the K trained with.".into(),
        svg: heat::draw(&maps)?,
    }))
}

/// The numbers of WRITE steps a group was evaluated with.
fn columns(group: &Group, measure: Measure) -> BTreeSet<usize> {
    let evals = group.runs.iter().filter_map(|run| run.eval.as_ref());
    let rows = evals.flat_map(|eval| &eval.rows);
    rows.filter(|row| measure.in_values(&row.scores).is_some())
        .filter_map(|row| row.write_steps)
        .collect()
}

/// The mean over seeds with K WRITE steps.
fn cell(group: &Group, measure: Measure, k: usize) -> Option<f64> {
    let evals = group.runs.iter().filter_map(|run| run.eval.as_ref());
    let rows = evals.filter_map(|eval| eval.rows.iter().find(|row| row.write_steps == Some(k)));
    let values: Vec<_> = rows
        .filter_map(|row| measure.in_values(&row.scores))
        .collect();
    mean(&values)
}
