//! The settings of a run and their checks. They are read from TOML, with `key=value` overrides.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use super::base::{self, Base};
use super::names;
pub use super::outer_loop::{LrDecay, TrainConfig};
use super::overrides::{self, in_file, one_line, parse};
pub use super::presets::presets;
use super::presets::text_of;
use crate::baselines::{ArmtConfig, InContextConfig, Questions, RmtConfig};
use crate::data::{DataConfig, Lengths, TextTokenizer, TokensConfig};
use crate::error::{Error, require};
use crate::memory::GradMemConfig;
use crate::method::{MethodConfig, MethodName};
use crate::model::ModelConfig;
use crate::support::fs::read_text;

/// All settings of a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RunConfig {
    /// The method: `gradmem`, `rmt`, `armt` or `in-context`.
    pub method: MethodName,
    /// The task and its data.
    pub data: DataConfig,
    /// Tokenizer and lengths of the task's texts.
    pub tokens: TokensConfig,
    /// The language model.
    pub model: ModelConfig,
    /// GradMem's WRITE and READ.
    pub memory: GradMemConfig,
    /// RMT's settings, if that is the method.
    pub rmt: RmtConfig,
    /// ARMT's settings, if that is the method.
    pub armt: ArmtConfig,
    /// The in-context baseline's settings, if that is the method.
    pub in_context: InContextConfig,
    /// The outer loop.
    pub train: TrainConfig,
    /// The folder that the model comes from, if its weights are not random: `model.from`.
    #[serde(skip)]
    pub base: Option<Base>,
    /// Whether `memory.write_lr` was given as `auto`: a training finds it when it begins, and the run keeps it.
    #[serde(skip)]
    pub find_write_lr: bool,
}

impl RunConfig {
    /// A preset by name, or a TOML file by path, with `key=value` overrides applied in order.
    ///
    /// # Errors
    ///
    /// If there is no such preset or file. Otherwise names the first key that is unknown or has an invalid value, and the file if
    /// that has it.
    pub fn resolve(preset: &str, overrides: &[String]) -> Result<Self, Error> {
        let table = parse(&text_of(preset)?, preset)?;
        let config = Self::overridden(table.clone(), overrides);
        config.map_err(|e| match Self::overridden(table, &[]) {
            // It is the file's own mistake.
            Err(own) if own.to_string() == e.to_string() => in_file(preset.as_ref(), e),
            _ => e,
        })
    }

    fn overridden(mut table: toml::Table, overrides: &[String]) -> Result<Self, Error> {
        for text in overrides {
            overrides::apply(&mut table, text)?;
        }
        base::follow(&mut table, overrides, |run| Ok(Self::open(run)?.model))?;
        Self::from_table(table)
    }

    /// The method of a preset or a TOML file, whose other settings may be wrong.
    ///
    /// # Errors
    ///
    /// If there is no such preset or file, or it is not TOML.
    pub fn method_of(preset: &str) -> Result<MethodName, Error> {
        let table = parse(&text_of(preset)?, preset)?;
        let method = table.get("method").cloned();
        Ok(method
            .and_then(|name| name.try_into().ok())
            .unwrap_or_default())
    }

    /// Reads the settings from a TOML file, such as a run folder's `config.toml`.
    ///
    /// # Errors
    ///
    /// If the file cannot be read, is not TOML, or has an unknown key or an invalid value.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        let name = path.display().to_string();
        let text = read_text(path)?;
        Self::from_table(parse(&text, &name)?).map_err(|e| in_file(path, e))
    }

    /// The settings as TOML, defaults included.
    ///
    /// # Errors
    ///
    /// If a number is too large for TOML.
    pub fn to_toml(&self) -> Result<String, Error> {
        let text = toml::to_string(self);
        let text = text.map_err(|e| Error::Input(format!("configuration: {e}")))?;
        Ok(match &self.base {
            Some(base) => text.replacen("[model]\n", &format!("[model]\n{}", base.lines()), 1),
            None => text,
        })
    }

    fn from_table(mut table: toml::Table) -> Result<Self, Error> {
        let find_write_lr = take_auto(&mut table);
        let base = Base::take(&mut table)?;
        let (model, data) = names::model_and_task(&table)?;
        overrides::check_keys(&table, &Self::keys(model, data), "")?;
        names::check(&table)?;
        let config = Self {
            find_write_lr,
            base,
            ..Self::of_values(&table)?
        };
        let searches = find_write_lr && config.method == MethodName::GradMem;
        let problem = "is found by WRITE's steps: it needs memory.write_steps of at least 1";
        require(
            !searches || config.memory.write_steps > 0,
            "memory.write_lr",
            "auto",
            problem,
        )?;
        config.validate()?;
        Ok(config)
    }

    /// All keys, with those of this model and this task.
    fn keys(model: ModelConfig, data: DataConfig) -> Json {
        let config = Self {
            model,
            data,
            ..Self::default()
        };
        serde_json::to_value(config).unwrap_or_default()
    }

    /// Of a table without keys that are not known.
    fn of_values(table: &toml::Table) -> Result<Self, Error> {
        let config = toml::Value::Table(table.clone()).try_into::<Self>();
        let wrong_type = || overrides::wrong_type::<Self>(table, &["task", "model_type"]);
        config.map_err(|e| wrong_type().unwrap_or_else(|| Error::Input(one_line(&e.to_string()))))
    }

    /// Checks every value, alone and in combination with the others.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] for the first invalid value, with its key and the reason.
    pub fn validate(&self) -> Result<(), Error> {
        self.data.validate().map_err(|e| e.in_section("data"))?;
        self.tokens.validate().map_err(|e| e.in_section("tokens"))?;
        self.model.validate().map_err(|e| e.in_section("model"))?;
        self.memory.validate().map_err(|e| e.in_section("memory"))?;
        self.rmt.validate().map_err(|e| e.in_section("rmt"))?;
        self.armt.validate().map_err(|e| e.in_section("armt"))?;
        let predicts_first =
            self.method != MethodName::GradMem || self.method_config().predicts_first();
        let problem = "predicts no first token, but the texts of this task are continued without a query: \
                       use kind = \"prefix\"";
        let needed = matches!(self.data, DataConfig::Text(_));
        let kind = self.memory.kind.as_str();
        require(predicts_first || !needed, "memory.kind", kind, problem)?;
        if self.method == MethodName::Armt {
            let maps = self.armt.maps(self.model.d_model(), &self.model.slots());
            maps.map_err(|e| e.in_section("armt"))?;
        }
        let used = !self.rmt.write_head || self.rmt.reconstruction_loss_weight > 0.0;
        let problem =
            "only the reconstruction loss uses it: set rmt.reconstruction_loss_weight too";
        require(used, "rmt.write_head", true, problem)?;
        self.train.validate().map_err(|e| e.in_section("train"))?;
        names::check_stop_metric(self.train.stop_metric.key(), self.method)?;
        self.stages()?;
        if let Some(own) = self.data.own_tokenizer()? {
            let problem = "this task has tokens of its own: leave it out";
            let left_out = self.tokens.tokenizer == TokensConfig::default().tokenizer;
            require(
                left_out,
                "tokens.tokenizer",
                &self.tokens.tokenizer,
                problem,
            )?;
            self.check_vocab(&own)?;
        }
        // Other tasks' lengths are known when their files are open.
        match self.data.lengths() {
            Some(lengths) => self.check_lengths(&Lengths {
                context: lengths
                    .context
                    .min(self.tokens.max_context.unwrap_or(lengths.context)),
                ..lengths
            }),
            None => Ok(()),
        }
    }

    /// The versions of the task in the order of the curriculum, the task itself last.
    ///
    /// # Errors
    ///
    /// The first entry of `train.curriculum` that is no valid version of this task.
    pub fn stages(&self) -> Result<Vec<DataConfig>, Error> {
        let stage = |text: &String| {
            let stage = match text.trim() {
                "" => Err(Error::Input(
                    "must name a setting of [data] that differs".into(),
                )),
                text => self.data_with(text.split_whitespace()),
            };
            stage.map_err(|e| {
                let problem = one_line(&e.to_string());
                Error::config("train.curriculum", format!("{text:?}"), problem)
            })
        };
        let stages = self.train.curriculum.iter().map(stage);
        stages.chain([Ok(self.data.clone())]).collect()
    }

    /// The task with some settings of `[data]` changed, each as `key=value`.
    pub(super) fn data_with<'a>(
        &self,
        settings: impl Iterator<Item = &'a str>,
    ) -> Result<DataConfig, Error> {
        let own = toml::Table::try_from(&self.data);
        let own = own.map_err(|e| Error::Input(format!("data: {}", one_line(&e.to_string()))))?;
        let mut table = toml::Table::from_iter([("data".into(), own.clone().into())]);
        for setting in settings {
            overrides::apply(&mut table, &format!("data.{setting}"))?;
        }
        let known = Self::keys(ModelConfig::default(), self.data.clone());
        overrides::check_keys(&table, &known, "")?;
        let task = own.get("task").and_then(toml::Value::as_str);
        let given = table.get("data").and_then(|data| data.get("task"));
        if given.and_then(toml::Value::as_str) != task {
            let problem = format!("must be the same task, {}", task.unwrap_or_default());
            let other = given.map_or("unset".into(), ToString::to_string);
            return Err(Error::config("data.task", other, problem));
        }
        let found = Self::of_values(&table)?.data;
        found.validate().map_err(|e| e.in_section("data"))?;
        Ok(found)
    }

    /// Fails unless the model's vocabulary has a row for each of the tokens.
    pub(crate) fn check_vocab(&self, tokenizer: &TextTokenizer) -> Result<(), Error> {
        let tokens = tokenizer.vocab_size();
        let vocab = self.model.vocab_size();
        let problem = format!("the task has {tokens} tokens, and the model needs a row for each");
        require(vocab >= tokens, "model.vocab_size", vocab, problem)
    }

    /// Fails unless samples of these lengths can be answered and the model has enough positions for them.
    pub(crate) fn check_lengths(&self, lengths: &Lengths) -> Result<(), Error> {
        let method = self.method_config();
        if lengths.unprompted > 0 && !method.predicts_first() {
            return Err(Error::Input(format!(
                "{} questions have no query, and {} predicts no first token of a target without one: give them a query, or train \
                 gradmem with memory.kind = \"prefix\"",
                lengths.unprompted,
                self.method.as_str()
            )));
        }
        let Some((key, positions)) = self.model.max_positions() else {
            return Ok(());
        };
        let Lengths {
            context,
            question,
            questions,
            ..
        } = *lengths;
        let needed = method.positions(context, question, questions);
        let joint = self.method == MethodName::InContext
            && self.in_context.questions == Questions::Joint
            && questions > 1;
        let problem = match joint {
            false => format!(
                "{} on a context of {context} tokens and a question of {question} needs {needed} positions, \
                 memory included",
                self.method.as_str(),
            ),
            true => format!(
                "in-context with in_context.questions = \"joint\" on a context of {context} tokens and {questions} \
                 questions of {question} needs {needed} positions; \"shared\" and \"separate\" need {}",
                context.saturating_add(question),
            ),
        };
        let key = format!("model.{key}");
        require(needed <= positions, &key, positions, problem)
    }

    /// Whether the model's weights are those of the folder that it comes from, now and later: then a run's checkpoints do
    /// not have them.
    pub(crate) fn keeps_model_elsewhere(&self) -> bool {
        self.base.is_some() && self.method == MethodName::GradMem && self.memory.freeze_backbone
    }

    /// The settings of the method.
    pub fn method_config(&self) -> MethodConfig {
        match self.method {
            MethodName::GradMem => MethodConfig::GradMem(self.memory.clone()),
            MethodName::Rmt => MethodConfig::Rmt(self.rmt.clone()),
            MethodName::Armt => MethodConfig::Armt(self.armt.clone()),
            MethodName::InContext => MethodConfig::InContext(self.in_context.clone()),
        }
    }

    /// The keys whose values differ from `other`'s, with both values.
    pub fn differences(&self, other: &Self) -> Vec<(String, String, String)> {
        let json = |config: &Self| {
            let mut json = serde_json::to_value(config).unwrap_or_default();
            if let (Some(base), Json::Object(model)) = (&config.base, &mut json["model"]) {
                model.insert("from".into(), base.text().into());
            }
            json
        };
        overrides::differences(&json(self), &json(other))
    }
}

/// Whether `memory.write_lr` is `auto`; it is taken away then.
fn take_auto(table: &mut toml::Table) -> bool {
    let Some(toml::Value::Table(memory)) = table.get_mut("memory") else {
        return false;
    };
    let is_auto = memory.get("write_lr").and_then(toml::Value::as_str) == Some("auto");
    if is_auto {
        memory.remove("write_lr");
    }
    is_auto
}

#[cfg(test)]
mod tests;
