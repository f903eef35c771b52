//! One seed, one run: repeated, killed, interrupted, or out of disk, it ends with the same numbers.
#![cfg(unix)]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use gradmem::model::weights::Tensors;
use tempfile::TempDir;

use crate::program::{self, SMALL, gradmem, refuses, succeeds};

const STEPS: usize = 160;

fn command(run: &Path, steps: usize) -> Vec<String> {
    let overrides = "data.pairs=2 data.queries_per_context=2 data.valid_samples=20 \
        train.eval_every=20 train.log_every=7 train.warmup_steps=30 train.stop_value=2 \
        memory.random_write_steps=[1,3] memory.learned_lr=[\"step\",\"vector\"] memory.momentum=0.5 \
        memory.inner_loss_weight=0.5 memory.inner_loss_steps=100 train.label_smoothing=0.1 memory.write_lr=auto train.lr_decay=constant train.beta2=0.99 train.ema_decay=0.9 \
        train.keep_checkpoints=2";
    let mut args: Vec<String> = ["train", "kv-quick", "--run"].map(String::from).into();
    args.push(run.display().to_string());
    args.push(format!("train.steps={steps}"));
    args.extend(SMALL.split_whitespace().map(String::from));
    args.extend(overrides.split_whitespace().map(String::from));
    // An easier version of the task comes first, up to the first evaluation.
    args.push(r#"train.curriculum=["pairs=1 queries_per_context=1"]"#.into());
    args.push("train.curriculum_value=0".into());
    args
}

fn start(run: &Path, steps: usize, errors: Stdio) -> Child {
    Command::new(program::PATH)
        .args(command(run, steps))
        .stdout(Stdio::piped())
        .stderr(errors)
        .spawn()
        .unwrap()
}

fn send(signal: &str, to: &Child) {
    let id = to.id().to_string();
    let sent = Command::new("kill").args([signal, &id]).status();
    assert!(sent.unwrap().success(), "{signal}");
}

/// A run that stands still behind step 60, with at least 20 steps left: what is sent to it comes before its end. On a busy machine it may
/// have gone too far, which is another try.
fn held(name: &Path, errors: fn() -> Stdio) -> (PathBuf, Child) {
    for n in 0..9 {
        let run = name.with_added_extension(n.to_string());
        let mut child = start(&run, STEPS, errors());
        wait_for(&run, 60);
        send("-STOP", &child);
        if child.try_wait().unwrap().is_none() && !has_evaluated(&run, STEPS - 20) {
            return (run, child);
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
    panic!("all ended too early");
}

/// Runs to the end, and says what was printed and the exit status.
fn finish(child: Child) -> (String, Option<i32>) {
    let output = child.wait_with_output().unwrap();
    (
        String::from_utf8_lossy(&output.stdout).into(),
        output.status.code(),
    )
}

fn run(path: &Path, steps: usize) {
    assert_eq!(finish(start(path, steps, Stdio::inherit())).1, Some(0));
}

fn read(path: &Path, name: &str) -> Vec<u8> {
    std::fs::read(path.join(name)).unwrap()
}

/// Waits until the run has logged its evaluation at `step`.
fn wait_for(run: &Path, step: usize) {
    let deadline = Instant::now() + Duration::from_secs(120);
    while !has_evaluated(run, step) {
        assert!(
            Instant::now() < deadline,
            "step {step} was never reached:\n{}",
            std::fs::read_to_string(run.join("metrics.jsonl")).unwrap_or_default()
        );
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn has_evaluated(run: &Path, step: usize) -> bool {
    let log = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap_or_default();
    let [valid, at] = ["\"split\":\"valid\",".into(), format!("\"step\":{step},")];
    log.lines()
        .any(|line| line.contains(&valid) && line.contains(&at))
}

fn assert_same_run(what: &str, a: &Path, b: &Path) {
    let lines = |run| String::from_utf8(read(run, "metrics.jsonl")).unwrap();
    let (whole, other) = (lines(a), lines(b));
    for (whole, other) in whole.lines().zip(other.lines()) {
        assert_eq!(whole, other, "{what}");
    }
    assert_eq!(whole.len(), other.len(), "{what}");
    for file in [
        "best.safetensors",
        "last.safetensors",
        &format!("optimizer-{STEPS}.bin"),
    ] {
        assert!(read(a, file) == read(b, file), "{what}: {file}");
    }
    let kept = |run: &Path| {
        let entries = std::fs::read_dir(run.join("checkpoints")).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.collect();
        names.sort();
        names
    };
    assert_eq!(
        [kept(a), kept(b)],
        [["140", "160"], ["140", "160"]],
        "{what}"
    );
    for file in [
        "metrics.jsonl",
        "best.safetensors",
        "last.safetensors",
        "optimizer-140.bin",
        "average-140.safetensors",
    ] {
        let earlier = |run: &Path| read(&run.join("checkpoints/140"), file);
        assert!(earlier(a) == earlier(b), "{what}: {file}");
    }
}

#[test]
fn a_run_repeated_killed_or_interrupted_ends_the_same() {
    program::assert_sigint_arrives();
    let folder = TempDir::new().unwrap();
    let path = |name: &str| folder.path().join(name);
    let whole = path("whole");
    run(&whole, STEPS);

    run(&path("again"), STEPS);
    assert_same_run("again", &whole, &path("again"));

    // A kept checkpoint is a run of its own, which goes on to the same end.
    let kept = path("kept");
    std::fs::rename(path("again").join("checkpoints/140"), &kept).unwrap();
    run(&kept, STEPS);
    assert!(read(&kept, "last.safetensors") == read(&whole, "last.safetensors"));
    assert_eq!(read(&kept, "metrics.jsonl"), read(&whole, "metrics.jsonl"));

    // What is kept is not touched again: what was done with it stays.
    let used = path("again").join("checkpoints/160/eval.json");
    std::fs::write(&used, "{}").unwrap();
    run(&path("again"), STEPS);
    assert!(used.is_file());

    // Killed three times, wherever it happens to be.
    let killed = path("killed");
    for step in [20, 60, 120] {
        let mut child = start(&killed, STEPS, Stdio::inherit());
        wait_for(&killed, step);
        std::thread::sleep(Duration::from_millis(step as u64 / 10));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    run(&killed, STEPS);
    assert_same_run("killed", &whole, &killed);

    // Ctrl-C: it saves where it is, between two checkpoints, and says how to go on.
    let (stopped, child) = held(&path("stopped"), Stdio::inherit);
    send("-INT", &child);
    send("-CONT", &child);
    let (printed, status) = finish(child);
    assert_eq!(status, Some(130));
    assert!(
        printed.contains("the same command goes on from there"),
        "{printed}"
    );
    run(&stopped, STEPS);
    assert_same_run("interrupted", &whole, &stopped);

    // The same where nobody reads any more what it prints, as behind `2>&1 | tee` after Ctrl-C.
    for (signal, again) in [
        ("-INT", None),
        ("-TERM", None),
        ("-HUP", None),
        ("-USR1", None),
        // A launcher may send more than one.
        ("-TERM", Some("-HUP")),
    ] {
        let (unread, mut child) = held(&path(&format!("unread{signal}{again:?}")), Stdio::piped);
        drop((child.stdout.take(), child.stderr.take()));
        send(signal, &child);
        again.inspect(|again| send(again, &child));
        send("-CONT", &child);
        assert_eq!(child.wait().unwrap().code(), Some(130), "{signal}");
        let saved = read(&unread, "metrics.jsonl").len();
        assert!(
            saved < read(&whole, "metrics.jsonl").len(),
            "{signal}: it ran to its end"
        );
        run(&unread, STEPS);
        assert_same_run(signal, &whole, &unread);
    }

    // A program that was started with SIGHUP ignored, as by nohup, goes on.
    let kept = path("nohup");
    let child = Command::new("sh")
        .args(["-c", r#"trap "" HUP; exec "$0" "$@""#, program::PATH])
        .args(command(&kept, STEPS))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait_for(&kept, 60);
    send("-HUP", &child);
    let (_, status) = finish(child);
    assert_eq!(status, Some(0));
    assert_same_run("nohup", &whole, &kept);

    // By the clock.
    let timed = path("timed");
    let mut args = command(&timed, STEPS);
    args.extend(["--until", "0.0002"].map(String::from));
    let mut ended = Command::new(program::PATH);
    let ended = ended.args(&args).stdout(Stdio::piped()).spawn().unwrap();
    let (printed, status) = finish(ended);
    assert_eq!(status, Some(130), "{printed}");
    assert!(
        printed.contains("The time is over. Saved at step"),
        "{printed}"
    );
    run(&timed, STEPS);
    assert_same_run("timed", &whole, &timed);

    // Shorter at first, then longer.
    run(&path("longer"), 100);
    run(&path("longer"), STEPS);
    let [a, b] =
        [&whole, &path("longer")].map(|run| Tensors::open(run.join("last.safetensors")).unwrap());
    for name in a.names() {
        assert_eq!(a.get(name).unwrap(), b.get(name).unwrap(), "{name}");
    }
}

/// The precision is a setting of the run, whatever was said before it goes on.
#[test]
fn a_run_in_bf16_goes_on_in_bf16() {
    let folder = TempDir::new().unwrap();
    let train = |name: &'static str, more: &[&str]| {
        gradmem(&folder, &[&program::tiny(name)[..], more].concat())
    };
    succeeds(train("f32", &[]));
    succeeds(train("whole", &["--precision", "bf16"]));
    succeeds(train("parts", &["train.precision=bf16", "train.steps=3"]));
    succeeds(train("parts", &["--precision", "bf16"]));
    let last = |name: &str| read(&folder.path().join(name), "last.safetensors");
    assert!(last("whole") == last("parts") && last("whole") != last("f32"));
    let other = train("parts", &["train.steps=9"]);
    refuses(other, &["train.precision = \"bf16\"", "not \"f32\""]);
}

#[test]
fn another_seed_is_another_run() {
    let folder = TempDir::new().unwrap();
    let [a, b] = ["a", "b"].map(|name| folder.path().join(name));
    run(&a, 7);
    let mut args = command(&b, 7);
    args.push("train.seed=7".into());
    let status = Command::new(program::PATH)
        .args(args)
        .stdout(Stdio::null())
        .status();
    assert!(status.unwrap().success());
    assert_ne!(read(&a, "metrics.jsonl"), read(&b, "metrics.jsonl"));
}

/// A full disk, played by a limit on the size of files: the checkpoint that does not fit is an error,
/// and the one before it stays whole.
#[test]
fn without_room_for_a_checkpoint_the_last_one_stays() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("run");
    run(&path, 20);
    let before = read(&path, "last.safetensors");
    // The unit is 512 or 1024 bytes, by the shell.
    let blocks = before.len() / 4096;
    let script = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" \"$@\"");
    let output = Command::new("sh")
        .args(["-c", &script, program::PATH])
        .args(command(&path, STEPS))
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("cannot write"), "{error}");
    assert_eq!(error.lines().count(), 1, "{error}");
    assert_eq!(read(&path, "last.safetensors"), before);
    let leftovers = std::fs::read_dir(&path).unwrap().filter(|entry| {
        let name = entry.as_ref().unwrap().file_name();
        name.to_string_lossy().ends_with(".tmp")
    });
    assert_eq!(leftovers.count(), 0, "a temporary file was left behind");
    run(&path, STEPS);
    let whole = folder.path().join("whole");
    run(&whole, STEPS);
    assert_eq!(
        read(&path, "best.safetensors"),
        read(&whole, "best.safetensors")
    );
}

/// A message that cannot be written is lost; the work and the exit status are not.
#[test]
#[cfg(target_os = "linux")]
fn full_streams_cost_neither_work_nor_the_exit_status() {
    let full = || {
        std::fs::File::options()
            .write(true)
            .open("/dev/full")
            .unwrap()
    };
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("run");
    let mut training = Command::new(program::PATH);
    training
        .args(command(&path, 20))
        .stdout(full())
        .stderr(full());
    assert_eq!(training.status().unwrap().code(), Some(0));
    assert!(path.join("best.safetensors").is_file());
    for (args, status) in [
        (&["generate", "--model", "nowhere", "x"][..], 2),
        (&["train", "no-such-preset"], 2),
        (&["no-such-command"], 2),
        (&["preset", "kv-quick"], 1),
        (&["--help"], 1),
        (&["train", "--help"], 1),
        (&["--version"], 1),
    ] {
        let mut program = Command::new(program::PATH);
        program.args(args).stdout(full()).stderr(full());
        assert_eq!(program.status().unwrap().code(), Some(status), "{args:?}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_step_that_cannot_fit_is_refused_before_it_is_killed() {
    let folder = TempDir::new().unwrap();
    let run = |more: &str| {
        let script = "ulimit -v 1500000; exec \"$0\" train kv-quick train.steps=1 train.meta_gradient=replay $1";
        let mut command = Command::new("sh");
        command.args(["-c", script, program::PATH, more]);
        command.current_dir(&folder).output().unwrap()
    };
    let refused = run("train.batch_size=100000");
    program::refuses(&refused, &["MiB are free", "--micro-batch"]);
    assert!(!folder.path().join("runs").exists());
}

/// A signal ends an evaluation, of which nothing is kept: also one of the curriculum's next version, right behind another.
#[test]
fn an_evaluation_that_is_interrupted_is_done_again() {
    let folder = TempDir::new().unwrap();
    let path = |name: &str| folder.path().join(name);
    let args = |run: &Path| {
        let mut args = command(run, 40);
        args.extend(["data.valid_samples=3000", "train.log_every=20"].map(String::from));
        args
    };
    let whole = path("whole");
    succeeds(
        Command::new(program::PATH)
            .args(args(&whole))
            .output()
            .unwrap(),
    );
    let lines = |run: &Path| String::from_utf8(read(run, "metrics.jsonl")).unwrap();
    let evaluations = |run: &Path| lines(run).matches("\"split\":\"valid\"").count();
    for before in [0, 1] {
        let run = path(&format!("after{before}"));
        let mut child = Command::new(program::PATH)
            .args(args(&run))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let deadline = Instant::now() + Duration::from_secs(120);
        let logged = || std::fs::read_to_string(run.join("metrics.jsonl")).unwrap_or_default();
        while !logged().contains("\"step\":20,") || evaluations(&run) < before {
            assert!(Instant::now() < deadline && child.try_wait().unwrap().is_none());
            std::thread::sleep(Duration::from_millis(2));
        }
        let id = child.id().to_string();
        succeeds(Command::new("kill").args(["-TERM", &id]).output().unwrap());
        assert_eq!(child.wait().unwrap().code(), Some(130));
        assert_eq!(evaluations(&run), before, "the evaluation went on");
        succeeds(
            Command::new(program::PATH)
                .args(args(&run))
                .output()
                .unwrap(),
        );
        assert_eq!(lines(&run), lines(&whole));
        for file in ["best.safetensors", "last.safetensors"] {
            assert!(read(&run, file) == read(&whole, file), "{before}: {file}");
        }
    }
}

/// What was the best by one measure is not the best by another.
#[test]
fn the_best_by_another_stop_metric_is_found_anew() {
    let folder = TempDir::new().unwrap();
    let train = |more: &[&str]| {
        let args = [&program::tiny("run")[..], &["train.patience=9"], more].concat();
        succeeds(gradmem(folder.path(), &args))
    };
    train(&[]);
    let best = || read(&folder.path().join("run"), "best.safetensors");
    let by_match = best();
    train(&[
        "train.steps=12",
        "train.stop_metric=read_loss",
        "train.stop_value=0.1",
    ]);
    assert!(best() != by_match);
    let printed = train(&["train.steps=12", "train.stop_metric=read_loss"]);
    let (_, value) = printed.split_once("its best read loss is ").unwrap();
    let value: f64 = value.split_whitespace().next().unwrap().parse().unwrap();
    assert!(value > 1.0, "{printed}");
}

#[test]
fn best_weights_that_are_lost_are_written_again() {
    let folder = TempDir::new().unwrap();
    let best = folder.path().join("run/best.safetensors");
    let train = |steps: &str| {
        let args = [&program::tiny("run")[..], &[steps]].concat();
        gradmem(folder.path(), &args)
    };
    succeeds(train("train.steps=3"));
    std::fs::remove_file(&best).unwrap();
    for steps in ["train.steps=6", "train.steps=9"] {
        let output = train(steps);
        let told = program::text(&output.stderr);
        let words = "best.safetensors: the best weights, of step";
        assert!(told.contains(words), "{told}");
        succeeds(output);
        Tensors::open(&best).unwrap();
        std::fs::write(&best, "nonsense").unwrap();
    }
    // At the end of a run too, where no evaluation follows: the last is repeated, once.
    assert!(!succeeds(train("train.steps=9")).contains("nothing left to do"));
    Tensors::open(&best).unwrap();
    let log = String::from_utf8(read(&folder.path().join("run"), "metrics.jsonl")).unwrap();
    let is_last = |line: &&str| line.contains(r#""step":9,"#) && line.contains("valid");
    assert_eq!(log.lines().filter(is_last).count(), 1, "{log}");
    assert!(succeeds(train("train.steps=9")).contains("nothing left to do"));
}

/// What is printed is what is logged, of the steps before an interruption too.
#[test]
fn lines_go_on_where_they_stopped() {
    let folder = TempDir::new().unwrap();
    let train = |steps: &str| {
        let args = [&program::tiny("run")[..], &["--plain", steps]].concat();
        succeeds(gradmem(folder.path(), &args))
    };
    // The next line is due after step 4.
    train("train.steps=3");
    let printed = train("train.steps=6");
    let log = String::from_utf8(read(&folder.path().join("run"), "metrics.jsonl")).unwrap();
    let lines = log.lines().map(|line| serde_json::from_str(line).unwrap());
    let lines: Vec<serde_json::Value> = lines.collect();
    for (split, step) in [("train", 4), ("train", 6), ("valid", 6)] {
        let is_it = |line: &&serde_json::Value| line["split"] == split && line["step"] == step;
        let logged = lines.iter().find(is_it).unwrap()["read_loss"].as_f64();
        let start = format!("{split} {step}/6");
        let line = printed
            .lines()
            .find(|line| line.starts_with(&start))
            .unwrap();
        let read = format!("READ {:.3}", logged.unwrap());
        assert!(line.contains(&read), "{line}: {read}");
    }
}

#[test]
fn a_training_says_that_its_patience_ended_it() {
    let folder = TempDir::new().unwrap();
    let more = ["train.patience=1", "train.lr=1e-9", "train.steps=12"];
    let printed = succeeds(gradmem(
        folder.path(),
        &[&program::tiny("run")[..], &more].concat(),
    ));
    assert!(
        printed.contains("step 6 after") && printed.contains("train.patience"),
        "{printed}"
    );
}

#[test]
fn checkpoints_leave_the_files_of_others() {
    let folder = TempDir::new().unwrap();
    let train = |steps: &str| {
        let more = ["train.keep_checkpoints=1", "train.ema_decay=0.9", steps];
        succeeds(gradmem(
            folder.path(),
            &[&program::tiny("run")[..], &more].concat(),
        ))
    };
    train("train.steps=3");
    let path = |name: &str| folder.path().join("run").join(name);
    std::fs::create_dir(path("checkpoints/.mine")).unwrap();
    let theirs = [
        "optimizer-notes.md",
        "average-loss.png",
        "checkpoints/.mine/file",
    ]
    .map(path);
    for file in &theirs {
        std::fs::write(file, "theirs").unwrap();
    }
    std::fs::create_dir(path("checkpoints/.2")).unwrap();
    train("train.steps=6");
    assert!(theirs.iter().all(|file| file.exists()));
    for ours in [
        "optimizer-3.bin",
        "average-3.safetensors",
        "checkpoints/.2",
        "checkpoints/3",
    ] {
        assert!(!path(ours).exists(), "{ours}");
    }
}

#[test]
fn a_run_that_lost_its_last_checkpoint_does_not_begin_again() {
    let folder = TempDir::new().unwrap();
    succeeds(gradmem(folder.path(), &program::tiny("run")));
    let run = folder.path().join("run");
    std::fs::remove_file(run.join("last.safetensors")).unwrap();
    let before = [read(&run, "metrics.jsonl"), read(&run, "best.safetensors")];
    let output = gradmem(folder.path(), &program::tiny("run"));
    refuses(output, &["last.safetensors: is missing", "step 6"]);
    let after = [read(&run, "metrics.jsonl"), read(&run, "best.safetensors")];
    assert!(before == after);
}
