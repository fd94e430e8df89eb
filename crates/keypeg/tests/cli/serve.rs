//! The command line of `serve`: arguments, variables and files that are refused, and their exit
//! codes.

use crate::support::{ANY_PORT, Server, TempDir, binary, exit_of, keypeg, keypeg_under};
use serde_json::json;
use std::process::Command;

fn check(args: &[&str], env: &[(&str, &str)], exit: i32, says: &str) {
    // The variable would hide a file's `listen`.
    let (code, said) = exit_of(keypeg(args).env_remove(ANY_PORT.0).envs(env.iter().copied()));
    assert_eq!(code, exit, "{args:?} {env:?}: {said}");
    assert!(said.contains(says), "{args:?} {env:?}: {said}");
}

#[test]
fn mistakes_have_the_exit_codes_of_sysexits() {
    check(&["--lease-ttl", "soon"], &[], 64, "500ms");
    check(&["--nope"], &[], 64, "--nope");
    check(&[], &[("KEYPEG_LEASE_TTL", "8d")], 64, "1ms to 168h");
    check(&[], &[("KEYPEG_LISTEN", "here")], 64, "--listen");
    check(&["--listen", "0.0.0.0:0"], &[], 78, "--insecure-listen");
    check(&["--ephemeral"], &[("KEYPEG_LISTEN", "[::]:0")], 78, "--insecure-listen");
    check(&["--ephemeral"], &[("KEYPEG_LOG", "a=b=c")], 78, "KEYPEG_LOG");
}

#[test]
fn a_variable_that_is_set_but_empty_is_an_error() {
    let help = Command::new(binary()).args(["serve", "--help"]).env_clear().output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let variables: Vec<_> = help
        .split("[env: ")
        .skip(1)
        .map(|rest| rest.split(['=', ']']).next().expect("a variable"))
        .collect();
    for known in ["KEYPEG_LISTEN", "KEYPEG_TOKENS", "KEYPEG_AUDIT_KEEP", "KEYPEG_ALLOW_HOST"] {
        assert!(variables.contains(&known), "{variables:?}");
    }
    assert!(variables.len() >= 14, "{variables:?}");
    for variable in variables {
        let says = format!("{variable} is set but empty");
        check(&["--ephemeral"], &[(variable, "")], 64, &says);
    }
}

#[test]
fn localhost_is_an_address_to_listen_on() {
    let server = Server::in_memory(&[]);
    let (addr, port) = (server.addr(), server.addr().port());
    // The port is in use, so the address was understood and bound.
    let listen = format!("localhost:{port}");
    check(&["--ephemeral", "--listen", &listen], &[], 69, &format!("{addr} is in use"));
}

#[test]
fn an_address_in_use_is_reported() {
    let server = Server::in_memory(&[]);
    let addr = server.addr().to_string();
    check(&["--ephemeral", "--listen", &addr], &[], 69, "in use");
}

#[test]
fn flags_set_the_default_pools_policy() {
    let server = Server::in_memory(&["--lease-ttl", "90s", "--keepalive-ttl", "1h"]);
    server.client().ask("GET /v1/pools/default").is(
        200,
        &json!({
            "lease_ttl_seconds": 90, "keepalive_ttl_seconds": 3600,
        }),
    );
}

#[test]
fn a_flag_overrides_the_environment_which_overrides_the_file() {
    let dir = TempDir::new();
    let file = dir.path().join("keypeg.toml");
    let text =
        "listen = \"0.0.0.0:1\"\nephemeral = true\nlease_ttl = \"7s\"\nkeepalive_ttl = \"9m\"\n";
    std::fs::write(&file, text).unwrap();
    let named = ["--config", file.to_str().unwrap()];
    let lease = |server: &Server, seconds: u64| {
        let policy = json!({ "lease_ttl_seconds": seconds, "keepalive_ttl_seconds": 540 });
        server.client().ask("GET /v1/pools/default").is(200, &policy);
    };
    let server = Server::given(&named, &[]);
    assert!(server.ready().ends_with("(in memory only)"), "{}", server.ready());
    lease(&server, 7);
    lease(&Server::given(&named, &[("KEYPEG_LEASE_TTL", "8s")]), 8);
    let both = [&named[..], &["--lease-ttl", "6s"]].concat();
    lease(&Server::given(&both, &[("KEYPEG_LEASE_TTL", "8s")]), 6);
    let data = dir.path().join("data");
    let on = [("KEYPEG_EPHEMERAL", "false"), ("KEYPEG_DATA", data.to_str().unwrap())];
    let server = Server::given(&named, &on);
    assert!(server.ready().contains("(created "), "{}", server.ready());
    check(&named, &[], 78, "0.0.0.0:1");
    check(&[], &[("KEYPEG_CONFIG", named[1]), ("KEYPEG_LISTEN", "[::]:0")], 78, "[::]:0");
}

#[test]
fn an_invalid_or_missing_file_is_reported() {
    let dir = TempDir::new();
    let file = dir.path().join("keypeg.toml");
    let path = file.to_str().unwrap();
    check(&["--config", path], &[], 66, path);
    check(
        &["--config", dir.path().to_str().unwrap()],
        &[],
        74,
        "cannot read the configuration file",
    );
    for (text, says) in [
        (
            "\nlease_ttl = \"soon\"\n",
            "keypeg.toml line 2: lease_ttl = \"soon\" is not valid: it must be 1ms to",
        ),
        ("colour = 1\n", "keypeg.toml line 1: unknown field `colour`"),
        ("listen = [\n", "keypeg.toml line 1"),
    ] {
        std::fs::write(&file, text).unwrap();
        check(&["--config", path], &[], 78, says);
    }
    std::fs::write(&file, b"data = '\xff'\n").unwrap();
    check(&["--config", path], &[], 78, "UTF-8");
}

/// With 12 descriptors the server once printed its ready line and served no client.
#[test]
fn too_low_a_limit_of_open_files_ends_the_start() {
    for limit in [9, 12, 64] {
        let script = format!("ulimit -n {limit} && exec \"$@\"");
        let words = ["sh", "-c", &script, "sh"];
        let args = ["--ephemeral", "--listen", "127.0.0.1:0"];
        let (code, said) = exit_of(&mut keypeg_under(&words, &args));
        assert_eq!(code, 71, "{limit}: {said}");
        let expected = format!("the limit of open files is {limit}, and the server needs ");
        assert!(said.contains(&expected) && said.contains("LimitNOFILE"), "{limit}: {said}");
    }
}

/// `KEYPEG_TOKENS_FILE` once started a server without access control, in silence.
#[test]
fn unknown_variables_are_reported_and_those_of_kubernetes_are_not() {
    let dir = TempDir::new();
    let log = dir.path().join("log");
    let mut command = keypeg(&["--ephemeral"]);
    command.env("KEYPEG_TOKENS_FILE", "/secret-path").env("KEYPEG_PORT", "tcp://10.0.0.1:8000");
    command
        .env("KEYPEG_SERVICE_HOST", "10.0.0.1")
        .env("KEYPEG_PORT_8000_TCP", "tcp://10.0.0.1:8000");
    Server::logged(&mut command, &log).terminate();
    let said = std::fs::read_to_string(&log).unwrap();
    // The limit of open files of a machine can be worth a warning too.
    let is_of_variables = |line: &&str| line.contains(" WARN keypeg::variables: ");
    let warnings: Vec<_> = said.lines().filter(is_of_variables).collect();
    assert_eq!(warnings.len(), 1, "{said}");
    assert!(warnings[0].contains("KEYPEG_TOKENS_FILE"), "{said}");
    assert!(warnings[0].ends_with("did you mean KEYPEG_TOKENS?"), "{said}");
    assert!(!said.contains("/secret-path"), "{said}");
    assert!(said.contains("no --tokens: every client"), "{said}");
}
/// What needs a store that keeps its data: see CONTRIBUTING.md.
mod durability {
    use super::{Server, TempDir, check};

    #[test]
    fn a_directory_in_use_is_reported() {
        let dir = TempDir::new();
        let _server = Server::on(&dir, &[]);
        let data = dir.path().join("data");
        let data = data.to_str().unwrap();
        check(&["--data", data, "--listen", "127.0.0.1:0"], &[], 75, "in use");
    }

    #[test]
    fn a_directory_that_cannot_be_created_is_reported() {
        let dir = TempDir::new();
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        let below = file.join("data");
        check(&["--data", below.to_str().unwrap(), "--listen", "127.0.0.1:0"], &[], 74, "data");
    }

    #[test]
    fn existing_does_not_create_the_directory() {
        let dir = TempDir::new();
        let data = dir.path().join("data");
        let args = ["--data", data.to_str().unwrap(), "--existing", "--listen", "127.0.0.1:0"];
        check(&args, &[], 66, "holds no data: check the path and its mount, or omit --existing");
        assert!(!data.exists());
        std::fs::create_dir(&data).unwrap();
        check(&args, &[], 66, "holds no data");
        assert_eq!(std::fs::read_dir(&data).unwrap().count(), 0);
    }
}
