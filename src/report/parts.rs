//! Learning curves of a measure's parts: token accuracy by position, exact match by direction.

use super::Report;
use super::axis::Axis;
use super::curves::curve;
use super::figure::Figure;
use super::group::Group;
use super::plot::{Item, Panel, Plot};
use super::style::Style;
use crate::error::Error;
use crate::train::metrics::Measure;

/// The accuracy of each target's first scored tokens, a panel for each group whose targets have more than one.
///
/// # Errors
///
/// If the figure cannot be drawn, which is a bug in this crate.
pub fn by_position(report: &Report) -> Result<Option<Figure>, Error> {
    let caption =
        "Share of questions whose first, second, … scored target token is predicted right";
    let names = ["token-positions", "Accuracy by position in the target"];
    figure(report, Measure::POSITIONS, names, caption)
}

/// Exact match for each direction, a panel for each group whose contexts have more than one.
///
/// # Errors
///
/// If the figure cannot be drawn, which is a bug in this crate.
pub fn by_direction(report: &Report) -> Result<Option<Figure>, Error> {
    let caption = "Exact match on contexts whose pairs are written key first (forward) and value first (backward)";
    let names = ["directions", "Exact match by direction"];
    figure(report, Measure::DIRECTIONS, names, caption)
}

/// The parts of which there are several in a group, against the optimizer step.
fn figure(
    report: &Report,
    parts: &[Measure],
    [name, title]: [&str; 2],
    caption: &str,
) -> Result<Option<Figure>, Error> {
    let mut most = Vec::new();
    for group in &report.groups {
        let measured = measured(group, parts);
        if measured.len() > most.len() {
            most = measured;
        }
    }
    let styles: Vec<_> = (0..most.len())
        .map(|at| Style::ordered(at, most.len()))
        .collect();
    let mut panels = Vec::new();
    for group in &report.groups {
        if measured(group, parts).len() < 2 {
            continue;
        }
        let mut items = Vec::new();
        for (measure, style) in most.iter().zip(&styles) {
            for points in group.runs.iter().flat_map(|run| curve(run, *measure)) {
                items.extend(match points.len() {
                    0 => None,
                    1 => Some(Item::Points(points, *style, 3.0)),
                    _ => Some(Item::Line(points, *style, 1.3)),
                });
            }
        }
        let steps = group.runs.iter().flat_map(|run| &run.valid);
        panels.push(Panel {
            title: group.label(),
            x: Axis::from_zero("optimizer step", steps.map(|point| point.step as f64)),
            y: Axis::of_measure(parts[0], []),
            items,
        });
    }
    if panels.is_empty() {
        return Ok(None);
    }
    if let [panel] = &mut panels[..] {
        panel.title.clear();
    }
    for panel in &mut panels {
        panel.y.label = "share of questions (%)".into();
    }
    let legend = most.iter().zip(styles);
    Ok(Some(Figure {
        name: name.into(),
        title: title.into(),
        caption: format!("{caption}, on the validation set; one line for each seed."),
        svg: Plot {
            panels,
            legend: legend.map(|(m, style)| (m.name().into(), style)).collect(),
            symbols: Vec::new(),
        }
        .draw()?,
    }))
}

/// Those of the parts that a run of the group has measured.
fn measured(group: &Group, parts: &[Measure]) -> Vec<Measure> {
    let points = || group.runs.iter().flat_map(|run| &run.valid);
    let has = |measure: &Measure| points().any(|at| measure.in_values(&at.values).is_some());
    parts.iter().copied().filter(has).collect()
}

#[cfg(test)]
mod tests {
    use super::super::run::tests::run;
    use super::*;

    #[test]
    fn only_several_parts_have_a_figure() {
        let line = |step: usize, more: &str| {
            format!("{{\"step\":{step},\"split\":\"valid\",\"exact_match\":0.5{more}}}\n")
        };
        let log = |more: &str| line(1, more) + &line(2, more);
        let one = r#","token_accuracy_1":0.5,"exact_match_backward":0.5"#;
        let two = r#","token_accuracy_1":0.5,"token_accuracy_2":0.25,"exact_match_forward":0.5,"exact_match_backward":0"#;
        let figures = |logs: &[&str]| {
            let seeds = ["train.seed=1", "train.seed=2"];
            let runs = logs.iter().zip(seeds);
            let runs = runs.map(|(more, seed)| run(&[seed], &log(more)));
            let report = Report::of(runs.collect());
            let both = [by_position(&report), by_direction(&report)];
            both.map(|figure| figure.unwrap().map(|figure| figure.svg.body))
        };
        // A log may have no parts.
        for logs in [&[""][..], &[one], &["", one]] {
            assert!(figures(logs).iter().all(Option::is_none), "{logs:?}");
        }
        let [positions, directions] = figures(&["", two]);
        let (positions, directions) = (positions.unwrap(), directions.unwrap());
        assert!(positions.contains("token 2") && !positions.contains("token 3"));
        assert!(directions.contains("forward") && directions.contains("backward"));
    }
}
