//! Memory files from a shell: `gradmem write`, `read` and `inspect`.

use std::io::Write as _;
use std::process::Stdio;
use std::sync::OnceLock;

use serde_json::Value;
use tempfile::TempDir;

use crate::program::{command, gradmem, refuses, succeeds, text, tiny};

/// A model that a second of training made, in a folder for all tests; each has a folder of its own.
fn model() -> (&'static str, TempDir) {
    static RUN: OnceLock<(TempDir, String)> = OnceLock::new();
    let (_, run) = RUN.get_or_init(|| {
        let folder = TempDir::new().unwrap();
        succeeds(gradmem(folder.path(), &tiny("run")));
        let run = folder.path().join("run").display().to_string();
        (folder, run)
    });
    (run, TempDir::new().unwrap())
}

/// Files in a folder, without the hidden ones.
fn put(folder: &TempDir, files: &[(&str, &str)]) {
    for (name, content) in files {
        std::fs::write(folder.path().join(name), content).unwrap();
    }
}

fn json_lines(text: &str) -> Vec<Value> {
    let lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
    lines.collect()
}

const TEXTS: [(&str, &str); 3] = [
    ("long.txt", "!a:1!!b:2!!c:3!!d:4!|\n"),
    ("short.txt", "!a:5!|"),
    ("middle.txt", "!a:6!!b:7!|\r\n"),
];

#[test]
fn texts_become_memories_that_answer() {
    let (run, folder) = model();
    let at = folder.path();
    put(&folder, &TEXTS);
    let write = [
        "write",
        "--model",
        run,
        "long.txt",
        "short.txt",
        "middle.txt",
    ];
    let all = [&write[..], &["-o", "all.safetensors", "--batch", "2"]].concat();
    let printed = succeeds(gradmem(at, &all));
    for word in [
        "3 memories",
        "2 vectors of width 8",
        "long.txt: 21 tokens",
        "key-value cache",
        "a second",
    ] {
        assert!(printed.contains(word), "`{word}` is not in {printed}");
    }
    let inspect = |args: &[&str]| -> Value {
        let args = [&["inspect", "--json"], args].concat();
        serde_json::from_str(&succeeds(gradmem(at, &args))).unwrap()
    };
    let about = inspect(&["all.safetensors"]);
    let nowhere = ["inspect", "all.safetensors", "--backend", "nonsense"];
    refuses(gradmem(at, &nowhere), &["unknown backend `nonsense`"]);
    assert_eq!(about["origin"]["method"], "gradmem");
    assert_eq!(
        (&about["memories"], &about["dtype"]),
        (&3.into(), &"f32".into())
    );
    assert_eq!(about["bytes_each"], 2 * 8 * 4);
    // In the order in which they were given, though they were written by length.
    for ((name, content), (sample, tokens)) in TEXTS
        .iter()
        .zip(about["samples"].as_array().unwrap().iter().zip([21, 6, 11]))
    {
        assert_eq!(sample["name"], *name);
        assert_eq!(sample["tokens"], tokens, "{content:?}");
        // One layer's keys and values, of width 8, in f32.
        assert_eq!(sample["cache_bytes"], 2 * 8 * 4 * tokens);
        assert!(sample["loss_before"].is_f64() && sample["loss_after"].is_f64());
        assert_eq!(
            sample["context"],
            Value::Null,
            "a context is not kept unasked"
        );
        assert_eq!(sample["context_sha256"].as_str().unwrap().len(), 64);
    }
    let bytes = std::fs::read(at.join("all.safetensors")).unwrap();
    assert!(!text(&bytes).contains("!a:1!"));
    succeeds(gradmem(at, &all));
    assert_eq!(
        std::fs::read(at.join("all.safetensors")).unwrap(),
        bytes,
        "the same bytes again"
    );

    // Alone, from standard input, in half the room, with its text.
    let kept = [
        "write",
        "--model",
        run,
        "-",
        "-o",
        "one.safetensors",
        "--bf16",
        "--keep-context",
        "--name",
        "first",
    ];
    let mut child = command(at, &kept)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(TEXTS[0].1.as_bytes())
        .unwrap();
    succeeds(child.wait_with_output().unwrap());
    let one = inspect(&["one.safetensors", "--context", "long.txt", "--model", run]);
    let sample = &one["samples"][0];
    assert_eq!(one["bytes_each"], 2 * 8 * 2);
    assert_eq!(
        (&sample["name"], &sample["context"]),
        (&"first".into(), &"!a:1!!b:2!!c:3!!d:4!|".into())
    );
    assert_eq!(sample["same_context"], true);
    let [told, after] =
        ["reconstruction_loss", "loss_after"].map(|key| sample[key].as_f64().unwrap());
    assert!((told - after).abs() < 0.01, "{told} {after}");
    let other = inspect(&["one.safetensors", "--context", "short.txt", "--model", run]);
    assert_eq!(other["samples"][0]["same_context"], false);
    let shown = succeeds(gradmem(at, &["inspect", "one.safetensors"]));
    assert!(
        shown.contains("bf16")
            && shown.contains("first: 21 tokens")
            && shown.contains("2 WRITE steps"),
        "{shown}"
    );

    // Each memory answers each question as it does alone.
    put(&folder, &[("questions.txt", "?!a:\n?!b:\n?!a:\n")]);
    let read = ["read", "--model", run, "--max-tokens", "4"];
    let asked = [
        &read[..],
        &["all.safetensors", "--questions", "questions.txt"],
    ]
    .concat();
    let lines = json_lines(&succeeds(gradmem(at, &asked)));
    assert_eq!(lines.len(), 9);
    for line in &lines {
        let [memory, question] = ["memory", "question"].map(|key| line[key].as_str().unwrap());
        let alone = [
            &read[..],
            &["all.safetensors", question, "--memory", memory],
        ]
        .concat();
        let answer = succeeds(gradmem(at, &alone));
        assert_eq!(
            line["answer"].as_str().unwrap(),
            answer.strip_suffix('\n').unwrap()
        );
    }
    let mut environment = command(
        at,
        &["read", "all.safetensors", "?!a:", "--memory", "1", "--json"],
    );
    let line = environment.env("GRADMEM_MODEL", run).output().unwrap();
    assert_eq!(json_lines(&succeeds(&line))[0]["memory"], "short.txt");
    // An empty variable is none.
    let mut unset = command(at, &["inspect", "all.safetensors"]);
    succeeds(unset.env("GRADMEM_MODEL", "").output().unwrap());
    let mut unset = command(at, &["generate", "a"]);
    let refused = unset.env("GRADMEM_MODEL", "").output().unwrap();
    assert_eq!(refused.status.code(), Some(2));
    let error = text(&refused.stderr);
    assert!(
        error.contains("not provided") && error.contains("--model"),
        "{error}"
    );
}

#[test]
fn what_cannot_be_is_said_before_any_work_and_leaves_what_was() {
    let (run, folder) = model();
    let at = folder.path();
    put(&folder, &TEXTS);
    put(
        &folder,
        &[
            ("zero.txt", "!a:1!\0"),
            ("fixed", "old"),
            ("empty.txt", "\n"),
            ("none", ""),
        ],
    );
    std::fs::write(at.join("latin.txt"), b"caf\xe9").unwrap();
    std::fs::create_dir(at.join("folder")).unwrap();
    let mut rights = std::fs::metadata(at.join("fixed")).unwrap().permissions();
    rights.set_readonly(true);
    std::fs::set_permissions(at.join("fixed"), rights).unwrap();
    let write = |args: &[&str]| gradmem(at, &[&["write", "--model", run], args].concat());
    succeeds(write(&["short.txt", "-o", "old.safetensors"]));
    let old = || std::fs::read(at.join("old.safetensors")).unwrap();
    let before = old();
    refuses(
        write(&["short.txt", "-o", "folder"]),
        &["folder: is a folder", "name the file"],
    );
    refuses(
        write(&["short.txt", "-o", "no/where"]),
        &["no/where: its folder does not exist"],
    );
    refuses(
        write(&["short.txt", "-o", "fixed"]),
        &["fixed: is read-only"],
    );
    refuses(
        write(&["short.txt", "zero.txt", "-o", "n"]),
        &["zero.txt", "zero at byte 5"],
    );
    refuses(
        write(&["short.txt", "latin.txt", "-o", "old.safetensors"]),
        &["latin.txt", "UTF-8", "byte 3"],
    );
    refuses(
        write(&["short.txt", "empty.txt", "-o", "n"]),
        &["empty.txt: is empty"],
    );
    refuses(write(&["short.txt", "gone.txt", "-o", "n"]), &["gone.txt"]);
    refuses(write(&["short.txt", "folder", "-o", "n"]), &["folder"]);
    refuses(
        write(&["-", "short.txt", "-", "-o", "n"]),
        &["-: standard input is one text"],
    );
    refuses(
        write(&["short.txt", "--batch", "0", "-o", "n"]),
        &["--batch"],
    );
    refuses(
        write(&["short.txt", "--write-steps", "20000", "-o", "n"]),
        &["--write-steps 20000", "at most 10000"],
    );
    refuses(
        write(&["short.txt", "long.txt", "--name", "x", "-o", "n"]),
        &["--name"],
    );
    for name in ["", " \n"] {
        refuses(
            write(&["short.txt", "--name", name, "-o", "n"]),
            &["--name is empty"],
        );
    }
    assert_eq!(old(), before);
    assert!(!at.join("n").exists());

    succeeds(write(&["short.txt", "long.txt", "-o", "m.safetensors"]));
    let read = |args: &[&str]| {
        gradmem(
            at,
            &[&["read", "--model", run, "m.safetensors"], args].concat(),
        )
    };
    let long = "a".repeat(127);
    refuses(read(&["é"]), &["the question: character 'é' at position 0"]);
    refuses(read(&[&long]), &["127 tokens", "126 positions left"]);
    put(&folder, &[("q.txt", &format!("?!a:\n{long}\n"))]);
    refuses(
        read(&["--questions", "q.txt"]),
        &["q.txt: line 2", "127 tokens"],
    );
    refuses(read(&["--questions", "none"]), &["none: has no question"]);
    // Blank lines are no questions, and are counted.
    put(
        &folder,
        &[
            ("q.txt", &format!("\n?!a:\n \t\n\n{long}\n")),
            ("blank.txt", "\n \n\n"),
            ("gaps.txt", "\n?!a:\n\n \n?!b:\n\n"),
        ],
    );
    refuses(
        read(&["--questions", "q.txt"]),
        &["q.txt: line 5", "127 tokens"],
    );
    refuses(
        read(&["--questions", "blank.txt"]),
        &["blank.txt: has no question"],
    );
    let answered = json_lines(&succeeds(read(&["--questions", "gaps.txt"])));
    let asked: Vec<_> = answered.iter().map(|line| &line["question"]).collect();
    assert_eq!(asked, ["?!a:", "?!a:", "?!b:", "?!b:"]);
    // Values that cannot be are told by their options.
    let sampled = |more: &[&str]| read(&[&["?!a:"], more].concat());
    for (more, words) in [
        (&["--temperature", "-1"][..], "`--temperature` = -1"),
        (&["--temperature", "1", "--top-k", "0"], "`--top-k` = 0"),
        (&["--temperature", "1", "--top-p", "0"], "`--top-p` = 0"),
        (&["--seed", "5"], "--seed are for samples"),
        (&["--memory", "-1"], "no memory is called \"-1\""),
    ] {
        refuses(sampled(more), &[words]);
    }
    succeeds(sampled(&["--temperature", "1", "--seed", "5"]));
    refuses(
        read(&["?!a:", "--memory", "gone"]),
        &["\"gone\"", "\"short.txt\", \"long.txt\""],
    );
    refuses(
        read(&["?!a:", "--memory", "2"]),
        &["no memory is called \"2\""],
    );
    let inspect = |args: &[&str]| gradmem(at, &[&["inspect", "m.safetensors"], args].concat());
    refuses(
        inspect(&["--context", "short.txt"]),
        &["--context and --reconstruct need --model"],
    );
    refuses(
        inspect(&["--model", run, "--context", "short.txt"]),
        &["1 texts for 2 memories"],
    );
    refuses(
        gradmem(at, &["inspect", "short.txt"]),
        &["short.txt", "not a whole .safetensors file"],
    );
}

#[test]
fn a_memory_is_written_on_and_stored_in_bytes() {
    let (run, folder) = model();
    let at = folder.path();
    put(&folder, &TEXTS);
    let write = |more: &[&str]| {
        let args = [&["write", "--model", run, "-o", "m.safetensors"], more].concat();
        gradmem(at, &args)
    };
    let inspect = || -> Value {
        let args = ["inspect", "--json", "m.safetensors"];
        serde_json::from_str(&succeeds(gradmem(at, &args))).unwrap()
    };
    succeeds(write(&["long.txt", "--keep-context"]));
    let before = inspect();
    let printed = succeeds(write(&["--append", "short.txt"]));
    assert!(printed.contains("1 text written on"), "{printed}");
    let after = inspect();
    let sample = &after["samples"][0];
    assert_eq!(sample["name"], "long.txt");
    assert_eq!(
        (&sample["tokens"], &sample["appended"]),
        (&27.into(), &1.into())
    );
    assert_eq!(sample["context"], "!a:1!!b:2!!c:3!!d:4!|\n!a:5!|");
    // Of the text that was appended.
    assert_ne!(sample["loss_before"], before["samples"][0]["loss_before"]);
    assert!(sample.get("context_sha256").is_none());
    succeeds(gradmem(
        at,
        &["read", "--model", run, "m.safetensors", "?!a:"],
    ));
    // One text to each memory, and no others' names.
    refuses(
        write(&["--append", "short.txt", "middle.txt"]),
        &["has 1 memory, but 2 texts"],
    );
    refuses(
        write(&["--append", "short.txt", "--name", "x"]),
        &["--append keeps their names"],
    );
    // In bytes: a quarter of the numbers and a scale for each row, with what that changes.
    let printed = succeeds(write(&["long.txt", "--int8"]));
    assert!(printed.contains("rounded by"), "{printed}");
    let stored = inspect();
    assert_eq!(
        (&stored["dtype"], &stored["bytes_each"]),
        (&"i8".into(), &(2 * 8 + 2 * 4).into())
    );
    let sample = &stored["samples"][0];
    assert!(sample["rounding"].as_f64().unwrap() < 0.01);
    let [exact, rounded] = ["loss_after", "loss_stored"].map(|key| sample[key].as_f64().unwrap());
    assert!((exact - rounded).abs() < 0.05, "{exact} {rounded}");
    succeeds(gradmem(
        at,
        &["read", "--model", run, "m.safetensors", "?!a:"],
    ));
    assert_eq!(
        write(&["long.txt", "--int8", "--bf16"]).status.code(),
        Some(2)
    );
    // Another model's memory is not written on.
    let other = at.join("other").display().to_string();
    let mut settings = tiny(&other);
    settings.push("train.seed=9");
    succeeds(gradmem(at, &settings));
    let args = [
        "write",
        "--model",
        &other,
        "--append",
        "short.txt",
        "-o",
        "m.safetensors",
    ];
    refuses(
        gradmem(at, &args),
        &["was written by model", "but this is model"],
    );
}

/// Every kind of memory, through training, files and questions; and what is left of the chunks of a context.
#[test]
fn other_kinds_and_chunks_go_through_the_program() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    put(&folder, &TEXTS);
    put(&folder, &[("one.txt", "!")]);
    for (name, settings) in [
        ("lora", &["memory.kind=lora", "memory.lora_rank=2"][..]),
        ("kv", &["memory.kind=kv"]),
        (
            "chunks",
            &["memory.chunk_size=5", "memory.chunks=concatenated"],
        ),
        ("sequence", &["memory.chunk_size=5", "memory.gate=mamba"]),
        (
            "aligned",
            &[
                "memory.step_alignment_weight=0.1",
                "memory.intermediate_read_weight=0.1",
            ],
        ),
    ] {
        let args = [&tiny(name)[..], settings].concat();
        succeeds(gradmem(at, &args));
        let file = format!("{name}.safetensors");
        let write = [
            "write",
            "--model",
            name,
            "long.txt",
            "short.txt",
            "-o",
            &file,
        ];
        succeeds(gradmem(at, &write));
        let read = ["read", "--model", name, &file, "?!a:"];
        assert_eq!(json_lines(&succeeds(gradmem(at, &read))).len(), 2, "{name}");
        let about = succeeds(gradmem(at, &["inspect", &file]));
        assert!(about.contains("2 memories"), "{about}");
        succeeds(gradmem(at, &["eval", name, "--generate", "--samples", "4"]));
        let forgets = gradmem(at, &["eval", name, "--forgetting", "--samples", "4"]);
        // A number of steps alone is what it is among others.
        let last_row = |steps| {
            let eval = [
                "eval",
                name,
                "--samples",
                "4",
                "--json",
                "--write-steps",
                steps,
            ];
            json_lines(&succeeds(gradmem(at, &eval))).pop().unwrap()
        };
        assert_eq!(last_row("2"), last_row("0..2"), "{name}");
        match settings[0].contains("chunk_size") {
            true => assert!(succeeds(forgets).contains("answered exactly"), "{name}"),
            false => refuses(forgets, &["memory.chunk_size"]),
        }
        if ["lora", "kv"].contains(&name) {
            let write = ["write", "--model", name, "one.txt", "-o", "one"];
            refuses(gradmem(at, &write), &["one.txt: has one token", name]);
        }
    }
    let parallel = ["memory.chunk_size=5", "memory.chunks=parallel"];
    succeeds(gradmem(at, &[&tiny("parallel")[..], &parallel].concat()));
    refuses(
        gradmem(at, &["eval", "parallel", "--forgetting"]),
        &["--forgetting", "memory.chunks = \"parallel\""],
    );
    succeeds(gradmem(
        at,
        &["report", "chunks", "sequence", "-o", "report.html"],
    ));
    // A memory of one kind is not read as another.
    refuses(
        gradmem(at, &["read", "--model", "kv", "lora.safetensors", "?!a:"]),
        &["was written by model"],
    );
    // What contradicts is said before anything is trained.
    for (settings, words) in [
        (
            &["memory.kind=kv", "memory.mem_proj=per_sample"][..],
            "is for a memory of kind `prefix`",
        ),
        (
            &[
                "memory.kind=lora",
                "memory.lora_place=modules",
                "memory.lora_targets=[\"nothing\"]",
            ],
            "has no such module",
        ),
        (&["memory.chunk_size=0"], "must be at least 1"),
        (
            &["memory.kind=lora", "memory.chunk_size=1"],
            "must be at least 2",
        ),
        (&["memory.chunks=parallel"], "needs `chunk_size`"),
    ] {
        let args = [&tiny("refused")[..], settings].concat();
        refuses(gradmem(at, &args), &[words]);
    }
}

#[test]
fn two_programs_that_write_one_file_leave_one_of_both_memories() {
    let (run, folder) = model();
    let at = folder.path();
    put(&folder, &TEXTS);
    let args = |text: &'static str| ["write", "--model", run, text, "-o", "m.safetensors"];
    for _ in 0..4 {
        let both = ["short.txt", "long.txt"].map(|text| {
            let mut child = command(at, &args(text));
            child
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap()
        });
        for child in both {
            succeeds(child.wait_with_output().unwrap());
        }
        let shown = succeeds(gradmem(at, &["inspect", "m.safetensors"]));
        assert!(
            shown.contains("short.txt: 6") || shown.contains("long.txt: 21"),
            "{shown}"
        );
    }
    let left = std::fs::read_dir(at).unwrap().count();
    assert_eq!(left, TEXTS.len() + 1, "nothing else is left");
}

#[test]
#[cfg(unix)]
fn odd_shells_are_no_reason_to_fail() {
    use std::os::unix::ffi::OsStrExt as _;
    let (run, folder) = model();
    let at = folder.path();
    // A name that is no UTF-8, in a locale that knows none.
    let name = std::ffi::OsStr::from_bytes(b"caf\xe9.txt");
    std::fs::write(at.join(name), "!a:1!|").unwrap();
    let mut write = command(at, &["write", "--model", run, "-o", "m.safetensors"]);
    let written = write
        .arg(name)
        .env("LC_ALL", "C")
        .env("LANG", "")
        .output()
        .unwrap();
    assert!(succeeds(&written).contains("caf\u{fffd}.txt: 6 tokens"));
    let mut question = command(at, &["read", "--model", run, "m.safetensors"]);
    let refused = question
        .arg(std::ffi::OsStr::from_bytes(b"?!\xe9:"))
        .output()
        .unwrap();
    assert_eq!(refused.status.code(), Some(2));
    assert!(text(&refused.stderr).contains("UTF-8"));

    // A reader that has seen enough, and a disk without room.
    let mut many = command(at, &["preset", "kv-quick"]);
    let mut child = many
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let gone = child.wait_with_output().unwrap();
    assert!(gone.status.success() || gone.status.code() == Some(141));
    assert_eq!(text(&gone.stderr), "");
    if let Ok(full) = std::fs::OpenOptions::new().write(true).open("/dev/full") {
        let full = command(at, &["preset"]).stdout(full).output().unwrap();
        assert_eq!(full.status.code(), Some(1));
        assert!(text(&full.stderr).contains("standard output"));
    }
}

#[test]
fn a_byte_order_mark_is_no_part_of_a_text() {
    let (run, folder) = model();
    let at = folder.path();
    put(
        &folder,
        &[
            ("plain.txt", "!a:1!!b:2!|\n"),
            ("marked.txt", "\u{feff}!a:1!!b:2!|\r\n"),
            ("questions.txt", "\u{feff}?!a:\n?!b:\n"),
        ],
    );
    let write = |name: &str| {
        let output = format!("{name}.safetensors");
        succeeds(gradmem(
            at,
            &[
                "write",
                "--model",
                run,
                &format!("{name}.txt"),
                "-o",
                &output,
            ],
        ));
        let inspected = succeeds(gradmem(at, &["inspect", "--json", &output]));
        let inspected: Value = serde_json::from_str(&inspected).unwrap();
        inspected["samples"][0].clone()
    };
    let (plain, marked) = (write("plain"), write("marked"));
    for key in ["tokens", "loss_before", "loss_after"] {
        assert!(!plain[key].is_null(), "{plain}");
        assert_eq!(plain[key], marked[key], "{key}");
    }
    let asked = ["read", "--model", run, "plain.safetensors", "--json"];
    let of_file = [&asked[..], &["--questions", "questions.txt"]].concat();
    let of_file = succeeds(gradmem(at, &of_file));
    assert!(
        !of_file.contains('\u{feff}') && of_file.contains("?!a:"),
        "{of_file}"
    );
}

#[test]
fn vectors_are_optimised_for_a_text_in_front_of_a_model_that_has_none() {
    let folder = TempDir::new().unwrap();
    let mut plain = tiny("plain");
    plain.extend([
        "method=in-context",
        "model.hidden_size=32",
        "model.initializer_range=0.5",
    ]);
    succeeds(gradmem(&folder, &plain));
    succeeds(gradmem(&folder, &["export", "plain", "-o", "model"]));
    let texts = ["!a:1!!b:2!|", "xy"];
    std::fs::write(folder.path().join("a.txt"), texts[0]).unwrap();
    std::fs::write(folder.path().join("b.txt"), texts[1]).unwrap();
    let write = |model: &'static str, more: &[&'static str]| {
        let fixed = [
            "write",
            "--model",
            model,
            "a.txt",
            "b.txt",
            "-o",
            "m.safetensors",
        ];
        gradmem(&folder, &[&fixed[..], more].concat())
    };
    let adam = [
        "--optimizer",
        "adam",
        "--memory-tokens",
        "6",
        "--step-size",
        "0.1",
        "--until",
        "0.7",
    ];
    // Of a folder of Hugging Face's format and of a run.
    for model in ["model", "plain"] {
        let written = succeeds(write(model, &adam));
        assert!(written.contains("steps of Adam"), "{written}");
        let inspect = ["inspect", "m.safetensors", "--json", "--model", model];
        let context = ["--context", "a.txt", "b.txt"];
        let found = succeeds(gradmem(&folder, &[&inspect[..], &context].concat()));
        let found: serde_json::Value = serde_json::from_str(&found).unwrap();
        assert_eq!(found["memory_tokens"], 6);
        for sample in found["samples"].as_array().unwrap() {
            let told = sample["accuracy"].as_f64().unwrap();
            assert!(told >= 0.7, "{sample}");
            let found = sample["reconstruction_accuracy"].as_f64().unwrap();
            assert!((found - told).abs() < 1e-5, "{sample}");
            let steps = sample["adam_steps"].as_u64().unwrap();
            assert!(steps > 0 && steps <= 1000, "{sample}");
            let [before, after] =
                ["loss_before", "loss_after"].map(|key| sample[key].as_f64().unwrap());
            assert!(after < before, "{sample}");
            assert!(sample.get("reconstructed").is_none(), "{sample}");
        }
        // From the memory alone, token behind token: a wrong one misleads those after it.
        let told = succeeds(gradmem(
            &folder,
            &[&inspect[..], &["--reconstruct"]].concat(),
        ));
        let told: Value = serde_json::from_str(&told).unwrap();
        let samples = &told["samples"];
        assert!(samples[0]["reconstructed"].is_string(), "{samples}");
        assert_eq!(samples[1]["reconstructed"], texts[1], "{samples}");
        assert!(samples[1].get("reconstruction_loss").is_none(), "{samples}");
        let read = [
            "read",
            "--model",
            model,
            "m.safetensors",
            "--memory",
            "a.txt",
            "!a:",
        ];
        succeeds(gradmem(&folder, &read));
    }
    // Without Adam there is nothing to write with, and each optimizer has options of its own.
    refuses(write("model", &[]), &["--optimizer adam"]);
    refuses(
        write("model", &["--write-steps", "1"]),
        &["gradmem: this model was not trained to write"],
    );
    let tune = ["tune", "model", "--context", "a.txt", "--write-steps", "1"];
    refuses(
        gradmem(&folder, &tune),
        &["gradmem: model: is a model of in-context"],
    );
    refuses(write("model", &["--until", "0.9"]), &["--until", "adam"]);
    refuses(
        write("model", &["--optimizer", "adam", "--write-steps", "2"]),
        &["--write-steps", "descent"],
    );
    refuses(
        write("model", &["--optimizer", "adam", "--until", "2"]),
        &["until", "at most 1"],
    );
    refuses(
        write("model", &["--optimizer", "adam", "--memory-tokens", "0"]),
        &["`--memory-tokens` = 0", "at least 1"],
    );
}

/// Programs that write on into one file at the same time take turns; the numbers stay held as they were.
#[test]
fn texts_are_written_on_one_after_another() {
    let (run, folder) = model();
    let at = folder.path();
    put(&folder, &TEXTS);
    let write = ["write", "--model", run, "short.txt", "-o", "m", "--int8"];
    succeeds(gradmem(at, &write));
    let on = ["write", "--model", run, "middle.txt", "-o", "m", "--append"];
    let children: Vec<_> = (0..4).map(|_| command(at, &on).spawn().unwrap()).collect();
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    let about = succeeds(gradmem(at, &["inspect", "--json", "m"]));
    let about: Value = serde_json::from_str(&about).unwrap();
    assert_eq!(about["samples"][0]["appended"], 4);
    assert_eq!(about["samples"][0]["tokens"], 6 + 4 * 11);
    assert_eq!(about["dtype"], "i8");
}
