//! What sources of examples share: their common type, and reading of text files.

use std::path::Path;

use burn::data::dataset::Dataset;

use super::Example;
use crate::error::Error;
use crate::support::fs::check_file;

/// The examples of any source. Reading one can fail: some sources read from disk during training.
pub type Examples = Box<dyn Dataset<Result<Example, Error>>>;

/// The training examples and the validation examples.
pub type Sources = (Examples, Examples);

/// A dataset whose items never fail.
struct AlwaysOk<D>(D);

impl<D: Dataset<Example>> Dataset<Result<Example, Error>> for AlwaysOk<D> {
    fn get(&self, index: usize) -> Option<Result<Example, Error>> {
        self.0.get(index).map(Ok)
    }

    fn len(&self) -> usize {
        self.0.len()
    }
}

/// Any white space as one space, and none around the text.
pub(crate) fn single_spaces(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Boxes a dataset whose items never fail as [`Examples`].
pub(crate) fn boxed(dataset: impl Dataset<Example> + 'static) -> Examples {
    Box::new(AlwaysOk(dataset))
}

/// Warns of validation data that tests less than it seems to: for each of its samples, whether its context is trained on.
pub(crate) fn warn_of_known(is_known: impl Iterator<Item = bool>) {
    let (mut known, mut all) = (0, 0);
    for is_known in is_known {
        known += usize::from(is_known);
        all += 1;
    }
    if known > 0 {
        log::warn!("{known} of {all} validation samples have a context that is trained on too");
    }
}

/// Reads the text of a published dataset's file. If there is no such file, the error says where to get it
/// (`published`) and which setting names it (`key`).
pub(crate) fn read_text(path: &Path, key: &str, published: &str) -> Result<String, Error> {
    check_file(path)?;
    let bytes = match std::fs::read(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            let problem = format!(
                "does not exist: {published}; download it and put its path into data.{key}"
            );
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

/// The byte-order mark that some editors write at the start of a text.
pub(crate) const BOM: char = '\u{feff}';

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_read_without_byte_order_mark_and_errors_are_helpful() {
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
