//! SQuAD 1.1 and 2.0 (Rajpurkar et al. 2016, 2018): paragraphs of Wikipedia and questions whose answers are spans
//! of them.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use burn::data::dataset::{Dataset, InMemDataset};
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

    /// The training and the validation data. Files need no seed; the parameter is that of other tasks.
    ///
    /// # Errors
    ///
    /// See [`SquadDataset::open`]; also too few articles to hold one out.
    pub fn open(&self, _seed: u64) -> Result<Sources, Error> {
        let (train, valid) = self.load()?;
        Ok((boxed(train), boxed(valid)))
    }

    /// As [`SquadConfig::open`], as [`SquadDataset`]s.
    ///
    /// # Errors
    ///
    /// As [`SquadConfig::open`].
    pub fn load(&self) -> Result<(SquadDataset, SquadDataset), Error> {
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
        Ok((
            SquadDataset(InMemDataset::new(train)),
            SquadDataset(InMemDataset::new(evenly_spaced(valid, self.valid_samples))),
        ))
    }
}

/// The answerable questions of a file, in memory; each is an example with its paragraph.
pub struct SquadDataset(InMemDataset<Example>);

impl fmt::Debug for SquadDataset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let questions = self.0.len();
        f.debug_struct("SquadDataset")
            .field("questions", &questions)
            .finish_non_exhaustive()
    }
}

impl SquadDataset {
    /// Reads a file as published. Unanswerable questions are ignored.
    ///
    /// # Errors
    ///
    /// If the file is missing or has another format, has a question's id twice, or has an answer that is not at
    /// `answer_start` in its context (in characters, not bytes).
    pub fn open(path: impl AsRef<Path>, variant: SquadVariant) -> Result<Self, Error> {
        let articles = read(path.as_ref(), "train_file")?;
        Ok(Self(InMemDataset::new(examples(&articles, variant))))
    }
}

impl Dataset<Example> for SquadDataset {
    fn get(&self, index: usize) -> Option<Example> {
        self.0.get(index)
    }

    fn len(&self) -> usize {
        self.0.len()
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
    let keep = |at: &usize| *at == 0 || at * count / all != (at - 1) * count / all;
    match count < all {
        true => {
            let numbered = examples.into_iter().enumerate();
            let taken = numbered.filter(|(at, _)| keep(at));
            taken.map(|(_, example)| example).collect()
        }
        false => examples,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::TokensConfig;
    use serde_json::{Value, json};
    use tempfile::TempDir;

    const CONTEXT: &str = " Ünder Dr. Wu the mill grew. In 1905, J. P. Lee bought it. He sold it. ";

    fn asked(id: &str, question: &str, answers: &[(&str, usize)]) -> Value {
        let answers: Vec<_> = answers
            .iter()
            .map(|(text, at)| json!({"text": text, "answer_start": at}))
            .collect();
        json!({"id": id, "question": question, "answers": answers})
    }

    fn article(title: &str, context: &str, qas: &[Value]) -> Value {
        json!({"title": title, "paragraphs": [{"context": context, "qas": qas}]})
    }

    fn file(folder: &TempDir, articles: &[Value]) -> PathBuf {
        let path = folder.path().join("squad.json");
        let text = json!({"version": "v2.0", "data": articles}).to_string();
        std::fs::write(&path, text).unwrap();
        path
    }

    fn of(qas: &[Value], variant: SquadVariant) -> Result<Vec<Example>, Error> {
        let folder = tempfile::tempdir().unwrap();
        let path = file(&folder, &[article("Mill", CONTEXT, qas)]);
        SquadDataset::open(path, variant).map(|dataset| dataset.iter().collect())
    }

    #[test]
    fn variants_have_their_contexts_and_queries() {
        let answers = [("Lee", 44), ("J. P. Lee", 38), ("Lee", 44)];
        let lee = asked("1", " Who bought it? ", &answers);
        let no = json!({"id": "2", "question": "Why?", "answers": [], "is_impossible": true});
        let whole = CONTEXT.trim();
        for (variant, context, query) in [
            (SquadVariant::Plain, format!("{whole} "), "Who bought it? "),
            (
                SquadVariant::Short,
                "In 1905, J. P. Lee bought it. ".into(),
                "Who bought it? ",
            ),
            (
                SquadVariant::CqA,
                format!("{whole} Who bought it? "),
                "Answer: ",
            ),
            (
                SquadVariant::QcA,
                format!("Who bought it? {whole} "),
                "Answer: ",
            ),
        ] {
            let found = of(&[lee.clone(), no.clone()], variant).unwrap();
            let question = Question {
                query: query.into(),
                target: "Lee".into(),
                answers: vec!["Lee".into(), "J. P. Lee".into()],
            };
            let tail = match variant {
                SquadVariant::CqA => found[0].tail,
                _ => 0,
            };
            let example = Example::new(context, vec![question]);
            assert_eq!(found, [Example { tail, ..example }]);
            assert_eq!(tail > 0, variant == SquadVariant::CqA);
        }
    }

    #[test]
    fn short_contexts_contain_the_whole_answer() {
        for (answer, at, kept) in [
            ("Dr. Wu", 7, "Ünder Dr. Wu the mill grew. "),
            (
                "grew. In",
                23,
                "Ünder Dr. Wu the mill grew. In 1905, J. P. Lee bought it. ",
            ),
            ("it. ", 67, "He sold it.  "),
        ] {
            let found = of(&[asked("1", "?", &[(answer, at)])], SquadVariant::Short).unwrap();
            assert_eq!(found[0].context, kept);
            assert!(found[0].context.contains(answer));
        }
    }

    #[test]
    fn errors_explain_wrong_files() {
        let good = asked("q1", "Who?", &[("Lee", 44)]);
        let mut typo = good.clone();
        typo["answers"][0]["answer_start"] = json!("44");
        let mut lacks = good.clone();
        lacks.as_object_mut().unwrap().remove("question");
        let place = "data[0].paragraphs[0].qas[0]";
        for (qas, words) in [
            (
                vec![good.clone(), good.clone()],
                vec!["\"q1\"", "used before", "\"Mill\""],
            ),
            (
                vec![asked("q2", "?", &[("Lee", 45)])],
                vec!["\"q2\"", "character 45", "found at 44"],
            ),
            (
                vec![asked("q3", "?", &[("Lee", 9999)])],
                vec!["\"q3\"", "character 9999"],
            ),
            (
                vec![asked("q4", "?", &[("Loo", 1)])],
                vec!["\"q4\"", "does not contain it"],
            ),
            (vec![asked("q5", "?", &[("", 1)])], vec!["\"q5\"", "empty"]),
            (
                vec![typo],
                vec![place, ".answers[0].answer_start`", "string \"44\""],
            ),
            (vec![lacks], vec![place, "missing field `question`"]),
        ] {
            let error = of(&qas, SquadVariant::Plain).unwrap_err();
            assert!(error.is_user_error());
            let error = error.to_string();
            assert!(
                !error.contains('\n') && error.contains("squad.json"),
                "{error}"
            );
            for word in words {
                assert!(error.contains(word), "{error}");
            }
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("train-v1.1.json");
        let open = || {
            SquadDataset::open(&path, SquadVariant::Plain)
                .err()
                .unwrap()
                .to_string()
        };
        let error = open();
        assert!(error.contains("rajpurkar.github.io") && error.contains("data.train_file"));
        std::fs::write(&path, "{\"data\": [\n{]}").unwrap();
        assert!(open().contains("line 2, column 2"), "{}", open());
        std::fs::write(&path, "{}").unwrap();
        assert!(open().contains("missing field `data`"), "{}", open());
    }

    #[test]
    fn whole_articles_are_held_out() {
        let folder = tempfile::tempdir().unwrap();
        let one = |n: usize, context: &str| {
            article(
                &format!("T{n}"),
                context,
                &[asked(&format!("{context}{n}"), "?", &[("c", 0)])],
            )
        };
        let mut articles: Vec<_> = (0..17).map(|n| one(n, &format!("c{n}"))).collect();
        // A held-out title once more, and a held-out context under another title.
        articles.push(one(7, "c again"));
        articles.push(one(16, "c15"));
        let mut config = SquadConfig {
            train_file: file(&folder, &articles),
            ..SquadConfig::default()
        };
        let contexts = |d: &SquadDataset| d.iter().map(|e| e.context).collect::<Vec<_>>();
        let (train, valid) = config.load().unwrap();
        assert_eq!(contexts(&valid), ["c7 ", "c15 ", "c again "]);
        assert_eq!(train.len(), 15);
        assert!(
            contexts(&train)
                .iter()
                .all(|c| !contexts(&valid).contains(c))
        );
        config.valid_samples = 2;
        assert_eq!(contexts(&config.load().unwrap().1), ["c7 ", "c again "]);
        config.valid_file = Some(config.train_file.clone());
        let (train, valid) = config.open(0).unwrap();
        assert_eq!((train.len(), valid.len()), (19, 2));
        config.valid_file = None;
        file(&folder, &articles[..7]);
        let error = config.load().err().unwrap().to_string();
        assert!(
            error.contains("7 articles") && error.contains("data.valid_file"),
            "{error}"
        );
    }

    #[test]
    fn settings_survive_toml_and_are_checked() {
        let config = SquadConfig {
            train_file: "a.json".into(),
            variant: SquadVariant::CqA,
            ..SquadConfig::default()
        };
        let text = toml::to_string(&config).unwrap();
        assert!(text.contains("variant = \"cq_a\""), "{text}");
        assert_eq!(toml::from_str::<SquadConfig>(&text).unwrap(), config);
        let error = SquadConfig::default().open(0).err().unwrap().to_string();
        assert!(
            error.contains("train_file") && error.contains("rajpurkar"),
            "{error}"
        );
    }

    /// On a published file, if the environment names one: GRADMEM_SQUAD=dev-v2.0.json.
    #[test]
    fn all_questions_of_a_published_file_are_read_and_target_tokens_contain_the_answers() {
        let Some(path) = std::env::var_os("GRADMEM_SQUAD").map(PathBuf::from) else {
            eprintln!("skipped: GRADMEM_SQUAD names no file");
            return;
        };
        let json: serde_json::Value =
            serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let list = |value: &serde_json::Value, key: &str| value[key].as_array().unwrap().clone();
        let paragraphs = list(&json, "data")
            .into_iter()
            .flat_map(|a| list(&a, "paragraphs"));
        let asked = paragraphs.flat_map(|p| list(&p, "qas"));
        let answerable = asked.filter(|q| q["is_impossible"] != true).count();
        let plain = SquadDataset::open(&path, SquadVariant::Plain).unwrap();
        let short = SquadDataset::open(&path, SquadVariant::Short).unwrap();
        assert_eq!((plain.len(), short.len()), (answerable, answerable));
        eprintln!("{answerable} answerable questions");

        let tokens = TokensConfig {
            tokenizer: "bpe".into(),
            vocab_size: 2048,
            ..TokensConfig::default()
        };
        let contexts: Vec<String> = plain.iter().map(|example| example.context).collect();
        let tokenizer = tokens.make(|| Ok(contexts.clone().into_iter())).unwrap();
        let variants = [SquadVariant::CqA, SquadVariant::QcA];
        let others = variants.map(|variant| SquadDataset::open(&path, variant).unwrap());
        for set in [&plain, &short].into_iter().chain(&others) {
            for example in set.iter() {
                let question = &example.questions[0];
                let asked = tokenizer.encode_question(question).unwrap();
                let decoded = tokenizer
                    .decode_answer(&asked.tokens[asked.target..])
                    .unwrap();
                assert!(
                    decoded.contains(&question.target),
                    "{decoded:?}: {question:?}"
                );
                assert!(example.context.contains(&question.target), "{question:?}");
            }
        }
        let (mut whole, mut kept) = (0, 0);
        for (plain, short) in plain.iter().zip(short.iter()) {
            let question = &plain.questions[0];
            assert!(question.answers.contains(&question.target));
            assert!(short.context.contains(&question.target), "{short:?}");
            assert!(plain.context.contains(short.context.trim()), "{short:?}");
            (whole, kept) = (whole + plain.context.len(), kept + short.context.len());
        }
        assert!(kept * 3 < whole, "{kept} of {whole} bytes kept");
        let config = SquadConfig {
            train_file: path,
            ..SquadConfig::default()
        };
        let (train, valid) = config.load().unwrap();
        assert!(train.len() > 2_000 && valid.len() > 100);
    }
}
