//! The audit log: one line per change, with its token and outcome; no change without a line.

mod holders;

use crate::support::tokens::Tokens;
use crate::support::{Client, Server, TempDir, eventually, exit_of, keypeg};
use keypeg_client::routes::ROUTES;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;

fn lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn audited(dir: &TempDir, more: &[&str]) -> Server {
    let log = dir.path().join("audit");
    Server::in_memory(&[&["--audit", log.to_str().unwrap()], more].concat())
}

/// Each change is one line, with its keys; a read or a keep-alive has no line.
#[test]
fn each_change_is_logged_with_its_token_operation_and_outcome() {
    let (dir, tokens) = (TempDir::new(), Tokens::new());
    let admin = tokens.add("admin", "*", &["admin"], &[]);
    let lender = tokens.add("lender", "ci", &["lend"], &[]);
    let file = tokens.args();
    let mut server = audited(&dir, &[&file[0], &file[1]]);
    let client = &mut server.client();
    let policy = json!({ "max_hold_seconds": 600 }).to_string();
    let bearer = format!("Bearer {admin}");
    let headers = [("authorization", &*bearer), ("content-type", "application/json")];
    client.try_send("PUT /v1/pools/ci", &headers, &policy).unwrap().is(201, &json!({}));
    // Each on a new connection, so that the calls of the fast path are tested too.
    let send = |token: &str, request: &str| server.client().with(token, request);
    let key = send(&admin, "POST /v1/pools/ci/keys").json()["keys"][0]["id"].clone();
    let id = key.as_str().unwrap();
    let grant = send(&lender, "POST /v1/pools/ci/leases").json();
    let lease = grant["id"].as_str().unwrap();
    let token = &grant["fencing_token"];
    send(&lender, "POST /v1/pools/ci/leases").problem(404, "no_key_available");
    send(&lender, &format!("POST /v1/pools/ci/leases/{lease}/renew"));
    send(&lender, &format!("POST /v1/pools/ci/keys/{id}/keepalive")).is(200, &json!({}));
    send(&lender, "GET /v1/pools").problem(403, "forbidden");
    send(&lender, &format!("POST /v1/pools/ci/leases/{lease}/release")).is(204, &Value::Null);
    send(&lender, &format!("DELETE /v1/pools/ci/keys/{id}")).problem(403, "forbidden");
    send("wrong", "POST /keys").problem(401, "unauthorized");
    send(&admin, &format!("POST /v1/pools/ci/keys/{id}/reveal")).is(200, &json!({}));
    send(&admin, &format!("DELETE /v1/pools/ci/keys/{id}")).is(204, &Value::Null);
    let value = send(&admin, "POST /api/v1/random_api_key/").text("api_key");
    send(&admin, "GET /api/v1/random_api_key/").is(200, &json!({}));
    send(&admin, &format!("PUT /api/v1/random_api_key/?api_key={value}")).is(200, &json!({}));
    send(&admin, "GET /keys").is(200, &json!({}));
    // Refused with a body of the older API, which is no problem.
    send(&admin, "GET /keys").is(404, &json!({}));
    assert_eq!(send(&admin, "GET /api/v1/random_api_key/").status, 404);
    send(&admin, "POST /v1/pools/ci/keys/x/y").problem(404, "not_found");
    server.terminate();
    let log = lines(&dir.path().join("audit"));
    let summaries: Vec<_> = log
        .iter()
        .map(|line| {
            let word = |name: &str| line[name].as_str().unwrap_or("-").to_owned();
            let names = ["token", "operation", "pool", "outcome", "code"];
            format!("{} {}", names.map(word).join(" "), line["status"])
        })
        .collect();
    assert_eq!(
        summaries,
        [
            "admin putPool ci applied - 201",
            "admin addKeys ci applied - 201",
            "lender acquire ci applied - 201",
            "lender acquire ci refused no_key_available 404",
            "lender renew ci applied - 200",
            "lender release ci applied - 204",
            "lender deleteKey ci refused forbidden 403",
            "- plainGenerate default refused unauthorized 401",
            "admin revealKey ci applied - 200",
            "admin deleteKey ci applied - 204",
            "admin seedAdd default applied - 201",
            "admin seedAcquire default applied - 200",
            "admin seedRelease default applied - 200",
            "admin plainAcquire default applied - 200",
            "admin plainAcquire default refused - 404",
            "admin seedAcquire default refused - 404",
        ]
    );
    for index in [1, 2, 4, 8, 9] {
        let line = &log[index];
        assert_eq!((&line["key_ids"], &line["keys"]), (&json!([id]), &json!(1)), "{index}");
    }
    for index in [2, 4, 5] {
        assert_eq!(&log[index]["fencing_token"], token, "{index}");
    }
    assert_eq!(log[10]["key_ids"], log[12]["key_ids"], "named by its value, logged by its id");
    for line in &log {
        assert_eq!(line["address"], "127.0.0.1");
        assert!(line["at"].as_str().unwrap().ends_with('Z') && line["request_id"].is_string());
    }
}

/// While the log cannot be written, the server refuses changes and applies none; reads and
/// keep-alives still work, and changes resume without a restart.
#[test]
fn a_change_that_cannot_be_logged_is_refused() {
    let dir = TempDir::new();
    let subdir = dir.path().join("subdir");
    std::fs::create_dir(&subdir).unwrap();
    let log = subdir.join("audit");
    let args = ["--audit", log.to_str().unwrap(), "--audit-mib", "1", "--audit-keep", "0"];
    let mut server = Server::in_memory(&args);
    let client = &mut server.client();
    let (mut created, body) = (100, json!({ "count": 100 }));
    assert_eq!(client.send("POST /v1/pools/default/keys", &body).status, 201);
    // The next file would be created in a directory that does not exist.
    std::fs::remove_dir_all(&subdir).unwrap();
    let refused = loop {
        let answer = client.send("POST /v1/pools/default/keys", &body);
        if answer.status != 201 {
            break answer;
        }
        created += 100;
        assert!(created < 1_000_000, "the log grows without limit");
    };
    assert_eq!(refused.header("retry-after"), Some("1"));
    assert_eq!(refused.problem(503, "overloaded")["outcome"], "not_applied");
    for change in [
        "POST /v1/pools/default/leases",
        "PUT /v1/pools/ci",
        "GET /keys",
        "GET /api/v1/random_api_key/",
        "POST /api/v1/random_api_key/",
    ] {
        client.ask(change).problem(503, "overloaded");
    }
    let all = json!({ "all": true });
    let kept = client.send("POST /v1/pools/default/keepalive", &all);
    kept.is(200, &json!({ "kept": created }));
    let counts = json!({ "total": created, "leased": 0 });
    client.ask("GET /v1/pools/default").is(200, &counts);
    let metrics = client.ask("GET /metrics").body;
    assert!(metrics.contains("\nkeypeg_audit_failing 1\n"), "{metrics}");
    std::fs::create_dir(&subdir).unwrap();
    eventually("changes resume", || {
        (client.ask("POST /v1/pools/default/leases").status == 201).then_some(())
    });
    server.terminate();
    assert!(lines(&log).iter().any(|line| line["operation"] == "acquire"));
}

/// A change is logged also when its client has disconnected.
#[test]
fn a_change_whose_client_has_disconnected_is_logged() {
    let dir = TempDir::new();
    let mut server = audited(&dir, &[]);
    let log = dir.path().join("audit");
    let body =
        "content-type: application/json\r\ncontent-length: 21\r\n\r\n{\"wait_seconds\": 300}";
    // Served by hyper, and by the fast path.
    for (before, rest) in ["prefer: wait=300\r\n\r\n", body].into_iter().enumerate() {
        let head = "POST /v1/pools/default/leases HTTP/1.1\r\nhost: localhost\r\n";
        let mut client = server.client();
        client.write(format!("{head}{rest}").as_bytes()).unwrap();
        eventually("a waiter", || {
            let pool = server.client().ask("GET /v1/pools/default").json();
            (pool["waiting"] == 1).then_some(())
        });
        drop(client);
        let line = eventually("a line", || lines(&log).into_iter().nth(before));
        assert_eq!((&line["operation"], &line["outcome"]), (&json!("acquire"), &json!("unknown")));
        assert!(line["status"].is_null());
    }
    server.terminate();
}

/// A change of many keys is one line with their number and the first hundred ids.
#[test]
fn a_line_has_a_maximum_length() {
    let dir = TempDir::new();
    let mut server = audited(&dir, &[]);
    server.client().send("POST /v1/pools/default/keys", &json!({ "count": 10_000 }));
    server.terminate();
    let log = lines(&dir.path().join("audit"));
    assert_eq!((log.len(), &log[0]["keys"]), (1, &json!(10_000)));
    assert_eq!(log[0]["key_ids"].as_array().unwrap().len(), 100);
    let longest = ROUTES.iter().map(|route| route.operation.len()).max();
    assert!(longest < Some(32));
}

#[test]
fn a_log_that_cannot_be_opened_ends_the_start() {
    let dir = TempDir::new();
    let link = dir.path().join("link");
    std::os::unix::fs::symlink(dir.path().join("elsewhere"), &link).unwrap();
    let no_parent = dir.path().join("no/audit");
    for path in [&link, &no_parent, &dir.path().to_owned()] {
        let audit = ["--ephemeral", "--audit", path.to_str().unwrap()];
        let (code, said) = exit_of(keypeg(&audit).args(["--listen", "127.0.0.1:0"]));
        assert_eq!(code, 73, "{said}");
        assert!(said.contains("audit log"), "{said}");
    }
}

/// Sends a request over the fast path, or in a form that only hyper handles.
fn send_by(server: &Server, by_hyper: bool, request: &str, token: &str, body: &str) -> u16 {
    let bearer = format!("Bearer {token}");
    let mut headers = vec![("authorization", &*bearer), ("content-type", "application/json")];
    headers.extend(by_hyper.then_some(("prefer", "wait=0")));
    server.client().try_send(request, &headers, body).unwrap().status
}

/// 190 000 requests without a token pushed every line out of the log within seconds: it rotates.
#[test]
fn refused_callers_cannot_move_the_log() {
    let (dir, tokens) = (TempDir::new(), Tokens::new());
    let admin = tokens.add("admin", "*", &["admin"], &[]);
    let reader = tokens.add("reader", "*", &["read"], &[]);
    let file = tokens.args();
    let mut server = audited(&dir, &[&file[0], &file[1]]);
    let change = || assert_eq!(server.client().with(&admin, "POST /keys").status, 201);
    change();
    let many = &mut server.client();
    for n in 0..500 {
        let request = if n % 2 == 0 { "POST /keys" } else { "PUT /v1/pools/ci" };
        many.ask(request).problem(401, "unauthorized");
        many.with(&reader, request).problem(403, "forbidden");
    }
    change();
    server.terminate();
    let log = lines(&dir.path().join("audit"));
    let summaries: Vec<_> = log
        .iter()
        .map(|line| {
            let names = ["token", "address", "operation", "outcome", "count"];
            names.map(|name| line[name].to_string().replace('"', "")).join(" ")
        })
        .collect();
    assert_eq!(
        summaries,
        [
            "admin 127.0.0.1 plainGenerate applied null",
            "null 127.0.0.1 plainGenerate refused null",
            "reader 127.0.0.1 plainGenerate refused null",
            "admin 127.0.0.1 plainGenerate applied null",
            "reader null refusals refused 499",
            "null 127.0.0.1 refusals refused 499",
        ]
    );
    assert_eq!(log[4]["codes"], json!({ "forbidden": 499 }));
    assert!(log[5]["first_at"].as_str() <= log[5]["last_at"].as_str());
    let fields = |line: &Value| line.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    let shared = ["at", "request_id", "token", "address", "operation", "pool", "outcome"];
    assert!(
        log.iter().all(|line| shared.iter().all(|name| fields(line).contains(&name.to_string())))
    );
}

/// A log without room refuses changes; a caller without a token is refused as ever.
#[test]
fn a_refused_caller_needs_no_place_in_the_log() {
    let (dir, tokens) = (TempDir::new(), Tokens::new());
    let admin = tokens.add("admin", "*", &["admin"], &[]);
    let subdir = dir.path().join("subdir");
    std::fs::create_dir(&subdir).unwrap();
    let (log, file) = (subdir.join("audit"), tokens.args());
    let mut server = Server::in_memory(&["--audit", log.to_str().unwrap(), &file[0], &file[1]]);
    std::fs::remove_dir_all(&subdir).unwrap();
    eventually("changes are refused", || {
        (server.client().with(&admin, "POST /keys").status == 503).then_some(())
    });
    for _ in 0..3 {
        server.client().ask("POST /keys").problem(401, "unauthorized");
    }
    std::fs::create_dir(&subdir).unwrap();
    eventually("changes resume", || {
        (server.client().with(&admin, "POST /keys").status == 201).then_some(())
    });
    server.terminate();
    let log = lines(&log);
    let sum = log.iter().find(|line| line["operation"] == "refusals").unwrap();
    assert_eq!(sum["count"], 3, "{log:?}");
}

/// The line of a refused request was missing for a rate limit only, and no test saw it.
#[test]
fn each_refusal_at_admission_is_logged_on_either_path() {
    for by_hyper in [false, true] {
        let (dir, tokens) = (TempDir::new(), Tokens::new());
        let slow = tokens.add("slow", "*", &["lend"], &["--requests-per-second", "1"]);
        let other = tokens.add("other", "elsewhere", &["lend"], &[]);
        let reader = tokens.add("reader", "*", &["read"], &[]);
        let file = tokens.args();
        let mut server = audited(&dir, &[&file[0], &file[1]]);
        let send =
            |token: &str| send_by(&server, by_hyper, "POST /v1/pools/default/leases", token, "{}");
        eventually("the rate limit", || (send(&slow) == 429).then_some(()));
        assert_eq!([send(&other), send(&reader)], [403, 403]);
        let wrong = eventually("the limit of wrong tokens", || {
            let status = send("wrong");
            assert!([401, 429].contains(&status), "{status}");
            (status == 429).then_some(status)
        });
        assert_eq!(wrong, 429);
        server.terminate();
        let log = lines(&dir.path().join("audit"));
        let count = |token: Value, code: &str| {
            let of_caller = log.iter().filter(|line| line["token"] == token);
            let (sums, lines): (Vec<_>, Vec<_>) =
                of_caller.partition(|line| line["operation"] == "refusals");
            let is_it = |line: &&&Value| line["code"] == code && line["outcome"] == "refused";
            let found: Vec<_> = lines.iter().filter(is_it).collect();
            assert!(found.iter().all(|line| line["operation"] == "acquire"));
            assert!(lines.len() <= 1 || !token.is_null(), "one line, and the summary");
            let of_sum = |line: &&Value| line["codes"][code].as_u64().unwrap_or(0);
            found.len() as u64 + sums.iter().map(of_sum).sum::<u64>()
        };
        assert_eq!(count(json!("slow"), "rate_limited"), 1, "by hyper: {by_hyper}");
        assert_eq!(count(json!("other"), "forbidden"), 1, "by hyper: {by_hyper}");
        assert_eq!(count(json!("reader"), "forbidden"), 1, "by hyper: {by_hyper}");
        assert_eq!(count(Value::Null, "rate_limited"), 1, "by hyper: {by_hyper}");
        assert!(count(Value::Null, "unauthorized") > 0, "by hyper: {by_hyper}");
    }
}

/// A socket that accepts both versions of IP shows IPv4 addresses as IPv6; the log does not.
#[test]
fn the_address_of_a_client_by_ipv4_is_logged_as_such() {
    let dir = TempDir::new();
    let log = dir.path().join("audit");
    let args = [
        "--ephemeral",
        "--audit",
        log.to_str().unwrap(),
        "--listen",
        "[::ffff:127.0.0.1]:0",
        "--insecure-listen",
    ];
    let mut process = keypeg(&args).stdout(Stdio::piped()).spawn().unwrap();
    let mut ready = String::new();
    BufReader::new(process.stdout.take().unwrap()).read_line(&mut ready).unwrap();
    let port = ready.split("]:").nth(1).and_then(|rest| rest.split(':').next()?.parse().ok());
    let port = port.unwrap_or_else(|| panic!("not a ready line: {ready:?}"));
    let mut client = Client::new(SocketAddr::from(([127, 0, 0, 1], port)));
    client.ask("POST /v1/pools/default/keys").is(201, &json!({}));
    kill_process(Pid::from_child(&process), Signal::TERM).unwrap();
    process.wait().unwrap();
    assert_eq!(lines(&log)[0]["address"], "127.0.0.1");
}

fn is_failing(server: &Server) -> bool {
    let metrics = server.client().ask("GET /metrics").body;
    metrics.contains("\nkeypeg_audit_failing 1\n")
}

/// Lines once went into a file that had been moved or removed, and the metric reported no fault.
#[test]
fn a_file_that_is_moved_or_removed_is_created_again_without_a_request() {
    let dir = TempDir::new();
    let subdir = dir.path().join("subdir");
    std::fs::create_dir(&subdir).unwrap();
    let (log, moved) = (subdir.join("audit"), subdir.join("moved"));
    let mut server = Server::in_memory(&["--audit", log.to_str().unwrap()]);
    let change = || server.client().ask("POST /v1/pools/default/keys").status;
    assert_eq!(change(), 201);
    eventually("a line", || (lines(&log).len() == 1).then_some(()));
    std::fs::rename(&log, &moved).unwrap();
    eventually("the file is created again", || log.exists().then_some(()));
    assert_eq!(change(), 201);
    eventually("a line", || (lines(&log).len() == 1).then_some(()));
    assert_eq!(lines(&moved).len(), 1);
    std::fs::remove_file(&log).unwrap();
    eventually("the file is created again", || log.exists().then_some(()));
    assert!(!is_failing(&server));
    // With its directory, so that it cannot be created.
    std::fs::remove_dir_all(&subdir).unwrap();
    eventually("the metric reports it", || is_failing(&server).then_some(()));
    assert_eq!(change(), 503);
    std::fs::create_dir(&subdir).unwrap();
    eventually("the metric reports the end", || (!is_failing(&server)).then_some(()));
    assert_eq!(change(), 201);
    server.terminate();
    assert_eq!(lines(&log).len(), 1);
}

/// As logrotate does it: rename, SIGHUP. The server also runs without --tokens and without --audit.
#[test]
fn sighup_reopens_the_audit_log_and_never_ends_the_server() {
    let dir = TempDir::new();
    let (log, moved) = (dir.path().join("audit"), dir.path().join("audit.moved"));
    let mut server = audited(&dir, &[]);
    let change = || server.client().ask("POST /v1/pools/default/keys").status;
    assert_eq!(change(), 201);
    eventually("a line", || (lines(&log).len() == 1).then_some(()));
    for count in 1..4 {
        std::fs::rename(&log, &moved).unwrap();
        kill_process(server.pid(), Signal::HUP).unwrap();
        eventually("the file is created again", || log.exists().then_some(()));
        assert_eq!((change(), lines(&moved).len()), (201, 1), "{count}");
        eventually("a line", || (lines(&log).len() == 1).then_some(()));
    }
    assert_eq!(server.terminate().code(), Some(0));
    let mut server = Server::in_memory(&[]);
    for _ in 0..3 {
        kill_process(server.pid(), Signal::HUP).unwrap();
        assert_eq!(server.client().ask("GET /livez").status, 200);
    }
    assert_eq!(server.terminate().code(), Some(0));
}
