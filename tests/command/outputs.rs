//! What is replaced and what is not: outputs of the command over files that are something else.

use std::path::Path;

use tempfile::TempDir;

use crate::program::{PATH, gradmem, refuses, succeeds, tiny};

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

    // One that is read-only is not, and nothing beside it is.
    succeeds(gradmem(at, &["report", "run", "-o", "fixed.html"]));
    let mut rights = at.join("fixed.md").metadata().unwrap().permissions();
    rights.set_readonly(true);
    std::fs::set_permissions(at.join("fixed.md"), rights).unwrap();
    std::fs::remove_file(at.join("fixed.html")).unwrap();
    let fixed = ["report", "run", "-o", "fixed.html"];
    keeps(at, "fixed.md", &fixed, "fixed.md: is read-only");
    assert!(!at.join("fixed.html").exists());

    // Figures too; a PNG is what the SVG beside it is.
    let figures = ["report", "run", "-o", "page.html", "--figures", "figures"];
    std::fs::create_dir(at.join("figures")).unwrap();
    let [svg, png] = ["svg", "png"].map(|ending| format!("figures/learning-curves.{ending}"));
    std::fs::write(at.join(&svg), "<svg>mine</svg>").unwrap();
    keeps(at, &svg, &figures, "is no figure of a report");
    std::fs::remove_file(at.join(&svg)).unwrap();
    for _ in 0..2 {
        succeeds(gradmem(at, &figures));
    }
    // Without fonts there is none.
    if at.join(&png).exists() {
        std::fs::remove_file(at.join(&svg)).unwrap();
        keeps(at, &png, &figures, "is no figure of a report");
    }

    // All is checked before anything is written.
    for (csv, page) in [
        ("s.html", "s.html"),
        ("./s.html", "s.html"),
        ("s.md", "s.html"),
    ] {
        let same = ["report", "run", "--csv", csv, "-o", page];
        refuses(
            gradmem(at, &same),
            &["--csv and -o name the same file", csv],
        );
    }
    let own = ["report", "run", "--csv", "s.csv", "-o", "notes.html"];
    keeps(at, "notes.md", &own, "is no report");
    let own = ["report", "run", "--csv", "notes.md", "-o", "s.html"];
    keeps(at, "notes.md", &own, "notes.md: is there already");
    for name in ["s.html", "s.md", "s.csv"] {
        assert!(!at.join(name).exists(), "{name}");
    }

    // A file in the place of a folder.
    for (args, option) in [
        (&tiny("notes.md")[..], "--run"),
        (&["report", "run", "--figures", "notes.md"], "--figures"),
        (&["export", "run", "-o", "notes.md"], "-o"),
    ] {
        let words = format!("notes.md: is a file, not a folder: name another with {option}");
        keeps(at, "notes.md", args, &words);
    }

    std::fs::create_dir(at.join("model")).unwrap();
    succeeds(gradmem(at, &["export", "run", "-o", "model"]));
    let again = ["export", "run", "-o", "model"];
    keeps(at, "model/config.json", &again, "is not empty");
}

#[test]
fn a_training_leaves_what_is_not_of_its_run() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    std::fs::create_dir(at.join("run")).unwrap();
    let theirs = [".notes.tmp", ".app-state.tmp", ".mine.jsonaB3dE6.tmp"];
    let ours = [".config.tomlaB3dE6.tmp", ".optimizer-3.binaB3dE6.tmp"];
    let path = |name: &str| at.join("run").join(name);
    for name in theirs.iter().chain(&ours) {
        std::fs::write(path(name), "").unwrap();
    }
    succeeds(gradmem(at, &tiny("run")));
    assert!(theirs.iter().all(|name| path(name).exists()));
    assert!(!ours.iter().any(|name| path(name).exists()));

    // A tokenizer alone is nothing that a run leaves.
    std::fs::create_dir(at.join("next")).unwrap();
    std::fs::write(at.join("next/tokenizer.json"), "{}").unwrap();
    let words = "neither empty nor a run folder";
    keeps(at, "next/tokenizer.json", &tiny("next"), words);
    assert!(!at.join("next/.lock").exists());
    std::fs::write(at.join("next/data.sha256"), "").unwrap();
    succeeds(gradmem(at, &tiny("next")));
}

/// A full disk, played by a limit on the size of files that rises until all have room.
#[cfg(unix)]
#[test]
fn an_export_that_fails_leaves_what_was_there_and_can_be_repeated() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    let mut settings = tiny("run");
    let sizes = "method=in-context data.alphabet=512 model.vocab_size=520 model.hidden_size=2 \
        model.intermediate_size=2";
    settings.extend(sizes.split_whitespace());
    succeeds(gradmem(at, &settings));
    let export = |output: &str, blocks: usize| {
        let script = format!("ulimit -f {blocks}; exec \"$0\" \"$@\"");
        let mut command = std::process::Command::new("sh");
        command.args(["-c", &script, PATH, "export", "run", "-o", output]);
        command.current_dir(at).output().unwrap()
    };
    std::fs::create_dir(at.join("empty")).unwrap();
    let mut failed = 0;
    // The unit is 512 or 1024 bytes, by the shell.
    for blocks in (0..).step_by(2) {
        let output = export("small/ck", blocks);
        if output.status.success() {
            break;
        }
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{error}");
        assert!(error.contains("cannot write"), "{error}");
        assert!(!at.join("small").exists(), "{blocks}");
        assert!(!export("empty", blocks).status.success());
        assert_eq!(std::fs::read_dir(at.join("empty")).unwrap().count(), 0);
        failed += 1;
    }
    assert!(failed > 1);
    // There was room for the weights before there was room for the tokenizer.
    let size = |name: &str| at.join("small/ck").join(name).metadata().unwrap().len();
    let [weights, tokenizer] = ["model.safetensors", "tokenizer.json"].map(size);
    assert!(tokenizer > weights + 2048, "{tokenizer} {weights}");
    let refused = gradmem(at, &["export", "run", "-o", "small/ck"]);
    refuses(refused, &["is not empty"]);
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
    let write = ["write", "--model", "run", "a.txt", "-o", "-"];
    refuses(gradmem(at, &write), &["standard output", "./-"]);
    assert!(!at.join("-").exists());

    // Where a link leads is looked at before the work, and so is a name that no file can have.
    std::os::unix::fs::symlink("no/where", at.join("link")).unwrap();
    for (output, words) in [
        ("link", "link: leads to no/where: its folder does not exist"),
        ("new/", "new/: is the name of a folder"),
        ("new/.", "is the name of a folder"),
    ] {
        let write = ["write", "--model", "run", "a.txt", "-o", output];
        refuses(gradmem(at, &write), &[words]);
    }
    let answers = ["eval", "run", "--answers", "link"];
    refuses(gradmem(at, &answers), &["link: is there already"]);
    std::fs::create_dir(at.join("no")).unwrap();
    let write = ["write", "--model", "run", "a.txt", "-o", "link"];
    succeeds(gradmem(at, &write));
    assert!(at.join("no/where").is_file() && at.join("link").is_symlink());
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

#[cfg(unix)]
#[test]
fn names_of_files_are_printed_in_one_line() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    let trained = succeeds(gradmem(at, &tiny("a\nrun")));
    assert!(trained.contains(r"run in a\nrun"), "{trained}");
    std::fs::remove_file(at.join("a\nrun/best.safetensors")).unwrap();
    let evaluated = gradmem(at, &["eval", "a\nrun"]);
    let table = succeeds(&evaluated);
    assert!(table.contains(r"held-out contexts of a\nrun "), "{table}");
    let warned = String::from_utf8_lossy(&evaluated.stderr);
    let line = r"gradmem: warn: a\nrun: has no best weights, so these are its latest";
    assert_eq!(warned.trim_end(), line);
    std::fs::write(at.join("a.txt"), "!a:1!|").unwrap();
    let write = ["write", "--model", "a\nrun", "a.txt", "-o", "a\nmemory"];
    let written = succeeds(gradmem(at, &write));
    assert!(written.starts_with(r"a\nmemory: 1 memory"), "{written}");
    let exported = succeeds(gradmem(at, &["export", "a\nrun", "-o", "a\nmodel"]));
    assert!(exported.starts_with(r"a\nmodel: gradmem"), "{exported}");
}

#[cfg(unix)]
#[test]
fn devices_are_not_read_as_files_of_a_run() {
    use std::os::unix::fs::symlink;

    let folder = TempDir::new().unwrap();
    let at = folder.path();
    succeeds(gradmem(at, &tiny("run")));
    symlink("/dev/null", at.join("run/eval.json")).unwrap();
    let evaluated = gradmem(at, &["eval", "run"]);
    succeeds(&evaluated);
    let warned = String::from_utf8_lossy(&evaluated.stderr);
    let words = "run/eval.json: is not a regular file";
    assert!(warned.contains(words), "{warned}");
    refuses(gradmem(at, &["report", "run"]), &[words]);
    symlink("/dev/null", at.join("device.toml")).unwrap();
    let words = "device.toml: is not a regular file";
    refuses(gradmem(at, &["train", "device.toml"]), &[words]);
}
