//! Servers that share PostgreSQL with a synchronous standby, killed while clients record what they are
//! granted: `bench/cluster`, in short. The long run is `just cluster`.

use crate::support::{binary, skipped};
use std::path::Path;
use std::process::Command;

#[test]
fn when_a_server_of_several_is_killed_another_goes_on_and_no_key_is_lent_twice() {
    let test = "when_a_server_of_several_is_killed";
    if std::env::var_os("KEYPEG_BINARY").is_some_and(|binary| is_example(Path::new(&binary))) {
        return skipped(test, "the server of an example has no store");
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

fn is_example(binary: &Path) -> bool {
    binary.file_name().is_some_and(|name| name == "naive_server" || name == "cluster_server")
}

#[test]
fn the_checker_of_recorded_grants_sees_each_kind_of_fault() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../bench/several/record.py");
    let output = Command::new("python3").arg(file).output().expect("python3");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
