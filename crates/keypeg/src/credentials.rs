//! Credentials of systemd (`LoadCredential=`): files in a directory that only this service can read.
//!
//! They replace options that no flag, variable or file gives. Does not know what is in them.

use std::path::PathBuf;

/// The access token file.
pub(crate) const TOKENS: &str = "tokens";
/// The certificate chain of the server.
pub(crate) const TLS_CERTIFICATE: &str = "tls-cert";
/// The file of the seal key.
pub(crate) const SEAL_KEY: &str = "seal-key";
/// The private key of the server.
pub(crate) const TLS_KEY: &str = "tls-key";

/// Returns the path of a credential, if the service has one of this name.
pub(crate) fn path(name: &str) -> Option<PathBuf> {
    let dir = std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from)?;
    let path = dir.join(name);
    // A credential that cannot be read must not start a server without access control: only a path
    // that certainly does not exist is none.
    let is_absent =
        path.symlink_metadata().is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound);
    (dir.is_absolute() && !is_absent).then_some(path)
}
