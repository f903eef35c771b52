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
    let (types, tasks) = (ModelConfig::TYPES, DataConfig::TASKS);
    let model = chosen(table, "model", "model_type", types, ModelConfig::of_type)?;
    let data = chosen(table, "data", "task", tasks, DataConfig::of_task)?;
    Ok((model, data))
}

/// What the key of a section names, by which it is said what else the section may have: one of `names`, or the default without a section.
fn chosen<T: Default>(
    table: &toml::Table,
    section: &str,
    key: &str,
    names: &[&str],
    of: impl Fn(&str) -> Option<T>,
) -> Result<T, Error> {
    let problem = |value: String, what: &str| {
        let problem = format!("{what} one of {}", names.join(", "));
        Err(Error::config(format!("{section}.{key}"), value, problem))
    };
    match table.get(section).and_then(toml::Value::as_table) {
        Some(found) if !found.is_empty() => match found.get(key) {
            None => problem("none".into(), &format!("[{section}] needs it:")),
            Some(name) => match name.as_str().and_then(of) {
                Some(found) => Ok(found),
                None => problem(name.to_string(), "must be"),
            },
        },
        _ => Ok(T::default()),
    }
}
