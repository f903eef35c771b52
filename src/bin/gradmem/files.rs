//! Files that are made.

use std::io::ErrorKind;
use std::path::Path;

use gradmem::Error;

/// Fails if a file cannot be made there.
pub fn check_writable(path: &Path) -> Result<(), Error> {
    let problem = |problem: &str| {
        Err(Error::File {
            path: path.into(),
            problem: problem.into(),
        })
    };
    if path == Path::new("-") {
        return problem("standard output takes none: name a file (./- is one of that name)");
    }
    if path.is_dir() {
        return problem("is a folder: name the file to make in it");
    }
    if path.metadata().is_ok_and(|about| !about.is_file()) {
        return problem("is a device or a pipe, and is not replaced: name a file");
    }
    if path
        .metadata()
        .is_ok_and(|about| about.permissions().readonly())
    {
        return problem("is read-only: it is not replaced");
    }
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    match tempfile::tempfile_in(folder) {
        Ok(_) => Ok(()),
        Err(e) if e.kind() == ErrorKind::NotFound => problem("its folder does not exist"),
        Err(e) => problem(&format!("no file can be made in its folder: {e}")),
    }
}
