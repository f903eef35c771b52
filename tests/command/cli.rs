//! The command as a shell sees it: what it prints, what it leaves on disk, how it exits.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use burn::tensor::TensorData;
use gradmem::model::weights;
use tempfile::TempDir;

use crate::program::{self, command, gradmem, succeeds, text, tiny};

fn train(folder: &TempDir, run: &str, more: &[&str]) -> Output {
    gradmem(folder, &[&tiny(run)[..], more].concat())
}

/// A user's mistake: status 2, one line on stderr that names it, and nothing on disk but what was there.
fn refuses(folder: &TempDir, output: &Output, words: &[&str], before: &[PathBuf]) {
    program::refuses(output, words);
    assert_eq!(files(folder.path()), before, "something was written");
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        }
        found.push(path);
    }
    found.sort();
    found
}

#[test]
fn settings_that_cannot_work_are_refused_before_anything_is_written() {
    let folder = TempDir::new().unwrap();
    let cases: &[(&[&str], &[&str])] = &[
        (
            &["train", "kv-fast"],
            &["unknown preset `kv-fast`", "kv-quick"],
        ),
        (
            &["train", "kv-quick", "memory.alpha=1"],
            &["unknown key `memory.alpha`", "write_lr"],
        ),
        (
            &["train", "kv-quick", "--backend", "tpu"],
            &["unknown backend `tpu`", "flex"],
        ),
        (
            &["train", "kv-quick", "--precision", "tf32"],
            &["train.precision", "tf32", "or f32"],
        ),
        (
            &["train", "kv-quick", "train.precision=half"],
            &["train.precision", "half", "bf16"],
        ),
        (
            &["bench", "attention", "--precision", "bf16"],
            &["--precision", "--dtype"],
        ),
        (
            &["parity", "golden", "--precision", "tf32"],
            &["--precision tf32", "`flex`", "leave the option out"],
        ),
        (
            &["train", "kv-quick", "--backend", "cuda"],
            &["`cuda` is not compiled in", "--features cuda"],
        ),
        (
            &["train", "kv-quick", "memory.write_lr=-1"],
            &["memory.write_lr", "-1", "positive"],
        ),
        (
            &["train", "kv-quick", "memory.write_lr=nan"],
            &["memory.write_lr", "positive"],
        ),
        (
            &["train", "kv-quick", "memory.write_steps=-2"],
            &["write_steps"],
        ),
        (
            &["train", "kv-quick", "memory.memory_tokens=0"],
            &["memory.memory_tokens", "at least 1"],
        ),
        (
            &["train", "kv-quick", "data.pairs=0"],
            &["data.pairs", "data.segments"],
        ),
        (&["train", "kv-quick", "data.pairs=nan"], &["pairs"]),
        (
            &[
                "train",
                "kv-quick",
                "data.pairs=63",
                "data.queries_per_context=1",
            ],
            &["data.pairs", "only 62"],
        ),
        (
            &["train", "kv-quick", "model.hidden_size=63"],
            &["hidden_size", "multiple of num_attention_heads"],
        ),
        (
            &["train", "kv-quick", "data.pairs=40"],
            &["max_position_embeddings", "201 tokens"],
        ),
        (&["train", "missing.toml"], &["missing.toml", "cannot read"]),
        (
            &["train", "kv-quick", "--from", "nowhere"],
            &["nowhere", "not a folder with a model"],
        ),
        (&["eval", "nowhere"], &["nowhere", "not a run folder"]),
        (
            &["eval", "nowhere", "--write-steps", "2..1"],
            &["--write-steps"],
        ),
        (
            &["write", "none.txt", "-o", "m", "--model", "nowhere"],
            &["none.txt", "cannot read"],
        ),
        (
            &["read", "m", "?", "--model", "nowhere"],
            &["m: cannot read"],
        ),
        (
            &["generate", "x", "--model", "nowhere"],
            &["not a run folder"],
        ),
        (&["parity", "nowhere"], &["nowhere", "cannot read"]),
        (&["preset", "kv-fast"], &["unknown preset", "kv-quick"]),
        (
            &["bench", "--attention", "fused", "--backend", "ndarray"],
            &["--attention fused", "`ndarray` has no fused", "flex"],
        ),
        (&["bench", "--batch", "0"], &["--batch", "at least 1"]),
        (&["bench", "--query", "1"], &["--query must be at least 2"]),
        (
            &["bench", "--micro-batch", "0"],
            &["--micro-batch must be at least 1"],
        ),
        (&["bench", "--dim", "0"], &["--dim must be at least 1"]),
        (&["bench", "--heads", "0"], &["--heads must be at least 1"]),
        (&["bench", "--vocab", "0"], &["--vocab must be at least 1"]),
        (&["bench", "--vocab", "99999999"], &["`--vocab` = 99999999"]),
        (&["bench", "--steps", "99999"], &["`--steps` = 99999"]),
        (&["bench", "--write-lr", "-1"], &["`--write-lr` = -1"]),
        (
            &["bench", "attention", "--warmup", "18446744073709551615"],
            &["--warmup", "below 2³²"],
        ),
        (
            &["train", "kv-quick", "model.fingerprint=abc"],
            &["model.fingerprint", "leave it out"],
        ),
        (
            &["train", "kv-quick", "model.from="],
            &["model.from", "is empty"],
        ),
        (
            &["train", "kv-quick", "train.stop_metric=foo"],
            &["`train.stop_metric` = foo: with gradmem it must be one of exact_match"],
        ),
        (
            &["bench", "--heads", "3"],
            &["--dim 128", "twice --heads 3"],
        ),
        (
            &["bench", "attention", "--iters", "0"],
            &["--iters must be at least 1"],
        ),
        (
            &["bench", "read", "--model", "nowhere", "--queries", "0"],
            &["--queries must be at least 1"],
        ),
        (
            &["bench", "read", "--model", "nowhere", "--batch", "0"],
            &["--batch must be at least 1"],
        ),
        (
            &["train", "kv-quick", "--micro-batch", "0"],
            &["train.micro_batch", "at least 1"],
        ),
        (
            &["bench", "attention", "--seq", "99999999999"],
            &["99999999999", "below 2³²"],
        ),
        (
            &["bench", "attention", "--heads", "3", "--kv-heads", "2"],
            &["a multiple of --kv-heads"],
        ),
    ];
    for (args, words) in cases {
        refuses(&folder, &gradmem(&folder, args), words, &[]);
    }
}

#[test]
fn a_preset_file_with_a_mistake_is_named_with_its_line() {
    let folder = TempDir::new().unwrap();
    let preset = folder.path().join("mine.toml");
    std::fs::write(&preset, "[data]\ntask = \"kv\"\npairs = = 4\n").unwrap();
    let before = files(folder.path());
    let output = gradmem(&folder, &["train", "mine.toml"]);
    refuses(&folder, &output, &["mine.toml, line 3"], &before);
    std::fs::write(&preset, "[data]\ntask = \"juggling\"\n").unwrap();
    let output = gradmem(&folder, &["train", "mine.toml"]);
    refuses(&folder, &output, &["data.task", "juggling", "kv"], &before);
    for (text, words) in [
        ("[train]\nsteps = \"many\"", "mine.toml: `train.steps`"),
        ("[train]\nlr = -1", "mine.toml: `train.lr` = -1"),
        (
            "[memory]\nwrite_step = 2",
            "mine.toml: unknown key `memory.write_step`",
        ),
        ("[memories]\nlr = 1", "mine.toml: unknown key `memories`"),
        ("method = 3", "mine.toml: `method` = 3: must be one of"),
    ] {
        std::fs::write(&preset, text).unwrap();
        let output = gradmem(&folder, &["train", "mine.toml"]);
        refuses(&folder, &output, &[words], &before);
        let output = gradmem(&folder, &["train", "mine.toml", "train.seed=2"]);
        refuses(&folder, &output, &[words], &before);
    }
    // An override's mistake is not the file's.
    std::fs::write(&preset, "[train]\nlr = 1e-3").unwrap();
    let output = gradmem(&folder, &["train", "mine.toml", "train.steps=0"]);
    let words = "gradmem: `train.steps` = 0";
    refuses(&folder, &output, &[words], &before);
}

#[test]
fn train_eval_write_read() {
    let folder = TempDir::new().unwrap();
    let printed = succeeds(train(&folder, "run", &[]));
    for word in [
        "train 2/6",
        "valid 3/6",
        "valid 6/6",
        "exact match",
        "steps/s",
        "left",
        "WRITE loss",
    ] {
        assert!(printed.contains(word), "`{word}` is not in:\n{printed}");
    }
    let (_, end) = printed.split_once("Write a context of your own").unwrap();
    // The two commands it ends with work as they stand.
    let commands: Vec<&str> = end
        .lines()
        .filter(|line| line.starts_with("  "))
        .map(str::trim)
        .collect();
    assert_eq!(commands.len(), 3, "{printed}");
    // Before them: the questions about the same context, all of them, and whether each is answered right.
    let (_, answers) = printed
        .split_once("The first held-out context, and 0 of 1")
        .unwrap();
    assert!(
        answers.contains("✗ ?!") && answers.contains("(right: "),
        "{printed}"
    );
    for command in commands {
        let output = Command::new("sh")
            .args(["-c", command])
            .current_dir(&folder)
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{command}: {}",
            text(&output.stderr)
        );
    }

    let table = succeeds(gradmem(
        &folder,
        &["eval", "run", "--write-steps", "0,2..3", "--samples", "7"],
    ));
    // A title, two lines of names, and a line for each K.
    assert_eq!(table.lines().count(), 6, "{table}");
    let json = succeeds(gradmem(&folder, &["eval", "run", "--json"]));
    let line: serde_json::Value = serde_json::from_str(&json).unwrap();
    let logged = std::fs::read_to_string(folder.path().join("run/metrics.jsonl")).unwrap();
    let best = logged
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
        .filter(|line| line["split"] == "valid")
        .map(|line| line["exact_match"].as_f64().unwrap())
        .fold(0.0, f64::max);
    assert_eq!(
        line["exact_match"], best,
        "eval differs from the training's own evaluation"
    );

    // Done is done.
    let again = succeeds(train(&folder, "run", &[]));
    assert!(again.contains("nothing left to do"), "{again}");
    // Other weights to begin with.
    let from = succeeds(train(&folder, "next", &["--from", "run", "train.seed=9"]));
    assert!(from.contains("valid 6/6"));
}

/// Sizes of the smallest models, under each type's own names.
const SMALL: [(&str, &str); 3] = [
    (
        "gpt2",
        "n_embd = 8\nn_layer = 1\nn_head = 1\nn_positions = 64",
    ),
    (
        "gpt_neox",
        "hidden_size = 8\nintermediate_size = 16\nnum_hidden_layers = 1\nnum_attention_heads = 1",
    ),
    (
        "mamba",
        "hidden_size = 8\nnum_hidden_layers = 1\nstate_size = 4",
    ),
];

#[test]
fn every_method_trains_on_every_model_by_the_same_command() {
    let folder = TempDir::new().unwrap();
    std::fs::write(folder.path().join("context.txt"), "!a:1!!b:2!|").unwrap();
    for (model_type, sizes) in SMALL {
        let implementation = match model_type {
            "gpt_neox" => "thinking",
            _ => "old",
        };
        let preset = format!(
            "[data]\ntask = \"kv\"\npairs = 2\nqueries_per_context = 1\nvalid_samples = 10\n\
             [model]\nmodel_type = \"{model_type}\"\nvocab_size = 70\n{sizes}\n\
             [memory]\nmemory_tokens = 2\nmem_proj = \"per_sample\"\nctrl_tokens = 1\n\
             write_lora_rank = 2\n\
             [rmt]\nmemory_tokens = 2\nwrite_steps = 2\nreconstruction_loss_weight = 0.5\n\
             [armt]\nimplementation = \"{implementation}\"\nmemory_tokens = 2\nd_mem = 4\n\
             [train]\nsteps = 4\nbatch_size = 4\neval_every = 2\nlog_every = 2\n"
        );
        let file = format!("{model_type}.toml");
        std::fs::write(folder.path().join(&file), preset).unwrap();
        for method in ["gradmem", "rmt", "armt", "in-context"] {
            let method_key = format!("method={method}");
            let printed = succeeds(gradmem(&folder, &["train", &file, &method_key]));
            let run = match method {
                "gradmem" => format!("runs/{model_type}"),
                _ => format!("runs/{model_type}-{method}"),
            };
            assert!(
                printed.contains(&run) && printed.contains(model_type),
                "{printed}"
            );
            let line = succeeds(gradmem(&folder, &["eval", &run, "--json"]));
            let line: serde_json::Value = serde_json::from_str(&line).unwrap();
            assert_eq!(line["method"], method);
            assert!(line["read_loss"].is_f64());
            assert_eq!(line["write_loss_after"].is_f64(), method == "gradmem");

            let write = [
                "write",
                "--model",
                &run,
                "context.txt",
                "-o",
                "m.safetensors",
            ];
            let written = gradmem(&folder, &write);
            if method == "in-context" {
                assert_eq!(written.status.code(), Some(2));
                assert!(text(&written.stderr).contains("was not trained to write"));
                let swept = gradmem(&folder, &["eval", &run, "--write-steps", "1"]);
                assert_eq!(swept.status.code(), Some(2));
            } else {
                succeeds(&written);
                let read = [
                    "read",
                    "--model",
                    &run,
                    "m.safetensors",
                    "?!a:",
                    "--max-tokens",
                    "3",
                ];
                let greedy = succeeds(gradmem(&folder, &read));
                assert_eq!(greedy, succeeds(gradmem(&folder, &read)));
                let sampled = [&read[..], &["--temperature", "2", "--top-k", "9"]].concat();
                succeeds(gradmem(&folder, &sampled));
                let inspected = succeeds(gradmem(&folder, &["inspect", "m.safetensors"]));
                let by = format!("written by {method}");
                assert!(inspected.contains(&by), "{inspected}");
                let steps = if method == "armt" { "1" } else { "1..3" };
                if method == "armt" {
                    let swept = gradmem(&folder, &["eval", &run, "--write-steps", "2"]);
                    assert_eq!(swept.status.code(), Some(2));
                    assert!(text(&swept.stderr).contains("one pass over each segment"));
                }
                let swept = succeeds(gradmem(&folder, &["eval", &run, "--write-steps", steps]));
                // A title, two lines of names and the values, and a table of the values' two characters.
                let tables: Vec<&str> = swept.split("\n\n").collect();
                let lines: Vec<_> = tables.iter().map(|table| table.lines().count()).collect();
                let expected = if method == "armt" { [4, 3] } else { [6, 5] };
                assert_eq!(lines, expected, "{swept}");
                assert!(tables[1].contains("token 2"), "{swept}");
            }

            // The run as a checkpoint of the reference, used like the run.
            let checkpoint = format!("{run}-checkpoint");
            succeeds(gradmem(&folder, &["export", &run, "-o", &checkpoint]));
            let write = [
                "write",
                "--model",
                &checkpoint,
                "context.txt",
                "-o",
                "c.safetensors",
            ];
            let written = gradmem(&folder, &write);
            assert_eq!(written.status.success(), method != "in-context");
            if method != "in-context" {
                let vectors = |name: &str| {
                    let file = weights::Tensors::open(folder.path().join(name)).unwrap();
                    let name = if method == "armt" {
                        "W_mem.0"
                    } else {
                        "memory"
                    };
                    file.get(name).unwrap()
                };
                assert_eq!(vectors("m.safetensors"), vectors("c.safetensors"));
                // The same answers, but for the marks around them.
                let answer = |model: &str, memory: &str| {
                    let read = [
                        "read",
                        "--model",
                        model,
                        memory,
                        "?!a:",
                        "--max-tokens",
                        "9",
                    ];
                    succeeds(gradmem(&folder, &read)).replace('!', "")
                };
                let (by_run, by_checkpoint) = (
                    answer(&run, "m.safetensors"),
                    answer(&checkpoint, "c.safetensors"),
                );
                assert_eq!(by_run, by_checkpoint);
            }
            let prompt = [
                "generate",
                "--model",
                &checkpoint,
                "?!a:",
                "--max-tokens",
                "5",
            ];
            let generated = succeeds(gradmem(&folder, &prompt));
            assert!(generated.starts_with("?!a:"), "{generated}");
            let prompt = ["generate", "--model", &run, "?!a:", "--max-tokens", "5"];
            assert_eq!(generated, succeeds(gradmem(&folder, &prompt)));
            let empty = gradmem(&folder, &["generate", "--model", &checkpoint, ""]);
            assert_eq!(empty.status.code(), Some(2));

            // And begun with, by its own method and by another.
            let other = match method {
                "rmt" => "method=gradmem",
                _ => "method=rmt",
            };
            for key in [method_key.as_str(), other] {
                for from in [&checkpoint, &run] {
                    let next = ["train", &file, key, "--from", from, "--run", "next"];
                    succeeds(gradmem(&folder, &next));
                    std::fs::remove_dir_all(folder.path().join("next")).unwrap();
                }
            }
        }
        let checkpoint = format!("runs/{model_type}-checkpoint");
        let size = match model_type {
            "gpt2" => "model.n_embd=24",
            _ => "model.hidden_size=24",
        };
        let from = ["train", "kv-quick", "--from", &checkpoint, size];
        let words = [size.split_once('=').unwrap().0, "24", "leave it out"];
        program::refuses(gradmem(&folder, &from), &words);
        assert!(!folder.path().join("runs/kv-quick").exists());
    }
}

#[test]
fn a_memory_begins_on_the_model_it_is_put_on() {
    let folder = TempDir::new().unwrap();
    succeeds(train(&folder, "plain", &["method=in-context"]));
    let more = [
        "--from",
        "plain",
        "train.steps=1",
        "train.lr=1e-12",
        "train.seed=9",
    ];
    succeeds(train(&folder, "run", &more));
    let tensors = |file: &str, name: &str| {
        let path = folder.path().join(file);
        weights::Tensors::open(path).unwrap().get(name).unwrap()
    };
    // The WRITE head is a copy of the head that was loaded, not of the random one before it.
    let loaded = tensors("plain/best.safetensors", "model.model.embed_tokens.weight");
    for name in ["model.model.embed_tokens.weight", "write_head.weight"] {
        let found = tensors("run/last.safetensors", name);
        for (a, b) in found.iter::<f64>().zip(loaded.iter::<f64>()) {
            assert!((a - b).abs() < 1e-6, "{name}: {a} {b}");
        }
    }
    // Other settings of the same method are told apart by what they add.
    let more = ["--from", "run", "memory.ctrl_tokens=1"];
    let output = train(&folder, "next", &more);
    assert_eq!(output.status.code(), Some(2));
    let error = text(&output.stderr);
    assert!(
        error.contains("write_st") && error.contains("missing"),
        "{error}"
    );
    // Another number of steps or step size is no other method.
    let more = [
        "--from",
        "run",
        "memory.write_steps=1",
        "memory.write_lr=0.1",
    ];
    succeeds(train(&folder, "next", &more));
}

#[test]
fn a_model_that_is_not_trained_stays_in_its_folder() {
    let folder = TempDir::new().unwrap();
    let at = |name: &str| folder.path().join(name);
    succeeds(train(&folder, "plain", &["method=in-context"]));
    succeeds(gradmem(&folder, &["export", "plain", "-o", "model"]));
    // Nothing of the model is repeated: the folder has it.
    let begin = |run: &str, more: &[&str]| {
        let fixed = "--from model data.pairs=2 data.queries_per_context=1 data.valid_samples=20 train.curriculum=[] \
            train.eval_every=3 train.log_every=3 train.ema_decay=0.9 train.batch_size=4 memory.freeze_backbone=true memory.write_head=false";
        let args = ["train", "kv-quick", "--run", run].into_iter();
        let args: Vec<_> = args
            .chain(fixed.split_whitespace())
            .chain(more.iter().copied())
            .collect();
        gradmem(&folder, &args)
    };
    succeeds(begin("run", &["train.steps=6"]));
    for file in ["last", "best", "average-6"] {
        let tensors = weights::Tensors::open(at("run").join(format!("{file}.safetensors")));
        let tensors = tensors.unwrap();
        assert_eq!(tensors.names().collect::<Vec<_>>(), ["mem"], "{file}");
    }
    let config = std::fs::read_to_string(at("run/config.toml")).unwrap();
    let base = std::fs::canonicalize(at("model")).unwrap();
    let line = format!("from = {:?}", base.display().to_string());
    assert!(
        config.contains(&line) && config.contains("fingerprint = "),
        "{config}"
    );

    // Stopped and gone on, it is the same run.
    succeeds(begin("halves", &["train.steps=3"]));
    succeeds(begin("halves", &["train.steps=6"]));
    for file in ["best.safetensors", "metrics.jsonl"] {
        let of = |run: &str| std::fs::read(at(run).join(file)).unwrap();
        assert!(of("run") == of("halves"), "{file}");
    }

    // Used, it finds the model again.
    std::fs::write(at("context.txt"), "!a:1!!b:2!|").unwrap();
    let write = [
        "write",
        "--model",
        "run",
        "context.txt",
        "-o",
        "memory.safetensors",
    ];
    succeeds(gradmem(&folder, &write));
    let read = ["read", "--model", "run", "memory.safetensors", "?!a:"];
    succeeds(gradmem(&folder, &read));
    succeeds(gradmem(&folder, &["eval", "run"]));
    // And begins another run.
    let mut next = program::tiny("next");
    next.extend(["--from", "run", "memory.write_head=false", "train.steps=1"]);
    succeeds(gradmem(&folder, &next));
    let whole = weights::Tensors::open(at("next/last.safetensors")).unwrap();
    assert!(
        whole
            .names()
            .any(|name| name == "model.model.embed_tokens.weight")
    );

    // Which goes on from where it began alone.
    let mut other = program::tiny("next");
    let more = "--from plain memory.write_head=false train.steps=2";
    other.extend(more.split(' '));
    program::refuses(
        gradmem(&folder, &other),
        &["next: began from", "not from", "plain"],
    );

    // Or says which is missing, or another one.
    std::fs::rename(at("model"), at("moved")).unwrap();
    let base = base.display().to_string();
    program::refuses(gradmem(&folder, &read), &["run", &base, "missing", "from"]);
    program::refuses(begin("run", &["train.steps=9"]), &["run", "missing"]);
    program::refuses(begin("new", &["train.steps=9"]), &["model", "not a folder"]);
    let mut itself = program::tiny("next");
    itself.extend(["--from", "next", "memory.write_head=false"]);
    program::refuses(gradmem(&folder, &itself), &["next", "begin from itself"]);
    // A run that has its weights goes on without the folder that they once came from.
    std::fs::rename(at("run"), at("gone")).unwrap();
    let more = [&next[..next.len() - 1], &["train.steps=2"]].concat();
    succeeds(gradmem(&folder, &more));
    std::fs::rename(at("gone"), at("run")).unwrap();
    succeeds(train(
        &folder,
        "other",
        &["method=in-context", "train.seed=8"],
    ));
    succeeds(gradmem(&folder, &["export", "other", "-o", "model"]));
    program::refuses(
        gradmem(&folder, &read),
        &[&base, "another model", "fingerprint"],
    );
    let again = begin("run", &["train.steps=9"]);
    program::refuses(again, &[&base, "another model", "fingerprint"]);
}

/// A run's settings are a text, and so are the commands that are shown.
#[cfg(unix)]
#[test]
fn names_that_are_no_text_are_refused_or_left_out() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt as _;
    use std::os::unix::process::CommandExt as _;
    let folder = TempDir::new().unwrap();
    let name = OsStr::from_bytes(b"caf\xe9");
    let odd = folder.path().join(name);
    std::fs::create_dir(&odd).unwrap();
    let mut called = command(&odd, &tiny("plain"));
    let printed = succeeds(called.arg0(name).output().unwrap());
    assert!(!printed.contains("printf"), "{printed}");
    let frozen = "--from plain memory.freeze_backbone=true memory.write_head=false";
    let mut args = tiny("run");
    args.extend(frozen.split(' '));
    program::refuses(gradmem(&odd, &args), &["plain", "is not UTF-8"]);
    assert!(!odd.join("run").exists());
    let mut args = tiny("run");
    args.drain(2..4);
    let mut train = command(&folder, &args);
    train.arg("--run").arg(odd.join("run"));
    let printed = succeeds(train.output().unwrap());
    assert!(!printed.contains("printf"), "{printed}");
}

#[test]
fn a_frozen_backbone_stays_as_it_is() {
    let folder = TempDir::new().unwrap();
    let more = [
        "memory.freeze_backbone=true",
        "memory.mem_proj=proj",
        "memory.write_lora_rank=2",
    ];
    succeeds(train(
        &folder,
        "run",
        &[&more[..], &["train.steps=3"]].concat(),
    ));
    let weights = |run: &str| {
        weights::Tensors::open(folder.path().join(run).join("last.safetensors")).unwrap()
    };
    let after_three = weights("run");
    let after_three: HashMap<String, TensorData> = after_three
        .names()
        .map(|name| (name.to_string(), after_three.get(name).unwrap()))
        .collect();
    // Resumed, too.
    succeeds(train(&folder, "run", &more));
    let after_six = weights("run");
    let (mut frozen, mut trained) = (0, 0);
    for name in after_six.names() {
        let same = after_six.get(name).unwrap() == after_three[name];
        if name.starts_with("model.") {
            assert!(same, "{name} moved");
            frozen += 1;
        } else if !same {
            trained += 1;
        }
    }
    // M0, projection weight and bias, WRITE head, and both matrices of seven adapters.
    assert_eq!((frozen, trained), (11, 18));
    let nothing = [
        "memory.freeze_backbone=true",
        "memory.grad_mode=none",
        "memory.inner_loss_weight=0.5",
        "memory.write_head=false",
    ];
    let refused = train(&folder, "nothing", &nothing);
    let error = program::text(&refused.stderr);
    assert_eq!(refused.status.code(), Some(2), "{error}");
    assert!(error.contains("nothing to be trained"), "{error}");
}

#[test]
fn files_that_do_not_fit_are_refused() {
    let folder = TempDir::new().unwrap();
    succeeds(train(&folder, "run", &[]));
    succeeds(train(&folder, "other", &["train.seed=7"]));
    let path = |name: &str| folder.path().join(name);
    std::fs::write(path("good.txt"), "!a:1!!b:2!|\n").unwrap();
    std::fs::write(path("bad.txt"), "!a:1! !b:2!|").unwrap();
    std::fs::write(path("empty.txt"), "\n").unwrap();
    std::fs::write(path("long.txt"), "a".repeat(127)).unwrap();
    std::fs::write(path("binary.txt"), [0xff, 0xfe]).unwrap();
    std::fs::create_dir(path("crowded")).unwrap();
    std::fs::write(path("crowded/thing"), "").unwrap();
    let write = ["write", "--model", "run", "-o", "m.safetensors"];
    succeeds(gradmem(&folder, &[&write[..], &["good.txt"]].concat()));
    let memory = std::fs::read(path("m.safetensors")).unwrap();
    std::fs::write(path("cut.safetensors"), &memory[..memory.len() - 3]).unwrap();
    let before = files(folder.path());

    let read = ["read", "--model", "run"];
    let cases: &[(&[&str], &[&str])] = &[
        (
            &["write", "--model", "run", "-o", "n", "bad.txt"],
            &["bad.txt", "' '", "position 5"],
        ),
        (
            &["write", "--model", "run", "-o", "n", "empty.txt"],
            &["empty.txt: is empty"],
        ),
        (
            &["write", "--model", "run", "-o", "n", "long.txt"],
            &["long.txt: has 127 tokens", "126 at most", "split it"],
        ),
        (
            &["write", "--model", "run", "-o", "n", "binary.txt"],
            &["not UTF-8"],
        ),
        (
            &["read", "--model", "other", "m.safetensors", "?!a:"],
            &["written by model"],
        ),
        (
            &["read", "--model", "run", "run/best.safetensors", "?!a:"],
            &["not a memory file"],
        ),
        (
            &["read", "--model", "run", "good.txt", "?!a:"],
            &["not a whole .safetensors file"],
        ),
    ];
    for (args, words) in cases {
        refuses(&folder, &gradmem(&folder, args), words, &before);
    }
    let cut = gradmem(&folder, &[&read[..], &["cut.safetensors", "?!a:"]].concat());
    refuses(&folder, &cut, &["cut.safetensors", "not a whole"], &before);
    let question = gradmem(&folder, &[&read[..], &["m.safetensors", "où"]].concat());
    refuses(&folder, &question, &["'ù'"], &before);

    let output = train(&folder, "run", &["memory.write_lr=0.25"]);
    refuses(
        &folder,
        &output,
        &["is a run with memory.write_lr = 0.5, not 0.25"],
        &before,
    );
    let output = train(&folder, "crowded", &[]);
    refuses(
        &folder,
        &output,
        &["neither empty nor a run folder"],
        &before,
    );

    // Damaged checkpoints: cut short, of another model, and no checkpoint at all.
    let last = path("run/last.safetensors");
    let whole = std::fs::read(&last).unwrap();
    std::fs::write(&last, &whole[..whole.len() / 2]).unwrap();
    let more = ["train.steps=9"];
    let output = train(&folder, "run", &more);
    refuses(
        &folder,
        &output,
        &["last.safetensors", "not a whole"],
        &before,
    );
    std::fs::copy(path("m.safetensors"), &last).unwrap();
    let output = train(&folder, "run", &more);
    refuses(
        &folder,
        &output,
        &["not a checkpoint of this program"],
        &before,
    );
    std::fs::write(&last, &whole).unwrap();
    std::fs::write(path("run/optimizer-6.bin"), "nonsense").unwrap();
    let output = train(&folder, "run", &more);
    refuses(
        &folder,
        &output,
        &["optimizer-6.bin", "not the file this run wrote"],
        &before,
    );
}

#[test]
fn a_write_that_leaves_the_numbers_stops_the_run_and_says_where() {
    let folder = TempDir::new().unwrap();
    let output = train(&folder, "run", &["model.initializer_range=1e30"]);
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    for word in ["step 1", "batch 0", "sample 0", "write_lr"] {
        assert!(error.contains(word), "`{word}` is not in: {error}");
    }
}

#[test]
fn parity_reads_any_folder_of_the_format() {
    let folder = TempDir::new().unwrap();
    let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let case = cases.join("llama_second");
    let case = case.to_str().unwrap();
    let table = succeeds(gradmem(&folder, &["parity", case]));
    assert!(
        table.contains("grad.mem") && table.contains("within the tolerance"),
        "{table}"
    );
    let output = gradmem(&folder, &["parity", case, "--tolerance", "1e-12"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stdout).contains("beyond the tolerance"));

    // A folder whose configuration says otherwise than its numbers: first order is not second order.
    let changed = folder.path().join("changed");
    std::fs::create_dir(&changed).unwrap();
    for name in ["model", "batch", "expected"] {
        let name = format!("{name}.safetensors");
        std::fs::copy(cases.join("llama_second").join(&name), changed.join(&name)).unwrap();
    }
    let config = std::fs::read_to_string(cases.join("llama_second/config.json")).unwrap();
    let write = |config: String| std::fs::write(changed.join("config.json"), config).unwrap();
    write(config.replace("\"grad_mode\": \"second\"", "\"grad_mode\": \"first\""));
    assert_eq!(
        gradmem(&folder, &["parity", "changed"]).status.code(),
        Some(1)
    );
    let before = files(folder.path());
    write(config.replace("\"mem_proj_mode\": \"none\"", "\"mem_proj_mode\": \"sum\""));
    let output = gradmem(&folder, &["parity", "changed"]);
    refuses(
        &folder,
        &output,
        &["config.json", "unknown variant `sum`", "per_sample"],
        &before,
    );
    write(config.replace("\"llama\"", "\"opt\""));
    let output = gradmem(&folder, &["parity", "changed"]);
    refuses(
        &folder,
        &output,
        &["model_type", "opt", "llama", "mamba"],
        &before,
    );
    // Batches that do not fit the model.
    write(config.clone());
    let batch = |name: &str, shape: [usize; 2], id: i64| {
        let data = TensorData::new(vec![id; shape[0] * shape[1]], shape);
        (name.to_string(), data)
    };
    for (what, context, labels) in [
        ("label 24", 4, batch("labels", [1, 2], 24)),
        ("token 24", 24, batch("labels", [1, 2], 4)),
        ("labels [1, 3]", 4, batch("labels", [1, 3], 4)),
    ] {
        let tensors = [
            batch("context_input_ids", [1, 3], context),
            batch("query_input_ids", [1, 2], 4),
            labels,
        ];
        let bytes = weights::encode(&tensors, HashMap::new()).unwrap();
        std::fs::write(changed.join("batch.safetensors"), bytes).unwrap();
        let output = gradmem(&folder, &["parity", "changed"]);
        refuses(&folder, &output, &[what], &before);
    }
    // A plain model's, too short to predict anything, and longer than it has positions.
    let plain = folder.path().join("plain");
    std::fs::create_dir(&plain).unwrap();
    for name in ["config.json", "model.safetensors", "expected.safetensors"] {
        std::fs::copy(cases.join("lm_gpt2").join(name), plain.join(name)).unwrap();
    }
    for (seq, word) in [(1, "two tokens"), (300, "256")] {
        let tensors = [
            batch("input_ids", [1, seq], 4),
            batch("labels", [1, seq], 4),
        ];
        let bytes = weights::encode(&tensors, HashMap::new()).unwrap();
        std::fs::write(plain.join("batch.safetensors"), bytes).unwrap();
        let output = gradmem(&folder, &["parity", "plain"]);
        assert_eq!(output.status.code(), Some(2));
        assert!(
            text(&output.stderr).contains(word),
            "{}",
            text(&output.stderr)
        );
    }
    std::fs::remove_dir_all(&plain).unwrap();
    write("{".into());
    let output = gradmem(&folder, &["parity", "changed"]);
    refuses(
        &folder,
        &output,
        &["config.json", "not a JSON object"],
        &before,
    );
}

#[test]
fn help_teaches() {
    let folder = TempDir::new().unwrap();
    let help = succeeds(gradmem(&folder, &["--help"]));
    for word in [
        "train", "eval", "write", "read", "generate", "export", "parity", "preset", "gradient",
    ] {
        assert!(help.contains(word), "`{word}` is not in:\n{help}");
    }
    let help = succeeds(gradmem(&folder, &["train", "--help"]));
    assert!(
        help.contains("KEY=VALUE") && help.contains("Examples"),
        "{help}"
    );
    let preset = succeeds(gradmem(&folder, &["preset", "kv-quick"]));
    assert!(preset.contains("[memory]"));
}

#[test]
fn shells_complete_the_command() {
    let folder = TempDir::new().unwrap();
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let script = succeeds(gradmem(&folder, &["completions", shell]));
        for word in ["gradmem", "inspect", "write-steps"] {
            assert!(script.contains(word), "{shell}, {word}: {script}");
        }
    }
    let script = folder.path().join("gradmem.bash");
    std::fs::write(
        &script,
        succeeds(gradmem(&folder, &["completions", "bash"])),
    )
    .unwrap();
    // What bash itself offers, where there is one.
    let ask = "source gradmem.bash && COMP_WORDS=(gradmem ins) COMP_CWORD=1 && _gradmem gradmem ins gradmem && echo ${COMPREPLY[@]}";
    let asked = Command::new("bash")
        .args(["-c", ask])
        .current_dir(&folder)
        .output();
    if let Ok(output) = asked {
        assert_eq!(text(&output.stdout).trim(), "inspect", "{output:?}");
    }
}

/// A run keeps the way to the outer gradient that it began with; another way is another rounding.
#[test]
fn the_way_to_the_outer_gradient_changes_rounding_alone() {
    let folder = TempDir::new().unwrap();
    let begun = train(&folder, "auto", &["memory.write_steps=3"]);
    succeeds(&begun);
    assert!(text(&begun.stderr).contains("outer gradient: Unrolled"));
    let replay = ["--meta-gradient", "replay", "--micro-batch", "3"];
    let other = [&["memory.write_steps=3"][..], &replay].concat();
    succeeds(train(&folder, "replay", &other));
    let losses = |run: &str| -> Vec<f64> {
        let log = std::fs::read_to_string(folder.path().join(run).join("metrics.jsonl")).unwrap();
        let lines = log.lines();
        let lines = lines.map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        lines
            .map(|line| line["read_loss"].as_f64().unwrap())
            .collect()
    };
    let (one, other) = (losses("auto"), losses("replay"));
    assert_eq!(one.len(), other.len());
    for (a, b) in one.iter().zip(&other) {
        assert!((a - b).abs() < 1e-4, "{a} {b}");
    }
    let config =
        |run: &str| std::fs::read_to_string(folder.path().join(run).join("config.toml")).unwrap();
    assert!(config("auto").contains("meta_gradient = \"unrolled\""));
    // Going on without a wish keeps what the run has.
    let more = ["memory.write_steps=3", "train.steps=8"];
    let micro = ["train.micro_batch=3"];
    succeeds(train(&folder, "replay", &[&more[..], &micro].concat()));
    assert!(config("replay").contains("meta_gradient = \"replay\""));
}

#[test]
fn the_log_says_where_a_step_goes() {
    let folder = TempDir::new().unwrap();
    let output = command(&folder, &tiny("run"))
        .env("RUST_LOG", "gradmem=debug")
        .output()
        .unwrap();
    let log = text(&output.stderr);
    for phase in [
        "step 6: WRITE forward",
        "WRITE backward",
        "READ",
        "outer backward",
        "optimizer",
    ] {
        assert!(log.contains(phase), "{phase}: {log}");
    }
}

/// The names are those of `benches/torch_baseline.py`, so that one script reads both.
#[test]
fn bench_prints_a_line_of_json() {
    let folder = TempDir::new().unwrap();
    let small =
        "bench --json --batch 2 --context 5 --query 4 --layers 1 --heads 1 --dim 8 --iters 2";
    let args: Vec<&str> = small.split(' ').collect();
    let step: serde_json::Value = serde_json::from_str(&succeeds(gradmem(&folder, &args))).unwrap();
    assert!(step["seconds_per_step"].as_f64().unwrap() > 0.0);
    assert!(step["loss"].as_f64().unwrap() > 0.0);
    assert!(step["peak_device_bytes"].is_null());
    assert_eq!(step["meta_gradient"], "unrolled");
    for (more, way) in [
        ("--meta-gradient replay --micro-batch 1", "replay".into()),
        ("--queries 3 --test-time", serde_json::Value::Null),
    ] {
        let args: Vec<&str> = args.iter().copied().chain(more.split(' ')).collect();
        let other: serde_json::Value =
            serde_json::from_str(&succeeds(gradmem(&folder, &args))).unwrap();
        assert_eq!(other["meta_gradient"], way);
        assert!(other["loss"].as_f64().unwrap() > 0.0);
    }
    for more in ["micro-batch=1", "meta-gradient=auto", "grad-mode=none"] {
        let option = format!("--{more}");
        let more = [option.as_str(), "--test-time"];
        let args: Vec<&str> = args.iter().copied().chain(more).collect();
        let output = gradmem(&folder, &args);
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{error}");
        assert!(error.contains("cannot be used with"), "{error}");
    }
    let small = "bench attention --json --batch 1 --heads 2 --seq 9 --dim 4 --iters 1 --attention reference";
    let args: Vec<&str> = small.split(' ').collect();
    let times: serde_json::Value =
        serde_json::from_str(&succeeds(gradmem(&folder, &args))).unwrap();
    for pass in ["forward", "backward", "double_backward"] {
        assert!(times[format!("{pass}_seconds")].as_f64().unwrap() > 0.0);
    }
    assert!(files(folder.path()).is_empty());
}

/// A negative number is a value, refused with the option's own reason.
#[test]
fn negative_numbers_are_values_of_options() {
    let folder = TempDir::new().unwrap();
    let cases: &[(&[&str], &str)] = &[
        (
            &["train", "kv-quick", "--until", "-1"],
            "positive number of hours",
        ),
        (
            &["train", "kv-quick", "--seeds", "-1"],
            "--seeds `-1` is not a list",
        ),
        (
            &["train", "kv-quick", "--micro-batch", "-1"],
            "invalid value '-1' for '--micro-batch",
        ),
        (
            &["eval", "run", "--write-steps", "-1"],
            "--write-steps `-1` is not a list",
        ),
        (
            &["eval", "run", "--adaptive", "-1"],
            "must be a number of steps",
        ),
        (
            &["eval", "run", "--samples", "-1"],
            "invalid value '-1' for '--samples",
        ),
        (
            &["tune", "run", "--write-steps", "-1"],
            "invalid value '-1' for '--write-steps",
        ),
        (
            &["tune", "run", "--write-lr", "-1"],
            "--write-lr -1: must be a positive number",
        ),
        (
            &[
                "write",
                "a.txt",
                "-o",
                "m",
                "--model",
                "run",
                "--optimizer",
                "adam",
                "--until",
                "-1",
            ],
            "`--until` = -1: must be above 0",
        ),
        (
            &["read", "m", "a", "--model", "run", "--max-tokens", "-1"],
            "invalid value '-1' for '--max-tokens",
        ),
        (&["bench", "read", "--queries", "-1"], "invalid value '-1'"),
        (
            &["parity", "golden", "--tolerance", "-1"],
            "--tolerance must be 0",
        ),
    ];
    for (args, words) in cases {
        let output = gradmem(&folder, args);
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {error}");
        assert!(error.contains(words), "{args:?}: {error}");
        assert!(!error.contains("tip:"), "{args:?}: {error}");
    }
    assert!(files(folder.path()).is_empty());
}

/// What the system does not let read is said to be that. Rights do not hold for a superuser; a link to itself nobody can read.
#[cfg(unix)]
#[test]
fn folders_that_cannot_be_read_are_named() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    hand_written(&folder, "runs/a", "", "");
    std::os::unix::fs::symlink("loop", at.join("runs/loop")).unwrap();
    let report = gradmem(at, &["report", "runs"]);
    let told = text(&report.stderr);
    succeeds(&report);
    assert!(
        told.contains("runs/loop") && told.contains("cannot read") && told.contains("left out"),
        "{told}"
    );
    let long = "a".repeat(300);
    for args in [
        &["report", "runs/loop"][..],
        &["tune", "runs/loop"],
        &["eval", "runs/loop"],
        &["generate", "x", "--model", "runs/loop"],
        &["tune", &long],
    ] {
        let output = gradmem(at, args);
        let error = text(&output.stderr);
        assert!(!output.status.success());
        assert!(
            error.contains("cannot read") && !error.contains("not a run folder"),
            "{args:?}: {error}"
        );
    }
}

/// A run folder as training leaves it, without the weights.
fn hand_written(folder: &TempDir, run: &str, settings: &str, log: &str) {
    let run = folder.path().join(run);
    std::fs::create_dir_all(&run).unwrap();
    let preset = succeeds(gradmem(folder, &["preset", "kv-quick"]));
    // Seed 1, and no curriculum.
    let other = preset.replace("seed = 0", "seed = 1");
    let (other, _) = other.split_once("curriculum = [").unwrap();
    std::fs::write(run.join("config.toml"), format!("{settings}\n{other}")).unwrap();
    std::fs::write(run.join("metrics.jsonl"), log).unwrap();
}

#[test]
fn a_report_shows_runs_that_are_done_and_runs_that_are_not() {
    let folder = TempDir::new().unwrap();
    let log = r#"{"step":50,"split":"train","lr":0.001,"exact_match":0.1}
{"step":125,"split":"valid","exact_match":0.5,"token_accuracy":0.625,"read_loss":1.25}
{"step":250,"split":"valid","exact_match":0.9375,"token_accuracy":0.9375,"read_loss":0.25}
"#;
    hand_written(&folder, "runs/a", "", log);
    let unfinished = &log[..log.len() - 10];
    hand_written(&folder, "runs/b", "method = \"rmt\"", unfinished);
    let at = |path: &str| folder.path().join(path);
    let eval = r#"{"samples":20,"rows":[{"write_steps":0,"exact_match":0.0},{"write_steps":2,"exact_match":0.9}],
        "adaptive":{"rule":{"tolerance":0.001,"patience":1,"cap":30},"chosen_on":[9,0.9],"mean_write_steps":3.4,"exact_match":0.98},
        "examples":[{"context":"!a:<b>!|","query":"?!a:","target":"b!|","answer":"c!|","right":false}]}"#;
    std::fs::write(at("runs/a/eval.json"), eval).unwrap();
    std::fs::write(at("runs/notes.txt"), "no run").unwrap();

    let report = ["report", "runs", "-o", "page.html", "--figures", "figures"];
    let printed = succeeds(gradmem(&folder, &report));
    let names: Vec<&str> = printed.lines().collect();
    assert_eq!(names[..2], ["page.html", "page.md"]);
    assert!(names.contains(&"figures/learning-curves.svg"), "{printed}");
    assert!(names.iter().all(|name| at(name).is_file()), "{printed}");

    let page = std::fs::read_to_string(at("page.html")).unwrap();
    for part in [
        "GradMem, K = 2",
        "RMT",
        "<svg",
        "93.8",
        "!a:&lt;b&gt;!|",
        "write_lr = 0.5",
    ] {
        assert!(page.contains(part), "no {part}");
    }
    for part in ["<script", "<link", "<img", "src=", "url(", "@import"] {
        assert!(!page.contains(part), "{part} in a page that loads nothing");
    }
    let table = std::fs::read_to_string(at("page.md")).unwrap();
    let row = "| GradMem, K = 2 | 1 | 93.8 | 93.8 | 93.8 | 0.250 | 250 | 512 |";
    assert!(table.contains(row), "{table}");
    assert!(
        table.contains("| RMT | 1 | 50.0 | 50.0 | 62.5 | 1.250 | 125 | 512 |"),
        "{table}"
    );
    assert!(
        table.contains("| GradMem, K = 2 | 1 of 1 | 250 | 1 |"),
        "{table}"
    );

    succeeds(gradmem(&folder, &report));
    assert_eq!(page, std::fs::read_to_string(at("page.html")).unwrap());

    // The logs, a row for each whole line.
    let rows = "run,seed,split,step,stage,lr,exact_match,read_loss,token_accuracy
a,1,train,50,,0.001,0.1,,
a,1,valid,125,,,0.5,1.25,0.625
a,1,valid,250,,,0.9375,0.25,0.9375
b,1,train,50,,0.001,0.1,,
b,1,valid,125,,,0.5,1.25,0.625
";
    let printed = succeeds(gradmem(&folder, &["report", "runs", "--csv", "-"]));
    assert_eq!(printed, rows);
    let printed = succeeds(gradmem(&folder, &["report", "runs", "--csv", "logs.csv"]));
    assert!(printed.ends_with("logs.csv\n"), "{printed}");
    assert_eq!(std::fs::read_to_string(at("logs.csv")).unwrap(), rows);
    succeeds(gradmem(&folder, &["report", "runs", "--csv", "logs.csv"]));
    std::fs::write(at("notes.txt"), "precious").unwrap();
    let before = files(folder.path());
    let over = gradmem(&folder, &["report", "runs", "--csv", "notes.txt"]);
    refuses(&folder, &over, &["notes.txt", "not replaced"], &before);
    assert_eq!(
        std::fs::read_to_string(at("notes.txt")).unwrap(),
        "precious"
    );

    // What is damaged is named, and nothing is written over.
    std::fs::write(at("runs/a/eval.json"), "{").unwrap();
    let before = files(folder.path());
    refuses(
        &folder,
        &gradmem(&folder, &report),
        &["eval.json", "gradmem eval"],
        &before,
    );
    std::fs::write(at("runs/b/metrics.jsonl"), format!("{{\"step\"\n{log}")).unwrap();
    let refused = gradmem(&folder, &["report", "runs/b"]);
    refuses(&folder, &refused, &["metrics.jsonl", "line 1"], &before);
    let refused = gradmem(&folder, &["report", "figures"]);
    refuses(&folder, &refused, &["figures", "config.toml"], &before);
    assert_eq!(page, std::fs::read_to_string(at("page.html")).unwrap());

    // A run that has only begun is no mistake.
    std::fs::write(at("runs/b/metrics.jsonl"), "").unwrap();
    succeeds(gradmem(&folder, &["report", "runs/b"]));
    let table = std::fs::read_to_string(at("report.md")).unwrap();
    assert!(table.contains("no evaluation yet"), "{table}");
}
