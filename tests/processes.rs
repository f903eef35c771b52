//! Several processes on the machine's own MPI: `cargo test --features mpi --test processes`. It needs `mpirun` of Open MPI.
//!
//! Some tests start this file again, as the processes; those are the ignored ones.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use burn::backend::Autodiff;
use burn::data::dataloader::batcher::Batcher;
use burn::data::dataset::InMemDataset;
use burn::tensor::backend::Backend;
use gradmem::Error;
use gradmem::data::Batch;
use gradmem::episode::{Episode, Tokens};
use gradmem::memory::GradMemConfig;
use gradmem::model::LlamaConfig;
use gradmem::train::config::TrainConfig;
use gradmem::train::world::{Mpi, World};
use gradmem::train::{TrainOptions, Training};
use tempfile::TempDir;

type B = Autodiff<burn_flex::Flex>;

/// What a run says and how it ends.
struct Ended {
    status: ExitStatus,
    text: String,
    took: Duration,
}

/// `program` in `processes` processes, one thread each.
fn mpirun(processes: usize, program: impl AsRef<Path>, folder: &Path) -> Command {
    let mut command = Command::new("mpirun");
    command
        .args(["--allow-run-as-root", "--oversubscribe", "-n"])
        .arg(processes.to_string())
        .arg(program.as_ref())
        .env("RAYON_NUM_THREADS", "1")
        .current_dir(folder);
    command
}

fn gradmem(processes: usize, folder: &Path, args: &str) -> Command {
    let program = PathBuf::from(env!("CARGO_BIN_EXE_gradmem"));
    let mut command = match processes {
        1 => {
            let mut command = Command::new(program);
            command.env("RAYON_NUM_THREADS", "1").current_dir(folder);
            command
        }
        n => mpirun(n, program, folder),
    };
    let small = "train.batch_size=8 train.micro_batch=2 data.valid_samples=24 train.eval_every=4 train.log_every=2 \
                 train.warmup_steps=2 model.hidden_size=16 model.intermediate_size=32 model.num_hidden_layers=1 \
                 model.num_attention_heads=2 train.curriculum=[]";
    command.args(["train", "kv-quick", "--plain"]);
    command
        .args(small.split_whitespace())
        .args(args.split_whitespace());
    command
}

fn start(mut command: Command) -> (Child, Instant) {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().expect("mpirun of Open MPI is installed");
    (child, Instant::now())
}

fn end((mut child, start): (Child, Instant)) -> Ended {
    use std::io::Read;
    let (mut out, mut err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let read = std::thread::spawn(move || {
        let mut text = String::new();
        err.read_to_string(&mut text).ok();
        text
    });
    let mut text = String::new();
    out.read_to_string(&mut text).ok();
    text += &read.join().unwrap();
    let status = child.wait().unwrap();
    Ended {
        status,
        text,
        took: start.elapsed(),
    }
}

fn run(command: Command) -> Ended {
    end(start(command))
}

fn files(run: &Path) -> Vec<(String, Vec<u8>)> {
    let entries = std::fs::read_dir(run).unwrap().flatten();
    let name = |entry: &std::fs::DirEntry| entry.file_name().to_string_lossy().into_owned();
    let kept = entries.filter(|entry| !name(entry).starts_with('.'));
    let mut files: Vec<_> = kept
        .map(|entry| (name(&entry), std::fs::read(entry.path()).unwrap()))
        .collect();
    files.sort();
    files
}

fn assert_equal(a: &Path, b: &Path) {
    let (a, b) = (files(a), files(b));
    let names = |files: &[(String, Vec<u8>)]| {
        files
            .iter()
            .map(|(name, _)| name.clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(names(&a), names(&b));
    assert!(
        a.iter().any(|(name, _)| name == "last.safetensors"),
        "{:?}",
        names(&a)
    );
    for ((name, a), (_, b)) in a.iter().zip(&b) {
        assert!(a == b, "{name} differs");
    }
}

#[test]
fn the_number_of_processes_changes_no_bit() {
    for method in [
        "memory.write_steps=2 train.meta_gradient=unrolled train.ema_decay=0.9",
        "memory.write_steps=3 train.meta_gradient=replay",
        "method=rmt",
    ] {
        let folder = TempDir::new().unwrap();
        let one = |n: usize| {
            let ended = run(gradmem(
                n,
                folder.path(),
                &format!("{method} train.steps=9 --run {n}"),
            ));
            assert!(ended.status.success(), "{}", ended.text);
            folder.path().join(n.to_string())
        };
        let alone = one(1);
        assert_equal(&alone, &one(2));
        assert_equal(&alone, &one(4));
    }
}

/// The process ids of the programs that `mpirun` has started.
fn children(mpirun: &Child) -> Vec<u32> {
    let file = format!("/proc/{0}/task/{0}/children", mpirun.id());
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        let found: Vec<u32> = text
            .split_whitespace()
            .filter_map(|id| id.parse().ok())
            .collect();
        if found.len() >= 2 || Instant::now() > deadline {
            return found;
        }
        sleep(Duration::from_millis(20));
    }
}

/// Waits until a run has logged so many lines.
fn wait_for(run: &Path, lines: usize) {
    let deadline = Instant::now() + Duration::from_secs(60);
    let logged = || {
        std::fs::read_to_string(run.join("metrics.jsonl")).map_or(0, |text| text.lines().count())
    };
    while logged() < lines {
        assert!(Instant::now() < deadline, "nothing is logged");
        sleep(Duration::from_millis(20));
    }
}

fn signal(name: &str, id: u32) {
    let sent = Command::new("kill").arg(name).arg(id.to_string()).status();
    assert!(sent.unwrap().success());
}

#[test]
fn a_run_goes_on_with_another_number_of_processes() {
    let folder = TempDir::new().unwrap();
    let [whole, parts] = ["whole", "parts"].map(|name| folder.path().join(name));
    let ended = run(gradmem(1, folder.path(), "train.steps=120 --run whole"));
    assert!(ended.status.success(), "{}", ended.text);
    // mpirun passes the signal on.
    let started = start(gradmem(2, folder.path(), "train.steps=120 --run parts"));
    wait_for(&parts, 3);
    signal("-USR1", started.0.id());
    let ended = end(started);
    assert!(ended.text.contains("SIGUSR1: stopping"), "{}", ended.text);
    assert_eq!(ended.text.matches("SIGUSR1: stopping").count(), 1);
    assert!(parts.join("last.safetensors").exists());
    let started = start(gradmem(1, folder.path(), "train.steps=120 --run parts"));
    let lines = std::fs::read_to_string(parts.join("metrics.jsonl"))
        .unwrap()
        .lines()
        .count();
    wait_for(&parts, lines + 3);
    signal("-USR1", started.0.id());
    end(started);
    assert!(files(&whole) != files(&parts));
    let ended = run(gradmem(4, folder.path(), "train.steps=120 --run parts"));
    assert!(ended.status.success(), "{}", ended.text);
    assert_equal(&whole, &parts);
}

#[test]
fn a_process_that_dies_ends_all() {
    let folder = TempDir::new().unwrap();
    let started = start(gradmem(2, folder.path(), "train.steps=100000 --run dies"));
    let ids = children(&started.0);
    wait_for(&folder.path().join("dies"), 4);
    signal("-KILL", ids[1]);
    let killed = Instant::now();
    let ended = end(started);
    assert!(!ended.status.success());
    assert!(
        killed.elapsed() < Duration::from_secs(30),
        "{:?}",
        killed.elapsed()
    );
    // What there is goes on.
    let ended = run(gradmem(1, folder.path(), "train.steps=12 --run dies"));
    let resumed = folder.path().join("dies").join("last.safetensors").exists();
    assert!(resumed, "{}", ended.text);
}

#[test]
fn a_process_that_is_silent_ends_all() {
    let folder = TempDir::new().unwrap();
    let started = start(gradmem(
        2,
        folder.path(),
        "train.steps=100000 --run silent --patience 3",
    ));
    let ids = children(&started.0);
    wait_for(&folder.path().join("silent"), 4);
    signal("-STOP", ids[1]);
    let ended = end(started);
    assert!(!ended.status.success());
    assert!(
        ended
            .text
            .contains("process 0 has waited for the others for 3 s"),
        "{}",
        ended.text
    );
    assert!(ended.took < Duration::from_secs(60), "{:?}", ended.took);
}

#[test]
fn processes_that_differ_are_told_so() {
    let folder = TempDir::new().unwrap();
    let program = env!("CARGO_BIN_EXE_gradmem");
    let two = |rest: &str| {
        let script = format!("exec {program} train kv-quick --plain train.steps=2 {rest}");
        let mut command = mpirun(2, "sh", folder.path());
        command.args(["-c", &script]);
        run(command)
    };
    let ended = two("--run a train.lr=0.00$((OMPI_COMM_WORLD_RANK + 1))");
    assert!(
        ended
            .text
            .contains("process 1 has settings other than process 0: lr = 0.002, not lr = 0.001"),
        "{}",
        ended.text
    );
    assert_eq!(ended.text.matches("has settings").count(), 1);
    assert_eq!(ended.status.code(), Some(2));
    assert!(!folder.path().join("a").exists());
    // What one process alone cannot read ends all at once.
    let ended = two("--run c --from nowhere");
    assert_eq!(
        ended.text.matches("is not a folder with a model").count(),
        1,
        "{}",
        ended.text
    );
    std::fs::write(folder.path().join("0.toml"), "").unwrap();
    let script =
        format!("exec {program} train $OMPI_COMM_WORLD_RANK.toml --plain train.steps=1 --run d");
    let mut command = mpirun(2, "sh", folder.path());
    command.args(["-c", &script]);
    let ended = run(command);
    assert!(
        ended.text.contains("1.toml") && ended.took < Duration::from_secs(60),
        "{}",
        ended.text
    );
    assert_eq!(ended.status.code(), Some(2));
    let ended = two("--run b train.batch_size=7");
    assert!(
        ended.text.contains("train.micro_batch") && ended.text.contains("2 processes"),
        "{}",
        ended.text
    );
    assert_eq!(ended.status.code(), Some(2));

    let line = |word: &str| {
        format!("{{\"context\": \"a {word}\", \"query\": \"b\", \"target\": \"{word}\"}}\n")
    };
    for (rank, words) in [["x", "y"], ["w", "y"]].iter().enumerate() {
        let text: String = words.iter().map(|word| line(word)).collect();
        std::fs::write(folder.path().join(format!("data-{rank}.jsonl")), text).unwrap();
    }
    std::fs::write(
        folder.path().join("mine.toml"),
        "[data]\ntask = \"jsonl\"\ntrain_file = \"data.jsonl\"\n",
    )
    .unwrap();
    let script = format!(
        "mkdir -p r$OMPI_COMM_WORLD_RANK && cd r$OMPI_COMM_WORLD_RANK && cp ../data-$OMPI_COMM_WORLD_RANK.jsonl data.jsonl && \
         exec {program} train ../mine.toml --plain train.steps=2 train.batch_size=4 data.valid_samples=1 --run run"
    );
    let mut command = mpirun(2, "sh", folder.path());
    command.args(["-c", &script]);
    let ended = run(command);
    assert!(
        ended
            .text
            .contains("process 1 has samples other than process 0"),
        "{}",
        ended.text
    );
}

#[test]
fn one_subcommand_runs_on_several() {
    let folder = TempDir::new().unwrap();
    let mut command = mpirun(2, env!("CARGO_BIN_EXE_gradmem"), folder.path());
    command.arg("preset");
    let ended = run(command);
    assert!(
        ended.text.contains("only `gradmem train` runs on several"),
        "{}",
        ended.text
    );
    assert_eq!(ended.status.code(), Some(2));
}

/// This file once more, as two processes of which the second one has a fault.
fn with_fault(fault: &str) -> (Ended, TempDir) {
    let folder = TempDir::new().unwrap();
    let mut command = mpirun(2, std::env::current_exe().unwrap(), folder.path());
    command.args(["--ignored", "--exact", "as_one_of_two", "--nocapture"]);
    command.env("FAULT", fault);
    (run(command), folder)
}

#[test]
fn the_error_of_one_is_the_error_of_all() {
    let (ended, folder) = with_fault("error");
    assert_eq!(
        ended
            .text
            .matches("process 0 ends with: sample 5 is bad")
            .count(),
        1,
        "{}",
        ended.text
    );
    assert_eq!(
        ended
            .text
            .matches("process 1 ends with: sample 5 is bad")
            .count(),
        1,
        "{}",
        ended.text
    );
    assert!(ended.took < Duration::from_secs(60), "{:?}", ended.took);
    assert!(folder.path().join("run").join("last.safetensors").exists());
    let (ended, _) = with_fault("none");
    assert_eq!(
        ended.text.matches("ends with: Steps").count(),
        2,
        "{}",
        ended.text
    );
}

#[test]
fn a_panic_in_one_ends_all() {
    let (ended, folder) = with_fault("panic");
    assert!(!ended.status.success());
    assert!(
        ended.text.contains("a panic of process 1"),
        "{}",
        ended.text
    );
    assert!(!ended.text.contains("ends with"), "{}", ended.text);
    assert!(ended.took < Duration::from_secs(60), "{:?}", ended.took);
    assert!(folder.path().join("run").join("last.safetensors").exists());
}

/// Asks for each word itself. In the second process a later batch is bad.
#[derive(Clone)]
struct Repeat(usize);

impl<B: Backend> Batcher<B, Vec<u32>, Result<Batch<B>, Error>> for Repeat {
    fn batch(&self, words: Vec<Vec<u32>>, device: &B::Device) -> Result<Batch<B>, Error> {
        if self.0 == 1 && words.iter().any(|word| word[0] == 5) {
            match std::env::var("FAULT").as_deref() {
                Ok("error") => return Err(Error::Input("sample 5 is bad".into())),
                Ok("panic") => panic!("a panic of process 1"),
                _ => {}
            }
        }
        let answers: Vec<_> = words.iter().map(|word| ([7], word)).collect();
        Ok(Episode::from_answers(Tokens::new(&words, device)?, &answers)?.into())
    }
}

#[test]
#[ignore = "one of the processes of other tests"]
fn as_one_of_two() {
    let device = Default::default();
    let world = Mpi::join(Duration::from_secs(20)).unwrap();
    let rank = world.rank();
    // The bad word stands in one of the first batches, not in the first.
    let words: Vec<_> = (0..64)
        .map(|i| vec![if i == 63 { 5 } else { i % 5 }, i % 7])
        .collect();
    let valid: Vec<_> = words[..4].to_vec();
    let settings = TrainConfig {
        steps: 16,
        batch_size: 4,
        eval_every: 1,
        seed: 3,
        ..TrainConfig::default()
    };
    let lm = LlamaConfig::new(8, 16, 1, 2)
        .init::<B>(rank as u64, &device)
        .unwrap();
    let method = GradMemConfig::new().init(lm, rank as u64, &device).unwrap();
    let options = TrainOptions {
        plain: true,
        world: Arc::new(world),
        ..TrainOptions::default()
    };
    let ended = Training::<B>::new(settings)
        .stage(
            InMemDataset::new(words),
            InMemDataset::new(valid),
            Repeat(rank),
            &device,
        )
        .run(method, "run", options);
    match ended {
        Ok((_, outcome)) => println!("process {rank} ends with: {:?}", outcome.ending),
        Err(error) => println!("process {rank} ends with: {error}"),
    }
}
