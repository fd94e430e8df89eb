//! The token file: reads it, if no other user can write or replace it.
//!
//! `permissions.rs` judges the owners and the modes. Does not know what the text means.

use crate::failure::{Failure, exit};
use crate::permissions::{Trusted, Verdict, examine_file, examine_way};
use crate::text_file;
use rustix::fs::{FileType, Mode, OFlags, fstat, open};
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// The largest token file, in bytes.
const FILE_MAX: u64 = 4 << 20;

/// The reason why a token file cannot be used.
#[derive(Debug)]
pub(crate) enum TokenFileError {
    /// The system could not read it.
    Io(io::Error),
    /// It is not a regular file, or another user could write or replace it.
    Mode(String),
    /// Its content is invalid.
    Content(String),
}

impl std::fmt::Display for TokenFileError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Io(error) => write!(f, "{error}"),
            Self::Mode(message) | Self::Content(message) => f.write_str(message),
        }
    }
}

impl TokenFileError {
    /// Returns the failure of a command that needs the file.
    pub(crate) fn into_failure(self, path: &Path) -> Failure {
        let code = match &self {
            Self::Io(error) if error.kind() == io::ErrorKind::NotFound => exit::NO_INPUT,
            Self::Io(error) if error.kind() == io::ErrorKind::PermissionDenied => exit::PERMISSION,
            Self::Io(_) => exit::IO,
            Self::Mode(_) | Self::Content(_) => exit::CONFIG,
        };
        let step = match code {
            exit::NO_INPUT => "; create it with \"keypeg token new\", or check --tokens",
            exit::PERMISSION | exit::IO => "; check --tokens",
            _ => "",
        };
        Failure::new(code, format!("token file {}: {self}{step}", path.display()))
    }
}

/// The text of a token file, and what an operator should correct.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TokenFile {
    pub(crate) text: String,
    pub(crate) warnings: Vec<String>,
}

/// Reads the token file, if only `trusted` users can write or replace it. Symbolic links are
/// followed, because secrets are mounted into containers that way; the permissions of the target
/// count too.
pub(crate) fn read_token_file(path: &Path, trusted: Trusted) -> Result<TokenFile, TokenFileError> {
    let mut warnings = Vec::new();
    match examine_way(path, "file", trusted).map_err(TokenFileError::Io)? {
        Verdict::Safe => {}
        Verdict::Doubtful(warning) => warnings.push(warning),
        Verdict::Exposed(reason) => return Err(TokenFileError::Mode(reason)),
    }
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file =
        open(path, flags, Mode::empty()).map_err(|error| TokenFileError::Io(error.into()))?;
    let stat = fstat(&file).map_err(|error| TokenFileError::Io(error.into()))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(TokenFileError::Mode("not a regular file".into()));
    }
    let mode = Mode::from_raw_mode(stat.st_mode);
    if let Verdict::Exposed(reason) = examine_file(stat, trusted) {
        return Err(TokenFileError::Mode(reason));
    }
    if mode.contains(Mode::WGRP) {
        return Err(TokenFileError::Mode(
            "other users can write this file: run chmod 0600 on it".into(),
        ));
    }
    if mode.contains(Mode::ROTH) {
        warnings.push(
            "every user of this machine can read the names and hashes of the tokens: run chmod \
             0640 or 0600 on it"
                .into(),
        );
    }
    let mut bytes = Vec::new();
    File::from(file).take(FILE_MAX + 1).read_to_end(&mut bytes).map_err(TokenFileError::Io)?;
    if bytes.len() as u64 > FILE_MAX {
        return Err(TokenFileError::Content(format!("the file is larger than {FILE_MAX} bytes")));
    }
    let text = text_file::decode(bytes);
    let text = text.map_err(|error| TokenFileError::Content(error.to_string()))?;
    Ok(TokenFile { text, warnings })
}
