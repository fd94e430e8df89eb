//! Why a backup is not restored. The messages reach the terminal of the operator.

use crate::backup::{BackupError, inconsistent};
use crate::start::StartError;

/// Why a backup was not restored. Nothing was created that a start accepts.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The backup cannot be used.
    #[error("{0}")]
    Backup(#[from] BackupError),
    /// The directory cannot be written.
    #[error("{0}")]
    Directory(#[from] StartError),
    /// The directory has files.
    #[error(
        "{0} is not empty, and a restore overwrites nothing: name a directory that is empty or does \
         not exist"
    )]
    NotEmpty(String),
    /// The first token cannot be chosen safely.
    #[error("{0}")]
    Tokens(String),
}

/// Returns an error of a replay: the files are new, so damage in them comes from the backup.
pub(super) fn of_backup(error: StartError) -> RestoreError {
    if let StartError::Corrupt(why) = error { inconsistent(why).into() } else { error.into() }
}
