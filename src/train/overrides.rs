//! TOML settings: parsing, `key=value` overrides, and errors that name the key.

use std::collections::BTreeSet;
use std::path::Path;

use serde::de::DeserializeOwned;
use serde_json::Value as Json;

use crate::error::Error;

/// Parses TOML. Errors begin with `name` and the line.
pub(super) fn parse(text: &str, name: &str) -> Result<toml::Table, Error> {
    text.parse().map_err(|e: toml::de::Error| {
        let line = e.span().map_or(1, |span| {
            1 + text[..span.start.min(text.len())].matches('\n').count()
        });
        Error::Input(format!("{name}, line {line}: {}", one_line(e.message())))
    })
}

/// The same error, of the file that has the mistake.
pub(super) fn in_file(path: &Path, e: Error) -> Error {
    match e {
        Error::Config { .. } | Error::Input(_) => Error::file(path, e.to_string()),
        other => other,
    }
}

/// Sets one value of a table: `section.key=value`.
pub(super) fn apply(table: &mut toml::Table, text: &str) -> Result<(), Error> {
    let Some((key, value)) = text.split_once('=') else {
        return Err(Error::Input(format!(
            "override `{text}` is not KEY=VALUE (for example memory.write_steps=5)"
        )));
    };
    let (key, value) = (key.trim(), value.trim());
    let parsed = format!("value = {value}").parse::<toml::Table>();
    // A line break could begin another key.
    let parsed = parsed.ok().filter(|table| table.len() == 1);
    let value = match parsed.and_then(|mut table| table.remove("value")) {
        Some(value) => value,
        // A string needs no quotes.
        None => toml::Value::String(value.into()),
    };
    let mut parts: Vec<&str> = key.split('.').collect();
    let last = parts.pop().unwrap_or_default();
    let mut section = table;
    for part in parts {
        let entry = section
            .entry(part)
            .or_insert_with(|| toml::Value::Table(toml::Table::new()));
        let toml::Value::Table(inner) = entry else {
            return Err(Error::config(
                key,
                &value,
                format!("`{part}` is no section"),
            ));
        };
        section = inner;
    }
    section.insert(last.into(), value);
    Ok(())
}

/// Fails on the first key of `table` that is not in `known`. `path` is where the table is: "" or a section.
pub(super) fn check_keys(table: &toml::Table, known: &Json, path: &str) -> Result<(), Error> {
    for (key, value) in table {
        let full = joined(path, key);
        match (known.get(key), value) {
            (None, _) => {
                let names: Vec<_> = known
                    .as_object()
                    .map(|o| o.keys().map(String::as_str).collect())
                    .unwrap_or_default();
                let place = if path.is_empty() { "the file" } else { path };
                // What a section may have is chosen by one of its keys.
                let mut kind = ["task", "model_type"].iter();
                let kind = kind.find_map(|tag| Some((tag, known.get(tag)?.as_str()?)));
                let of_kind = kind.map_or(String::new(), |(tag, kind)| format!(" of {tag} {kind}"));
                let meant = nearest(key, &names);
                let meant = meant.map_or(String::new(), |it| format!(", did you mean `{it}`?"));
                return Err(Error::Input(format!(
                    "unknown key `{full}`{meant}: {place}{of_kind} has {}",
                    names.join(", ")
                )));
            }
            (Some(inner @ Json::Object(_)), toml::Value::Table(table)) => {
                check_keys(table, inner, &full)?;
            }
            (Some(Json::Object(_)), value) => {
                return Err(Error::config(full, value, "must be a section"));
            }
            _ => {}
        }
    }
    Ok(())
}

/// The name that a key may be misspelt from.
fn nearest<'a>(key: &str, names: &[&'a str]) -> Option<&'a str> {
    let near = names.iter().map(|name| (edits(key, name), *name)).min();
    let most = (key.chars().count() / 3).max(1);
    near.filter(|(edits, _)| *edits <= most)
        .map(|(_, name)| name)
}

/// How many characters are inserted, removed or replaced between two words (Levenshtein).
fn edits(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut before = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.chars().enumerate() {
            let replaced = before + usize::from(x != y);
            before = row[j + 1];
            row[j + 1] = replaced.min(before + 1).min(row[j] + 1);
        }
    }
    row.pop().unwrap_or(0)
}

/// The first value of the wrong type in a table that is no `T`: each value of each section is tried alone,
/// with those of the section's `tags`, keys that choose what the others may be.
pub(super) fn wrong_type<T: DeserializeOwned>(table: &toml::Table, tags: &[&str]) -> Option<Error> {
    let sections = table
        .iter()
        .filter_map(|(name, v)| Some((name, v.as_table()?)));
    for (name, section) in sections {
        for (key, value) in section {
            let alone = toml::Table::from_iter(
                tags.iter()
                    .filter_map(|tag| Some((tag.to_string(), section.get(*tag)?.clone())))
                    .chain([(key.clone(), value.clone())]),
            );
            let alone = toml::Table::from_iter([(name.clone(), toml::Value::Table(alone))]);
            if let Err(e) = toml::Value::Table(alone).try_into::<T>() {
                let problem = one_line(e.message());
                return Some(Error::config(joined(name, key), value, problem));
            }
        }
    }
    None
}

/// A key with two values that differ.
pub(super) type Difference = (String, String, String);

/// The keys whose values differ, with both values.
pub(super) fn differences(a: &Json, b: &Json) -> Vec<Difference> {
    let mut found = Vec::new();
    compare("", a, b, &mut found);
    found
}

fn compare(path: &str, a: &Json, b: &Json, found: &mut Vec<Difference>) {
    match (a, b) {
        (Json::Object(a), Json::Object(b)) => {
            let keys: BTreeSet<_> = a.keys().chain(b.keys()).collect();
            for key in keys {
                let null = Json::Null;
                let (a, b) = (a.get(key).unwrap_or(&null), b.get(key).unwrap_or(&null));
                compare(&joined(path, key), a, b, found);
            }
        }
        _ if a != b => found.push((path.into(), a.to_string(), b.to_string())),
        _ => {}
    }
}

/// A key with the section it is in.
fn joined(path: &str, key: &str) -> String {
    match path {
        "" => key.into(),
        _ => format!("{path}.{key}"),
    }
}

/// A message without line breaks.
pub(super) fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edits_are_counted() {
        for (a, b, expected) in [
            ("", "abc", 3),
            ("step", "steps", 1),
            ("stpes", "steps", 2),
            ("kitten", "sitting", 3),
            ("α", "lr", 2),
        ] {
            assert_eq!([edits(a, b), edits(b, a)], [expected; 2], "{a} {b}");
        }
    }
}
