//! How many leases a token may have: refused over it, and room again at every end, at once.

use crate::support::tokens::Tokens;
use crate::support::{Answer, Client, Server, TempDir, eventually};
use serde_json::{Value, json};

const POOL: &str = "/v1/pools/default";

fn send(client: &mut Client, token: &str, request: &str, body: &Value) -> Answer {
    let bearer = format!("Bearer {token}");
    let headers = [("authorization", &*bearer), ("content-type", "application/json")];
    client.try_send(request, &headers, &body.to_string()).unwrap()
}

fn acquire(server: &Server, token: &str, pool: &str, body: &Value) -> Answer {
    send(&mut server.client(), token, &format!("POST /v1/pools/{pool}/leases"), body)
}

#[track_caller]
fn granted(server: &Server, token: &str) -> String {
    let lease = acquire(server, token, "default", &json!({}));
    assert_eq!(lease.status, 201, "{lease:?}");
    lease.text("id")
}

#[track_caller]
fn is_full(answer: Answer, max: u64) {
    assert_eq!(answer.header("retry-after"), Some("1"));
    let problem = answer.problem(429, "rate_limited");
    assert_eq!((&problem["max"], &problem["outcome"]), (&json!(max), &json!("not_applied")));
    assert!(problem["detail"].as_str().unwrap().contains("max_leases"), "{problem}");
}

fn release(server: &Server, token: &str, lease: &str) {
    let request = format!("POST {POOL}/leases/{lease}/release");
    assert_eq!(server.client().with(token, &request).status, 204);
}

/// A server's tokens: one that may do everything, and one with so many leases.
fn tokens(max: &str) -> (Tokens, String, String) {
    let tokens = Tokens::new();
    let admin = tokens.add("admin", "*", &["admin"], &[]);
    let few = tokens.add("few", "*", &["lend"], &["--max-leases", max]);
    (tokens, admin, few)
}

fn start(tokens: &Tokens) -> Server {
    Server::in_memory(&tokens.args().each_ref().map(String::as_str))
}

fn fill(server: &Server, admin: &str, pool: &str, count: u64) {
    let made = format!("POST /v1/pools/{pool}/keys");
    send(&mut server.client(), admin, &made, &json!({ "count": count })).is(201, &json!({}));
}

/// Over all pools and faces together; what others have is theirs.
#[test]
fn a_token_has_as_many_leases_as_it_may() {
    let (tokens, admin, few) = tokens("3");
    let dir = TempDir::new();
    let log = dir.path().join("audit");
    let [flag, file] = tokens.args();
    let mut server = Server::in_memory(&[&flag, &file, "--audit", log.to_str().unwrap()]);
    let client = &mut server.client();
    client.with(&admin, "PUT /v1/pools/ci").is(201, &json!({}));
    fill(&server, &admin, "default", 20);
    fill(&server, &admin, "ci", 2);
    let lease = granted(&server, &few);
    acquire(&server, &few, "ci", &json!({})).is(201, &json!({}));
    client.with(&few, "GET /keys").is(200, &json!({}));
    for pool in ["default", "ci"] {
        is_full(acquire(&server, &few, pool, &json!({})), 3);
        is_full(acquire(&server, &few, pool, &json!({ "wait_seconds": 300 })), 3);
    }
    is_full(client.with(&few, "GET /keys"), 3);
    is_full(client.with(&few, "GET /api/v1/random_api_key/"), 3);
    acquire(&server, &few, "nope", &json!({})).problem(404, "unknown_pool");
    acquire(&server, &few, "ci", &json!({ "ttl_seconds": 61 })).problem(422, "invalid");
    for _ in 0..5 {
        granted(&server, &admin);
    }
    let renew = format!("POST {POOL}/leases/{lease}/renew");
    assert_eq!(client.with(&few, &renew).status, 409, "what runs is not touched");
    release(&server, &few, &lease);
    granted(&server, &few);
    is_full(acquire(&server, &few, "ci", &json!({})), 3);
    client.with(&admin, "DELETE /v1/pools/ci").is(204, &Value::Null);
    granted(&server, &few);
    is_full(acquire(&server, &few, "default", &json!({})), 3);
    let metrics = client.with(&admin, "GET /metrics").body;
    let refused = "keypeg_refusals_total{code=\"rate_limited\"} ";
    let refused = metrics.lines().find_map(|line| line.strip_prefix(refused)).unwrap();
    assert!(refused.parse::<u64>().unwrap() >= 8, "{refused}");
    server.terminate();
    let told = std::fs::read_to_string(log).unwrap();
    let refused = told.lines().filter(|line| {
        line.contains("\"token\":\"few\"") && line.contains("\"code\":\"rate_limited\"")
    });
    assert_eq!(refused.count(), 8, "{told}");
}

#[test]
fn a_lease_that_ends_by_itself_makes_room() {
    let (tokens, admin, few) = tokens("2");
    let server = start(&tokens);
    fill(&server, &admin, "default", 5);
    for _ in 0..2 {
        let brief = json!({ "ttl_seconds": 0.2 });
        acquire(&server, &few, "default", &brief).is(201, &json!({}));
    }
    eventually("room", || {
        let again = acquire(&server, &few, "default", &json!({}));
        (again.status == 201).then_some(()).or_else(|| {
            is_full(again, 2);
            None
        })
    });
    // A key that is deleted takes its lease along.
    let keys = server.client().with(&admin, &format!("GET {POOL}/keys?state=leased")).json();
    for key in keys["keys"].as_array().unwrap() {
        let id = key["id"].as_str().unwrap();
        let delete = format!("DELETE {POOL}/keys/{id}");
        server.client().with(&admin, &delete).is(204, &Value::Null);
    }
    granted(&server, &few);
    granted(&server, &few);
    is_full(acquire(&server, &few, "default", &json!({})), 2);
}

#[test]
fn a_restart_forgets_no_lease_of_a_token() {
    let (tokens, admin, few) = tokens("2");
    let dir = TempDir::new();
    let args = tokens.args();
    let args = args.each_ref().map(String::as_str);
    let mut server = Server::on(&dir, &args);
    fill(&server, &admin, "default", 5);
    let first = granted(&server, &few);
    server.kill();
    let mut server = Server::on(&dir, &args);
    granted(&server, &few);
    is_full(acquire(&server, &few, "default", &json!({})), 2);
    server.terminate();
    let server = Server::on(&dir, &args);
    is_full(acquire(&server, &few, "default", &json!({})), 2);
    release(&server, &few, &first);
    granted(&server, &few);
    is_full(acquire(&server, &few, "default", &json!({})), 2);
}

/// The bound is the file's; leases that run are counted whether or not there was one.
#[test]
fn a_reload_changes_the_bound_and_ends_nothing() {
    let (tokens, admin, few) = tokens("1");
    let server = start(&tokens);
    // What is asked until the file is read anew takes some.
    fill(&server, &admin, "default", 10_000);
    let with = |max: &str| {
        let text = tokens.text();
        let lines: Vec<_> = text.lines().filter(|line| !line.starts_with("max_leases")).collect();
        tokens.replace(&format!("{}\n{max}\n", lines.join("\n")));
    };
    let lease = granted(&server, &few);
    is_full(acquire(&server, &few, "default", &json!({})), 1);
    with("max_leases = 2");
    eventually("one more", || {
        (acquire(&server, &few, "default", &json!({})).status == 201).then_some(())
    });
    is_full(acquire(&server, &few, "default", &json!({})), 2);
    with("");
    eventually("any number", || {
        (acquire(&server, &few, "default", &json!({})).status == 201).then_some(())
    });
    granted(&server, &few);
    with("max_leases = 3");
    let refused = eventually("too many", || {
        let answer = acquire(&server, &few, "default", &json!({}));
        (answer.status != 201).then_some(answer)
    });
    is_full(refused, 3);
    release(&server, &few, &lease);
    is_full(acquire(&server, &few, "default", &json!({})), 3);
}

/// Whoever waits has the lease already: no grant to somebody in line passes the bound.
#[test]
fn who_waits_counts_as_a_lease() {
    let (tokens, admin, few) = tokens("2");
    let server = start(&tokens);
    fill(&server, &admin, "default", 1);
    let held = granted(&server, &admin);
    let body = json!({ "wait_seconds": 300 }).to_string();
    let text = format!(
        "POST {POOL}/leases HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {few}\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut waiting: Vec<_> = (0..2).map(|_| server.client()).collect();
    for (at, client) in waiting.iter_mut().enumerate() {
        client.write(text.as_bytes()).unwrap();
        eventually("waits", || {
            let pool = server.client().with(&admin, &format!("GET {POOL}")).json();
            (pool["waiting"] == at + 1).then_some(())
        });
    }
    is_full(acquire(&server, &few, "default", &json!({ "wait_seconds": 300 })), 2);
    release(&server, &admin, &held);
    let lease = waiting.remove(0).read(false).unwrap().is(201, &json!({}));
    is_full(acquire(&server, &few, "default", &json!({})), 2);
    // Who hangs up waits no more.
    drop(waiting);
    eventually("room", || {
        let answer = acquire(&server, &few, "default", &json!({}));
        (answer.status == 404).then_some(())
    });
    release(&server, &few, lease["id"].as_str().unwrap());
    granted(&server, &few);
}

#[test]
fn what_was_answered_is_told_again_at_the_bound() {
    let (tokens, admin, few) = tokens("1");
    let server = start(&tokens);
    fill(&server, &admin, "default", 3);
    let bearer = format!("Bearer {few}");
    let once = |key: &str| {
        let headers = [("authorization", &*bearer), ("idempotency-key", key)];
        server.client().try_send(&format!("POST {POOL}/leases"), &headers, "").unwrap()
    };
    let first = once("a").is(201, &json!({}));
    assert_eq!(once("a").is(201, &json!({}))["id"], first["id"]);
    is_full(once("b"), 1);
    release(&server, &few, first["id"].as_str().unwrap());
    // The refusal was not remembered.
    let second = once("b").is(201, &json!({}));
    assert_ne!(second["id"], first["id"]);
}
