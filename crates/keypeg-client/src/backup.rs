//! Backups: [`Client::backup`] and its bytes, as they arrive. It does not know what they contain.

use crate::client::Client;
use crate::error::Error;
use reqwest::Response;

/// A backup that arrives.
#[derive(Debug)]
pub struct Backup(Response);

impl Client {
    /// Begins a backup of all data of the server.
    pub async fn backup(&self) -> Result<Backup, Error> {
        self.open_backup().await.map(Backup)
    }
}

impl Backup {
    /// Returns the next bytes; `None` after the last ones. An error means that the backup is not
    /// complete.
    pub async fn next(&mut self) -> Result<Option<impl AsRef<[u8]> + use<>>, Error> {
        self.0.chunk().await.map_err(Error::Unreachable)
    }
}
