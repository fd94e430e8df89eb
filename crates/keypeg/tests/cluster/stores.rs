//! The simple API on two servers that share an S3 double: its tests, run once more by this program on
//! the example `cluster_server`. The script `run` in this folder runs all tests so, on each store.

#[path = "../../../keypeg-log-object/tests/support/moto.rs"]
mod moto;

use crate::support::skipped;
use keypeg_testkit::TempDir;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The tests that run.
const TESTS: &str = "api::simple::";

#[test]
fn the_simple_api_holds_on_two_servers_that_share_an_s3_bucket() {
    let name = "the_simple_api_holds_on_two_servers_that_share_an_s3_bucket";
    if std::env::var_os("KEYPEG_BINARY").is_some() {
        return skipped(name, "KEYPEG_BINARY names another program");
    }
    let examples = Path::new(env!("CARGO_BIN_EXE_keypeg")).with_file_name("examples");
    let servers = examples.join("cluster_server");
    if !servers.exists() {
        return skipped(name, "cargo has not built the example cluster_server");
    }
    let Some(store) = moto::Server::start() else {
        return skipped(name, "moto cannot be installed");
    };
    let directory = TempDir::new();
    let output = Command::new(std::env::current_exe().expect("this program"))
        .arg(TESTS)
        .env("KEYPEG_BINARY", with_store(&servers, &store.url("INSTALLATION"), &directory))
        .output()
        .expect("this program starts");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("test result: ok. 2 passed"), "{text}");
}

/// Writes a program that starts the servers with a store: the tests start theirs without variables.
fn with_store(servers: &Path, url: &str, directory: &TempDir) -> PathBuf {
    let program = directory.path().join("cluster_server");
    let text = format!(
        "#!/bin/sh\nexport LOG_URL='{url}' AWS_ACCESS_KEY_ID=test AWS_SECRET_ACCESS_KEY=test\n\
         exec '{}' \"$@\"\n",
        servers.display()
    );
    std::fs::write(&program, text).expect("a program");
    std::fs::set_permissions(&program, Permissions::from_mode(0o755)).expect("its mode");
    program
}
