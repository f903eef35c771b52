//! bAbI (Weston et al. 2015), tasks 1 to 5: short stories about people, objects and places with questions. They
//! are read from the published files or generated with the same vocabulary.

mod stories;
mod world;

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use burn::data::dataset::InMemDataset;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::generated::{self, Generates};
use super::source::{Sources, boxed, warn_of_known};
use super::{Example, Split};
use crate::error::{Error, at_least_one, require};

/// Settings of bAbI.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BabiConfig {
    /// The tasks of generated stories, in turn, each from 1 to 5; not used with a file.
    pub tasks: Vec<usize>,
    /// Training stories, in BABILong's JSON or the original text format; without it they are generated.
    pub train_file: Option<PathBuf>,
    /// Validation stories; without it they are the end of `train_file`.
    pub valid_file: Option<PathBuf>,
    /// `R`: different questions about a generated story; a context from a file has one.
    pub queries_per_context: usize,
    /// A generated story ends after so many statements if it answers enough questions by then [default: about as
    /// many as in the original].
    pub statements: Option<usize>,
    /// Training samples that are generated; of a file all samples are used.
    pub train_samples: usize,
    /// Validation samples that are generated or, without a `valid_file`, held out: the last stories of
    /// `train_file` that together have so many questions (a story is never in both splits, also where the file has it twice).
    pub valid_samples: usize,
}

impl Default for BabiConfig {
    fn default() -> Self {
        Self {
            tasks: vec![1],
            train_file: None,
            valid_file: None,
            queries_per_context: 1,
            statements: None,
            train_samples: 9_000,
            valid_samples: 999,
        }
    }
}

impl BabiConfig {
    /// Checks every value.
    ///
    /// # Errors
    ///
    /// The first value that cannot work, by its key and with the reason: [`Error::Config`].
    pub fn validate(&self) -> Result<(), Error> {
        let tasks = &self.tasks;
        let shown = format!("{tasks:?}");
        let problem = "must name one or more of the tasks 1, 2, 3, 4, 5";
        let known = !tasks.is_empty() && tasks.iter().all(|task| (1..=5).contains(task));
        require(known, "tasks", &shown, problem)?;
        let repeated = (1..tasks.len()).any(|at| tasks[..at].contains(&tasks[at]));
        require(!repeated, "tasks", &shown, "must name a task only once")?;
        if let (Some(valid), None) = (&self.valid_file, &self.train_file) {
            let problem =
                "needs data.train_file too: generated stories have generated validation data";
            return Err(Error::config("valid_file", valid.display(), problem));
        }
        let generated = self.train_file.is_none();
        let problem = "is of generated stories, and data.train_file names others: leave it out";
        let own = generated || *tasks == Self::default().tasks;
        require(own, "tasks", &shown, problem)?;
        let statements = self
            .statements
            .map_or_else(String::new, |count| count.to_string());
        require(
            generated || self.statements.is_none(),
            "statements",
            statements,
            problem,
        )?;
        let most = tasks.iter().map(|task| world::most_questions(*task));
        let most = most.min().filter(|_| generated).unwrap_or(1);
        let problem = match generated {
            true => format!("must be at most {most}, for stories of {shown}"),
            false => "must be 1 if the stories are from a file".into(),
        };
        let questions = self.queries_per_context;
        require(questions <= most, "queries_per_context", questions, problem)?;
        at_least_one([
            ("queries_per_context", questions),
            ("statements", self.statements.unwrap_or(1)),
            ("train_samples", self.train_samples),
            ("valid_samples", self.valid_samples),
        ])
    }

    /// The training and the validation data; `seed` is for generated stories.
    ///
    /// # Errors
    ///
    /// See [`BabiConfig::validate`]; also a file that is missing or has another format.
    pub fn open(&self, seed: u64) -> Result<Sources, Error> {
        self.validate()?;
        let Some(train) = &self.train_file else {
            return generated::open(self, seed);
        };
        let mut train_stories = stories::read(train, "train_file")?;
        let held_out = match &self.valid_file {
            Some(valid) => {
                let held_out = stories::read(valid, "valid_file")?;
                let trained = contexts(&train_stories);
                let asked = held_out.iter().flatten();
                warn_of_known(asked.map(|asked| trained.contains(&*asked.context)));
                held_out
            }
            None => self.hold_out(train, &mut train_stories)?,
        };
        let whole = |stories: Vec<Vec<Example>>| boxed(InMemDataset::new(stories.concat()));
        Ok((whole(train_stories), whole(held_out)))
    }

    /// Splits off the last stories that together have `valid_samples` questions. Others that have a context of theirs, or a longer or
    /// shorter part of the same story, are left out: BABILong has a record for each question of a story.
    fn hold_out(
        &self,
        path: &Path,
        stories: &mut Vec<Vec<Example>>,
    ) -> Result<Vec<Vec<Example>>, Error> {
        let (mut left, mut questions) = (stories.len(), 0);
        while left > 0 && questions < self.valid_samples {
            left -= 1;
            questions += stories[left].len();
        }
        let held_out = stories.split_off(left);
        let beginnings = held_out.iter().flatten();
        let beginnings: HashSet<&str> = beginnings
            .flat_map(|asked| beginnings_of(&asked.context))
            .collect();
        let whole = contexts(&held_out);
        let is_held_out = |context: &str| {
            beginnings.contains(context)
                || beginnings_of(context).any(|beginning| whole.contains(beginning))
        };
        stories.retain(|story| !story.iter().any(|asked| is_held_out(&asked.context)));
        if stories.len() < left {
            log::warn!(
                "{}: {} of {left} training stories are left out, because a context that is held out begins as they do; data.valid_file may \
                 name other stories",
                path.display(),
                left - stories.len()
            );
        }
        if !stories.is_empty() {
            return Ok(held_out);
        }
        let problem = format!(
            "has {questions} questions, so holding out data.valid_samples = {} leaves no other story to \
             train on: lower it or set data.valid_file",
            self.valid_samples
        );
        Err(Error::file(path, problem))
    }
}

/// The contexts of stories.
fn contexts(stories: &[Vec<Example>]) -> HashSet<&str> {
    stories
        .iter()
        .flatten()
        .map(|asked| &*asked.context)
        .collect()
}

/// What a context begins with, up to any of its spaces; it ends with one.
fn beginnings_of(context: &str) -> impl Iterator<Item = &str> {
    context
        .match_indices(' ')
        .map(|(at, space)| &context[..at + space.len()])
}

/// Generated stories have the vocabulary of the original, about its lengths and shares of actions, and a question about what follows from
/// one of the last five statements. A story consists of actions that are possible
/// in the simulated world, and its questions are answered by it; if something happened more than once, the last
/// time counts. Task 4 has only 1,920 different stories, and one statement of task 1 has 120; so a story belongs to one split,
/// an eighth of all to validation data.
impl Generates for BabiConfig {
    const STREAM: &'static [u8; 8] = b"bAbI-1-5";

    fn validate(&self) -> Result<(), Error> {
        BabiConfig::validate(self)
    }

    fn samples(&self, split: Split) -> usize {
        split.of(self.train_samples, self.valid_samples)
    }

    fn example(&self, split: Split, index: usize, rng: &mut ChaCha8Rng) -> Example {
        let task = self.tasks[index % self.tasks.len()];
        let statements = self.statements.unwrap_or(usize::MAX);
        let story = loop {
            let story = world::story(task, self.queries_per_context, statements, rng);
            if split.owns(&story.text) {
                break story;
            }
        };
        let questions = story
            .questions
            .iter()
            .map(|(query, answer)| stories::question(query, answer));
        let context = format!("{} ", story.text);
        Example::new(context, questions.collect())
    }
}

#[cfg(test)]
mod tests;
