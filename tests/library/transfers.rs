//! What is read back from a device. On a GPU each read-back waits for everything before it.

use std::path::Path;

/// Where tensors may be read, and why: nowhere in WRITE, READ, the outer gradient, training or evaluation.
const ALLOWED: &[(&str, &str)] = &[
    ("model/tokens.rs", "ids that a user gives as a tensor, once"),
    ("model/generate/reader.rs", "the next token's logits"),
    ("model/adapter.rs", "weights that an adapter is added to"),
    ("model/weights.rs", "weights that are saved"),
    ("memory/kinds/file/pack.rs", "memories that are saved"),
    ("memory/stop.rs", "the losses that a stop rule compares"),
    (
        "support/readback.rs",
        "all numbers of a step or of a batch's evaluation together",
    ),
    (
        "train/learner.rs",
        "gradients, where several processes train together",
    ),
    ("train/optimizer.rs", "moments that were loaded"),
    ("interop/parity.rs", "gradients that are compared"),
    ("interop/parity/cases.rs", "what else is compared"),
];

fn files(folder: &Path, found: &mut Vec<std::path::PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => files(&path, found),
            false => found.push(path),
        }
    }
}

#[test]
fn tensors_are_read_back_in_few_places() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut all = Vec::new();
    files(&root, &mut all);
    let mut reading = Vec::new();
    for path in all {
        let name = path
            .strip_prefix(&root)
            .unwrap()
            .to_str()
            .unwrap()
            .to_string();
        let is_program = name.starts_with("bin") || !name.ends_with(".rs");
        let text = std::fs::read_to_string(&path).unwrap();
        let code = text.split("#[cfg(test)]\nmod ").next().unwrap();
        let code = code.split("#[cfg(all(test").next().unwrap();
        let reads = ["to_data", "into_data", "into_scalar"];
        let lines = code
            .lines()
            .filter(|line| !line.trim_start().starts_with("//"));
        let has = |call: &&str| lines.clone().any(|line| line.contains(*call));
        if !is_program && reads.iter().any(has) {
            reading.push(name);
        }
    }
    reading.sort();
    let mut allowed: Vec<_> = ALLOWED.iter().map(|(name, _)| name.to_string()).collect();
    allowed.sort();
    assert_eq!(reading, allowed);
}
