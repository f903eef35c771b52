//! What failed once: each file by its name, and those that would be large made here.

use std::path::{Path, PathBuf};

use crate::read::{Folder, check};
use crate::{configs, datasets, runs, tokenizers, weights};

/// The files of a part of the corpus.
fn of(part: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/hostile/corpus");
    let entries = std::fs::read_dir(folder.join(part)).unwrap();
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty());
    files
}

/// Puts each file of a part in the place of one of a folder's, where it must be refused.
fn refused(part: &str, folder: &Folder, place: &str, open: impl Fn(&Path) -> bool) {
    for file in of(part) {
        let path = folder.path().join(place);
        std::fs::copy(&file, &path).unwrap();
        assert!(!open(&path), "{} is accepted", file.display());
    }
}

#[test]
fn configurations() {
    let folder = configs::folder();
    refused("config", &folder, "llama/config.json", |path| {
        check("config", || configs::open(path.parent().unwrap())).is_ok()
    });
}

#[test]
fn weights_of_models() {
    let folder = weights::folder();
    refused("weights", &folder, "whole/model.safetensors", |path| {
        check("weights", || weights::open(path.parent().unwrap())).is_ok()
    });
}

#[test]
fn settings() {
    let folder = Folder::new(&[]);
    refused("preset", &folder, "preset.toml", |path| {
        check("preset", || datasets::settings(path)).is_ok()
    });
}

#[test]
fn tokenizers_of_models() {
    let folder = tokenizers::folder();
    refused("tokenizer", &folder, "words.json", |path| {
        check("tokenizer", || tokenizers::open(path)).is_ok()
    });
}

/// A tree of a token's bytes is taken down by calls as deep, and the search for special tokens prepared in
/// the square of their length.
#[test]
fn tokens_of_100_000_bytes() {
    let folder = tokenizers::folder();
    for (name, token) in [("t5.json", "garden"), ("words.json", "[EOS]")] {
        let text = String::from_utf8(folder.valid[name].clone()).unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, text.replacen(token, &"a".repeat(100_000), 1)).unwrap();
        let error = check("a long token", || tokenizers::open(&path)).unwrap_err();
        assert!(error.to_string().contains("100000 bytes"), "{error}");
    }
}

/// A tokenizer that is made of a text merges the tokens of a word in the square of its length.
#[test]
fn a_word_of_100_000_characters() {
    let folder = Folder::new(&[]);
    let path = folder.path().join("squad.json");
    let text = datasets::SQUAD.replace("What is old?", &"a".repeat(100_000));
    std::fs::write(&path, text).unwrap();
    check("a long word", || datasets::open(&path)).unwrap();
}

/// Optimizer's files that are no record, half of one, one without numbers, and one that claims more than it
/// has, each with the hash that ties it to the weights.
#[test]
fn optimizers_that_are_none() {
    let folder = runs::folder();
    let name = "kv/optimizer-4.bin";
    let mut cut = folder.valid[name].clone();
    cut.truncate(cut.len() / 2);
    let mut claims = folder.valid[name].clone();
    let nan = [&claims[..claims.len() - 40], &[255; 40]].concat();
    // The largest number of bincode's, where a length may stand.
    let marks = claims.len() / 2..claims.len() / 2 + 9;
    claims[marks].copy_from_slice(&[253, 255, 255, 255, 255, 255, 255, 255, 127]);
    for bytes in [vec![255; 100], Vec::new(), cut, nan, claims] {
        for (name, bytes) in runs::tied(&folder, name, bytes) {
            std::fs::write(folder.path().join(name), bytes).unwrap();
        }
        let resumed = check("an optimizer", || runs::resumed(folder.path(), "kv"));
        // Numbers may be any.
        if let Err(error) = resumed {
            let known = ["is not the file this run wrote", "has an optimizer's state"];
            let error = error.to_string();
            assert!(known.iter().any(|words| error.contains(words)), "{error}");
        }
        folder.restore();
    }
}
