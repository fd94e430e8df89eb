//! Repeated power cuts under load on one data directory: no acknowledged change is lost.
//!
//! The directory is on a separate ext4 volume. A third of the cuts are plain. In the others, syncs
//! are slow, so that the cut finds a batch that is written and not yet durable; in half of those,
//! some pages of the batch are durable nevertheless. A control, a server whose syncs do nothing,
//! must lose data at every cut: otherwise these tests would prove nothing.
//! `KEYPEG_POWER_CUTS` sets the number of cuts, `KEYPEG_POWER_SEED` repeats a run's random choices.

use crate::support::history::{
    SERVER_ARGS, SeededRandom, SharedHistory, env_number, run_clients, start_round,
    threads_of_round,
};
use crate::support::volume::{Volume, run};
use crate::support::{Client, Server, TempDir, eventually, keypeg, keypeg_under, pause, skipped};
use serde_json::{Value, json};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Runs the server with every sync delayed by 4000 µs.
const SLOW_SYNC: [&str; 5] =
    ["strace", "-D", "-f", "-q", "--inject=fdatasync,fsync:delay_enter=4000"];
/// Runs the server with syncs that return success and do nothing.
const NO_SYNC: [&str; 5] = ["strace", "-D", "-f", "-q", "--inject=fdatasync,fsync:retval=0"];

fn serve(under: &[&str], data: &Path) -> Command {
    let words = [under, &["-o", "/dev/null", "-e", "trace=fdatasync,fsync"]].concat();
    let mut command =
        if under.is_empty() { keypeg(&SERVER_ARGS) } else { keypeg_under(&words, &SERVER_ARGS) };
    command.arg("--data").arg(data).env("KEYPEG_LOG", "info");
    command
}

/// Creates a volume; reports the test as skipped where this machine cannot.
fn volume(test: &str) -> Option<Volume> {
    let tools = run("strace", &["-V"]).and_then(|()| run("perl", &["-e", "1"]));
    let volume = tools.and_then(|()| Volume::new(400));
    volume.map_err(|why| skipped(test, &why)).ok()
}

#[test]
fn acknowledged_changes_survive_power_cuts() {
    let Some(mut volume) = volume("acknowledged_changes_survive_power_cuts") else { return };
    let cuts = env_number("KEYPEG_POWER_CUTS").unwrap_or(3);
    let seed = env_number("KEYPEG_POWER_SEED").unwrap_or_else(|| u64::from(std::process::id()));
    println!("KEYPEG_POWER_SEED={seed} KEYPEG_POWER_CUTS={cuts}");
    let (random, history) = (&mut SeededRandom(seed), SharedHistory::default());
    let (logs, data) = (TempDir::new(), volume.path().join("data"));
    let log = logs.path().join("log");
    let (mut torn, mut bulk) = (0, AtomicU64::new(0));
    for cut in 0..cuts {
        let under: &[&str] = if cut % 3 == 0 { &[] } else { &SLOW_SYNC };
        let mut command = serve(under, &data);
        let mut server = Server::logged(command.args(threads_of_round(cut)), &log);
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
                scope.spawn(move || generate_bulk(client, bulk));
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
    assert!(grants > 0, "the clients acquired keys");
    let log = std::fs::read_to_string(&log).unwrap();
    assert!(!log.contains("panicked"), "{log}");
}

/// The number of keys of one call, so that its batch takes many pages.
const KEYS_PER_CALL: u64 = 500;

/// Generates many keys a call until the server has ended; counts the acknowledged calls.
fn generate_bulk(mut client: Client, acked: &AtomicU64) {
    let body = json!({ "count": KEYS_PER_CALL }).to_string();
    let json_type = [("content-type", "application/json")];
    while let Ok(answer) = client.try_send("POST /v1/pools/bulk/keys", &json_type, &body) {
        assert_eq!(answer.status, 201, "{answer:?}");
        acked.fetch_add(1, Ordering::Relaxed);
    }
}

/// Checks that the keys of each call exist all or not at all, and those of acknowledged calls
/// exist.
fn check_bulk(server: &Server, acked: u64) {
    let client = &mut server.client();
    let pool = client.ask("GET /v1/pools/bulk");
    if pool.status == 200 {
        let total = pool.json()["total"].as_u64().unwrap();
        let calls = acked * KEYS_PER_CALL..=(acked + 1) * KEYS_PER_CALL;
        assert!(
            calls.contains(&total) && total.is_multiple_of(KEYS_PER_CALL),
            "{acked} calls, {total} keys"
        );
        client.ask("DELETE /v1/pools/bulk").is(204, &Value::Null);
    } else {
        assert_eq!(acked, 0, "{pool:?}");
    }
    let policy = json!({ "keepalive_ttl_seconds": 3600 });
    client.send("PUT /v1/pools/bulk", &policy).is(201, &json!({}));
}

/// Returns the number of batches that starts have cut from the end of the journal.
fn batches_cut(server: &Server) -> u64 {
    let metrics = server.client().ask("GET /metrics").body;
    let line = metrics.lines().find_map(|line| line.strip_prefix("keypeg_batches_cut "));
    line.expect("the metric").parse().unwrap()
}

#[test]
fn a_server_that_does_not_sync_loses_data() {
    if volume("a_server_that_does_not_sync_loses_data").is_none() {
        return;
    }
    let cuts = env_number("KEYPEG_POWER_CUTS").map_or(1, |cuts| cuts.div_ceil(10));
    let random = &mut SeededRandom(u64::from(std::process::id()));
    let mut lost_total = 0;
    for _ in 0..cuts {
        let mut volume = Volume::new(400).unwrap();
        let (data, log) = (volume.path().join("data"), TempDir::new());
        let log = log.path().join("log");
        let history = SharedHistory::default();
        // A server that syncs creates the directory, so that only what the second one adds can be
        // lost.
        let mut server = Server::logged(&mut serve(&[], &data), &log);
        start_round(&server, &history);
        assert_eq!(server.terminate().code(), Some(0));
        let mut server = Server::logged(&mut serve(&NO_SYNC, &data), &log);
        run_clients(&mut server, &history, random, |server| {
            eventually("keys to lose", || (history.lock().unwrap().key_count() > 0).then_some(()));
            pause(Duration::from_millis(300));
            volume.cut(0, 0);
            server.kill();
        });
        volume.unmount();
        volume.mount().unwrap();
        let lost = match Server::try_logged(&mut serve(&[], &data), &log) {
            Ok(server) => history.lock().unwrap().lost_keys(&server),
            // A directory that no server can start on has lost everything.
            Err(_) => history.lock().unwrap().counts().1,
        };
        assert!(lost > 0, "nothing lost without syncs: the power was not cut");
        lost_total += lost;
    }
    println!("{cuts} cuts without syncs lost data in each, {lost_total} keys in all");
}
