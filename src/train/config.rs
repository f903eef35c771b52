//! A run's settings: a TOML file in parts, and `key=value` overrides.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use super::metrics::Measure;
use crate::baselines::RmtConfig;
use crate::data::{DataConfig, Lengths, TextTokenizer, TokensConfig};
use crate::error::{Error, at_least_one, require};
use crate::memory::{GradMemConfig, MetaGradient};
use crate::method::{MethodConfig, MethodName};
use crate::model::ModelConfig;
use crate::support::fs::read_text;

/// Each preset's name and file.
macro_rules! presets {
    ($($name:literal),*) => {
        [$(($name, include_str!(concat!("../../presets/", $name, ".toml")))),*]
    };
}

/// The presets that come with the crate: the paper's experiments, and small ones of their kind.
const PRESETS: [(&str, &str); 14] = presets![
    "babi",
    "babi-small",
    "kv",
    "kv-n8",
    "kv-quick",
    "kv-small",
    "lm",
    "lm-small",
    "phonebook",
    "phonebook-small",
    "squad",
    "squad-small",
    "text",
    "text-small"
];

/// Everything a run depends on.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RunConfig {
    /// How contexts are taken in: `gradmem`, `rmt` or `in-context`.
    pub method: MethodName,
    /// What is learned.
    pub data: DataConfig,
    /// How its texts become tokens.
    pub tokens: TokensConfig,
    /// The language model.
    pub model: ModelConfig,
    /// GradMem's WRITE and READ.
    pub memory: GradMemConfig,
    /// The settings of RMT, if that is the method.
    pub rmt: RmtConfig,
    /// The outer loop.
    pub train: TrainConfig,
}

/// Settings of the outer loop.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TrainConfig {
    /// Fixes everything: initial weights, data, and so the whole run.
    pub seed: u64,
    /// Optimizer steps.
    pub steps: usize,
    /// Contexts a step.
    pub batch_size: usize,
    /// Learning rate of AdamW, constant after the warm-up.
    pub lr: f64,
    /// Steps over which the learning rate rises linearly from zero.
    pub warmup_steps: usize,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Rescales the outer gradient to at most this global L2 norm.
    pub clip_norm: Option<f64>,
    /// How GradMem's outer gradient is computed. A run keeps what `auto` chose when it began.
    pub meta_gradient: MetaGradient,
    /// Takes at most so many of a step's contexts at once: less memory, the same gradient to rounding.
    pub micro_batch: Option<usize>,
    /// Steps between evaluations on the validation set, and between checkpoints.
    pub eval_every: usize,
    /// Steps between lines of the log.
    pub log_every: usize,
    /// Stops the run when this metric of the validation set reaches `stop_value`; it also chooses the
    /// best checkpoint.
    pub stop_metric: Measure,
    /// See `stop_metric`.
    pub stop_value: Option<f64>,
    /// Easier versions of the task that come before it, each as `[data]` settings that differ, such as
    /// `"pairs=2 queries_per_context=2"`, without a space inside a value. The run goes on to the next when `stop_metric` reaches
    /// `curriculum_value`.
    pub curriculum: Vec<String>,
    /// See `curriculum`.
    pub curriculum_value: f64,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            seed: 0,
            steps: 10_000,
            batch_size: 64,
            lr: 1e-4,
            warmup_steps: 0,
            weight_decay: 0.0,
            clip_norm: None,
            meta_gradient: MetaGradient::Auto,
            micro_batch: None,
            eval_every: 500,
            log_every: 50,
            stop_metric: Measure::ExactMatch,
            stop_value: None,
            curriculum: Vec::new(),
            curriculum_value: 0.9,
        }
    }
}

impl TrainConfig {
    fn validate(&self) -> Result<(), Error> {
        at_least_one([
            ("steps", self.steps),
            ("batch_size", self.batch_size),
            ("eval_every", self.eval_every),
            ("log_every", self.log_every),
            ("micro_batch", self.micro_batch.unwrap_or(1)),
        ])?;
        let lr = self.lr;
        require(
            lr > 0.0 && lr <= 1.0,
            "lr",
            lr,
            "must be above 0 and at most 1",
        )?;
        let decay = self.weight_decay;
        let fits = decay >= 0.0 && decay.is_finite();
        require(
            fits,
            "weight_decay",
            decay,
            "must be 0 or a positive number",
        )?;
        if let Some(clip) = self.clip_norm {
            let problem = "must be a positive number (leave it out for no clipping)";
            require(clip > 0.0 && clip.is_finite(), "clip_norm", clip, problem)?;
        }
        if let Some(value) = self.stop_value {
            require(value.is_finite(), "stop_value", value, "must be a number")?;
        }
        let value = self.curriculum_value;
        require(
            value.is_finite(),
            "curriculum_value",
            value,
            "must be a number",
        )?;
        let items = self.steps.checked_mul(self.batch_size);
        let problem = "steps × batch_size is more than this machine can count";
        require(items.is_some(), "steps", self.steps, problem)
    }
}

impl RunConfig {
    /// A preset by name, or a TOML file by path, with `key=value` overrides applied in order.
    ///
    /// # Errors
    ///
    /// Names the key that is unknown, has a value of the wrong kind or a value that cannot work.
    pub fn resolve(preset: &str, overrides: &[String]) -> Result<Self, Error> {
        let text = preset_text(preset)?;
        let mut table = parse(&text, preset)?;
        for text in overrides {
            apply_override(&mut table, text)?;
        }
        Self::from_table(table, preset)
    }

    /// Reads a whole configuration, as a run folder holds it.
    ///
    /// # Errors
    ///
    /// If the file cannot be read, is no TOML, lacks a key or has one too many, or its values cannot work.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        let name = path.display().to_string();
        let text = read_text(path)?;
        Self::from_table(parse(&text, &name)?, &name)
    }

    /// The configuration as TOML, every value spelled out.
    ///
    /// # Errors
    ///
    /// If a number is beyond what TOML can hold.
    pub fn to_toml(&self) -> Result<String, Error> {
        toml::to_string(self).map_err(|e| Error::Input(format!("configuration: {e}")))
    }

    fn from_table(table: toml::Table, name: &str) -> Result<Self, Error> {
        check_keys(&table, &known(&table)?, "")?;
        let config = toml::Value::Table(table.clone()).try_into::<Self>();
        let config = config.map_err(|e| match misfit(&table) {
            Some(error) => error,
            None => Error::Input(format!("{name}: {}", one_line(&e.to_string()))),
        })?;
        config.validate()?;
        Ok(config)
    }

    /// Checks every value, alone and with the others.
    ///
    /// # Errors
    ///
    /// The first value that cannot work, by its key and with the reason: [`Error::Config`].
    pub fn validate(&self) -> Result<(), Error> {
        self.data.validate().map_err(|e| e.in_section("data"))?;
        self.tokens.validate().map_err(|e| e.in_section("tokens"))?;
        self.model.validate().map_err(|e| e.in_section("model"))?;
        self.memory.validate().map_err(|e| e.in_section("memory"))?;
        self.rmt.validate().map_err(|e| e.in_section("rmt"))?;
        let used = !self.rmt.write_head || self.rmt.reconstruction_loss_weight > 0.0;
        let problem =
            "only the reconstruction loss uses it: set rmt.reconstruction_loss_weight too";
        require(used, "rmt.write_head", true, problem)?;
        self.train.validate().map_err(|e| e.in_section("train"))?;
        let measure = self.train.stop_metric;
        let problem = format!("training with {} does not measure it", self.method.as_str());
        let measured = Measure::of(self.method).contains(&measure);
        require(measured, "train.stop_metric", measure.key(), problem)?;
        self.stages()?;
        let own = matches!(self.data, DataConfig::Kv(_));
        let problem = "key-value retrieval has tokens of its own: leave it out";
        let default = TokensConfig::default();
        let fits = !own || self.tokens.tokenizer == default.tokenizer;
        require(fits, "tokens.tokenizer", &self.tokens.tokenizer, problem)?;
        match &self.data {
            // All is known without a file being opened.
            DataConfig::Kv(data) => {
                self.check_vocab(&data.tokenizer()?)?;
                let context = data.context_len();
                self.check_room(&Lengths {
                    context: context.min(self.tokens.max_context.unwrap_or(context)),
                    question: data.question_len(),
                    ..Lengths::default()
                })
            }
            _ => Ok(()),
        }
    }

    /// The versions of the task that a run goes through, the task itself last.
    ///
    /// # Errors
    ///
    /// Names the version that no task can be, or is another one.
    pub fn stages(&self) -> Result<Vec<DataConfig>, Error> {
        let table = |data: &DataConfig| {
            let table = toml::Table::try_from(data);
            table.map_err(|e| Error::Input(format!("data: {}", one_line(&e.to_string()))))
        };
        let own = table(&self.data)?;
        let task = own.get("task").cloned();
        let stage = |text: &String| {
            let wrong = |e: &dyn std::fmt::Display| {
                Error::config(
                    "train.curriculum",
                    format!("{text:?}"),
                    one_line(&e.to_string()),
                )
            };
            let mut stage = toml::Table::from_iter([("data".into(), own.clone().into())]);
            if text.trim().is_empty() {
                return Err(wrong(&"must name a setting of [data] that differs"));
            }
            for part in text.split_whitespace() {
                apply_override(&mut stage, &format!("data.{part}")).map_err(|e| wrong(&e))?;
            }
            let known = serde_json::to_value(RunConfig {
                data: self.data.clone(),
                ..RunConfig::default()
            });
            check_keys(&stage, &known.unwrap_or_default(), "").map_err(|e| wrong(&e))?;
            let data = stage.remove("data").unwrap_or_else(|| own.clone().into());
            if data.get("task") != task.as_ref() {
                return Err(wrong(&"must be the same task"));
            }
            let data: DataConfig = data.try_into().map_err(|e: toml::de::Error| wrong(&e))?;
            data.validate().map_err(|e| wrong(&e))?;
            Ok(data)
        };
        let stages = self.train.curriculum.iter().map(stage);
        stages.chain([Ok(self.data.clone())]).collect()
    }

    /// Fails unless the model has a row for each of the tokens.
    pub(crate) fn check_vocab(&self, tokenizer: &TextTokenizer) -> Result<(), Error> {
        let tokens = tokenizer.vocab_size();
        let vocab = self.model.vocab_size();
        let problem = format!("the task has {tokens} tokens, and the model needs a row for each");
        require(vocab >= tokens, "model.vocab_size", vocab, problem)
    }

    /// Fails unless the model has positions for samples of these lengths.
    pub(crate) fn check_room(&self, lengths: &Lengths) -> Result<(), Error> {
        let Some((key, positions)) = self.model.max_positions() else {
            return Ok(());
        };
        let Lengths {
            context, question, ..
        } = *lengths;
        let needed = match self.method {
            MethodName::GradMem => context
                .max(question)
                .saturating_add(self.memory.prefix_len()),
            MethodName::Rmt => {
                let write = context.saturating_add(self.rmt.written_with());
                write.max(question.saturating_add(self.rmt.prefix_len()))
            }
            MethodName::InContext => context.saturating_add(question),
        };
        let problem = format!(
            "{} on a context of {context} tokens and a question of {question} needs {needed} positions, \
             memory included",
            self.method.as_str(),
        );
        let key = format!("model.{key}");
        require(needed <= positions, &key, positions, problem)
    }

    /// The settings of the method.
    pub fn method_config(&self) -> MethodConfig {
        match self.method {
            MethodName::GradMem => MethodConfig::GradMem(self.memory.clone()),
            MethodName::Rmt => MethodConfig::Rmt(self.rmt.clone()),
            MethodName::InContext => MethodConfig::InContext,
        }
    }

    /// The keys whose values differ from `other`'s, with both values.
    pub fn differences(&self, other: &Self) -> Vec<(String, String, String)> {
        let json = |config: &Self| serde_json::to_value(config).unwrap_or_default();
        let mut found = Vec::new();
        compare("", &json(self), &json(other), &mut found);
        found
    }
}

/// The names and texts of the presets that come with the crate.
pub fn presets() -> impl Iterator<Item = (&'static str, &'static str)> {
    PRESETS.into_iter()
}

fn preset_text(preset: &str) -> Result<String, Error> {
    if let Some((_, text)) = PRESETS.iter().find(|(name, _)| *name == preset) {
        return Ok((*text).into());
    }
    if preset.ends_with(".toml") {
        return read_text(preset);
    }
    let names: Vec<_> = PRESETS.iter().map(|(name, _)| *name).collect();
    Err(Error::Input(format!(
        "unknown preset `{preset}`: it is neither one of {} nor a .toml file",
        names.join(", ")
    )))
}

fn parse(text: &str, name: &str) -> Result<toml::Table, Error> {
    text.parse().map_err(|e: toml::de::Error| {
        let line = e.span().map_or(1, |span| {
            1 + text[..span.start.min(text.len())].matches('\n').count()
        });
        Error::Input(format!("{name}, line {line}: {}", one_line(e.message())))
    })
}

fn apply_override(table: &mut toml::Table, text: &str) -> Result<(), Error> {
    let Some((key, value)) = text.split_once('=') else {
        return Err(Error::Input(format!(
            "override `{text}` is not KEY=VALUE (for example memory.write_steps=5)"
        )));
    };
    let (key, value) = (key.trim(), value.trim());
    let parsed = format!("value = {value}").parse::<toml::Table>();
    let value = match parsed.ok().and_then(|mut table| table.remove("value")) {
        Some(value) => value,
        // A word without quotes is a word.
        None => toml::Value::String(value.into()),
    };
    let mut parts: Vec<&str> = key.split('.').collect();
    let last = parts.pop().unwrap_or_default();
    let mut section = table;
    for part in parts {
        let entry = section
            .entry(part)
            .or_insert_with(|| toml::Value::Table(toml::Table::new()));
        let toml::Value::Table(inner) = entry else {
            return Err(Error::config(
                key,
                &value,
                format!("`{part}` is no section"),
            ));
        };
        section = inner;
    }
    section.insert(last.into(), value);
    Ok(())
}

/// Every key there is, with the model's and the task's own.
fn known(table: &toml::Table) -> Result<Json, Error> {
    let model_type = table.get("model").and_then(|model| model.get("model_type"));
    let model = match model_type {
        None => ModelConfig::default(),
        Some(name) => {
            let found = name.as_str().and_then(ModelConfig::of_type);
            found.ok_or_else(|| {
                let problem = format!("must be one of {}", ModelConfig::TYPES.join(", "));
                Error::config("model.model_type", name, problem)
            })?
        }
    };
    let data = match table.get("data").and_then(|data| data.get("task")) {
        None => DataConfig::default(),
        Some(name) => {
            let found = name.as_str().and_then(DataConfig::of_task);
            found.ok_or_else(|| {
                let problem = format!("must be one of {}", DataConfig::TASKS.join(", "));
                Error::config("data.task", name, problem)
            })?
        }
    };
    let config = RunConfig {
        model,
        data,
        ..RunConfig::default()
    };
    Ok(serde_json::to_value(config).unwrap_or_default())
}

/// Fails on the first key of `table` that the configuration does not have.
fn check_keys(table: &toml::Table, known: &Json, path: &str) -> Result<(), Error> {
    for (key, value) in table {
        let full = match path {
            "" => key.clone(),
            _ => format!("{path}.{key}"),
        };
        match (known.get(key), value) {
            (None, _) => {
                let names: Vec<_> = known
                    .as_object()
                    .map(|o| o.keys().map(String::as_str).collect())
                    .unwrap_or_default();
                let place = if path.is_empty() { "the file" } else { path };
                return Err(Error::Input(format!(
                    "unknown key `{full}`: {place} has {}",
                    names.join(", ")
                )));
            }
            (Some(inner @ Json::Object(_)), toml::Value::Table(table)) => {
                check_keys(table, inner, &full)?;
            }
            (Some(Json::Object(_)), value) => {
                return Err(Error::config(full, value, "must be a section"));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Finds the value of the wrong kind in a table that is no configuration.
fn misfit(table: &toml::Table) -> Option<Error> {
    let sections = table
        .iter()
        .filter_map(|(name, v)| Some((name, v.as_table()?)));
    for (name, section) in sections {
        for (key, value) in section {
            let alone = toml::Table::from_iter(
                ["task", "model_type"]
                    .iter()
                    .filter_map(|tag| Some((tag.to_string(), section.get(*tag)?.clone())))
                    .chain([(key.clone(), value.clone())]),
            );
            let alone = toml::Table::from_iter([(name.clone(), toml::Value::Table(alone))]);
            if let Err(e) = toml::Value::Table(alone).try_into::<RunConfig>() {
                let problem = one_line(e.message());
                return Some(Error::config(format!("{name}.{key}"), value, problem));
            }
        }
    }
    None
}

fn compare(path: &str, a: &Json, b: &Json, found: &mut Vec<(String, String, String)>) {
    match (a, b) {
        (Json::Object(a), Json::Object(b)) => {
            let keys: std::collections::BTreeSet<_> = a.keys().chain(b.keys()).collect();
            for key in keys {
                let full = match path {
                    "" => key.clone(),
                    _ => format!("{path}.{key}"),
                };
                let null = Json::Null;
                let (a, b) = (a.get(key).unwrap_or(&null), b.get(key).unwrap_or(&null));
                compare(&full, a, b, found);
            }
        }
        _ if a != b => found.push((path.into(), a.to_string(), b.to_string())),
        _ => {}
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fails(preset: &str, overrides: &[&str]) -> String {
        let overrides: Vec<String> = overrides.iter().map(|o| o.to_string()).collect();
        let error = RunConfig::resolve(preset, &overrides).unwrap_err();
        assert!(error.is_user_error());
        let text = error.to_string();
        assert!(!text.contains('\n'), "more than one line: {text}");
        text
    }

    #[test]
    fn every_preset_resolves_and_survives_its_own_toml() {
        for (name, _) in presets() {
            let config = RunConfig::resolve(name, &[]).unwrap();
            let again = parse(&config.to_toml().unwrap(), name).unwrap();
            let again = RunConfig::from_table(again, name).unwrap();
            assert_eq!(config, again);
            assert!(config.differences(&again).is_empty());
        }
    }

    #[test]
    fn methods_and_models_have_settings_of_their_own() {
        let resolve = |overrides: &[&str]| {
            let overrides: Vec<String> = overrides.iter().map(|o| o.to_string()).collect();
            RunConfig::resolve("kv-quick", &overrides)
        };
        let rmt = resolve(&["method=rmt", "rmt.write_steps=3"]).unwrap();
        let MethodConfig::Rmt(settings) = rmt.method_config() else {
            panic!("{rmt:?}");
        };
        assert_eq!(settings.write_steps, 3);
        assert!(fails("kv-quick", &["method=armt"]).contains("in-context"));
        let error = fails(
            "kv-quick",
            &["method=rmt", "train.stop_metric=write_loss_after"],
        );
        assert!(
            error.contains("train.stop_metric") && error.contains("rmt"),
            "{error}"
        );
        // What fits one method may not fit another: 29 tokens, a question of 7, a memory of 8.
        let positions = |n: usize, method: &str| {
            let positions = format!("model.max_position_embeddings={n}");
            resolve(&[&positions, &format!("method={method}")]).is_ok()
        };
        for (method, needed) in [("gradmem", 29), ("rmt", 37), ("in-context", 28)] {
            assert!(positions(needed, method), "{method}");
            assert!(!positions(needed - 1, method), "{method}");
        }
        assert!(fails("kv-quick", &["model.model_type=gpt2"]).contains("model.hidden_size"));
    }

    #[test]
    fn overrides_reach_every_section() {
        let overrides = [
            "memory.write_steps=5",
            "train.lr = 1e-4",
            "memory.grad_mode=first",
        ];
        let overrides = overrides.map(String::from);
        let config = RunConfig::resolve("kv-quick", &overrides).unwrap();
        assert_eq!(config.memory.write_steps, 5);
        assert_eq!(config.train.lr, 1e-4);
        let base = RunConfig::resolve("kv-quick", &[]).unwrap();
        let keys: Vec<_> = base.differences(&config).into_iter().map(|d| d.0).collect();
        assert_eq!(keys, ["memory.grad_mode", "memory.write_steps", "train.lr"]);
    }

    #[test]
    fn mistakes_are_named_on_one_line() {
        assert!(fails("kv-quik", &[]).contains("unknown preset `kv-quik`"));
        assert!(fails("kv-quick", &["memory.stepz=2"]).contains("unknown key `memory.stepz`"));
        assert!(fails("kv-quick", &["memory.write_steps"]).contains("not KEY=VALUE"));
        assert!(fails("kv-quick", &["memory.write_steps=many"]).contains("memory.write_steps"));
        assert!(fails("kv-quick", &["memory.write_steps=-1"]).contains("memory.write_steps"));
        assert!(fails("kv-quick", &["data.pairs=nan"]).contains("data.pairs"));
        assert!(fails("kv-quick", &["model.hidden_size=64.0"]).contains("model.hidden_size"));
        assert!(fails("kv-quick", &["memory=3"]).contains("must be a section"));
        for (key, value, word) in [
            ("memory.write_lr", "-0.5", "positive"),
            ("memory.write_lr", "nan", "positive"),
            ("memory.memory_tokens", "0", "at least 1"),
            ("memory.inner_clip_norm", "0", "positive"),
            ("data.pairs", "0", "data.segments"),
            ("data.pairs", "63", "only 62 different keys"),
            ("data.queries_per_context", "5", "at most data.pairs"),
            ("model.hidden_size", "65", "multiple of num_attention_heads"),
            ("model.num_attention_heads", "0", "at least 1"),
            ("model.max_position_embeddings", "28", "needs 29 positions"),
            ("model.vocab_size", "69", "70 tokens"),
            ("model.model_type", "opt", "gpt2, gpt_neox, llama, mamba"),
            ("memory.mem_proj", "sum", "per_sample"),
            ("rmt.write_steps", "0", "at least 1"),
            ("rmt.write_head", "true", "reconstruction_loss_weight"),
            ("train.lr", "nan", "above 0"),
            ("train.batch_size", "0", "at least 1"),
        ] {
            let text = fails("kv-quick", &[&format!("{key}={value}")]);
            assert!(text.contains(key) && text.contains(word), "{text}");
        }
    }
}
