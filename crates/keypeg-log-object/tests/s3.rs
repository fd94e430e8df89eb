//! The log in an S3 server: moto, a double of S3 that enforces the condition of a creation.

#[path = "support/moto.rs"]
mod moto;

use keypeg_log::conformance;
use keypeg_log::{SharedLog as _, wait};
use keypeg_log_object::{ObjectLog, Settings};
use std::io::Write as _;
use std::process::Command;
use tokio::runtime::Builder;

/// The name of the test below, which runs itself again in a process with credentials: the log takes
/// them from the environment alone.
const TEST: &str = "the_log_in_an_s3_server_keeps_the_contract";
/// The URL of the log, in that process.
const URL: &str = "KEYPEG_TEST_S3_URL";

#[test]
fn the_log_in_an_s3_server_keeps_the_contract() {
    if let Ok(url) = std::env::var(URL) {
        return check(&url);
    }
    let Some(server) = moto::Server::start() else {
        let _ = writeln!(std::io::stderr(), "\nskipped test: {TEST}: moto cannot be installed");
        return;
    };
    let output = Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", TEST])
        .env(URL, server.url("some/prefix"))
        .env("AWS_ACCESS_KEY_ID", "test")
        .env("AWS_SECRET_ACCESS_KEY", "test")
        .output()
        .expect("this program");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

/// Checks the log at this URL.
fn check(url: &str) {
    let settings: Settings = url.parse().expect("a URL");
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.expect("a runtime");
    let log = ObjectLog::new(settings, runtime.handle().clone());
    let report = wait(log.probe([7; 16])).expect("a store that enforces the condition");
    assert_eq!(report.store, "object store s3://bucket/some/prefix");
    assert_eq!(wait(conformance::run(&log, 0, 3)), []);
}
