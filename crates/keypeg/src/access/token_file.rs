//! The token file: reads it, if no other user can write or replace it.
//!
//! `trusted_file.rs` reads it and judges who else could. Does not know what the text means.

use crate::failure::{Failure, exit};
use crate::permissions::Trusted;
use crate::text_file;
use crate::trusted_file::{self, TrustedFile, TrustedFileError};
use std::io;
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

/// Reads the token file, if only `trusted` users can write or replace it.
pub(crate) fn read_token_file(path: &Path, trusted: Trusted) -> Result<TokenFile, TokenFileError> {
    let TrustedFile { bytes, mut warnings, is_public } =
        trusted_file::read(path, FILE_MAX, trusted).map_err(|error| match error {
            TrustedFileError::Io(error) => TokenFileError::Io(error),
            TrustedFileError::Mode(reason) => TokenFileError::Mode(reason),
            TrustedFileError::TooLarge(max) => {
                TokenFileError::Content(format!("the file is larger than {max} bytes"))
            }
        })?;
    if is_public {
        warnings.push(
            "every user of this machine can read the names and hashes of the tokens: run chmod \
             0640 or 0600 on it"
                .into(),
        );
    }
    let text = text_file::decode(bytes);
    let text = text.map_err(|error| TokenFileError::Content(error.to_string()))?;
    Ok(TokenFile { text, warnings })
}
