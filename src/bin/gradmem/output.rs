//! Standard output and standard error, and the format of numbers in them.

use std::fmt::Arguments;
use std::io::{ErrorKind, IsTerminal as _, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};

use gradmem::Error;
use gradmem::report;
use gradmem::support::commands;
use gradmem::train::evaluation::Shown;
use gradmem::train::has_dashboard;
use gradmem::train::metrics::Measure;

use crate::processes::is_silent;

/// Prints a line on standard output.
macro_rules! say {
    ($($what:tt)*) => {
        $crate::output::put(format_args!("{}\n", format_args!($($what)*)))
    };
}
pub(crate) use say;

/// Prints a line on standard error. Where nobody reads it, the message is lost and nothing else.
macro_rules! message {
    ($($what:tt)*) => {
        $crate::output::report(format_args!("gradmem: {}\n", format_args!($($what)*)))
    };
}
pub(crate) use message;

/// See [`message`]. Unlike `eprintln!` it never panics: a signal handler or an error path must go on.
pub fn report(text: Arguments<'_>) {
    Errors.write_all(text.to_string().as_bytes()).ok();
}

/// What was written on [`Errors`] and not printed yet.
static HELD: Mutex<Vec<u8>> = Mutex::new(Vec::new());

/// Standard error. While a dashboard has its terminal, what is written is held back, until the next is written or flushed behind it.
pub struct Errors;

impl Write for Errors {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let mut held = HELD.lock().unwrap_or_else(PoisonError::into_inner);
        held.extend_from_slice(bytes);
        let mut err = std::io::stderr().lock();
        if !(has_dashboard() && err.is_terminal()) {
            err.write_all(&std::mem::take(&mut *held))?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.write(&[]).map(|_| ())
    }
}

/// Prints an error, and the exit status that it has.
pub fn failed(error: &Error) -> ExitCode {
    if !is_silent() {
        message!("{error}");
    }
    ExitCode::from(if error.is_user_error() { 2 } else { 1 })
}

/// A path, as [`shown`].
pub fn shown_path(path: &Path) -> String {
    shown(&path.display().to_string())
}

/// What a file holds, as it is printed in a line: characters that end lines, turn the writing's direction or command a terminal are
/// escapes.
pub fn shown(text: &str) -> String {
    let mut line = String::new();
    for c in text.chars() {
        match commands(c) {
            true => line.extend(c.escape_default()),
            false => line.push(c),
        }
    }
    line
}

/// Prints text that accompanies work which is done: where nobody reads it, it is lost and nothing else.
pub fn accompany(text: Arguments<'_>) {
    if is_silent() {
        return;
    }
    let mut out = std::io::stdout().lock();
    out.write_fmt(text).and_then(|()| out.flush()).ok();
}

/// The exit status of a program that SIGPIPE ended.
const BROKEN_PIPE: i32 = 128 + 13;

/// Prints text on standard output and flushes it. If that fails the program exits: without a message if the
/// reader has closed the pipe, as in `| head`.
pub fn put(text: Arguments<'_>) {
    let mut out = std::io::stdout().lock();
    if let Err(e) = out.write_fmt(text).and_then(|()| out.flush()) {
        exit_unwritten(&e);
    }
}

fn exit_unwritten(e: &std::io::Error) -> ! {
    if e.kind() == ErrorKind::BrokenPipe {
        std::process::exit(BROKEN_PIPE);
    }
    message!("standard output: cannot write: {e}");
    std::process::exit(1)
}

/// Prints what the parser of the arguments answers instead of a command: help, the version, or what is wrong with them. Gives the exit
/// status that it has.
pub fn answer(answer: &clap::Error) -> ExitCode {
    let printed = answer.print().and_then(|()| std::io::stdout().flush());
    match printed {
        Err(e) if !answer.use_stderr() => exit_unwritten(&e),
        _ if answer.use_stderr() => ExitCode::from(2),
        _ => ExitCode::SUCCESS,
    }
}

/// A measure's value with its unit.
pub fn format_measure(measure: Measure, value: f64) -> String {
    let unit = if measure.is_share() { " %" } else { "" };
    format!("{}{unit}", report::format_measure(measure, value))
}

/// Characters of a text that are printed.
const WIDTH: usize = 60;

/// The start of a text, in one line and without what commands a terminal.
pub fn clip(text: &str) -> String {
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let text = shown(&text);
    match text.char_indices().nth(WIDTH) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text,
    }
}

/// A question, the generated answer, and the right one.
pub fn format_answer(shown: &Shown) -> String {
    let mark = if shown.right { "✓" } else { "✗" };
    let [query, answer, target] = [&shown.query, &shown.answer, &shown.target].map(|x| clip(x));
    format!("{mark} {query} → {answer} (right: {target})")
}

/// A word for a shell's command line: in single quotes if it has more than letters, digits and marks without meaning.
pub fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "_-./:=@+,".contains(c);
    match !word.is_empty() && word.chars().all(plain) {
        true => word.into(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_where_a_shell_would_change_them() {
        for (word, shown) in [
            ("runs/kv-quick", "runs/kv-quick"),
            ("my runs/a", "'my runs/a'"),
            ("it's", r"'it'\''s'"),
            ("!aB:9x|", "'!aB:9x|'"),
            ("$HOME", "'$HOME'"),
            ("", "''"),
        ] {
            assert_eq!(quoted(word), shown);
        }
    }
}
