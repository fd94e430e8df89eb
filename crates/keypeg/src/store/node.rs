//! The store of a server that shares its pools: the node of the shards, with the threads of its log
//! and its temporary files, which end after it.
//!
//! It does not know which stores exist.

use super::shared::{Installation, ScratchDirectory};
use crate::clock::SystemClock;
use crate::config::{ClusterSettings, Config};
use crate::failure::{Failure, exit};
use crate::random::SystemRandom;
use keypeg_engine::SealOptions;
use keypeg_engine::state::JournalSizes;
use keypeg_log::Guarantee;
use keypeg_shard::{Node, NodeError, NodeOptions, SNAPSHOT_AFTER};
use keypeg_store::{BackupSource, OpenedStore, StartReport, Store, StoreMetrics};
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Runtime;

/// The temporary journal of a shard. Its segments go as soon as the key set has their changes.
const SIZES: JournalSizes = JournalSizes { segment: 4 << 20, journal: 32 << 20 };
/// The smallest cache of a shard's database, in bytes.
const CACHE_MIN: usize = 1 << 20;

/// A running node, and what it needs.
#[derive(Debug)]
struct SharedStore {
    node: Box<Node>,
    /// Runs the calls of the log.
    runtime: Runtime,
    scratch: ScratchDirectory,
}

/// Starts the node of this server.
pub(super) fn start(
    config: &Config,
    settings: &ClusterSettings,
    (installation, scratch): (Installation, ScratchDirectory),
    seal: Option<SealOptions>,
    lanes: usize,
) -> Result<OpenedStore, Failure> {
    let Installation { log, identity, store, is_new, runtime } = installation;
    // The factory of clocks cannot fail: the first one shows that the system has them.
    SystemClock::new()?;
    let follow_every = match log.guarantee() {
        Guarantee::Chained => Duration::from_secs(1),
        // Each look costs requests.
        Guarantee::Created => Duration::from_secs(5),
    };
    let shards = usize::from(identity.shards());
    let directories = scratch.scratch.clone();
    let options = NodeOptions {
        log,
        store,
        identity,
        server: settings.server.clone(),
        address: settings.advertise.clone(),
        has_tokens: config.tokens.is_some(),
        lanes,
        default_policy: config.default_policy.clone(),
        max_keys: config.max_keys,
        memory: config.memory.keys,
        memory_max: config.memory.total,
        cache: (config.memory.database_cache() / shards).max(CACHE_MIN),
        sizes: SIZES,
        seal,
        follow_every,
        snapshot_after: SNAPSHOT_AFTER,
        scratch: Box::new(move |shard| directories.shard(shard)),
        clock: Box::new(|| {
            Box::new(SystemClock::new().expect("invariant: it was read at the start"))
        }),
        random: Box::new(|| Box::new(SystemRandom::new())),
        metrics: Arc::default(),
    };
    let (node, lanes) = Node::start(options).map_err(|error| match error {
        NodeError::Log(error) => super::shared::unusable(&error),
        NodeError::Identity(error) => error.into(),
        NodeError::NameInUse { .. } => {
            let step = "stop that server, or give each server its own --advertise or --server-name";
            Failure::new(exit::TEMPORARY, format!("{error}: {step}"))
        }
        NodeError::Thread(_) => Failure::new(exit::OS, error.to_string()),
    })?;
    let cluster = node.view();
    let store = Box::new(SharedStore { node: Box::new(node), runtime, scratch });
    let report = StartReport { created: is_new, ..StartReport::default() };
    Ok(OpenedStore { store, lanes, report, cluster: Some(cluster) })
}

impl Store for SharedStore {
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
        let Self { node, runtime, scratch } = *self;
        node.stop();
        // A call to the store can still be in progress: it ends, or not, with the process.
        runtime.shutdown_background();
        drop(scratch);
    }
}
