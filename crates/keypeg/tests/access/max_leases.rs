//! `max_leases` of a token: an acquire beyond it is refused, and each end of a lease makes room at
//! once.

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
fn grant(server: &Server, token: &str) -> String {
    let lease = acquire(server, token, "default", &json!({}));
    assert_eq!(lease.status, 201, "{lease:?}");
    lease.text("id")
}

#[track_caller]
fn assert_full(answer: Answer, max: u64) {
    assert_eq!(answer.header("retry-after"), Some("1"));
    let problem = answer.problem(429, "rate_limited");
    assert_eq!((&problem["max"], &problem["outcome"]), (&json!(max), &json!("not_applied")));
    assert!(problem["detail"].as_str().unwrap().contains("max_leases"), "{problem}");
}

fn release(server: &Server, token: &str, lease: &str) {
    let request = format!("POST {POOL}/leases/{lease}/release");
    assert_eq!(server.client().with(token, &request).status, 204);
}

/// Creates two tokens: one with every permission, and one with at most `max` leases.
fn tokens(max: &str) -> (Tokens, String, String) {
    let tokens = Tokens::new();
    let admin = tokens.add("admin", "*", &["admin"], &[]);
    let limited = tokens.add("limited", "*", &["lend"], &["--max-leases", max]);
    (tokens, admin, limited)
}

fn start(tokens: &Tokens) -> Server {
    Server::in_memory(&tokens.args().each_ref().map(String::as_str))
}

fn fill(server: &Server, admin: &str, pool: &str, count: u64) {
    let generate = format!("POST /v1/pools/{pool}/keys");
    send(&mut server.client(), admin, &generate, &json!({ "count": count })).is(201, &json!({}));
}

/// The limit covers all pools and all three APIs; leases of other tokens do not count.
#[test]
fn a_token_holds_at_most_max_leases() {
    let (tokens, admin, limited) = tokens("3");
    let dir = TempDir::new();
    let log = dir.path().join("audit");
    let [flag, file] = tokens.args();
    let mut server = Server::in_memory(&[&flag, &file, "--audit", log.to_str().unwrap()]);
    let client = &mut server.client();
    client.with(&admin, "PUT /v1/pools/ci").is(201, &json!({}));
    fill(&server, &admin, "default", 20);
    fill(&server, &admin, "ci", 2);
    let lease = grant(&server, &limited);
    acquire(&server, &limited, "ci", &json!({})).is(201, &json!({}));
    client.with(&limited, "GET /keys").is(200, &json!({}));
    for pool in ["default", "ci"] {
        assert_full(acquire(&server, &limited, pool, &json!({})), 3);
        assert_full(acquire(&server, &limited, pool, &json!({ "wait_seconds": 300 })), 3);
    }
    assert_full(client.with(&limited, "GET /keys"), 3);
    assert_full(client.with(&limited, "GET /api/v1/random_api_key/"), 3);
    acquire(&server, &limited, "nope", &json!({})).problem(404, "unknown_pool");
    acquire(&server, &limited, "ci", &json!({ "ttl_seconds": 61 })).problem(422, "invalid");
    for _ in 0..5 {
        grant(&server, &admin);
    }
    let renew = format!("POST {POOL}/leases/{lease}/renew");
    assert_eq!(client.with(&limited, &renew).status, 409, "a running lease is not affected");
    release(&server, &limited, &lease);
    grant(&server, &limited);
    assert_full(acquire(&server, &limited, "ci", &json!({})), 3);
    client.with(&admin, "DELETE /v1/pools/ci").is(204, &Value::Null);
    grant(&server, &limited);
    assert_full(acquire(&server, &limited, "default", &json!({})), 3);
    let metrics = client.with(&admin, "GET /metrics").body;
    let refused = "keypeg_refusals_total{code=\"rate_limited\"} ";
    let refused = metrics.lines().find_map(|line| line.strip_prefix(refused)).unwrap();
    assert!(refused.parse::<u64>().unwrap() >= 8, "{refused}");
    server.terminate();
    let audit_log = std::fs::read_to_string(log).unwrap();
    let refused = audit_log.lines().filter(|line| {
        line.contains("\"token\":\"limited\"") && line.contains("\"code\":\"rate_limited\"")
    });
    assert_eq!(refused.count(), 8, "{audit_log}");
}

#[test]
fn an_expired_lease_makes_room() {
    let (tokens, admin, limited) = tokens("2");
    let server = start(&tokens);
    fill(&server, &admin, "default", 5);
    for _ in 0..2 {
        let body = json!({ "ttl_seconds": 0.2 });
        acquire(&server, &limited, "default", &body).is(201, &json!({}));
    }
    eventually("a free lease", || {
        let again = acquire(&server, &limited, "default", &json!({}));
        (again.status == 201).then_some(()).or_else(|| {
            assert_full(again, 2);
            None
        })
    });
    // Deleting a key ends its lease.
    let keys = server.client().with(&admin, &format!("GET {POOL}/keys?state=leased")).json();
    for key in keys["keys"].as_array().unwrap() {
        let id = key["id"].as_str().unwrap();
        let delete = format!("DELETE {POOL}/keys/{id}");
        server.client().with(&admin, &delete).is(204, &Value::Null);
    }
    grant(&server, &limited);
    grant(&server, &limited);
    assert_full(acquire(&server, &limited, "default", &json!({})), 2);
}

/// The limit is the one in the file; running leases count whether or not there was a limit before.
#[test]
fn a_reload_changes_the_limit_and_ends_no_lease() {
    let (tokens, admin, limited) = tokens("1");
    let server = start(&tokens);
    // The acquires until the reload take some of these keys.
    fill(&server, &admin, "default", 10_000);
    let set_limit = |max: &str| {
        let text = tokens.text();
        let lines: Vec<_> = text.lines().filter(|line| !line.starts_with("max_leases")).collect();
        tokens.replace(&format!("{}\n{max}\n", lines.join("\n")));
    };
    let lease = grant(&server, &limited);
    assert_full(acquire(&server, &limited, "default", &json!({})), 1);
    set_limit("max_leases = 2");
    eventually("one more", || {
        (acquire(&server, &limited, "default", &json!({})).status == 201).then_some(())
    });
    assert_full(acquire(&server, &limited, "default", &json!({})), 2);
    set_limit("");
    eventually("any number", || {
        (acquire(&server, &limited, "default", &json!({})).status == 201).then_some(())
    });
    grant(&server, &limited);
    set_limit("max_leases = 3");
    let refused = eventually("too many", || {
        let answer = acquire(&server, &limited, "default", &json!({}));
        (answer.status != 201).then_some(answer)
    });
    assert_full(refused, 3);
    release(&server, &limited, &lease);
    assert_full(acquire(&server, &limited, "default", &json!({})), 3);
}

/// A waiter already counts as a lease, so that no grant from the wait queue exceeds the limit.
#[test]
fn a_waiter_counts_as_a_lease() {
    let (tokens, admin, limited) = tokens("2");
    let server = start(&tokens);
    fill(&server, &admin, "default", 1);
    let held = grant(&server, &admin);
    let body = json!({ "wait_seconds": 300 }).to_string();
    let text = format!(
        "POST {POOL}/leases HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {limited}\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut waiting: Vec<_> = (0..2).map(|_| server.client()).collect();
    for (index, client) in waiting.iter_mut().enumerate() {
        client.write(text.as_bytes()).unwrap();
        eventually("waits", || {
            let pool = server.client().with(&admin, &format!("GET {POOL}")).json();
            (pool["waiting"] == index + 1).then_some(())
        });
    }
    assert_full(acquire(&server, &limited, "default", &json!({ "wait_seconds": 300 })), 2);
    release(&server, &admin, &held);
    let lease = waiting.remove(0).read(false).unwrap().is(201, &json!({}));
    assert_full(acquire(&server, &limited, "default", &json!({})), 2);
    // A client that disconnects is no longer a waiter.
    drop(waiting);
    eventually("a free lease", || {
        let answer = acquire(&server, &limited, "default", &json!({}));
        (answer.status == 404).then_some(())
    });
    release(&server, &limited, lease["id"].as_str().unwrap());
    grant(&server, &limited);
}

#[test]
fn a_stored_answer_is_redelivered_at_the_limit() {
    let (tokens, admin, limited) = tokens("1");
    let server = start(&tokens);
    fill(&server, &admin, "default", 3);
    let bearer = format!("Bearer {limited}");
    let acquire_once = |key: &str| {
        let headers = [("authorization", &*bearer), ("idempotency-key", key)];
        server.client().try_send(&format!("POST {POOL}/leases"), &headers, "").unwrap()
    };
    let first = acquire_once("a").is(201, &json!({}));
    assert_eq!(acquire_once("a").is(201, &json!({}))["id"], first["id"]);
    assert_full(acquire_once("b"), 1);
    release(&server, &limited, first["id"].as_str().unwrap());
    // A refusal is not stored.
    let second = acquire_once("b").is(201, &json!({}));
    assert_ne!(second["id"], first["id"]);
}

/// What needs a store that keeps its data: see CONTRIBUTING.md.
mod durability {
    use super::{Server, TempDir, acquire, assert_full, fill, grant, json, release, tokens};

    #[test]
    fn leases_of_a_token_count_after_a_restart() {
        let (tokens, admin, limited) = tokens("2");
        let dir = TempDir::new();
        let args = tokens.args();
        let args = args.each_ref().map(String::as_str);
        let mut server = Server::on(&dir, &args);
        fill(&server, &admin, "default", 5);
        let first = grant(&server, &limited);
        server.kill();
        let mut server = Server::on(&dir, &args);
        grant(&server, &limited);
        assert_full(acquire(&server, &limited, "default", &json!({})), 2);
        server.terminate();
        let server = Server::on(&dir, &args);
        assert_full(acquire(&server, &limited, "default", &json!({})), 2);
        release(&server, &limited, &first);
        grant(&server, &limited);
        assert_full(acquire(&server, &limited, "default", &json!({})), 2);
    }
}

/// A request that waited once got a key with a token that was revoked meanwhile, up to five minutes
/// later. The first request takes the fast path, the second one does not.
#[test]
fn a_request_that_waits_gets_no_key_once_its_token_is_revoked() {
    let (tokens, admin, limited) = tokens("5");
    let server = start(&tokens);
    let body = json!({ "wait_seconds": 300 }).to_string();
    let head = format!(
        "POST {POOL}/leases HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {limited}\r\n\
         content-type: application/json\r\n"
    );
    let len = body.len();
    let texts = [
        format!("{head}content-length: {len}\r\n\r\n{body}"),
        format!("{head}transfer-encoding: chunked\r\n\r\n{len:x}\r\n{body}\r\n0\r\n\r\n"),
    ];
    let mut waiting = [server.client(), server.client()];
    for (index, (client, text)) in waiting.iter_mut().zip(texts).enumerate() {
        client.write(text.as_bytes()).unwrap();
        eventually("waits", || {
            let pool = server.client().with(&admin, &format!("GET {POOL}")).json();
            (pool["waiting"] == index + 1).then_some(())
        });
    }
    tokens.revoke("limited");
    eventually("revoked", || {
        (server.client().with(&limited, "GET /version").status == 401).then_some(())
    });
    fill(&server, &admin, "default", 1);
    for client in &mut waiting {
        let refused = client.read(false).unwrap();
        assert_eq!(
            refused.header("www-authenticate"),
            Some("Bearer error=\"invalid_token\""),
            "{refused:?}"
        );
        refused.problem(401, "unauthorized");
    }
    let grant = || acquire(&server, &admin, "default", &json!({})).status;
    eventually("the key is available", || (grant() == 201).then_some(()));
}
