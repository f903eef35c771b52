//! One error type: what went wrong, where, and what would be right.

use std::fmt::{self, Display, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Everything that can go wrong in this crate.
///
/// Messages are one line and name the key, file, shape or sample at fault. [`Error::is_user_error`]
/// tells a caller's mistake (the command exits with 2) from a failure of the machine (1).
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A setting has a value that cannot work.
    #[error("{}", OneLine(format_args!("`{key}` = {value}: {problem}")))]
    Config {
        /// The setting, as it is written in a preset (`memory.write_lr`).
        key: String,
        /// The value it has.
        value: String,
        /// Why that cannot work, and what could.
        problem: String,
    },
    /// An argument, tensor or text that a function cannot take.
    #[error("{}", OneLine(format_args!("{_0}")))]
    Input(String),
    /// A file that holds something else than it should.
    #[error("{}", OneLine(format_args!("{}: {problem}", path.display())))]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and what was expected.
        problem: String,
    },
    /// The operating system could not read or write a file.
    #[error("{}", OneLine(format_args!("{}: {action}: {source}", path.display())))]
    Io {
        /// The file.
        path: PathBuf,
        /// What was being done.
        action: &'static str,
        /// The system's own words.
        source: Arc<std::io::Error>,
    },
    /// WRITE became non-finite.
    #[error("WRITE became {value} at step {step}, batch {batch}, sample {sample}: {hint}")]
    NotFinite {
        /// The WRITE quantity, and its value.
        value: String,
        /// Optimizer step (or evaluation step) it happened in, from 1.
        step: usize,
        /// Batch of that step's data, from 0.
        batch: usize,
        /// Sample of that batch, from 0.
        sample: usize,
        /// What could help.
        hint: String,
    },
    /// A check that was asked for did not hold.
    #[error("{}", OneLine(format_args!("{_0}")))]
    Failed(String),
}

/// The longest message, in characters.
const LONGEST: usize = 2000;

/// A message as a single line that is not endless. It repeats what a file holds, which may be anything:
/// characters that end lines, turn the writing's direction or command a terminal are written as escapes.
struct OneLine<'a>(fmt::Arguments<'a>);

impl Display for OneLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = Line { left: LONGEST, f };
        line.write_fmt(self.0)
    }
}

/// Whether a character ends lines, turns the writing's direction or commands a terminal.
pub fn commands(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

struct Line<'a, 'b> {
    /// Characters there is still room for.
    left: usize,
    f: &'a mut fmt::Formatter<'b>,
}

impl Write for Line<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for c in plain_types(text).chars() {
            match self.left {
                0 => return Ok(()),
                1 => self.f.write_str(" …")?,
                _ if commands(c) => write!(self.f, "{}", c.escape_default())?,
                _ => self.f.write_char(c)?,
            }
            self.left -= 1;
        }
        Ok(())
    }
}

/// A message of serde's, without Rust's names of numbers.
fn plain_types(text: &str) -> String {
    let mut text = text.to_string();
    for (rust, plain) in [
        ("expected usize", "expected a whole number"),
        ("expected u64", "expected a whole number"),
        ("expected u32", "expected a whole number"),
        ("expected i64", "expected a whole number"),
        ("expected f64", "expected a number"),
        ("expected f32", "expected a number"),
        ("expected a sequence", "expected a list"),
    ] {
        text = text.replace(rust, plain);
    }
    text
}

impl Error {
    pub(crate) fn config(
        key: impl Into<String>,
        value: impl std::fmt::Display,
        problem: impl Into<String>,
    ) -> Self {
        Self::Config {
            key: key.into(),
            value: value.to_string(),
            problem: problem.into(),
        }
    }

    /// What is wrong with a file.
    pub fn file(path: impl AsRef<Path>, problem: impl Into<String>) -> Self {
        Self::File {
            path: path.as_ref().into(),
            problem: problem.into(),
        }
    }

    pub(crate) fn io(
        path: impl AsRef<Path>,
        action: &'static str,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.as_ref().to_path_buf();
        move |source| Self::Io {
            path,
            action,
            source: Arc::new(source),
        }
    }

    /// The same error, with its key placed under `section` (`write_lr` → `memory.write_lr`).
    #[cfg(feature = "data")]
    pub(crate) fn in_section(self, section: &str) -> Self {
        match self {
            Self::Config {
                key,
                value,
                problem,
            } => Self::Config {
                key: format!("{section}.{key}"),
                value,
                problem,
            },
            other => other,
        }
    }

    /// Whether whoever called can mend it: a wrong setting, argument or file.
    pub fn is_user_error(&self) -> bool {
        match self {
            Self::Config { .. } | Self::Input(_) | Self::File { .. } => true,
            Self::Io { source, .. } => matches!(
                source.kind(),
                std::io::ErrorKind::NotFound
                    | std::io::ErrorKind::PermissionDenied
                    | std::io::ErrorKind::IsADirectory
                    | std::io::ErrorKind::NotADirectory
                    | std::io::ErrorKind::AlreadyExists
                    | std::io::ErrorKind::InvalidInput
                    | std::io::ErrorKind::InvalidFilename
            ),
            Self::NotFinite { .. } | Self::Failed(_) => false,
        }
    }
}

/// Fails with [`Error::Config`] unless `holds`.
pub(crate) fn require(
    holds: bool,
    key: &str,
    value: impl std::fmt::Display,
    problem: impl Into<String>,
) -> Result<(), Error> {
    match holds {
        true => Ok(()),
        false => Err(Error::config(key, value, problem)),
    }
}

/// Fails on the first of these settings that is 0.
pub(crate) fn at_least_one(
    settings: impl IntoIterator<Item = (&'static str, usize)>,
) -> Result<(), Error> {
    settings
        .into_iter()
        .try_for_each(|(key, value)| require(value > 0, key, value, "must be at least 1"))
}

/// The largest size that anything may have: products of a few of them can still be counted.
const LARGEST: usize = 1 << 24;

/// Fails on the first of these sizes that is 0 or absurd.
pub(crate) fn sizes(
    settings: impl IntoIterator<Item = (&'static str, usize)>,
) -> Result<(), Error> {
    settings.into_iter().try_for_each(|(key, value)| {
        let problem = format!("must be at least 1 and at most {LARGEST}");
        require((1..=LARGEST).contains(&value), key, value, problem)
    })
}

/// Fails on the first of these settings that is not above 0 and finite.
pub(crate) fn positive(
    settings: impl IntoIterator<Item = (&'static str, f64)>,
) -> Result<(), Error> {
    settings.into_iter().try_for_each(|(key, value)| {
        let positive = value > 0.0 && value.is_finite();
        require(positive, key, value, "must be a positive number")
    })
}

/// Fails on the first of these settings that is below 0 or not finite.
pub(crate) fn not_negative(
    settings: impl IntoIterator<Item = (&'static str, f64)>,
) -> Result<(), Error> {
    settings.into_iter().try_for_each(|(key, value)| {
        let fits = value >= 0.0 && value.is_finite();
        require(fits, key, value, "must be 0 or a positive number")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_has_no_type_of_rust() {
        let error = serde_json::from_str::<usize>("\"wide\"").unwrap_err();
        let error = Error::file("a.json", error.to_string()).to_string();
        assert!(error.contains("expected a whole number"), "{error}");
    }

    #[test]
    fn a_message_is_one_line_whatever_it_repeats() {
        let error = Error::file("a\nb", "has `\u{1b}[2J\u{202e}é\r\n`");
        assert_eq!(error.to_string(), "a\\nb: has `\\u{1b}[2J\\u{202e}é\\r\\n`");
        let long = Error::Input("é".repeat(10_000)).to_string();
        assert!(long.chars().count() <= LONGEST + 1 && long.ends_with("é …"));
        let longest = "a".repeat(LONGEST - 1);
        assert_eq!(Error::Input(longest.clone()).to_string(), longest);
    }
}
