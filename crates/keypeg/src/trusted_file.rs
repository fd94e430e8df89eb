//! Reads a file that gives power over the server, if no other user can change or replace it.
//!
//! `permissions.rs` judges the owners and the modes. Does not know what the content means.

use crate::permissions::{Trusted, Verdict, examine_file, examine_way};
use rustix::fs::{FileType, Mode, OFlags, fstat, open};
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// The reason why a file cannot be used.
#[derive(Debug)]
pub(crate) enum TrustedFileError {
    /// The system could not read it.
    Io(io::Error),
    /// It is not a regular file, or another user could write or replace it.
    Mode(String),
    /// It has more bytes than allowed.
    TooLarge(u64),
}

/// The content of a file, and what an operator should correct.
#[derive(Debug)]
pub(crate) struct TrustedFile {
    pub(crate) bytes: Vec<u8>,
    pub(crate) warnings: Vec<String>,
    /// Whether every user of the machine can read the file.
    pub(crate) is_public: bool,
}

/// Reads a file of at most `max` bytes, if only `trusted` users can write or replace it. Symbolic
/// links are followed, because secrets are mounted into containers that way; the permissions of the
/// target count too.
pub(crate) fn read(
    path: &Path,
    max: u64,
    trusted: Trusted,
) -> Result<TrustedFile, TrustedFileError> {
    let mut warnings = Vec::new();
    match examine_way(path, "file", trusted).map_err(TrustedFileError::Io)? {
        Verdict::Safe => {}
        Verdict::Doubtful(warning) => warnings.push(warning),
        Verdict::Exposed(reason) => return Err(TrustedFileError::Mode(reason)),
    }
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file =
        open(path, flags, Mode::empty()).map_err(|error| TrustedFileError::Io(error.into()))?;
    let stat = fstat(&file).map_err(|error| TrustedFileError::Io(error.into()))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(TrustedFileError::Mode("not a regular file".into()));
    }
    let mode = Mode::from_raw_mode(stat.st_mode);
    if let Verdict::Exposed(reason) = examine_file(stat, trusted) {
        return Err(TrustedFileError::Mode(reason));
    }
    if mode.contains(Mode::WGRP) {
        return Err(TrustedFileError::Mode(
            "other users can write this file: run chmod 0600 on it".into(),
        ));
    }
    // In one allocation: a buffer that grows would leave parts of a seal key in free memory.
    let size = u64::try_from(stat.st_size).unwrap_or(0).min(max);
    let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0) + 64);
    File::from(file).take(max + 1).read_to_end(&mut bytes).map_err(TrustedFileError::Io)?;
    if bytes.len() as u64 > max {
        return Err(TrustedFileError::TooLarge(max));
    }
    Ok(TrustedFile { bytes, warnings, is_public: mode.contains(Mode::ROTH) })
}
