//! What every source of examples has in common.

use std::path::Path;

use burn::data::dataset::Dataset;

use super::Example;
use crate::error::Error;
use crate::support::fs::check_file;

/// The examples of any source, one form for all: those read from a disk while training can fail.
pub type Examples = Box<dyn Dataset<Result<Example, Error>>>;

/// What is learned from, and what is held out.
pub type Sources = (Examples, Examples);

/// A data set that cannot fail.
struct Sure<D>(D);

impl<D: Dataset<Example>> Dataset<Result<Example, Error>> for Sure<D> {
    fn get(&self, index: usize) -> Option<Result<Example, Error>> {
        self.0.get(index).map(Ok)
    }

    fn len(&self) -> usize {
        self.0.len()
    }
}

/// A data set that cannot fail, in the form of those that can.
pub(crate) fn boxed(dataset: impl Dataset<Example> + 'static) -> Examples {
    Box::new(Sure(dataset))
}

/// The text of a published data set's file. If the file is not there, says where to get it
/// (`published`) and which setting names it.
pub(crate) fn read_text(path: &Path, key: &str, published: &str) -> Result<String, Error> {
    check_file(path)?;
    let bytes = match std::fs::read(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            let problem =
                format!("is not there: {published}; download it and put its path into data.{key}");
            return Err(Error::file(path, problem));
        }
        bytes => bytes.map_err(Error::io(path, "cannot read"))?,
    };
    let mut text = String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        let before = &e.as_bytes()[..at];
        let line = 1 + before.iter().filter(|byte| **byte == b'\n').count();
        Error::file(
            path,
            format!("line {line}, byte {at} of the file: is not UTF-8"),
        )
    })?;
    if text.starts_with(BOM) {
        text.drain(..BOM.len_utf8());
    }
    match text.trim().is_empty() {
        true => Err(Error::file(path, format!("is empty: {published}"))),
        false => Ok(text),
    }
}

/// The byte-order mark, which some editors put before a text.
pub(crate) const BOM: char = '\u{feff}';

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_without_its_mark_or_the_error_says_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data");
        let read = || read_text(&path, "valid_file", "it is published at example.org");
        let error = read().unwrap_err();
        assert!(error.is_user_error());
        let error = error.to_string();
        assert!(
            error.contains("example.org") && error.contains("data.valid_file"),
            "{error}"
        );
        std::fs::write(&path, "\u{feff}a\nb").unwrap();
        assert_eq!(read().unwrap(), "a\nb");
        std::fs::write(&path, b"a\nb\xff").unwrap();
        let error = read().unwrap_err().to_string();
        assert!(error.contains("line 2, byte 3"), "{error}");
        std::fs::write(&path, "\u{feff} \n").unwrap();
        assert!(read().unwrap_err().to_string().contains("is empty"));
    }
}
