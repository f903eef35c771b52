//! Files that are either old or new, never half.

#[cfg(any(feature = "data", test))]
use std::io::Read as _;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::error::Error;

/// Bytes as hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A file's bytes; none if there is no such file.
#[cfg(feature = "train")]
pub(crate) fn read_if_exists(path: &Path) -> Result<Option<Vec<u8>>, Error> {
    check_regular(path)?;
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io(path, "cannot read")(e)),
    }
}

/// A file's text, without a byte-order mark.
///
/// # Errors
///
/// If it cannot be read or is not UTF-8.
pub(crate) fn read_text(path: impl AsRef<Path>) -> Result<String, Error> {
    let path = path.as_ref();
    check_regular(path)?;
    let bytes = std::fs::read(path).map_err(Error::io(path, "cannot read"))?;
    text(bytes).map_err(|problem| Error::file(path, problem))
}

/// Fails on what may have no end, such as a device, or nobody who writes to it: a pipe.
pub(crate) fn check_regular(path: &Path) -> Result<(), Error> {
    match std::fs::metadata(path) {
        Ok(about) if !about.is_file() => Err(Error::file(path, "is not a regular file")),
        _ => Ok(()),
    }
}

/// A file that holds one JSON object.
///
/// # Errors
///
/// If it cannot be read, or is something else.
pub(crate) fn read_object(path: &Path) -> Result<Map<String, Value>, Error> {
    let text = read_text(path)?;
    serde_json::from_str(&text).map_err(|e| match other_format(text.as_bytes()) {
        Some(what) => Error::file(path, format!("is {what}")),
        None => Error::file(path, format!("is not a JSON object: {e}")),
    })
}

/// Bytes of a file as text, without a byte-order mark.
///
/// # Errors
///
/// What the file is, or where it is not UTF-8.
pub fn text(bytes: Vec<u8>) -> Result<String, String> {
    if let Some(what) = no_text(&bytes) {
        return Err(format!("is {what}"));
    }
    let text = String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        format!("byte {at}: is not UTF-8")
    })?;
    Ok(match text.strip_prefix('\u{feff}') {
        Some(rest) => rest.into(),
        None => text,
    })
}

/// [`other_format`] of what is no text: a text may begin like an archive or a web page, but not like a pointer of Git LFS.
fn no_text(bytes: &[u8]) -> Option<&'static str> {
    let is_text = match std::str::from_utf8(bytes) {
        Ok(_) => true,
        Err(e) => e.error_len().is_none(),
    };
    match is_text && !bytes.starts_with(LFS) {
        true => None,
        false => other_format(bytes),
    }
}

/// What a `.gguf` file is.
pub(crate) const GGUF: &str =
    "a model of llama.cpp (GGUF), which is not read here: get the .safetensors of the original";

const LFS: &[u8] = b"version https://git-lfs";

/// What a file is by its first bytes, and what to do with it, if it is of a kind that is put in the place of others.
pub(crate) fn other_format(bytes: &[u8]) -> Option<&'static str> {
    const FIRST: &[(&[u8], &str)] = &[
        (
            LFS,
            "a pointer of Git LFS, not the file itself: run `git lfs pull` in its repository",
        ),
        (b"\x1f\x8b", "compressed by gzip: unpack it with `gunzip`"),
        (
            b"\x28\xb5\x2f\xfd",
            "compressed by zstd: unpack it with `unzstd`",
        ),
        (b"\xfd7zXZ\0", "compressed by xz: unpack it with `unxz`"),
        (b"BZh", "compressed by bzip2: unpack it with `bunzip2`"),
        (
            b"PK\x03\x04",
            "a zip archive, or a file in PyTorch's own format: unpack or convert it",
        ),
        (
            b"\xff\xfe",
            "text in UTF-16, not UTF-8: convert it with `iconv -f UTF-16 -t UTF-8`",
        ),
        (
            b"\xfe\xff",
            "text in UTF-16, not UTF-8: convert it with `iconv -f UTF-16 -t UTF-8`",
        ),
        (b"GGUF", GGUF),
        (b"PAR1", "a Parquet file: convert it to JSON lines"),
        (
            b"<!DOCTYPE html",
            "a web page, perhaps an error page of a download: get the file itself",
        ),
    ];
    let mut known = FIRST.iter().filter(|(first, _)| bytes.starts_with(first));
    known.next().map(|(_, what)| *what)
}

/// Whether there is a file of this name, or what leads to one.
///
/// # Errors
///
/// If the system does not tell: a folder above it may not be read.
#[cfg(feature = "train")]
pub(crate) fn is_file(path: &Path) -> Result<bool, Error> {
    use std::io::ErrorKind::{NotADirectory, NotFound};
    match path.metadata() {
        Ok(about) => Ok(about.is_file()),
        Err(e) if [NotFound, NotADirectory].contains(&e.kind()) => Ok(false),
        Err(e) => Err(Error::io(path, "cannot read")(e)),
    }
}

/// Fails on what can be read but once or has no end, a pipe or a device, and on a file of [another
/// format](other_format); says nothing of what is not there.
#[cfg(any(feature = "data", test))]
pub(crate) fn check_file(path: &Path) -> Result<(), Error> {
    check_regular(path)?;
    let Ok(file) = std::fs::File::open(path) else {
        return Ok(());
    };
    let mut first = Vec::new();
    file.take(64).read_to_end(&mut first).ok();
    match no_text(&first) {
        Some(what) => Err(Error::file(path, format!("is {what}"))),
        None => Ok(()),
    }
}

/// Where a link leads, also if nothing is there yet; a path that is no link is itself.
pub fn followed(path: &Path) -> PathBuf {
    let mut path = path.to_path_buf();
    // As many as Linux follows.
    for _ in 0..40 {
        let Ok(target) = std::fs::read_link(&path) else {
            break;
        };
        path = match path.parent() {
            Some(folder) => folder.join(target),
            None => target,
        };
    }
    path
}

/// Puts `bytes` at `path`, or where it leads if it is a link: written beside it, flushed to the disk, then moved into place. If anything
/// fails, what was there before stays; what a program left that was killed meanwhile goes with the next
/// writing.
///
/// A device or a pipe is not replaced: that is an error.
pub(crate) fn write_atomically(path: impl AsRef<Path>, bytes: &[u8]) -> Result<(), Error> {
    let path = &followed(path.as_ref());
    if std::fs::metadata(path).is_ok_and(|about| !about.is_file()) {
        let problem = "is a folder, a device or a pipe, and is not replaced: name a file";
        return Err(Error::file(path, problem));
    }
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let begun: String = name.chars().take(59).collect();
    let prefix = format!(".{begun}");
    let write = || -> std::io::Result<()> {
        let mut builder = tempfile::Builder::new();
        builder.prefix(&prefix).suffix(UNFINISHED);
        // A temporary file is private by default; this one becomes an ordinary file.
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            builder.permissions(std::fs::Permissions::from_mode(0o666));
        }
        // First: so that there is never more than one of them.
        remove_unfinished(folder, |name| finished(name) == Some(begun.as_str()));
        let mut file = builder.tempfile_in(folder).map_err(without_path)?;
        // Says that it is not left. Where there are no locks, nothing is removed either.
        file.as_file().try_lock().ok();
        // What is replaced keeps its rights.
        if let Ok(earlier) = std::fs::metadata(path) {
            file.as_file().set_permissions(earlier.permissions())?;
        }
        // By the file itself, whose errors do not name the temporary path.
        file.as_file_mut().write_all(bytes)?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|e| e.error)?;
        // The rename itself is durable once the folder is; not every system can say so.
        if let Ok(folder) = std::fs::File::open(folder) {
            folder.sync_all().ok();
        }
        Ok(())
    };
    let written = match write() {
        // Taken for one that was left, in the moment before it was locked.
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => write(),
        written => written,
    };
    written.map_err(Error::io(path, "cannot write"))
}

/// The system's error, without the temporary file's path around it.
fn without_path(e: std::io::Error) -> std::io::Error {
    match e.to_string().split_once(" at path ") {
        Some((what, _)) => std::io::Error::new(e.kind(), what),
        None => e,
    }
}

/// How files end that are not yet in place.
const UNFINISHED: &str = ".tmp";

/// The name, or the beginning of a long one, of the file that one of this name, without [`UNFINISHED`], was to become: with six random
/// letters or digits, as `tempfile` calls them.
pub(crate) fn finished(name: &str) -> Option<&str> {
    let name = name.strip_prefix('.')?;
    let (name, random) = name.split_at_checked(name.len().checked_sub(6)?)?;
    let is_random = random.chars().all(|c| c.is_ascii_alphanumeric());
    is_random.then_some(name)
}

/// Removes what programs that were killed left of files, by their names without [`UNFINISHED`]: nobody has it locked. Left
/// over at worst; the next writing tries again.
pub(crate) fn remove_unfinished(folder: &Path, is_ours: impl Fn(&str) -> bool) {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    for entry in entries {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.strip_suffix(UNFINISHED).is_some_and(&is_ours)
            && let Ok(file) = std::fs::File::open(entry.path())
            && file.try_lock().is_ok()
        {
            std::fs::remove_file(entry.path()).ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_left_unfinished_stays() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for name in [
            ".app-state.tmp",
            ".aAbCdEf.tmp",
            ".a1b2c3d.tmp",
            ".a12345.tmp",
        ] {
            std::fs::write(at(name), "").unwrap();
        }
        write_atomically(at("a"), b"new").unwrap();
        let left = [".app-state.tmp", ".a12345.tmp"];
        assert!(left.iter().all(|name| at(name).exists()));
        assert!(!at(".aAbCdEf.tmp").exists() && !at(".a1b2c3d.tmp").exists());
    }

    #[test]
    fn an_error_names_the_file_and_not_the_temporary_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("no").join("file.json");
        let error = write_atomically(&path, b"{}").unwrap_err().to_string();
        let start = format!("{}: cannot write: ", path.display());
        assert!(
            error.starts_with(&start) && !error.contains("at path"),
            "{error}"
        );
    }

    #[test]
    fn files_of_another_format_are_said_to_be_that() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for (bytes, words) in [
            (
                &b"version https://git-lfs.github.com/spec/v1"[..],
                "Git LFS",
            ),
            (b"\x1f\x8b\x08", "gzip"),
            (b"\xff\xfea\0", "UTF-16"),
        ] {
            std::fs::write(file.path(), bytes).unwrap();
            let error = check_file(file.path()).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
            assert_eq!(read_text(file.path()).unwrap_err().to_string(), error);
        }
        for text in ["<!DOCTYPE html><p>a page", "PAR1 of 2", "BZh"] {
            std::fs::write(file.path(), text).unwrap();
            check_file(file.path()).unwrap();
            assert_eq!(read_text(file.path()).unwrap(), text);
        }
        std::fs::write(file.path(), "\u{feff}a text").unwrap();
        check_file(file.path()).unwrap();
        assert_eq!(read_text(file.path()).unwrap(), "a text");
    }

    #[cfg(unix)]
    #[test]
    fn a_link_is_written_through() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        std::fs::create_dir(path("far")).unwrap();
        for (link, target) in [("a", "far/a"), ("b", "a"), ("c", "far/new")] {
            std::os::unix::fs::symlink(target, path(link)).unwrap();
        }
        std::fs::write(path("far/a"), "old").unwrap();
        write_atomically(path("b"), b"new").unwrap();
        write_atomically(path("c"), b"first").unwrap();
        assert_eq!(std::fs::read(path("far/a")).unwrap(), b"new");
        assert_eq!(std::fs::read(path("far/new")).unwrap(), b"first");
        for link in ["a", "b", "c"] {
            assert!(path(link).is_symlink());
        }
    }

    #[test]
    fn what_was_left_goes_and_what_is_being_written_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        for name in [
            ".a.jsonaaaaa1.tmp",
            ".a.jsonaaaaa2.tmp",
            ".b.jsonaaaaa1.tmp",
            "a.json.tmp",
        ] {
            std::fs::write(path(name), name).unwrap();
        }
        let busy = std::fs::File::open(path(".a.jsonaaaaa2.tmp")).unwrap();
        busy.try_lock().unwrap();
        write_atomically(path("a.json"), b"new").unwrap();
        let mut names: Vec<_> = std::fs::read_dir(&folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(
            names,
            [
                ".a.jsonaaaaa2.tmp",
                ".b.jsonaaaaa1.tmp",
                "a.json",
                "a.json.tmp"
            ]
        );
        assert_eq!(std::fs::read(path("a.json")).unwrap(), b"new");
        let long = "é".repeat(120);
        write_atomically(path(&long), b"long").unwrap();
        assert_eq!(std::fs::read(path(&long)).unwrap(), b"long");
    }
}
