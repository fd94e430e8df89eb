//! The server that a command calls: its URL and the access token; the pool, and how the result is
//! printed.
//!
//! An access token is never an argument, because every user of the machine can see those.

use super::tls::TlsArgs;
use crate::failure::{Failure, exit};
use crate::output::OutputArgs;
use crate::permissions::{Trusted, Verdict, examine_file, examine_way};
use crate::variables::TOKEN as TOKEN_VARIABLE;
use crate::{streams, text_file};
use clap::Args;
use keypeg_client::{Client, ClientSource, check_server_address};
use rustix::fs::{Mode, Stat};
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// The variable that names a file with an access token.
pub(super) const TOKEN_FILE_VARIABLE: &str = "KEYPEG_TOKEN_FILE";
/// The largest file with an access token, in bytes.
const TOKEN_FILE_MAX: u64 = 4_096;

/// The server and the token.
#[derive(Debug, Args)]
pub struct ConnectionArgs {
    /// URL of the server, http://HOST:PORT or https://HOST:PORT
    #[arg(
        long = "server",
        env = "KEYPEG_SERVER",
        value_name = "URL",
        default_value = "http://127.0.0.1:8000"
    )]
    pub(super) url: String,
    #[command(flatten)]
    pub(super) tls: TlsArgs,
    /// File that contains one access token and nothing else [without it: `KEYPEG_TOKEN` is the token]
    #[arg(long, env = TOKEN_FILE_VARIABLE, value_name = "FILE")]
    pub(super) token_file: Option<PathBuf>,
    /// The access token, where it is not in the environment any more.
    #[arg(skip)]
    pub(super) given_token: Option<String>,
}

/// The server, the token, the pool and the output format.
#[derive(Debug, Args)]
pub struct ServerArgs {
    #[command(flatten)]
    pub(super) connection: ConnectionArgs,
    /// Name of the pool
    #[arg(short, long, env = "KEYPEG_POOL", value_name = "NAME", default_value = "default")]
    pub(super) pool: String,
    #[command(flatten)]
    pub(super) output: OutputArgs,
}

impl ServerArgs {
    /// Returns a client of the server, with the access token if one is given.
    pub(super) fn client(&self) -> Result<Client, Failure> {
        self.connection.client()
    }

    /// Returns a client whose token is read again from its file after the server has refused it.
    pub(super) fn source(&self) -> Result<ClientSource, Failure> {
        self.connection.source()
    }
}

impl ConnectionArgs {
    /// Returns a client of the server, with the access token if one is given.
    pub(super) fn client(&self) -> Result<Client, Failure> {
        let client = self.client_without_token()?;
        match self.token()? {
            None => Ok(client),
            Some(token) => Ok(client.with_token(&token)?),
        }
    }

    /// Returns a client of the server that sends no access token.
    pub(super) fn client_without_token(&self) -> Result<Client, Failure> {
        check_server_address(&self.url).map_err(|error| {
            Failure::new(exit::USAGE, format!("{error}; check --server or KEYPEG_SERVER"))
        })?;
        Ok(Client::with_tls(&self.url, &self.tls.settings()?)?)
    }

    /// Returns a client whose token is read again from its file after the server has refused it.
    pub(super) fn source(&self) -> Result<ClientSource, Failure> {
        let client = self.client()?;
        let Some(path) = self.token_file.clone() else { return Ok(ClientSource::fixed(client)) };
        // A file that is just being replaced may be invalid for a moment.
        let read = move || read_token(&path).ok().map(|read| read.token);
        Ok(ClientSource::with_token_reader(client, read))
    }

    /// Reads the access token. It is never an argument: every user of the machine can see those.
    pub(super) fn token(&self) -> Result<Option<String>, Failure> {
        if let Some(path) = &self.token_file {
            let TokenFile { token, warnings } = read_token(path)?;
            for warning in warnings {
                streams::print_message(&format!("{}: {warning}", path.display()));
            }
            return Ok(Some(token));
        }
        if let Some(token) = &self.given_token {
            return Ok(Some(token.clone()));
        }
        let Some(token) = std::env::var_os(TOKEN_VARIABLE) else { return Ok(None) };
        let text = token.into_string().unwrap_or_default();
        if text.trim().is_empty() {
            let message = format!(
                "{TOKEN_VARIABLE} is set but does not contain a token: unset it, or set it to an \
                 access token"
            );
            return Err(Failure::new(exit::USAGE, message));
        }
        visible(&text, TOKEN_VARIABLE).map(Some)
    }
}

/// The content of a file with an access token.
struct TokenFile {
    token: String,
    /// A warning if other users could read or replace the file. A command does not refuse such a
    /// file: containers and build jobs often have such files, and only one user.
    warnings: Vec<String>,
}

/// Reads the file of an access token.
fn read_token(path: &Path) -> Result<TokenFile, Failure> {
    let failed = |error: io::Error| {
        let is_denied = error.kind() == io::ErrorKind::PermissionDenied;
        let code = if is_denied { exit::PERMISSION } else { exit::NO_INPUT };
        let path = path.display();
        let message =
            format!("cannot read the access token file {path}: {error}; check --token-file");
        Failure::new(code, message)
    };
    let file = File::open(path).map_err(failed)?;
    let stat = rustix::fs::fstat(&file).map_err(|error| failed(error.into()))?;
    let mut bytes = Vec::new();
    file.take(TOKEN_FILE_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    let warnings = warnings(path, stat);
    let path = path.display();
    let is_too_large = bytes.len() as u64 > TOKEN_FILE_MAX;
    let text = if is_too_large { Ok(String::new()) } else { text_file::decode(bytes) };
    let text = text.map_err(|error| {
        Failure::new(exit::USAGE, format!("the access token file {path} is not a text: {error}"))
    })?;
    if text.trim().is_empty() {
        let message = format!(
            "{path} must contain one access token and nothing else, in at most {TOKEN_FILE_MAX} \
             bytes"
        );
        return Err(Failure::new(exit::USAGE, message));
    }
    let token = visible(&text, &path.to_string())?;
    Ok(TokenFile { token, warnings })
}

/// Returns what other users could do with the file of an access token.
fn warnings(path: &Path, file: Stat) -> Vec<String> {
    let trusted = Trusted::own();
    let way = examine_way(path, "file", trusted).unwrap_or(Verdict::Safe);
    let exposed =
        [way, examine_file(file, trusted)].into_iter().filter_map(|verdict| match verdict {
            Verdict::Exposed(reason) => Some(reason),
            Verdict::Safe | Verdict::Doubtful(_) => None,
        });
    let is_readable = Mode::from_raw_mode(file.st_mode).contains(Mode::ROTH);
    let readable = "every user of this machine can read this access token: run chmod 0600 on it";
    exposed.chain(is_readable.then(|| readable.to_owned())).collect()
}

/// Returns a token without the blanks around it; `source` names its file or variable.
fn visible(text: &str, source: &str) -> Result<String, Failure> {
    let token = text.trim();
    let is_short = token.len() as u64 <= TOKEN_FILE_MAX;
    if is_short && token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Ok(token.to_owned());
    }
    let message = format!(
        "{source} must contain one access token of visible characters only, at most \
         {TOKEN_FILE_MAX}, as \"keypeg token new\" prints it, and nothing else"
    );
    Err(Failure::new(exit::USAGE, message))
}
