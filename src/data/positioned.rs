//! A file that many threads read at the same time, each at its own offset.

use std::fs::File;
use std::io;

/// A file read at given offsets, without a current position. On Unix reads do not block each other.
#[derive(Debug)]
pub(crate) struct PositionedFile {
    #[cfg(unix)]
    file: File,
    #[cfg(not(unix))]
    file: std::sync::Mutex<File>,
}

impl PositionedFile {
    #[cfg(unix)]
    pub(crate) fn new(file: File) -> Self {
        Self { file }
    }

    #[cfg(not(unix))]
    pub(crate) fn new(file: File) -> Self {
        let file = std::sync::Mutex::new(file);
        Self { file }
    }

    /// Reads some bytes from offset `at`; none at the end of the file.
    #[cfg(unix)]
    pub(crate) fn read_at(&self, bytes: &mut [u8], at: u64) -> io::Result<usize> {
        std::os::unix::fs::FileExt::read_at(&self.file, bytes, at)
    }

    /// Reads some bytes from offset `at`; none at the end of the file.
    #[cfg(not(unix))]
    pub(crate) fn read_at(&self, bytes: &mut [u8], at: u64) -> io::Result<usize> {
        use std::io::{Read, Seek, SeekFrom};
        let mut file = self.file.lock().unwrap_or_else(|e| e.into_inner());
        file.seek(SeekFrom::Start(at))?;
        file.read(bytes)
    }

    /// The bytes from `start` to the next line feed or the end of the file, at most `longest`.
    pub(crate) fn line(&self, start: u64, longest: usize) -> io::Result<Vec<u8>> {
        let mut line = Vec::new();
        let mut block = vec![0; 1 << 14];
        while line.len() < longest {
            let read = match self.read_at(&mut block, start + line.len() as u64) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                read => read?,
            };
            let end = block[..read].iter().position(|byte| *byte == b'\n');
            line.extend_from_slice(&block[..end.unwrap_or(read)]);
            if end.is_some() || read == 0 {
                break;
            }
        }
        line.truncate(longest);
        Ok(line)
    }
}
