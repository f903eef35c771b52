//! Licences and sources of every dependency against `deny.toml`, for every feature and platform.
//!
//! `cargo deny check` does the same and more; this takes seconds instead of a build of cargo-deny.

use std::collections::BTreeSet;
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
    let cargo = |args: &[&str]| {
        let output = Command::new(env!("CARGO"))
            .args(args)
            .current_dir(root)
            .output();
        let output = output.unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{error}");
        String::from_utf8(output.stdout).unwrap()
    };
    // Of all features and platforms, but only what is compiled for some: `cargo metadata` has more.
    let tree = "tree --workspace --all-features --target all --edges normal,build,dev --prefix none --locked";
    let tree = [
        &tree.split(' ').collect::<Vec<_>>()[..],
        &["--format", "{p}|{l}"],
    ]
    .concat();
    let tree = cargo(&tree);
    let mut faults = Vec::new();
    let mut packages = BTreeSet::new();
    for line in tree.lines().filter(|line| !line.is_empty()) {
        let (package, licence) = line.trim_end_matches(" (*)").split_once('|').unwrap();
        let package = package.replace(" (proc-macro)", "");
        let name = package.split(' ').next().unwrap();
        let of_exceptions: Vec<_> = exceptions
            .iter()
            .filter(|exception| exception["crate"].as_str() == Some(name))
            .flat_map(|exception| exception["allow"].as_array().unwrap().clone())
            .collect();
        let may = |licence: &str| contains(&allowed, licence) || contains(&of_exceptions, licence);
        if !Expression::holds(licence, may) {
            faults.push(format!("{name}: licence {licence}"));
        }
        // Behind a version stands where a package is from, unless it is from crates.io.
        if package.contains(" (") && !["gradmem", "gradmem-kernels"].contains(&name) {
            faults.push(format!("{package}: not from crates.io"));
        }
        packages.insert(package);
    }
    let metadata = cargo(&["metadata", "--no-deps", "--locked", "--format-version=1"]);
    let metadata: Value = serde_json::from_str(&metadata).unwrap();
    // Requirements of our own that any version would meet.
    for package in metadata["packages"].as_array().unwrap() {
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
