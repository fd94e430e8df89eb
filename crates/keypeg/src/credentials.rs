//! Credentials of systemd (`LoadCredential=`): files in a directory that only this service can read.
//!
//! They replace options that no flag, variable or file gives. Does not know what is in them.

use std::path::PathBuf;

/// The access token file.
pub(crate) const TOKENS: &str = "tokens";

/// Returns the path of a credential, if the service has one of this name.
pub(crate) fn path(name: &str) -> Option<PathBuf> {
    let dir = std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from)?;
    let path = dir.join(name);
    // Not only a path that exists: a credential that cannot be read must not start a server
    // without access control.
    (dir.is_absolute() && path.symlink_metadata().is_ok()).then_some(path)
}
