//! Results on stdout and messages on stderr. A result that was not written is noticed, a message
//! that was not written is not.
//!
//! Knows nothing of what is written.

use crate::log;
use rustix::fs::{FileType, OFlags, fcntl_getfl, fcntl_setfl, fstat, stat};
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;

/// Writes a text to stdout.
pub(crate) fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush())
}

/// Returns an error if stdout was closed when the program started.
///
/// The standard library then opens `/dev/null` for reading and writing in its place, and every
/// write succeeds. `/dev/null` on purpose is not an error: a shell opens it for writing only, and a
/// parent that gives it to several streams opens it once, for all of them. Two cases cannot be
/// distinguished. A parent that opens it for reading and writing for stdout alone gets the error,
/// because a value that only seems to be written is lost. Several closed streams are no error: the
/// standard library opens one file for them.
pub(crate) fn require_open() -> io::Result<()> {
    let out = io::stdout();
    if !is_read_write_null(&out)?
        || shares_file(&out, &io::stdin())
        || shares_file(&out, &io::stderr())
    {
        return Ok(());
    }
    let message = "stdout is closed (redirect it to /dev/null to discard the output)";
    Err(io::Error::new(ErrorKind::NotConnected, message))
}

fn is_read_write_null(stream: &impl AsFd) -> io::Result<bool> {
    let found = fstat(stream)?;
    let is_null = FileType::from_raw_mode(found.st_mode) == FileType::CharacterDevice
        && stat("/dev/null").is_ok_and(|null| null.st_rdev == found.st_rdev);
    Ok(is_null && fcntl_getfl(stream)? & OFlags::RWMODE == OFlags::RDWR)
}

/// Returns whether two descriptors have one open file, of which the first is `/dev/null`: a status
/// flag of one, which is without effect there, is then a flag of both.
fn shares_file(null: &impl AsFd, other: &impl AsFd) -> bool {
    let (Ok(before), Ok(true)) = (fcntl_getfl(null), is_read_write_null(other)) else {
        return false;
    };
    let other_is_same = |flags| {
        let set = fcntl_setfl(null, flags);
        set.is_ok() && fcntl_getfl(other).is_ok_and(|of_other| of_other == flags)
    };
    let shares = other_is_same(before ^ OFlags::APPEND);
    // The second reading excludes that the flags of two files were different by chance.
    other_is_same(before) && shares
}

/// Writes a message to stderr.
pub(crate) fn print_message(message: &str) {
    log::report(&format!("keypeg: {message}"));
}
