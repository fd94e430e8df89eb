//! Power cuts under load, again and again on one directory: nothing acknowledged is lost.
//!
//! The directory is on an ext4 of the test's own. A third of the cuts are plain; in the others
//! syncs take their time, so that the cut finds a batch that is written and not yet durable, and in
//! half of those some of its pages are durable all the same. A control, a server whose syncs do
//! nothing, must lose data at every cut: else this rig would prove nothing.
//! `KEYPEG_POWER_CUTS` sets the cuts, `KEYPEG_POWER_SEED` repeats a run's choices.

use crate::support::history::{
    SERVER_ARGS, SeededRandom, SharedHistory, env_number, run_clients, start_round,
};
use crate::support::volume::{Volume, run};
use crate::support::{Client, Server, TempDir, keypeg, keypeg_under, pause, skipped};
use serde_json::{Value, json};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Every sync takes this long before it begins, microseconds.
const SLOW: [&str; 5] = ["strace", "-D", "-f", "-q", "--inject=fdatasync,fsync:delay_enter=4000"];
/// Every sync says that it is done and does nothing.
const NO_SYNC: [&str; 5] = ["strace", "-D", "-f", "-q", "--inject=fdatasync,fsync:retval=0"];

fn serve(under: &[&str], data: &Path) -> Command {
    let words = [under, &["-o", "/dev/null", "-e", "trace=fdatasync,fsync"]].concat();
    let mut command =
        if under.is_empty() { keypeg(&SERVER_ARGS) } else { keypeg_under(&words, &SERVER_ARGS) };
    command.arg("--data").arg(data).env("KEYPEG_LOG", "info");
    command
}

/// A volume, unless this machine has none to give.
fn volume(test: &str) -> Option<Volume> {
    let tools = run("strace", &["-V"]).and_then(|()| run("perl", &["-e", "1"]));
    let made = tools.and_then(|()| Volume::new(400));
    made.map_err(|why| skipped(test, &why)).ok()
}

#[test]
fn what_was_told_holds_over_power_cuts() {
    let Some(mut volume) = volume("what_was_told_holds_over_power_cuts") else { return };
    let cuts = env_number("KEYPEG_POWER_CUTS").unwrap_or(3);
    let seed = env_number("KEYPEG_POWER_SEED").unwrap_or_else(|| u64::from(std::process::id()));
    println!("KEYPEG_POWER_SEED={seed} KEYPEG_POWER_CUTS={cuts}");
    let (random, history) = (&mut SeededRandom(seed), SharedHistory::default());
    let (logs, data) = (TempDir::new(), volume.path().join("data"));
    let log = logs.path().join("log");
    let (mut torn, mut bulk) = (0, AtomicU64::new(0));
    for cut in 0..cuts {
        let under: &[&str] = if cut % 3 == 0 { &[] } else { &SLOW };
        let mut server = Server::logged(&mut serve(under, &data), &log);
        torn += batches_cut(&server);
        start_round(&server, &history);
        check_bulk(&server, bulk.into_inner());
        bulk = AtomicU64::new(0);
        volume.drop_cache();
        let wait = Duration::from_millis(50 + random.below(300));
        let (pages, seed) = (if cut % 3 == 2 { 1 + random.below(8) } else { 0 }, random.next());
        run_clients(&mut server, &history, random, |server| {
            std::thread::scope(|scope| {
                let (client, bulk) = (server.client(), &bulk);
                scope.spawn(move || make_many(client, bulk));
                pause(wait);
                volume.cut(pages, seed);
                server.kill();
            });
        });
        volume.unmount();
        volume.mount().unwrap();
    }
    let server = Server::logged(&mut serve(&[], &data), &log);
    torn += batches_cut(&server);
    start_round(&server, &history);
    check_bulk(&server, bulk.into_inner());
    let (acked, grants, _) = history.lock().unwrap().counts();
    println!("{cuts} cuts, {acked} changes acknowledged, {grants} grants among them, {torn} torn");
    assert!(grants > 0, "the clients did something");
    let log = std::fs::read_to_string(&log).unwrap();
    assert!(!log.contains("panicked"), "{log}");
}

/// Keys of one call, whose batch takes many pages.
const MANY: u64 = 500;

/// Makes many keys a call until the server is gone; counts the calls that were acknowledged.
fn make_many(mut client: Client, acked: &AtomicU64) {
    let many = json!({ "count": MANY }).to_string();
    let json_type = [("content-type", "application/json")];
    while let Ok(made) = client.try_send("POST /v1/pools/bulk/keys", &json_type, &many) {
        assert_eq!(made.status, 201, "{made:?}");
        acked.fetch_add(1, Ordering::Relaxed);
    }
}

/// Each call's keys are there in full or not at all, and those of acknowledged calls are.
fn check_bulk(server: &Server, acked: u64) {
    let client = &mut server.client();
    let pool = client.ask("GET /v1/pools/bulk");
    if pool.status == 200 {
        let total = pool.json()["total"].as_u64().unwrap();
        let calls = acked * MANY..=(acked + 1) * MANY;
        assert!(
            calls.contains(&total) && total.is_multiple_of(MANY),
            "{acked} calls, {total} keys"
        );
        client.ask("DELETE /v1/pools/bulk").is(204, &Value::Null);
    } else {
        assert_eq!(acked, 0, "{pool:?}");
    }
    let policy = json!({ "keepalive_ttl_seconds": 3600 });
    client.send("PUT /v1/pools/bulk", &policy).is(201, &json!({}));
}

/// Batches that a start has cut from the journal's end.
fn batches_cut(server: &Server) -> u64 {
    let metrics = server.client().ask("GET /metrics").body;
    let line = metrics.lines().find_map(|line| line.strip_prefix("keypeg_batches_cut "));
    line.expect("the metric").parse().unwrap()
}

#[test]
fn a_server_that_does_not_sync_loses_data_here() {
    if volume("a_server_that_does_not_sync_loses_data_here").is_none() {
        return;
    }
    let cuts = env_number("KEYPEG_POWER_CUTS").map_or(1, |cuts| cuts.div_ceil(10));
    let random = &mut SeededRandom(u64::from(std::process::id()));
    let mut lost_in_all = 0;
    for _ in 0..cuts {
        let mut volume = Volume::new(400).unwrap();
        let (data, log) = (volume.path().join("data"), TempDir::new());
        let log = log.path().join("log");
        let history = SharedHistory::default();
        // Made by a server that syncs, and stopped: what the other one adds is what can be lost.
        let mut server = Server::logged(&mut serve(&[], &data), &log);
        start_round(&server, &history);
        assert_eq!(server.terminate().code(), Some(0));
        let mut server = Server::logged(&mut serve(&NO_SYNC, &data), &log);
        run_clients(&mut server, &history, random, |server| {
            pause(Duration::from_millis(300));
            volume.cut(0, 0);
            server.kill();
        });
        volume.unmount();
        volume.mount().unwrap();
        let lost = match Server::try_logged(&mut serve(&[], &data), &log) {
            Ok(server) => history.lock().unwrap().lost_keys(&server),
            // A directory that does not start any more has lost everything.
            Err(_) => history.lock().unwrap().counts().1,
        };
        assert!(lost > 0, "nothing lost without syncs: the rig cuts no power");
        lost_in_all += lost;
    }
    println!("{cuts} cuts without syncs lost data in each, {lost_in_all} keys in all");
}
