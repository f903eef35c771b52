//! The program `gradmem` as a child process.

use std::borrow::Borrow;
use std::path::Path;
use std::process::{Command, Output};

/// The executable.
pub const PATH: &str = env!("CARGO_BIN_EXE_gradmem");

/// Settings of a small model.
pub const SMALL: &str = "model.hidden_size=8 model.intermediate_size=16 model.num_hidden_layers=1 \
    model.num_attention_heads=1 memory.memory_tokens=2 train.batch_size=4 train.curriculum=[]";

/// The arguments of a training of about a second.
pub fn tiny(run: &str) -> Vec<&str> {
    let settings = "data.pairs=2 data.queries_per_context=1 data.valid_samples=20 train.steps=6 \
        train.eval_every=3 train.log_every=2 train.warmup_steps=2";
    let mut args = vec!["train", "kv-quick", "--run", run];
    args.extend(SMALL.split_whitespace());
    args.extend(settings.split_whitespace());
    args
}

/// The program with `args`, not yet started.
pub fn command(folder: impl AsRef<Path>, args: &[&str]) -> Command {
    let mut command = Command::new(PATH);
    command.args(args).current_dir(folder);
    command
}

/// Runs the program with `args` in `folder` until it ends.
pub fn gradmem(folder: impl AsRef<Path>, args: &[&str]) -> Output {
    command(folder, args).output().unwrap()
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into()
}

/// Fails unless the status is 0; returns the standard output.
pub fn succeeds(output: impl Borrow<Output>) -> String {
    let output = output.borrow();
    assert!(output.status.success(), "{}", text(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// Fails unless the status is 2 and standard error is one line, after warnings if there are any, that contains each of `words`.
pub fn refuses(output: impl Borrow<Output>, words: &[&str]) {
    let output = output.borrow();
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{words:?}: {error}");
    let lines: Vec<&str> = error.trim_end().lines().collect();
    let [warnings @ .., last] = &lines[..] else {
        panic!("nothing is said: {words:?}");
    };
    let is_warning = |line: &&str| line.starts_with("gradmem: warn: ");
    assert!(
        warnings.iter().all(is_warning) && !is_warning(last),
        "{error}"
    );
    for word in words {
        assert!(last.contains(word), "`{word}` is not in: {error}");
    }
}

/// A program that is started with SIGINT ignored, as in the background of a script, does not stop at it, and so do those that it starts.
pub fn assert_sigint_arrives() {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    assert!(
        ignored.unwrap_or(0) >> 1 & 1 == 0,
        "these tests were started with SIGINT ignored: run them in the foreground"
    );
}
