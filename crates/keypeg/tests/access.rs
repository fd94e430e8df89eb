//! Access tokens: each route with each kind of token, and tokens that come and go while requests do.

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

/// What is asked of a route: of something that cannot be, and of what could be and is not. The server
/// reads the two in different places.
fn requests(route: &Route) -> Vec<String> {
    let ids = if route.path.contains("{id}") || route.path.contains("{lease}") {
        &["x", "00000000000000000000000000"][..]
    } else {
        &[""]
    };
    let asked = |id: &&str| {
        let path = route.path.replace("{pool}", "default");
        let path = path.replace("{id}", id).replace("{lease}", id);
        format!("{} {path}", route.method)
    };
    ids.iter().map(asked).collect()
}

/// A client from an address that nobody else comes from: wrong tokens count by address.
fn elsewhere(server: &Server, at: usize) -> Client {
    let (high, low) = (u8::try_from(at / 250).unwrap(), u8::try_from(at % 250).unwrap());
    Client::from(server.addr(), Ipv4Addr::new(127, 1, high, low + 1))
}

#[track_caller]
fn challenged(answer: Answer, status: u16, code: &str, challenge: &str) -> serde_json::Value {
    assert_eq!(answer.header("www-authenticate"), Some(challenge), "{answer:?}");
    answer.problem(status, code)
}

fn let_through(answer: &Answer) -> bool {
    ![401, 403, 429].contains(&answer.status)
}

/// The table: each route with no token, a wrong, an expired and a revoked one, one of another pool,
/// one of each other scope, the right one, and admin.
#[test]
fn each_route_takes_who_it_says_and_nobody_else() {
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
    assert!(let_through(&server.client().with(&revoked, "GET /version")));
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
            elsewhere(&server, clients)
        };
        if route.access == Access::Open {
            assert!(let_through(&client().ask(&request)), "{request}");
            assert!(let_through(&client().with(WRONG, &request)), "{request}");
            count("open");
            count("open");
            continue;
        }
        challenged(client().ask(&request), 401, "unauthorized", "Bearer");
        count("no token");
        let long = "x".repeat(9_999);
        let bad = [("expired", &*expired), ("revoked", &revoked)];
        let wrong = [WRONG, "", "\u{e4}", &long].map(|wrong| ("wrong", wrong));
        for (kind, bad) in bad.into_iter().chain(wrong) {
            count(kind);
            let answer = client().with(bad, &request);
            challenged(answer, 401, "unauthorized", "Bearer error=\"invalid_token\"");
        }
        if route.pool_of("/v1/pools/default/x").is_some() {
            let answer = client().with(&other, &request);
            let challenge = "Bearer error=\"insufficient_scope\"";
            let problem = challenged(answer, 403, "forbidden", challenge);
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
                    let problem = challenged(answer, 403, "forbidden", &challenge);
                    assert_eq!(problem["scope"], wanted, "{request}");
                    count("missing scope");
                }
                Access::Open | Access::Token | Access::Scope(_) => {
                    assert!(let_through(&answer), "{request} {}: {answer:?}", scope.as_str());
                    count("right");
                }
            }
        }
    }
    let asked: u32 = tally.values().sum();
    println!("{} routes, {asked} requests: {tally:?}", ROUTES.len());
    assert!(asked > 600, "{asked}");
}

/// Two tokens are none: readers of a request could take either.
#[test]
fn two_tokens_in_one_request_are_none() {
    let tokens = Tokens::new();
    let right = tokens.add("right", "*", &["admin"], &[]);
    let server = start(&tokens);
    let (right, wrong) = (format!("Bearer {right}"), format!("Bearer {WRONG}"));
    for request in [&format!("GET {POOL}"), &format!("POST {POOL}/leases"), "POST /keys"] {
        for pair in [[&right, &right], [&right, &wrong], [&wrong, &right]] {
            let headers = pair.map(|shown| ("authorization", &**shown));
            let answer = server.client().try_send(request, &headers, "").unwrap();
            challenged(answer, 401, "unauthorized", "Bearer error=\"invalid_token\"");
        }
        let basic = [("authorization", "Basic a2V5cGVnOmtleXBlZw==")];
        let answer = server.client().try_send(request, &basic, "").unwrap();
        challenged(answer, 401, "unauthorized", "Bearer");
    }
}

/// What is open says nothing that is not in this repository; whatever comes is not open by mistake.
#[test]
fn what_is_open_is_named_here() {
    let open = ROUTES.iter().filter(|route| route.access == Access::Open);
    let open: Vec<_> = open.map(|route| route.path).collect();
    assert_eq!(open, ["/livez", "/readyz", "/openapi.json", "/docs", "/docs/style.css"]);
}

#[test]
fn a_token_of_other_pools_does_not_learn_which_there_are() {
    let tokens = Tokens::new();
    let ci = tokens.add("ci", "ci-*", &["admin"], &[]);
    let all = tokens.add("all", "*", &["admin"], &[]);
    let server = start(&tokens);
    let client = &mut server.client();
    for pool in ["ci-1", "ci-2", "web"] {
        client.with(&all, &format!("PUT /v1/pools/{pool}")).is(201, &json!({}));
    }
    let told = |pool: &str| {
        let mut problem = server.client().with(&ci, &format!("GET /v1/pools/{pool}")).json();
        problem.as_object_mut().unwrap().remove("request_id");
        problem
    };
    assert_eq!(told("web"), told("nope"));
    assert_eq!(told("web")["code"], "forbidden");
    client.with(&ci, "GET /v1/pools/ci-nope").problem(404, "unknown_pool");
    let names = |token: &str| {
        let pools = server.client().with(token, "GET /v1/pools").json();
        let pools = pools["pools"].as_array().unwrap().clone();
        pools.iter().map(|pool| pool["pool"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(names(&ci), ["ci-1", "ci-2"]);
    assert_eq!(names(&all), ["ci-1", "ci-2", "default", "web"]);
}

#[test]
fn two_tokens_have_idempotency_keys_of_their_own() {
    let tokens = Tokens::new();
    let [a, b] = ["a", "b"].map(|name| tokens.add(name, "*", &["keys"], &[]));
    let server = start(&tokens);
    let made = |token: &str| {
        let bearer = format!("Bearer {token}");
        let headers = [("authorization", &*bearer), ("idempotency-key", "once")];
        let request = format!("POST {POOL}/keys");
        server.client().try_send(&request, &headers, "").unwrap().json()["keys"][0]["id"].clone()
    };
    let [first, again, others] = [made(&a), made(&a), made(&b)];
    assert_eq!(first, again);
    assert_ne!(first, others);
}

#[test]
fn a_key_is_revealed_to_who_may_and_no_lease_is_touched() {
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
    let gone = format!("POST {POOL}/keys/00000000000000000000000000/reveal");
    client.with(&reveal, &gone).problem(404, "unknown_key");
    let lease = grant["id"].as_str().unwrap();
    client.with(&admin, &format!("POST {POOL}/leases/{lease}/release")).is(204, &json!(null));
    // Without tokens everybody may do everything.
    let open = Server::in_memory(&[]);
    let id = open.client().ask(&format!("POST {POOL}/keys")).json()["keys"][0]["id"].clone();
    let revealed = format!("POST {POOL}/keys/{}/reveal", id.as_str().unwrap());
    open.client().ask(&revealed).is(200, &json!({ "id": id, "key": "*" }));
}

#[test]
fn a_token_has_its_pace_and_an_address_its_guesses() {
    let tokens = Tokens::new();
    let slow = tokens.add("slow", "*", &["read"], &["--requests-per-second", "1"]);
    let quick = tokens.add("quick", "*", &["read"], &[]);
    let server = start(&tokens);
    let request = "GET /v1/pools";
    let limited = eventually("over its pace", || {
        let answer = server.client().with(&slow, request);
        (answer.status != 200).then_some(answer)
    });
    assert_eq!(limited.header("retry-after"), Some("1"));
    limited.problem(429, "rate_limited");
    assert_eq!(server.client().with(&quick, request).status, 200, "another's pace is its own");
    let (mut guesses, mut refused) = (0, None);
    while refused.is_none() && guesses < 5_000 {
        let answer = server.client().with(WRONG, request);
        refused = (answer.status != 401).then_some(answer);
        guesses += 1;
    }
    let refused = refused.expect("somebody who guesses is told to wait");
    assert!(refused.header("retry-after").is_some() && guesses > 20, "{guesses}");
    refused.problem(429, "rate_limited");
    assert_eq!(server.client().with(&quick, request).status, 200, "what is right is right");
    assert_eq!(elsewhere(&server, 1).with(WRONG, request).status, 401);
}

/// Of two requests that came together the second is asked when the first is answered: once it was
/// judged by when it came, at which its token's pace was used up.
#[test]
fn what_is_sent_ahead_is_paced_by_when_it_is_asked() {
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

/// While a file is replaced again and again, broken ones among them, no valid token is refused; a
/// revoked one is, and so is what it follows.
#[test]
fn tokens_come_and_go_under_load() {
    let tokens = Tokens::new();
    let stays = tokens.add("stays", "*", &["read", "keys", "metrics"], &[]);
    let whole = tokens.text();
    let goes = tokens.add("goes", "*", &["read", "keys"], &[]);
    let both = tokens.text();
    let server = start(&tokens);
    let mut followed = follow(&server, &goes);
    let (over, asked) = (AtomicBool::new(false), AtomicU64::new(0));
    let revoked_after = std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let mut client = server.client();
                while !over.load(Ordering::Relaxed) {
                    let answer = client.with(&stays, "GET /v1/pools");
                    assert_eq!(answer.status, 200, "{answer:?}");
                    asked.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let mut client = server.client();
        let mut status = |token: &str| client.with(token, "GET /v1/pools").status;
        for _ in 0..3 {
            tokens.replace("[[token]]\nname = \"half a fi");
            kill_process(server.pid(), Signal::HUP).unwrap();
            eventually("told to be broken", || is_broken(&server, &stays).then_some(()));
            assert_eq!((status(&goes), status(&stays)), (200, 200), "the old ones hold");
            tokens.replace(&both);
            kill_process(server.pid(), Signal::HUP).unwrap();
            eventually("whole again", || (!is_broken(&server, &stays)).then_some(()));
        }
        tokens.replace(&whole);
        let begun = now();
        eventually("revoked", || (status(&goes) == 401).then_some(()));
        let took = begun.elapsed();
        over.store(true, Ordering::Relaxed);
        took
    });
    // What happens from now on is not told to who may not be told any more.
    server.client().with(&stays, &format!("POST {POOL}/keys")).is(201, &json!({}));
    until_the_end(&mut followed);
    println!("revoked after {revoked_after:?}, {asked:?} requests with the other, 0 refused");
}

/// All that a stream tells until its end. One that goes on has no end to wait for: neither an event of
/// what happened nor a second beat may come.
fn until_the_end(followed: &mut Client) -> String {
    let mut told = String::new();
    while let Some(line) = followed.line() {
        told.extend([&line, "\n"]);
        let beats = told.lines().filter(|line| *line == ":").count();
        assert!(!told.contains("event: generated") && beats < 2, "it goes on: {told}");
    }
    told
}

fn follow(server: &Server, token: &str) -> Client {
    let mut followed = server.client();
    let head =
        format!("GET {POOL}/events HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {token}");
    followed.write(format!("{head}\r\nconnection: close\r\n\r\n").as_bytes()).unwrap();
    while followed.line().is_some_and(|line| line != "event: resync") {}
    followed
}

/// A stream that has nothing to tell ends at its next beat: nobody keeps a connection by a token that
/// is over.
#[test]
fn a_silent_stream_ends_with_its_token() {
    let tokens = Tokens::new();
    tokens.add("stays", "*", &["admin"], &[]);
    let goes = tokens.add("goes", "*", &["read"], &[]);
    let less = tokens.add("less", "*", &["read", "keys"], &[]);
    let server = start(&tokens);
    let mut streams = [follow(&server, &goes), follow(&server, &less)];
    tokens.revoke("goes");
    // One that may do less than it could is as good as revoked.
    tokens.replace(&tokens.text().replace("scopes = [\"read\", \"keys\"]", "scopes = [\"keys\"]"));
    for stream in &mut streams {
        until_the_end(stream);
    }
}

fn is_broken(server: &Server, token: &str) -> bool {
    let metrics = server.client().with(token, "GET /metrics").body;
    metrics.lines().any(|line| line == "keypeg_tokens_broken 1")
}
