//! SQuAD 1.1 and 2.0 (Rajpurkar et al. 2016, 2018): paragraphs of Wikipedia and questions whose answers are spans
//! of them.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::path::{Path, PathBuf};

use burn::data::dataset::InMemDataset;
use serde::{Deserialize, Deserializer, Serialize};

use super::sentences::sentences;
use super::source::{Sources, boxed, read_text, warn_of_known};
use super::{Example, Question, json};
use crate::error::{Error, at_least_one, require};

/// Where to get the files.
const PUBLISHED: &str = "SQuAD is published at rajpurkar.github.io/SQuAD-explorer (train-v1.1.json, \
                         dev-v1.1.json, train-v2.0.json, dev-v2.0.json)";
/// Without a validation file, one of so many articles is held out.
const HELD_OUT: usize = 8;

/// Settings of SQuAD.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SquadConfig {
    /// Training paragraphs, as published (1.1 or 2.0).
    pub train_file: PathBuf,
    /// Validation paragraphs. Without it every eighth article of `train_file` is held out as a whole, so that no
    /// context is in both splits.
    pub valid_file: Option<PathBuf>,
    /// The form of contexts and queries.
    pub variant: SquadVariant,
    /// The most validation questions that are used, evenly spaced among all.
    pub valid_samples: usize,
}

impl Default for SquadConfig {
    fn default() -> Self {
        Self {
            train_file: PathBuf::new(),
            valid_file: None,
            variant: SquadVariant::Plain,
            valid_samples: 1_000,
        }
    }
}

/// The form of contexts and queries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum SquadVariant {
    /// The context is the paragraph, the query is the question.
    #[default]
    Plain,
    /// The context is only the sentences of the paragraph that contain the (first) answer. A sentence ends at
    /// `.`, `!`, `?` before white space and a capital or a number, but not at initials and common English
    /// abbreviations. Where that is wrong, more or less text is kept around the answer, but always the whole
    /// answer.
    Short,
    /// The context is the paragraph and then the question, the query is `Answer: `.
    CqA,
    /// The context is the question and then the paragraph, the query is `Answer: `.
    QcA,
}

/// The query of the variants that have the question in the context.
pub(super) const ANSWER: &str = "Answer: ";

impl SquadVariant {
    /// Whether the question is a part of the context.
    pub(super) fn asks_in_context(self) -> bool {
        matches!(self, Self::CqA | Self::QcA)
    }
}

impl SquadConfig {
    /// Checks every value.
    ///
    /// # Errors
    ///
    /// The first value that cannot work, by its key and with the reason: [`Error::Config`].
    pub fn validate(&self) -> Result<(), Error> {
        let named = !self.train_file.as_os_str().is_empty();
        require(
            named,
            "train_file",
            "\"\"",
            format!("must name a file: {PUBLISHED}"),
        )?;
        at_least_one([("valid_samples", self.valid_samples)])
    }

    /// The training and the validation data, in memory: each answerable question is an example with its paragraph.
    /// Files need no seed; the parameter is that of other tasks.
    ///
    /// # Errors
    ///
    /// If a file is missing or has another format, has a question's id twice, or has an answer that is not at
    /// `answer_start` in its context (in characters, not bytes); also too few articles to hold one out.
    pub fn open(&self, seed: u64) -> Result<Sources, Error> {
        let _ = seed;
        self.validate()?;
        let train = read(&self.train_file, "train_file")?;
        let (train, valid) = match &self.valid_file {
            Some(path) => {
                let valid = read(path, "valid_file")?;
                let trained = contexts(&train);
                let asked = questions(&valid);
                warn_of_known(asked.map(|(p, _)| trained.contains(p.context.trim())));
                (train, valid)
            }
            None => hold_out(&self.train_file, train)?,
        };
        let (train, valid) = (
            examples(&train, self.variant),
            examples(&valid, self.variant),
        );
        let held_out = self.valid_file.as_ref().unwrap_or(&self.train_file);
        for (examples, path, purpose) in [
            (&train, &self.train_file, "train on"),
            (&valid, held_out, "hold out"),
        ] {
            if examples.is_empty() {
                let problem = format!("has no answerable question to {purpose}");
                return Err(Error::file(path, problem));
            }
        }
        let valid = evenly_spaced(valid, self.valid_samples);
        Ok((
            boxed(InMemDataset::new(train)),
            boxed(InMemDataset::new(valid)),
        ))
    }
}

#[derive(Deserialize)]
struct SquadFile {
    data: Vec<Article>,
}

#[derive(Deserialize)]
struct Article {
    /// Articles without one are one article each.
    title: Option<String>,
    paragraphs: Vec<Paragraph>,
}

#[derive(Deserialize)]
struct Paragraph {
    context: String,
    qas: Vec<QuestionRecord>,
}

#[derive(Deserialize)]
struct QuestionRecord {
    #[serde(deserialize_with = "text_or_number")]
    id: String,
    question: String,
    answers: Vec<Answer>,
    /// Version 1.1 does not have this field.
    #[serde(default)]
    is_impossible: bool,
}

#[derive(Deserialize)]
struct Answer {
    text: String,
    /// In characters; some files have −1 at questions that have no answer.
    answer_start: i64,
}

/// An id: a text, or a whole number as in some files of the format.
fn text_or_number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "a text or a whole number")]
    enum Id {
        Text(String),
        Number(i64),
    }
    Ok(match Id::deserialize(deserializer)? {
        Id::Text(text) => text,
        Id::Number(number) => number.to_string(),
    })
}

impl Answer {
    /// Its byte range in the context; none if it is not at `answer_start`.
    fn span(&self, context: &str) -> Option<Range<usize>> {
        let starts = context.char_indices().map(|(at, _)| at);
        let first = usize::try_from(self.answer_start).ok()?;
        let start = starts.chain([context.len()]).nth(first)?;
        let found = context[start..].starts_with(&self.text);
        found.then(|| start..start + self.text.len())
    }
}

impl QuestionRecord {
    fn answerable(&self) -> bool {
        !self.is_impossible && !self.answers.is_empty()
    }
}

/// Reads and checks the articles of a file.
fn read(path: &Path, key: &str) -> Result<Vec<Article>, Error> {
    let text = read_text(path, key, PUBLISHED)?;
    let file: SquadFile = json::parse(&text, 1).map_err(|e| Error::file(path, e))?;
    let mut ids: HashMap<&str, String> = HashMap::new();
    for (number, article) in file.data.iter().enumerate() {
        let Article { title, paragraphs } = article;
        let untitled = format!("number {}", number + 1);
        let title = title.clone().unwrap_or(untitled);
        for Paragraph { context, qas } in paragraphs {
            for asked in qas {
                let id = &asked.id;
                let place = format!("article {title:?}, question {id:?}");
                if let Some(first) = ids.insert(id, title.clone()) {
                    let problem = format!("{place}: its id was used before, in article {first:?}");
                    return Err(Error::file(path, problem));
                }
                let answers = if asked.answerable() {
                    &asked.answers[..]
                } else {
                    &[]
                };
                for answer in answers {
                    if let Some(problem) = answer_problem(answer, context) {
                        return Err(Error::file(path, format!("{place}: {problem}")));
                    }
                }
            }
        }
    }
    Ok(file.data)
}

/// The problem with an answer's position in its context, if there is one.
fn answer_problem(answer: &Answer, context: &str) -> Option<String> {
    let Answer { text, answer_start } = answer;
    if text.is_empty() {
        return Some("its answer is empty".into());
    }
    if answer.span(context).is_some() {
        return None;
    }
    let shown = json::shorten(&format!("{text:?}"));
    let found = match context.find(text.as_str()) {
        Some(at) => format!("it is first found at {}", context[..at].chars().count()),
        None => "the context does not contain it".into(),
    };
    Some(format!(
        "the answer {shown} is not at character {answer_start} of the context (counted from 0, in \
         characters, not bytes): {found}"
    ))
}

/// Splits off every eighth article. Articles of the same title are in the same split, and training paragraphs
/// that are also held out are removed.
fn hold_out(path: &Path, articles: Vec<Article>) -> Result<(Vec<Article>, Vec<Article>), Error> {
    let mut numbers: HashMap<String, usize> = HashMap::new();
    let (mut train, mut valid) = (Vec::new(), Vec::new());
    for (at, article) in articles.into_iter().enumerate() {
        let next = numbers.len();
        let title = article.title.clone().unwrap_or(format!("\0{at}"));
        let number = *numbers.entry(title).or_insert(next);
        match number % HELD_OUT == HELD_OUT - 1 {
            true => valid.push(article),
            false => train.push(article),
        }
    }
    if valid.is_empty() {
        let problem = format!(
            "has {} articles, and one in {HELD_OUT} is held out: set data.valid_file",
            numbers.len()
        );
        return Err(Error::file(path, problem));
    }
    let contexts = contexts(&valid);
    let count = |articles: &[Article]| questions(articles).count();
    let before = count(&train);
    for article in &mut train {
        let held_out = |p: &Paragraph| contexts.contains(p.context.trim());
        article.paragraphs.retain(|p| !held_out(p));
    }
    let left_out = before - count(&train);
    if left_out > 0 {
        log::warn!(
            "{}: {left_out} of {before} training questions are left out, because their paragraph is held out too; data.valid_file may name \
             other articles",
            path.display()
        );
    }
    Ok((train, valid))
}

/// The paragraphs of articles.
fn contexts(articles: &[Article]) -> HashSet<&str> {
    let paragraphs = articles.iter().flat_map(|article| &article.paragraphs);
    paragraphs.map(|p| p.context.trim()).collect()
}

/// The answerable questions of articles, each with its paragraph.
fn questions(articles: &[Article]) -> impl Iterator<Item = (&Paragraph, &QuestionRecord)> {
    let paragraphs = articles.iter().flat_map(|article| &article.paragraphs);
    let asked = paragraphs.flat_map(|p| p.qas.iter().map(move |asked| (p, asked)));
    asked.filter(|(_, asked)| asked.answerable())
}

fn examples(articles: &[Article], variant: SquadVariant) -> Vec<Example> {
    questions(articles)
        .map(|(paragraph, asked)| example(&paragraph.context, asked, variant))
        .collect()
}

fn example(context: &str, asked: &QuestionRecord, variant: SquadVariant) -> Example {
    let (whole, question) = (context.trim(), asked.question.trim());
    let first = &asked.answers[0];
    let (context, query) = match variant {
        SquadVariant::Plain => (format!("{whole} "), format!("{question} ")),
        SquadVariant::Short => {
            let kept = first
                .span(context)
                .map(|span| sentences_around(context, span));
            (
                format!("{} ", kept.unwrap_or(whole)),
                format!("{question} "),
            )
        }
        SquadVariant::CqA => (format!("{whole} {question} "), ANSWER.into()),
        SquadVariant::QcA => (format!("{question} {whole} "), ANSWER.into()),
    };
    let mut answers: Vec<String> = Vec::new();
    for answer in &asked.answers {
        if !answers.contains(&answer.text) {
            answers.push(answer.text.clone());
        }
    }
    let question = Question {
        query,
        target: first.text.clone(),
        answers,
    };
    Example {
        // Truncation must keep the question, and the spaces around it.
        tail: match variant {
            SquadVariant::CqA => asked.question.trim().len() + 2,
            SquadVariant::Plain | SquadVariant::Short | SquadVariant::QcA => 0,
        },
        ..Example::new(context, vec![question])
    }
}

/// The sentences that overlap `span`, and the whole span.
fn sentences_around(context: &str, span: Range<usize>) -> &str {
    let (mut start, mut end) = (span.start, span.end);
    for sentence in sentences(context) {
        if sentence.start < span.end && span.start < sentence.end {
            (start, end) = (start.min(sentence.start), end.max(sentence.end));
        }
    }
    &context[start..end]
}

/// `count` evenly spaced examples; all if there are fewer.
fn evenly_spaced(examples: Vec<Example>, count: usize) -> Vec<Example> {
    let all = examples.len();
    if count >= all {
        return examples;
    }
    let places = (0..count).map(|at| (at * all).div_ceil(count));
    places.map(|at| examples[at].clone()).collect()
}

#[cfg(test)]
mod tests;
