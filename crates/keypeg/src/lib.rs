//! The server as a library: `main.rs` is thin, and tests can start [`serve`] on their own port.
//!
//! keypeg-core owns the rules of pools, keypeg-store the requests and their lanes, keypeg-engine
//! durability and keypeg-client the wire format. This crate owns the rest: HTTP, configuration, the
//! system's clock and random source, signals.

mod access;
mod audit;
mod build_info;
mod characters;
#[cfg(feature = "cli")]
mod cli;
mod clock;
mod command_line;
mod config;
mod credentials;
mod duration;
mod failure;
mod file;
mod http;
mod log;
mod manual;
mod memory;
mod number;
mod options;
#[cfg_attr(
    not(feature = "cli"),
    expect(dead_code, reason = "the commands that call a server use all of it")
)]
mod output;
mod panics;
mod permissions;
mod program;
mod proxies;
mod random;
mod reloads;
mod restore;
mod seal;
mod share;
mod signals;
mod store;
mod streams;
mod supervisor;
mod text_file;
mod tls;
mod toml_text;
mod trusted_file;
mod variables;
mod vital;

pub use access::{Hosts, ListTokens, NewToken, RevokeToken, TokenCommand};
#[cfg(feature = "cli")]
pub use cli::{
    BackupArgs, BenchArgs, ClientCommand, ClusterCommand, ClusterPlace, ConnectionArgs, DeleteArgs,
    EventsArgs, ExecArgs, GenerateArgs, HealthArgs, ImportArgs, LauncherArgs, LeaseArgs, ListArgs,
    PolicyArgs, PoolCommand, PoolPlace, PoolsArgs, ServerArgs, TopArgs, WatchdogArgs,
};
pub use clock::SystemClock;
pub use command_line::{CheckArgs, Cli, Command};
pub use config::{ClusterSettings, Config};
pub use duration::HumanDuration;
pub use failure::{Failure, exit};
pub use log::{LogFormat, flush_streams, log_to_stderr, print_line, report_usage, start_streams};
pub use manual::{CompletionsArgs, ManArgs};
pub use options::Options;
pub use panics::install as install_panic_hook;
pub use program::run_program;
pub use random::SystemRandom;
pub use restore::{ContinueArgs, RestoreArgs, check_backup};
pub use seal::{NewSealKey, RotateSealKey, SealCommand};
pub use signals::stop_signal;
pub use store::open as open_store;

use access::{Access, Gate};
use http::DescriptorNeeds;
use keypeg_store::{OpenedStore, StartReport};
use std::fmt;
use std::future::Future;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tls::{TlsAcceptor, TlsFilesError};

/// The state of a server at the moment it is ready; its `Display` is the ready line on stdout.
#[derive(Clone, Debug)]
pub struct Ready {
    /// The address the server listens on.
    pub addr: SocketAddr,
    /// Whether it speaks HTTPS.
    pub has_tls: bool,
    /// The address for operations alone, if there is one.
    pub ops_addr: Option<SocketAddr>,
    /// What the store found when it opened.
    pub report: StartReport,
    /// The data directory; `None` when all data is in memory, or in a store.
    pub data: Option<PathBuf>,
    /// The name of this server, if several share a store.
    pub server: Option<String>,
}

/// Connections that may wait to be accepted, as far as the system allows. The standard library
/// uses 128; a client that connects beyond the backlog waits a second before its next attempt.
const BACKLOG: i32 = 4_096;

/// Raises the limit of open files as far as allowed, and refuses too low a limit. To be called before
/// [`serve`], whose number of connections depends on the limit.
pub fn raise_descriptor_limit(config: &Config) -> Result<(), Failure> {
    http::raise_descriptor_limit();
    DescriptorNeeds::of(config).check()
}

/// Binds the listen address; connections wait in the backlog until [`serve`].
pub fn listen(config: &Config) -> Result<TcpListener, Failure> {
    let listener = bind("--listen", config.listen)?;
    // On a socket that already listens, this changes only the backlog.
    rustix::net::listen(&listener, BACKLOG).map_err(|error| {
        Failure::new(exit::OS, format!("cannot set the listen backlog: {error}"))
    })?;
    http::bound_kernel_buffers(&listener).map_err(|error| {
        Failure::new(exit::OS, format!("cannot set the buffers of connections: {error}"))
    })?;
    Ok(listener)
}

/// Binds the address of an option.
fn bind(option: &str, listen: SocketAddr) -> Result<TcpListener, Failure> {
    TcpListener::bind(listen).map_err(|error| {
        let kind = error.kind();
        if kind == ErrorKind::AddrInUse {
            let message = format!(
                "{listen} is in use by another process: stop that process, or use another {option}"
            );
            Failure::new(exit::UNAVAILABLE, message)
        } else if kind == ErrorKind::PermissionDenied {
            let message = format!("not permitted to listen on {listen}: use a port above 1023");
            Failure::new(exit::PERMISSION, message)
        } else {
            let message =
                format!("cannot listen on {listen}: {error}: use an address of this machine");
            Failure::new(exit::UNAVAILABLE, message)
        }
    })
}

/// Runs the server on `listener` until `stop` is ready and the requests in progress are answered.
///
/// `open` opens the store; its argument is the number of lanes. `ready` is called once, after the
/// store has opened and before the first connection is accepted.
pub fn serve(
    config: &Config,
    open: impl FnOnce(usize) -> Result<OpenedStore, Failure>,
    listener: TcpListener,
    stop: impl Future<Output = ()>,
    ready: impl FnOnce(&Ready),
) -> Result<(), Failure> {
    tracing::info!("memory: {}", config.memory);
    clock::check_wall_clock()?;
    let ops = config.ops_listen.map(|listen| bind("--ops-listen", listen)).transpose()?;
    let cores = config.cores();
    let access = Arc::new(access(config)?);
    let tls = tls(config)?;
    let (audit, writer) = config.audit.clone().map(audit::open).transpose()?.unzip();
    let audit = audit.map(Arc::new);
    let peer_tls = match &config.cluster {
        Some(cluster) => Some(tls::PeerTls::open(cluster.ca.as_deref())?),
        None => None,
    };
    match &config.tokens {
        None => tracing::info!("no --tokens: every client that can connect may make every call"),
        Some(path) => tracing::info!("access tokens are in {}", path.display()),
    }
    let opening = clock::stopwatch();
    let OpenedStore { store, lanes, report, cluster } = open(cores)?;
    let recovery_time = opening.elapsed();
    let shards = cluster.as_ref().map(|cluster| cluster.shards());
    let descriptors = DescriptorNeeds { shards, ..DescriptorNeeds::of(config) };
    // The store can have more shards than a new one.
    if let Err(failure) = descriptors.check() {
        store.stop();
        return Err(failure);
    }
    let lanes: Vec<_> =
        lanes.into_iter().map(|lanes| http::Lanes::new(lanes, cluster.clone())).collect();
    for lane in lanes.iter().flat_map(http::Lanes::all) {
        lane.set_capacity(config.max_queued);
    }
    if report.batches_cut > 0 {
        tracing::info!(
            "discarded an incomplete, unacknowledged batch at the end of the journal: the last \
             run ended while writing it"
        );
    }
    if config.policy_given && report.default_policy_kept.is_some() {
        tracing::warn!(
            "--lease-ttl and --keepalive-ttl are ignored: they apply to a new data directory, and \
             the default pool keeps its stored policy; change it with PUT /v1/pools/default"
        );
    }
    let addr_of = |listener: &TcpListener| {
        listener.local_addr().map_err(|error| {
            Failure::new(exit::OS, format!("cannot read the listen address: {error}"))
        })
    };
    let addr = addr_of(&listener)?;
    let ops_addr = ops.as_ref().map(addr_of).transpose()?;
    let start_info = http::StartInfo {
        recovery: report.clone(),
        access,
        audit,
        tls,
        peer_tls,
        proxies: config.proxies.clone(),
        recovery_time,
        metrics_pools: config.metrics_pools,
        memory: config.memory,
        descriptors,
        store_metrics: store.metrics(),
        backups: store.backups(),
        key_versions: store.key_versions(),
        core_turns: store.core_turns(),
    };
    let has_tls = config.tls.is_some();
    let name = config.cluster.as_ref().map(|cluster| cluster.server.to_string());
    ready(&Ready { addr, has_tls, ops_addr, report, data: config.data.clone(), server: name });
    let stop = async {
        stop.await;
        // Waiting acquires end now, so that they do not delay the stop.
        store.cancel_waits();
    };
    let served = http::accept::run(
        http::accept::Listeners { clients: listener, ops },
        lanes,
        start_info,
        config.timeouts,
        stop,
    );
    store.stop();
    if let Some(writer) = writer {
        writer.end();
    }
    tracing::info!("stopped");
    served.map_err(|error| Failure::new(exit::OS, format!("cannot accept connections: {error}")))
}

/// Reads the token file, if one is configured.
fn access(config: &Config) -> Result<Access, Failure> {
    let gate = config.tokens.clone().map(|path| {
        let opened = Gate::open(path.clone(), connections_max(config));
        opened.map(Arc::new).map_err(|error| error.into_failure(&path))
    });
    let gate = gate.transpose()?;
    gate.as_ref().map_or(Ok(()), access::watch)?;
    Ok(Access::new(config.hosts.clone(), gate, clock::stopwatch()))
}

/// Reads the certificate, if one is configured.
fn tls(config: &Config) -> Result<Option<Arc<TlsAcceptor>>, Failure> {
    let Some(files) = config.tls.clone() else { return Ok(None) };
    tracing::info!("the TLS certificate is in {}", files.certificate.display());
    // A quarter of the connections may be in their handshake; at least some of few.
    let handshakes_max = (connections_max(config) / 4).max(16);
    let opened = TlsAcceptor::open(files, handshakes_max).map_err(TlsFilesError::into_failure)?;
    let opened = Arc::new(opened);
    tls::watch(&opened)?;
    Ok(Some(opened))
}

fn connections_max(config: &Config) -> usize {
    let (memory, descriptors) = (config.memory.connections, DescriptorNeeds::of(config));
    http::accept::connections_max(memory, config.tls.is_some(), descriptors)
}

/// The result of [`check`]; its `Display` is the line that `keypeg check` prints.
#[derive(Clone, Debug)]
pub struct CheckReport {
    data: PathBuf,
    report: StartReport,
}

/// Reports what a start would recover from a data directory, and changes nothing in it.
pub fn check(data: &Path, seal_key: Option<&Path>) -> Result<CheckReport, Failure> {
    Ok(CheckReport { data: data.to_owned(), report: store::check(data, seal_key)? })
}

impl fmt::Display for CheckReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let StartReport { keys, pools, leases, starts_before, batches_cut, .. } = &self.report;
        write!(
            f,
            "{} is intact: {} in {}, {} active, {} so far",
            self.data.display(),
            Count(*keys, "key"),
            Count(*pools, "pool"),
            Count(*leases, "lease"),
            Count(*starts_before, "start"),
        )?;
        if *batches_cut > 0 {
            f.write_str("; a start would discard the journal's torn, unacknowledged tail")?;
        }
        Ok(())
    }
}

impl fmt::Display for Ready {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let StartReport { keys, pools, leases, created, .. } = &self.report;
        let scheme = if self.has_tls { "https" } else { "http" };
        write!(f, "keypeg {} ready on {scheme}://{}: ", build_info::VERSION, self.addr)?;
        if let Some(server) = &self.server {
            let verb = if *created { "created" } else { "joins" };
            write!(f, "server {server} {verb} the installation in the store")?;
            return self.ops(f, scheme);
        }
        write!(
            f,
            "{} in {}, {} active",
            Count(*keys, "key"),
            Count(*pools, "pool"),
            Count(*leases, "lease"),
        )?;
        match &self.data {
            None => f.write_str(" (in memory only)"),
            Some(data) if *created => write!(f, " (created {})", data.display()),
            Some(data) => write!(f, " (recovered from {})", data.display()),
        }?;
        self.ops(f, scheme)
    }
}

impl Ready {
    fn ops(&self, f: &mut fmt::Formatter<'_>, scheme: &str) -> fmt::Result {
        self.ops_addr.map_or(Ok(()), |addr| write!(f, ", operations on {scheme}://{addr}"))
    }
}

/// A number and the singular noun it counts.
struct Count(u64, &'static str);

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = if self.0 == 1 { "" } else { "s" };
        write!(f, "{} {}{plural}", self.0, self.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use std::net::TcpStream;
    use std::time::Duration;

    /// With a backlog of 128, 10 000 connections took a minute to open: the kernel dropped each
    /// connection beyond the backlog, and its client tried again after a second.
    #[test]
    fn hundreds_of_connections_may_wait_to_be_accepted() {
        let cli = Cli::try_parse_from(["keypeg", "serve", "--listen", "127.0.0.1:0"]).unwrap();
        let Command::Serve(options) = cli.command else { panic!("the command is serve") };
        let listener = listen(&Config::new(*options).unwrap()).unwrap();
        let addr = listener.local_addr().unwrap();
        let connect_timeout = Duration::from_secs(10);
        let waiting = (0..500).map(|_| TcpStream::connect_timeout(&addr, connect_timeout));
        let waiting: Result<Vec<_>, _> = waiting.collect();
        assert!(waiting.is_ok(), "{waiting:?}");
    }

    #[test]
    fn the_ready_line_has_singular_and_plural_counts() {
        let ready = |keys, created, data: Option<&str>| Ready {
            addr: "127.0.0.1:8000".parse().unwrap(),
            has_tls: false,
            ops_addr: None,
            report: StartReport { keys, pools: 1, leases: 1, created, ..StartReport::default() },
            data: data.map(Into::into),
            server: None,
        };
        let start = format!("keypeg {} ready on http://127.0.0.1:8000:", build_info::VERSION);
        for (ready, rest) in [
            (
                ready(3, false, Some("./keypeg-data")),
                "3 keys in 1 pool, 1 lease active (recovered from ./keypeg-data)",
            ),
            (ready(1, true, Some("d")), "1 key in 1 pool, 1 lease active (created d)"),
            (ready(0, true, None), "0 keys in 1 pool, 1 lease active (in memory only)"),
        ] {
            assert_eq!(ready.to_string(), format!("{start} {rest}"));
        }
    }
}
