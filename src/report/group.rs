//! Groups of runs that differ only in their seed, and the settings that distinguish groups.

use std::cmp::Ordering;

use serde_json::Value as Json;

use super::format::mean;
use super::run::Run;
use super::settings::{self, Settings};
use super::style::MethodColor;
use crate::memory::GradMode;
use crate::method::MethodName;
use crate::model::ModelConfig;
use crate::train::config::RunConfig;

/// A setting that distinguishes a group from others.
#[derive(Clone, Debug, PartialEq)]
pub struct Difference {
    /// Such as `data.pairs`.
    pub key: String,
    /// Its value.
    pub value: Json,
}

/// Runs that differ only in their seed.
#[derive(Clone, Debug)]
pub struct Group {
    /// The method's name.
    pub method: &'static str,
    /// The method's colour.
    pub(super) color: MethodColor,
    /// The settings that distinguish it from other groups of the method.
    pub differences: Vec<Difference>,
    /// All settings that its results depend on.
    pub settings: Settings,
    /// These, and those without effect beside them.
    all: Settings,
    /// Its runs, by seed.
    pub runs: Vec<Run>,
}

impl Group {
    /// Its name: `GradMem, N = 4, K = 2`.
    pub fn label(&self) -> String {
        self.label_of(|_| true)
    }

    /// Its name without the settings for whose keys `drop` is true.
    pub fn label_without(&self, drop: impl Fn(&str) -> bool) -> String {
        self.label_of(|key| !drop(key))
    }

    fn label_of(&self, keep: impl Fn(&str) -> bool) -> String {
        let parts = self.parts(keep).into_iter();
        let words: Vec<_> = std::iter::once(self.method.into()).chain(parts).collect();
        words.join(", ")
    }

    /// The settings that distinguish it, of those for whose keys `keep` is true: `N = 4`, `K = 2`.
    pub(super) fn parts(&self, keep: impl Fn(&str) -> bool) -> Vec<String> {
        let parts = self.differences.iter().filter(|part| keep(&part.key));
        let parts = parts.map(|part| settings::label(&part.key, &part.value));
        parts.collect()
    }

    /// The data settings that distinguish it, without those for whose keys `drop` is true.
    pub fn data_label(&self, drop: impl Fn(&str) -> bool) -> String {
        let parts = self.parts(|key| is_data(key) && !drop(key));
        parts.join(", ")
    }

    /// The value of a setting, if it distinguishes the group and is a number.
    pub fn number(&self, key: &str) -> Option<f64> {
        let part = self.differences.iter().find(|part| part.key == key)?;
        part.value.as_f64()
    }

    /// The mean over seeds of what its runs have. None if one of them has nothing: a mean over some seeds would mislead; or if a
    /// seed has several runs, such as copies: it would count more than once.
    pub(super) fn mean(&self, values: &[f64]) -> Option<f64> {
        let all = values.len() == self.runs.len() && self.has_one_run_a_seed();
        mean(values).filter(|_| all)
    }

    /// Its settings, without those for whose keys `drop` is true and those that are [incidental](settings::is_incidental). What has no
    /// effect beside one value of a dropped setting may have one beside another.
    pub(super) fn settings_without(&self, drop: impl Fn(&str) -> bool) -> Settings {
        let mut kept = self.all.clone();
        kept.retain(|key, _| !drop(key) && !settings::is_incidental(key));
        kept
    }

    fn has_one_run_a_seed(&self) -> bool {
        // Its runs are in the order of their seeds.
        let mut pairs = self.runs.windows(2);
        pairs.all(|pair| pair[0].config.train.seed != pair[1].config.train.seed)
    }

    /// The settings of its first run.
    pub fn config(&self) -> Option<&RunConfig> {
        self.runs.first().map(|run| &run.config)
    }
}

/// Whether a setting is one of the data.
pub fn is_data(key: &str) -> bool {
    key.starts_with("data.")
}

/// Puts runs into groups, and sorts the groups by data, method and the other settings that distinguish them.
pub fn group_runs(runs: Vec<Run>) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for run in runs {
        let settings = settings::relevant(&run.config);
        match groups.iter_mut().find(|group| group.settings == settings) {
            Some(group) => group.runs.push(run),
            None => {
                let (color, method) = color_and_name(&run.config);
                groups.push(Group {
                    method,
                    color,
                    differences: Vec::new(),
                    settings,
                    all: settings::all(&run.config),
                    runs: vec![run],
                });
            }
        }
    }
    for group in &mut groups {
        group
            .runs
            .sort_by(|a, b| (a.config.train.seed, &a.name).cmp(&(b.config.train.seed, &b.name)));
    }
    for group in groups.iter().filter(|group| !group.has_one_run_a_seed()) {
        let names: Vec<_> = group.runs.iter().map(|run| run.name.as_str()).collect();
        log::warn!(
            "{}: several runs have the same settings and seed, so there is no mean over seeds",
            names.join(", ")
        );
    }
    let found: Vec<_> = (0..groups.len())
        .map(|at| differences(&groups, at))
        .collect();
    for (group, differences) in groups.iter_mut().zip(found) {
        group.differences = differences;
    }
    groups.sort_by(compare_groups);
    groups
}

/// The colour and the name of a run's method.
fn color_and_name(config: &RunConfig) -> (MethodColor, &'static str) {
    match (config.method, config.memory.grad_mode, &config.model) {
        (MethodName::GradMem, GradMode::Second, _) => (MethodColor::GradMem, "GradMem"),
        (MethodName::GradMem, GradMode::First, _) => {
            (MethodColor::FirstOrder, "GradMem, first order")
        }
        (MethodName::GradMem, GradMode::None, _) => {
            (MethodColor::FirstOrder, "GradMem, no outer gradient")
        }
        (MethodName::Rmt, ..) => (MethodColor::Rmt, "RMT"),
        (MethodName::Armt, ..) => (MethodColor::Armt, "ARMT"),
        (MethodName::InContext, _, ModelConfig::Mamba(_)) => {
            (MethodColor::StateSpace, "Mamba, in-context")
        }
        (MethodName::InContext, ..) => (MethodColor::InContext, "In-context"),
    }
}

/// The settings that distinguish a group: the size of its data if sizes differ at all, GradMem's K, and every
/// further setting that differs among the groups that the settings before it do not distinguish.
fn differences(groups: &[Group], at: usize) -> Vec<Difference> {
    let own = &groups[at];
    let mut keys: Vec<&String> = own.settings.keys().collect();
    keys.retain(|key| !["method", "memory.grad_mode"].contains(&key.as_str()));
    keys.sort_by_key(|key| (settings::rank(key), key.as_str()));
    // Settings of the memory and the model are listed wherever they differ, on other data too: they name a
    // line in every panel. Those of the data are listed wherever they differ, in other methods too: they name a
    // panel. Other settings are listed only if they distinguish groups that are alike so far.
    let mut alike: Vec<&Group> = groups.iter().collect();
    let mut of_data = alike.clone();
    alike.retain(|group| group.method == own.method);
    let mut peers = alike.clone();
    let mut differences = Vec::new();
    for key in keys {
        let value = &own.settings[key];
        // What has no effect there is no difference.
        let differs = |group: &Group| match group.settings.get(key) {
            Some(found) => found != value,
            None => !group.all.contains_key(key),
        };
        let size = [
            "data.task",
            "data.pairs",
            "data.hops",
            "data.context_tokens",
        ]
        .contains(&key.as_str());
        let of_method = key.starts_with("memory.") || key.starts_with("model.");
        let incidental = settings::is_incidental(key);
        let gradmem = matches!(own.color, MethodColor::GradMem | MethodColor::FirstOrder);
        let listed = match (size, incidental) {
            (true, _) => groups
                .iter()
                .any(|group| differs(group) && group.settings.contains_key(key)),
            (_, false) if of_method => peers.iter().any(|group| differs(group)),
            (_, false) if is_data(key) => of_data.iter().any(|group| differs(group)),
            _ => alike.iter().any(|group| differs(group)),
        };
        if listed || gradmem && key == "memory.write_steps" {
            alike.retain(|group| !differs(group));
            if of_method {
                peers.retain(|group| !differs(group));
            }
            if is_data(key) {
                of_data.retain(|group| !differs(group));
            }
            differences.push(Difference {
                key: key.clone(),
                value: value.clone(),
            });
        }
    }
    differences
}

/// Orders groups by data, then by method, then by the other settings.
fn compare_groups(a: &Group, b: &Group) -> Ordering {
    let parts = |group: &Group, data: bool| -> Vec<Difference> {
        let parts = group.differences.iter();
        parts
            .filter(|part| is_data(&part.key) == data)
            .cloned()
            .collect()
    };
    let compare = |data: bool| {
        let (a, b) = (parts(a, data), parts(b, data));
        let pairs = a.iter().zip(&b).map(|(a, b)| {
            a.key
                .cmp(&b.key)
                .then_with(|| match (a.value.as_f64(), b.value.as_f64()) {
                    (Some(a), Some(b)) => a.total_cmp(&b),
                    _ => settings::format_value(&a.value).cmp(&settings::format_value(&b.value)),
                })
        });
        let differing = pairs
            .into_iter()
            .find(|order| *order != Ordering::Equal)
            .unwrap_or(Ordering::Equal);
        differing.then(a.len().cmp(&b.len()))
    };
    compare(true)
        .then(a.color.cmp(&b.color))
        .then(a.method.cmp(b.method))
        .then_with(|| compare(false))
}

#[cfg(test)]
mod tests {
    use super::super::run::tests::run;
    use super::*;

    fn labels(runs: &[&[&str]]) -> Vec<String> {
        let runs = runs.iter().map(|overrides| run(overrides, "")).collect();
        group_runs(runs).iter().map(Group::label).collect()
    }

    #[test]
    fn runs_that_differ_in_seed_or_settings_without_effect_are_one_group() {
        let runs = [
            vec!["train.seed=2"],
            vec!["train.seed=1", "train.meta_gradient=replay"],
            vec!["train.seed=3", "rmt.write_steps=4"],
            vec!["train.seed=4", "data.segment_min=5", "tokens.vocab_size=9"],
            vec!["train.seed=5", "memory.lora_rank=3"],
        ];
        let groups = group_runs(runs.iter().map(|overrides| run(overrides, "")).collect());
        assert_eq!(groups.len(), 1);
        assert_eq!(groups[0].label(), "GradMem, K = 2");
        let seeds: Vec<_> = groups[0].runs.iter().map(|r| r.config.train.seed).collect();
        assert_eq!(seeds, [1, 2, 3, 4, 5]);
    }

    #[test]
    fn a_label_names_only_settings_that_differ() {
        let n4: &[&str] = &["data.pairs=4", "data.queries_per_context=4"];
        let n8: &[&str] = &["data.pairs=8", "data.queries_per_context=8"];
        let with = |base: &[&'static str], more: &'static str| [base, &[more]].concat();
        let runs = [
            with(n8, "memory.write_steps=5"),
            with(n4, "method=rmt"),
            with(n4, "method=in-context"),
            with(n4, "memory.grad_mode=first"),
            with(n4, "memory.memory_tokens=16"),
            n4.to_vec(),
        ];
        let runs: Vec<&[&str]> = runs.iter().map(Vec::as_slice).collect();
        let more: [&[&str]; 3] = [
            &[
                "data.pairs=2",
                "data.queries_per_context=2",
                "memory.memory_tokens=4",
            ],
            &["data.pairs=2", "data.queries_per_context=2"],
            &[],
        ];
        let m = [
            "GradMem, N = 2, K = 2, m = 4",
            "GradMem, N = 2, K = 2, m = 8",
            "GradMem, N = 4, K = 2, m = 8",
        ];
        assert_eq!(labels(&more), m);
        let expected = [
            "GradMem, N = 4, K = 2, m = 8",
            "GradMem, N = 4, K = 2, m = 16",
            "GradMem, first order, N = 4, K = 2",
            "RMT, N = 4",
            "In-context, N = 4",
            "GradMem, N = 8, K = 5",
        ];
        assert_eq!(labels(&runs), expected);
        // A method's own settings do, and not in runs of other methods.
        let questions = "in_context.questions=joint";
        let questions = [
            &["method=in-context"][..],
            &["method=in-context", questions],
            &["memory.write_steps=5"],
            &["memory.write_steps=5", questions],
        ];
        let expected = [
            "GradMem, K = 5",
            "In-context, questions = joint",
            "In-context, questions = separate",
        ];
        assert_eq!(labels(&questions), expected);
        // Data name a panel, in which there are all methods.
        let keys: [&[&str]; 2] = [&["data.key_len=2"], &["method=rmt", "data.key_len=1"]];
        let expected = ["RMT, key len = 1", "GradMem, K = 2, key len = 2"];
        assert_eq!(labels(&keys), expected);
        let rates = labels(&[&["train.lr=0.00025"], &["train.lr=0.0003"]]);
        let expected = [
            "GradMem, K = 2, lr = 0.00025",
            "GradMem, K = 2, lr = 0.0003",
        ];
        assert_eq!(rates, expected);
        // What has an effect in one group alone does not name it, but what gives it the effect does.
        let segments = labels(&[&[], &["data.segments=1"]]);
        let expected = [
            "GradMem, K = 2, segments = 0",
            "GradMem, K = 2, segments = 1",
        ];
        assert_eq!(segments, expected);
        // The number of steps distinguishes groups only if no other setting does.
        let steps = labels(&[&["train.steps=10"], &["train.steps=20"]]);
        assert_eq!(
            steps,
            ["GradMem, K = 2, steps = 10", "GradMem, K = 2, steps = 20"]
        );
    }
}
