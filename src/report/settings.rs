//! A run's settings as flat keys, without those that have no effect on its results.

use std::collections::BTreeMap;

use serde_json::Value as Json;

use super::format::format_exactly;
use crate::method::MethodName;
use crate::train::config::RunConfig;

/// Settings by key, such as `data.pairs`.
pub type Settings = BTreeMap<String, Json>;

/// The names of a setting: its key, its symbol in a label, and its name on an axis.
struct SettingNames {
    key: &'static str,
    symbol: &'static str,
    axis: &'static str,
}

const fn named(key: &'static str, symbol: &'static str, axis: &'static str) -> SettingNames {
    SettingNames { key, symbol, axis }
}

/// Settings with a symbol, in their order in a group's label.
const NAMED: [SettingNames; 16] = [
    named("data.task", "", "task"),
    named("data.pairs", "N", "N, pairs in a context"),
    named("data.hops", "H", "H, edges of a chain"),
    named("data.context_tokens", "L", "L, tokens of a context"),
    named("memory.write_steps", "K", "K, WRITE steps in training"),
    named("memory.memory_tokens", "m", "m, memory vectors"),
    named("data.queries_per_context", "R", "R, queries to a context"),
    named("model.model_type", "on", "model"),
    named("model.hidden_size", "d", "d, width of the model"),
    named("model.n_embd", "d", "d, width of the model"),
    named("model.num_hidden_layers", "layers", "layers of the model"),
    named("model.n_layer", "layers", "layers of the model"),
    named("memory.write_lr", "α", "α, step size of WRITE"),
    named("train.lr", "lr", "learning rate"),
    named("train.batch_size", "batch", "contexts a step"),
    named("memory.write_head", "WRITE head", "WRITE head"),
];

/// Settings of the number of steps, samples and evaluations: they distinguish groups only if no other setting
/// does, and nothing is plotted against them.
const INCIDENTAL: [&str; 10] = [
    "data.train_samples",
    "data.valid_samples",
    "train.eval_every",
    "train.curriculum",
    "train.curriculum_value",
    "train.steps",
    "train.stop_metric",
    "train.stop_value",
    "train.patience",
    "model.max_position_embeddings",
];

/// Settings without effect on the results, except for rounding.
const WITHOUT_EFFECT: [&str; 5] = [
    "train.seed",
    "train.log_every",
    "train.meta_gradient",
    "train.micro_batch",
    "train.keep_checkpoints",
];

/// The settings that a run's results depend on, except its seed: of [`all`] those that have an effect beside the others.
pub fn relevant(config: &RunConfig) -> Settings {
    kept(config, |key| config.without_effect(key).is_none())
}

/// The settings that results of the run's method can depend on, except the seed. A baseline's memory settings get the keys of GradMem's.
pub fn all(config: &RunConfig) -> Settings {
    kept(config, |_| true)
}

fn kept(config: &RunConfig, keep: impl Fn(&str) -> bool) -> Settings {
    let mut flat = Settings::new();
    flatten(
        "",
        serde_json::to_value(config).unwrap_or_default(),
        &mut flat,
    );
    if let Some(base) = &config.base {
        flat.insert("model.from".into(), base.text().into());
    }
    let own = config.method.section();
    flat.into_iter()
        .filter(|(key, value)| {
            let (section, _) = key.split_once('.').unwrap_or_default();
            let foreign = MethodName::SECTIONS.contains(&section) && section != own;
            !foreign && !value.is_null() && !WITHOUT_EFFECT.contains(&key.as_str()) && keep(key)
        })
        .map(|(key, value)| match key.split_once('.') {
            Some((section, key)) if section == own && config.method != MethodName::InContext => {
                (format!("memory.{key}"), value)
            }
            _ => (key, value),
        })
        .collect()
}

fn flatten(path: &str, value: Json, flat: &mut Settings) {
    match value {
        Json::Object(object) => {
            for (key, value) in object {
                let full = match path {
                    "" => key,
                    _ => format!("{path}.{key}"),
                };
                flatten(&full, value, flat);
            }
        }
        value => {
            flat.insert(path.into(), value);
        }
    }
}

/// The position of a key in a group's label.
pub fn rank(key: &str) -> usize {
    let named = NAMED.iter().position(|named| named.key == key);
    let last = is_incidental(key);
    named.unwrap_or(if last { usize::MAX } else { NAMED.len() })
}

/// Whether it is one of the settings that distinguish groups only if no other does.
pub fn is_incidental(key: &str) -> bool {
    INCIDENTAL.contains(&key)
}

/// Whether results are plotted against it.
pub fn is_axis(key: &str) -> bool {
    !is_incidental(key) && key != "memory.write_steps"
}

/// A setting in a label: `N = 4`.
pub fn label(key: &str, value: &Json) -> String {
    let value = format_value(value);
    let named = NAMED.iter().find(|named| named.key == key);
    match named.map(|named| named.symbol) {
        Some("") => value,
        Some("on") => format!("on {value}"),
        Some(symbol) => format!("{symbol} = {value}"),
        None => {
            let word = key.rsplit('.').next().unwrap_or(key).replace('_', " ");
            format!("{word} = {value}")
        }
    }
}

/// The name of a setting on an axis.
pub fn axis_label(key: &str) -> String {
    let named = NAMED.iter().find(|named| named.key == key);
    named.map_or_else(|| key.into(), |named| named.axis.into())
}

/// The text of a value.
pub fn format_value(value: &Json) -> String {
    match value {
        Json::String(text) => text.clone(),
        Json::Number(number) if number.is_f64() => {
            format_exactly(number.as_f64().unwrap_or_default())
        }
        other => other.to_string(),
    }
}
