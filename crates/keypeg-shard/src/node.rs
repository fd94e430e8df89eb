//! A server's part of an installation: a thread for each shard, which follows it or serves it, and
//! the steward, which keeps the server's heartbeat and spreads the shards over the servers.
//!
//! It knows no HTTP: it is a store behind lanes. Invariant: only the log decides who serves a shard;
//! all that the threads know of other servers are hints.

mod backup;
mod clock;
mod namesake;
mod options;
mod presence;
mod snapshots;
mod steward;
mod thread_wait;
mod view;
mod worker;

pub use options::{MakeClock, MakeRandom, MakeScratch, NodeOptions, SNAPSHOT_AFTER};

use crate::ownership::shard_of_pool;
use backup::NodeBackups;
use keypeg_core::PoolName;
use keypeg_engine::{AbortOnPanic, SHARDS_MAX, StartError};
use keypeg_log::{LogError, Shard};
use keypeg_store::{
    BackupSource, Cluster, ClusterStatus, CoreLanes, EngineLane, Lane, MoveError, Place, Store,
    StoreMetrics,
};
use namesake::{
    Found, LOOK_PAUSE, NAMESAKE_TIME, count_frames, find_namesake, find_successor, next_start,
};
use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use steward::{Beat, Steward};
use view::View;
use worker::Worker;

/// Why a node cannot start.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The log cannot be reached.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The identity cannot be opened.
    #[error(transparent)]
    Identity(#[from] StartError),
    /// Another process sends heartbeats under the name of this server.
    #[error("the server name {server} is in use by a server at {address}")]
    NameInUse {
        /// The name.
        server: String,
        /// The URL at which the other server is reached.
        address: String,
    },
    /// A thread cannot be started.
    #[error("cannot start a thread: {0}")]
    Thread(#[from] io::Error),
}

/// A running node. Dropping it without [`Store::stop`] leaves its threads running.
#[derive(Debug)]
pub struct Node {
    shared: Arc<NodeView>,
    backups: NodeBackups,
    workers: Vec<JoinHandle<()>>,
    steward: JoinHandle<()>,
}

/// What the server's calls read of a node.
pub struct NodeView {
    options: Arc<NodeOptions>,
    view: Arc<View>,
    stopping: Arc<AtomicBool>,
    secret: [u8; 32],
}

impl Node {
    /// Starts the threads, after the first heartbeat: from now on this server takes part. Returns
    /// the lanes of each core. Shards are served as soon as their logs are read. O(shards).
    pub fn start(options: NodeOptions) -> Result<(Self, Vec<CoreLanes>), NodeError> {
        let mut random = (options.random)();
        let secret = options.identity.peer_secret(options.seal.as_ref(), &mut *random)?;
        let last_start = match find_namesake(&*options.log, &options.server, NAMESAKE_TIME)? {
            Found::Free { last_start } => last_start,
            Found::InUse { address } => {
                return Err(NodeError::NameInUse { server: options.server.to_string(), address });
            }
        };
        let frames = count_frames(&*options.log, options.identity.shards())?;
        let options = Arc::new(options);
        let view = Arc::new(View::new(options.server.clone(), options.identity.shards()));
        let stopping = Arc::<AtomicBool>::default();
        let mut drawn = [0; 4];
        random.fill(&mut drawn);
        let first = u32::from_le_bytes(drawn);
        let mut steward = Steward {
            options: Arc::clone(&options),
            view: Arc::clone(&view),
            stopping: Arc::clone(&stopping),
            // A server that has started again must differ from its last heartbeat.
            count: u64::from(first),
            start: next_start(last_start, frames, first),
        };
        let successor = match steward.beat()? {
            Beat::Sent(sent) => find_successor(&*options.log, &sent, LOOK_PAUSE)?,
            Beat::NameInUse { address } => Some(address),
        };
        if let Some(address) = successor {
            return Err(NodeError::NameInUse { server: options.server.to_string(), address });
        }
        let mut cores = vec![CoreLanes { shards: Vec::new() }; options.lanes];
        let mut workers = Vec::new();
        for (shard, shard_view) in view.shards() {
            let made = (0..options.lanes).map(|_| keypeg_store::lane(&shard_view.wakeup));
            let (lanes, mut engine_lanes): (Vec<Lane>, Vec<EngineLane>) = made.unzip();
            for (core, lane) in cores.iter_mut().zip(lanes) {
                core.shards.push(lane);
            }
            // Before the first request: the shard's thread has not read the log yet.
            for lane in &mut engine_lanes {
                lane.refuse(&keypeg_store::RequestError::NotOwner);
            }
            let worker = Worker {
                shard,
                options: Arc::clone(&options),
                view: Arc::clone(&view),
                stopping: Arc::clone(&stopping),
                lanes: engine_lanes,
                random: (options.random)(),
            };
            workers.push(spawn(format!("keypeg-shard-{shard}"), move || worker.run())?);
        }
        let steward = spawn("keypeg-steward".into(), move || steward.run())?;
        let backups = NodeBackups::new(Arc::clone(&options));
        let shared = Arc::new(NodeView { options, view, stopping, secret });
        Ok((Self { shared, backups, workers, steward }, cores))
    }

    /// Returns what the server's calls read.
    pub fn view(&self) -> Arc<NodeView> {
        Arc::clone(&self.shared)
    }
}

fn spawn(name: String, run: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    let run = move || {
        let _guard = AbortOnPanic;
        run();
    };
    std::thread::Builder::new().name(name).spawn(run)
}

impl NodeView {
    fn shard(&self, shard: usize) -> Option<Shard> {
        let number = u16::try_from(shard).ok().filter(|number| *number < SHARDS_MAX)?;
        (usize::from(number) < self.shards()).then_some(Shard::new(number))
    }

    /// Hands all shards over.
    fn hand_over(&self) {
        for (_, shard) in self.view.shards() {
            if let Some(control) = &shard.facts().control {
                control.hand_over();
            }
        }
    }
}

impl Cluster for NodeView {
    fn server(&self) -> &str {
        self.options.server.as_str()
    }

    fn shards(&self) -> usize {
        usize::from(self.options.identity.shards())
    }

    fn shard_of(&self, pool: &PoolName) -> usize {
        usize::from(shard_of_pool(pool.as_str(), self.options.identity.shards()).get())
    }

    fn place(&self, shard: usize) -> Place {
        self.shard(shard).map_or(Place::Unknown, |shard| self.view.place(shard))
    }

    fn look(&self, shard: usize) {
        if let Some(shard) = self.shard(shard) {
            self.view.shard(shard).wakeup.notify();
        }
    }

    fn status(&self) -> ClusterStatus {
        self.view.status(&self.options.store)
    }

    fn move_shard(&self, shard: usize, server: &str) -> Result<(), MoveError> {
        let last = self.shards() - 1;
        let number = self.shard(shard).ok_or(MoveError::UnknownShard { shard, last })?;
        if self.view.shard(number).facts().control.is_none() {
            return Err(MoveError::NotOwner(shard));
        }
        if server == self.server() {
            self.view.shard(number).facts().is_pinned = true;
            return Ok(());
        }
        // The steward hands the shard over once the other servers have read of it.
        self.view.begin_move(number, server)
    }

    fn is_moving(&self, shard: usize, server: &str) -> bool {
        self.shard(shard).is_some_and(|shard| self.view.is_moving(shard, server))
    }

    fn peer_secret(&self) -> [u8; 32] {
        self.secret
    }
}

impl fmt::Debug for NodeView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeView").field("options", &self.options).finish_non_exhaustive()
    }
}

impl Store for Node {
    fn metrics(&self) -> Arc<StoreMetrics> {
        Arc::clone(&self.shared.options.metrics)
    }

    fn cancel_waits(&self) {
        self.shared.stopping.store(true, Ordering::Release);
        self.backups.close();
        self.shared.hand_over();
    }

    fn backups(&self) -> Option<Arc<dyn BackupSource>> {
        Some(Arc::new(self.backups.clone()))
    }

    fn stop(self: Box<Self>) {
        let Self { shared, backups, workers, steward } = *self;
        shared.stopping.store(true, Ordering::Release);
        backups.close();
        shared.hand_over();
        for (_, shard) in shared.view.shards() {
            shard.wakeup.notify();
        }
        for worker in workers {
            worker.join().expect("invariant: a panic of a shard's thread aborts");
        }
        steward.thread().unpark();
        steward.join().expect("invariant: a panic of the steward aborts");
    }
}

#[cfg(test)]
mod tests;
