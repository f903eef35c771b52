//! Texts from files and standard input.

use std::io::Read as _;
use std::path::Path;

use gradmem::Error;
use gradmem::support::text_of_bytes;

/// The text of a file, or of standard input for `-`, without a line break at its end.
pub fn read_text(path: &Path) -> Result<String, Error> {
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

/// The lines of a file of questions.
pub fn read_questions(path: &Path) -> Result<Vec<String>, Error> {
    let text = read_text(path)?;
    match text.is_empty() {
        true => Err(Error::Input(format!("{}: has no question", path.display()))),
        false => Ok(text.lines().map(String::from).collect()),
    }
}

/// Adds the file to an error about its text.
pub fn in_file(path: &Path, e: Error) -> Error {
    Error::Input(format!("{}: {e}", path.display()))
}
