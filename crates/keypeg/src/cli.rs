//! The commands that call a server. They use only `keypeg-client`, as any other client does.
//!
//! Results go to stdout, everything else to stderr; the exit code gives the kind of a failure, see
//! [`exit`].

mod backup;
mod bench;
mod cluster;
mod confirm;
mod delete;
mod events;
mod exec;
mod generate;
mod health;
mod import;
mod lease;
mod list;
mod new_keys;
mod pool;
mod progress;
mod purge_warning;
mod refusals;
mod server;
mod tls;
mod top;

pub use backup::BackupArgs;
pub use bench::BenchArgs;
pub use cluster::{ClusterCommand, ClusterPlace};
pub use delete::DeleteArgs;
pub use events::EventsArgs;
pub use exec::{ExecArgs, LauncherArgs, WatchdogArgs};
pub use generate::GenerateArgs;
pub use health::HealthArgs;
pub use import::ImportArgs;
pub use lease::LeaseArgs;
pub use list::{ListArgs, PoolsArgs};
pub use pool::{PolicyArgs, PoolCommand, PoolPlace};
pub use server::{ConnectionArgs, ServerArgs};
pub use top::TopArgs;

use crate::duration::HumanDuration;
use crate::failure::{Failure, exit};
use crate::streams;
use clap::Subcommand;
use keypeg_client::{
    KeepAliveRequest, QuarantineRequest, QuarantineWhen, ReleaseRequest, RenewRequest, Seconds,
};

/// A command that calls a running server.
#[derive(Debug, Subcommand)]
pub enum ClientCommand {
    /// Generate keys with random values
    ///
    /// Prints their ids. At most 10000 keys are generated in one call, completely or not at all. If a
    /// later call fails, the keys of the earlier ones stay, and the error states their number.
    Generate(GenerateArgs),
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
        /// Quarantine the key: it is not lent until `keypeg quarantine --undo` puts it back
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
    #[command(visible_alias = "force-release")]
    Unblock {
        /// Id of the key
        key: String,
        /// The server, the token, the pool and the output format.
        #[command(flatten)]
        server: ServerArgs,
    },
    /// Quarantine a key, so that it is not lent, or put it back
    ///
    /// A key that is leased loses its lease, or with --when free keeps it: it is draining, and is
    /// quarantined when the lease ends in any way.
    Quarantine {
        /// Id of the key
        key: String,
        /// Start of the quarantine of a leased key: now, or free (when its lease ends)
        #[arg(long, value_name = "WHEN", value_parser = when, default_value = "now")]
        when: QuarantineWhen,
        /// Reason, shown with the key
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
        /// Put the key back: end its quarantine, or cancel its draining
        #[arg(long, conflicts_with_all = ["when", "reason"])]
        undo: bool,
        /// The server, the token, the pool and the output format.
        #[command(flatten)]
        server: ServerArgs,
    },
    /// Delete keys permanently, whatever their state
    Delete(DeleteArgs),
    /// Reveal the value of a key, whatever its state, without a lease
    ///
    /// Needs the scope reveal. The audit log of the server records it.
    Reveal {
        /// Id of the key
        key: String,
        /// The server, the token, the pool and the output format.
        #[command(flatten)]
        server: ServerArgs,
    },
    /// Give a key a label, or another one
    Label {
        /// Id of the key
        key: String,
        /// Label, printable characters
        #[arg(required_unless_present = "remove", conflicts_with = "remove")]
        label: Option<String>,
        /// Remove the label
        #[arg(long)]
        remove: bool,
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
    List(ListArgs),
    /// Show a key, or the pool
    Show {
        /// Id of the key; if omitted, the pool is shown
        key: Option<String>,
        /// The server, the token, the pool and the output format.
        #[command(flatten)]
        server: ServerArgs,
    },
    /// List the pools
    Pools(PoolsArgs),
    /// Create, change and delete pools
    #[command(subcommand)]
    Pool(PoolCommand),
    /// Show the servers that share their pools, and move shards between them
    #[command(subcommand)]
    Cluster(ClusterCommand),
    /// Print the events of a pool as they happen
    ///
    /// The first event is resync, with the number of keys in each state. No event has the value of a
    /// key or the id of a lease. With --output json each event is one line.
    Events(EventsArgs),
    /// Show live how full the pools are and what ends next
    ///
    /// The terminal shows all pools, or the leases of one, with the last 15 minutes. q ends, the arrow
    /// keys scroll. Without a terminal the command prints one table and ends.
    Top(TopArgs),
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
            Self::Generate(args) => args.run().await,
            Self::Import { import, server } => {
                import::run(&server.client()?, &server.pool, &server.output, &import).await
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
                server.output.print_fields(&renewed)
            }
            Self::Unblock { key, server } => {
                let released = server.client()?.force_release(&server.pool, &key).await?;
                server.output.print_fields(&released)
            }
            Self::Quarantine { key, undo: true, server, .. } => {
                let back = server.client()?.end_quarantine(&server.pool, &key).await?;
                server.output.print_fields(&back)
            }
            Self::Quarantine { key, when, reason, undo: false, server } => {
                let request = QuarantineRequest { when: Some(when), reason };
                let shown = server.client()?.quarantine(&server.pool, &key, &request).await?;
                server.output.print_fields(&shown)
            }
            Self::Delete(args) => args.run().await,
            Self::Reveal { key, server } => {
                new_keys::require_stdout()?;
                server.output.require_field(&["id", "key"])?;
                server.output.print_fields(&server.client()?.reveal(&server.pool, &key).await?)
            }
            Self::Label { key, label, remove: _, server } => {
                let client = server.client()?;
                let labelled = client.set_label(&server.pool, &key, label.as_deref()).await?;
                server.output.print_fields(&labelled)
            }
            Self::Keepalive { keys, all, server } => {
                let named = keys.len();
                let request =
                    KeepAliveRequest { ids: (!all).then_some(keys), all: all.then_some(true) };
                let kept = server.client()?.keep_alive_many(&server.pool, &request).await?;
                server.output.print_fields(&kept)?;
                if kept.missing.is_empty() {
                    return Ok(0);
                }
                let message = format!(
                    "{} of {named} named keys do not exist: the output lists them as \"missing\"",
                    kept.missing.len()
                );
                Err(Failure::new(exit::NO_INPUT, message))
            }
            Self::List(args) => args.run().await,
            Self::Show { key: Some(key), server } => {
                server.output.print_fields(&server.client()?.key(&server.pool, &key).await?)
            }
            Self::Show { key: None, server } => {
                server.output.print_fields(&server.client()?.pool(&server.pool).await?)
            }
            Self::Pools(args) => args.run().await,
            Self::Pool(command) => command.run().await,
            Self::Cluster(command) => command.run().await,
            Self::Events(args) => args.run().await,
            Self::Top(args) => args.run().await,
            Self::Backup(args) => args.run().await,
            Self::Health(args) => args.run().await,
            Self::Exec(args) => exec::run(*args).await,
            Self::ExecLauncher(args) => Err(args.launch()),
            Self::ExecWatchdog(args) => args.watch().await,
            Self::Bench(args) => args.run().await,
        }
    }
}

/// Parses when a quarantine begins.
fn when(word: &str) -> Result<QuarantineWhen, String> {
    match word {
        "now" => Ok(QuarantineWhen::Now),
        "free" => Ok(QuarantineWhen::Free),
        _ => Err("use now or free".into()),
    }
}

/// The fields of a grant.
const GRANT_FIELDS: [&str; 12] = [
    "id",
    "pool",
    "key_id",
    "key",
    "label",
    "fencing_token",
    "holder",
    "granted_at",
    "waited_seconds",
    "expires_at",
    "expires_in_seconds",
    "key_expires_at",
];

/// Acquires a key and prints it. A key that cannot be printed is released: no process knows it.
async fn acquire(server: &ServerArgs, lease: &LeaseArgs) -> Result<u8, Failure> {
    new_keys::require_stdout()?;
    server.output.require_field(&GRANT_FIELDS)?;
    let mut report = |message: &str| streams::print_message(message);
    let source = server.source()?;
    let grant = lease.acquire(&source, &server.pool, &mut report).await?.grant;
    let Err(error) = server.output.try_print_fields(&grant) else { return Ok(0) };
    let released = match source.client().release(&server.pool, &grant.id).await {
        Ok(()) => "the key was released".into(),
        Err(failed) => format!(
            "the key could not be released either: {failed}; its lease ends at {}, or by \
             \"keypeg unblock {} --pool {}\"",
            grant.expires_at, grant.key_id, server.pool
        ),
    };
    Err(Failure::new(exit::IO, format!("{error}; {released}")))
}

/// Returns a length of time in its form on the wire.
fn seconds<const MIN_MS: u64>(length: HumanDuration<MIN_MS>) -> Seconds {
    Seconds::from_ms(length.ms())
}
