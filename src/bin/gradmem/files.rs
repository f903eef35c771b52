//! Files and folders that are made.

use std::io::ErrorKind;
use std::path::Path;

use gradmem::Error;
use gradmem::support::followed;

/// Fails if something else than a folder is there. `option` names folders.
pub fn check_folder(path: &Path, option: &str) -> Result<(), Error> {
    match path.exists() && !path.is_dir() {
        true => Err(Error::file(
            path,
            format!("is a file, not a folder: name another with {option}"),
        )),
        false => Ok(()),
    }
}

/// Fails if a file cannot be made there, or where a link of that name leads.
pub fn check_writable(path: &Path) -> Result<(), Error> {
    let place = followed(path);
    let problem = |problem: &str| {
        let leads = match place == path {
            true => String::new(),
            false => format!("leads to {}: ", place.display()),
        };
        Err(Error::file(path, leads + problem))
    };
    if path == Path::new("-") {
        return problem("standard output takes none: name a file (./- is one of that name)");
    }
    if path.is_dir() {
        return problem("is a folder: name the file to make in it");
    }
    // `folder/` and `folder/.` have the name of the folder.
    let name = path.file_name().unwrap_or_default().as_encoded_bytes();
    if !path.as_os_str().as_encoded_bytes().ends_with(name) {
        return problem("is the name of a folder: name the file to make in it");
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
    let folder = place
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    match tempfile::tempfile_in(folder) {
        Ok(_) => Ok(()),
        Err(e) if e.kind() == ErrorKind::NotFound => problem("its folder does not exist"),
        Err(e) => problem(&format!("no file can be made in its folder: {e}")),
    }
}
