//! The HTML page: one file without scripts and without external resources.

use super::Report;
use super::figure::Figure;
use super::format::escape;
use super::group::Group;
use super::run::Run;
use super::table::Table;
use crate::error::Error;
use crate::train::evaluation::Shown;

/// The most right and the most wrong examples that are shown of a run.
const MAX_EXAMPLES: usize = 4;
/// The most characters of a context that are shown.
const MAX_CONTEXT: usize = 400;

const STYLE: &str = include_str!("page.css");

/// Where a page says what it is.
pub const TITLE: &str = "<title>GradMem: training runs</title>";

/// The whole page.
///
/// # Errors
///
/// Settings that cannot be written as TOML.
pub fn html(report: &Report, figures: &[Figure]) -> Result<String, Error> {
    let tables = report.tables();
    let mut tables = tables.iter();
    let mut body = String::new();
    body.extend(tables.next().map(section));
    body.extend(figures.iter().map(figure));
    body.extend(tables.map(section));
    body += &examples(report);
    body += &settings(report)?;
    Ok(format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         {TITLE}\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n\
         <h1>GradMem: training runs</h1>\n<p class=\"lead\">{}</p>\n{body}</main>\n</body>\n</html>\n",
        introduction(report)
    ))
}

/// The introduction, as HTML inside a paragraph.
fn introduction(report: &Report) -> String {
    let (runs, groups) = (report.runs().count(), report.groups.len());
    let count = |number: usize, one: &str, more: &str| match number {
        1 => format!("1 {one}"),
        n => format!("{n} {more}"),
    };
    let evaluated = report.runs().filter(|run| run.eval.is_some()).count();
    format!(
        "{} in {}; runs that differ only in their seed are one group. A context is stored, then removed, and \
         questions about it are answered from what was stored: GradMem writes a few memory vectors by K \
         gradient steps, RMT by forward passes, in-context keeps the whole context. Training curves and \
         tables are from the evaluations on held-out contexts during training; what depends on K in \
         evaluation, and the examples, are from <code>gradmem eval</code> ({}).",
        count(runs, "run", "runs"),
        count(groups, "group", "groups"),
        match evaluated {
            0 => "no run has been evaluated by it".into(),
            n => count(n, "run evaluated", "runs evaluated"),
        }
    )
}

fn section(table: &Table) -> String {
    let title = escape(&table.title);
    format!("<section>\n<h2>{title}</h2>\n{}</section>\n", table.html())
}

fn figure(figure: &Figure) -> String {
    let (title, caption) = (escape(&figure.title), escape(&figure.caption));
    let description = format!("{}. {}", figure.title, figure.caption);
    format!(
        "<section>\n<h2>{title}</h2>\n<figure id=\"{}\">\n{}\n<figcaption>{caption}</figcaption>\n\
         </figure>\n</section>\n",
        figure.name,
        figure.svg.element(&figure.title, &description),
    )
}

/// Some questions and answers of each group, from the first of its runs that has any.
fn examples(report: &Report) -> String {
    let groups = report.groups.iter();
    let shown: String = groups
        .filter_map(|group| {
            let has = |run: &&Run| run.eval.as_ref().is_some_and(|e| !e.examples.is_empty());
            let run = group.runs.iter().find(has)?;
            let examples = &run.eval.as_ref()?.examples;
            let of = |right: bool| examples.iter().filter(move |e| e.right == right);
            let rows = of(true).take(MAX_EXAMPLES).chain(of(false).take(MAX_EXAMPLES));
            Some(format!(
                "<details>\n<summary>{} <span class=\"quiet\">(run {})</span></summary>\n\
                 <div class=\"wide\"><table class=\"examples\">\n<thead><tr><th scope=\"col\">Right?</th>\
                 <th scope=\"col\">Context</th><th scope=\"col\">Query</th><th scope=\"col\">Target</th>\
                 <th scope=\"col\">Answer</th></tr></thead>\n<tbody>\n{}</tbody>\n</table></div>\n</details>\n",
                escape(&group.label()),
                escape(&run.name),
                rows.map(example).collect::<String>()
            ))
        })
        .collect();
    match shown.as_str() {
        "" => shown,
        _ => format!("<section>\n<h2>Examples, right and wrong</h2>\n{shown}</section>\n"),
    }
}

fn example(example: &Shown) -> String {
    let mut context: String = example.context.chars().take(MAX_CONTEXT).collect();
    if context.len() < example.context.len() {
        context.push('…');
    }
    let (class, word) = match example.right {
        true => ("right", "✓ yes"),
        false => ("wrong", "✗ no"),
    };
    let cells = [&context, &example.query, &example.target, &example.answer];
    let cells = cells.map(|cell| format!("<td><code>{}</code></td>", escape(cell)));
    format!(
        "<tr class=\"{class}\"><td>{word}</td>{}</tr>\n",
        cells.concat()
    )
}

/// The settings that distinguish each group, and all its settings.
fn settings(report: &Report) -> Result<String, Error> {
    let groups = report.groups.iter().map(group_settings);
    let groups = groups.collect::<Result<String, Error>>()?;
    Ok(format!(
        "<section>\n<h2>Settings</h2>\n<p class=\"quiet\">The settings that tell a group apart, its runs, and \
         all settings of its first run.</p>\n{groups}</section>\n"
    ))
}

fn group_settings(group: &Group) -> Result<String, Error> {
    let parts = group.differences.iter().map(|part| {
        let value = super::settings::format_value(&part.value);
        format!("<code>{} = {}</code>", escape(&part.key), escape(&value))
    });
    let parts: Vec<_> = parts.collect();
    let names: Vec<_> = group.runs.iter().map(|run| escape(&run.name)).collect();
    let toml = group.config().map(|config| config.to_toml()).transpose()?;
    Ok(format!(
        "<details>\n<summary>{}</summary>\n<p>{}</p>\n<p>Runs: {}</p>\n<pre>{}</pre>\n</details>\n",
        escape(&group.label()),
        parts.join(" "),
        names.join(", "),
        escape(&toml.unwrap_or_default())
    ))
}
