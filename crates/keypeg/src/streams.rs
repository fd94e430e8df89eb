//! Results on stdout and messages on stderr. A result that was not written is noticed, a message
//! that was not written is not.
//!
//! Knows nothing of what is written.

use crate::log;
use rustix::fs::{FileType, OFlags, fcntl_getfl, fstat, stat};
use std::io::{self, ErrorKind, Write};

/// Writes a text to stdout.
pub(crate) fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush())
}

/// Returns an error if stdout was closed when the program started.
///
/// The standard library then opens `/dev/null` for reading and writing in its place, and every
/// write succeeds. A shell opens `/dev/null` for writing only, so a redirection on purpose is not
/// an error.
pub(crate) fn require_open() -> io::Result<()> {
    let out = io::stdout();
    let found = fstat(&out)?;
    let is_null = FileType::from_raw_mode(found.st_mode) == FileType::CharacterDevice
        && stat("/dev/null").is_ok_and(|null| null.st_rdev == found.st_rdev);
    if is_null && fcntl_getfl(&out)? & OFlags::RWMODE == OFlags::RDWR {
        return Err(io::Error::new(ErrorKind::NotConnected, "stdout is closed"));
    }
    Ok(())
}

/// Writes a message to stderr.
pub(crate) fn print_message(message: &str) {
    log::report(&format!("keypeg: {message}"));
}
