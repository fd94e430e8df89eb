//! Access tokens: each route with each kind of token, rate limits, and reloads under load.

use crate::support::tokens::Tokens;
use crate::support::{Answer, Client, Server, eventually, now};
use keypeg_client::routes::{Access, ROUTES, Route, Scope};
use rustix::process::{Signal, kill_process};
use serde_json::json;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

const WRONG: &str = "kpt_0000000000000000000000000000000000000000000000000000000000000000";
const POOL: &str = "/v1/pools/default";

fn start(tokens: &Tokens) -> Server {
    Server::in_memory(&tokens.args().each_ref().map(String::as_str))
}

/// Returns requests of a route with a malformed id and with an unknown one, which the server
/// detects in different places.
fn requests(route: &Route) -> Vec<String> {
    let ids = if route.path.contains("{id}") || route.path.contains("{lease}") {
        &["x", "00000000000000000000000000"][..]
    } else {
        &[""]
    };
    let request = |id: &&str| {
        let path = route.path.replace("{pool}", "default");
        let path = path.replace("{id}", id).replace("{lease}", id).replace("{shard}", "0");
        format!("{} {path}", route.method)
    };
    ids.iter().map(request).collect()
}

/// Returns a client with its own source address, because wrong tokens count by address.
fn client_from(server: &Server, number: usize) -> Client {
    let (high, low) = (u8::try_from(number / 250).unwrap(), u8::try_from(number % 250).unwrap());
    Client::from(server.addr(), Ipv4Addr::new(127, 1, high, low + 1))
}

#[track_caller]
fn assert_challenge(answer: Answer, status: u16, code: &str, challenge: &str) -> serde_json::Value {
    assert_eq!(answer.header("www-authenticate"), Some(challenge), "{answer:?}");
    answer.problem(status, code)
}

fn is_authorized(answer: &Answer) -> bool {
    // The answer to an admitted request of a gateway that has no key.
    answer.body.contains("\"key_required\"") || ![401, 403, 429].contains(&answer.status)
}

/// An option in the body can require more than its route.
#[test]
fn only_admin_brings_a_retired_value_back() {
    let tokens = Tokens::new();
    let keys = tokens.add("keys", "default", &["keys", "force", "read"], &[]);
    let admin = tokens.add("admin", "default", &["admin"], &[]);
    let server = start(&tokens);
    let client = &mut server.client();
    let add = format!("POST {POOL}/keys");
    let mut add_as = |token: &str, body: serde_json::Value| {
        let bearer = format!("Bearer {token}");
        let headers = [("authorization", &*bearer), ("content-type", "application/json")];
        client.try_send(&add, &headers, &body.to_string()).unwrap()
    };
    let account = || json!({ "values": ["account"] });
    let created = add_as(&keys, account()).is(201, &json!({}));
    let id = created["keys"][0]["id"].as_str().unwrap();
    let delete = format!("DELETE {POOL}/keys/{id}");
    server.client().with(&keys, &delete).is(204, &serde_json::Value::Null);
    let back = || json!({ "values": ["account"], "allow_retired": true });
    let challenge = "Bearer error=\"insufficient_scope\", scope=\"admin\"";
    let problem = assert_challenge(add_as(&keys, back()), 403, "forbidden", challenge);
    assert_eq!((&problem["scope"], &problem["outcome"]), (&json!("admin"), &json!("not_applied")));
    let usual = json!({ "values": ["account"], "allow_retired": false, "keepalive": false });
    add_as(&keys, usual).problem(409, "key_exists");
    add_as(&admin, back()).is(201, &json!({ "keys": [{ "id": id }] }));
}

/// Each route without a token, with wrong, expired and revoked ones, with one of another pool, one
/// of each other scope, the right one, and admin.
#[test]
fn each_route_accepts_exactly_its_scope_and_admin() {
    let tokens = Tokens::new();
    let scopes = Scope::ALL.map(|scope| {
        let name = scope.as_str();
        (scope, tokens.add(name, "default", &[name], &[]))
    });
    let past = ["--expires-at", "2020-01-01T00:00:00Z"];
    let expired = tokens.add("expired", "*", &["admin"], &past);
    let revoked = tokens.add("revoked", "*", &["admin"], &[]);
    let other = tokens.add("other", "other-*", &["admin"], &[]);
    let server = start(&tokens);
    assert!(is_authorized(&server.client().with(&revoked, "GET /version")));
    tokens.revoke("revoked");
    eventually("revoked", || {
        (server.client().with(&revoked, "GET /version").status != 200).then_some(())
    });
    let (mut tally, mut clients) = (BTreeMap::new(), 0);
    let mut count = |kind| *tally.entry(kind).or_insert(0) += 1;
    let requests =
        ROUTES.iter().flat_map(|route| requests(route).into_iter().map(move |it| (route, it)));
    for (route, request) in requests {
        let mut client = || {
            clients += 1;
            client_from(&server, clients)
        };
        if route.access == Access::Open {
            assert!(is_authorized(&client().ask(&request)), "{request}");
            assert!(is_authorized(&client().with(WRONG, &request)), "{request}");
            count("open");
            count("open");
            continue;
        }
        assert_challenge(client().ask(&request), 401, "unauthorized", "Bearer");
        count("no token");
        let long = "x".repeat(9_999);
        let bad = [("expired", &*expired), ("revoked", &revoked)];
        let wrong = [WRONG, "", "\u{e4}", &long].map(|wrong| ("wrong", wrong));
        for (kind, bad) in bad.into_iter().chain(wrong) {
            count(kind);
            let answer = client().with(bad, &request);
            assert_challenge(answer, 401, "unauthorized", "Bearer error=\"invalid_token\"");
        }
        if route.pool_of("/v1/pools/default/x").is_some() {
            let answer = client().with(&other, &request);
            let challenge = "Bearer error=\"insufficient_scope\"";
            let problem = assert_challenge(answer, 403, "forbidden", challenge);
            assert!(problem.get("scope").is_none());
            count("other pool");
        }
        for (scope, token) in &scopes {
            let answer = client().with(token, &request);
            match route.access {
                Access::Scope(wanted) if *scope != wanted && *scope != Scope::Admin => {
                    let wanted = wanted.as_str();
                    let challenge =
                        format!("Bearer error=\"insufficient_scope\", scope=\"{wanted}\"");
                    let problem = assert_challenge(answer, 403, "forbidden", &challenge);
                    assert_eq!(problem["scope"], wanted, "{request}");
                    count("missing scope");
                }
                Access::Open | Access::Token | Access::Scope(_) => {
                    assert!(is_authorized(&answer), "{request} {}: {answer:?}", scope.as_str());
                    count("right");
                }
            }
        }
    }
    let total: u32 = tally.values().sum();
    println!("{} routes, {total} requests: {tally:?}", ROUTES.len());
    assert!(total > 600, "{total}");
}

/// A request with two tokens is unauthorized, because its readers could use different ones.
#[test]
fn a_request_with_two_tokens_is_unauthorized() {
    let tokens = Tokens::new();
    let right = tokens.add("right", "*", &["admin"], &[]);
    let server = start(&tokens);
    let (right, wrong) = (format!("Bearer {right}"), format!("Bearer {WRONG}"));
    for request in [&format!("GET {POOL}"), &format!("POST {POOL}/leases"), "POST /keys"] {
        for pair in [[&right, &right], [&right, &wrong], [&wrong, &right]] {
            let headers = pair.map(|token| ("authorization", &**token));
            let answer = server.client().try_send(request, &headers, "").unwrap();
            assert_challenge(answer, 401, "unauthorized", "Bearer error=\"invalid_token\"");
        }
        let basic = [("authorization", "Basic a2V5cGVnOmtleXBlZw==")];
        let answer = server.client().try_send(request, &basic, "").unwrap();
        assert_challenge(answer, 401, "unauthorized", "Bearer");
    }
}

/// The open routes serve only what is in this repository; a new route cannot be open by mistake.
#[test]
fn the_open_routes_are_listed_here() {
    let open = ROUTES.iter().filter(|route| route.access == Access::Open);
    let open: Vec<_> = open.map(|route| route.path).collect();
    assert_eq!(open, ["/", "/livez", "/readyz", "/openapi.json", "/docs", "/docs/style.css"]);
}

#[test]
fn a_token_cannot_find_out_which_other_pools_exist() {
    let tokens = Tokens::new();
    let ci = tokens.add("ci", "ci-*", &["admin"], &[]);
    let all = tokens.add("all", "*", &["admin"], &[]);
    let server = start(&tokens);
    let client = &mut server.client();
    for pool in ["ci-1", "ci-2", "web"] {
        client.with(&all, &format!("PUT /v1/pools/{pool}")).is(201, &json!({}));
    }
    let problem_of = |pool: &str| {
        let mut problem = server.client().with(&ci, &format!("GET /v1/pools/{pool}")).json();
        problem.as_object_mut().unwrap().remove("request_id");
        problem
    };
    assert_eq!(problem_of("web"), problem_of("nope"));
    assert_eq!(problem_of("web")["code"], "forbidden");
    client.with(&ci, "GET /v1/pools/ci-nope").problem(404, "unknown_pool");
    let names = |token: &str| {
        let pools = server.client().with(token, "GET /v1/pools").json();
        let pools = pools["pools"].as_array().unwrap().clone();
        pools.iter().map(|pool| pool["pool"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(names(&ci), ["ci-1", "ci-2"]);
    let page = |query: &str| server.client().with(&ci, &format!("GET /v1/pools?{query}"));
    let first = page("limit=1").is(200, &json!({ "pools": "*", "next_cursor": "ci-2" }));
    assert_eq!(first["pools"].as_array().unwrap().len(), 1);
    // A cursor names a position, and opens no other pool.
    for cursor in ["ci-2", "a", "default"] {
        let listed = page(&format!("cursor={cursor}")).is(200, &json!({ "next_cursor": null }));
        let expected = match cursor {
            "ci-2" => &["ci-2"][..],
            "a" => &["ci-1", "ci-2"],
            _ => &[],
        };
        let listed = listed["pools"].as_array().unwrap().clone();
        assert!(listed.iter().map(|pool| pool["pool"].as_str().unwrap()).eq(expected.to_vec()));
    }
    assert_eq!(names(&all), ["ci-1", "ci-2", "default", "web"]);
}

#[test]
fn idempotency_keys_belong_to_their_token() {
    let tokens = Tokens::new();
    let [a, b] = ["a", "b"].map(|name| tokens.add(name, "*", &["keys"], &[]));
    let server = start(&tokens);
    let generate = |token: &str| {
        let bearer = format!("Bearer {token}");
        let headers = [("authorization", &*bearer), ("idempotency-key", "once")];
        let request = format!("POST {POOL}/keys");
        server.client().try_send(&request, &headers, "").unwrap().json()["keys"][0]["id"].clone()
    };
    let [first, repeated, other] = [generate(&a), generate(&a), generate(&b)];
    assert_eq!(first, repeated);
    assert_ne!(first, other);
}

#[test]
fn reveal_needs_its_scope_and_affects_no_lease() {
    let tokens = Tokens::new();
    let admin = tokens.add("admin", "*", &["admin"], &[]);
    let reveal = tokens.add("reveal", "*", &["reveal"], &[]);
    let server = start(&tokens);
    let client = &mut server.client();
    client.with(&admin, &format!("POST {POOL}/keys"));
    let grant = client.with(&admin, &format!("POST {POOL}/leases")).json();
    let id = grant["key_id"].as_str().unwrap();
    let answer = client.with(&reveal, &format!("POST {POOL}/keys/{id}/reveal"));
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    answer.is(200, &json!({ "id": id, "key": grant["key"] }));
    let unknown = format!("POST {POOL}/keys/00000000000000000000000000/reveal");
    client.with(&reveal, &unknown).problem(404, "unknown_key");
    let lease = grant["id"].as_str().unwrap();
    client.with(&admin, &format!("POST {POOL}/leases/{lease}/release")).is(204, &json!(null));
    // Without a token file every client may do everything.
    let open = Server::in_memory(&[]);
    let id = open.client().ask(&format!("POST {POOL}/keys")).json()["keys"][0]["id"].clone();
    let reveal = format!("POST {POOL}/keys/{}/reveal", id.as_str().unwrap());
    open.client().ask(&reveal).is(200, &json!({ "id": id, "key": "*" }));
}

#[test]
fn requests_are_limited_by_token_and_wrong_tokens_by_address() {
    let tokens = Tokens::new();
    let slow = tokens.add("slow", "*", &["read"], &["--requests-per-second", "1"]);
    let fast = tokens.add("fast", "*", &["read"], &[]);
    let server = start(&tokens);
    let request = "GET /v1/pools";
    let limited = eventually("the rate limit", || {
        let answer = server.client().with(&slow, request);
        (answer.status != 200).then_some(answer)
    });
    assert_eq!(limited.header("retry-after"), Some("1"));
    limited.problem(429, "rate_limited");
    assert_eq!(server.client().with(&fast, request).status, 200, "another token has its own rate");
    let (mut guesses, mut refused) = (0, None);
    while refused.is_none() && guesses < 5_000 {
        let answer = server.client().with(WRONG, request);
        refused = (answer.status != 401).then_some(answer);
        guesses += 1;
    }
    let refused = refused.expect("wrong tokens are limited");
    assert!(refused.header("retry-after").is_some() && guesses > 20, "{guesses}");
    refused.problem(429, "rate_limited");
    assert_eq!(server.client().with(&fast, request).status, 200, "a right token is not limited");
    assert_eq!(client_from(&server, 1).with(WRONG, request).status, 401);
}

/// A token without the scope or the pool could send any number of requests otherwise.
#[test]
fn a_forbidden_request_counts_against_the_rate_of_its_token() {
    let tokens = Tokens::new();
    let slow = tokens.add("slow", "ci", &["read"], &["--requests-per-second", "1"]);
    let server = start(&tokens);
    for request in ["POST /v1/pools/ci/leases", "GET /v1/pools/default"] {
        eventually("the rate limit", || {
            let status = server.client().with(&slow, request).status;
            assert!([403, 429].contains(&status), "{request}: {status}");
            (status == 429).then_some(())
        });
    }
}

/// Regression: of two pipelined requests the second runs when the first is answered, but the rate
/// limit used the time of its arrival, at which the token had no request left.
#[test]
fn a_pipelined_request_is_rate_limited_by_the_time_it_runs() {
    let tokens = Tokens::new();
    let slow = tokens.add("slow", "*", &["lend"], &["--requests-per-second", "1"]);
    let server = start(&tokens);
    let body = json!({ "wait_seconds": 1.2 }).to_string();
    let head = format!(
        "POST {POOL}/leases HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {slow}\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let mut client = server.client();
    client.write(format!("{head}{body}{head}{body}").as_bytes()).unwrap();
    for _ in 0..2 {
        client.read(false).unwrap().problem(404, "no_key_available");
    }
}

/// While the token file is replaced repeatedly, also by broken files, the server refuses no valid
/// token. It refuses a revoked one and ends its event streams.
#[test]
fn the_token_file_is_reloaded_under_load() {
    let tokens = Tokens::new();
    let kept = tokens.add("kept", "*", &["read", "keys", "metrics"], &[]);
    let without_revoked = tokens.text();
    let revoked = tokens.add("revoked", "*", &["read", "keys"], &[]);
    let both = tokens.text();
    let server = start(&tokens);
    let mut events = open_events(&server, &revoked);
    let (done, requests) = (AtomicBool::new(false), AtomicU64::new(0));
    let revoked_after = std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let mut client = server.client();
                while !done.load(Ordering::Relaxed) {
                    let answer = client.with(&kept, "GET /v1/pools");
                    assert_eq!(answer.status, 200, "{answer:?}");
                    requests.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let mut client = server.client();
        let mut status = |token: &str| client.with(token, "GET /v1/pools").status;
        for _ in 0..3 {
            tokens.replace("[[token]]\nname = \"half a fi");
            kill_process(server.pid(), Signal::HUP).unwrap();
            eventually("the file counts as broken", || is_broken(&server, &kept).then_some(()));
            assert_eq!(
                (status(&revoked), status(&kept)),
                (200, 200),
                "the last valid file still holds"
            );
            tokens.replace(&both);
            kill_process(server.pid(), Signal::HUP).unwrap();
            eventually("the file is valid again", || (!is_broken(&server, &kept)).then_some(()));
        }
        tokens.replace(&without_revoked);
        let start = now();
        eventually("revoked", || (status(&revoked) == 401).then_some(()));
        let duration = start.elapsed();
        done.store(true, Ordering::Relaxed);
        duration
    });
    // The revoked token's stream gets no event from now on.
    server.client().with(&kept, &format!("POST {POOL}/keys")).is(201, &json!({}));
    read_to_end(&mut events);
    println!("revoked after {revoked_after:?}, {requests:?} requests with the other, 0 refused");
}

/// Reads an event stream to its end. A stream that does not end would be waited for without end, so
/// neither a new event nor a second heartbeat may come.
fn read_to_end(events: &mut Client) -> String {
    let mut text = String::new();
    while let Some(line) = events.line() {
        text.extend([&line, "\n"]);
        let heartbeats = text.lines().filter(|line| *line == ":").count();
        assert!(!text.contains("event: generated") && heartbeats < 2, "it does not end: {text}");
    }
    text
}

fn open_events(server: &Server, token: &str) -> Client {
    let mut events = server.client();
    let head =
        format!("GET {POOL}/events HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {token}");
    events.write(format!("{head}\r\nconnection: close\r\n\r\n").as_bytes()).unwrap();
    while events.line().is_some_and(|line| line != "event: resync") {}
    events
}

/// A stream without events ends at its next heartbeat, so that no client keeps a connection with a
/// token that is no longer valid.
#[test]
fn a_silent_stream_ends_with_its_token() {
    let tokens = Tokens::new();
    tokens.add("kept", "*", &["admin"], &[]);
    let revoked = tokens.add("revoked", "*", &["read"], &[]);
    let narrowed = tokens.add("narrowed", "*", &["read", "keys"], &[]);
    let [flag, end] = expiring_in(12);
    let expiring = tokens.add("expiring", "*", &["read"], &[&flag, &end]);
    let server = start(&tokens);
    let mut streams = [&revoked, &narrowed, &expiring].map(|token| open_events(&server, token));
    tokens.revoke("revoked");
    // A token that lost the scope `read` counts as revoked for this stream.
    tokens.replace(&tokens.text().replace("scopes = [\"read\", \"keys\"]", "scopes = [\"keys\"]"));
    for stream in &mut streams {
        read_to_end(stream);
    }
}

/// Returns a token's options for an end some seconds from now, by the wall clock.
fn expiring_in(seconds: i64) -> [String; 2] {
    let end = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(seconds);
    ["--expires-at".into(), end.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()]
}

/// A stream once outlived a token that expired: only revoked and narrowed tokens were tried.
#[test]
fn a_stream_gets_no_event_after_its_token_has_expired() {
    let tokens = Tokens::new();
    let kept = tokens.add("kept", "*", &["keys"], &[]);
    let [flag, end] = expiring_in(12);
    let expiring = tokens.add("expiring", "*", &["read"], &[&flag, &end]);
    let server = start(&tokens);
    let status = || server.client().with(&expiring, "GET /v1/pools/default").status;
    let mut events = open_events(&server, &expiring);
    assert_eq!(status(), 200, "the stream was opened in time");
    eventually("expired", || (status() == 401).then_some(()));
    server.client().with(&kept, &format!("POST {POOL}/keys")).is(201, &json!({}));
    read_to_end(&mut events);
    let again = server.client().with(&expiring, &format!("GET {POOL}/events"));
    again.problem(401, "unauthorized");
}

fn is_broken(server: &Server, token: &str) -> bool {
    let metrics = server.client().with(token, "GET /metrics").body;
    metrics.lines().any(|line| line == "keypeg_tokens_broken 1")
}
