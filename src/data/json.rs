//! JSON with errors that name the line, the column and the path of the value.

use serde::de::DeserializeOwned;
use serde_json::error::Category;

/// Longest message in characters: a message repeats the value it is about, which may be long.
const MAX_MESSAGE: usize = 300;

/// Parses a value from `text`, whose first line is line `first_line` of its file.
///
/// # Errors
///
/// The place and the problem, ``line 3, column 14, `data[0].title`: missing field …``. The caller adds the
/// name of the file.
pub(crate) fn parse<T: DeserializeOwned>(text: &str, first_line: usize) -> Result<T, String> {
    serde_json::from_str(text).map_err(|e| {
        let end = format!(" at line {} column {}", e.line(), e.column());
        let message = e.to_string();
        let message = message.strip_suffix(&end).unwrap_or(&message);
        let mut place = format!(
            "line {}, column {}",
            e.line().saturating_sub(1) + first_line,
            e.column()
        );
        if e.classify() == Category::Data {
            let path = path_at(&text.as_bytes()[..offset(text, e.line(), e.column())]);
            if !path.is_empty() {
                place = format!("{place}, `{path}`");
            }
        }
        format!("{place}: {}", shorten(message))
    })
}

/// The text, truncated if it is long.
pub(crate) fn shorten(text: &str) -> String {
    match text.char_indices().nth(MAX_MESSAGE) {
        Some((at, _)) => format!("{} …", &text[..at]),
        None => text.into(),
    }
}

/// The byte offset of a line and column as `serde_json` counts them.
fn offset(text: &str, line: usize, column: usize) -> usize {
    let before = text.split_inclusive('\n').take(line.saturating_sub(1));
    let start: usize = before.map(str::len).sum();
    (start + column).min(text.len())
}

/// An array or object that contains a value.
enum Container {
    /// An array, and the index in it.
    Array(usize),
    /// An object, and the key in it; false while the key is still to be read.
    Object(String, bool),
}

/// The path of the value at which reading stopped.
fn path_at(read: &[u8]) -> String {
    let mut levels: Vec<Container> = Vec::new();
    let mut at = 0;
    while at < read.len() {
        let byte = read[at];
        at += 1;
        match (byte, levels.last_mut()) {
            (b'"', level) => {
                let start = at;
                while at < read.len() && read[at] != b'"' {
                    at += if read[at] == b'\\' { 2 } else { 1 };
                }
                let end = at.min(read.len());
                if let Some(Container::Object(key, false)) = level {
                    *key = String::from_utf8_lossy(&read[start..end]).into_owned();
                }
                at += 1;
            }
            (b'[', _) => levels.push(Container::Array(0)),
            (b'{', _) => levels.push(Container::Object(String::new(), false)),
            (b']' | b'}', _) => {
                levels.pop();
            }
            (b':', Some(Container::Object(_, value))) => *value = true,
            (b',', Some(Container::Object(_, value))) => *value = false,
            (b',', Some(Container::Array(index))) => *index += 1,
            _ => {}
        }
    }
    let mut path = String::new();
    for level in levels {
        match level {
            Container::Array(index) => path += &format!("[{index}]"),
            Container::Object(key, _) if key.is_empty() => {}
            Container::Object(key, _) if path.is_empty() => path = key,
            Container::Object(key, _) => path += &format!(".{key}"),
        }
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, Deserialize)]
    struct Outer {
        list: Vec<Inner>,
    }

    #[derive(Debug, Deserialize)]
    struct Inner {
        name: String,
        count: usize,
    }

    fn problem(text: &str) -> String {
        parse::<Outer>(text, 5).unwrap_err()
    }

    #[test]
    fn errors_name_line_column_and_path() {
        let good = r#"{"name": "a, [\"{", "count": 1}"#;
        let read: Outer = parse(&format!(r#"{{"list": [{good}]}}"#), 1).unwrap();
        assert_eq!(
            (read.list[0].name.as_str(), read.list[0].count),
            ("a, [\"{", 1)
        );
        for (bad, path, what) in [
            (r#"{"name": "b"}"#, "list[1]", "missing field `count`"),
            (
                r#"{"name": "b", "count": "2"}"#,
                "list[1].count",
                "string \"2\"",
            ),
            (
                r#"{"name": {}, "count": 2}"#,
                "list[1].name",
                "invalid type: map",
            ),
            (r#"{"name": "b", "count": -2}"#, "list[1].count", "`-2`"),
            (r#""b""#, "list[1]", "invalid type: string"),
        ] {
            let text = format!("{{\"list\":\n[{good},\n{bad}]}}");
            let error = problem(&text);
            assert!(error.starts_with("line 7, column "), "{error}");
            assert!(error.contains(&format!("`{path}`")), "{error}");
            assert!(error.contains(what), "{error}");
        }
        assert!(problem("{}").starts_with("line 5, column 2: missing field `list`"));
        let broken = problem("{\"list\": [\n}");
        assert!(broken.starts_with("line 6, column 1: "), "{broken}");
        assert!(problem("{\"list\": [").contains("EOF"));
    }

    #[test]
    fn long_values_are_truncated_in_messages() {
        let error = problem(&format!(r#"{{"list": "{}"}}"#, "é".repeat(5000)));
        assert!(
            error.chars().count() < 400 && error.ends_with('…'),
            "{error}"
        );
    }
}
