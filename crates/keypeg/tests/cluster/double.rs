//! Servers in this process that share their pools: each shard is a naive store, which one server at
//! a time serves. A test moves shards, and makes a server believe what is not so.
//!
//! The shard of a pool is the last digit of its name.

#[path = "../../../keypeg-engine/tests/naive_store/mod.rs"]
mod naive_store;

use crate::support::Client;
use clap::Parser as _;
use keypeg::{Cli, Command, Config, SystemClock};
use keypeg_core::{Policy, PoolName};
use keypeg_engine::Clock as _;
use keypeg_store::{
    BackupSource, Cluster, ClusterStatus, CoreLanes, EngineLane, LaneItem, MoveError, OpenedStore,
    Peer, Place, Reply, RequestError, ServerStatus, ShardRole, ShardStatus, StartReport, Store,
    StoreMetrics, Wakeup, lane,
};
use naive_store::NaiveStore;
use std::collections::HashMap;
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::oneshot;

/// The number of shards.
pub(super) const SHARDS: usize = 4;
/// No server.
const NONE: usize = usize::MAX;
/// What only the servers know.
pub(super) const SECRET: [u8; 32] = [7; 32];
/// How often the store of a server looks for what has expired.
const TICK: Duration = Duration::from_millis(5);

/// The servers of an installation.
pub(super) struct Installation {
    shared: Arc<Shared>,
    servers: Vec<Server>,
}

/// A server.
struct Server {
    addr: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    stores: Vec<Mutex<Shard>>,
    /// The server of each shard.
    owners: Vec<AtomicUsize>,
    /// Where a server believes that a shard is served, until it looks: by server and shard.
    beliefs: Mutex<HashMap<(usize, usize), usize>>,
    peers: Vec<Arc<Peer>>,
    looks: AtomicU64,
    /// What the next moves are refused with.
    refusals: Mutex<Vec<MoveError>>,
}

struct Shard {
    store: NaiveStore,
    /// The server whose lanes the waiters of the store belong to.
    served_by: usize,
}

impl std::fmt::Debug for Shard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shard").field("served_by", &self.served_by).finish_non_exhaustive()
    }
}

impl Installation {
    /// Starts a server for each list of arguments. The first one serves all shards.
    pub(super) fn start(args: &[&[&str]]) -> Self {
        Self::start_with(args, &[])
    }

    /// Like [`Self::start`], with further servers at these addresses, which a test plays.
    pub(super) fn start_with(args: &[&[&str]], others: &[SocketAddr]) -> Self {
        let configs: Vec<_> = args.iter().map(|args| config(args)).collect();
        let listeners: Vec<TcpListener> =
            configs.iter().map(|config| keypeg::listen(config).unwrap()).collect();
        let addrs: Vec<_> = listeners.iter().map(|it| it.local_addr().unwrap()).collect();
        let peer = |(index, addr)| {
            Arc::new(Peer { name: format!("s{index}"), address: format!("http://{addr}") })
        };
        let made = |_| {
            let store = NaiveStore::new(Policy::default(), 1_000_000, Arc::default());
            Mutex::new(Shard { store, served_by: NONE })
        };
        let shared = Arc::new(Shared {
            stores: (0..SHARDS).map(made).collect(),
            owners: (0..SHARDS).map(|_| AtomicUsize::new(0)).collect(),
            beliefs: Mutex::default(),
            peers: addrs.iter().chain(others).enumerate().map(peer).collect(),
            looks: AtomicU64::new(0),
            refusals: Mutex::default(),
        });
        let servers = configs.into_iter().zip(listeners).enumerate();
        let servers = servers.map(|(index, (config, listener))| {
            Server::start(index, config, listener, Arc::clone(&shared))
        });
        let servers = servers.collect();
        Self { shared, servers }
    }

    /// Returns a client of a server.
    pub(super) fn client(&self, server: usize) -> Client {
        Client::new(self.servers[server].addr)
    }

    pub(super) fn addr(&self, server: usize) -> SocketAddr {
        self.servers[server].addr
    }

    /// Lets a server stop, as at SIGTERM.
    pub(super) fn stop(&mut self, server: usize) {
        drop(self.servers[server].stop.take());
    }

    /// Moves a shard to a server, and returns when its former server has given it up.
    pub(super) fn move_shard(&self, shard: usize, server: usize) {
        self.shared.hand_over(shard, server);
    }

    /// Makes the next moves fail, one for each error, the last one first.
    pub(super) fn refuse_moves(&self, errors: Vec<MoveError>) {
        *self.shared.refusals.lock().unwrap() = errors;
    }

    /// Returns how many of these moves are left.
    pub(super) fn refusals_left(&self) -> usize {
        self.shared.refusals.lock().unwrap().len()
    }

    /// Makes a server believe that another one, or itself, serves a shard, until it looks.
    pub(super) fn believe(&self, server: usize, shard: usize, owner: usize) {
        self.shared.beliefs.lock().unwrap().insert((server, shard), owner);
    }

    /// Returns how often the servers have looked at the log of a shard.
    pub(super) fn looks(&self) -> u64 {
        self.shared.looks.load(Ordering::SeqCst)
    }
}

impl Shared {
    fn hand_over(&self, shard: usize, server: usize) {
        self.owners[shard].store(NONE, Ordering::SeqCst);
        while self.stores[shard].lock().unwrap().served_by != NONE {
            std::thread::yield_now();
        }
        self.owners[shard].store(server, Ordering::SeqCst);
    }

    fn shard_status(&self, shard: usize, server: usize) -> ShardStatus {
        let owner = self.owners[shard].load(Ordering::SeqCst);
        let name = self.peers.get(owner).map(|peer| peer.name.clone());
        ShardStatus {
            role: if owner == server { ShardRole::Owner } else { ShardRole::Following },
            unowned_ms: if name.is_some() { 0 } else { 7 },
            owner: name.clone(),
            preferred: name,
            is_pinned: false,
            position: 10 + shard as u64,
            behind_frames: u64::from(owner != server),
            behind_ms: if owner == server { 0 } else { 250 },
            snapshot: 5,
            takeovers: 1,
            error: String::new(),
        }
    }
}

impl Drop for Installation {
    fn drop(&mut self) {
        for server in &mut self.servers {
            drop(server.stop.take());
        }
        for server in &mut self.servers {
            if let Some(thread) = server.thread.take() {
                let ended = thread.join();
                assert!(ended.is_ok() || std::thread::panicking());
            }
        }
    }
}

fn config(args: &[&str]) -> Config {
    let fixed =
        ["keypeg", "serve", "--listen", "127.0.0.1:0", "--ephemeral", "--http-threads", "2"];
    let cli = Cli::try_parse_from(fixed.iter().chain(args)).unwrap();
    let Command::Serve(options) = cli.command else { panic!("the command is serve") };
    Config::new(*options).unwrap()
}

impl Server {
    fn start(index: usize, config: Config, listener: TcpListener, shared: Arc<Shared>) -> Self {
        let addr = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = std::thread::spawn(move || {
            let open = |cores| Ok(open(index, cores, shared));
            let stopped = async {
                let _ = stopped.await;
            };
            keypeg::serve(&config, open, listener, stopped, |_| {}).unwrap();
        });
        Self { addr, stop: Some(stop), thread: Some(thread) }
    }
}

/// The store of one server.
#[derive(Debug)]
struct SharedStore {
    wakeup: Wakeup,
    is_stopping: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Store for SharedStore {
    fn backups(&self) -> Option<Arc<dyn BackupSource>> {
        None
    }

    fn metrics(&self) -> Arc<StoreMetrics> {
        Arc::default()
    }

    fn cancel_waits(&self) {}

    fn stop(self: Box<Self>) {
        self.is_stopping.store(true, Ordering::Release);
        self.wakeup.notify();
        self.thread.join().expect("the store's thread ends");
    }
}

fn open(server: usize, cores: usize, shared: Arc<Shared>) -> OpenedStore {
    let (wakeup, is_stopping) = (Wakeup::default(), Arc::<AtomicBool>::default());
    let mut engine_lanes: Vec<Vec<EngineLane>> = (0..SHARDS).map(|_| Vec::new()).collect();
    let mut of_core = |_| {
        let shards = engine_lanes.iter_mut().map(|engine_lanes| {
            let (lane, engine_lane) = lane(&wakeup);
            engine_lanes.push(engine_lane);
            lane
        });
        CoreLanes { shards: shards.collect() }
    };
    let lanes: Vec<_> = (0..cores).map(&mut of_core).collect();
    let cluster = Arc::new(View { server, shared: Arc::clone(&shared) });
    let (listener, stopping) = (wakeup.clone(), Arc::clone(&is_stopping));
    let thread = std::thread::spawn(move || {
        run(server, engine_lanes, &shared, &listener, &stopping);
    });
    let store = Box::new(SharedStore { wakeup, is_stopping, thread });
    OpenedStore { store, lanes, report: StartReport::default(), cluster: Some(cluster) }
}

/// Serves the shards of a server, and refuses the requests to all others.
fn run(
    server: usize,
    mut lanes: Vec<Vec<EngineLane>>,
    shared: &Shared,
    wakeup: &Wakeup,
    is_stopping: &AtomicBool,
) {
    let mut clock = SystemClock::new().unwrap();
    wakeup.listen();
    loop {
        let is_last = is_stopping.load(Ordering::Acquire);
        if is_last {
            lanes.iter().flatten().for_each(EngineLane::close_inbox);
        }
        for (index, lanes) in lanes.iter_mut().enumerate() {
            let mut held = shared.stores[index].lock().unwrap();
            let is_owner = shared.owners[index].load(Ordering::SeqCst) == server;
            held.store.now = clock.read().wall_us / 1_000;
            if is_owner && !is_last {
                held.store.run(lanes);
                held.served_by = server;
            } else if held.served_by == server {
                held.store.cancels_waits = true;
                held.store.run(lanes);
                held.store.cancels_waits = false;
                held.served_by = NONE;
            } else {
                refuse(lanes);
            }
        }
        if is_last {
            break;
        }
        if !wakeup.take() {
            std::thread::park_timeout(TICK);
        }
    }
    lanes.iter().flatten().for_each(EngineLane::close_outbox);
}

fn refuse(lanes: &mut [EngineLane]) {
    for lane in lanes {
        let mut slots = Vec::new();
        lane.take(|slot, item| {
            if let LaneItem::Request(_) = item {
                slots.push(slot);
            }
        });
        for slot in slots {
            lane.answer(slot, Reply::Refused(RequestError::NotOwner));
        }
        lane.flush();
    }
}

/// The installation as one server sees it.
#[derive(Debug)]
struct View {
    server: usize,
    shared: Arc<Shared>,
}

impl Cluster for View {
    fn server(&self) -> &str {
        &self.shared.peers[self.server].name
    }

    fn shards(&self) -> usize {
        SHARDS
    }

    fn shard_of(&self, pool: &PoolName) -> usize {
        let last = pool.as_str().bytes().last().filter(u8::is_ascii_digit);
        last.map_or(0, |digit| usize::from(digit - b'0') % SHARDS)
    }

    fn place(&self, shard: usize) -> Place {
        let believed = self.shared.beliefs.lock().unwrap().get(&(self.server, shard)).copied();
        let owner = believed.unwrap_or_else(|| self.shared.owners[shard].load(Ordering::SeqCst));
        match owner {
            NONE => Place::Unknown,
            owner if owner == self.server => Place::Here,
            owner => Place::There(Arc::clone(&self.shared.peers[owner])),
        }
    }

    fn look(&self, shard: usize) {
        self.shared.looks.fetch_add(1, Ordering::SeqCst);
        self.shared.beliefs.lock().unwrap().remove(&(self.server, shard));
    }

    fn status(&self) -> ClusterStatus {
        let shared = &self.shared;
        let server = |(index, peer): (usize, &Arc<Peer>)| ServerStatus {
            peer: Peer::clone(peer),
            is_live: true,
            silent_ms: 300,
            owns: (0..SHARDS)
                .filter(|shard| shared.owners[*shard].load(Ordering::SeqCst) == index)
                .collect(),
            follows: Vec::new(),
            has_tokens: Some(false),
        };
        ClusterStatus {
            store: "memory".into(),
            store_silent_ms: 200,
            store_error: String::new(),
            servers: shared.peers.iter().enumerate().map(server).collect(),
            shards: (0..SHARDS).map(|shard| shared.shard_status(shard, self.server)).collect(),
        }
    }

    fn move_shard(&self, shard: usize, server: &str) -> Result<(), MoveError> {
        if let Some(error) = self.shared.refusals.lock().unwrap().pop() {
            return Err(error);
        }
        let to = self.shared.peers.iter().position(|peer| peer.name == server);
        let to = to.ok_or_else(|| MoveError::UnknownServer(server.to_owned()))?;
        if self.shared.owners[shard].load(Ordering::SeqCst) != self.server {
            return Err(MoveError::NotOwner(shard));
        }
        if to != self.server {
            let installation = Arc::clone(&self.shared);
            std::thread::spawn(move || installation.hand_over(shard, to));
        }
        Ok(())
    }

    fn is_moving(&self, _: usize, _: &str) -> bool {
        true
    }

    fn peer_secret(&self) -> [u8; 32] {
        SECRET
    }
}
