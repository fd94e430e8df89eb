//! Servers with real shards: servers that share PostgreSQL with a synchronous standby, killed while
//! clients record what they are granted (`bench/cluster`, in short; the long run is `just cluster`),
//! and the tokens of leases in several shards.

use crate::support::{Server, TempDir, binary, eventually, skipped};
use serde_json::json;
use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

/// Why a test does not run.
const NO_STORE: &str = "the server of an example has no store";

#[test]
fn when_a_server_of_several_is_killed_another_goes_on_and_no_key_is_lent_twice() {
    let test = "when_a_server_of_several_is_killed";
    if is_example() {
        return skipped(test, NO_STORE);
    }
    if !Path::new("/usr/lib/postgresql").exists() {
        return skipped(test, "no postgresql package");
    }
    let run = concat!(env!("CARGO_MANIFEST_DIR"), "/../../bench/cluster");
    let mut command = Command::new(run);
    command.args(["kill=2", "handover=1", "--shards", "4", "--pools", "4"]);
    command.args(["--between", "0.2", "--within", "120", "--binary"]).arg(binary());
    let output = command.env_remove("KEYPEG_STORE").output().expect("python3");
    let [stdout, stderr] =
        [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    assert!(output.status.success(), "{stdout}{stderr}");
    for scenario in ["postgres kill x2: ", "postgres handover x1: "] {
        let line = stdout.lines().find(|line| line.starts_with(scenario)).expect("its result");
        assert!(line.contains("; 0 overlaps, 0 tokens repeated"), "{line}");
    }
}

fn is_example() -> bool {
    let binary = std::env::var_os("KEYPEG_BINARY").unwrap_or_default();
    let name = Path::new(&binary).file_name();
    name.is_some_and(|name| name == "naive_server" || name == "cluster_server")
}

#[test]
fn the_checker_of_recorded_grants_sees_each_kind_of_fault() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../bench/several/record.py");
    let output = Command::new("python3").arg(file).output().expect("python3");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Two shards that count from one number on would grant the same tokens.
#[test]
fn no_two_leases_have_the_same_token_whatever_shards_their_pools_are_in() {
    if is_example() {
        return skipped("no_two_leases_have_the_same_token", NO_STORE);
    }
    let store = TempDir::new();
    let url = format!("file://{}", store.path().display());
    let args = ["--advertise", "http://127.0.0.1:0", "--shards", "4"];
    let server = Server::given(&args, &[("KEYPEG_STORE", &url)]);
    let mut client = server.client();
    eventually("all shards are served", || (client.ask("GET /readyz").status == 200).then_some(()));
    let mut tokens = BTreeSet::new();
    for pool in 0..12 {
        let pool = format!("/v1/pools/p{pool}");
        client.send(&format!("PUT {pool}"), &json!({})).is(201, &json!({}));
        client.send(&format!("POST {pool}/keys"), &json!({ "count": 3 })).is(201, &json!({}));
        let mut before = 0;
        for _ in 0..3 {
            let lease = client.ask(&format!("POST {pool}/leases")).is(201, &json!({}));
            let token = lease["fencing_token"].as_u64().unwrap();
            assert!(token > before && tokens.insert(token), "{token} of {pool}: {tokens:?}");
            before = token;
        }
    }
}
