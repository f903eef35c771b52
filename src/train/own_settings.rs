//! `training.toml`: the settings of a training of another program's method.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::config::TrainConfig;
use super::overrides::{Difference, differences, one_line};
use crate::error::Error;
use crate::support::fs::read_text;

/// The file's name.
pub(super) const OWN: &str = "training.toml";

/// What `training.toml` has.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct OwnSettings {
    pub(super) train: TrainConfig,
    #[serde(default)]
    pub(super) about: toml::Table,
}

impl OwnSettings {
    /// Of the run in this folder, if there is one.
    pub(super) fn open(folder: &Path) -> Result<Option<Self>, Error> {
        let path = folder.join(OWN);
        if !path.exists() {
            return Ok(None);
        }
        Self::parse(&read_text(&path)?, &path).map(Some)
    }

    pub(super) fn parse(text: &str, path: &Path) -> Result<Self, Error> {
        toml::from_str(text).map_err(|e| Error::file(path, one_line(e.message())))
    }

    pub(super) fn to_toml(&self) -> Result<String, Error> {
        toml::to_string(self).map_err(|e| Error::Input(format!("settings of a training: {e}")))
    }

    /// The keys whose values differ from `other`'s, with both values.
    pub(super) fn differences(&self, other: &Self) -> Vec<Difference> {
        let json = |settings: &Self| serde_json::to_value(settings).unwrap_or_default();
        differences(&json(self), &json(other))
    }
}
