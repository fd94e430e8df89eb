//! The server that a command calls: its URL, the access token, the pool and the output format.
//!
//! An access token is never an argument, because every user of the machine can see those.

use super::output::OutputFormat;
use crate::failure::{Failure, exit};
use clap::Args;
use keypeg_client::{Client, ClientSource};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

/// The variable that contains an access token.
pub(super) const TOKEN_VARIABLE: &str = "KEYPEG_TOKEN";
/// The variable that names a file with an access token.
pub(super) const TOKEN_FILE_VARIABLE: &str = "KEYPEG_TOKEN_FILE";
/// The largest file with an access token, in bytes.
const TOKEN_FILE_MAX: u64 = 4_096;
const WORLD_READABLE: u32 = 0o004;

/// The server, the token, the pool and the output format.
#[derive(Debug, Args)]
pub struct ServerArgs {
    /// URL of the server
    #[arg(
        long = "server",
        env = "KEYPEG_SERVER",
        value_name = "URL",
        default_value = "http://127.0.0.1:8000"
    )]
    pub(super) url: String,
    /// File that contains one access token and nothing else [without it: `KEYPEG_TOKEN` is the token]
    #[arg(long, env = TOKEN_FILE_VARIABLE, value_name = "FILE")]
    pub(super) token_file: Option<PathBuf>,
    /// Name of the pool
    #[arg(long, value_name = "NAME", default_value = "default")]
    pub(super) pool: String,
    /// Output format
    #[arg(long = "output", value_name = "FORMAT")]
    #[arg(value_enum, default_value_t = OutputFormat::Table)]
    pub(super) format: OutputFormat,
}

impl ServerArgs {
    /// Returns a client of the server, with the access token if one is given.
    pub(super) fn client(&self) -> Result<Client, Failure> {
        let client = Client::new(&self.url)?;
        match self.token()? {
            None => Ok(client),
            Some(token) => Ok(client.with_token(token.trim())?),
        }
    }

    /// Returns a client whose token is read again from its file after the server has refused it.
    pub(super) fn source(&self) -> Result<ClientSource, Failure> {
        let client = self.client()?;
        let Some(path) = self.token_file.clone() else { return Ok(ClientSource::fixed(client)) };
        let read = move || {
            let mut text = String::new();
            File::open(&path).ok()?.take(TOKEN_FILE_MAX).read_to_string(&mut text).ok()?;
            Some(text.trim().to_owned())
        };
        Ok(ClientSource::with_token_reader(client, read))
    }

    /// Reads the access token. It is never an argument: every user of the machine can see those.
    fn token(&self) -> Result<Option<String>, Failure> {
        let Some(path) = &self.token_file else {
            let Some(token) = std::env::var_os(TOKEN_VARIABLE) else { return Ok(None) };
            let text = token.into_string().ok().filter(|text| !text.trim().is_empty());
            let invalid = || {
                let message = format!(
                    "{TOKEN_VARIABLE} is set but does not contain a token: unset it, or set it to \
                     an access token"
                );
                Failure::new(exit::USAGE, message)
            };
            return text.map(Some).ok_or_else(invalid);
        };
        let failed = |error: io::Error| {
            let codes = [
                (io::ErrorKind::PermissionDenied, exit::PERMISSION),
                (io::ErrorKind::InvalidData, exit::USAGE),
            ];
            let known = codes.into_iter().find(|(kind, _)| *kind == error.kind());
            let code = known.map_or(exit::NO_INPUT, |(_, code)| code);
            Failure::new(
                code,
                format!("cannot read the access token file {}: {error}", path.display()),
            )
        };
        let mut text = String::new();
        let file = File::open(path).map_err(failed)?;
        let mode = file.metadata().map_err(failed)?.permissions().mode();
        file.take(TOKEN_FILE_MAX + 1).read_to_string(&mut text).map_err(failed)?;
        if text.trim().is_empty() || text.len() as u64 > TOKEN_FILE_MAX {
            let path = path.display();
            let message = format!(
                "{path} must contain one access token and nothing else, \
                 in at most {TOKEN_FILE_MAX} bytes"
            );
            return Err(Failure::new(exit::USAGE, message));
        }
        if mode & WORLD_READABLE != 0 {
            // Not refused: secrets are mounted into containers this way, and those have one user.
            let path = path.display();
            let warning =
                "every user of this machine can read this access token: run chmod 0600 on it";
            let _ = writeln!(io::stderr(), "keypeg: {path}: {warning}");
        }
        Ok(Some(text))
    }
}
