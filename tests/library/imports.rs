//! No module imports another in a circle: neither folders of the library nor files within one.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// A crate's modules by their paths (`memory::kinds::file`), each with its text.
type Sources = BTreeMap<String, String>;

fn sources(folder: &Path, module: &str, into: &mut Sources) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let child = match module {
            "" => name.clone(),
            _ => format!("{module}::{name}"),
        };
        if path.is_dir() && name != "bin" {
            sources(&path, &child, into);
        } else if path.extension().is_some_and(|e| e == "rs") {
            let module = match name.as_str() {
                "mod" | "lib" => module.to_string(),
                _ => child,
            };
            into.insert(module, std::fs::read_to_string(&path).unwrap());
        }
    }
}

/// The paths that a text's `use` declarations name, with braces written out, and whether each is a re-export.
/// Tests are left out: they stand at the end of a file.
fn uses(text: &str) -> Vec<(String, bool)> {
    let code = text.split("#[cfg(test)]\nmod ").next().unwrap();
    let code = code.split("#[cfg(all(test").next().unwrap();
    let mut found = Vec::new();
    for statement in code.split(';') {
        let lines = statement
            .lines()
            .filter(|line| !line.trim_start().starts_with("//"));
        let statement: Vec<&str> = lines.collect();
        let statement = statement.join(" ");
        let Some(at) = statement.rfind("use ") else {
            continue;
        };
        let before = statement[..at].trim_end();
        if !(before.is_empty() || before.ends_with("pub") || before.ends_with([')', '}', ']'])) {
            continue;
        }
        let is_public = before.ends_with("pub") || before.ends_with("pub(crate)");
        for path in expanded(&statement[at + 4..]) {
            found.push((path, is_public));
        }
    }
    found
}

/// `a::{b, c::{d, e}}` → `a::b`, `a::c::d`, `a::c::e`
fn expanded(path: &str) -> Vec<String> {
    let path: String = path.split_whitespace().collect::<Vec<_>>().join(" ");
    let Some(open) = path.find('{') else {
        let path = path.split(" as ").next().unwrap();
        return vec![path.trim().trim_end_matches("::self").to_string()];
    };
    let (prefix, rest) = (
        &path[..open],
        &path[open + 1..path.rfind('}').unwrap_or(path.len())],
    );
    let (mut depth, mut start, mut parts) = (0, 0, Vec::new());
    for (at, c) in rest.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&rest[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&rest[start..]);
    let parts = parts
        .into_iter()
        .map(str::trim)
        .filter(|part| !part.is_empty());
    parts
        .flat_map(|part| match part {
            "self" => vec![prefix.trim_end_matches("::").to_string()],
            _ => expanded(&format!("{prefix}{part}")),
        })
        .collect()
}

/// The module that a path names something of, seen from `module`; re-exports are followed.
fn resolved(path: &str, module: &str, sources: &Sources, exports: &Exports) -> Option<String> {
    let parent = |module: &str| {
        module
            .rsplit_once("::")
            .map_or("", |(parent, _)| parent)
            .to_string()
    };
    let (mut base, mut rest) = match path.split_once("::").unwrap_or((path, "")) {
        ("crate", rest) => (String::new(), rest),
        ("self", rest) => (module.to_string(), rest),
        ("super", rest) => (parent(module), rest),
        (first, _) => {
            let child = [module, first].join("::");
            let child = child.trim_start_matches("::").to_string();
            let known = sources.contains_key(&child);
            return known.then(|| {
                resolved(
                    &path[first.len()..].replacen("::", "self::", 1),
                    &child,
                    sources,
                    exports,
                )
            })?;
        }
    };
    while let Some(more) = rest.strip_prefix("super::") {
        (base, rest) = (parent(&base), more);
    }
    loop {
        let (name, more) = rest.split_once("::").unwrap_or((rest, ""));
        let child = [&base, name].map(|part| part.to_string()).join("::");
        let child = child.trim_start_matches("::").to_string();
        if sources.contains_key(&child) {
            (base, rest) = (child, more);
        } else {
            return Some(match exports.get(&(base.clone(), name.to_string())) {
                Some(from) => from.clone(),
                None => base,
            });
        }
    }
}

/// What modules re-export: (module, name) → where it comes from.
type Exports = BTreeMap<(String, String), String>;

/// Which modules each module imports from, the re-exports of parents left out.
fn edges(crate_folder: &str) -> BTreeMap<String, BTreeSet<String>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(crate_folder);
    let mut all = Sources::new();
    sources(&root, "", &mut all);
    let mut exports = Exports::new();
    // Twice: what is re-exported may be a re-export itself.
    for _ in 0..3 {
        for (module, text) in &all {
            for (path, is_public) in uses(text) {
                let name = path.rsplit("::").next().unwrap().to_string();
                if is_public && let Some(from) = resolved(&path, module, &all, &exports) {
                    exports.insert((module.clone(), name), from);
                }
            }
        }
    }
    let mut edges: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (module, text) in &all {
        let own = edges.entry(module.clone()).or_default();
        for (path, is_public) in uses(text) {
            let Some(to) = resolved(&path, module, &all, &exports) else {
                continue;
            };
            let is_child = module.is_empty() || to.starts_with(&format!("{module}::"));
            if to != *module && !(is_public && is_child) {
                own.insert(to);
            }
        }
    }
    edges
}

/// A circle, if there is one.
fn circle(edges: &BTreeMap<String, BTreeSet<String>>) -> Option<Vec<String>> {
    fn visit(
        at: &str,
        edges: &BTreeMap<String, BTreeSet<String>>,
        path: &mut Vec<String>,
        done: &mut BTreeSet<String>,
    ) -> Option<Vec<String>> {
        if let Some(start) = path.iter().position(|module| module == at) {
            return Some([&path[start..], &[at.to_string()]].concat());
        }
        if !done.insert(at.to_string()) {
            return None;
        }
        path.push(at.into());
        let found = edges.get(at).into_iter().flatten();
        let found = found
            .into_iter()
            .find_map(|next| visit(next, edges, path, done));
        path.pop();
        found
    }
    let mut done = BTreeSet::new();
    edges
        .keys()
        .find_map(|at| visit(at, edges, &mut Vec::new(), &mut done))
}

/// The same between the folders and files at the root.
fn at_the_root(edges: &BTreeMap<String, BTreeSet<String>>) -> BTreeMap<String, BTreeSet<String>> {
    let top = |module: &str| module.split("::").next().unwrap().to_string();
    let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (from, to) in edges {
        let to = to.iter().map(|to| top(to)).filter(|to| *to != top(from));
        found.entry(top(from)).or_default().extend(to);
    }
    found
}

#[test]
fn modules_do_not_import_each_other_in_circles() {
    for folder in ["src", "kernels-cubecl/src"] {
        let files = edges(folder);
        let many = files.values().map(BTreeSet::len).sum::<usize>();
        assert!(
            many > 50,
            "{folder}: only {many} imports were found: {files:?}"
        );
        assert_eq!(circle(&files), None, "{folder}, between files");
        assert_eq!(
            circle(&at_the_root(&files)),
            None,
            "{folder}, between folders"
        );
    }
}

#[test]
fn a_circle_is_found() {
    let text = "use super::b::{self, C as D};\nuse crate::{x::Y, z::{V, w}};\npub use q::R;\n";
    let found: Vec<_> = uses(text).into_iter().map(|(path, _)| path).collect();
    let expected = [
        "super::b",
        "super::b::C",
        "crate::x::Y",
        "crate::z::V",
        "crate::z::w",
        "q::R",
    ];
    assert_eq!(found, expected);
    let edge = |from: &str, to: &[&str]| {
        let to = to.iter().map(|to| to.to_string()).collect();
        (from.to_string(), to)
    };
    let edges = BTreeMap::from([edge("a", &["b"]), edge("b", &["c", "d"]), edge("d", &["a"])]);
    assert_eq!(circle(&edges).unwrap(), ["a", "b", "d", "a"]);
}
