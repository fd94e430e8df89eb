//! The commands that call a server. They use only `keypeg-client`, as any other client does.
//!
//! Results go to stdout, everything else to stderr; the exit code gives the kind of a failure, see
//! [`exit`].

mod backup;
mod bench;
mod characters;
mod exec;
mod health;
mod import;
mod lease;
mod new_keys;
mod output;
mod purge_warning;
mod server;
mod tls;

pub use backup::BackupArgs;
pub use bench::BenchArgs;
pub use exec::{ExecArgs, LauncherArgs, WatchdogArgs};
pub use health::HealthArgs;
pub use import::ImportArgs;
pub use lease::LeaseArgs;
pub use server::ServerArgs;

use crate::duration::HumanDuration;
use crate::failure::{Failure, exit};
use crate::streams;
use clap::{Subcommand, value_parser};
use keypeg_client::{
    Code, Error, GenerateRequest, KeepAliveRequest, KeyState, Problem, ReleaseRequest,
    RenewRequest, Seconds,
};
use keypeg_fields::GENERATE_MAX;
use new_keys::NewKeyRow;
use output::{OutputFormat, RowPrinter};
use std::io::ErrorKind;

/// A command that calls a running server.
#[derive(Debug, Subcommand)]
pub enum ClientCommand {
    /// Generate keys with random values
    Generate {
        /// Number of keys
        #[arg(short = 'n', long, default_value_t = 1)]
        #[arg(value_parser = value_parser!(u32).range(1..=i64::from(GENERATE_MAX)))]
        count: u32,
        /// Print the values of the keys
        #[arg(long)]
        show_keys: bool,
        /// The server, the token, the pool and the output format.
        #[command(flatten)]
        server: ServerArgs,
    },
    /// Import keys from a file, one value per line
    ///
    /// The whole file is checked before anything is imported. It is sent in batches of at most
    /// 10000 values, each of which is imported completely or not at all. If a batch fails, the
    /// batches before it stay imported, and the error names the lines.
    Import {
        /// The file, and how its lines become keys.
        #[command(flatten)]
        import: ImportArgs,
        /// The server, the token, the pool and the output format.
        #[command(flatten)]
        server: ServerArgs,
    },
    /// Acquire a random available key under a lease
    ///
    /// The lease ends when it expires, or by `keypeg release`.
    Acquire {
        /// The options of the lease.
        #[command(flatten)]
        lease: LeaseArgs,
        /// The server, the token, the pool and the output format.
        #[command(flatten)]
        server: ServerArgs,
    },
    /// Release a key by the id of its lease
    Release {
        /// Id of the lease
        lease: String,
        /// Rest time of the key, such as 0s, 30s or 1m30s [default: the pool's]
        #[arg(long, value_name = "DURATION")]
        rest: Option<HumanDuration<0>>,
        /// Quarantine the key: it is not lent until `keypeg unblock` force-releases it
        #[arg(long)]
        quarantine: bool,
        /// Reason, shown with the key
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
        /// The server, the token, the pool and the output format.
        #[command(flatten)]
        server: ServerArgs,
    },
    /// Renew a lease: move its end to now plus a time, up to the maximum hold of its pool
    Renew {
        /// Id of the lease
        lease: String,
        /// Lease TTL from now, such as 500ms, 1m30s or 2h [default: the pool's]
        #[arg(long, value_name = "DURATION")]
        ttl: Option<HumanDuration>,
        /// The server, the token, the pool and the output format.
        #[command(flatten)]
        server: ServerArgs,
    },
    /// Force-release a key: make it available, even while a client holds it
    Unblock {
        /// Id of the key
        key: String,
        /// The server, the token, the pool and the output format.
        #[command(flatten)]
        server: ServerArgs,
    },
    /// Delete a key permanently, whatever its state
    Delete {
        /// Id of the key
        key: String,
        /// The server, the token, the pool and the output format.
        #[command(flatten)]
        server: ServerArgs,
    },
    /// Send a keep-alive for keys, which postpones their purge
    Keepalive {
        /// Ids of the keys
        #[arg(required_unless_present = "all", conflicts_with = "all")]
        keys: Vec<String>,
        /// All keys of the pool
        #[arg(long)]
        all: bool,
        /// The server, the token, the pool and the output format.
        #[command(flatten)]
        server: ServerArgs,
    },
    /// List the keys of a pool, without their values
    List {
        /// State of the keys to list: available, leased, resting or quarantined
        #[arg(long, value_name = "STATE", value_parser = state)]
        state: Option<KeyState>,
        /// Number of keys after which the list ends [default: all]
        #[arg(long, value_name = "N", value_parser = value_parser!(u64).range(1..))]
        limit: Option<u64>,
        /// The server, the token, the pool and the output format.
        #[command(flatten)]
        server: ServerArgs,
    },
    /// Show a key, or the pool
    Show {
        /// Id of the key; if omitted, the pool is shown
        key: Option<String>,
        /// The server, the token, the pool and the output format.
        #[command(flatten)]
        server: ServerArgs,
    },
    /// List the pools
    Pools {
        /// Number of pools after which the list ends [default: all]
        #[arg(long, value_name = "N", value_parser = value_parser!(u64).range(1..))]
        limit: Option<u64>,
        /// The server, the token, the pool and the output format.
        #[command(flatten)]
        server: ServerArgs,
    },
    /// Create a backup of a running server
    ///
    /// The file contains all pools and the values of all keys, as of one moment. Restore it with
    /// `keypeg restore`, check it with `keypeg check`. The server goes on meanwhile.
    Backup(Box<BackupArgs>),
    /// Exit with 0 if the server accepts requests, with 1 if it does not
    ///
    /// For health checks where there is no HTTP client, as in a container.
    Health(HealthArgs),
    /// Run a command with an acquired key, and release the key when the command exits
    ///
    /// The command finds the key in `KEYPEG_KEY`, its id in `KEYPEG_KEY_ID` and the fencing token
    /// in `KEYPEG_FENCING_TOKEN`. While it runs, the lease is renewed and the key is kept alive. If
    /// the lease ends, the command and all processes that it started are ended, and the exit code
    /// is 75. Signals are forwarded to the command, and its exit code is returned: 128 + n after
    /// signal n, 126 if it cannot be run, 127 if it does not exist. Write -- before the command.
    Exec(Box<ExecArgs>),
    /// Become the command of `exec`
    #[command(hide = true)]
    ExecLauncher(LauncherArgs),
    /// End the command of `exec` if that cannot
    #[command(hide = true)]
    ExecWatchdog(WatchdogArgs),
    /// Load-test a server and report throughput, latency, processor time and memory
    ///
    /// Latencies are those of whole HTTP requests. With --rate they count from the time a request
    /// was due, so that a stall of the server is measured in full.
    Bench(Box<BenchArgs>),
}

impl ClientCommand {
    /// Runs the command, prints its result, and returns the exit code.
    pub fn run(mut self) -> Result<u8, Failure> {
        if let Self::ExecLauncher(args) = self {
            return Err(args.launch());
        }
        if let Self::Exec(args) = &mut self {
            args.hide_secrets()?;
        }
        let failed =
            |error| Failure::new(exit::OS, format!("cannot start the client's runtime: {error}"));
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
        runtime.block_on(self.call())
    }

    async fn call(self) -> Result<u8, Failure> {
        match self {
            Self::Generate { count, show_keys, server } => {
                generate(&server, count, show_keys).await
            }
            Self::Import { import, server } => {
                import::run(&server.client()?, &server.pool, server.format, &import).await
            }
            Self::Acquire { lease, server } => acquire(&server, &lease).await,
            Self::Release { lease, rest, quarantine, reason, server } => {
                let rest_seconds = rest.map(seconds);
                let quarantine = quarantine.then_some(true);
                let request = ReleaseRequest { rest_seconds, quarantine, reason };
                server.client()?.release_with(&server.pool, &lease, &request).await?;
                Ok(0)
            }
            Self::Renew { lease, ttl, server } => {
                let request = RenewRequest { ttl_seconds: ttl.map(seconds) };
                let renewed = server.client()?.renew(&server.pool, &lease, &request).await?;
                server.format.print_fields(&renewed)
            }
            Self::Unblock { key, server } => {
                let released = server.client()?.force_release(&server.pool, &key).await?;
                server.format.print_fields(&released)
            }
            Self::Delete { key, server } => {
                server.client()?.delete_key(&server.pool, &key).await?;
                Ok(0)
            }
            Self::Keepalive { keys, all, server } => {
                let named = keys.len();
                let request =
                    KeepAliveRequest { ids: (!all).then_some(keys), all: all.then_some(true) };
                let kept = server.client()?.keep_alive_many(&server.pool, &request).await?;
                server.format.print_fields(&kept)?;
                if kept.missing.is_empty() {
                    return Ok(0);
                }
                let message = format!(
                    "{} of {named} named keys do not exist: the output lists them as \"missing\"",
                    kept.missing.len()
                );
                Err(Failure::new(exit::NO_INPUT, message))
            }
            Self::List { state, limit, server } => list(&server, state, limit).await,
            Self::Show { key: Some(key), server } => {
                server.format.print_fields(&server.client()?.key(&server.pool, &key).await?)
            }
            Self::Show { key: None, server } => {
                server.format.print_fields(&server.client()?.pool(&server.pool).await?)
            }
            Self::Pools { limit, server } => pools(&server, limit).await,
            Self::Backup(args) => args.run().await,
            Self::Health(args) => args.run().await,
            Self::Exec(args) => exec::run(*args).await,
            Self::ExecLauncher(args) => Err(args.launch()),
            Self::ExecWatchdog(args) => args.watch().await,
            Self::Bench(args) => args.run().await,
        }
    }
}

async fn generate(server: &ServerArgs, count: u32, shows_keys: bool) -> Result<u8, Failure> {
    if shows_keys {
        new_keys::require_stdout()?;
    }
    let request = GenerateRequest { count: Some(count), ..GenerateRequest::default() };
    let generated = server.client()?.generate(&server.pool, &request).await?;
    let rows: Vec<_> = generated.keys.iter().map(|key| NewKeyRow::of(key, shows_keys)).collect();
    let whole = serde_json::json!({ "keys": &rows });
    let columns = new_keys::columns(shows_keys);
    let happened = format!("{} generated", new_keys::count(rows.len()));
    match server.format.try_print_rows(&whole, &rows, columns) {
        Err(error) if shows_keys || error.kind() != ErrorKind::BrokenPipe => {
            let message = format!(
                "{happened}, but the output is not complete: cannot write to stdout: {error}; \
                 \"keypeg list --pool {}\" prints the ids",
                server.pool
            );
            Err(Failure::new(exit::IO, message))
        }
        _ => {
            if server.format == OutputFormat::Table {
                new_keys::print_count(&happened, shows_keys);
            }
            Ok(0)
        }
    }
}

/// Acquires a key and prints it. A key that cannot be printed is released: no process knows it.
async fn acquire(server: &ServerArgs, lease: &LeaseArgs) -> Result<u8, Failure> {
    new_keys::require_stdout()?;
    let mut report = |message: &str| streams::print_message(message);
    let source = server.source()?;
    let grant = lease.acquire(&source, &server.pool, &mut report).await?.grant;
    let Err(error) = server.format.try_print_fields(&grant) else { return Ok(0) };
    let released = match source.client().release(&server.pool, &grant.id).await {
        Ok(()) => "the key was released".into(),
        Err(failed) => format!(
            "the key could not be released either: {failed}; its lease ends at {}, or by \
             \"keypeg unblock {} --pool {}\"",
            grant.expires_at, grant.key_id, server.pool
        ),
    };
    Err(Failure::new(exit::IO, format!("cannot write to stdout: {error}; {released}")))
}

async fn list(
    server: &ServerArgs,
    state: Option<KeyState>,
    limit: Option<u64>,
) -> Result<u8, Failure> {
    let client = server.client()?;
    let columns = &["id", "state", "expires_at", "rests_until", "lease.holder", "reason"];
    let mut rows = RowPrinter::new(server.format, Some("keys"), columns);
    let pages = client.list_all_keys(&server.pool, state);
    let mut pages = pages.with_limit(limit.unwrap_or(u64::MAX));
    while let Some(keys) = pages.next().await? {
        if let Err(error) = rows.print(&keys) {
            return output::printed(Err(error));
        }
    }
    output::printed(rows.finish())
}

async fn pools(server: &ServerArgs, limit: Option<u64>) -> Result<u8, Failure> {
    let columns = &["pool", "available", "leased", "resting", "quarantined", "total", "waiting"];
    let mut rows = RowPrinter::new(server.format, None, columns);
    let pages = server.client()?.list_all_pools();
    let mut pages = pages.with_limit(limit.unwrap_or(u64::MAX));
    while let Some(pools) = pages.next().await? {
        if let Err(error) = rows.print(&pools) {
            return output::printed(Err(error));
        }
    }
    output::printed(rows.finish())
}

/// Returns a length of time in its form on the wire.
fn seconds<const MIN_MS: u64>(length: HumanDuration<MIN_MS>) -> Seconds {
    Seconds::from_ms(length.ms())
}

/// Parses a key's state as it is written on the wire.
fn state(word: &str) -> Result<KeyState, String> {
    let found = KeyState::ALL.into_iter().find(|state| state.as_str() == word);
    found.ok_or_else(|| "use available, leased, resting or quarantined".into())
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let code = match &error {
            Error::Refused(problem) => exit_of(problem),
            Error::Unreachable(_) => exit::UNAVAILABLE,
            Error::WaitEnded { last: Some(last), .. } => match &**last {
                Error::Refused(problem) => exit_of(problem),
                Error::Unreachable(_) => exit::UNAVAILABLE,
                Error::Unexpected { .. } | Error::WaitEnded { .. } | Error::InvalidInput(_) => {
                    exit::TEMPORARY
                }
            },
            Error::WaitEnded { last: None, .. } => exit::TEMPORARY,
            Error::Unexpected { .. } => exit::PROTOCOL,
            Error::InvalidInput(_) => exit::USAGE,
        };
        let suffix = match &error {
            Error::Refused(problem) => match next_step(problem) {
                "" => format!(" ({})", problem.code.as_str()),
                step => format!(" ({}); {step}", problem.code.as_str()),
            },
            error if error.is_tls() => String::new(),
            Error::Unreachable(_) => {
                "; start it with \"keypeg serve\", or name it with --server or KEYPEG_SERVER".into()
            }
            Error::WaitEnded { last, .. } => {
                let problem = last.as_deref().and_then(Error::problem);
                problem.map_or_else(String::new, |last| format!(" ({})", last.code.as_str()))
            }
            Error::Unexpected { .. } | Error::InvalidInput(_) => String::new(),
        };
        Self::new(code, format!("{error}{suffix}"))
    }
}

/// Returns the next step at the command line, where the server's answer names only one of the API.
fn next_step(problem: &Problem) -> &'static str {
    match (problem.code.as_str(), problem.extensions.cause.as_deref()) {
        ("unauthorized", _) => "name the file of an access token with --token-file",
        ("unknown_pool", _) => "\"keypeg pools\" prints the pools; --pool names one",
        ("unknown_key", _) => "\"keypeg list\" prints the ids of the keys",
        ("lease_ended", _) => "\"keypeg list --state leased\" prints the keys that are leased",
        ("no_key_available", Some("pool_empty")) => {
            "\"keypeg generate\" or \"keypeg import\" adds keys"
        }
        ("no_key_available", Some("all_quarantined")) => {
            "\"keypeg list --state quarantined\" prints them, \"keypeg unblock\" releases one"
        }
        ("no_key_available", _) => "add --wait to wait for a key",
        ("misdirected", _) => "start the server with --allow-host and this name",
        _ => "",
    }
}

/// Maps a problem to an exit code, mostly by its status, so that future codes are covered.
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
