//! Texts from files and standard input.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use gradmem::Error;
use gradmem::support::text_of_bytes;

/// The [`read_text`] of each.
pub fn read_texts(paths: &[PathBuf]) -> Result<Vec<String>, Error> {
    if paths.iter().filter(|path| path.as_os_str() == "-").count() > 1 {
        let problem = "-: standard input is one text: name it once";
        return Err(Error::Input(problem.into()));
    }
    paths.iter().map(|path| read_text(path)).collect()
}

/// The text of a file, or of standard input for `-`, without a line break at its end.
fn read_text(path: &Path) -> Result<String, Error> {
    let mut bytes = Vec::new();
    let read = match path.as_os_str() == "-" {
        true => std::io::stdin().read_to_end(&mut bytes),
        false => std::fs::File::open(path).and_then(|mut file| file.read_to_end(&mut bytes)),
    };
    read.map_err(|e| Error::Input(format!("{}: cannot read: {e}", path.display())))?;
    let text = text_of_bytes(bytes)
        .map_err(|problem| Error::Input(format!("{}: {problem}", path.display())))?;
    let text = text.as_str();
    if let Some(at) = text.find('\0') {
        return Err(Error::Input(format!(
            "{}: is not text: it has a zero at byte {at}",
            path.display()
        )));
    }
    let text = text.strip_suffix('\n').unwrap_or(text);
    Ok(text.strip_suffix('\r').unwrap_or(text).into())
}

/// The lines of a file of questions, each with its number, from 1. Blank lines are none.
pub fn read_questions(path: &Path) -> Result<Vec<(usize, String)>, Error> {
    let text = read_text(path)?;
    let lines = text.lines().enumerate();
    let questions = lines.filter(|(_, line)| !line.trim().is_empty());
    let questions: Vec<_> = questions
        .map(|(at, line)| (at + 1, line.to_string()))
        .collect();
    match questions.is_empty() {
        true => Err(Error::Input(format!("{}: has no question", path.display()))),
        false => Ok(questions),
    }
}

/// Adds the file to an error about its text.
pub fn in_file(path: &Path, e: Error) -> Error {
    Error::Input(format!("{}: {e}", path.display()))
}
