//! Why the key set cannot be used, and how errors of redb and of the replay become that.

use crate::layout::KEYSET;
use crate::seal::OpenError;
use keypeg_core::ReplayError;
use std::io;

/// Why the database cannot be used. The messages reach the terminal of the operator.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeySetError {
    /// The disk returned an error.
    #[error("{KEYSET}: {0}")]
    Io(#[from] io::Error),
    /// The content is not what was written.
    #[error("{KEYSET} is damaged: {0}. Restore the data directory from a backup")]
    Damaged(String),
    /// The keys need more memory than there is.
    #[error("the keys need about {needed} bytes of memory, and there are {given}")]
    TooLarge {
        /// Estimated from the keys loaded so far.
        needed: u64,
        given: u64,
    },
}

pub(super) fn damaged(why: &str) -> KeySetError {
    KeySetError::Damaged(why.to_owned())
}

pub(super) fn replay_error(ReplayError(why): ReplayError) -> KeySetError {
    damaged(why)
}

pub(super) fn failed(error: impl Into<redb::Error>) -> KeySetError {
    let error = error.into();
    if let redb::Error::Io(error) = error {
        // redb returns these kinds for bytes that it did not write and for a file that is too
        // short.
        let content = [io::ErrorKind::InvalidData, io::ErrorKind::UnexpectedEof];
        if content.contains(&error.kind()) {
            return damaged(&error.to_string());
        }
        return KeySetError::Io(error);
    }
    // The database has failed or was closed before: its content is not damaged.
    if let redb::Error::PreviousIo | redb::Error::DatabaseClosed = error {
        return KeySetError::Io(io::Error::other(error.to_string()));
    }
    if let redb::Error::Corrupted(why) = error {
        return KeySetError::Damaged(format!("its pages do not match their checksums: {why}"));
    }
    KeySetError::Damaged(error.to_string())
}

impl From<redb::Error> for KeySetError {
    fn from(error: redb::Error) -> Self {
        failed(error)
    }
}

impl From<redb::StorageError> for KeySetError {
    fn from(error: redb::StorageError) -> Self {
        failed(error)
    }
}

impl From<redb::TableError> for KeySetError {
    fn from(error: redb::TableError) -> Self {
        failed(error)
    }
}

impl From<OpenError> for KeySetError {
    fn from(error: OpenError) -> Self {
        damaged(error.why())
    }
}
