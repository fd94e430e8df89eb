//! The conformance suite on three servers that share a log: in memory, in a PostgreSQL with a
//! synchronous standby, and in an S3 server.
//!
//! The scripts are in keypeg-testkit. Time is given; the log is real. A test of a real log starts its
//! store, then runs this program again with the URL of the log: there, each script gets a shard of
//! its own in that log.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod logs;
#[path = "../../../keypeg-log-object/tests/support/moto.rs"]
mod moto;
#[path = "../../../keypeg-log-postgres/tests/support/mod.rs"]
#[expect(dead_code, reason = "faults of PostgreSQL are tested with its log")]
mod postgres;
#[path = "../../../keypeg-testkit/scripts/requests.rs"]
mod requests;
#[path = "../../../keypeg-testkit/scripts/mod.rs"]
mod scripts;
mod servers;
#[path = "../../../keypeg-engine/tests/support/sim_disk.rs"]
#[expect(dead_code, reason = "the crashes of a disk are tested with the engine")]
mod sim_disk;

pub(crate) use keypeg_testkit::SeededRandom;

use keypeg_core::Limits;
use keypeg_log::Guarantee;
use keypeg_testkit::conformance;
use servers::{Begin, TestServers};
use std::io::Write as _;
use std::process::Command;

/// The URL of the log that the scripts run on; without it, they run on a log in memory.
const LOG: &str = "KEYPEG_TEST_LOG";
/// The scripts that run on PostgreSQL: all.
const ALL: [&str; 2] = ["scripts::", "requests::"];
/// The scripts that run on the S3 double, which is slow.
const SOME: [&str; 2] = ["scripts::leases::", "scripts::waiting::"];

/// Runs a script on servers that share a log.
#[track_caller]
fn check(script: &str) {
    check_within(
        Limits {
            pools: 10_000,
            keys: 1_000_000,
            bytes: u64::MAX,
            answers: keypeg_core::ANSWERS_MAX,
        },
        script,
    );
}

/// Runs a script with this limit of keys.
#[track_caller]
fn check_within(limits: Limits, script: &str) {
    if let Ok(url) = std::env::var(LOG) {
        // One begin for each script, since a real log takes time.
        let (log, shard) = logs::at(&url);
        let begin = if shard.is_multiple_of(2) { Begin::AtFirstFrame } else { Begin::AtSnapshot };
        let servers = TestServers::start(log, shard, begin, limits);
        return conformance::check(&format!("{begin:?}, {url}"), Box::new(servers), script);
    }
    let kinds =
        [(Guarantee::Chained, Begin::AtFirstFrame), (Guarantee::Created, Begin::AtSnapshot)];
    for (guarantee, begin) in kinds {
        let servers = TestServers::start(logs::in_memory(guarantee), 0, begin, limits);
        conformance::check(&format!("{begin:?}, {guarantee:?}"), Box::new(servers), script);
    }
}

/// Runs scripts in a process that has the URL of a log.
fn run_on(url: &str, scripts: [&str; 2], scripts_min: u32) {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(scripts)
        .env(LOG, url)
        .env("AWS_ACCESS_KEY_ID", "test")
        .env("AWS_SECRET_ACCESS_KEY", "test")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let passed = text.split_once("test result: ok. ").and_then(|(_, rest)| rest.split_once(' '));
    let passed: u32 = passed.unwrap().0.parse().unwrap();
    assert!(passed >= scripts_min, "{passed} scripts: {text}");
}

#[test]
fn every_script_holds_on_servers_that_share_a_postgresql_with_a_synchronous_standby() {
    let name = "every_script_holds_on_servers_that_share_a_postgresql";
    let Some(programs) = postgres::programs(name) else { return };
    let primary = postgres::Server::start(&programs);
    let _standby = primary.add_standby();
    run_on(&primary.url("timeout_s=60"), ALL, 65);
}

#[test]
fn leases_and_waits_hold_on_servers_that_share_an_s3_bucket() {
    let Some(server) = moto::Server::start() else {
        let name = "leases_and_waits_hold_on_servers_that_share_an_s3_bucket";
        let _ = writeln!(std::io::stderr(), "\nskipped test: {name}: moto cannot be installed");
        return;
    };
    run_on(&server.url("scripts"), SOME, 15);
}
