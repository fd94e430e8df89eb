//! The commands that call a server: over `keypeg-client` alone, as anybody else would.
//!
//! What was asked for goes to stdout, everything else to stderr; the exit code tells the kind of
//! a failure, see [`exit`].

mod bench;
mod exec;
mod import;
mod output;

pub use bench::BenchArgs;

use crate::config::length_ms;
use crate::failure::{Failure, exit};
use clap::{Args, Subcommand, value_parser};
use keypeg_client::{
    AcquireRequest, Client, Code, Error, GenerateRequest, KeepAliveRequest, KeyState, Problem,
    ReleaseRequest, RenewRequest, Seconds,
};
use output::{Output, Rows};
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

/// The variable of an access token.
const TOKEN: &str = "KEYPEG_TOKEN";
/// The variable of a file that holds one.
const TOKEN_FILE: &str = "KEYPEG_TOKEN_FILE";
const TOKEN_FILE_MAX: u64 = 4_096;
const READABLE_BY_ALL: u32 = 0o004;

/// What can be asked of a running server.
#[derive(Debug, Subcommand)]
pub enum Ask {
    /// Makes keys
    Generate {
        /// How many
        #[arg(short = 'n', long, default_value_t = 1, value_parser = value_parser!(u32).range(1..=10_000))]
        count: u32,
        /// Where to ask, and how to tell.
        #[command(flatten)]
        to: To,
    },
    /// Brings values in from a file, one a line
    ///
    /// The file is checked as a whole before anything is imported. It goes in parts of at most 10000
    /// values, each all or nothing: when one fails, those before it stay, and the lines are told.
    Import {
        /// The file; - for stdin
        #[arg(value_name = "FILE")]
        file: String,
        /// Where to ask, and how to tell.
        #[command(flatten)]
        to: To,
    },
    /// Borrows a random free key; it comes back by itself, or by `release`
    Acquire {
        /// What lease is wanted.
        #[command(flatten)]
        wanted: Wanted,
        /// Where to ask, and how to tell.
        #[command(flatten)]
        to: To,
    },
    /// Gives a key back by its lease
    Release {
        /// The lease's id
        lease: String,
        /// How long the key rests, such as 0s, 30s or 5m [default: as the pool says]
        #[arg(long, value_name = "LENGTH", value_parser = rest_ms)]
        rest: Option<u64>,
        /// Takes the key out of rotation until somebody unblocks it
        #[arg(long)]
        quarantine: bool,
        /// Why, for whoever looks at the key
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
        /// Where to ask, and how to tell.
        #[command(flatten)]
        to: To,
    },
    /// Gives a lease more time
    Renew {
        /// The lease's id
        lease: String,
        /// How long from now, such as 500ms, 2s or 5m [default: the pool's]
        #[arg(long, value_name = "LENGTH", value_parser = length_ms)]
        ttl: Option<u64>,
        /// Where to ask, and how to tell.
        #[command(flatten)]
        to: To,
    },
    /// Puts a key back, whoever holds it
    Unblock {
        /// The key's id
        key: String,
        /// Where to ask, and how to tell.
        #[command(flatten)]
        to: To,
    },
    /// Deletes a key in any state, for ever
    Delete {
        /// The key's id
        key: String,
        /// Where to ask, and how to tell.
        #[command(flatten)]
        to: To,
    },
    /// Keeps keys alive
    Keepalive {
        /// The keys' ids
        #[arg(required_unless_present = "all", conflicts_with = "all")]
        keys: Vec<String>,
        /// Every key of the pool
        #[arg(long)]
        all: bool,
        /// Where to ask, and how to tell.
        #[command(flatten)]
        to: To,
    },
    /// Lists the pool's keys, without their values
    List {
        /// Only keys that are available, leased, resting or quarantined
        #[arg(long, value_name = "STATE", value_parser = state)]
        state: Option<KeyState>,
        /// Where to ask, and how to tell.
        #[command(flatten)]
        to: To,
    },
    /// Shows a key, or the pool
    Show {
        /// The key's id; the pool when left out
        key: Option<String>,
        /// Where to ask, and how to tell.
        #[command(flatten)]
        to: To,
    },
    /// Lists the pools
    Pools {
        /// Where to ask, and how to tell.
        #[command(flatten)]
        to: To,
    },
    /// Runs a command with a key lent to it, and gives the key back at its end
    ///
    /// The command finds the key in `KEYPEG_KEY`, its id in `KEYPEG_KEY_ID` and the fencing token in
    /// `KEYPEG_FENCING_TOKEN`. While it runs the lease is renewed and the key kept alive. Signals are
    /// passed on, and so is its exit code.
    Exec {
        /// What lease is wanted.
        #[command(flatten)]
        wanted: Wanted,
        /// Where to ask, and how to tell.
        #[command(flatten)]
        to: To,
        /// The command and its arguments
        #[arg(required = true, last = true, value_name = "CMD")]
        command: Vec<OsString>,
    },
    /// Loads a server and tells what it did: requests a second, latencies, processor time, memory
    ///
    /// Latencies are of whole requests over HTTP. With --rate they count from when a request was due,
    /// so that a server that stalls cannot hide it.
    Bench(Box<BenchArgs>),
}

/// Where to ask, and how to tell.
#[derive(Debug, Args)]
pub struct To {
    /// The server
    #[arg(
        long,
        env = "KEYPEG_SERVER",
        value_name = "URL",
        default_value = "http://127.0.0.1:8000"
    )]
    server: String,
    /// A file that holds an access token and nothing else [default: the variable `KEYPEG_TOKEN`]
    #[arg(long, env = TOKEN_FILE, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// The pool
    #[arg(long, value_name = "NAME", default_value = "default")]
    pool: String,
    /// For people or for programs
    #[arg(long, value_enum, value_name = "FORM", default_value_t = Output::Table)]
    output: Output,
}

/// What lease is wanted.
#[derive(Debug, Args)]
pub struct Wanted {
    /// How long, such as 500ms, 2s or 5m [default: the pool's]
    #[arg(long, value_name = "LENGTH", value_parser = length_ms)]
    ttl: Option<u64>,
    /// Who is to be shown as holding the key
    #[arg(long, value_name = "TEXT")]
    holder: Option<String>,
    /// How long to wait in line for a key, at most 5m [default: not at all; 5m when no length is said]
    #[arg(long, value_name = "LENGTH", value_parser = length_ms)]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "5m")]
    wait: Option<u64>,
}

impl Wanted {
    fn request(self) -> AcquireRequest {
        AcquireRequest {
            ttl_seconds: self.ttl.map(Seconds::from_ms),
            wait_seconds: self.wait.map(Seconds::from_ms),
            holder: self.holder,
        }
    }
}

impl Ask {
    /// Asks, tells, and gives the code to exit with.
    pub fn run(self) -> Result<u8, Failure> {
        let failed = |error| Failure::new(exit::OS, format!("starting: {error}"));
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
        runtime.block_on(self.ask())
    }

    async fn ask(self) -> Result<u8, Failure> {
        match self {
            Self::Generate { count, to } => {
                let request = GenerateRequest { count: Some(count), ..GenerateRequest::default() };
                let made = to.client()?.generate(&to.pool, &request).await?;
                to.output.rows(&made, &made.keys, &["id", "key", "expires_at"])
            }
            Self::Import { file, to } => {
                import::run(&to.client()?, &to.pool, &file, to.output).await
            }
            Self::Acquire { wanted, to } => {
                to.output.fields(&to.client()?.acquire(&to.pool, &wanted.request()).await?)
            }
            Self::Release { lease, rest, quarantine, reason, to } => {
                let rest_seconds = rest.map(Seconds::from_ms);
                let quarantine = quarantine.then_some(true);
                let request = ReleaseRequest { rest_seconds, quarantine, reason };
                to.client()?.release_with(&to.pool, &lease, &request).await?;
                Ok(0)
            }
            Self::Renew { lease, ttl, to } => {
                let request = RenewRequest { ttl_seconds: ttl.map(Seconds::from_ms) };
                to.output.fields(&to.client()?.renew(&to.pool, &lease, &request).await?)
            }
            Self::Unblock { key, to } => {
                to.output.fields(&to.client()?.release_key(&to.pool, &key).await?)
            }
            Self::Delete { key, to } => {
                to.client()?.delete_key(&to.pool, &key).await?;
                Ok(0)
            }
            Self::Keepalive { keys, all, to } => {
                let request =
                    KeepAliveRequest { ids: (!all).then_some(keys), all: all.then_some(true) };
                let kept = to.client()?.keep_alive_many(&to.pool, &request).await?;
                to.output.fields(&kept)?;
                if kept.missing.is_empty() {
                    return Ok(0);
                }
                let message = format!("{} of the keys are not there", kept.missing.len());
                Err(Failure::new(exit::NO_INPUT, message))
            }
            Self::List { state, to } => list(&to, state).await,
            Self::Show { key: Some(key), to } => {
                to.output.fields(&to.client()?.key(&to.pool, &key).await?)
            }
            Self::Show { key: None, to } => to.output.fields(&to.client()?.pool(&to.pool).await?),
            Self::Pools { to } => {
                let pools = to.client()?.pools().await?;
                let columns =
                    ["pool", "available", "leased", "resting", "quarantined", "total", "waiting"];
                to.output.rows(&pools, &pools, &columns)
            }
            Self::Exec { wanted, to, command } => {
                exec::run(&to.client()?, &to.pool, &wanted.request(), &command).await
            }
            Self::Bench(args) => args.run().await,
        }
    }
}

impl To {
    fn client(&self) -> Result<Client, Failure> {
        let client = Client::new(&self.server)?;
        match self.token()? {
            None => Ok(client),
            Some(token) => Ok(client.with_token(token.trim())?),
        }
    }

    /// The access token; never an argument, which everybody on the machine can see.
    fn token(&self) -> Result<Option<String>, Failure> {
        let Some(path) = &self.token_file else {
            let Some(token) = std::env::var_os(TOKEN) else { return Ok(None) };
            let text = token.into_string().ok().filter(|text| !text.trim().is_empty());
            let wrong = || Failure::new(exit::USAGE, format!("{TOKEN} is set but is no token"));
            return text.map(Some).ok_or_else(wrong);
        };
        let failed = |error: io::Error| {
            let codes = [
                (io::ErrorKind::PermissionDenied, exit::PERMISSION),
                (io::ErrorKind::InvalidData, exit::USAGE),
            ];
            let known = codes.into_iter().find(|(kind, _)| *kind == error.kind());
            let code = known.map_or(exit::NO_INPUT, |(_, code)| code);
            Failure::new(code, format!("reading the token in {}: {error}", path.display()))
        };
        let mut text = String::new();
        let file = File::open(path).map_err(failed)?;
        let mode = file.metadata().map_err(failed)?.permissions().mode();
        file.take(TOKEN_FILE_MAX + 1).read_to_string(&mut text).map_err(failed)?;
        if text.trim().is_empty() || text.len() as u64 > TOKEN_FILE_MAX {
            let message = format!("{} does not hold an access token alone", path.display());
            return Err(Failure::new(exit::USAGE, message));
        }
        if mode & READABLE_BY_ALL != 0 {
            // Not refused: that is how secrets are mounted into containers, where nobody else is.
            let path = path.display();
            let warning = "everybody on this machine can read this access token: chmod 0600";
            let _ = writeln!(io::stderr(), "keypeg: {path}: {warning}");
        }
        Ok(Some(text))
    }
}

async fn list(to: &To, state: Option<KeyState>) -> Result<u8, Failure> {
    let client = to.client()?;
    let columns = &["id", "state", "expires_at", "rests_until", "lease.holder", "reason"];
    let mut rows = Rows::new(to.output, "keys", columns);
    let mut pages = client.list(&to.pool, state);
    while let Some(keys) = pages.next().await? {
        rows.tell(&keys)?;
    }
    rows.end()
}

/// Reads how long a key rests, which may be not at all.
fn rest_ms(text: &str) -> Result<u64, String> {
    if text == "0s" { Ok(0) } else { length_ms(text) }
}

/// Reads a key's state by its word on the wire.
fn state(word: &str) -> Result<KeyState, String> {
    let found = KeyState::ALL.into_iter().find(|state| state.as_str() == word);
    found.ok_or_else(|| "it is available, leased, resting or quarantined".into())
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let code = match &error {
            Error::Refused(problem) => exit_of(problem),
            Error::Unreachable(_) => exit::UNAVAILABLE,
            Error::Unexpected { .. } => exit::PROTOCOL,
            Error::Unusable(_) => exit::USAGE,
        };
        let word = error.problem().map(|problem| format!(" ({})", problem.code.as_str()));
        Self::new(code, format!("{error}{}", word.unwrap_or_default()))
    }
}

/// By the status, so that a code that comes later has a place.
fn exit_of(problem: &Problem) -> u8 {
    match problem.status {
        _ if problem.code == Code::NoKeyAvailable => exit::TEMPORARY,
        401 | 403 => exit::PERMISSION,
        404 | 410 => exit::NO_INPUT,
        408 | 429 | 503 => exit::TEMPORARY,
        507 => exit::CANNOT_CREATE,
        500.. => exit::SOFTWARE,
        _ => exit::DATA,
    }
}
