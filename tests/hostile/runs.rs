//! Run folders: opened, reported, and gone on with.

use std::path::Path;

use gradmem::train::checkpoint::RunFolder;
use gradmem::train::config::RunConfig;
use gradmem::train::{TrainOptions, Trained, train};
use gradmem::{Error, report::Report};
use rand_chacha::ChaCha8Rng;
use sha2::{Digest, Sha256};

use crate::B;
use crate::mutate::{self, once_in};
use crate::read::{Count, Folder, hammer};
use crate::tensors::{self, Parts};

/// What `gradmem eval` may have found.
const EVAL: &str = r#"{"weights": "", "samples": 20, "rows": [
  {"write_steps": 0, "exact_match": 0.0, "read_loss": 4.1}, {"write_steps": 1, "exact_match": 0.25, "read_loss": 3.5},
  {"write_steps": 2, "exact_match": 0.5, "read_loss": 2.5, "write_loss_before": 4.0},
  {"write_steps": null, "exact_match": 0.125}],
 "adaptive": {"rule": {"tolerance": 0.01, "patience": 2, "cap": 4}, "chosen_on": [20, 0.75], "mean_write_steps": 1.5, "exact_match": 0.55},
 "examples": [{"context": "!a:1!|", "query": "?!a:", "target": "1!|", "answer": "1", "right": true}]}"#;

const LINES: &str = "{\"context\": \"Mary is in the garden. \", \"query\": \"Where is Mary? \", \"target\": \"garden\"}\n\
     {\"context\": \"Zoë is in the kitchen. \", \"query\": \"Where is Zoë? \", \"target\": \"kitchen\"}\n";

/// Steps of a run as it is, and when it goes on.
const STEPS: [usize; 2] = [4, 6];

fn config(task: &str, folder: &Path, steps: usize) -> RunConfig {
    let data = match task {
        "kv" => "data.pairs=1 data.queries_per_context=1 data.valid_samples=4".to_string(),
        _ => {
            let lines = folder.join("lines.jsonl").display().to_string();
            format!(
                "data.task=jsonl data.train_file={lines} data.valid_file={lines} model.vocab_size=30"
            )
        }
    };
    let small = "model.hidden_size=4 model.intermediate_size=4 model.num_hidden_layers=1 \
        model.num_attention_heads=1 memory.memory_tokens=2 memory.write_steps=1 train.batch_size=2 \
        train.eval_every=2 train.log_every=1 train.warmup_steps=2 train.stop_value=2 train.curriculum=[]";
    let mut overrides = vec![format!("train.steps={steps}")];
    overrides.extend(data.split_whitespace().map(String::from));
    overrides.extend(small.split_whitespace().map(String::from));
    let preset = match task {
        "kv" => "kv-quick".to_string(),
        _ => {
            // Nothing of another task's settings.
            let path = folder.join("base.toml");
            std::fs::write(&path, "[model]\nmodel_type = \"llama\"\n").unwrap();
            path.display().to_string()
        }
    };
    RunConfig::resolve(&preset, &overrides).unwrap()
}

fn go(task: &str, folder: &Path, run: &Path, steps: usize) -> Result<(), Error> {
    let options = TrainOptions {
        plain: true,
        ..TrainOptions::default()
    };
    train::<B>(
        &config(task, folder, steps),
        run,
        options,
        &Default::default(),
    )
    .map(|_| ())
}

/// Two small runs, of a task with tokens of its own and of one with a tokenizer that was made.
pub fn folder() -> Folder {
    let mut folder = Folder::new(&[
        "/config.toml",
        ".sha256",
        "/eval.json",
        "/metrics.jsonl",
        ".safetensors",
        ".bin",
        "/tokenizer.json",
    ]);
    std::fs::write(folder.path().join("lines.jsonl"), LINES).unwrap();
    for task in ["kv", "lines"] {
        let run = folder.path().join(task);
        go(task, folder.path(), &run, STEPS[0]).unwrap();
        std::fs::write(run.join("eval.json"), EVAL).unwrap();
    }
    folder.keep();
    folder
}

/// Changes one file of a run, and mostly with an optimizer's file the hash that ties it to the weights.
fn change(rng: &mut ChaCha8Rng, folder: &Folder, name: &str) -> Vec<(String, Vec<u8>)> {
    let valid = &folder.valid[name];
    let bytes = match Path::new(name).extension().and_then(|e| e.to_str()) {
        Some("safetensors") => tensors::file(rng, valid),
        Some("json") => mutate::json_file(rng, valid),
        Some("jsonl") => mutate::by_values(rng, valid, mutate::lines),
        Some("toml") => mutate::by_values(rng, valid, mutate::toml),
        _ => {
            let mut bytes = valid.clone();
            mutate::bytes(rng, &mut bytes);
            bytes
        }
    };
    match name.ends_with(".bin") && !once_in(rng, 4) {
        true => tied(folder, name, bytes),
        false => vec![(name.to_string(), bytes)],
    }
}

/// An optimizer's file and the checkpoint that has its hash.
pub fn tied(folder: &Folder, name: &str, bytes: Vec<u8>) -> Vec<(String, Vec<u8>)> {
    let last = format!("{}/last.safetensors", name.split('/').next().unwrap());
    let mut parts = Parts::of(&folder.valid[&last]);
    let hash = |bytes: &[u8]| -> String {
        let digest = Sha256::digest(bytes);
        digest.iter().map(|byte| format!("{byte:02x}")).collect()
    };
    let (before, now) = (hash(&folder.valid[name]), hash(&bytes));
    for (_, value) in &mut parts.metadata {
        *value = value.as_str().unwrap().replace(&before, &now).into();
    }
    vec![(name.to_string(), bytes), (last, parts.file())]
}

/// Opens a run in every way but going on.
pub fn open(run: &Path) -> Result<(), Error> {
    let report = Report::open(&[run]).and_then(|report| {
        report.figures()?;
        report.markdown();
        Ok(())
    });
    let trained = Trained::<B>::open(run, &Default::default()).and_then(|trained| {
        let task = trained.task()?;
        for at in 0..2 {
            task.valid.get(at).transpose()?;
        }
        Ok(())
    });
    RunFolder::open(run)?.weights_hash()?;
    report.and(trained)
}

pub fn run(count: Count) {
    let folder = folder();
    hammer(
        "run",
        count,
        &folder,
        |rng, name| change(rng, &folder, name),
        |path, name| open(path.join(name).parent().unwrap()),
    );
}

/// Goes on with the run of a task. Weights may be any numbers, and lead where there are none.
pub fn resumed(folder: &Path, task: &str) -> Result<(), Error> {
    match go(task, folder, &folder.join(task), STEPS[1]) {
        Err(Error::NotFinite { .. } | Error::Failed(_)) => Ok(()),
        result => result,
    }
}

pub fn resume(count: Count) {
    let folder = folder();
    hammer(
        "resumed",
        count,
        &folder,
        |rng, name| change(rng, &folder, name),
        |path, name| resumed(path, name.split('/').next().unwrap()),
    );
}
