//! Killed at any moment, the program leaves files that are old or new and never half, and a training that
//! goes on ends as if it had never stopped.
//!
//! The ordinary suite kills a dozen times;
//!
//! ```sh
//! GRADMEM_KILLS=200 cargo test --release --test command crash -- --nocapture
//! ```
//!
//! kills two hundred times.
#![cfg(unix)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use gradmem::model::weights::Tensors;
use gradmem::train::checkpoint::RunFolder;
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use serde_json::Value;
use tempfile::TempDir;

use crate::program::{self, SMALL};

/// Kills in all, of which a third is of `write`.
fn kills() -> usize {
    let kills = std::env::var("GRADMEM_KILLS");
    kills
        .ok()
        .and_then(|kills| kills.parse().ok())
        .unwrap_or(12)
}

fn gradmem(args: &[String]) -> Child {
    Command::new(program::PATH)
        .args(args)
        .env("RUST_LOG", "error")
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

/// Runs to the end, and says how long that took.
fn finish(args: &[String]) -> Duration {
    let start = Instant::now();
    let status = gradmem(args).wait().unwrap();
    assert_eq!(status.code(), Some(0), "{args:?}");
    start.elapsed()
}

fn train(run: &Path) -> Vec<String> {
    let overrides = "train.steps=60 data.pairs=2 data.queries_per_context=2 data.valid_samples=20 \
        train.eval_every=4 train.log_every=3 train.warmup_steps=30 train.stop_value=2 train.curriculum_value=0 \
        train.ema_decay=0.9";
    let mut args: Vec<String> = ["train", "kv-quick", "--run"].map(String::from).into();
    args.push(run.display().to_string());
    args.extend(SMALL.split_whitespace().map(String::from));
    args.extend(overrides.split_whitespace().map(String::from));
    args.push(r#"train.curriculum=["pairs=1 queries_per_context=1"]"#.into());
    args
}

fn write(model: &Path, context: &Path, memory: &Path) -> Vec<String> {
    let path = |path: &Path| path.display().to_string();
    let args = ["write", "--model"].map(String::from).into_iter();
    args.chain([path(model), path(context), "-o".into(), path(memory)])
        .collect()
}

/// When to kill.
enum Moment {
    /// So long after the start.
    After(Duration),
    /// When a file was begun for the so manieth time.
    Writing(usize),
}

impl Moment {
    /// Any moment of a program that takes so long.
    fn random(rng: &mut ChaCha8Rng, takes: Duration, files: usize) -> Self {
        match rng.random_range(0..2) {
            0 => Self::After(takes.mul_f64(rng.random_range(0.0..1.0))),
            _ => Self::Writing(rng.random_range(1..=files)),
        }
    }

    /// Kills then; false if the program ended before.
    fn kill(&self, mut child: Child, folder: &Path) -> bool {
        let start = Instant::now();
        let (mut seen, mut last) = (0, unfinished(folder));
        while child.try_wait().unwrap().is_none() {
            let due = match self {
                Self::After(time) => start.elapsed() >= *time,
                Self::Writing(count) => {
                    let now = unfinished(folder);
                    seen += usize::from(now.iter().any(|path| !last.contains(path)));
                    last = now;
                    seen >= *count
                }
            };
            if due {
                child.kill().unwrap();
                let status = child.wait().unwrap();
                return status.code().is_none();
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        assert_eq!(child.wait().unwrap().code(), Some(0));
        false
    }
}

/// Files of a folder that are not yet in place.
fn unfinished(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let paths = entries.map(|entry| entry.path());
    paths
        .filter(|path| path.extension().is_some_and(|e| e == "tmp"))
        .collect()
}

/// A file of tensors, whole: its tensors' bytes, and its metadata but for what names the parameters of a
/// process.
fn tensors(path: &Path) -> (BTreeMap<String, Vec<u8>>, BTreeMap<String, Value>) {
    let file = Tensors::open(path).unwrap();
    let bytes = |name: &str| file.get(name).unwrap().bytes.to_vec();
    let tensors = file.names().map(|name| (name.to_string(), bytes(name)));
    let metadata = file.metadata().iter().map(|(key, text)| {
        let mut value = serde_json::from_str(text).unwrap_or_else(|_| text.clone().into());
        if let Value::Object(value) = &mut value {
            value.remove("parameter_ids");
            value.remove("optimizer_hash");
        }
        (key.clone(), value)
    });
    (tensors.collect(), metadata.collect())
}

/// Fails unless a run that was killed is one that can go on.
fn check(run: &Path) {
    let left = unfinished(run);
    assert!(left.len() <= 1, "files pile up: {left:?}");
    if !run.join("config.toml").exists() {
        assert!(!run.join("metrics.jsonl").exists());
        return;
    }
    let folder = RunFolder::open(run).unwrap();
    folder.config().unwrap();
    serde_json::from_slice::<Value>(&std::fs::read(run.join("tokenizer.json")).unwrap()).unwrap();
    for name in ["best.safetensors", "last.safetensors"] {
        if run.join(name).exists() {
            tensors(&run.join(name));
        }
    }
    let last = run.join("last.safetensors");
    if last.exists() {
        folder.weights_hash().unwrap();
        let (_, metadata) = tensors(&last);
        let step = &metadata["gradmem_run"]["state"]["step"];
        assert!(run.join(format!("optimizer-{step}.bin")).exists());
        assert!(run.join(format!("average-{step}.safetensors")).exists());
    }
    let log = std::fs::read(run.join("metrics.jsonl")).unwrap_or_default();
    let whole = log
        .iter()
        .rposition(|byte| *byte == b'\n')
        .map_or(0, |at| at + 1);
    for line in String::from_utf8(log[..whole].to_vec()).unwrap().lines() {
        serde_json::from_str::<Value>(line).unwrap();
    }
}

fn assert_same_run(whole: &Path, run: &Path) {
    let read = |run: &Path, name: &str| std::fs::read(run.join(name)).unwrap();
    let log = |run| String::from_utf8(read(run, "metrics.jsonl")).unwrap();
    assert_eq!(log(whole), log(run));
    for name in [
        "best.safetensors",
        "config.toml",
        "tokenizer.json",
        "data.sha256",
    ] {
        if whole.join(name).exists() {
            assert!(read(whole, name) == read(run, name), "{name} differs");
        }
    }
    let last = "last.safetensors";
    assert!(
        tensors(&whole.join(last)) == tensors(&run.join(last)),
        "{last} differs"
    );
    let names = |run: &Path| {
        let entries = std::fs::read_dir(run).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name());
        names.collect::<std::collections::BTreeSet<_>>()
    };
    assert_eq!(names(whole), names(run));
}

#[test]
fn a_killed_program_leaves_what_was_there_or_what_is_new() {
    let folder = TempDir::new().unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let whole = folder.path().join("whole");
    let takes = finish(&train(&whole));
    let of_write = kills() / 3;
    let of_train = kills() - of_write;

    let (mut killed, mut runs) = (0, 0);
    while killed < of_train {
        runs += 1;
        let run = folder.path().join(format!("run-{runs}"));
        loop {
            let moment = match killed < of_train {
                true => Moment::random(&mut rng, takes / 4, 40),
                false => Moment::After(Duration::MAX),
            };
            let ended = !moment.kill(gradmem(&train(&run)), &run);
            check(&run);
            if ended {
                break;
            }
            killed += 1;
        }
        assert_same_run(&whole, &run);
        std::fs::remove_dir_all(run).unwrap();
    }
    println!("{killed} kills of {runs} trainings of {takes:.1?} each");

    // A memory is overwritten by another, in a folder of its own.
    let memories = folder.path().join("memories");
    std::fs::create_dir(&memories).unwrap();
    let [a, b] = [("a", "!a:7!!b:2!|"), ("b", "!c:9!!d:4!|")].map(|(name, text)| {
        let context = folder.path().join(format!("{name}.txt"));
        std::fs::write(&context, text).unwrap();
        let memory = folder.path().join(format!("{name}.safetensors"));
        let takes = finish(&write(&whole, &context, &memory));
        (context, tensors(&memory), takes)
    });
    assert!(a.1 != b.1);
    let memory = memories.join("memory.safetensors");
    finish(&write(&whole, &a.0, &memory));
    let (mut killed, mut written, mut changed) = (0, 0, 0);
    let mut now = tensors(&memory);
    while killed < of_write {
        // What is not there now is written.
        let context = if now == a.1 { &b.0 } else { &a.0 };
        let moment = Moment::random(&mut rng, a.2, 1);
        match moment.kill(gradmem(&write(&whole, context, &memory)), &memories) {
            true => killed += 1,
            false => written += 1,
        }
        let before = std::mem::replace(&mut now, tensors(&memory));
        assert!(
            now == a.1 || now == b.1,
            "neither the old nor the new memory"
        );
        changed += usize::from(now != before);
        let left = unfinished(&memories);
        assert!(left.len() <= 1, "files pile up: {left:?}");
    }
    finish(&write(&whole, &b.0, &memory));
    assert!(tensors(&memory) == b.1);
    assert_eq!(std::fs::read_dir(&memories).unwrap().count(), 1);
    println!("{killed} kills of WRITE and {written} that ended: {changed} new memories");
}
