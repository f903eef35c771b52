//! Measures against a setting that differs between groups: the size of the data, of the memory, of the
//! model.

use std::collections::BTreeSet;

use super::Report;
use super::axis::Axis;
use super::figures::{Figure, palette, panels_of};
use super::floats::context_tokens;
use super::group::{Group, is_data};
use super::look::Palette;
use super::plot::{Item, Panel, Plot};
use super::run::Run;
use super::settings;
use super::text::mean;
use crate::error::Error;
use crate::train::metrics::Measure;

/// The settings that results can be plotted against: numbers that tell groups apart.
pub fn axes(report: &Report) -> Vec<String> {
    let parts = report.groups.iter().flat_map(|group| &group.parts);
    let keys: BTreeSet<_> = parts
        .filter(|part| settings::is_axis(&part.key) && part.value.is_number())
        .map(|part| (settings::rank(&part.key), part.key.clone()))
        .collect();
    keys.into_iter().map(|(_, key)| key).collect()
}

/// Measures against a setting: a point for each seed, a line through the means. Where there are several
/// sorts of data, each measure has a figure of its own, with a panel for each sort.
///
/// # Errors
///
/// If one cannot be drawn, which is a fault of this crate.
pub fn setting(report: &Report, key: &str) -> Result<Vec<Figure>, Error> {
    let data = |group: &Group| group.data_label(|part| part == key);
    let sorts = panels_of(report, data);
    let measures = measures(report);
    let together = match sorts.len() {
        1 => vec![measures],
        _ => measures.into_iter().map(|measure| vec![measure]).collect(),
    };
    let figures = together.iter();
    let figures = figures.filter_map(|measures| some_against(report, key, measures).transpose());
    figures.collect()
}

fn some_against(report: &Report, key: &str, measures: &[Measure]) -> Result<Option<Figure>, Error> {
    let name = |group: &Group| group.label_without(|part| part == key || is_data(part));
    let data = |group: &Group| group.data_label(|part| part == key);
    let palette = palette(report, name);
    let mut shown = Vec::new();
    let mut panels = Vec::new();
    for measure in measures {
        for sort in panels_of(report, data) {
            let groups = report.groups.iter().filter(|group| data(group) == sort);
            let lines = lines(groups, key, *measure, report, name);
            if lines.iter().all(|line| line.means.len() < 2) {
                continue;
            }
            shown.extend(lines.iter().map(|line| line.name.clone()));
            panels.push(panel(sort, &lines, &palette, key, *measure));
        }
    }
    let (Some(first), false) = (measures.first(), panels.is_empty()) else {
        return Ok(None);
    };
    let dashes = |key: &str| key.replace(['.', '_'], "-");
    let own = match *first == report.measure {
        true => String::new(),
        false => format!("-{}", dashes(first.key())),
    };
    let mut names = first.name().to_string();
    for measure in &measures[1..] {
        names += &format!(" and {}", measure.name().to_lowercase());
    }
    Ok(Some(Figure {
        name: format!("by-{}{own}", dashes(key)),
        caption: format!(
            "One mark for each seed, a line through the means; values where {} was best.{}",
            report.measure.name().to_lowercase(),
            lengths(report, key)
        ),
        title: format!("{names} against {}", settings::axis(key)),
        svg: Plot {
            panels,
            legend: palette.legend(&shown),
            signs: Vec::new(),
        }
        .draw()?,
    }))
}

fn panel(title: String, lines: &[Line], palette: &Palette, key: &str, measure: Measure) -> Panel {
    let means = lines.iter().flat_map(|line| &line.means);
    let seeds = lines.iter().flat_map(|line| &line.seeds);
    let looks = lines
        .iter()
        .filter_map(|line| Some((line, palette.get(&line.name)?)));
    let through = looks
        .clone()
        .map(|(line, look)| Item::Line(line.means.clone(), look, 2.0));
    let points = looks.map(|(line, look)| Item::Points(line.seeds.clone(), look, 3.5));
    Panel {
        title,
        x: Axis::at(settings::axis(key), means.map(|point| point.0)),
        y: Axis::of(measure, seeds.map(|point| point.1)),
        items: through.chain(points).collect(),
    }
}

/// What is plotted against settings: what runs are compared by, and how much of the context or the answer
/// is right token by token, unless that is the same.
fn measures(report: &Report) -> Vec<Measure> {
    let first = report.measure;
    let written = Measure::WriteAccuracy;
    let has = |run: &Run| run.value(written, first).is_some();
    let second = match report.runs().any(has) {
        true => written,
        false => Measure::TokenAccuracy,
    };
    let same = |run: &Run| run.value(second, first) == run.value(first, first);
    match report.runs().all(same) {
        true => vec![first],
        false => vec![first, second],
    }
}

/// Groups that differ in one setting.
struct Line {
    name: String,
    /// A point for each value of the setting.
    means: Vec<(f64, f64)>,
    /// A point for each run.
    seeds: Vec<(f64, f64)>,
}

fn lines<'a>(
    groups: impl Iterator<Item = &'a Group>,
    key: &str,
    measure: Measure,
    report: &Report,
    name: impl Fn(&Group) -> String,
) -> Vec<Line> {
    let mut lines: Vec<Line> = Vec::new();
    for group in groups {
        let runs = group.runs.iter();
        let values: Vec<f64> = runs
            .filter_map(|run| run.value(measure, report.measure))
            .collect();
        let (Some(x), Some(mean)) = (group.number(key), mean(&values)) else {
            continue;
        };
        let name = name(group);
        let at = lines.iter().position(|line| line.name == name);
        let at = at.unwrap_or_else(|| {
            lines.push(Line {
                name,
                means: Vec::new(),
                seeds: Vec::new(),
            });
            lines.len() - 1
        });
        let seeds = values.iter().map(|value| (x, *value));
        lines[at].seeds.extend(seeds);
        lines[at].means.push((x, mean));
    }
    for line in &mut lines {
        line.means.sort_by(|a, b| a.0.total_cmp(&b.0));
    }
    lines
}

/// How long contexts are, where the task's sizes are not lengths themselves.
fn lengths(report: &Report, key: &str) -> String {
    if key != "data.pairs" {
        return String::new();
    }
    let groups = report.groups.iter();
    let lengths = groups.filter_map(|group| {
        let pairs = group.settings.get(key)?.as_u64()?;
        Some((pairs, context_tokens(group.config()?)?))
    });
    let lengths: BTreeSet<_> = lengths.collect();
    let words = lengths
        .iter()
        .map(|(pairs, tokens)| format!("N = {pairs}: {tokens}"));
    let words: Vec<_> = words.collect();
    format!(" Tokens of a context: {}.", words.join(", "))
}
