//! What goes to standard output.

use std::fmt::Arguments;
use std::io::{ErrorKind, Write as _};

/// A line on standard output.
macro_rules! say {
    ($($what:tt)*) => {
        $crate::output::put(format_args!("{}\n", format_args!($($what)*)))
    };
}
pub(crate) use say;

/// What a shell reports of a program whose reader went away.
const READER_GONE: i32 = 128 + 13;

/// Text on standard output, at once. Where it cannot be written the program ends: quietly if its reader
/// has seen enough, as `| head` has.
pub fn put(text: Arguments<'_>) {
    let mut out = std::io::stdout().lock();
    match out.write_fmt(text).and_then(|()| out.flush()) {
        Ok(()) => {}
        Err(e) if e.kind() == ErrorKind::BrokenPipe => std::process::exit(READER_GONE),
        Err(e) => {
            eprintln!("gradmem: standard output: cannot write: {e}");
            std::process::exit(1)
        }
    }
}
