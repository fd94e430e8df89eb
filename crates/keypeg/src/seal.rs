//! Seal keys of the server: the file with the keys, its reload, and the commands on them.
//!
//! What a key encrypts is the business of keypeg-engine.

mod command;
mod key_file;
mod reload;

pub use command::{NewSealKey, RotateSealKey, SealCommand};
pub(crate) use key_file::read as read_seal_keys;
pub(crate) use reload::{watch, watch_store};

use std::path::PathBuf;

/// The options of a server about its seal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SealSettings {
    /// The file with the seal keys.
    pub(crate) path: PathBuf,
    /// Whether a data directory that is not sealed is sealed.
    pub(crate) seals_existing: bool,
}
