//! The folder that a run's model comes from.
//!
//! `[model] from` names it. Architecture, weights and tokenizer are those of the folder. A run that does not train the
//! model's weights leaves them out of its checkpoints, and keeps their fingerprint: it needs the folder to be used.

use std::path::{Path, PathBuf};

use super::overrides::{self, one_line};
use crate::data::TokensConfig;
use crate::error::Error;
use crate::interop::checkpoint;
use crate::model::ModelConfig;

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

/// Replaces the model's settings by those of the folder that `model.from` names, and leaves out the tokenizer if that
/// folder has one. The `overrides` among them must say the same as the folder. `model_of` reads those of a run from its
/// settings.
pub(super) fn follow(
    table: &mut toml::Table,
    overrides: &[String],
    model_of: impl FnOnce(&Path) -> Result<ModelConfig, Error>,
) -> Result<(), Error> {
    let Some(base) = Base::take(table)? else {
        return Ok(());
    };
    let folder = base.folder.as_path();
    if !folder.is_dir() {
        // A run that has all its weights goes on without it; one that begins is refused.
        if let Some(toml::Value::Table(model)) = table.get_mut("model") {
            base.put(model);
        }
        return Ok(());
    }
    let run = folder.join("config.toml");
    let model = match run.is_file() {
        true => model_of(&run)?,
        false => checkpoint::open_config(folder.join("config.json"))?.0,
    };
    let model = toml::Table::try_from(model);
    let mut model =
        model.map_err(|e| Error::Input(format!("model: {}", one_line(&e.to_string()))))?;
    let mut given = toml::Table::new();
    for text in overrides {
        overrides::apply(&mut given, text)?;
    }
    let given = |section: &str| given.get(section).and_then(toml::Value::as_table);
    let differs = |(key, value): &(&String, &toml::Value)| {
        *key != "from" && !model.get(key.as_str()).is_some_and(|own| same(own, value))
    };
    if let Some((key, value)) = given("model").and_then(|given| given.iter().find(differs)) {
        let theirs = model.get(key).map_or("unset".into(), ToString::to_string);
        let problem = format!(
            "the model is that of {}, where it is {theirs}: leave it out",
            base.text()
        );
        return Err(Error::config(format!("model.{key}"), value, problem));
    }
    base.put(&mut model);
    table.insert("model".into(), model.into());
    if base.tokenizer().is_none() {
        return Ok(());
    }
    // A file may be the folder's own, and is compared with it when it is open.
    let makes_another = |(key, value): &(&String, &toml::Value)| match key.as_str() {
        "tokenizer" => {
            let name = value.as_str();
            name.is_some_and(|name| TokensConfig::KINDS.contains(&name))
        }
        key => key == "vocab_size",
    };
    let tokens = given("tokens");
    if let Some((key, value)) = tokens.and_then(|tokens| tokens.iter().find(makes_another)) {
        let problem = format!("the tokenizer is that of {}: leave it out", base.text());
        return Err(Error::config(format!("tokens.{key}"), value, problem));
    }
    let names_file = tokens.is_some_and(|tokens| tokens.contains_key("tokenizer"));
    if let Some(toml::Value::Table(tokens)) = table.get_mut("tokens")
        && !names_file
    {
        tokens.remove("tokenizer");
    }
    Ok(())
}

/// Whether two values say the same: a number may be written as a whole one.
fn same(a: &toml::Value, b: &toml::Value) -> bool {
    let number = |value: &toml::Value| match value {
        toml::Value::Integer(whole) => Some(*whole as f64),
        other => other.as_float(),
    };
    a == b || (number(a).is_some() && number(a) == number(b))
}
