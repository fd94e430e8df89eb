//! The logs that the scripts run on, and a shard of its own for each script.
//!
//! An installation has at most [`SHARDS_MAX`] shards, so later scripts get another schema of the
//! database or another prefix of the bucket.

use keypeg_engine::SHARDS_MAX;
use keypeg_log::memory::MemoryLog;
use keypeg_log::{Guarantee, SharedLog, wait};
use keypeg_log_object::ObjectLog;
use keypeg_log_postgres::PostgresLog;
use std::sync::{Arc, LazyLock, Mutex};
use tokio::runtime::{Builder, Runtime};

static RUNTIME: LazyLock<Runtime> =
    LazyLock::new(|| Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap());

/// Shards that one client of a log serves: each of them keeps a connection to PostgreSQL.
const SHARDS_OF_A_CLIENT: u16 = 8;

/// How many shards were given, and the client that has the last one.
static GIVEN: Mutex<(u16, Option<Arc<dyn SharedLog>>)> = Mutex::new((0, None));

/// Returns a log in memory without faults.
pub(crate) fn in_memory(guarantee: Guarantee) -> Arc<dyn SharedLog> {
    Arc::new(MemoryLog::new(guarantee))
}

/// Returns the log at a URL, and a shard that no other script has.
pub(crate) fn at(url: &str) -> (Arc<dyn SharedLog>, u16) {
    let mut given = GIVEN.lock().unwrap();
    let shard = given.0 % SHARDS_MAX;
    if shard.is_multiple_of(SHARDS_OF_A_CLIENT) {
        let log = open(url, given.0 / SHARDS_MAX);
        wait(log.probe([7; 16])).unwrap();
        given.1 = Some(log);
    }
    given.0 += 1;
    (Arc::clone(given.1.as_ref().unwrap()), shard)
}

fn open(url: &str, installation: u16) -> Arc<dyn SharedLog> {
    let runtime = RUNTIME.handle().clone();
    if url.starts_with("postgres://") {
        let settings = format!("{url}&schema=scripts_{installation}").parse().unwrap();
        return Arc::new(PostgresLog::new(settings, runtime).unwrap());
    }
    let settings = url.replace('?', &format!("_{installation}?")).parse().unwrap();
    Arc::new(ObjectLog::new(settings, runtime))
}
