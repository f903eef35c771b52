//! Comparison of groups: measures against a setting that differs between them, such as the size of the data,
//! of the memory, or of the model.

use std::collections::BTreeSet;

use super::Report;
use super::axis::Axis;
use super::context_size::context_tokens;
use super::figure::{Figure, palette};
use super::group::{Group, is_data};
use super::plot::{Item, Panel, Plot};
use super::run::Run;
use super::settings::{self, Settings};
use super::style::Palette;
use crate::error::Error;
use crate::train::metrics::Measure;

/// The settings that results can be plotted against: numbers that differ between groups.
pub fn settings_to_compare(report: &Report) -> Vec<String> {
    let differences = report.groups.iter().flat_map(|group| &group.differences);
    let keys: BTreeSet<_> = differences
        .filter(|setting| settings::is_axis(&setting.key) && setting.value.is_number())
        .map(|setting| (settings::rank(&setting.key), setting.key.clone()))
        .collect();
    keys.into_iter().map(|(_, key)| key).collect()
}

/// Measures against a setting: a point for each seed, a line through the means. With several kinds of data,
/// each measure has its own figure, with a panel for each kind.
///
/// # Errors
///
/// If a figure cannot be drawn, which is a bug in this crate.
pub fn by_setting(report: &Report, key: &str) -> Result<Vec<Figure>, Error> {
    let measures = measures(report);
    let together = match kinds(report, key).len() {
        1 => vec![measures],
        _ => measures.into_iter().map(|measure| vec![measure]).collect(),
    };
    let figures = together.iter();
    let figures = figures.filter_map(|measures| figure_of(report, key, measures).transpose());
    figures.collect()
}

fn figure_of(report: &Report, key: &str, measures: &[Measure]) -> Result<Option<Figure>, Error> {
    let name = |group: &Group| group.label_without(|other| other == key || is_data(other));
    let palette = palette(report, name);
    let mut drawn = Vec::new();
    let mut panels = Vec::new();
    for measure in measures {
        for (title, groups) in kinds(report, key) {
            let lines = lines(groups.into_iter(), key, *measure, report, name);
            if lines.iter().all(|line| line.means.len() < 2) {
                continue;
            }
            drawn.extend(lines.iter().map(|line| line.name.clone()));
            panels.push(panel(title, &lines, &palette, key, *measure));
        }
    }
    let (Some(first), false) = (measures.first(), panels.is_empty()) else {
        return Ok(None);
    };
    let dashes = |key: &str| key.replace(['.', '_'], "-");
    let suffix = match *first == report.measure {
        true => String::new(),
        false => format!("-{}", dashes(first.key())),
    };
    let mut names = first.name().to_string();
    for measure in &measures[1..] {
        names += &format!(" and {}", measure.name().to_lowercase());
    }
    Ok(Some(Figure {
        name: format!("by-{}{suffix}", dashes(key)),
        caption: format!(
            "One mark for each seed, a line through the means where all seeds have a value; values where {} was best.{}",
            report.measure.name().to_lowercase(),
            context_lengths(report, key)
        ),
        title: format!("{names} against {}", settings::axis_label(key)),
        svg: Plot {
            panels,
            legend: palette.legend(&drawn),
            symbols: Vec::new(),
        }
        .draw()?,
    }))
}

/// The groups of each kind of data, whatever the setting is, with the shortest of their names: those differ in what else is told of
/// each size.
fn kinds<'a>(report: &'a Report, key: &str) -> Vec<(String, Vec<&'a Group>)> {
    let mut kinds: Vec<(Settings, String, Vec<&Group>)> = Vec::new();
    for group in &report.groups {
        let data = group.settings_without(|other| !is_data(other) || other == key);
        let title = group.data_label(|other| other == key);
        match kinds.iter_mut().find(|(known, ..)| *known == data) {
            Some((_, shortest, groups)) => {
                if title.len() < shortest.len() {
                    *shortest = title;
                }
                groups.push(group);
            }
            None => kinds.push((data, title, vec![group])),
        }
    }
    let kinds = kinds.into_iter();
    kinds.map(|(_, title, groups)| (title, groups)).collect()
}

fn panel(title: String, lines: &[Line], palette: &Palette, key: &str, measure: Measure) -> Panel {
    let all_seeds = lines.iter().flat_map(|line| &line.seeds);
    let styled = lines
        .iter()
        .filter_map(|line| Some((line, palette.get(&line.name)?)));
    let means = styled
        .clone()
        .map(|(line, style)| Item::Line(line.means.clone(), style, 2.0));
    let seeds = styled.map(|(line, style)| Item::Points(line.seeds.clone(), style, 3.5));
    Panel {
        title,
        x: Axis::at_values(
            settings::axis_label(key),
            all_seeds.clone().map(|point| point.0),
        ),
        y: Axis::of_measure(measure, all_seeds.map(|point| point.1)),
        items: means.chain(seeds).collect(),
    }
}

/// The measures that are plotted: the report's own, and WRITE's or READ's accuracy by token unless that is the
/// same for every run.
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

/// A line of groups that differ in one setting only, and in others of the data.
struct Line {
    name: String,
    /// The settings that all of them have.
    common: Settings,
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
        let Some(x) = group.number(key).filter(|_| !values.is_empty()) else {
            continue;
        };
        let common = group.settings_without(|other| other == key || is_data(other));
        let name = name(group);
        let is_same = |line: &Line| line.name == name && line.common == common;
        let at = lines.iter().position(is_same);
        let at = at.unwrap_or_else(|| {
            lines.push(Line {
                name,
                common,
                means: Vec::new(),
                seeds: Vec::new(),
            });
            lines.len() - 1
        });
        let seeds = values.iter().map(|value| (x, *value));
        lines[at].seeds.extend(seeds);
        let mean = group.mean(&values);
        lines[at].means.extend(mean.map(|mean| (x, mean)));
    }
    for line in &mut lines {
        line.means.sort_by(|a, b| a.0.total_cmp(&b.0));
    }
    lines
}

/// The lengths of contexts in tokens, for the caption, if the setting is a number of pairs.
fn context_lengths(report: &Report, key: &str) -> String {
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
