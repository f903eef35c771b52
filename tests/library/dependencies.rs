//! Licences and sources of every dependency against `deny.toml`, for every feature and platform.
//!
//! `cargo deny check` does the same and more; this takes seconds instead of a build of cargo-deny.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

/// Evaluates an SPDX expression, where `/` is an old way to write `OR`.
struct Expression<'a, F> {
    words: std::iter::Peekable<std::vec::IntoIter<&'a str>>,
    allowed: F,
}

impl<'a, F: Fn(&str) -> bool> Expression<'a, F> {
    fn holds(text: &str, allowed: F) -> bool {
        let text = text
            .replace('/', " OR ")
            .replace('(', " ( ")
            .replace(')', " ) ");
        let words: Vec<&str> = text.split_whitespace().collect();
        let mut expression = Expression {
            words: words.into_iter().peekable(),
            allowed,
        };
        let holds = expression.any();
        assert_eq!(expression.words.next(), None, "{text}");
        holds
    }

    fn any(&mut self) -> bool {
        let mut holds = self.all();
        while self.words.next_if_eq(&"OR").is_some() {
            holds |= self.all();
        }
        holds
    }

    fn all(&mut self) -> bool {
        let mut holds = self.one();
        while self.words.next_if_eq(&"AND").is_some() {
            holds &= self.one();
        }
        holds
    }

    fn one(&mut self) -> bool {
        let word = self.words.next().expect("a licence");
        if word == "(" {
            let holds = self.any();
            assert_eq!(self.words.next(), Some(")"));
            return holds;
        }
        match self.words.next_if_eq(&"WITH") {
            Some(_) => (self.allowed)(&format!("{word} WITH {}", self.words.next().unwrap())),
            None => (self.allowed)(word),
        }
    }
}

#[test]
fn spdx_expressions_are_evaluated() {
    for (text, expected) in [
        ("MIT", true),
        ("GPL-3.0", false),
        ("GPL-3.0 OR MIT", true),
        ("MIT AND GPL-3.0", false),
        ("MIT/GPL-3.0", true),
        ("(MIT OR GPL-3.0) AND GPL-3.0", false),
        ("(MIT OR GPL-3.0) AND A WITH B", true),
        ("A", false),
        ("GPL-3.0 OR MIT AND GPL-3.0", false),
    ] {
        let allowed = |licence: &str| ["MIT", "A WITH B"].contains(&licence);
        assert_eq!(Expression::holds(text, allowed), expected, "{text}");
    }
}

#[test]
#[ignore = "asks the registry for the crates of every platform"]
fn licences_and_sources_are_allowed() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config = std::fs::read_to_string(root.join("deny.toml")).unwrap();
    let config: toml::Table = toml::from_str(&config).unwrap();
    let list = |section: &str, key: &str| config[section][key].as_array().unwrap().clone();
    let contains = |list: &[toml::Value], text: &str| list.iter().any(|x| x.as_str() == Some(text));
    let allowed = list("licenses", "allow");
    let exceptions = list("licenses", "exceptions");
    let registries = list("sources", "allow-registry");

    let output = Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--all-features",
            "--locked",
            "--format-version=1",
        ])
        .current_dir(root)
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let members = metadata["workspace_members"].as_array().unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let mut faults = Vec::new();
    for package in packages {
        let name = package["name"].as_str().unwrap();
        let licence = package["license"].as_str().unwrap_or("none");
        let of_exceptions: Vec<_> = exceptions
            .iter()
            .filter(|exception| exception["crate"].as_str() == Some(name))
            .flat_map(|exception| exception["allow"].as_array().unwrap().clone())
            .collect();
        let may = |licence: &str| contains(&allowed, licence) || contains(&of_exceptions, licence);
        if !Expression::holds(licence, may) {
            faults.push(format!("{name}: licence {licence}"));
        }
        match package["source"].as_str() {
            None if members.contains(&package["id"]) => {}
            Some(source)
                if contains(
                    &registries,
                    source.strip_prefix("registry+").unwrap_or(source),
                ) => {}
            source => faults.push(format!("{name}: source {source:?}")),
        }
    }
    // Requirements of our own that any version would meet.
    for package in packages.iter().filter(|x| members.contains(&x["id"])) {
        for dependency in package["dependencies"].as_array().unwrap() {
            if dependency["req"] == "*" {
                faults.push(format!(
                    "{}: any version of {}",
                    package["name"], dependency["name"]
                ));
            }
        }
    }
    assert!(faults.is_empty(), "{faults:#?}");
    println!("{} packages", packages.len());
    assert!(packages.len() > 500);
}
