//! Text files, split into sentences, for compression and language modelling.

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::sentences::SentenceSplitter;
use super::source::BOM;
use crate::error::{Error, require};
use crate::support::counted;
use crate::support::fs::check_file;

/// The bytes after which a sentence ends before the next word: some texts mark no ends.
const LONGEST_SENTENCE: u64 = 1 << 10;

/// Size of a read in bytes.
const BLOCK: usize = 1 << 16;

/// Text files on disk and the byte offsets of their sentences.
///
/// Opening reads every file once, in blocks, and checks that it is UTF-8; after that texts are read on demand.
/// Memory: 8 bytes a sentence and about 100 a file.
#[derive(Clone, Debug)]
pub struct Corpus {
    sections: Vec<Section>,
    /// The index of each section's first sentence.
    firsts: Vec<usize>,
}

/// Consecutive sentences of one file.
#[derive(Clone, Debug)]
struct Section {
    path: PathBuf,
    /// Length of the whole file, in bytes.
    len: u64,
    /// Byte offsets of the beginnings of the sentences.
    starts: Vec<u64>,
    /// Byte offset of the end of the last one.
    end: u64,
    /// A hash of the whole file.
    print: [u8; 32],
}

impl Corpus {
    /// Opens a text file, or the `.txt` files of a folder and of its subfolders (one level), sorted by name.
    /// Links are followed, and a file that is found twice is used once.
    ///
    /// # Errors
    ///
    /// If there is no such file, or one is empty or not UTF-8 (the error names the byte).
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        let about = std::fs::metadata(path).map_err(Error::io(path, "cannot open"))?;
        let files = match about.is_dir() {
            true => text_files(path)?,
            false => vec![path.to_path_buf()],
        };
        if files.is_empty() {
            let problem = "has no .txt file, nor has a folder in it";
            return Err(Error::file(path, problem));
        }
        let sections = files.into_iter().map(Section::open);
        Ok(Self::of(sections.collect::<Result<_, _>>()?))
    }

    fn of(sections: Vec<Section>) -> Self {
        let mut next = 0;
        let firsts = sections.iter().map(|section| {
            let first = next;
            next += section.starts.len();
            first
        });
        Self {
            firsts: firsts.collect(),
            sections,
        }
    }

    /// Without the files that are in another corpus too, and how many those are; none if all are.
    pub(crate) fn without(self, other: &Self) -> (Option<Self>, usize) {
        let theirs: HashSet<PathBuf> = other.sections.iter().map(|s| real(&s.path)).collect();
        let all = self.sections.len();
        let kept = self.sections.into_iter();
        let kept: Vec<_> = kept.filter(|s| !theirs.contains(&real(&s.path))).collect();
        let left_out = all - kept.len();
        ((!kept.is_empty()).then(|| Self::of(kept)), left_out)
    }

    /// A hash of each file, in order.
    pub(super) fn prints(&self) -> impl Iterator<Item = &[u8; 32]> {
        self.sections.iter().map(|section| &section.print)
    }

    /// Number of sentences.
    pub fn sentences(&self) -> usize {
        self.sections
            .iter()
            .map(|section| section.starts.len())
            .sum()
    }

    /// The text from a sentence on, over the following sentences of its file (after a [`Corpus::split`], of its
    /// part of the file), until it has `min_bytes` or the file ends. Any white space becomes a single space.
    ///
    /// # Errors
    ///
    /// If there is no such sentence, or the file cannot be read or was changed.
    pub fn text_from(&self, sentence: usize, min_bytes: usize) -> Result<String, Error> {
        let sentences = self.sentences();
        if sentence >= sentences {
            return Err(Error::Input(format!(
                "sentence {sentence} of a corpus that has {sentences} (they count from 0)"
            )));
        }
        let at = self.firsts.partition_point(|first| *first <= sentence) - 1;
        self.sections[at].read(sentence - self.firsts[at], min_bytes)
    }

    /// Splits each file: the last `valid_share` of its sentences, rounded, are the second corpus, the others the
    /// first. No text crosses the border.
    ///
    /// # Errors
    ///
    /// If the share is not between 0 and 1, or the files are too short to hold out a sentence.
    pub fn split(self, valid_share: f64) -> Result<(Self, Self), Error> {
        let problem = "must be above 0 and below 1";
        let fits = valid_share > 0.0 && valid_share < 1.0;
        require(fits, "valid_share", valid_share, problem)?;
        let problem = format!(
            "holds out none of {} in {}: a sentence ends at `.`, `!`, `?` or an empty line; \
             use a larger share, longer texts, or valid_path",
            counted(self.sentences(), "sentence"),
            counted(self.sections.len(), "file")
        );
        let (mut train, mut valid) = (Vec::new(), Vec::new());
        for mut section in self.sections {
            let sentences = section.starts.len();
            let held_out = (sentences as f64 * valid_share).round() as usize;
            let kept = sentences - held_out.min(sentences - 1);
            let starts = section.starts.split_off(kept);
            if let Some(border) = starts.first().copied() {
                valid.push(Section {
                    path: section.path.clone(),
                    starts,
                    ..section
                });
                section.end = border;
            }
            train.push(section);
        }
        require(!valid.is_empty(), "valid_share", valid_share, problem)?;
        Ok((Self::of(train), Self::of(valid)))
    }
}

impl Section {
    /// Finds the sentences of a file.
    fn open(path: PathBuf) -> Result<Self, Error> {
        check_file(&path)?;
        let mut file = File::open(&path).map_err(Error::io(&path, "cannot open"))?;
        let mut splitter = SentenceSplitter::default();
        let mut starts = Vec::new();
        let mut gap = false;
        // Bytes that were read but not yet split; they begin at byte `at` of the file.
        let (mut bytes, mut at) = (Vec::new(), 0_u64);
        let mut print = Sha256::new();
        loop {
            let mut block = file.by_ref().take(BLOCK as u64);
            let read = block.read_to_end(&mut bytes);
            let read = read.map_err(Error::io(&path, "cannot read"))?;
            // A character that crosses the end of the block is completed by the next block.
            let valid = match std::str::from_utf8(&bytes) {
                Ok(text) => text.len(),
                Err(e) if e.error_len().is_none() && read > 0 => e.valid_up_to(),
                Err(e) => {
                    let wrong = at + e.valid_up_to() as u64;
                    return Err(Error::file(path, format!("byte {wrong}: is not UTF-8")));
                }
            };
            let text = std::str::from_utf8(&bytes[..valid]).unwrap_or_default();
            print.update(text);
            for (within, c) in text.char_indices() {
                let is_bom = at == 0 && within == 0 && c == BOM;
                let here = at + within as u64;
                let begins = !is_bom && splitter.begins(c);
                let last = starts.last().copied().unwrap_or(here);
                if begins || gap && !c.is_whitespace() && here - last >= LONGEST_SENTENCE {
                    starts.push(here);
                }
                gap = c.is_whitespace();
            }
            bytes.drain(..valid);
            at += valid as u64;
            if read == 0 {
                break;
            }
        }
        if starts.is_empty() {
            return Err(Error::file(path, "is empty: a corpus needs text"));
        }
        starts.shrink_to_fit();
        Ok(Self {
            path,
            len: at,
            starts,
            end: at,
            print: print.finalize().into(),
        })
    }

    fn read(&self, first: usize, min_bytes: usize) -> Result<String, Error> {
        let changed = || Error::file(&self.path, "was changed since it was opened");
        let failed = |e: std::io::Error| Error::io(&self.path, "cannot read")(e);
        let file = File::open(&self.path).map_err(failed)?;
        if file.metadata().map_err(failed)?.len() != self.len {
            return Err(changed());
        }
        let mut reader = BufReader::new(file);
        let mut at = self.starts[first];
        reader.seek(SeekFrom::Start(at)).map_err(failed)?;
        let (mut text, mut bytes, mut gap) = (String::new(), Vec::new(), false);
        let ends = self.starts[first + 1..].iter().chain([&self.end]);
        for end in ends {
            bytes.resize((end - at) as usize, 0);
            at = *end;
            reader.read_exact(&mut bytes).map_err(failed)?;
            for c in std::str::from_utf8(&bytes).map_err(|_| changed())?.chars() {
                if c.is_whitespace() {
                    gap = true;
                    continue;
                }
                if gap && !text.is_empty() {
                    text.push(' ');
                }
                gap = false;
                text.push(c);
            }
            if text.len() >= min_bytes {
                break;
            }
        }
        Ok(text)
    }
}

/// A file, whatever leads to it.
fn real(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.into())
}

/// The `.txt` files of a folder and of its subfolders (one level), sorted by name.
fn text_files(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut paths = entries_of(folder)?;
    let folders: Vec<PathBuf> = paths.iter().filter(|p| p.is_dir()).cloned().collect();
    for inner in folders {
        paths.extend(entries_of(&inner)?);
    }
    paths.retain(|path| {
        path.extension()
            .is_some_and(|extension| extension.eq_ignore_ascii_case("txt"))
    });
    paths.sort();
    let mut seen = HashSet::new();
    let mut found = Vec::new();
    for path in paths {
        match path.canonicalize() {
            // A file that several links lead to is one text.
            Ok(real) if real.is_file() && seen.insert(real.clone()) => found.push(path),
            Ok(_) => {}
            Err(e) => log::warn!("{}: is left out: {e}", path.display()),
        }
    }
    Ok(found)
}

/// The entries of a folder.
fn entries_of(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let entries = std::fs::read_dir(folder).map_err(Error::io(folder, "cannot list"))?;
    let paths = entries.map(|entry| entry.map(|entry| entry.path()));
    let paths: std::io::Result<_> = paths.collect();
    paths.map_err(Error::io(folder, "cannot list"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::TempDir;

    fn folder(files: &[(&str, &[u8])]) -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, bytes) in files {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
        }
        folder
    }

    #[test]
    fn texts_extend_over_the_sentences_of_their_file() {
        let folder = folder(&[
            (
                "b.txt",
                "\u{feff} Ünd  one.\nTwo is\n it. \n\nThree".as_bytes(),
            ),
            ("a/c.TXT", b"Four. Five."),
            ("a/d/e.txt", b"Too deep."),
            ("note.md", b"No text."),
        ]);
        let corpus = Corpus::open(folder.path()).unwrap();
        assert_eq!(corpus.sentences(), 5);
        for (sentence, min_bytes, text) in [
            (0, 1, "Four."),
            (0, 6, "Four. Five."),
            (1, 99, "Five."),
            (2, 0, "Ünd one."),
            (2, 9, "Ünd one."),
            (2, 10, "Ünd one. Two is it."),
            (2, 999, "Ünd one. Two is it. Three"),
            (4, 1, "Three"),
        ] {
            assert_eq!(corpus.text_from(sentence, min_bytes).unwrap(), text);
        }
        let error = corpus.text_from(5, 1).unwrap_err().to_string();
        assert!(
            error.contains("sentence 5") && error.contains("has 5"),
            "{error}"
        );
        let one = Corpus::open(folder.path().join("b.txt")).unwrap();
        assert_eq!(
            (one.sentences(), one.text_from(0, 1).unwrap()),
            (3, "Ünd one.".into())
        );
        std::fs::write(folder.path().join("b.txt"), "Now shorter.").unwrap();
        assert!(
            one.text_from(0, 1)
                .unwrap_err()
                .to_string()
                .contains("was changed")
        );
    }

    #[test]
    fn training_and_validation_text_do_not_overlap() {
        let sentences: Vec<_> = (0..10).map(|n| format!("S{n}.")).collect();
        let text = sentences.join("\n");
        let folder = folder(&[("a.txt", text.as_bytes()), ("b.txt", b"Alone.")]);
        let (train, valid) = Corpus::open(folder.path()).unwrap().split(0.2).unwrap();
        assert_eq!((train.sentences(), valid.sentences()), (9, 2));
        assert_eq!(train.text_from(6, 999).unwrap(), "S6. S7.");
        assert_eq!(train.text_from(8, 999).unwrap(), "Alone.");
        assert_eq!(valid.text_from(0, 999).unwrap(), "S8. S9.");
        for (share, word) in [(0.0, "above 0"), (1.0, "below 1"), (f64::NAN, "above 0")] {
            let error = train.clone().split(share).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
        let error = train.split(0.01).unwrap_err().to_string();
        let words = "holds out none of 9 sentences in 2 files: a sentence ends at `.`, `!`, `?`";
        assert!(error.contains(words), "{error}");
    }

    #[test]
    fn text_without_ends_is_cut_between_words() {
        let folder = folder(&[("a.txt", "one two ".repeat(1000).as_bytes())]);
        let corpus = Corpus::open(folder.path()).unwrap();
        assert_eq!(corpus.sentences(), 8000_usize.div_ceil(1024));
        assert!(corpus.text_from(3, 1).unwrap().starts_with("one two"));
    }

    #[test]
    fn characters_may_cross_blocks_and_errors_give_the_byte() {
        let mut bytes = vec![b'a'; BLOCK - 1];
        bytes.extend("é. Ende.".as_bytes());
        let files = folder(&[("a.txt", &bytes)]);
        let corpus = Corpus::open(files.path()).unwrap();
        assert_eq!(corpus.text_from(1, 1).unwrap(), "Ende.");
        assert!(corpus.text_from(0, 1).unwrap().ends_with("aé."));
        for (end, at) in [(&b"\xc3"[..], bytes.len()), (b"a\xffb", bytes.len() + 1)] {
            let files = folder(&[("a.txt", &[&bytes, end].concat())]);
            let error = Corpus::open(files.path()).unwrap_err().to_string();
            assert!(
                error.contains(&format!("byte {at}: is not UTF-8")),
                "{error}"
            );
            assert!(error.contains("a.txt"), "{error}");
        }
    }

    #[test]
    fn folders_without_text_are_refused() {
        let open = |files| Corpus::open(folder(files).path()).unwrap_err();
        assert!(open(&[]).to_string().contains("no .txt file"));
        let blank: &[(&str, &[u8])] = &[("a.txt", b"Yes."), ("b.txt", b" \n")];
        let error = open(blank);
        assert!(error.is_user_error() && error.to_string().contains("b.txt: is empty"));
        assert!(Corpus::open("no/such").unwrap_err().is_user_error());
    }

    #[cfg(unix)]
    #[test]
    fn links_are_followed_and_a_file_counts_once() {
        use std::os::unix::fs::symlink;
        let outside = folder(&[("blobs/1f2f", b"First. Second."), ("sub/s.txt", b"Third.")]);
        let inside = folder(&[("a/one.txt", b"One.")]);
        let link = |to: PathBuf, name: &str| symlink(to, inside.path().join(name)).unwrap();
        link(outside.path().join("blobs/1f2f"), "first.txt");
        link(outside.path().join("sub"), "sub");
        link(inside.path().join("a"), "again");
        link(inside.path().join("a/one.txt"), "one.txt");
        link(inside.path().join("gone"), "gone.txt");
        link(inside.path().into(), "circle");
        let corpus = Corpus::open(inside.path()).unwrap();
        assert_eq!(corpus.sentences(), 4);
        let texts: Vec<_> = (0..4).map(|at| corpus.text_from(at, 1).unwrap()).collect();
        assert_eq!(texts, ["One.", "First.", "Second.", "Third."]);
    }

    /// On a real text, if the environment names one: GRADMEM_TEXT=tinyshakespeare.txt.
    #[test]
    fn a_real_text_has_sentences() {
        let Some(path) = std::env::var_os("GRADMEM_TEXT").map(PathBuf::from) else {
            eprintln!("skipped: GRADMEM_TEXT names no file");
            return;
        };
        let corpus = Corpus::open(&path).unwrap();
        assert!(corpus.sentences() > 1, "{}", corpus.sentences());
        let whole: String = std::fs::read_to_string(&path).unwrap();
        let whole = whole.split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(corpus.text_from(0, usize::MAX).unwrap(), whole);
        let (train, valid) = corpus.split(0.1).unwrap();
        let train = train.text_from(0, usize::MAX).unwrap();
        let valid = valid.text_from(0, usize::MAX).unwrap();
        assert_eq!(format!("{train} {valid}"), whole);
    }
}
