//! Faults that last: what a server shows of a shard that it cannot follow or take over, and how often
//! it tries again.

use super::watched_log::Watched;
use super::{SHARDS, Server, installation, wait_for};
use crate::node::clock::{now, passed_since};
use crate::node::presence::Presence;
use keypeg_log::memory::MemoryLog;
use keypeg_log::{FrameKind, Guarantee, Shard, SharedLog};
use keypeg_store::{Call, Cluster as _, Principal, Reply, Request, ShardRole, Store as _};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Such a server read the frames before the hole 120 times a second, and showed no error.
#[test]
fn a_server_that_a_hole_stops_says_so_and_reads_again_once_a_second() {
    let log: Arc<dyn SharedLog> = Arc::new(MemoryLog::new(Guarantee::Chained));
    let identity = installation(&log);
    let first = Server::start("one", Arc::clone(&log), &identity);
    wait_for("all shards", || (first.owned() == usize::from(SHARDS)).then_some(()));
    let watched = Watched::new(Arc::clone(&log));
    let (hole, begun) = (Arc::clone(&watched.hole_above), Arc::clone(&watched.begun));
    hole.store(1, Ordering::Relaxed);
    let start = now();
    let second = Server::start("two", Arc::new(watched), &identity);
    let status = || second.view.status().shards.swap_remove(0);
    wait_for("the error", || status().error.contains("has no frame 2").then_some(()));
    wait_for("further attempts", || {
        let shown = status();
        assert!(shown.error.contains("has no frame 2"), "{shown:?}");
        assert!(shown.error.contains("Restore the store, or a backup"), "{shown:?}");
        assert_eq!(shown.role, ShardRole::Loading);
        (begun.load(Ordering::Relaxed) >= 5).then_some(())
    });
    let (attempts, seconds) = (begun.load(Ordering::Relaxed), passed_since(start).as_secs());
    assert!(attempts <= seconds + 2, "{attempts} in {seconds} s");
    hole.store(0, Ordering::Relaxed);
    wait_for("the end of the log", || (status().role == ShardRole::Following).then_some(()));
    assert_eq!(status().error, "");
    second.stop();
    first.stop();
}

/// Heartbeats were stored meanwhile, so nothing showed why the shards had no owner.
#[test]
fn a_shard_that_cannot_be_taken_over_shows_why_until_it_has_an_owner() {
    let log: Arc<dyn SharedLog> = Arc::new(MemoryLog::new(Guarantee::Chained));
    let identity = installation(&log);
    let watched = Watched::new(log);
    let is_full = Arc::clone(&watched.is_full);
    is_full.store(true, Ordering::Relaxed);
    let server = Server::start("one", Arc::new(watched), &identity);
    let errors = || server.view.status().shards.into_iter().map(|shard| shard.error);
    wait_for("the errors", || {
        errors().all(|error| error.contains("no space left on device")).then_some(())
    });
    is_full.store(false, Ordering::Relaxed);
    wait_for("all shards", || (server.owned() == usize::from(SHARDS)).then_some(()));
    assert!(errors().all(|error| error.is_empty()));
    server.stop();
}

/// Each takeover reads the shard and writes to the store. Without a pause the next one follows at once.
#[test]
fn a_shard_that_is_lost_at_its_first_append_is_taken_over_once_a_second() {
    let log: Arc<dyn SharedLog> = Arc::new(MemoryLog::new(Guarantee::Chained));
    let identity = installation(&log);
    let watched = Watched::new(Arc::clone(&log));
    let refuses_turns = Arc::clone(&watched.refuses_turns);
    let server = Server::start("one", Arc::new(watched), &identity);
    wait_for("all shards", || (server.owned() == usize::from(SHARDS)).then_some(()));
    let takeovers = || {
        let frames = keypeg_log::wait(log.read(Shard::FIRST, 0, 1 << 20)).unwrap();
        let count = frames.iter().filter(|frame| frame.kind() == FrameKind::Takeover).count();
        u64::try_from(count).unwrap()
    };
    // An answer about pools needs an append, and also wakes the thread of the shard.
    let list = || {
        let call = Call::ListPools { from: None, limit: 10, filter: None };
        let lane = &server.lanes.shards[usize::from(Shard::FIRST.get())];
        keypeg_log::wait(lane.submit(Request::new(Principal::Anyone, call)))
    };
    let (before, start) = (takeovers(), now());
    refuses_turns.store(true, Ordering::Relaxed);
    let taken = wait_for("further takeovers", || {
        let reply = list();
        assert!(matches!(reply, Reply::Refused(_)), "{reply:?}");
        Some(takeovers() - before).filter(|taken| *taken >= 6)
    });
    let seconds = passed_since(start).as_secs();
    assert!(taken <= seconds + 2, "{taken} in {seconds} s");
    refuses_turns.store(false, Ordering::Relaxed);
    wait_for("an answer", || matches!(list(), Reply::Pools(_)).then_some(()));
    server.stop();
}

/// A stop appends one frame for each shard. It repeated that for half a minute, and was killed meanwhile.
#[test]
fn a_stop_gives_up_soon_when_the_store_stores_nothing() {
    let log: Arc<dyn SharedLog> = Arc::new(MemoryLog::new(Guarantee::Chained));
    let identity = installation(&log);
    let watched = Watched::new(log);
    let is_full = Arc::clone(&watched.is_full);
    let server = Server::start("one", Arc::new(watched), &identity);
    wait_for("all shards", || (server.owned() == usize::from(SHARDS)).then_some(()));
    let metrics = server.node.metrics();
    is_full.store(true, Ordering::Relaxed);
    server.stop();
    // The pauses grow to a second: 7 attempts in 3 seconds, 34 in 30.
    let (attempts, shards) = (metrics.append_retries.load(Ordering::Relaxed), u64::from(SHARDS));
    assert!((shards..=12 * shards).contains(&attempts), "{attempts} of {shards} shards");
}

/// A server stands still, a second one of its name stops cleanly, and a third one starts: the numbers
/// began again at 1, so that the third one could end in place of the first.
#[test]
fn a_server_has_a_greater_number_than_all_before_it_also_after_clean_stops() {
    let log: Arc<dyn SharedLog> = Arc::new(MemoryLog::new(Guarantee::Chained));
    let identity = installation(&log);
    let mut before = 0;
    for _ in 0..6 {
        let server = Server::start("one", Arc::clone(&log), &identity);
        wait_for("all shards", || (server.owned() == usize::from(SHARDS)).then_some(()));
        let sent = keypeg_log::wait(log.heartbeats()).unwrap().swap_remove(0);
        let start = Presence::read(&sent.address).start;
        assert!(start > before, "{start:x} after {before:x}");
        before = start;
        server.stop();
        assert_eq!(keypeg_log::wait(log.heartbeats()), Ok(Vec::new()));
    }
}
