//! Fair shares between tokens: under overload the server refuses one token's surplus requests and
//! answers every request of the others.

use crate::support::tokens::Tokens;
use crate::support::{Client, Server, TempDir, cores, eventually, keypeg_under, skipped};
use serde_json::json;
use std::process::Command;

const POOL: &str = "/v1/pools/default";
/// Returns the number of connections of a server with 400 descriptors.
fn connections() -> usize {
    400 - 64 - 4 * cores()
}

/// Returns half of them.
fn half() -> usize {
    connections() / 2
}

fn metric(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no {name}: {text}"))
}

/// Starts an acquire that waits for a key.
fn wait(server: &Server, token: &str) -> Client {
    let mut client = server.client();
    let head = format!("POST {POOL}/leases HTTP/1.1\r\nhost: localhost\r\nprefer: wait=300");
    client.write(format!("{head}\r\nauthorization: Bearer {token}\r\n\r\n").as_bytes()).unwrap();
    client
}

#[test]
fn a_noisy_token_leaves_the_others_their_share() {
    if Command::new("prlimit").arg("--version").output().is_err() {
        return skipped("a_noisy_token_leaves_the_others_their_share", "no prlimit");
    }
    let (tokens, dir) = (Tokens::new(), TempDir::new());
    let [noisy, calm, late] =
        ["noisy", "calm", "late"].map(|name| tokens.add(name, "*", &["admin"], &[]));
    let mut command = keypeg_under(&["prlimit", "--nofile=400:400", "--"], &["--ephemeral"]);
    let server = Server::logged(command.args(tokens.args()), &dir.path().join("log"));
    let client = &mut server.client();
    let waiting = |client: &mut Client| {
        client.with(&calm, &format!("GET {POOL}")).json()["waiting"]
            .as_u64()
            .map(usize::try_from)
            .unwrap()
            .unwrap()
    };
    // While no other token has any, one token may have half of the connections, and no more.
    let mut noisy_waits = Vec::new();
    eventually("half is taken", || {
        let is_half = waiting(client) == half();
        if !is_half {
            noisy_waits.push(wait(&server, &noisy));
        }
        is_half.then_some(())
    });
    let refused = |server: &Server| {
        let answer = wait(server, &noisy).read(false).unwrap();
        assert!(answer.header("retry-after").is_some());
        assert_eq!(answer.header("connection"), Some("close"), "so that other clients can connect");
        answer.problem(429, "rate_limited");
    };
    for _ in 0..50 {
        refused(&server);
    }
    // The server answers every request of another token, also while that one fills its share.
    let serves_calm = |client: &mut Client| {
        let put = client.with(&calm, "PUT /v1/pools/ci");
        assert!(put.status < 300, "{put:?}");
        for _ in 0..20 {
            client.with(&calm, "POST /v1/pools/ci/keys").is(201, &json!({}));
            let lease = client.with(&calm, "POST /v1/pools/ci/leases").text("id");
            let release = format!("POST /v1/pools/ci/leases/{lease}/release");
            assert_eq!(client.with(&calm, &release).status, 204);
            refused(&server);
        }
    };
    serves_calm(client);
    let calm_waits: Vec<_> = (0..half() / 2 - 2).map(|_| wait(&server, &calm)).collect();
    eventually("both wait", || (waiting(client) == half() + calm_waits.len()).then_some(()));
    serves_calm(client);
    for _ in 0..5 {
        assert_eq!(
            server.client().with(&late, "GET /v1/pools").status,
            200,
            "a third token can connect"
        );
    }
    // While the last answer to the third token is on its way, three tokens divide the half.
    let metrics = eventually("two tokens divide the half", || {
        let answer = server.client().with(&calm, "GET /metrics");
        (answer.status == 200).then_some(answer.body)
    });
    assert!(metric(&metrics, "keypeg_refusals_total{code=\"rate_limited\"}") >= 90);
    // Closed connections are free for every token; none was lost.
    noisy_waits.clear();
    drop(calm_waits);
    eventually("no waiter is left", || (waiting(client) == 0).then_some(()));
    client.with(&calm, &format!("POST {POOL}/keys")).is(201, &json!({}));
    server.client().with(&noisy, &format!("POST {POOL}/leases")).is(201, &json!({}));
}

/// A request counted as in flight until its answer was built, so that a token with its share of the
/// requests in flight could have any number of answers under way.
#[test]
fn an_unread_answer_counts_as_a_request_in_flight() {
    if Command::new("prlimit").arg("--version").output().is_err() {
        return skipped("an_unread_answer_counts_as_a_request_in_flight", "no prlimit");
    }
    let (tokens, dir) = (Tokens::new(), TempDir::new());
    let [noisy, calm] = ["noisy", "calm"].map(|name| tokens.add(name, "*", &["admin"], &[]));
    let args = ["--ephemeral", "--write-rate", "0", "--write-timeout", "1h", "--memory", "8GiB"];
    let mut command = keypeg_under(&["prlimit", "--nofile=400:400", "--"], &args);
    let server = Server::logged(command.args(tokens.args()), &dir.path().join("log"));
    let client = &mut server.client();
    let bearer = format!("Bearer {calm}");
    let headers = [("authorization", &*bearer), ("content-type", "application/json")];
    let added = client.try_send(&format!("POST {POOL}/keys"), &headers, "{\"count\":1000}");
    added.unwrap().is(201, &json!({}));
    let list = format!("GET {POOL}/keys?limit=1000 HTTP/1.1\r\nhost: localhost\r\n");
    let show = || server.client().with(&noisy, &format!("GET {POOL}"));
    // The server counts an answer until it has written it, which the client can see earlier: only a
    // refusal that stays is one because of the answers that are not read.
    let unread = || {
        let mut client = server.client();
        let request = format!("{list}authorization: Bearer {noisy}\r\n\r\n");
        // More than the kernel keeps for a client.
        client.write(request.repeat(8).as_bytes()).unwrap();
        client.line().is_some_and(|line| line.contains(" 200 ")).then_some(client)
    };
    let mut unread_answers = Vec::new();
    let refused = loop {
        unread_answers.push(eventually("an answer that is not read", unread));
        assert!(unread_answers.len() < connections() - 10, "unread answers are not counted");
        if unread_answers.len() < half() {
            eventually("a share of half", || (show().status == 200).then_some(()));
            continue;
        }
        let answer = show();
        if answer.status != 200 {
            break answer;
        }
    };
    let problem = refused.problem(429, "rate_limited");
    assert!(problem["detail"].as_str().unwrap().contains("requests in progress"), "{problem}");
    assert_eq!(client.with(&calm, &format!("GET {POOL}")).status, 200);
    drop(unread_answers);
    eventually("none is left", || (show().status == 200).then_some(()));
}

/// A token whose waiting acquires took its share got 429 for its keep-alives and releases too: its
/// keys were purged, and its own waiters waited for the keys that it could not return.
#[test]
fn a_token_with_its_share_in_flight_can_still_keep_alive_renew_and_release() {
    const NAME: &str = "a_token_with_its_share_in_flight_can_still_keep_alive_renew_and_release";
    if Command::new("prlimit").arg("--version").output().is_err() {
        return skipped(NAME, "no prlimit");
    }
    let (tokens, dir) = (Tokens::new(), TempDir::new());
    let [busy, calm] = ["busy", "calm"].map(|name| tokens.add(name, "*", &["admin"], &[]));
    let mut command = keypeg_under(&["prlimit", "--nofile=400:400", "--"], &["--ephemeral"]);
    let server = Server::logged(command.args(tokens.args()), &dir.path().join("log"));
    let client = &mut server.client();
    let bearer = format!("Bearer {calm}");
    let headers = [("authorization", &*bearer), ("content-type", "application/json")];
    let created = client.try_send("PUT /v1/pools/ci", &headers, "{\"max_hold_seconds\": 600}");
    created.unwrap().is(201, &json!({}));
    let leases: Vec<_> = (0..2)
        .map(|_| {
            client.with(&busy, "POST /v1/pools/ci/keys").is(201, &json!({}));
            let lease = client.with(&busy, "POST /v1/pools/ci/leases").json();
            let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
            (text(&lease["id"]), text(&lease["key_id"]))
        })
        .collect();
    let mut waits = Vec::new();
    eventually("half is taken", || {
        let pool = client.with(&calm, &format!("GET {POOL}")).json();
        let is_half = pool["waiting"] == half();
        if !is_half {
            waits.push(wait(&server, &busy));
        }
        is_half.then_some(())
    });
    let send = |by_hyper: bool, request: &str| {
        let bearer = format!("Bearer {busy}");
        let mut headers = vec![("authorization", &*bearer)];
        headers.extend(by_hyper.then_some(("prefer", "wait=0")));
        server.client().try_send(request, &headers, "").unwrap()
    };
    for (by_hyper, (lease, key)) in [false, true].into_iter().zip(&leases) {
        let refused = send(by_hyper, "POST /v1/pools/ci/leases");
        let problem = refused.problem(429, "rate_limited");
        assert!(problem["detail"].as_str().unwrap().contains("requests in progress"), "{problem}");
        let (of_key, of_lease) =
            (format!("POST /v1/pools/ci/keys/{key}"), format!("POST /v1/pools/ci/leases/{lease}"));
        send(by_hyper, &format!("{of_key}/keepalive")).is(200, &json!({}));
        assert_eq!(send(by_hyper, &format!("{of_lease}/renew")).status, 200);
        assert_eq!(send(by_hyper, &format!("{of_lease}/release")).status, 204);
        send(by_hyper, &format!("{of_key}/release")).is(200, &json!({ "released": false }));
        send(by_hyper, &format!("PUT /keepalive/{key}")).is(404, &json!({}));
    }
    let bearer = format!("Bearer {busy}");
    let headers = [("authorization", &*bearer), ("content-type", "application/json")];
    let all = server.client().try_send("POST /v1/pools/ci/keepalive", &headers, "{\"all\":true}");
    all.unwrap().is(200, &json!({ "kept": 2 }));
}
