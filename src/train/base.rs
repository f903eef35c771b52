//! The folder that a run's model comes from.
//!
//! `[model] from` names it. Architecture, weights and tokenizer are those of the folder. A run that does not train the
//! model's weights leaves them out of its checkpoints, and keeps their fingerprint: it needs the folder to be used.

use std::path::PathBuf;

use crate::error::Error;

/// A folder with a model: a run's, one of Hugging Face's format, or a checkpoint of the reference implementation.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Base {
    /// The folder. In the settings that a run keeps it is absolute.
    pub folder: PathBuf,
    /// A hash of the model's weights and settings, in a run that does not train them.
    pub fingerprint: Option<String>,
}

impl Base {
    /// Of a folder, whatever its weights are.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self {
            folder: folder.into(),
            fingerprint: None,
        }
    }

    /// Takes it out of a run's settings: `model.from` and `model.fingerprint`.
    pub(super) fn take(settings: &mut toml::Table) -> Result<Option<Self>, Error> {
        let Some(toml::Value::Table(model)) = settings.get_mut("model") else {
            return Ok(None);
        };
        let mut text = |key: &str| match model.remove(key) {
            None => Ok(None),
            Some(toml::Value::String(text)) if !text.is_empty() => Ok(Some(text)),
            Some(other) => {
                let problem = match other.is_str() {
                    true => "is empty: leave it out",
                    false => "must be a text",
                };
                Err(Error::config(format!("model.{key}"), other, problem))
            }
        };
        match (text("from")?, text("fingerprint")?) {
            (None, Some(print)) => {
                let problem = "is of the folder that model.from names, and there is no model.from: leave it out";
                Err(Error::config("model.fingerprint", print, problem))
            }
            (from, fingerprint) => Ok(from.map(|from| Self {
                fingerprint,
                ..Self::new(from)
            })),
        }
    }

    /// Puts it into the settings of a run's model.
    pub(super) fn put(&self, model: &mut toml::Table) {
        model.insert("from".into(), self.text().into());
        let print = self.fingerprint.clone();
        model.extend(print.map(|print| ("fingerprint".into(), print.into())));
    }

    /// Its lines in a run's settings, under `[model]`.
    pub(super) fn lines(&self) -> String {
        let mut lines = toml::Table::new();
        self.put(&mut lines);
        lines.to_string()
    }

    /// The folder as text.
    pub(crate) fn text(&self) -> String {
        self.folder.display().to_string()
    }

    /// Fails if there is no such folder.
    pub(super) fn check(&self) -> Result<(), Error> {
        match self.folder.is_dir() {
            true => Ok(()),
            false => Err(Error::file(
                &self.folder,
                "is not a folder with a model (`model.from`, `--from`)",
            )),
        }
    }

    /// Its tokenizer's file, if it has one.
    pub(super) fn tokenizer(&self) -> Option<PathBuf> {
        Some(self.folder.join("tokenizer.json")).filter(|path| path.exists())
    }
}
