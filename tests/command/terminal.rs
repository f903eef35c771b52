//! A training on a terminal: a pseudo-terminal whose other end the test holds.
#![cfg(target_os = "linux")]

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags, open};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use tempfile::TempDir;

use crate::program::{self, SMALL};

/// Enough for the longest of these tests on a slow machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// The other end of a terminal, and what was printed on it.
struct Screen {
    /// None once it is closed.
    keys: Option<File>,
    printed: Arc<Mutex<Vec<u8>>>,
}

impl Screen {
    /// A terminal, opened `N` times for a program's streams.
    fn open<const N: usize>() -> (Self, [File; N]) {
        let main = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&main).unwrap();
        unlockpt(&main).unwrap();
        let name = ptsname(&main, Vec::new()).unwrap();
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let ends = [(); N].map(|()| File::from(open(&name, flags, Mode::empty()).unwrap()));
        let keys = File::from(main);
        // A window of no size shows nothing.
        rustix::termios::tcsetwinsize(
            &keys,
            rustix::termios::Winsize {
                ws_row: 40,
                ws_col: 120,
                ws_xpixel: 0,
                ws_ypixel: 0,
            },
        )
        .unwrap();
        let mut output = keys.try_clone().unwrap();
        let printed = Arc::new(Mutex::new(Vec::new()));
        let to = printed.clone();
        rustix::io::ioctl_fionbio(&output, true).unwrap();
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            // Nobody else keeps the terminal: once the test has closed it, it is closed here too.
            while Arc::strong_count(&to) > 1 {
                match output.read(&mut bytes) {
                    Ok(read) => to.lock().unwrap().extend_from_slice(&bytes[..read]),
                    Err(_) => std::thread::sleep(Duration::from_millis(5)),
                }
            }
        });
        let keys = Some(keys);
        (Self { keys, printed }, ends)
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.printed.lock().unwrap()).into()
    }

    fn wait_for(&self, words: &str) {
        let start = Instant::now();
        while !self.text().contains(words) {
            assert!(
                start.elapsed() < PATIENCE,
                "no `{words}` in: {}",
                self.text()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn press(&mut self, keys: &[u8]) {
        self.keys.as_mut().unwrap().write_all(keys).unwrap();
    }
}

/// A training that lasts until it is stopped. With `controlling`, the terminal is that of the program's session, as in a
/// window.
fn train(run: &Path, more: &[&str], controlling: bool, [a, b, c]: [Stdio; 3]) -> Child {
    let settings = "data.pairs=2 data.queries_per_context=1 data.valid_samples=20 train.steps=1000000 \
        train.eval_every=20 train.log_every=5 train.warmup_steps=2 train.stop_value=2";
    let mut command = Command::new("setsid");
    command.args(controlling.then_some("--ctty"));
    command.arg(program::PATH);
    command.args(["train", "kv-quick", "--run"]).arg(run);
    command.args(SMALL.split_whitespace());
    command.args(settings.split_whitespace()).args(more);
    command.stdin(a).stdout(b).stderr(c).spawn().unwrap()
}

/// The exit status.
fn end(mut child: Child, what: &str) -> Option<i32> {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code();
        }
        if start.elapsed() > PATIENCE {
            child.kill().unwrap();
            panic!("{what}: it does not end");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn wait_for_evaluation(run: &Path) {
    let start = Instant::now();
    let path = run.join("metrics.jsonl");
    while !std::fs::read_to_string(&path).is_ok_and(|log| log.contains("\"valid\"")) {
        assert!(start.elapsed() < PATIENCE, "no evaluation");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn keys_and_signals_under_the_dashboard_end_the_training() {
    program::assert_sigint_arrives();
    let folder = TempDir::new().unwrap();
    let saved = "the same command goes on from there";
    let cases: [(&str, &[&[u8]], &str); 5] = [
        ("ctrl-c", &[b"\x03"], saved),
        // Latin-1's é, the first byte of two in UTF-8, and the beginning of a key's sequence.
        ("stray bytes", &[b"\xe9", b"\x03"], saved),
        ("half a sequence", &[b"\x1b[", b"\xc3", b"\x03"], saved),
        ("q and s", &[b"q", b"s"], saved),
        // This one leaves the last checkpoint as it is.
        (
            "q and k",
            &[b"q", b"k"],
            "killed; the last checkpoint is intact",
        ),
    ];
    for (name, keys, said) in cases {
        let run = folder.path().join(name);
        let (mut screen, ends) = Screen::open();
        let child = train(&run, &[], true, ends.map(Stdio::from));
        wait_for_evaluation(&run);
        screen.wait_for("\x1b[?1049h");
        for key in keys {
            screen.press(key);
            std::thread::sleep(Duration::from_millis(400));
        }
        assert_eq!(end(child, name), Some(130), "{name}: {}", screen.text());
        assert!(run.join("last.safetensors").exists(), "{name}");
        // It leaves the alternate screen, and says how to go on.
        screen.wait_for("\x1b[?1049l");
        screen.wait_for(said);
    }
}

#[test]
fn a_terminal_that_is_gone_ends_the_training_saved() {
    let folder = TempDir::new().unwrap();
    // At different moments: while a frame is drawn, or between two.
    let dashboards = (0..12).map(|n| (format!("dashboard {n}"), &[][..]));
    let lines = [("lines".to_string(), &["--plain"][..])];
    for (n, (name, more)) in dashboards.chain(lines).enumerate() {
        let run = folder.path().join(&name);
        let (screen, ends) = Screen::open();
        let child = train(&run, more, true, ends.map(Stdio::from));
        wait_for_evaluation(&run);
        std::thread::sleep(Duration::from_millis(17 * n as u64));
        drop(screen);
        assert_eq!(end(child, &name), Some(130), "{name}");
        assert!(run.join("last.safetensors").exists(), "{name}");
    }
}

#[test]
fn without_a_terminal_to_read_from_lines_are_printed() {
    let folder = TempDir::new().unwrap();
    let run = folder.path().join("run");
    let (screen, [out]) = Screen::open();
    let streams = [Stdio::null(), Stdio::from(out), Stdio::piped()];
    let child = train(&run, &[], false, streams);
    screen.wait_for("train       5/1000000");
    assert!(!screen.text().contains("\x1b[?1049h"), "{}", screen.text());
    let id = child.id().to_string();
    let killed = Command::new("kill").args(["-TERM", &id]).status().unwrap();
    assert!(killed.success());
    assert_eq!(end(child, "lines"), Some(130));
}
