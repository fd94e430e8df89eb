//! A start of the engine: its options, and the errors that end it.
//!
//! It knows only the texts of the errors, not when one occurs.

use crate::disk::is_full;
use crate::seal::SealOptions;
use keypeg_core::Policy;
use std::path::PathBuf;

const MIB: u64 = 1 << 20;

/// The options of an engine.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// The data directory; `None` keeps all data in memory only.
    pub data: Option<PathBuf>,
    /// The number of lanes: one for each core of the server.
    pub lanes: usize,
    /// Whether the core of the last lane runs turns by [`CoreTurns`](keypeg_store::CoreTurns).
    pub core_turns: bool,
    /// The default pool's policy in a new data directory.
    pub default_policy: Policy,
    /// The most keys in all pools together.
    pub max_keys: u64,
    /// The most bytes of all pools together, with their keys, leases and stored answers. A start
    /// accepts more, and refuses what would add to it.
    pub memory: u64,
    /// All memory of the server, in bytes: data that needs more is refused by a start.
    pub memory_max: u64,
    /// Bytes of pages that the database keeps in memory at most.
    pub cache: usize,
    /// Whether the data directory must exist; a start then creates none.
    pub must_exist: bool,
    /// The seal keys; `None` for a directory that is not sealed.
    pub seal: Option<SealOptions>,
}

/// The reason why an engine does not start. The messages name the file and the next step.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Another process has locked the directory.
    #[error("{dir} is in use by another process: stop that process, or use another --data")]
    InUse {
        /// The directory.
        dir: String,
    },
    /// The directory has no data, and the start must not create any.
    #[error("{dir} holds no data: check the path and its mount")]
    NotFound {
        /// The directory.
        dir: String,
    },
    /// Other users can replace the files of the directory.
    #[error("{0}")]
    Exposed(String),
    /// The seal keys do not fit the directory.
    #[error("{0}")]
    Seal(String),
    /// The directory's data is damaged or incomplete, or has a newer format.
    #[error("{0}")]
    Corrupt(String),
    /// The pools need more memory than the server may take at all.
    #[error(
        "the data needs about {} MiB of memory, and the server may take {} MiB: raise --memory \
         above {} MiB; no data was changed",
        .needed.div_ceil(MIB), given / MIB, .needed.div_ceil(MIB)
    )]
    TooLarge {
        /// The bytes that all pools need, estimated from those loaded so far.
        needed: u64,
        /// The option [`EngineConfig::memory_max`].
        given: u64,
    },
    /// An operation on the disk failed.
    #[error("{doing} failed: {error}{}", next_step(error))]
    Io {
        /// The operation, as a phrase in -ing.
        doing: String,
        /// The operating system's error.
        error: std::io::Error,
    },
}

/// Returns the error for a missing part of the data directory.
pub(crate) fn missing(what: &str) -> StartError {
    StartError::Corrupt(format!(
        "{what} is missing from the data directory. Put it back, or restore the data directory \
         from a backup; nothing was changed"
    ))
}

/// Returns the error for damage at a byte offset of a file.
pub(crate) fn corrupt(name: &str, offset: usize, why: &str) -> StartError {
    StartError::Corrupt(format!(
        "{name} is damaged at byte {offset}: {why}. Restore the data directory from a backup; \
         nothing was changed"
    ))
}

/// Returns what to do after an error of the disk, to be appended to its message.
fn next_step(error: &std::io::Error) -> &'static str {
    if is_full(error) { ": free some MiB on the disk of the data directory" } else { "" }
}

impl StartError {
    /// Adds the data directory to the message of a failed operation that does not name it.
    pub(crate) fn in_dir(self, dir: &str) -> Self {
        match self {
            Self::Io { doing, error } if !doing.contains(dir) => {
                Self::Io { doing: format!("{doing} in {dir}"), error }
            }
            Self::InUse { .. }
            | Self::NotFound { .. }
            | Self::Exposed(_)
            | Self::Seal(_)
            | Self::Corrupt(_)
            | Self::TooLarge { .. }
            | Self::Io { .. } => self,
        }
    }
}

/// Wraps an error of the disk with the operation that failed.
pub(crate) fn io(doing: &str) -> impl FnOnce(std::io::Error) -> StartError {
    let doing = doing.to_owned();
    move |error| StartError::Io { doing, error }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_operation_names_its_directory_once() {
        for (doing, expected) in [
            ("sealing the key set", "sealing the key set in /d failed: disk"),
            ("opening /d", "opening /d failed: disk"),
        ] {
            let error = io(doing)(std::io::Error::other("disk")).in_dir("/d");
            assert_eq!(error.to_string(), expected);
        }
        let full = io("writing meta")(std::io::ErrorKind::StorageFull.into()).in_dir("/d");
        let message = full.to_string();
        assert!(message.starts_with("writing meta in /d failed: "), "{message}");
        assert!(message.ends_with("free some MiB on the disk of the data directory"), "{message}");
    }
}
