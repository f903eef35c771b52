//! Without the feature `data` there are no tokenizers.

use std::path::Path;

use crate::error::Error;

/// A tokenizer. Without the feature `data` there is none.
#[derive(Clone, Debug)]
pub enum Tokenizer {}

impl Tokenizer {
    pub(crate) fn to_string(&self, _pretty: bool) -> Result<String, Error> {
        match *self {}
    }

    pub(crate) fn id_to_token(&self, _id: u32) -> Option<String> {
        match *self {}
    }
}

/// None.
pub(crate) fn open_folder(_: impl AsRef<Path>, _: usize) -> Result<Option<Tokenizer>, Error> {
    Ok(None)
}
