//! docs/settings.md names every setting in its section, with its default, and no other.

use std::collections::BTreeMap;

use gradmem::data::DataConfig;
use gradmem::model::ModelConfig;
use gradmem::model::layers::RopeScaling;
use gradmem::train::config::RunConfig;
use serde::Serialize;
use serde_json::{Value, json};

const PAGE: &str = include_str!("../../docs/settings.md");

/// A number is the same whether it is written as a whole one or not.
fn plain(value: Value) -> Value {
    value.as_f64().map_or(value, Value::from)
}

/// The settings and defaults of the tables between a heading that ends so and the next heading.
fn documented(heading: &str) -> BTreeMap<String, Value> {
    let mut sections = PAGE.split("\n#");
    let section = sections.find(|text| text.lines().next().unwrap().ends_with(heading));
    let section = section.unwrap_or_else(|| panic!("the page has no section {heading}"));
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `"));
    let settings = rows.map(|row| {
        let mut cells = row.split(" | ");
        let key = cells.next().unwrap().trim_end_matches('`');
        let default = match cells.next().unwrap() {
            "–" => Value::Null,
            "required" => "".into(),
            text => serde_json::from_str(text.trim_matches('`')).unwrap(),
        };
        (key.to_string(), plain(default))
    });
    settings.collect()
}

fn check(heading: &str, defaults: impl Serialize) {
    let Value::Object(defaults) = serde_json::to_value(defaults).unwrap() else {
        panic!("{heading} is no section");
    };
    // These choose the section.
    let tags = ["task", "model_type"];
    let settings = defaults
        .into_iter()
        .filter(|(key, _)| !tags.contains(&key.as_str()));
    let settings: BTreeMap<_, _> = settings.map(|(key, value)| (key, plain(value))).collect();
    assert_eq!(documented(heading), settings, "{heading}");
}

#[test]
fn every_setting_is_documented_with_its_default() {
    let Value::Object(run) = serde_json::to_value(RunConfig::default()).unwrap() else {
        panic!("a run has sections");
    };
    for (section, defaults) in run {
        match section.as_str() {
            "method" => assert_eq!(documented("Method")["method"], defaults),
            "data" => assert_eq!(documented("`[data]`")["task"], defaults["task"]),
            "model" => assert_eq!(
                documented("`[model]`")["model_type"],
                defaults["model_type"]
            ),
            _ => check(&format!("`[{section}]`"), defaults),
        }
    }
    for task in DataConfig::TASKS {
        check(&format!("`task = \"{task}\"`"), DataConfig::of_task(task));
    }
    for kind in ModelConfig::TYPES {
        check(
            &format!("`model_type = \"{kind}\"`"),
            ModelConfig::of_type(kind),
        );
    }
    let scaling: RopeScaling = serde_json::from_value(json!({})).unwrap();
    check("`rope_scaling`", scaling);
}
