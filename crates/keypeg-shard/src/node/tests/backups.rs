//! Backups of all shards of a node: what the log has, restored as one server.

use super::*;
use keypeg_core::NewLabels;
use keypeg_engine::disk::Disk;
use keypeg_engine::{RestoreOptions, restore_onto};
use std::future::poll_fn;

fn wall_ms() -> u64 {
    RealClock(now()).read().wall_us / 1_000
}

fn back_up(server: &Server) -> Vec<u8> {
    let mut stream = server.node.backups().expect("it has some").begin().unwrap();
    let mut bytes = Vec::new();
    while let Some(piece) = keypeg_log::wait(poll_fn(|context| stream.poll_next(context))) {
        bytes.extend(piece.unwrap());
    }
    bytes
}

/// A pool of another shard than the default pool.
fn other_pool(server: &Server) -> PoolName {
    let mut names = (0..).map(|number| PoolName::parse(&format!("p{number}")).unwrap());
    let default_shard = server.view.shard_of(&pool());
    names.find(|name| server.view.shard_of(name) != default_shard).unwrap()
}

/// One shard has a snapshot and frames behind it, one has frames alone, and the others have nothing.
#[test]
fn a_backup_has_each_shard_up_to_the_end_of_its_log() {
    let log: Arc<dyn SharedLog> = Arc::new(MemoryLog::new(Guarantee::Chained));
    let server = Server::start("one", Arc::clone(&log), &installation(&log));
    generate(&server, 20);
    let shard = server.view.shard_of(&pool());
    wait_for("a snapshot", || {
        server.call(&pool(), &acquire(0));
        release_newest(&server);
        (server.view.status().shards[shard].snapshot > 0).then_some(())
    });
    generate(&server, 3);
    let other = other_pool(&server);
    let patch = Box::default();
    server.call(&other, &Call::PutPool { pool: other.clone(), patch });
    let call = Call::Generate { pool: other.clone(), count: 2, labels: NewLabels::None };
    server.call(&other, &call);
    let last = token(&server.call(&pool(), &acquire(0)));
    let positions = |pool: &PoolName| {
        let shard = Shard::new(u16::try_from(server.view.shard_of(pool)).unwrap());
        let newest = keypeg_log::wait(log.snapshots(shard)).unwrap().pop();
        let tail = keypeg_log::wait(log.tail(shard)).unwrap();
        (newest.map(|snapshot| snapshot.id.at.position), tail.position)
    };
    let (snapshot, tail) = positions(&pool());
    assert!(snapshot.is_some_and(|at| at < tail), "frames behind the snapshot at {snapshot:?}");
    assert_eq!(positions(&other).0, None, "frames alone");
    let bytes = back_up(&server);
    server.stop();
    let disk: Arc<dyn Disk> = Arc::new(SimDisk::new());
    let options = RestoreOptions { wall_ms: wall_ms(), ..RestoreOptions::default() };
    let report = restore_onto(&mut &bytes[..], &disk, "dir", options, &mut random()).unwrap();
    assert_eq!((report.pools, report.keys), (2, 25));
    assert!(report.first_token > last, "{} after {last}", report.first_token);
    // The clocks of a node begin at the same wall time, and this one is new.
    let begun_ms = report.created_at_ms;
    assert!(begun_ms.abs_diff(wall_ms()) < 60_000, "{begun_ms}, not that of the snapshot or none");
}
