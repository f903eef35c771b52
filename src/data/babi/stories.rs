//! The two published formats of bAbI: BABILong's JSON and the original text.

use std::path::Path;

use serde::Deserialize;

use crate::data::source::{read_text, single_spaces};
use crate::data::{Example, Question, json};
use crate::error::Error;

/// Where to get the files.
const PUBLISHED: &str = "bAbI is published as tasks_1-20_v1-2.tar.gz with \"bAbI tasks\" by Facebook \
                         research, and as BABILong on Hugging Face (RMT-team/babilong)";

/// A record of BABILong.
#[derive(Deserialize)]
struct Record {
    input: String,
    question: String,
    target: String,
}

/// Reads the stories of a file, each as a list of examples. The format follows from the first character:
///
/// - BABILong's JSON: an array of records `input`, `question`, `target`, or one record per line. Every record is
///   a story.
/// - The original text: a story has several questions. Each becomes an example whose context is all statements
///   before it, so that a context has one question as in BABILong.
pub(super) fn read(path: &Path, key: &str) -> Result<Vec<Vec<Example>>, Error> {
    let text = read_text(path, key, PUBLISHED)?;
    let stories = match text.trim_start().chars().next() {
        Some('[') => array(&text),
        Some('{') => lines(&text),
        _ => original(&text),
    };
    stories.map_err(|problem| Error::file(path, problem))
}

fn array(text: &str) -> Result<Vec<Vec<Example>>, String> {
    let records: Vec<Record> = json::parse(text, 1)?;
    if records.is_empty() {
        return Err("is an array without records".into());
    }
    let records = records.into_iter().enumerate();
    records
        .map(|(at, record)| record.story(&format!("record [{at}]")))
        .collect()
}

fn lines(text: &str) -> Result<Vec<Vec<Example>>, String> {
    let lines = text.lines().enumerate();
    lines
        .filter(|(_, line)| !line.trim().is_empty())
        .map(|(at, line)| {
            let record: Record = json::parse(line, at + 1)?;
            record.story(&format!("line {}", at + 1))
        })
        .collect()
}

impl Record {
    fn story(self, place: &str) -> Result<Vec<Example>, String> {
        // Published records have spaces around them, and line breaks in them.
        let fields = [
            ("input", &self.input),
            ("question", &self.question),
            ("target", &self.target),
        ];
        let fields = fields.map(|(field, text)| (field, single_spaces(text)));
        if let Some((field, _)) = fields.iter().find(|(_, text)| text.is_empty()) {
            return Err(format!("{place}: `{field}` is empty"));
        }
        let [story, question, answer] = fields.each_ref().map(|(_, text)| text);
        Ok(vec![example(story, question, answer)])
    }
}

fn original(text: &str) -> Result<Vec<Vec<Example>>, String> {
    let mut stories: Vec<Vec<Example>> = Vec::new();
    let mut statements = String::new();
    let mut last = 0;
    for (at, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() {
            continue;
        }
        let problem = |what: &str| Err(format!("line {}: {what}", at + 1));
        let numbered = line.split_once(' ');
        let numbered = numbered.and_then(|(n, rest)| Some((n.parse::<usize>().ok()?, rest)));
        let Some((number, rest)) = numbered else {
            return problem(
                "must be `N sentence.` or `N question?<TAB>answer<TAB>supporting facts`, or the file \
                 JSON records of `input`, `question`, `target`",
            );
        };
        if number == 1 {
            statements.clear();
            stories.push(Vec::new());
        } else if number != last + 1 {
            return problem(&format!(
                "is numbered {number} after {last}: it must be {} or, for a new story, 1",
                last + 1
            ));
        }
        last = number;
        let mut fields = rest.split('\t').map(single_spaces);
        let sentence = fields.next().unwrap_or_default();
        let answer = fields.next();
        match (answer.as_deref(), stories.last_mut()) {
            (None, _) if sentence.ends_with('?') => {
                return problem("is a question without <TAB>answer");
            }
            (None, _) => {
                if !statements.is_empty() {
                    statements.push(' ');
                }
                statements += &sentence;
            }
            (Some(""), _) => return problem("has an empty answer"),
            (Some(_), _) if sentence.is_empty() => return problem("has an empty question"),
            (Some(_), _) if statements.is_empty() => {
                return problem("has a question before the first statement");
            }
            (Some(answer), Some(story)) => story.push(example(&statements, &sentence, answer)),
            (Some(_), None) => return problem("must be numbered 1: a story begins here"),
        }
    }
    stories.retain(|story| !story.is_empty());
    match stories.is_empty() {
        true => Err("has no question: `N question?<TAB>answer<TAB>supporting facts`".into()),
        false => Ok(stories),
    }
}

/// A story with one question; the context and the query end with a space.
fn example(story: &str, query: &str, answer: &str) -> Example {
    Example::new(format!("{story} "), vec![question(query, answer)])
}

/// A question; its query ends with a space, as do contexts.
pub(super) fn question(query: &str, answer: &str) -> Question {
    Question {
        query: format!("{query} "),
        target: answer.into(),
        answers: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Result<Vec<Vec<Example>>, Error> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("babi");
        std::fs::write(&path, text).unwrap();
        read(&path, "train_file")
    }

    #[test]
    fn both_formats_give_the_same_examples() {
        let original = "1 Mary moved to the bathroom.\n2 John went to the hallway.\n\
             3 Where is Mary? \tbathroom\t1\n4 Daniel went back to the hallway.\n\
             5 Where is Daniel? \thallway\t4\n1 John sat.\r\n2 Where is John?\tgarden\t1\r\n";
        let original = of(original).unwrap();
        let lens: Vec<_> = original.iter().map(Vec::len).collect();
        assert_eq!(lens, [2, 1]);
        let first = "Mary moved to the bathroom. John went to the hallway. ";
        assert_eq!(
            original[0][0],
            super::example(first.trim(), "Where is Mary?", "bathroom")
        );
        assert_eq!(original[0][0].context, first);
        assert_eq!(
            original[0][1].context,
            format!("{first}Daniel went back to the hallway. ")
        );
        assert_eq!(original[1][0].context, "John sat. ");
        let record =
            r#"{"target": "garden", "input": "John\nsat. ", "question": "Where  is John?"}"#;
        for text in [
            format!("[{record},\n{record}]"),
            format!("{record}\n\n{record}\n"),
        ] {
            let stories = of(&text).unwrap();
            assert_eq!(stories, [original[1].clone(), original[1].clone()]);
        }
    }

    #[test]
    fn errors_explain_files_of_another_format() {
        for (text, word) in [
            ("", "is empty"),
            ("Mary moved.", "line 1: must be `N sentence.`"),
            (
                "1 A sat.\n3 Where is A?\tb\t1",
                "line 2: is numbered 3 after 1",
            ),
            ("2 A sat.\n", "line 1: is numbered 2 after 0"),
            ("1 A sat.\n2 Where is A?", "line 2: is a question without"),
            (
                "1 A sat.\n2 Where is A?\t\t1",
                "line 2: has an empty answer",
            ),
            ("1 Where is A?\tb\t1", "line 1: has a question before"),
            ("1 A sat.\n", "has no question"),
            ("[]", "without records"),
            (
                "[{\"input\": \"a\",\n \"target\": \"b\"}]",
                "line 2, column 15, `[0]`: missing field `question`",
            ),
            ("{\"input\": 1}", "`input`: invalid type"),
            ("{\"input\": \"a\"\n", "line 1, column 13"),
            (
                r#"{"input": "a", "question": "b", "target": " "}"#,
                "line 1: `target` is empty",
            ),
            ("[\n}", "line 2, column 1"),
        ] {
            let error = of(text).unwrap_err();
            assert!(error.is_user_error());
            let error = error.to_string();
            assert!(error.contains(word) && !error.contains('\n'), "{error}");
        }
    }
}
