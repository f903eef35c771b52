//! What is replaced and what is not: outputs of the command over files that are something else.

use std::path::Path;

use tempfile::TempDir;

use crate::program::{gradmem, refuses, succeeds, tiny};

/// Fails with exit status 2 and these words, and leaves the file as it was.
fn keeps(at: &Path, file: &str, args: &[&str], words: &str) {
    let before = std::fs::read(at.join(file)).unwrap();
    refuses(gradmem(at, args), &[words]);
    assert_eq!(std::fs::read(at.join(file)).unwrap(), before, "{args:?}");
}

#[test]
fn files_of_another_kind_are_not_replaced() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    succeeds(gradmem(at, &tiny("run")));
    std::fs::write(at.join("a.txt"), "!a:1!|").unwrap();
    std::fs::write(at.join("b.txt"), "!b:2!|").unwrap();
    let write = |output| ["write", "--model", "run", "b.txt", "-o", output];
    keeps(at, "b.txt", &write("b.txt"), "is the text b.txt");
    keeps(at, "a.txt", &write("a.txt"), "is no memory file");
    let best = "run/best.safetensors";
    keeps(at, best, &write(best), "is no memory file");
    // A memory file is replaced, and so is an empty one.
    std::fs::write(at.join("empty"), "").unwrap();
    for output in ["empty", "new", "new"] {
        succeeds(gradmem(at, &write(output)));
    }

    std::fs::write(at.join("notes.md"), "# Mine").unwrap();
    let report = ["report", "run", "-o", "notes.html"];
    keeps(at, "notes.md", &report, "is no report");
    for _ in 0..2 {
        succeeds(gradmem(at, &["report", "run", "-o", "page.html"]));
    }
    let both = ["report", "run", "--csv", "-", "-o", "other.html"];
    keeps(at, "page.html", &both, "makes no page");
    assert!(!at.join("other.html").exists());

    std::fs::create_dir(at.join("model")).unwrap();
    succeeds(gradmem(at, &["export", "run", "-o", "model"]));
    let again = ["export", "run", "-o", "model"];
    keeps(at, "model/config.json", &again, "is not empty");
}

#[cfg(unix)]
#[test]
fn pipes_and_devices_are_not_replaced() {
    use std::os::unix::fs::FileTypeExt as _;

    let folder = TempDir::new().unwrap();
    let at = folder.path();
    succeeds(gradmem(at, &tiny("run")));
    std::fs::write(at.join("a.txt"), "!a:1!|").unwrap();
    let pipe = at.join("pipe");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status();
    assert!(made.unwrap().success());
    let write = ["write", "--model", "run", "a.txt", "-o", "pipe"];
    refuses(gradmem(at, &write), &["is a device or a pipe"]);
    assert!(pipe.metadata().unwrap().file_type().is_fifo());
}

#[test]
fn names_from_a_file_do_not_command_the_terminal() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    succeeds(gradmem(at, &tiny("run")));
    std::fs::write(at.join("a.txt"), "!a:1!|").unwrap();
    let name = "red\u{1b}[31m\nand more";
    let write = [
        "write", "--model", "run", "a.txt", "-o", "m", "--name", name,
    ];
    for printed in [
        succeeds(gradmem(at, &write)),
        succeeds(gradmem(at, &["inspect", "m"])),
    ] {
        assert!(!printed.contains('\u{1b}'), "{printed}");
        assert!(printed.contains(r"red\u{1b}[31m\nand more: "), "{printed}");
    }
}
