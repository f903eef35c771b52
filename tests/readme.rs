//! The README's shell commands, run as they stand, with the trainings cut short.
#![cfg(unix)]

use std::process::Command;

use tempfile::TempDir;

/// What makes a training a matter of seconds.
const SHORT: &str = "train.steps=4 train.eval_every=2 data.valid_samples=20 train.batch_size=4 \
    model.hidden_size=8 model.intermediate_size=16 model.num_hidden_layers=1";

#[test]
fn the_readmes_commands_work() {
    let readme = include_str!("../README.md");
    let mut script = format!(
        "set -e
        gradmem() {{ if [ \"$1\" = train ]; then \"$BIN\" \"$@\" {SHORT}; else \"$BIN\" \"$@\"; fi; }}
        cargo() {{ if [ \"$1 $2 $3\" = 'run --release --' ]; then shift 3; gradmem \"$@\"; fi; }}
        "
    );
    let mut commands = 0;
    for block in readme.split("```sh\n").skip(1) {
        let block = block.split("```").next().unwrap();
        commands += block.matches("gradmem ").count() + block.matches("cargo run").count();
        script += block;
    }
    assert!(commands >= 5, "the README has lost its commands");
    let folder = TempDir::new().unwrap();
    // `parity` is shown on the tests' own cases.
    std::os::unix::fs::symlink(
        concat!(env!("CARGO_MANIFEST_DIR"), "/tests"),
        folder.path().join("tests"),
    )
    .unwrap();
    let output = Command::new("sh")
        .args(["-c", &script])
        .env("BIN", env!("CARGO_BIN_EXE_gradmem"))
        .current_dir(&folder)
        .output()
        .unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{printed}\n{errors}");
}
