//! Parsing of a line.

use serde::Deserialize;
use serde_json::Value;

use crate::data::{Example, Question, json};

/// A line's example and id.
pub(super) struct ParsedLine {
    pub(super) example: Example,
    /// As JSON, so that `7` and `"7"` are different.
    pub(super) id: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    context: String,
    query: Option<String>,
    target: Option<String>,
    answers: Option<Vec<String>>,
    questions: Option<Vec<QuestionRecord>>,
    id: Option<Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct QuestionRecord {
    query: String,
    target: String,
    answers: Option<Vec<String>>,
}

/// Parses a line; `number` is its line number.
///
/// # Errors
///
/// The line, the field and the problem.
pub(super) fn parse(line: &str, number: usize) -> Result<ParsedLine, String> {
    let error = |field: &str, what: &str| format!("line {number}, `{field}`: {what}");
    // serde would accept an array of the fields in order.
    if !line.trim_start().starts_with('{') {
        return Err(format!(
            "line {number}: must be an object: {{\"context\": …, \"query\": …, \"target\": …}}"
        ));
    }
    let record: Record = json::parse(line, number)?;
    if record.context.is_empty() {
        return Err(error("context", "is empty: there is nothing to write"));
    }
    let id = match record.id {
        None => None,
        Some(id) if id.is_string() || id.is_u64() || id.is_i64() => Some(id.to_string()),
        Some(_) => return Err(error("id", "must be a string or an integer")),
    };
    let asked = match (record.questions, record.query, record.target) {
        (None, Some(query), Some(target)) => vec![QuestionRecord {
            query,
            target,
            answers: record.answers,
        }],
        (Some(asked), None, None) if record.answers.is_none() => match asked.is_empty() {
            true => return Err(error("questions", "is empty: a context needs at least one")),
            false => asked,
        },
        (Some(_), ..) => {
            let what = "replaces `query`, `target` and `answers`: give one or the other";
            return Err(error("questions", what));
        }
        (None, None, _) => return Err(error("query", "is missing (or `questions`, an array)")),
        (None, _, None) => return Err(error("target", "is missing")),
    };
    let mut questions = Vec::with_capacity(asked.len());
    for QuestionRecord {
        query,
        target,
        answers,
    } in asked
    {
        if target.is_empty() {
            return Err(error("target", "is empty: there is nothing to predict"));
        }
        let mut answers = answers.unwrap_or_default();
        if let Some(at) = answers.iter().position(|answer| answer.trim().is_empty()) {
            let what = "is empty: an answer of nothing would be right";
            return Err(error(&format!("answers[{at}]"), what));
        }
        if !answers.is_empty() && !answers.contains(&target) {
            answers.insert(0, target.clone());
        }
        questions.push(Question {
            query,
            target,
            answers,
        });
    }
    let context = record.context;
    Ok(ParsedLine {
        example: Example::new(context, questions),
        id,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_one_question_or_several() {
        let one = parse(
            r#" {"id": "a", "context": "c", "query": "", "target": "t", "answers": ["u", "v"]} "#,
            1,
        );
        let one = one.ok().unwrap();
        assert_eq!(one.id.unwrap(), "\"a\"");
        assert_eq!(one.example.context, "c");
        assert_eq!(one.example.questions[0].answers, ["t", "u", "v"]);
        let two = r#"{"context": "c", "id": null, "questions": [
            {"query": "p", "target": "x"}, {"query": "q", "target": "y", "answers": ["y"]}]}"#;
        let two = parse(two, 1).ok().unwrap();
        assert!(two.id.is_none());
        let found: Vec<_> = two.example.questions;
        assert_eq!((found[0].target.as_str(), found[0].answers.len()), ("x", 0));
        assert_eq!((found[1].query.as_str(), found[1].answers.len()), ("q", 1));
    }

    #[test]
    fn errors_name_the_line_and_the_field() {
        for (line, words) in [
            ("[1]", "line 9: must be an object"),
            ("null", "line 9: must be an object"),
            (
                r#"{"query": "q", "target": "t"}"#,
                "missing field `context`",
            ),
            (r#"{"context": "c", "target": "t"}"#, "`query`: is missing"),
            (r#"{"context": "c", "query": "q"}"#, "`target`: is missing"),
            (
                r#"{"context": "", "query": "q", "target": "t"}"#,
                "`context`: is empty",
            ),
            (
                r#"{"context": "c", "query": "q", "target": ""}"#,
                "`target`: is empty",
            ),
            (
                r#"{"context": "c", "query": "q", "target": "t", "id": 1.5}"#,
                "`id`: must be",
            ),
            (
                r#"{"context": "c", "query": "q", "target": 3}"#,
                "`target`: invalid type",
            ),
            (
                r#"{"context": "c", "query": "q", "target": "t", "answers": "t"}"#,
                "`answers`",
            ),
            (
                r#"{"context": "c", "query": "q", "target": "t", "answers": ["t", 1]}"#,
                "`answers[1]`",
            ),
            (
                r#"{"context": "c", "query": "q", "target": "t", "answers": ["t", " "]}"#,
                "`answers[1]`: is empty",
            ),
            (
                r#"{"context": "c", "questions": []}"#,
                "`questions`: is empty",
            ),
            (
                r#"{"context": "c", "questions": [{"query": "q"}]}"#,
                "`questions[0]`: missing field `target`",
            ),
            (
                r#"{"context": "c", "questions": [{"query": "q", "target": "t", "id": 1}]}"#,
                "unknown field `id`",
            ),
            (
                r#"{"context": "c", "query": "q", "questions": []}"#,
                "`questions`: replaces",
            ),
            (
                r#"{"context": "c", "context": "c"}"#,
                "duplicate field `context`",
            ),
            (
                r#"{"context": "c", "qeury": "q"}"#,
                "expected one of `context`, `query`, `target`",
            ),
        ] {
            let error = parse(line, 9).err().unwrap();
            assert!(
                error.starts_with("line 9") && error.contains(words),
                "{error}"
            );
        }
    }
}
