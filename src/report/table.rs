//! Tables, as HTML and as Markdown.

use std::collections::BTreeSet;

use super::Report;
use super::context_size::floats_kept;
use super::format::{escape, format_measure, with_separators};
use super::group::Group;
use super::run::Run;
use crate::train::metrics::Measure;

/// Stands for a number that is not known.
const MISSING: &str = "–";
/// The share from which a task counts as learned.
const LEARNED: f64 = 0.9;

/// A table; the first column names the row.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Table {
    /// What it shows.
    pub title: String,
    /// How to read it.
    pub caption: String,
    /// Names of the columns.
    pub head: Vec<String>,
    /// The rows, as long as the head.
    pub rows: Vec<Vec<String>>,
}

impl Table {
    /// As Markdown, with the title in bold above it.
    pub fn markdown(&self) -> String {
        let line = |cells: &[String]| {
            let cells: Vec<_> = cells
                .iter()
                .map(|cell| cell.replace('|', "\\|").replace(['\r', '\n'], " "))
                .collect();
            format!("| {} |\n", cells.join(" | "))
        };
        let rule: Vec<_> = (0..self.head.len())
            .map(|at| if at == 0 { "---" } else { "---:" })
            .map(String::from)
            .collect();
        let rows: String = self.rows.iter().map(|row| line(row)).collect();
        format!(
            "{} {}\n\n{}{}{rows}",
            self.markdown_begin(),
            self.caption,
            line(&self.head),
            line(&rule)
        )
    }

    /// What the Markdown begins with.
    pub fn markdown_begin(&self) -> String {
        format!("**{}.**", self.title)
    }

    /// As HTML.
    pub fn html(&self) -> String {
        let row = |cells: &[String], tag: &str| {
            let cells = cells.iter().enumerate().map(|(at, cell)| match at {
                0 => format!("<th scope=\"{tag}\">{}</th>", escape(cell)),
                _ if tag == "col" => format!("<th scope=\"col\">{}</th>", escape(cell)),
                _ => format!("<td>{}</td>", escape(cell)),
            });
            format!("<tr>{}</tr>\n", cells.collect::<String>())
        };
        let rows: String = self.rows.iter().map(|cells| row(cells, "row")).collect();
        format!(
            "<div class=\"wide\"><table>\n<caption>{}</caption>\n<thead>{}</thead>\n<tbody>\n{rows}</tbody>\n\
             </table></div>\n",
            escape(&self.caption),
            row(&self.head, "col")
        )
    }
}

/// The results of each group.
pub fn results(report: &Report) -> Table {
    let measure = report.measure;
    let written = Measure::WriteAccuracy;
    let mut others = vec![
        Measure::ExactMatch,
        Measure::TokenAccuracy,
        written,
        Measure::ReadLoss,
    ];
    others.retain(|other| {
        let has = |run: &Run| run.value(*other, measure).is_some();
        let always = *other != Measure::WriteAccuracy;
        *other != measure && (always || report.runs().any(has))
    });
    let mut head = vec!["Group".into(), "Seeds".into(), measure.with_unit()];
    head.push("Each seed".into());
    head.extend(others.iter().map(|m| m.with_unit()));
    head.extend(["Steps".into(), "Floats kept".into()]);
    let row = |group: &Group| {
        let value = |measure: Measure, run| Run::value(run, measure, report.measure);
        let show = |measure: Measure| {
            let values: Vec<_> = group
                .runs
                .iter()
                .filter_map(|r| value(measure, r))
                .collect();
            group
                .mean(&values)
                .map(|mean| format_measure(measure, mean))
        };
        let each =
            group
                .runs
                .iter()
                .map(|run| match (value(measure, run), run.unfinished_stage()) {
                    (Some(value), None) => format_measure(measure, value),
                    // The value is from `gradmem eval`, on the run's own task.
                    (Some(value), Some(version)) => {
                        format!("{} (at {version})", format_measure(measure, value))
                    }
                    (None, Some(version)) => format!("at {version}"),
                    (None, None) => MISSING.into(),
                });
        let each: Vec<String> = each.collect();
        let known = |run: &Run| !run.valid.is_empty() || run.value(measure, measure).is_some();
        let evaluated = group.runs.iter().any(known);
        let seeds: BTreeSet<u64> = group.runs.iter().map(|r| r.config.train.seed).collect();
        let mut row = vec![group.label(), seeds.len().to_string()];
        row.extend(match evaluated {
            true => [show(measure).unwrap_or(MISSING.into()), each.join(" · ")],
            false => ["no evaluation yet".into(), MISSING.into()],
        });
        row.extend(others.iter().map(|m| show(*m).unwrap_or(MISSING.into())));
        row.push(span(group.runs.iter().map(|run| run.step)));
        let floats = group.config().and_then(floats_kept);
        row.push(floats.map_or(MISSING.into(), with_separators));
        row
    };
    Table {
        title: "Results".into(),
        caption: format!(
            "{} on the validation set at its best, in the mean over seeds and for each seed; the other \
             measures from the same evaluation. {}Steps: how far training came. Floats kept: numbers that \
             remain of one context when the queries come.",
            measure.name(),
            if report.runs().any(|run| run.unfinished_stage().is_some()) {
                "In brackets: the curriculum's easier version that a run has not left; its number is what \
                 gradmem eval found on the task itself. "
            } else {
                ""
            },
        ),
        head,
        rows: report.groups.iter().map(row).collect(),
    }
}

/// The steps each seed took to learn its task; none before the first evaluation.
pub fn steps(report: &Report) -> Option<Table> {
    let exact = match report.measure.is_share() {
        true => report.measure,
        false => Measure::ExactMatch,
    };
    if report.runs().all(|run| run.best(exact).is_none()) {
        return None;
    }
    let rows = report.groups.iter().map(|group| {
        let runs = group.runs.iter();
        let steps: Vec<_> = runs.map(|run| run.steps_to(exact, LEARNED)).collect();
        let each = group.runs.iter().zip(&steps).map(|(run, step)| match step {
            Some(step) => with_separators(*step),
            None if run.valid.is_empty() => MISSING.into(),
            None => format!("> {}", with_separators(run.step)),
        });
        let seeds = group.runs.iter();
        let seeds = seeds.map(|run| run.config.train.seed.to_string());
        vec![
            group.label(),
            format!("{} of {}", steps.iter().flatten().count(), steps.len()),
            each.collect::<Vec<_>>().join(" · "),
            seeds.collect::<Vec<_>>().join(", "),
        ]
    });
    let percent = (100.0 * LEARNED).round();
    let measure = exact.name().to_lowercase();
    Some(Table {
        title: format!("Steps to {percent} % {measure}"),
        caption: format!(
            "The first evaluation with {measure} of {percent} % or more; > n: not within the n steps \
             so far."
        ),
        head: ["Group", "Reached", "Steps of each seed", "The seeds"]
            .map(String::from)
            .into(),
        rows: rows.collect(),
    })
}

/// The last steps of runs, as a range.
fn span(steps: impl Iterator<Item = usize> + Clone) -> String {
    let (low, high) = (steps.clone().min(), steps.max());
    match (low.unwrap_or(0), high.unwrap_or(0)) {
        (low, high) if low == high => with_separators(low),
        (low, high) => format!("{}–{}", with_separators(low), with_separators(high)),
    }
}
