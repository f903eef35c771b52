//! What the README and the pages of docs/ say: their shell commands, run as they stand, with the trainings cut short
//! and on the CPU; the messages that docs/troubleshooting.md explains are messages of the program; and links lead to
//! files and headings.
#![cfg(unix)]

use std::fs::read_to_string;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::program;

/// A training is a matter of seconds, a GPU is the CPU, and nothing is installed.
const SHELL: &str = r#"
set -e
short="train.steps=4 train.eval_every=2 data.valid_samples=20 train.batch_size=4
    model.hidden_size=8 model.intermediate_size=16 model.num_hidden_layers=1"
gradmem() {
    case "$1 $2" in
        train*) more=$short ;;
        "bench attention") more="--heads 1 --dim 8 --iters 1 --warmup 0" ;;
        bench*) more="--layers 1 --heads 1 --dim 8 --iters 1 --warmup 0" ;;
        *) more= ;;
    esac
    for arg; do
        shift
        case $arg in cuda | vulkan | metal) arg=flex ;; esac
        set -- "$@" "$arg"
    done
    "$BIN" "$@" $more
}
cargo() {
    while [ $# -gt 0 ] && [ "$1" != -- ]; do shift; done
    if [ $# -gt 0 ]; then shift; gradmem "$@"; fi
}
git() { :; }
pip() { :; }
cd() { :; }
"#;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Files below `folder` whose names end so.
fn files(folder: &Path, end: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    let found = paths.flat_map(|path| match path.is_dir() {
        true => files(&path, end),
        false => vec![path],
    });
    found
        .filter(|path| path.to_string_lossy().ends_with(end))
        .collect()
}

/// Runs a page's `sh` blocks, in a folder of its own.
fn run(page: &str) {
    let text = read_to_string(root().join(page)).unwrap();
    let blocks = text.split("```sh\n").skip(1);
    let blocks: String = blocks
        .map(|block| block.split("```").next().unwrap())
        .collect();
    assert!(
        blocks.matches("gradmem ").count() >= 3,
        "{page} has lost its commands"
    );
    let folder = TempDir::new().unwrap();
    // `parity` is shown on the tests' own cases.
    std::os::unix::fs::symlink(root().join("tests"), folder.path().join("tests")).unwrap();
    let output = Command::new("sh")
        .args(["-c", &format!("{SHELL}{blocks}")])
        .env("BIN", program::PATH)
        .current_dir(&folder)
        .output()
        .unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{page}: {printed}\n{errors}");
}

#[test]
fn the_readmes_commands_work() {
    run("README.md");
}

#[test]
fn the_commands_of_the_guide_work() {
    run("docs/guide.md");
}

#[test]
fn the_commands_of_the_cuda_page_work() {
    run("docs/cuda.md");
}

#[test]
fn the_commands_of_the_pytorch_page_work() {
    run("docs/from-pytorch.md");
}

#[test]
fn the_commands_of_the_troubleshooting_page_work() {
    run("docs/troubleshooting.md");
}

/// Messages open an item of a list, in backquotes; `…` stands for what differs.
#[test]
fn the_messages_that_are_explained_are_ours() {
    let folders = ["src", "kernels-cubecl/src"].map(|folder| root().join(folder));
    let sources = folders.iter().flat_map(|folder| files(folder, ".rs"));
    let source: String = sources.map(|path| code(&path)).collect();
    // A string that goes on in the next line is one.
    let source = source.replace("\\\n", "").replace("\\\"", "\"");
    let source = source.split_whitespace().collect::<Vec<_>>().join(" ");
    let page = read_to_string(root().join("docs/troubleshooting.md")).unwrap();
    let mut messages = Vec::new();
    for line in page.lines() {
        let mut rest = line.strip_prefix("- `");
        while let Some((message, behind)) = rest.and_then(|rest| rest.split_once('`')) {
            messages.push(message);
            rest = behind.strip_prefix(", `");
        }
    }
    assert!(messages.len() > 20, "the page has lost its messages");
    for message in messages {
        for part in message.split('…').map(str::trim) {
            assert!(source.contains(part), "no message has `{part}`: {message}");
        }
    }
}

/// A file of Rust without its comments and its unit tests.
fn code(path: &Path) -> String {
    let text = read_to_string(path).unwrap();
    let code = text.split("#[cfg(test)]").next().unwrap();
    let lines = code
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"));
    lines.flat_map(|line| [line, "\n"]).collect()
}

/// The page's lines without blocks of code.
fn prose(page: &str) -> Vec<&str> {
    let blocks = page.split("```").step_by(2);
    blocks.flat_map(str::lines).collect()
}

/// `[label]: target` at the end of a page.
fn definitions<'a>(lines: &[&'a str]) -> Vec<(&'a str, &'a str)> {
    let lines = lines.iter().filter_map(|line| line.strip_prefix('['));
    lines.filter_map(|line| line.split_once("]: ")).collect()
}

/// As headings are addressed.
fn anchors(page: &str) -> Vec<String> {
    let headings = prose(page).into_iter().filter(|line| line.starts_with('#'));
    let named = headings.map(|line| line.trim_start_matches('#').trim().to_lowercase());
    let kept = |c: char| c.is_alphanumeric() || "-_".contains(c);
    let shown = |c: char| {
        if c == ' ' {
            Some('-')
        } else {
            kept(c).then_some(c)
        }
    };
    named
        .map(|name| name.chars().filter_map(shown).collect())
        .collect()
}

#[test]
fn links_lead_to_files_and_headings() {
    let folders = ["docs", "benches", "examples"].map(|folder| files(&root().join(folder), ".md"));
    let own = [
        "README.md",
        "ARCHITECTURE.md",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
    ];
    let pages = folders.into_iter().flatten();
    let mut seen = 0;
    for path in pages.chain(own.map(|page| root().join(page))) {
        let text = read_to_string(&path).unwrap();
        let lines = prose(&text);
        let defined = definitions(&lines);
        let prose = lines.join("\n");
        let inline = prose.split("](").skip(1);
        let inline = inline.map(|rest| rest.split(')').next().unwrap());
        for target in inline.chain(defined.iter().map(|(_, target)| *target)) {
            if target.starts_with("http") {
                continue;
            }
            seen += 1;
            let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
            let file = match file {
                "" => path.clone(),
                file => path.parent().unwrap().join(file),
            };
            assert!(file.exists(), "{}: {target} is not there", path.display());
            let found = || anchors(&read_to_string(&file).unwrap()).contains(&anchor.to_string());
            assert!(
                anchor.is_empty() || found(),
                "{}: {target} has no such heading",
                path.display()
            );
        }
        for rest in prose.split("][").skip(1) {
            let label = rest.split(']').next().unwrap();
            assert!(
                defined.iter().any(|(name, _)| *name == label),
                "{}: [{label}] is not defined",
                path.display()
            );
        }
    }
    assert!(seen > 100, "the pages have lost their links");
}

/// In the documentation of the library the pages are modules of `guide`.
#[test]
fn the_guides_pages_link_to_each_other_as_modules_too() {
    let source = read_to_string(root().join("src/guide.rs")).unwrap();
    let modules = read_to_string(root().join("src/guide/links.md")).unwrap();
    let modules = definitions(&modules.lines().collect::<Vec<_>>());
    let included = source.split("include_str!(\"../docs/").skip(1);
    let mut seen = 0;
    for page in included.map(|rest| rest.split('"').next().unwrap()) {
        let text = read_to_string(root().join("docs").join(page)).unwrap();
        for (label, target) in definitions(&prose(&text)) {
            seen += 1;
            assert_eq!(label, target, "{page}");
            let (file, anchor) = target.split_once(".md").unwrap();
            let module = match file {
                "guide" => "crate::guide".into(),
                file => format!("crate::guide::{}", file.replace('-', "_")),
            };
            let module = format!("{module}{anchor}");
            assert!(
                modules.contains(&(label, module.as_str())),
                "src/guide/links.md lacks [{label}]: {module}, for {page}"
            );
        }
    }
    assert!(seen > 20, "the pages have lost their links");
}
