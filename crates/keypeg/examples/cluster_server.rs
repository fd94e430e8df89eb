//! The program as one of two servers that share a log: `serve` takes one part of the shards, and a
//! second server in the same process takes the others, among them that of the default pool. Clients
//! talk to the first one, which forwards.
//!
//! The log is in memory, or in the store of the variable `LOG_URL`, where each start is an installation
//! of its own. The server's tests run on it, except those of the folder `durability`: see CONTRIBUTING.md.

use keypeg::{Config, Failure, SystemClock, SystemRandom, exit};
use keypeg_core::{PoolName, RandomSource as _};
use keypeg_engine::state::JournalSizes;
use keypeg_engine::{Clock as _, Scratch, ShardIdentity};
use keypeg_log::memory::MemoryLog;
use keypeg_log::{Guarantee, Heartbeat, LogError, ServerName, Shard, SharedLog, wait};
use keypeg_log_object::ObjectLog;
use keypeg_log_postgres::PostgresLog;
use keypeg_shard::{Node, NodeOptions, NodeView, SNAPSHOT_AFTER, owner_order, shard_of_pool};
use keypeg_store::{
    BackupSource, Cluster as _, OpenedStore, ShardRole, StartReport, Store, StoreMetrics,
};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;
use tempfile::TempDir;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::oneshot;

/// The variable with the URL of the log, in which [`NAME`] stands for the installation.
const LOG_URL: &str = "LOG_URL";
const NAME: &str = "INSTALLATION";

/// The number of shards.
const SHARDS: u16 = 4;
/// The name of the server that clients talk to.
const FIRST: &str = "first";
/// How often it is looked whether the shards are served.
const LOOK_EVERY: Duration = Duration::from_millis(1);
const SIZES: JournalSizes = JournalSizes { segment: 1 << 20, journal: 8 << 20 };

/// What both servers share.
#[derive(Clone)]
struct Installation {
    log: Arc<dyn SharedLog>,
    identity: ShardIdentity,
    scratch: Scratch,
}

impl Installation {
    fn create(scratch: &TempDir, runtime: &Handle) -> Result<Self, Failure> {
        let log = open_log(runtime).map_err(|error| unusable(&error))?;
        let wall_us = SystemClock::new()?.read().wall_us;
        let identity = ShardIdentity::create(SHARDS, None, wall_us, &mut SystemRandom::new());
        wait(log.installation(&identity.bytes())).map_err(|error| unusable(&error))?;
        let scratch = Scratch::open(scratch.path()).expect("a directory that was just created");
        Ok(Self { log, identity, scratch })
    }

    fn start(
        &self,
        config: &Config,
        server: &ServerName,
        address: String,
        lanes: usize,
    ) -> (Node, OpenedLanes) {
        let directories = self.scratch.clone();
        let follow_every = match self.log.guarantee() {
            Guarantee::Chained => Duration::from_secs(1),
            Guarantee::Created => Duration::from_secs(5),
        };
        let options = NodeOptions {
            log: Arc::clone(&self.log),
            store: "memory".into(),
            identity: self.identity.clone(),
            server: server.clone(),
            address,
            has_tokens: false,
            lanes,
            default_policy: config.default_policy.clone(),
            max_keys: config.max_keys,
            memory: config.memory_of_keys(),
            memory_max: config.memory_of_keys(),
            cache: 1 << 20,
            sizes: SIZES,
            seal: None,
            follow_every,
            snapshot_after: SNAPSHOT_AFTER,
            scratch: Box::new(move |shard| directories.shard(shard)),
            clock: Box::new(|| Box::new(SystemClock::new().expect("invariant: it has clocks"))),
            random: Box::new(|| Box::new(SystemRandom::new())),
            metrics: Arc::default(),
        };
        Node::start(options).expect("a node on a log in memory starts")
    }
}

type OpenedLanes = Vec<keypeg_store::CoreLanes>;

/// The store of the first server, with the second one.
#[derive(Debug)]
struct TwoServers {
    node: Box<Node>,
    /// Stops the second server when it is dropped.
    stop: oneshot::Sender<()>,
    second: JoinHandle<()>,
    /// Runs the calls of the log.
    runtime: Runtime,
    _scratch: TempDir,
}

impl Store for TwoServers {
    fn metrics(&self) -> Arc<StoreMetrics> {
        self.node.metrics()
    }

    fn cancel_waits(&self) {
        self.node.cancel_waits();
    }

    fn backups(&self) -> Option<Arc<dyn BackupSource>> {
        self.node.backups()
    }

    fn stop(self: Box<Self>) {
        self.node.stop();
        drop(self.stop);
        self.second.join().expect("the second server ends");
        self.runtime.shutdown_background();
    }
}

fn open(config: &Config, lanes: usize) -> Result<OpenedStore, Failure> {
    let scratch = TempDir::new().expect("a directory for temporary files");
    let built = Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = built.expect("the threads of a runtime");
    let installation = Installation::create(&scratch, runtime.handle())?;
    let [first, second] = names();
    // The second server must not take the shards of the first one over.
    let heartbeat = Heartbeat::new(first.clone(), "http://127.0.0.1:1", 0).expect("a short name");
    wait(installation.log.beat(&heartbeat)).map_err(|error| unusable(&error))?;
    let (stop, stopped) = oneshot::channel();
    let (running, started) = mpsc::sync_channel(1);
    let neighbour = config.of_neighbour();
    let listener = keypeg::listen(&neighbour)?;
    let address = format!("http://{}", listener.local_addr().expect("it listens"));
    let shared = installation.clone();
    let server = second.clone();
    let thread = std::thread::spawn(move || {
        let opened = |lanes| {
            let (node, lanes) = shared.start(&neighbour, &server, address, lanes);
            let _ = running.send(node.view());
            let cluster = node.view();
            let report = StartReport { created: true, ..StartReport::default() };
            Ok(OpenedStore { store: Box::new(node), lanes, report, cluster: Some(cluster) })
        };
        let stopped = async {
            let _ = stopped.await;
        };
        keypeg::serve(&neighbour, opened, listener, stopped, |_| {}).expect("it serves");
    });
    let other = started.recv().expect("the second server starts");
    let address = format!("http://{}", config.listen);
    // Otherwise the first server would wait for a further heartbeat of a server with its name.
    wait(installation.log.forget(&first)).map_err(|error| unusable(&error))?;
    let (node, lanes) = installation.start(config, &first, address, lanes);
    wait_for_owners(&node.view(), &other, [&first, &second]);
    let cluster = node.view();
    let report = StartReport { created: true, pools: 1, ..StartReport::default() };
    let node = Box::new(node);
    let store = TwoServers { node, stop, second: thread, runtime, _scratch: scratch };
    Ok(OpenedStore { store: Box::new(store), lanes, report, cluster: Some(cluster) })
}

/// Opens a log of this process alone.
fn open_log(runtime: &Handle) -> Result<Arc<dyn SharedLog>, LogError> {
    let Ok(url) = std::env::var(LOG_URL) else {
        return Ok(Arc::new(MemoryLog::new(Guarantee::Chained)));
    };
    let mut nonce = [0; 16];
    SystemRandom::new().fill(&mut nonce);
    let url = url.replace(NAME, &format!("log_{:032x}", u128::from_le_bytes(nonce)));
    let log: Arc<dyn SharedLog> = if url.starts_with("postgres:") {
        Arc::new(PostgresLog::new(url.parse()?, runtime.clone())?)
    } else {
        Arc::new(ObjectLog::new(url.parse()?, runtime.clone()))
    };
    wait(log.probe(nonce))?;
    Ok(log)
}

fn unusable(error: &LogError) -> Failure {
    Failure::new(exit::UNAVAILABLE, format!("{LOG_URL}: {error}"))
}

/// Returns names of two servers, of which the second should serve the default pool, and each about
/// half of the shards.
fn names() -> [ServerName; 2] {
    let first = ServerName::new(FIRST).expect("a name");
    let of_default = shard_of_pool(PoolName::default_pool().as_str(), SHARDS);
    let fits = |second: &ServerName| {
        let owner = |shard| owner_order(shard, [&first, second].into_iter()).swap_remove(0);
        let of_second = (0..SHARDS).filter(|shard| owner(Shard::new(*shard)) == *second).count();
        owner(of_default) == *second && of_second == usize::from(SHARDS / 2)
    };
    let mut candidates = (0..).map(|number| format!("second-{number}"));
    let second = candidates.find_map(|name| ServerName::new(&name).ok().filter(fits));
    [first, second.expect("invariant: the candidates do not end")]
}

/// Waits until each server serves its shards, and each knows what the other one serves.
fn wait_for_owners(first: &NodeView, second: &NodeView, names: [&ServerName; 2]) {
    for shard in (0..SHARDS).map(Shard::new) {
        let owner = owner_order(shard, names.into_iter()).swap_remove(0);
        let view = if owner == *names[0] { first } else { second };
        let is_served = || {
            let status = view.status();
            status.shards[usize::from(shard.get())].role == ShardRole::Owner
        };
        while !is_served() {
            std::thread::park_timeout(LOOK_EVERY);
        }
    }
}

fn main() -> ExitCode {
    keypeg::run_program(open)
}
