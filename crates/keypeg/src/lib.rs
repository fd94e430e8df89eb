//! The server as a library: `main.rs` is thin, and tests can start [`serve`] on a port of theirs.
//!
//! What the pools may do is keypeg-core's, what is durable is keypeg-engine's, how things look on
//! the wire is keypeg-client's. Here is what is left: HTTP, configuration, the system's clock and
//! random, signals.

mod access;
#[cfg(feature = "cli")]
mod cli;
mod clock;
mod config;
mod failure;
mod file;
mod http;
mod memory;
mod panics;
mod random;
mod signals;

pub use access::{Hosts, Mint};
#[cfg(feature = "cli")]
pub use cli::{Ask, BenchArgs, To, Wanted};
pub use clock::SystemClock;
pub use config::{Cli, Command, Config, ServeArgs};
pub use failure::{Failure, exit};
pub use panics::install as tell_panics;
pub use random::SystemChance;
pub use signals::stop_signal;

use access::{Access, Audit, AuditWriter, Gate};
use keypeg_engine::{Engine, EngineConfig, RecoveryReport};
use std::fmt;
use std::future::Future;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tracing_subscriber::EnvFilter;

/// What a server that is ready has to say about itself.
#[derive(Clone, Debug)]
pub struct Ready {
    /// Where it listens.
    pub addr: SocketAddr,
    /// What its start found.
    pub recovered: RecoveryReport,
    /// Its directory; `None` for memory alone.
    pub data: Option<PathBuf>,
}

/// Connections that may wait to be accepted, as far as the system allows. The standard library
/// takes 128, and whoever comes as one more waits for a second before it is tried again.
const BACKLOG: i32 = 4_096;

/// Takes the address to listen on; connections wait until [`serve`].
pub fn listen(config: &Config) -> Result<TcpListener, Failure> {
    let listener = bind(config)?;
    // On a socket that listens this changes the bound alone.
    rustix::net::listen(&listener, BACKLOG)
        .map_err(|error| Failure::new(exit::OS, format!("listening: {error}")))?;
    Ok(listener)
}

fn bind(config: &Config) -> Result<TcpListener, Failure> {
    TcpListener::bind(config.listen).map_err(|error| {
        let listen = config.listen;
        let kind = error.kind();
        if kind == ErrorKind::AddrInUse {
            let message =
                format!("{listen} is in use by another process: stop it, or use another --listen");
            Failure::new(exit::UNAVAILABLE, message)
        } else if kind == ErrorKind::PermissionDenied {
            let message = format!("not permitted to listen on {listen}: take a port above 1023");
            Failure::new(exit::PERMISSION, message)
        } else {
            Failure::new(exit::UNAVAILABLE, format!("listening on {listen}: {error}"))
        }
    })
}

/// Runs the server on `listener` until `stop` is ready and what was begun is answered. `ready` is
/// called once, when the directory is recovered and before the first connection is taken.
pub fn serve(
    config: &Config,
    listener: TcpListener,
    stop: impl Future<Output = ()>,
    ready: impl FnOnce(&Ready),
) -> Result<(), Failure> {
    memory::keep_private();
    http::accept::raise_descriptor_limit();
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    let (access, writer) = access(config)?;
    let access = Arc::new(access);
    let setup = EngineConfig {
        data: config.data.clone(),
        lanes: cores,
        default_policy: config.default_policy.clone(),
        max_keys: config.max_keys,
        must_exist: config.existing,
    };
    let clock = Box::new(SystemClock::new()?);
    let (engine, lanes, recovered) = Engine::start(&setup, clock, Box::new(SystemChance::new()))?;
    for lane in &lanes {
        lane.set_capacity(config.max_queued);
    }
    if recovered.batches_cut > 0 {
        tracing::info!("the last start ended in the middle of a batch, which nobody was told of");
    }
    if config.policy_asked && recovered.default_policy_kept.is_some() {
        tracing::warn!(
            "the default pool's stored policy stands: --lease-ttl and --keepalive-ttl are for a \
             new directory; PUT /v1/pools/default changes it"
        );
    }
    let addr = listener
        .local_addr()
        .map_err(|error| Failure::new(exit::OS, format!("asking for the address: {error}")))?;
    let begun = http::Begun { recovered: recovered.clone(), access, meter: engine.metrics() };
    ready(&Ready { addr, recovered, data: config.data.clone() });
    let stop = async {
        stop.await;
        // Nobody who waits for a key holds the stop up.
        engine.cancel_waits();
    };
    let served = http::accept::run(listener, lanes, begun, stop);
    engine.stop();
    if let Some(writer) = writer {
        writer.end();
    }
    tracing::info!("stopped");
    served.map_err(|error| Failure::new(exit::OS, format!("taking connections: {error}")))
}

/// Reads the tokens and opens the audit log, as far as they are configured.
fn access(config: &Config) -> Result<(Access, Option<AuditWriter>), Failure> {
    let gate = config.tokens.clone().map(|path| {
        let opened = Gate::open(path.clone(), http::accept::connections_max());
        opened.map(Arc::new).map_err(|unread| unread.failure(&path))
    });
    let gate = gate.transpose()?;
    gate.as_ref().map_or(Ok(()), access::watch)?;
    let (audit, writer) = config.audit.clone().map(Audit::open).transpose()?.unzip();
    let audit = audit.map(Arc::new);
    Ok((Access { hosts: config.hosts.clone(), gate, audit }, writer))
}

/// What a start would make of a data directory.
#[derive(Clone, Debug)]
pub struct Checked {
    data: PathBuf,
    recovered: RecoveryReport,
}

/// Tells what a start would make of a data directory, and changes nothing in it.
pub fn check(data: &Path) -> Result<Checked, Failure> {
    let (clock, random) = (Box::new(SystemClock::new()?), Box::new(SystemChance::new()));
    let recovered = keypeg_engine::check_data_dir(data, clock, random)?;
    Ok(Checked { data: data.to_owned(), recovered })
}

impl fmt::Display for Checked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let RecoveryReport { keys, pools, leases, starts_before, batches_cut, .. } =
            &self.recovered;
        write!(
            f,
            "{} is whole: {} in {}, {} running, {} so far",
            self.data.display(),
            Count(*keys, "key"),
            Count(*pools, "pool"),
            Count(*leases, "lease"),
            Count(*starts_before, "start"),
        )?;
        if *batches_cut > 0 {
            f.write_str("; a start would cut a tail that a crash tore and nobody was answered")?;
        }
        Ok(())
    }
}

/// Sends the log to stderr, at the level `KEYPEG_LOG` names (`info` when it is not set).
pub fn log_to_stderr() -> Result<(), Failure> {
    let wanted = std::env::var("KEYPEG_LOG").unwrap_or_else(|_| "info".into());
    let filter = EnvFilter::builder().parse(&wanted).map_err(|error| {
        Failure::new(exit::CONFIG, format!("KEYPEG_LOG={wanted:?} is no log level: {error}"))
    })?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    Ok(())
}

impl fmt::Display for Ready {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let RecoveryReport { keys, pools, leases, created, .. } = &self.recovered;
        write!(
            f,
            "keypeg {} ready on http://{}: {} in {}, {} running",
            env!("CARGO_PKG_VERSION"),
            self.addr,
            Count(*keys, "key"),
            Count(*pools, "pool"),
            Count(*leases, "lease"),
        )?;
        match &self.data {
            None => f.write_str(" (in memory alone)"),
            Some(data) if *created => write!(f, " (made {})", data.display()),
            Some(data) => write!(f, " (recovered from {})", data.display()),
        }
    }
}

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

    /// 10 000 connections once took a minute to open: each 129th that came before it could be
    /// accepted was dropped by the kernel, and its client tried again after a second.
    #[test]
    fn hundreds_of_connections_may_wait_to_be_accepted() {
        let cli = Cli::try_parse_from(["keypeg", "serve", "--listen", "127.0.0.1:0"]).unwrap();
        let Command::Serve(args) = cli.command else { panic!("serve was asked for") };
        let listener = listen(&Config::new(*args).unwrap()).unwrap();
        let addr = listener.local_addr().unwrap();
        let patience = Duration::from_secs(10);
        let waiting = (0..500).map(|_| TcpStream::connect_timeout(&addr, patience));
        let waiting: Result<Vec<_>, _> = waiting.collect();
        assert!(waiting.is_ok(), "{waiting:?}");
    }

    #[test]
    fn the_ready_line_counts_in_words() {
        let ready = |keys, created, data: Option<&str>| Ready {
            addr: "127.0.0.1:8000".parse().unwrap(),
            recovered: RecoveryReport {
                keys,
                pools: 1,
                leases: 1,
                created,
                ..RecoveryReport::default()
            },
            data: data.map(Into::into),
        };
        let start = format!("keypeg {} ready on http://127.0.0.1:8000:", env!("CARGO_PKG_VERSION"));
        for (ready, rest) in [
            (
                ready(3, false, Some("./keypeg-data")),
                "3 keys in 1 pool, 1 lease running (recovered from ./keypeg-data)",
            ),
            (ready(1, true, Some("d")), "1 key in 1 pool, 1 lease running (made d)"),
            (ready(0, true, None), "0 keys in 1 pool, 1 lease running (in memory alone)"),
        ] {
            assert_eq!(ready.to_string(), format!("{start} {rest}"));
        }
    }
}
