//! What the paper's experiments need of the command: every task, curricula, seeds, evaluations in one pass.

use std::path::Path;
use std::process::Output;

use burn::data::dataloader::DataLoaderBuilder;
use gradmem::data::ExampleBatcher;
use gradmem::train::Trained;
use gradmem::train::evaluation::EvalOptions;
use gradmem::train::learner::evaluate;
use gradmem::train::metrics::Measure;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::program::{self, SMALL, gradmem, refuses, succeeds};

/// Trains a preset, made small, with further settings.
fn train(folder: &Path, preset: &str, more: &[&str]) -> Output {
    let mut args = vec!["train", preset, "--plain"];
    let settings = "train.steps=4 train.eval_every=2 train.log_every=2 train.warmup_steps=2";
    args.extend(SMALL.split_whitespace());
    args.extend(settings.split_whitespace());
    args.extend(more);
    gradmem(folder, &args)
}

fn lines(path: impl AsRef<Path>) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

const KV: [&str; 3] = [
    "data.pairs=2",
    "data.queries_per_context=1",
    "data.valid_samples=10",
];

/// A SQuAD file of one paragraph an article.
fn squad(articles: usize) -> String {
    let article = |i: usize| {
        let context = format!("Ann lives in town {i}. The town has a river. ");
        let answer = format!("town {i}");
        let start = context.find(&answer).unwrap();
        format!(
            r#"{{"title": "T{i}", "paragraphs": [{{"context": "{context}", "qas": [
               {{"id": "q{i}", "question": "Where does Ann live?", "is_impossible": false,
                 "answers": [{{"text": "{answer}", "answer_start": {start}}}]}},
               {{"id": "n{i}", "question": "Why?", "is_impossible": true, "answers": []}}]}}]}}"#
        )
    };
    let articles: Vec<_> = (0..articles).map(article).collect();
    format!(r#"{{"version": "v2.0", "data": [{}]}}"#, articles.join(","))
}

#[test]
fn every_task_is_trained_evaluated_and_answers() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    std::fs::write(at.join("squad.json"), squad(9)).unwrap();
    let text: String = (0..300).map(|i| format!("Ann has {i} apples. ")).collect();
    std::fs::write(at.join("book.txt"), text).unwrap();
    let line = |i| {
        format!("{{\"context\": \"Ann is {i}.\", \"query\": \"Age? \", \"target\": \"{i}\"}}\n")
    };
    let triples: String = (10..40).map(line).collect();
    std::fs::write(at.join("triples.jsonl"), triples).unwrap();
    for (name, preset, more) in [
        (
            "kv",
            "kv-small",
            &[
                "data.segments=2",
                "data.pairs=4",
                "data.alphabet=512",
                "data.queries_per_context=2",
                "model.vocab_size=520",
                "train.curriculum=[]",
                "data.valid_samples=10",
            ][..],
        ),
        (
            "mix",
            "mix-small",
            &[
                "data.pairs=2",
                "data.queries_per_context=2",
                "train.curriculum=[]",
                "data.valid_samples=10",
            ],
        ),
        (
            "inverse",
            "mix-small",
            &[
                "data.order=inverse",
                "data.pairs=4",
                "data.queries_per_context=4",
                r#"train.curriculum=["pairs=2 queries_per_context=2"]"#,
                "data.valid_samples=10",
            ],
        ),
        (
            "mqar",
            "mqar-small",
            &[
                "data.noise=0.5",
                "data.valid_samples=10",
                "train.curriculum=[]",
                "model.vocab_size=128",
            ],
        ),
        (
            "multihop",
            "multihop-small",
            &[
                "data.pairs=4",
                "data.digits=2",
                "data.queries_per_context=4",
                "data.valid_samples=10",
                "train.curriculum=[]",
            ],
        ),
        (
            "babi",
            "babi-small",
            &[
                "data.train_samples=100",
                "data.valid_samples=10",
                "data.tasks=[1,4]",
            ],
        ),
        (
            "phonebook",
            "phonebook-small",
            &[
                "data.train_samples=100",
                "data.valid_samples=10",
                "train.curriculum=[]",
            ],
        ),
        (
            "squad",
            "squad-small",
            &["data.train_file=squad.json", "data.variant=cq_a"],
        ),
        (
            "text",
            "text-small",
            &["data.path=book.txt", "data.valid_samples=10"],
        ),
        (
            "lm",
            "lm-small",
            &["data.path=book.txt", "data.valid_samples=10"],
        ),
        (
            "jsonl",
            "jsonl-small",
            &["data.train_file=triples.jsonl", "data.valid_samples=5"],
        ),
    ] {
        for method in ["gradmem", "rmt", "armt", "in-context"] {
            let run = format!("{name}-{method}");
            let key = format!("method={method}");
            let metric = "train.stop_metric=read_loss";
            let more = [more, &["--run", &run, &key, metric, "rmt.memory_tokens=2"]].concat();
            let printed = succeeds(train(at, preset, &more));
            assert!(printed.contains("valid 4/4"), "{printed}");
            if method == "armt" && ["text", "lm"].contains(&name) {
                // Its memory predicts no first token, and there is no query.
                let refused = gradmem(at, &["eval", &run, "--generate"]);
                assert_eq!(refused.status.code(), Some(2));
                let error = String::from_utf8_lossy(&refused.stderr).into_owned();
                assert!(error.contains("needs at least one"), "{error}");
                succeeds(gradmem(at, &["eval", &run]));
                continue;
            }
            let out = succeeds(gradmem(at, &["eval", &run, "--generate", "--json"]));
            let row: Value = serde_json::from_str(out.lines().next().unwrap()).unwrap();
            for key in [
                "exact_match",
                "token_accuracy",
                "token_accuracy_1",
                "read_loss",
                "answer_match",
                "answer_f1",
            ] {
                assert!(row[key].is_f64(), "{run} has no {key}: {row}");
            }
            assert_eq!(row["reconstructed"].is_f64(), method == "gradmem", "{row}");
            let kept = std::fs::read_to_string(at.join(&run).join("eval.json")).unwrap();
            let kept: Value = serde_json::from_str(&kept).unwrap();
            assert_eq!(kept["rows"][0]["read_loss"], row["read_loss"]);
            assert!(!kept["examples"].as_array().unwrap().is_empty());
            // The same command goes on by the tokenizer it began with.
            let more = [&more[..], &["train.steps=6"]].concat();
            assert!(succeeds(train(at, preset, &more)).contains("valid 6/6"));
        }
    }
}

#[test]
fn evaluations_at_the_same_time_are_all_kept() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    succeeds(gradmem(at, &program::tiny("run")));
    std::thread::scope(|scope| {
        for k in ["0", "1", "2", "3", "4"] {
            scope.spawn(move || succeeds(gradmem(at, &["eval", "run", "--write-steps", k])));
        }
    });
    let kept = std::fs::read_to_string(at.join("run/eval.json")).unwrap();
    let kept: Value = serde_json::from_str(&kept).unwrap();
    let rows = kept["rows"].as_array().unwrap().iter();
    let steps: Vec<_> = rows
        .map(|row| row["write_steps"].as_u64().unwrap())
        .collect();
    assert_eq!(steps, [0, 1, 2, 3, 4]);
    let most = ["eval", "run", "--adaptive", "10001"];
    refuses(gradmem(at, &most), &["--adaptive", "10000"]);
}

#[test]
fn a_run_answers_other_data_than_its_own() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    let facts = |range: std::ops::Range<usize>| -> String {
        let line = |i| {
            format!("{{\"context\": \"Ann is {i}.\", \"query\": \"Age? \", \"target\": \"{i}\"}}\n")
        };
        range.map(line).collect()
    };
    std::fs::write(at.join("mine.jsonl"), facts(10..40)).unwrap();
    std::fs::write(at.join("my test.jsonl"), facts(38..52)).unwrap();
    let preset = String::from_utf8(gradmem(at, &["preset", "babi-small"]).stdout).unwrap();
    let rest = &preset[preset.find("[tokens]").unwrap()..];
    let data = "[data]\ntask = \"jsonl\"\ntrain_file = \"mine.jsonl\"\nvalid_samples = 5\n";
    std::fs::write(at.join("mine.toml"), format!("{data}{rest}")).unwrap();
    let more = [
        "tokens.tokenizer=characters",
        "train.curriculum=[]",
        "--run",
        "run",
    ];
    succeeds(train(at, "mine.toml", &more));
    succeeds(gradmem(at, &["eval", "run"]));
    let kept = std::fs::read(at.join("run/eval.json")).unwrap();
    let other = ["eval", "run", "data.valid_file=my test.jsonl"];
    let out = gradmem(at, &other);
    let warned = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(warned.contains("2 of 14 validation samples"), "{warned}");
    let printed = succeeds(out);
    assert!(printed.contains("14 held-out contexts of run with data.valid_file=my test.jsonl"));
    assert_eq!(std::fs::read(at.join("run/eval.json")).unwrap(), kept);

    for setting in ["data.valid_samples=-1", "data.valid_samples=0"] {
        refuses(
            gradmem(at, &["eval", "run", setting]),
            &["data.valid_samples"],
        );
    }
    // What it was trained on is no test; of what it held out a part is one.
    refuses(
        gradmem(at, &["eval", "run", "data.valid_samples=6"]),
        &["`data.valid_samples` = 6", "held out 5", "data.valid_file"],
    );
    let fewer = succeeds(gradmem(at, &["eval", "run", "data.valid_samples=4"]));
    assert!(fewer.contains("4 held-out contexts of run"), "{fewer}");
    let printed = succeeds(gradmem(
        at,
        &[&other[..], &["--answers", "a.jsonl"]].concat(),
    ));
    assert_eq!(
        printed.matches('✗').count() + printed.matches('✓').count(),
        6
    );
    let answers = lines(at.join("a.jsonl"));
    let targets: Vec<_> = answers
        .iter()
        .map(|a| a["target"].as_str().unwrap())
        .collect();
    let expected: Vec<_> = (38..52).map(|i: usize| i.to_string()).collect();
    assert_eq!(targets, expected);
    for answer in &answers {
        assert_eq!(answer["right"], answer["target"] == answer["answer"]);
        assert_eq!(
            answer["context"],
            format!("Ann is {}.", answer["target"].as_str().unwrap())
        );
    }
    for (file, words) in [
        ("a.jsonl", ["a.jsonl", "there already"]),
        (
            "none/a.jsonl",
            ["none/a.jsonl", "its folder does not exist"],
        ),
    ] {
        let refused = gradmem(at, &[&other[..], &["--answers", file]].concat());
        refuses(refused, &words);
    }
    for (setting, words) in [
        (
            "memory.write_steps=3",
            ["memory.write_steps=3", "data.KEY=VALUE"],
        ),
        ("data.validfile=x", ["`data.validfile`", "valid_file"]),
        ("data.task=babi", ["data.task", "the same task, jsonl"]),
        ("data.valid_file=none.jsonl", ["none.jsonl", "no such file"]),
    ] {
        refuses(gradmem(at, &["eval", "run", setting]), &words);
    }
}

#[test]
fn contexts_may_have_different_numbers_of_questions() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    let line = |i: usize| {
        let asked = |query: &str, target: &str| json!({ "query": query, "target": target });
        let age = i.to_string();
        let all = [
            asked("age? ", &age),
            asked("n? ", "ann"),
            asked("i? ", "is"),
        ];
        let asked = &all[..1 + i % 3];
        format!(
            "{}\n",
            json!({ "context": format!("ann is {i}."), "questions": asked })
        )
    };
    std::fs::write(
        at.join("mine.jsonl"),
        (10..40).map(line).collect::<String>(),
    )
    .unwrap();
    let preset = String::from_utf8(gradmem(at, &["preset", "babi-small"]).stdout).unwrap();
    let rest = &preset[preset.find("[tokens]").unwrap()..];
    let data = "[data]\ntask = \"jsonl\"\ntrain_file = \"mine.jsonl\"\nvalid_samples = 6\n";
    std::fs::write(at.join("mine.toml"), format!("{data}{rest}")).unwrap();
    let plain = ["tokens.tokenizer=characters", "train.curriculum=[]"];
    for (run, more) in [
        ("whole", &[][..]),
        ("parts", &["train.micro_batch=2"]),
        ("rmt", &["method=rmt"]),
        (
            "prompt",
            &["method=in-context", "in_context.questions=shared"],
        ),
    ] {
        succeeds(train(
            at,
            "mine.toml",
            &[&plain, more, &["--run", run]].concat(),
        ));
        let answers = format!("{run}.jsonl");
        succeeds(gradmem(at, &["eval", run, "--answers", &answers]));
        let targets = lines(at.join(answers)).into_iter();
        let targets: Vec<_> = targets
            .map(|a| a["target"].as_str().unwrap().to_string())
            .collect();
        let expected = [
            "34", "ann", "35", "ann", "is", "36", "37", "ann", "38", "ann", "is", "39",
        ];
        assert_eq!(targets, expected, "{run}");
    }
    let read_loss = |run: &str| {
        let rows = lines(at.join(run).join("metrics.jsonl"));
        rows[0]["read_loss"].as_f64().unwrap()
    };
    assert!((read_loss("whole") - read_loss("parts")).abs() < 1e-5);
}

#[test]
fn contexts_of_words_are_written_and_read() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    let multihop = "[BOS] [CTX] [KV] 3 [SEP] 7 [KV_END] [KV] 7 [SEP] 9 [KV_END] [CTX_END] [EOS]";
    for (preset, context, question, wrong) in [
        ("mqar-small", "17 100 42 77", "42", "42 128"),
        (
            "multihop-small",
            multihop,
            "[Q] 3 [Q_END]",
            "[Q] 3 g [Q_END]",
        ),
    ] {
        let more = [
            "--run",
            preset,
            "train.curriculum=[]",
            "data.valid_samples=10",
        ];
        succeeds(train(at, preset, &more));
        std::fs::write(at.join("context.txt"), format!("{context}\n")).unwrap();
        let write = [
            "write",
            "--model",
            preset,
            "context.txt",
            "-o",
            "m.safetensors",
        ];
        succeeds(gradmem(at, &write));
        let read =
            |question: &str| gradmem(at, &["read", "--model", preset, "m.safetensors", question]);
        let answer = succeeds(read(question));
        assert!(answer.split_whitespace().count() > 0, "{answer:?}");
        let word = wrong.split(' ').find(|word| !question.contains(word));
        refuses(read(wrong), &[word.unwrap(), "none of this task's tokens"]);
        let held = std::fs::read_to_string(at.join(preset).join("config.toml")).unwrap();
        assert!(held.contains("queries_per_context = 8"), "{held}");
    }
    for (preset, setting, words) in [
        (
            "mqar-small",
            "data.vocab_size=33",
            &["data.vocab_size", "even"][..],
        ),
        (
            "mqar-small",
            "data.pairs=64",
            &["data.pairs", "63 different keys"],
        ),
        (
            "mqar-small",
            "model.vocab_size=64",
            &["model.vocab_size", "128 tokens"],
        ),
        (
            "mqar-small",
            "tokens.tokenizer=bpe",
            &["tokens.tokenizer", "leave it out"],
        ),
        (
            "multihop-small",
            "data.hops=3",
            &["data.pairs", "multiple of data.hops"],
        ),
        (
            "multihop-small",
            "data.digits=0",
            &["data.digits", "at least 1"],
        ),
        ("mix-small", "data.order=both", &["data.order", "inverse"]),
    ] {
        let more = ["--run", "new", "train.curriculum=[]", setting];
        refuses(train(at, preset, &more), words);
    }
    assert!(!at.join("new").exists());
}

#[test]
fn a_curriculum_goes_through_its_versions_of_the_task() {
    let folder = TempDir::new().unwrap();
    let versions =
        r#"train.curriculum=["pairs=1 queries_per_context=1", "pairs=2 queries_per_context=2"]"#;
    let more = [
        "data.pairs=3",
        "data.queries_per_context=3",
        "data.valid_samples=10",
        versions,
    ];
    // Nobody reaches more than everything.
    let stays = [&more[..], &["--run", "stays", "train.curriculum_value=1.1"]].concat();
    let printed = succeeds(train(folder.path(), "kv-small", &stays));
    assert!(printed.contains("of the curriculum's pairs=1"), "{printed}");
    let stages = |run: &str| -> Vec<(u64, u64)> {
        let lines = lines(folder.path().join(run).join("metrics.jsonl"));
        let valid = lines.iter().filter(|line| line["split"] == "valid");
        valid
            .map(|line| {
                (
                    line["step"].as_u64().unwrap(),
                    line["stage"].as_u64().unwrap(),
                )
            })
            .collect()
    };
    assert_eq!(stages("stays"), [(2, 0), (4, 0)]);
    let goes = [&more[..], &["--run", "goes", "train.curriculum_value=0"]].concat();
    succeeds(train(folder.path(), "kv-small", &goes));
    assert_eq!(stages("goes"), [(2, 0), (2, 1), (2, 2), (4, 2)]);

    for (versions, words) in [
        (
            r#"["pears=1"]"#,
            &["train.curriculum", "pears=1", "unknown key"][..],
        ),
        (
            r#"["pairs=1"]"#,
            &["train.curriculum", "queries_per_context"],
        ),
        (r#"["task=text"]"#, &["train.curriculum", "same task"]),
        (r#"["pairs"]"#, &["train.curriculum", "KEY=VALUE"]),
    ] {
        let versions = format!("train.curriculum={versions}");
        let more = [
            "data.queries_per_context=2",
            "data.pairs=2",
            &versions,
            "--run",
            "new",
        ];
        refuses(train(folder.path(), "kv-small", &more), words);
        assert!(!folder.path().join("new").exists());
    }
}

#[test]
fn a_smaller_vocabulary_may_come_first_and_is_evaluated_with_the_whole_one() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    for (preset, settings) in [
        (
            "mqar-small",
            &[
                r#"train.curriculum=["vocab_size=32 pairs=2 queries_per_context=2"]"#,
                "data.valid_samples=10",
            ][..],
        ),
        (
            "kv-small",
            &[
                r#"train.curriculum=["alphabet=62"]"#,
                "data.alphabet=512",
                "model.vocab_size=520",
                "data.pairs=2",
                "data.queries_per_context=2",
                "data.valid_samples=10",
            ],
        ),
    ] {
        let more = [&["--run", preset, "train.curriculum_value=0"], settings].concat();
        succeeds(train(at, preset, &more));
        succeeds(gradmem(at, &["eval", preset]));
    }
    // One character of a value is scored; `!` and `|` are not, whichever alphabet the letters are from.
    let scored = |more: &[&str]| {
        let args = [&["eval", "kv-small", "--json"], more].concat();
        let printed = succeeds(gradmem(at, &args));
        let row: Value = serde_json::from_str(printed.lines().next().unwrap()).unwrap();
        let of = |n: usize| !row[format!("token_accuracy_{n}")].is_null();
        (1..=8).filter(|n| of(*n)).count()
    };
    assert_eq!(scored(&["data.alphabet=62"]), scored(&[]));
}

#[test]
fn what_has_no_effect_is_said() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    let more = [
        &KV[..],
        &[
            "--run",
            "run",
            "method=rmt",
            "memory.inner_clip_norm=1",
            "train.curriculum=[]",
            "train.stop_value=99",
            "train.lr_decay=linear",
            "train.warmup_steps=4",
            "--patience",
            "5",
        ],
    ]
    .concat();
    let out = train(at, "kv-small", &more);
    let told = String::from_utf8_lossy(&out.stderr).into_owned();
    succeeds(out);
    for words in [
        "memory.inner_clip_norm=1 has no effect: the method is rmt, whose settings are under [rmt]",
        "train.stop_value = 99 is never reached",
        "the learning rate rises until the end",
        "--patience has no effect on one process",
    ] {
        assert!(told.contains(words), "`{words}` is not in: {told}");
    }
    // What the task itself does not use, a part of the curriculum may.
    let part = r#"train.curriculum=["pairs=0 segments=1 queries_per_context=1"]"#;
    let lengths = ["data.segment_min=2", "data.segment_max=5", part];
    let more = [&KV[..], &lengths, &["--run", "parts"]].concat();
    let out = train(at, "kv-quick", &more);
    let told = String::from_utf8_lossy(&out.stderr).into_owned();
    succeeds(out);
    assert!(!told.contains("has no effect"), "{told}");
    let out = gradmem(at, &["eval", "parts", "data.segment_min=3"]);
    let told = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(told.contains("data.segment_min=3 has no effect"), "{told}");
    // A value of the file that an override mends.
    let preset = String::from_utf8(gradmem(at, &["preset", "kv-small"]).stdout).unwrap();
    let size = "vocab_size = 70";
    assert!(preset.contains(size));
    std::fs::write(
        at.join("mine.toml"),
        preset.replace(size, "vocab_size = 65"),
    )
    .unwrap();
    let more = [&KV[..], &["model.vocab_size=70", "train.curriculum=[]"]].concat();
    succeeds(train(at, "mine.toml", &more));
    // A run's file that is wrong, and one that does not say what it is about.
    let config = at.join("run/config.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(
        &config,
        text.replace("warmup_steps = 4", "warmup_steps = -4"),
    )
    .unwrap();
    refuses(
        gradmem(at, &["report", "run"]),
        &["run/config.toml", "train.warmup_steps"],
    );
    std::fs::write(at.join("none.toml"), "[data]\nvalid_samples = 5\n").unwrap();
    let refused = gradmem(at, &["train", "none.toml"]);
    refuses(refused, &["data.task", "one of", "squad"]);
}

#[test]
fn seeds_have_a_run_each() {
    let folder = TempDir::new().unwrap();
    let more = [
        &KV[..],
        &["--run", "runs", "--seeds", "1,3..4", "train.curriculum=[]"],
    ]
    .concat();
    let printed = succeeds(train(folder.path(), "kv-small", &more));
    for seed in ["1", "3", "4"] {
        assert!(
            printed.contains(&format!("seed {seed}: best exact match")),
            "{printed}"
        );
        let config = folder.path().join(format!("runs/seed-{seed}/config.toml"));
        assert!(
            std::fs::read_to_string(config)
                .unwrap()
                .contains(&format!("seed = {seed}"))
        );
    }
    assert!(printed.contains("\nmean "), "{printed}");
    // Of some of the seeds that were asked for there is no mean.
    let other = folder.path().join("runs/seed-5");
    std::fs::create_dir(&other).unwrap();
    std::fs::write(other.join("notes.txt"), "mine").unwrap();
    let more = [
        &KV[..],
        &["--run", "runs", "--seeds", "1,3,5", "train.curriculum=[]"],
    ]
    .concat();
    let ended = train(folder.path(), "kv-small", &more);
    let printed = String::from_utf8_lossy(&ended.stdout).into_owned();
    assert!(
        printed.contains("seed 3: best exact match") && !printed.contains("\nmean "),
        "{printed}"
    );
    let error = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert_eq!(ended.status.code(), Some(2), "{error}");
    assert!(error.contains("runs/seed-5"), "{error}");
    let more = [&KV[..], &["--seeds", "1,2", "train.seed=5"]].concat();
    let twice = train(folder.path(), "kv-small", &more);
    refuses(twice, &["train.seed=5", "--seeds"]);
    let more = [&KV[..], &["--micro-batch", "1", "train.micro_batch=2"]].concat();
    let twice = train(folder.path(), "kv-small", &more);
    refuses(twice, &["train.micro_batch=2", "--micro-batch"]);
    let seed = [&KV[..], &["--run", "runs/seed-1", "--seeds", "7"]].concat();
    refuses(
        train(folder.path(), "kv-small", &seed),
        &["runs/seed-1", "is a run", "--run"],
    );
    let more = [&KV[..], &["--seeds", "3..1", "train.curriculum=[]"]].concat();
    refuses(
        train(folder.path(), "kv-small", &more),
        &["--seeds", "3..1"],
    );
}

#[test]
fn one_pass_gives_what_each_number_of_steps_gives() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    // Enough training for WRITE to matter, little enough for a test.
    let more = [
        &KV[..],
        &[
            "--run",
            "run",
            "train.curriculum=[]",
            "memory.ctrl_tokens=1",
            "memory.mem_proj=per_sample",
            "data.queries_per_context=2",
        ],
    ]
    .concat();
    succeeds(train(at, "kv-small", &more));
    type B = burn_flex::Flex;
    let trained = Trained::<B>::open(at.join("run"), &Default::default()).unwrap();
    let options = EvalOptions {
        write_steps: Some(vec![3, 0, 1, 5]),
        adaptive: Some(4),
        ..EvalOptions::default()
    };
    let found = trained.evaluate(&options).unwrap();
    let task = trained.task().unwrap();
    let batcher = ExampleBatcher::new(task.tokenizer.clone());
    let loader = DataLoaderBuilder::<B, _, _>::new(batcher)
        .batch_size(10)
        .build(task.valid);
    let steps: Vec<_> = found
        .rows
        .iter()
        .map(|row| row.write_steps.unwrap())
        .collect();
    assert_eq!(steps, [0, 1, 3, 5]);
    for row in &found.rows {
        let method = trained
            .method
            .clone()
            .with_write_steps(row.write_steps.unwrap())
            .unwrap();
        let scores = evaluate(&method, loader.iter().next().unwrap().unwrap()).unwrap();
        for measure in Measure::ALL.iter().copied() {
            let (a, b) = (row.value(measure), scores.mean(measure));
            let same = match (a, b) {
                (Some(a), Some(b)) => (a - b).abs() < 1e-5,
                (a, b) => a.is_none() && b.is_none(),
            };
            assert!(
                same,
                "{} at K = {:?}: {a:?}, not {b:?}",
                measure.key(),
                row.write_steps
            );
        }
    }
    // The rule's own WRITE gives the number of steps that the pass says.
    let adaptive = found.adaptive.unwrap();
    let batch = loader.iter().next().unwrap().unwrap();
    let gradmem = trained.into_gradmem().unwrap();
    let (memory, steps) = gradmem
        .write_until(batch.episode.contexts(), &adaptive.rule)
        .unwrap();
    assert_eq!(memory.len(), 10);
    let mean = steps.iter().sum::<usize>() as f64 / 10.0;
    assert!((mean - adaptive.mean_write_steps).abs() < 1e-9);
}

#[test]
fn evaluations_of_a_run_add_up() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    let more = [&KV[..], &["--run", "run", "train.curriculum=[]"]].concat();
    succeeds(train(at, "kv-small", &more));
    let eval = |more: &[&str]| succeeds(gradmem(at, &[&["eval", "run"], more].concat()));
    eval(&["--write-steps", "0..2"]);
    let printed = eval(&["--write-steps", "2,4", "--adaptive", "5"]);
    assert!(printed.contains("Each sample by itself"), "{printed}");
    assert!(eval(&["--generate"]).contains(" → "));
    let kept = || -> Value {
        serde_json::from_str(&std::fs::read_to_string(at.join("run/eval.json")).unwrap()).unwrap()
    };
    let rows = kept()["rows"].as_array().unwrap().clone();
    let steps: Vec<_> = rows
        .iter()
        .map(|row| row["write_steps"].as_u64().unwrap())
        .collect();
    assert_eq!(steps, [0, 1, 2, 4]);
    assert!(rows[2]["answer_match"].is_f64() && rows[3]["answer_match"].is_null());
    assert!(kept()["adaptive"]["mean_write_steps"].is_f64());
    // Fewer samples do not take the place of more.
    eval(&["--samples", "7"]);
    assert_eq!(kept()["rows"].as_array().unwrap().len(), 4);
    // What was found of other weights is not drawn.
    let report = || gradmem(at, &["report", "run", "-o", "r.html"]);
    assert!(!String::from_utf8_lossy(&report().stderr).contains("other weights"));
    let text = std::fs::read_to_string(at.join("run/eval.json")).unwrap();
    let weights = kept()["weights"].as_str().unwrap().to_string();
    std::fs::write(at.join("run/eval.json"), text.replace(&weights, "0")).unwrap();
    assert!(String::from_utf8_lossy(&report().stderr).contains("other weights"));
    let more = ["eval", "run", "--adaptive", "0"];
    refuses(gradmem(at, &more), &["--adaptive"]);
    let more = [
        &KV[..],
        &["--run", "rmt", "train.curriculum=[]", "method=rmt"],
    ]
    .concat();
    succeeds(train(at, "kv-small", &more));
    refuses(
        gradmem(at, &["eval", "rmt", "--adaptive"]),
        &["rmt", "stop by itself"],
    );
    std::fs::write(at.join("a.txt"), "!a:1!|").unwrap();
    let write = ["write", "--model", "rmt", "a.txt", "-o", "m"];
    for args in [&["eval", "rmt"][..], &write] {
        let none = [args, &["--write-steps", "0"]].concat();
        refuses(gradmem(at, &none), &["`--write-steps` = 0", "at least 1"]);
    }
}

#[test]
fn bad_data_is_named() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    let write = |name: &str, bytes: &[u8]| std::fs::write(at.join(name), bytes).unwrap();
    let good = r#"{"context": "Ann is in the hall now.", "query": "Where? ", "target": "hall"}"#;
    let of = |name: &str| good.replace("Ann", name);
    let [ben, cyd] = ["Ben", "Cyd"].map(of);
    write("good.jsonl", format!("{good}\n{ben}\n{cyd}\n").as_bytes());
    write(
        "broken.jsonl",
        format!("{good}\n{{\"context\": \"a\", \"qwery\": \"b\"}}\n").as_bytes(),
    );
    write(
        "latin1.jsonl",
        b"{\"context\": \"caf\xe9\", \"query\": \"b\", \"target\": \"c\"}\n",
    );
    write("empty.jsonl", b"");
    write(
        "twice.jsonl",
        "{\"id\": 1, \"context\": \"a\", \"query\": \"b\", \"target\": \"c\"}\n"
            .repeat(2)
            .as_bytes(),
    );
    write(
        "squad.json",
        squad(9)
            .replace("\"answer_start\": 13", "\"answer_start\": 14")
            .as_bytes(),
    );
    write("endless.json", br#"{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": null, "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1}, "unk_token": "a"}}"#);
    let preset = String::from_utf8(gradmem(at, &["preset", "babi-small"]).stdout).unwrap();
    let rest = &preset[preset.find("[tokens]").unwrap()..];
    write(
        "jsonl.toml",
        format!("[data]\ntask = \"jsonl\"\nvalid_samples = 1\n{rest}").as_bytes(),
    );
    let jsonl = |file: &str, more: &[&str]| {
        let file = format!("data.train_file={file}");
        train(
            at,
            "jsonl.toml",
            &[
                &[file.as_str(), "--run", "new", "train.curriculum=[]"],
                more,
            ]
            .concat(),
        )
    };
    refuses(
        jsonl("broken.jsonl", &[]),
        &["broken.jsonl", "line 2", "qwery"],
    );
    refuses(
        jsonl("latin1.jsonl", &[]),
        &["latin1.jsonl", "line 1", "UTF-8"],
    );
    refuses(jsonl("empty.jsonl", &[]), &["empty.jsonl", "empty"]);
    refuses(
        jsonl("twice.jsonl", &[]),
        &["twice.jsonl", "line 2", "line 1"],
    );
    refuses(jsonl("missing.jsonl", &[]), &["missing.jsonl"]);
    refuses(
        jsonl("good.jsonl", &["tokens.max_context=3"]),
        &["7 tokens", "tokens.max_context", "truncate"],
    );
    refuses(
        jsonl("good.jsonl", &["tokens.tokenizer=endless.json"]),
        &["tokens.end"],
    );
    refuses(
        jsonl(
            "good.jsonl",
            &["tokens.tokenizer=endless.json", "tokens.end=z"],
        ),
        &["tokens.end", "z"],
    );
    refuses(
        jsonl("good.jsonl", &["tokens.tokenizer=letters"]),
        &["tokens.tokenizer", "words, characters, bpe"],
    );
    refuses(
        jsonl("good.jsonl", &["model.vocab_size=5"]),
        &["model.vocab_size", "tokens"],
    );
    refuses(
        jsonl("good.jsonl", &["model.max_position_embeddings=7"]),
        &["max_position_embeddings", "positions"],
    );
    refuses(
        train(
            at,
            "squad-small",
            &["data.train_file=squad.json", "--run", "new"],
        ),
        &["squad.json", "q0"],
    );
    refuses(
        train(at, "squad-small", &["--run", "new"]),
        &["dev-v2.0.json", "rajpurkar", "data.train_file"],
    );
    refuses(
        train(at, "babi", &["--run", "new", "model.vocab_size=50257"]),
        &["unknown key"],
    );
    refuses(
        gradmem(at, &["train", "babi", "--run", "new"]),
        &["qa1_train.txt", "tasks_1-20_v1-2"],
    );
    refuses(train(at, "text-small", &["--run", "new"]), &["books"]);
    refuses(jsonl(".", &[]), &["not a regular file"]);
    refuses(
        train(at, "kv-small", &["data.task=kw"]),
        &["data.task", "babi"],
    );
    assert!(!at.join("new").exists());

    // Cut only where that is asked for, and counted.
    let cut = jsonl(
        "good.jsonl",
        &["tokens.max_context=3", "tokens.truncate=true"],
    );
    let told = String::from_utf8_lossy(&cut.stderr).to_string();
    succeeds(cut);
    assert!(
        told.contains("3 of 3 contexts are longer than tokens.max_context"),
        "{told}"
    );
}

#[test]
fn a_run_keeps_to_its_data_and_its_tokenizer() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    let lines = |word: &str| -> String {
        let line = |i| {
            format!(
                "{{\"context\": \"{word} is {i}.\", \"query\": \"Age? \", \"target\": \"{i}\"}}\n"
            )
        };
        (10..40).map(line).collect()
    };
    let preset = String::from_utf8(gradmem(at, &["preset", "babi-small"]).stdout).unwrap();
    let rest = &preset[preset.find("[tokens]").unwrap()..];
    let head = "[data]\ntask = \"jsonl\"\ntrain_file = \"a.jsonl\"\nvalid_samples = 5\n";
    std::fs::write(at.join("a.toml"), format!("{head}{rest}")).unwrap();
    std::fs::write(at.join("a.jsonl"), lines("Ann")).unwrap();
    let go = |run: &str, more: &[&str]| {
        let fixed = ["--run", run, "train.curriculum=[]"];
        train(at, "a.toml", &[&fixed[..], more].concat())
    };
    succeeds(go("a", &[]));
    // Another file, begun from that run's weights, is read by that run's tokenizer.
    std::fs::write(at.join("b.jsonl"), lines("Bob")).unwrap();
    let told = go("b", &["data.train_file=b.jsonl", "--from", "a"]);
    succeeds(told);
    let tokenizer = |run: &str| std::fs::read(at.join(run).join("tokenizer.json")).unwrap();
    assert_eq!(tokenizer("a"), tokenizer("b"));
    for setting in ["tokens.tokenizer=bpe", "tokens.vocab_size=50"] {
        let (key, _) = setting.split_once('=').unwrap();
        let more = ["data.train_file=b.jsonl", "--from", "a", setting];
        refuses(go("c", &more), &[key, "is that of a: leave it out"]);
    }
    // Other lines under the same name are other data.
    std::fs::write(at.join("a.jsonl"), lines("Eve")).unwrap();
    refuses(go("a", &["train.steps=6"]), &["other samples"]);
    refuses(gradmem(at, &["eval", "a"]), &["other samples"]);
    std::fs::write(at.join("a.jsonl"), lines("Ann")).unwrap();
    succeeds(go("a", &["train.steps=6"]));
    // So are other ids for the same words.
    let mut swapped: Value = serde_json::from_slice(&tokenizer("a")).unwrap();
    let vocab = &mut swapped["model"]["vocab"];
    let (ann, is) = (vocab["Ann"].clone(), vocab["is"].clone());
    assert_ne!(ann, is);
    (vocab["Ann"], vocab["is"]) = (is, ann);
    let swapped = swapped.to_string();
    std::fs::write(at.join("a/tokenizer.json"), &swapped).unwrap();
    refuses(gradmem(at, &["eval", "a"]), &["other samples"]);
    std::fs::remove_file(at.join("a/tokenizer.json")).unwrap();
    refuses(go("a", &["train.steps=8"]), &["tokenizer.json"]);
}

#[test]
fn a_step_size_is_found_kept_and_shown() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    let auto = |more: &[&str]| {
        let settings = [&KV[..], &["memory.write_lr=auto", "--run", "auto"], more].concat();
        train(at, "kv-quick", &settings)
    };
    let begun = auto(&[]);
    let said = String::from_utf8_lossy(&begun.stderr).into_owned();
    assert!(said.contains("WRITE's step size: "), "{said}");
    succeeds(begun);
    let kept = |run: &str| -> f64 {
        let text = std::fs::read_to_string(at.join(run).join("config.toml")).unwrap();
        let table: toml::Table = text.parse().unwrap();
        table["memory"]["write_lr"].as_float().unwrap()
    };
    let found = kept("auto");
    assert!(said.contains(&format!("step size: {found};")), "{said}");
    // A run goes on with what it found, and does not look again.
    let resumed = auto(&["train.steps=6"]);
    assert!(!String::from_utf8_lossy(&resumed.stderr).contains("step size"));
    succeeds(resumed);
    assert_eq!(kept("auto"), found);
    let shown = format!("memory.write_lr={found}");
    succeeds(train(
        at,
        "kv-quick",
        &[&KV[..], &[&shown, "--run", "auto", "train.steps=8"]].concat(),
    ));
    // Another method has no WRITE.
    let rmt = [
        &KV[..],
        &["memory.write_lr=auto", "method=rmt", "--run", "rmt"],
    ]
    .concat();
    succeeds(train(at, "kv-quick", &rmt));

    let table = succeeds(gradmem(at, &["tune", "auto", "--samples", "4"]));
    assert!(
        table.contains("exact match") && table.contains("lowest loss"),
        "{table}"
    );
    assert_eq!(table.lines().count(), 36, "{table}");
    let args = [
        "tune",
        "auto",
        "--write-lr",
        "0.1,1e6",
        "--write-steps",
        "3",
        "--json",
    ];
    let json: Value = serde_json::from_str(&succeeds(gradmem(at, &args))).unwrap();
    assert_eq!(json["write_steps"], 3);
    assert_eq!(json["curve"].as_array().unwrap().len(), 2);
    let curve = json["curve"].as_array().unwrap();
    let lowest = curve.iter().min_by(|a, b| {
        let loss = |size: &Value| size["write_loss"].as_f64().unwrap();
        loss(a).total_cmp(&loss(b))
    });
    assert_eq!(json["best"], lowest.unwrap()["write_lr"]);
    // Texts of one's own.
    std::fs::write(at.join("a.txt"), "!a:b!!c:d!|").unwrap();
    let args = ["tune", "auto", "--context", "a.txt", "--write-lr", "0.5,1"];
    let table = succeeds(gradmem(at, &args));
    assert!(
        table.starts_with("WRITE loss of 1 context after") && !table.contains("exact"),
        "{table}"
    );

    let args = ["tune", "auto", "--write-lr", "1e40", "--context", "a.txt"];
    let table = succeeds(gradmem(at, &args));
    assert!(table.contains("     1e40  "), "{table}");

    refuses(gradmem(at, &["tune", "rmt"]), &["rmt", "not gradmem"]);
    let none = ["memory.write_steps=0", "--run", "none"];
    succeeds(train(at, "kv-quick", &[&KV[..], &none].concat()));
    refuses(
        gradmem(at, &["tune", "none"]),
        &["none: takes no WRITE steps", "--write-steps"],
    );
    succeeds(gradmem(at, &["tune", "none", "--write-steps", "1"]));
    refuses(
        gradmem(at, &["tune", "auto", "--write-lr", "0"]),
        &["--write-lr 0", "positive"],
    );
    refuses(
        gradmem(at, &["tune", "auto", "--samples", "0"]),
        &["--samples"],
    );
    refuses(gradmem(at, &["tune", "nowhere"]), &["nowhere"]);
    succeeds(gradmem(at, &["export", "auto", "-o", "checkpoint"]));
    refuses(
        gradmem(at, &["tune", "checkpoint"]),
        &["checkpoint", "--context"],
    );
    refuses(
        train(
            at,
            "kv-quick",
            &["memory.write_lr=automatic", "--run", "no"],
        ),
        &["memory.write_lr"],
    );
}

#[test]
fn a_falling_learning_rate_ends_with_the_run() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    let run = |more: &[&str]| {
        let settings = [
            &KV[..],
            &["train.lr_decay=cosine", "train.lr=0.01", "--run", "run"],
            more,
        ];
        train(at, "kv-quick", &settings.concat())
    };
    succeeds(run(&["train.log_every=1"]));
    let rates: Vec<f64> = lines(at.join("run/metrics.jsonl"))
        .iter()
        .filter_map(|line| line["lr"].as_f64())
        .collect();
    let expected = [0.005, 0.01, 0.0075, 0.0025];
    assert!(
        rates
            .iter()
            .zip(expected)
            .all(|(a, b)| (a - b).abs() < 1e-12),
        "{rates:?}"
    );
    refuses(
        run(&["train.log_every=1", "train.steps=6"]),
        &["falls until step 4", "train.steps"],
    );
    for (setting, key) in [
        ("train.lr_decay=sudden", "train.lr_decay"),
        ("train.lr_end=2", "train.lr_end"),
        ("train.beta2=1", "train.beta2"),
        ("train.epsilon=0", "train.epsilon"),
        ("train.label_smoothing=1", "train.label_smoothing"),
        ("memory.inner_loss_steps=10", "memory.inner_loss_steps"),
        ("memory.momentum=1", "memory.momentum"),
        ("memory.learned_lr=[\"token\"]", "memory.learned_lr"),
        ("memory.learned_lr=[\"step\",\"step\"]", "memory.learned_lr"),
        (
            "memory.random_write_steps=[3,2]",
            "memory.random_write_steps",
        ),
    ] {
        refuses(train(at, "kv-quick", &[setting, "--run", "no"]), &[key]);
    }
}

#[test]
fn what_is_learned_of_the_steps_begins_from_another_run() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    let run = |name: &str, more: &[&str]| {
        train(at, "kv-quick", &[&KV[..], &["--run", name], more].concat())
    };
    let learned = "memory.learned_lr=[\"step\",\"vector\"]";
    succeeds(run("plain", &[]));
    succeeds(run(
        "learned",
        &["--from", "plain", learned, "memory.momentum=0.5"],
    ));
    let more = [
        "memory.momentum=0.5",
        "memory.write_steps=3",
        "memory.memory_tokens=1",
    ];
    succeeds(run(
        "longer",
        &[&["--from", "learned", learned], &more[..]].concat(),
    ));
    let own = ["memory.kind=lora", "memory.memory_tokens=4", learned];
    succeeds(run("lora", &own));
    let fewer = [
        "--from",
        "lora",
        "memory.kind=lora",
        "memory.memory_tokens=1",
        learned,
    ];
    succeeds(run("lora-fewer", &fewer));
    refuses(
        run("back", &["--from", "learned"]),
        &["memory.learned_lr", "unlike this run"],
    );
    refuses(
        run("rest", &["--from", "learned", learned]),
        &["memory.momentum", "unlike this run"],
    );
    // Of the same shape, but of another matrix.
    let adapted = |target| format!("memory.write_lora_targets=[\"{target}\"]");
    let (of_q, of_o) = (adapted("q_proj"), adapted("o_proj"));
    succeeds(run("adapted", &["memory.write_lora_rank=2", &of_q]));
    let other = ["--from", "adapted", "memory.write_lora_rank=2", &of_o];
    refuses(run("others", &other), &["adapters", "q_proj", "o_proj"]);
    // The same weights, used otherwise.
    let louder = [
        &["--from", "adapted", "memory.write_lora_alpha=160"],
        &["memory.write_lora_rank=2", &*of_q][..],
    ]
    .concat();
    refuses(
        run("louder", &louder),
        &["memory.write_lora_alpha = 16.0", "160.0"],
    );
    // Adapters that only this run has change nothing at first.
    let frozen = [
        "--from",
        "plain",
        "memory.freeze_backbone=true",
        "memory.write_lora_rank=2",
        "memory.write_lora_alpha=160",
    ];
    succeeds(run("frozen", &frozen));
    refuses(run("without", &["--from", "frozen"]), &["write_lora"]);
    succeeds(run("armt", &["method=armt"]));
    let undivided = [
        "--from",
        "armt",
        "method=armt",
        "armt.use_denom=false",
        "armt.correction=false",
    ];
    refuses(run("undivided", &undivided), &["armt.correction = true"]);
    // The reference has no place for it.
    refuses(
        gradmem(at, &["export", "learned", "-o", "out"]),
        &["learned_lr"],
    );
    assert!(!at.join("out").exists());
    for (more, key) in [
        (&["train.beta2=0.99999999"][..], "train.beta2"),
        (&["train.lr_end=0.1"], "train.lr_end"),
        (
            &["memory.write_lr=auto", "memory.write_steps=0"],
            "memory.write_lr",
        ),
        (
            &["memory.random_write_steps=[1,2]", "memory.write_steps=0"],
            "memory.random_write_steps",
        ),
        (
            &["memory.write_steps=100000000000000", learned],
            "memory.write_steps",
        ),
    ] {
        refuses(run("no", more), &[key]);
    }
}
