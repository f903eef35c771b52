//! The names in settings that choose what a run is made of: its method, model, task and stop metric. An error says which there are.

use super::metrics::Measure;
use crate::data::DataConfig;
use crate::error::{Error, require};
use crate::method::MethodName;
use crate::model::ModelConfig;

/// Fails on names of which serde would not say which can be used.
pub(super) fn check(table: &toml::Table) -> Result<(), Error> {
    use MethodName::{Armt, GradMem, InContext, Rmt};
    let method = match table.get("method") {
        None => MethodName::default(),
        Some(name) => name.clone().try_into::<MethodName>().map_err(|_| {
            let names = [GradMem, Rmt, Armt, InContext].map(MethodName::as_str);
            let problem = format!("must be one of {}", names.join(", "));
            Error::config("method", name, problem)
        })?,
    };
    let train = table.get("train");
    match train.and_then(|train| train.get("stop_metric")) {
        Some(name) => check_stop_metric(name.as_str().unwrap_or(&name.to_string()), method),
        None => Ok(()),
    }
}

/// Fails unless a measure of this name can stop a training of this method.
pub(super) fn check_stop_metric(name: &str, method: MethodName) -> Result<(), Error> {
    let names: Vec<_> = Measure::of(method).iter().map(|m| m.key()).collect();
    let (with, listed) = (method.as_str(), names.join(", "));
    let problem = format!("with {with} it must be one of {listed}");
    require(names.contains(&name), "train.stop_metric", name, problem)
}

/// A model of the type and a task of the name that `table` has, with the defaults of their other settings.
pub(super) fn model_and_task(table: &toml::Table) -> Result<(ModelConfig, DataConfig), Error> {
    // What a section may have is said by a key of it.
    let tag = |section: &str, key: &str, names: &[&str]| {
        let section_of = table.get(section).and_then(toml::Value::as_table);
        match section_of.filter(|section| !section.is_empty()) {
            Some(found) if !found.contains_key(key) => {
                let problem = format!("[{section}] needs it: one of {}", names.join(", "));
                Err(Error::config(format!("{section}.{key}"), "none", problem))
            }
            found => Ok(found.and_then(|found| found.get(key))),
        }
    };
    let model = match tag("model", "model_type", ModelConfig::TYPES)? {
        None => ModelConfig::default(),
        Some(name) => {
            let found = name.as_str().and_then(ModelConfig::of_type);
            found.ok_or_else(|| {
                let problem = format!("must be one of {}", ModelConfig::TYPES.join(", "));
                Error::config("model.model_type", name, problem)
            })?
        }
    };
    let data = match tag("data", "task", DataConfig::TASKS)? {
        None => DataConfig::default(),
        Some(name) => {
            let found = name.as_str().and_then(DataConfig::of_task);
            found.ok_or_else(|| {
                let problem = format!("must be one of {}", DataConfig::TASKS.join(", "));
                Error::config("data.task", name, problem)
            })?
        }
    };
    Ok((model, data))
}
