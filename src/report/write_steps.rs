//! Results of `gradmem eval`: measures by the number of WRITE steps in evaluation.

use std::collections::BTreeSet;

use super::Report;
use super::axis::Axis;
use super::figure::{Figure, palette, panel_names, series_name};
use super::group::Group;
use super::heatmap::{self, Heatmap};
use super::plot::{Item, Panel, Plot, Symbol};
use super::run::Run;
use super::style::{MethodColor, Style};
use crate::error::Error;
use crate::kernels::Precision;
use crate::support::counted;
use crate::train::metrics::Measure;

/// The setting that evaluation varies.
const WRITE_STEPS: &str = "memory.write_steps";

/// A measure against the number of WRITE steps in evaluation, a line for each run.
///
/// # Errors
///
/// If the figure cannot be drawn, which is a bug in this crate.
pub fn by_evaluated(report: &Report) -> Result<Option<Figure>, Error> {
    let measure = report.measure;
    let palette = palette(report, series_name);
    let mut drawn = Vec::new();
    let mut panels = Vec::new();
    let (mut adaptive, mut without_write) = (false, false);
    for data in panel_names(report, |group| group.data_label(|_| false)) {
        let groups = report.groups.iter();
        let groups: Vec<_> = groups
            .filter(|group| group.data_label(|_| false) == data)
            .collect();
        let (mut horizontals, mut lines, mut symbols) = (Vec::new(), Vec::new(), Vec::new());
        let mut names = Vec::new();
        for group in groups {
            let name = series_name(group);
            let Some(style) = palette.get(&name) else {
                continue;
            };
            for run in &group.runs {
                let before = horizontals.len() + lines.len();
                add_run(
                    run,
                    measure,
                    style,
                    &mut horizontals,
                    &mut lines,
                    &mut symbols,
                );
                if horizontals.len() + lines.len() > before {
                    names.push(name.clone());
                }
            }
        }
        if lines.is_empty() {
            continue;
        }
        drawn.extend(names);
        without_write |= !horizontals.is_empty();
        adaptive |= symbols
            .iter()
            .any(|symbol| matches!(symbol, Item::Star(..)));
        let items: Vec<Item> = horizontals
            .into_iter()
            .chain(lines)
            .chain(symbols)
            .collect();
        let points = items.iter().flat_map(|item| match item {
            Item::Line(points, ..) | Item::Points(points, ..) => points.clone(),
            Item::Ring(point, _) | Item::Star(point, _) => vec![*point],
            Item::Horizontal(height, _) => vec![(0.0, *height)],
        });
        let points: Vec<_> = points.collect();
        panels.push(Panel {
            title: data,
            x: Axis::whole_numbers("K, WRITE steps in evaluation", points.iter().map(|p| p.0)),
            y: Axis::of_measure(measure, points.iter().map(|p| p.1)),
            items,
        });
    }
    if panels.is_empty() {
        return Ok(None);
    }
    let star = " The star is an adaptive rule: the mean step whose memory it keeps.";
    let horizontal = " A dashed line all across is a method that writes nothing.";
    let mut symbols = vec![Symbol::Ring("K in training")];
    symbols.extend(adaptive.then_some(Symbol::Star("adaptive K, mean")));
    Ok(Some(Figure {
        name: "write-steps".into(),
        title: format!("{} against K in evaluation", measure.name()),
        caption: format!(
            "One line for each run, of {}; the ring is at the K it was trained with.{}{}",
            evaluated_on(report),
            if adaptive { star } else { "" },
            if without_write { horizontal } else { "" }
        ),
        svg: Plot {
            panels,
            legend: palette.legend(&drawn),
            symbols,
        }
        .draw()?,
    }))
}

/// How many contexts the evaluations are of, and what products were computed in where that is not f32.
fn evaluated_on(report: &Report) -> String {
    let runs = report.groups.iter().flat_map(|group| &group.runs);
    let evaluations = runs.filter_map(|run| run.eval.as_ref());
    let each = evaluations.map(|eval| match eval.precision {
        Precision::F32 => counted(eval.samples, "context"),
        narrow => format!(
            "{} in {}",
            counted(eval.samples, "context"),
            narrow.as_str()
        ),
    });
    let each: BTreeSet<String> = each.collect();
    each.into_iter().collect::<Vec<_>>().join(" or ")
}

/// Adds a run's evaluation to a panel: a line with symbols on it, or, for a method without WRITE, a horizontal
/// line.
fn add_run(
    run: &Run,
    measure: Measure,
    style: Style,
    horizontals: &mut Vec<Item>,
    lines: &mut Vec<Item>,
    symbols: &mut Vec<Item>,
) {
    let Some(eval) = &run.eval else {
        return;
    };
    let mut points = Vec::new();
    for row in &eval.rows {
        match (row.write_steps, measure.in_values(&row.scores)) {
            (Some(k), Some(value)) => points.push((k as f64, value)),
            (None, Some(value)) => horizontals.push(Item::Horizontal(value, style)),
            (_, None) => {}
        }
    }
    points.sort_by(|a, b| a.0.total_cmp(&b.0));
    if points.len() < 2 {
        return;
    }
    let trained = run.write_steps().map(|k| k as f64);
    let ring = points.iter().find(|point| Some(point.0) == trained);
    symbols.extend(ring.map(|point| Item::Ring(*point, style)));
    if let Some(adaptive) = &eval.adaptive
        && measure == Measure::ExactMatch
    {
        let point = (adaptive.mean_write_steps, adaptive.exact_match);
        symbols.push(Item::Star(point, style));
    }
    lines.push(Item::Line(points, style, 1.5));
}

/// A measure by K in training and K in evaluation, for groups that differ in nothing else that is not incidental.
///
/// # Errors
///
/// If the figure cannot be drawn, which is a bug in this crate.
pub fn by_trained_and_evaluated(report: &Report) -> Result<Option<Figure>, Error> {
    let measure = report.measure;
    let mut maps = Vec::new();
    let is_gradmem =
        |group: &Group| matches!(group.color, MethodColor::GradMem | MethodColor::FirstOrder);
    let common = |group: &Group| group.settings_without(|key| key == WRITE_STEPS);
    let groups = report.groups.iter();
    let mut alike: Vec<Vec<&Group>> = Vec::new();
    for group in groups.filter(|group| is_gradmem(group) && !columns(group, measure).is_empty()) {
        let found = alike
            .iter_mut()
            .find(|others| common(others[0]) == common(group));
        match found {
            Some(others) => others.push(group),
            None => alike.push(vec![group]),
        }
    }
    for groups in alike {
        let differs = |key: &str| {
            let mut others = groups.iter();
            others.any(|group| group.settings.get(key) != groups[0].settings.get(key))
        };
        let title = groups[0].label_without(|key| key == WRITE_STEPS || differs(key));
        let row = |group: &&Group| {
            let trained = group.config().map_or(0, |c| c.memory.write_steps);
            let parts = group.parts(|key| key != WRITE_STEPS && differs(key));
            (trained, parts.join(", "))
        };
        let rows: Vec<_> = groups.iter().map(row).collect();
        let all: BTreeSet<_> = groups.iter().flat_map(|g| columns(g, measure)).collect();
        let columns: Vec<_> = all.into_iter().collect();
        if rows.len() < 2 || columns.len() < 2 {
            continue;
        }
        let cells = groups.iter().map(|group| {
            let cells = columns.iter().map(|k| cell(group, measure, *k));
            cells.collect()
        });
        maps.push(Heatmap {
            title,
            axes: ["K in training", "K in evaluation"],
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
        svg: heatmap::draw(&maps)?,
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

/// The mean over seeds, evaluated with K WRITE steps; none if WRITE of one of them does not get there.
fn cell(group: &Group, measure: Measure, k: usize) -> Option<f64> {
    let evals = group.runs.iter().filter_map(|run| run.eval.as_ref());
    let rows = evals.filter_map(|eval| eval.rows.iter().find(|row| row.write_steps == Some(k)));
    let values: Vec<_> = rows
        .filter_map(|row| measure.in_values(&row.scores))
        .collect();
    group.mean(&values)
}

#[cfg(test)]
mod tests {
    use super::super::run::tests::run;
    use super::*;

    #[test]
    fn rows_of_one_k_say_in_what_they_differ() {
        let scores = r#"{"rows":[{"write_steps":1,"exact_match":0.5},
            {"write_steps":2,"exact_match":0.25}]}"#;
        let figure = |runs: &[[&str; 2]]| {
            let runs = runs.iter().map(|overrides| {
                let mut run = run(overrides, "");
                run.eval = Some(serde_json::from_str(scores).unwrap());
                run
            });
            let report = Report::of(runs.collect());
            by_trained_and_evaluated(&report).unwrap().unwrap().svg.body
        };
        let [k1, k2] = ["memory.write_steps=1", "memory.write_steps=2"];
        let [short, long] = ["train.steps=10", "train.steps=20"];
        let texts = |svg: &str| -> Vec<String> {
            let lines = svg.lines().map(str::trim);
            lines
                .filter(|line| !line.starts_with('<'))
                .map(String::from)
                .collect()
        };
        let three = texts(&figure(&[[k1, short], [k2, short], [k2, long]]));
        assert_eq!(three[0], "GradMem");
        for row in ["1", "2, steps = 10", "2, steps = 20"] {
            assert!(three.iter().any(|text| text == row), "{row}: {three:?}");
        }
        let two = texts(&figure(&[[k1, short], [k2, long]]));
        assert!(!two.iter().any(|text| text.contains("steps =")), "{two:?}");
    }
}
