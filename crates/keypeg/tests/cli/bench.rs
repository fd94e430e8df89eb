//! `keypeg bench` against a real server: its report agrees with the server's own counters.
//!
//! No test asserts a speed.

use crate::support::tokens::Tokens;
use crate::support::{Client, Server, TempDir, binary};
use serde_json::{Value, json};
use std::process::{Command, Output};

fn bench(server: &Server, args: &[&str]) -> Output {
    let mut command = Command::new(binary());
    command.arg("bench").args(args).args(["--output", "json"]).env_clear();
    command.env("KEYPEG_SERVER", format!("http://{}", server.addr())).output().unwrap()
}

/// A busy machine may answer nothing within a short run, so the runs get longer.
const TIMES: [&str; 3] = ["200ms", "3s", "30s"];

/// Runs a load for some time; returns its report, or `None` if no good answer arrived in time.
#[track_caller]
fn report_for(server: &Server, args: &[&str], time: &str) -> Option<Value> {
    let output = bench(server, &[args, &["--for", time]].concat());
    let code = output.status.code();
    assert!([Some(0), Some(70)].contains(&code), "{output:?}");
    (code == Some(0)).then(|| serde_json::from_slice(&output.stdout).unwrap())
}

#[track_caller]
fn report(server: &Server, args: &[&str]) -> Value {
    let output = bench(server, args);
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn count(report: &Value, member: &str) -> u64 {
    report[member].as_u64().unwrap_or_else(|| panic!("no {member}: {report}"))
}

/// Returns the server's count of answers on one route group with one class of status.
fn answered(client: &mut Client, route: &str, status: &str) -> u64 {
    let name = format!("keypeg_http_requests_total{{route=\"{route}\",status=\"{status}\"}} ");
    let metrics = client.ask("GET /metrics").body;
    let value = metrics.lines().find_map(|line| line.strip_prefix(&name)).unwrap();
    value.parse().unwrap()
}

#[test]
fn the_report_agrees_with_the_counters_of_the_server() {
    let dir = TempDir::new();
    let server = Server::on(&dir, &[]);
    let client = &mut server.client();
    let report = TIMES.into_iter().find_map(|time| {
        let before = answered(client, "leases", "2xx");
        let args = ["--connections", "4", "--keys", "100", "--pool", "b"];
        let report = report_for(&server, &args, time)?;
        let (good, after) = (count(&report, "requests"), count(&report, "after"));
        assert!(after <= 8, "{report}");
        assert_eq!(before + good + after, answered(client, "leases", "2xx"), "{report}");
        let is_measured = report["process"]["cpu_seconds"].as_f64().unwrap() > 0.0;
        (good > 0 && is_measured).then_some(report)
    });
    let report = report.expect("a run with answers");
    let good = count(&report, "requests");
    assert_eq!((count(&report, "broken"), &report["refused"]), (0, &json!({})));
    let by = |kind: &str| report["by"][kind]["count"].as_u64().unwrap();
    assert_eq!(by("acquire") + by("release"), good);
    assert_eq!(report["latency"]["count"], good);
    // All leases are released, and exactly the requested keys were created.
    let all_available = json!({ "total": 100, "available": 100, "leased": 0 });
    client.ask("GET /v1/pools/b").is(200, &all_available);
    let process = &report["process"];
    assert!(process["resident_bytes"].as_u64().unwrap() > 1_000_000, "{report}");
}

/// The measured requests had no token, so on a server with tokens each of them was refused.
#[test]
fn every_request_has_the_access_token() {
    let (tokens, dir) = (Tokens::new(), TempDir::new());
    let token = tokens.add("bench", "*", &["admin"], &[]);
    let server = Server::in_memory(&tokens.args().each_ref().map(String::as_str));
    let file = dir.path().join("token");
    std::fs::write(&file, &token).unwrap();
    for scenario in ["acquire-release", "seed", "verify", "keepalive", "generate", "constant"] {
        let named = ["--keys", "100", "--token-file", file.to_str().unwrap()];
        let report = TIMES.into_iter().find_map(|time| {
            report_for(&server, &[&[scenario, "--connections", "2"], &named[..]].concat(), time)
        });
        let report = report.expect("a run with answers");
        assert_eq!(report["refused"], json!({}), "{scenario}: {report}");
        assert!(!report.to_string().contains(&token), "{report}");
    }
}

#[test]
fn refusals_do_not_count_as_requests() {
    let server = Server::in_memory(&[]);
    let client = &mut server.client();
    client.send("POST /v1/pools/default/keys", &json!({ "count": 1 })).is(201, &json!({}));
    let report = report(&server, &["--for", "200ms", "--connections", "3"]);
    let refused = report["refused"]["404"].as_u64().unwrap();
    assert_eq!(refused, answered(client, "leases", "4xx"));
    let good = count(&report, "requests") + count(&report, "after");
    assert_eq!(good, answered(client, "leases", "2xx"));
    let output = bench(&server, &["--for", "50ms", "--pool", "nope"]);
    assert_eq!(output.status.code(), Some(70), "not one good answer: {output:?}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(count(&report, "requests"), 0);
}

#[test]
fn a_rate_is_kept() {
    let server = Server::in_memory(&[]);
    let args = ["--for", "400ms", "--rate", "200", "--keys", "10", "--connections", "8"];
    let report = report(&server, &args);
    // 81 are due from the first instant to the last; each is sent or reported as not sent.
    let all = count(&report, "requests") + count(&report, "after") + count(&report, "unsent");
    assert!((81..=81 + 8).contains(&all), "{report}");
}

#[test]
fn each_scenario_calls_the_routes_it_is_named_after() {
    let server = Server::in_memory(&[]);
    let client = &mut server.client();
    client.send("POST /v1/pools/default/keys", &json!({ "count": 50 })).is(201, &json!({}));
    for (args, route) in [
        (&["seed"][..], "seed"),
        (&["generate", "--count", "3"], "keys"),
        (&["keepalive"], "keys"),
        (&["constant", "--path", "/livez"], "ops"),
    ] {
        let all_args = [args, &["--connections", "2", "--threads", "2"]].concat();
        let (before, keys, report) = TIMES
            .into_iter()
            .find_map(|time| {
                let before = answered(client, route, "2xx");
                let keys = client.ask("GET /v1/pools/default").json()["total"].as_u64().unwrap();
                Some((before, keys, report_for(&server, &all_args, time)?))
            })
            .expect("a run with answers");
        let good = count(&report, "requests") + count(&report, "after");
        assert!(good > 0 && answered(client, route, "2xx") >= before + good, "{args:?}: {report}");
        let created = client.ask("GET /v1/pools/default").json()["total"].as_u64().unwrap() - keys;
        assert_eq!(created, if args[0] == "generate" { 3 * good } else { 0 }, "{args:?}");
    }
    client.ask("GET /v1/pools/default").is(200, &json!({ "leased": 0 }));
}

#[test]
fn verify_asks_for_a_leased_key_of_each_connection() {
    let server = Server::in_memory(&[]);
    let client = &mut server.client();
    let args = ["verify", "--connections", "3", "--keys", "100"];
    let routes = |client: &mut Client| ["leases", "verify"].map(|it| answered(client, it, "2xx"));
    let (report, leases, verified) = TIMES
        .into_iter()
        .find_map(|time| {
            let before = routes(client);
            let report = report_for(&server, &args, time)?;
            let after = routes(client);
            let [leases, verified] = [0, 1].map(|route| after[route] - before[route]);
            (verified > 0).then_some((report, leases, verified))
        })
        .expect("a run that verifies");
    let good = count(&report, "requests") + count(&report, "after");
    assert!(leases + verified >= good && (1..=3).contains(&leases), "{leases} leases: {report}");
    assert_eq!(report["refused"], json!({}), "{report}");
    assert_eq!(answered(client, "verify", "4xx"), 0, "{report}");
}

#[test]
fn mistakes_have_the_exit_codes_of_sysexits() {
    let server = Server::in_memory(&[]);
    let code = |args: &[&str]| bench(&server, args).status.code();
    assert_eq!(code(&["--server", "http://127.0.0.1:1", "--for", "50ms"]), Some(69));
    assert_eq!(code(&["--server", "https://127.0.0.1:1", "--for", "50ms"]), Some(69));
    assert_eq!(code(&["keepalive"]), Some(66), "no key to keep alive");
    assert_eq!(code(&["--rate", "0"]), Some(64));
    assert_eq!(code(&["--for", "8d"]), Some(64));
}
