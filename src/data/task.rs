//! A task's samples: encoding, truncation and lengths.

#[cfg(feature = "train")]
use std::collections::HashSet;
use std::fmt;
use std::sync::{Arc, Once};

use burn::data::dataset::Dataset;
use sha2::{Digest, Sha256};

use super::source::{Examples, Sources};
use super::{Asked, Example, Sample, Split, TextTokenizer, TokensConfig};
use crate::error::Error;
use crate::support::fs::hex;

/// Samples, each made on demand.
pub type Samples = Arc<dyn Dataset<Result<Sample, Error>>>;

/// A task's samples and their tokenizer.
#[derive(Clone)]
#[non_exhaustive]
pub struct Task {
    /// Training samples.
    pub train: Samples,
    /// Validation samples.
    pub valid: Samples,
    /// The tokenizer that encoded them.
    pub tokenizer: Arc<TextTokenizer>,
    /// Whether the training samples have to be shuffled because they come from a file.
    pub shuffle: bool,
    /// The largest lengths of the samples.
    pub lengths: Lengths,
    /// A hash of the tokens of the inspected samples; none if the settings determine the samples.
    pub fingerprint: Option<String>,
}

impl fmt::Debug for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Task")
            .field("train", &self.train.len())
            .field("valid", &self.valid.len())
            .field("shuffle", &self.shuffle)
            .field("lengths", &self.lengths)
            .field("fingerprint", &self.fingerprint)
            .finish_non_exhaustive()
    }
}

/// The largest lengths of a task's samples.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Lengths {
    /// Tokens of the longest context.
    pub context: usize,
    /// Tokens of the longest query and its target together.
    pub question: usize,
    /// Questions to one context, at most.
    pub questions: usize,
    /// Tokens of the longest target.
    pub target: usize,
    /// Questions without a query: their first token is predicted from the memory alone.
    pub unprompted: usize,
    /// Contexts that are truncated to `tokens.max_context`.
    pub truncated: usize,
    /// Contexts that were inspected.
    pub inspected: usize,
}

/// The most samples of each split that are inspected before training begins, from a file or generated. Later
/// samples are checked when they are used.
pub(super) fn max_inspected(is_file: bool) -> usize {
    if is_file { 100_000 } else { 10_000 }
}

/// What is found out of samples: a hash of all that is trained on and compared with, and what is not in the vocabulary.
pub(super) struct Inspection<'a> {
    tokenizer: &'a TextTokenizer,
    print: Sha256,
    tokens: usize,
    unknown: usize,
    /// Held-out questions, and those whose target has a token that is not in the vocabulary.
    held_out: usize,
    unanswerable: usize,
}

impl<'a> Inspection<'a> {
    pub fn new(tokenizer: &'a TextTokenizer) -> Self {
        Self {
            tokenizer,
            print: Sha256::new(),
            tokens: 0,
            unknown: 0,
            held_out: 0,
            unanswerable: 0,
        }
    }

    pub fn add(&mut self, sample: &Sample, split: Split) {
        let is_unknown = |id: &u32| self.tokenizer.is_unknown(*id);
        self.add_tokens(&sample.context);
        for asked in &sample.asked {
            self.add_tokens(&asked.tokens);
            self.add_length(asked.target);
            // The token that ends an answer may be the one for the unknown too.
            let mut targets = &asked.tokens[asked.target..];
            if let Some((last, before)) = targets.split_last()
                && self.tokenizer.is_mark(*last)
            {
                targets = before;
                self.unknown -= usize::from(is_unknown(last));
            }
            for answer in &asked.answers {
                self.add_length(answer.len());
                self.print.update(answer);
            }
            if split == Split::Valid {
                self.held_out += 1;
                self.unanswerable += usize::from(targets.iter().any(is_unknown));
            }
        }
    }

    pub fn add_bytes(&mut self, bytes: &[u8]) {
        self.print.update(bytes);
    }

    fn add_length(&mut self, length: usize) {
        self.print.update((length as u64).to_le_bytes());
    }

    fn add_tokens(&mut self, ids: &[u32]) {
        self.add_length(ids.len());
        for id in ids {
            self.print.update(id.to_le_bytes());
            self.unknown += usize::from(self.tokenizer.is_unknown(*id));
        }
        self.tokens += ids.len();
    }

    /// Warns of what is not in the vocabulary; the hash.
    pub fn finish(self) -> String {
        let Self {
            tokens,
            unknown,
            held_out,
            unanswerable,
            ..
        } = self;
        if unanswerable > 0 {
            log::warn!(
                "{unknown} of {tokens} tokens are not in the vocabulary, and {unanswerable} of {held_out} held-out questions \
                 cannot be answered right: their targets have such tokens"
            );
        } else if unknown > 0 {
            log::warn!("{unknown} of {tokens} tokens are not in the vocabulary");
        }
        hex(&self.print.finalize())
    }
}

/// Examples, encoded as token ids.
struct EncodedSamples {
    examples: Examples,
    tokenizer: Arc<TextTokenizer>,
    max_context: usize,
    truncate: bool,
    /// For error messages.
    split: Split,
    /// Whether it was told that a query and its target are one word.
    told: Once,
}

impl EncodedSamples {
    fn sample(&self, index: usize, example: Example) -> Result<Sample, Error> {
        let split = self.split.of("training", "held-out");
        self.encode(example).map_err(|e| match e {
            Error::Input(problem) => Error::Input(format!("{split} sample {index}: {problem}")),
            other => other,
        })
    }

    fn encode(&self, example: Example) -> Result<Sample, Error> {
        let tokenizer = &self.tokenizer;
        let mut context = tokenizer.encode(&example.context)?;
        let (tokens, most) = (context.len(), self.max_context);
        if tokens == 0 {
            return Err(Error::Input("its context is empty".into()));
        }
        let cut = tokens.saturating_sub(most);
        if cut > 0 && !self.truncate {
            return Err(Error::Input(format!(
                "its context has {tokens} tokens, more than tokens.max_context = {most}: \
                 raise it, or truncate such contexts with tokens.truncate=true"
            )));
        }
        if cut > 0 {
            let tail = example.context.len() - example.tail;
            let (ids, tail, _) = tokenizer.divided(&example.context, tail)?;
            let (head, tail) = ids.split_at(tail);
            if tail.len() >= most {
                return Err(Error::Input(format!(
                    "the {} tokens that must be kept at the end of its context leave nothing of \
                     tokens.max_context = {most}",
                    tail.len()
                )));
            }
            context = [&head[..most - tail.len()], tail].concat();
        }
        let asked = example.questions.iter().map(|question| {
            let (asked, joined) = tokenizer.encode_joined(question)?;
            if joined {
                self.told.call_once(|| {
                    log::warn!(
                        "the query {:?} and its target {:?} have a token in common, which is then predicted: a query may end with a space",
                        question.query,
                        question.target
                    );
                });
            }
            Ok(Asked {
                direction: example.direction,
                ..asked
            })
        });
        Ok(Sample {
            context,
            asked: asked.collect::<Result<_, Error>>()?,
            cut,
        })
    }
}

impl Dataset<Result<Sample, Error>> for EncodedSamples {
    fn get(&self, index: usize) -> Option<Result<Sample, Error>> {
        let example = self.examples.get(index)?;
        Some(example.and_then(|example| self.sample(index, example)))
    }

    fn len(&self) -> usize {
        self.examples.len()
    }
}

impl Task {
    /// Of samples whose settings determine them and their lengths; the lengths do unless contexts are truncated.
    pub(super) fn of_lengths(
        sources: Sources,
        tokenizer: TextTokenizer,
        tokens: &TokensConfig,
        lengths: Lengths,
    ) -> Result<Self, Error> {
        let task = Self::new(sources, tokenizer, tokens);
        match tokens.max_context.is_some_and(|max| max < lengths.context) {
            true => task.with_lengths(),
            false => Ok(Self { lengths, ..task }),
        }
    }

    /// Without lengths and fingerprint.
    pub(super) fn new(
        (train, valid): Sources,
        tokenizer: TextTokenizer,
        tokens: &TokensConfig,
    ) -> Self {
        let tokenizer = Arc::new(tokenizer);
        let encoded = |examples, split| -> Samples {
            Arc::new(EncodedSamples {
                examples,
                split,
                tokenizer: tokenizer.clone(),
                told: Once::new(),
                max_context: tokens.max_context.unwrap_or(usize::MAX),
                truncate: tokens.truncate,
            })
        };
        Self {
            train: encoded(train, Split::Train),
            valid: encoded(valid, Split::Valid),
            tokenizer,
            shuffle: false,
            lengths: Lengths::default(),
            fingerprint: None,
        }
    }

    /// Inspects the first samples of both splits and sets the lengths and the fingerprint.
    pub(super) fn with_lengths(self) -> Result<Self, Error> {
        let mut lengths = Lengths::default();
        let most = max_inspected(self.shuffle);
        let mut seen = Inspection::new(&self.tokenizer);
        for (samples, split) in [(&self.train, Split::Train), (&self.valid, Split::Valid)] {
            if samples.is_empty() {
                let name = split.of("training", "held-out");
                return Err(Error::Input(format!("there are no {name} samples")));
            }
            seen.add_length(samples.len());
            for index in 0..samples.len().min(most) {
                let Some(sample) = samples.get(index) else {
                    break;
                };
                let sample = sample?;
                seen.add(&sample, split);
                lengths.context = lengths.context.max(sample.context.len());
                lengths.questions = lengths.questions.max(sample.asked.len());
                for asked in &sample.asked {
                    let tokens = asked.tokens.len();
                    lengths.question = lengths.question.max(tokens);
                    lengths.target = lengths.target.max(tokens - asked.target);
                    lengths.unprompted += usize::from(asked.target == 0);
                }
                lengths.truncated += usize::from(sample.cut > 0);
                lengths.inspected += 1;
            }
        }
        let Lengths {
            truncated,
            inspected,
            ..
        } = lengths;
        if truncated > 0 {
            log::warn!(
                "{truncated} of {inspected} contexts are longer than tokens.max_context and are truncated"
            );
        }
        Ok(Self {
            lengths,
            fingerprint: Some(seen.finish()),
            ..self
        })
    }

    /// The contexts of the inspected validation samples, if they come from a file.
    #[cfg(feature = "train")]
    pub(crate) fn held_out(&self) -> Result<HashSet<Vec<u32>>, Error> {
        let contexts = self.of_a_file(&self.valid);
        contexts.map(|sample| Ok(sample?.context)).collect()
    }

    /// How many of the inspected training samples, if they come from a file, have one of these contexts.
    #[cfg(feature = "train")]
    pub(crate) fn trains_on(&self, held_out: &HashSet<Vec<u32>>) -> Result<usize, Error> {
        let mut known = 0;
        for sample in self.of_a_file(&self.train) {
            known += usize::from(held_out.contains(&sample?.context));
        }
        Ok(known)
    }

    #[cfg(feature = "train")]
    fn of_a_file<'a>(
        &self,
        samples: &'a Samples,
    ) -> impl Iterator<Item = Result<Sample, Error>> + use<'a> {
        let most = match self.shuffle {
            true => max_inspected(true),
            false => 0,
        };
        samples.iter().take(most)
    }
}
