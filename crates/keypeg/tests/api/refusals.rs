//! The canonical API: how each kind of wrong request is refused.

use crate::support::{Answer, Server};
use keypeg_client::routes::ROUTES;
use serde_json::{Value, json};

const UNKNOWN_ID: &str = "00000000000000000000000000";
const REST: &str = "0, or 0.001..604800";
const VALUES: &str = "an array of 1..10000 strings of 1..4096 bytes";

#[test]
fn every_invalid_field_is_named_with_its_allowed_values() {
    let server = Server::in_memory(&[]);
    let client = &mut server.client();
    client.ask("POST /v1/pools/default/keys").is(201, &json!({}));
    let acquire = "POST /v1/pools/default/leases";
    let generate = "POST /v1/pools/default/keys";
    let put = "PUT /v1/pools/default";
    let release = format!("POST /v1/pools/default/leases/{UNKNOWN_ID}/release");
    let renew = format!("POST /v1/pools/default/leases/{UNKNOWN_ID}/renew");
    let keep = format!("POST /v1/pools/default/keys/{UNKNOWN_ID}/keepalive");
    for (request, body, field, allowed) in [
        (generate, json!({ "count": 0 }), "count", "1..10000"),
        (generate, json!({ "count": 10_001 }), "count", "1..10000"),
        (generate, json!({ "count": -1 }), "count", "1..10000"),
        (generate, json!({ "count": 1.5 }), "count", "1..10000"),
        (generate, json!({ "count": "1" }), "count", "1..10000"),
        (
            generate,
            json!({ "n": 1 }),
            "n",
            "count, values, keepalive, allow_retired, label, labels",
        ),
        (
            generate,
            json!({ "count": 1, "values": ["a"] }),
            "count",
            "left out when values is given",
        ),
        (generate, json!({ "values": [] }), "values", VALUES),
        (generate, json!({ "values": "a" }), "values", VALUES),
        (generate, json!({ "values": ["a", 1] }), "values", VALUES),
        (generate, json!({ "values": ["a", ""] }), "values", VALUES),
        (generate, json!({ "values": ["x".repeat(4_097)] }), "values", VALUES),
        (generate, json!({ "values": ["é".repeat(2_049)] }), "values", VALUES),
        (generate, json!({ "values": vec!["x"; 10_001] }), "values", VALUES),
        (generate, json!([]), "body", "an object"),
        (acquire, json!({ "ttl_seconds": 0 }), "ttl_seconds", "*"),
        (acquire, json!({ "ttl_seconds": -1 }), "ttl_seconds", "*"),
        (acquire, json!({ "ttl_seconds": 60.001 }), "ttl_seconds", "*"),
        (acquire, json!({ "ttl_seconds": 1e300 }), "ttl_seconds", "*"),
        (acquire, json!({ "ttl_seconds": "60" }), "ttl_seconds", "*"),
        (acquire, json!({ "wait_seconds": 300.001 }), "wait_seconds", "0..300"),
        (acquire, json!({ "wait_seconds": -1 }), "wait_seconds", "0..300"),
        (acquire, json!({ "holder": 7 }), "holder", "*"),
        (acquire, json!({ "holder": "a\nb" }), "holder", "*"),
        (acquire, json!({ "holder": "x".repeat(129) }), "holder", "*"),
        (acquire, json!({ "hodler": "x" }), "hodler", "ttl_seconds, wait_seconds, holder"),
        (&release, json!({ "why": 1 }), "why", "rest_seconds, quarantine, reason"),
        (&release, json!({ "rest_seconds": 604_800.001 }), "rest_seconds", REST),
        (&release, json!({ "rest_seconds": -0.001 }), "rest_seconds", REST),
        (&release, json!({ "quarantine": 1 }), "quarantine", "true or false"),
        (&release, json!({ "reason": 401 }), "reason", "at most 256 printable characters"),
        (&release, json!({ "reason": "a\tb" }), "reason", "at most 256 printable characters"),
        (&release, json!({ "reason": "x".repeat(257) }), "reason", "*"),
        (&renew, json!({ "ttl_seconds": [] }), "ttl_seconds", "*"),
        (&keep, json!({ "ttl_seconds": 1 }), "ttl_seconds", "no fields"),
        (put, json!({ "lease_ttl_seconds": 0 }), "lease_ttl_seconds", "0.001..604800"),
        (put, json!({ "lease_ttl_seconds": 604_800.001 }), "lease_ttl_seconds", "0.001..604800"),
        (put, json!({ "max_hold_seconds": 1 }), "max_hold_seconds", "*"),
        (put, json!({ "keepalive_ttl_seconds": 0 }), "keepalive_ttl_seconds", "*"),
        (put, json!({ "rest_seconds": -1 }), "rest_seconds", REST),
        (put, json!({ "rest_seconds": 604_800.001 }), "rest_seconds", REST),
        (put, json!({ "key_length": 19 }), "key_length", "20..128"),
        (put, json!({ "key_length": 100_000 }), "key_length", "20..128"),
        (put, json!({ "key_prefix": "a b" }), "key_prefix", "*"),
        (put, json!({ "max_keys": 0 }), "max_keys", "*"),
        ("PUT /v1/pools/Bad", json!({}), "pool", "[a-z0-9][a-z0-9_.-]{0,63}"),
    ] {
        let problem = client.send(request, &body).problem(422, "invalid");
        assert_eq!(problem["field"], field, "{request} {body}");
        assert_eq!(problem["outcome"], "not_applied", "{request} {body}");
        let found = problem["allowed"].as_str().expect("what it may be");
        assert!(allowed == "*" || allowed == found, "{request} {body}: {found}");
    }
    client.ask("GET /v1/pools/default").is(200, &json!({ "available": 1, "total": 1 }));
}

#[test]
fn every_invalid_parameter_is_named() {
    let server = Server::in_memory(&[]);
    let client = &mut server.client();
    for (query, field, allowed) in [
        ("limit=0", "limit", "1..1000"),
        ("limit=1001", "limit", "1..1000"),
        ("limit=", "limit", "1..1000"),
        ("limit=%2B1", "limit", "1..1000"),
        ("limit=99999999999999999999999", "limit", "1..1000"),
        ("limit=1&limit=1", "limit", "given at most once"),
        ("state=blocked", "state", "one of available, leased, resting, quarantined"),
        ("state=", "state", "one of available, leased, resting, quarantined"),
        ("stat%65=leased&page=2", "page", "state, label, limit, cursor"),
        ("page", "page", "state, label, limit, cursor"),
    ] {
        let answer = client.ask(&format!("GET /v1/pools/default/keys?{query}"));
        let problem = answer.problem(422, "invalid");
        assert_eq!((&problem["field"], &problem["allowed"]), (&json!(field), &json!(allowed)));
    }
    for cursor in ["", "x", UNKNOWN_ID] {
        let answer = client.ask(&format!("GET /v1/pools/default/keys?cursor={cursor}"));
        answer.problem(400, "bad_cursor");
    }
    for query in ["", "?limit=0", "?cursor=x"] {
        client.ask(&format!("GET /v1/pools/nope/keys{query}")).problem(404, "unknown_pool");
    }
}

#[test]
fn an_unknown_pool_is_reported_before_an_invalid_body() {
    let server = Server::in_memory(&[]);
    let client = &mut server.client();
    let json_type = [("content-type", "application/json")];
    for pool in ["nope", "Bad", "d%20efault"] {
        for (request, body) in [
            (format!("GET /v1/pools/{pool}"), ""),
            (format!("DELETE /v1/pools/{pool}"), ""),
            (format!("POST /v1/pools/{pool}/keys"), ""),
            (format!("POST /v1/pools/{pool}/keys"), "{"),
            (format!("POST /v1/pools/{pool}/keys"), "{\"count\":0}"),
            (format!("POST /v1/pools/{pool}/leases"), "{\"ttl_seconds\":0}"),
            (format!("POST /v1/pools/{pool}/leases/x/release"), ""),
            (format!("POST /v1/pools/{pool}/leases/x/renew"), "{}"),
            (format!("POST /v1/pools/{pool}/keepalive"), "{}"),
            (format!("GET /v1/pools/{pool}/keys/x"), ""),
            (format!("DELETE /v1/pools/{pool}/keys/x"), ""),
            (format!("POST /v1/pools/{pool}/keys/x/keepalive"), "{}"),
            (format!("POST /v1/pools/{pool}/keys/x/release"), "x"),
        ] {
            client.try_send(&request, &json_type, body).unwrap().problem(404, "unknown_pool");
        }
    }
    for id in ["x", "ZZZZZZZZZZZZZZZZZZZZZZZZZZ", UNKNOWN_ID] {
        let key = format!("/v1/pools/default/keys/{id}");
        client.ask(&format!("GET {key}")).problem(404, "unknown_key");
        client.ask(&format!("DELETE {key}")).problem(404, "unknown_key");
        client.ask(&format!("POST {key}/release")).problem(404, "unknown_key");
        client.ask(&format!("POST {key}/keepalive")).problem(404, "unknown_key");
        let lease = format!("/v1/pools/default/leases/{id}");
        client.ask(&format!("POST {lease}/release")).problem(410, "lease_ended");
        client.ask(&format!("POST {lease}/renew")).problem(410, "lease_ended");
    }
}

#[test]
fn unknown_routes_get_404_and_wrong_methods_405() {
    let server = Server::in_memory(&[]);
    let client = &mut server.client();
    for path in [
        "//",
        "/v1",
        "/v1/",
        "/v1/pools/",
        "/v1/pools//keys",
        "/v1/pools/default/",
        "/v1/nope",
        "/v1/pools/default/nope",
        "/v1/pools/default/keys/x/nope",
        "/v1/pools/default/leases/x",
        "/v1/pools/default/keys/x/release/more",
        "/a/b/c/d/e/f/g/h",
        "/V1/pools",
        "/api/v1/",
        "/livez/",
        "/keys/",
        "/keepalive",
    ] {
        let answer = client.ask(&format!("GET {path}"));
        let outcome = answer.problem(404, "not_found").get("outcome").cloned();
        assert_eq!(outcome, None, "reading changes nothing anyway: {path}");
    }
    for (request, allow) in [
        ("POST /v1/pools", "GET, HEAD, OPTIONS"),
        ("POST /v1/pools/default", "GET, HEAD, PUT, DELETE, OPTIONS"),
        ("BREW /v1/pools/default", "GET, HEAD, PUT, DELETE, OPTIONS"),
        ("PUT /v1/pools/default/keys", "GET, HEAD, POST, OPTIONS"),
        ("GET /v1/pools/default/leases", "POST, OPTIONS"),
        ("HEAD /v1/pools/default/leases", "POST, OPTIONS"),
        ("PUT /v1/pools/default/keepalive", "POST, OPTIONS"),
        ("PUT /v1/pools/default/keys/x", "GET, HEAD, PATCH, DELETE, OPTIONS"),
        ("GET /v1/pools/default/keys/x/release", "POST, OPTIONS"),
        ("DELETE /v1/pools/default/keys/x/keepalive", "POST, OPTIONS"),
        ("GET /v1/pools/default/leases/x/renew", "POST, OPTIONS"),
        ("POST /livez", "GET, HEAD, OPTIONS"),
        ("DELETE /readyz", "GET, HEAD, OPTIONS"),
        ("PUT /version", "GET, HEAD, OPTIONS"),
    ] {
        let answer = client.try_send(request, &[], "").unwrap();
        assert_eq!(answer.header("allow"), Some(allow), "{request}");
        if request.starts_with("HEAD") {
            answer.is(405, &Value::Null);
        } else {
            answer.problem(405, "method_not_allowed");
        }
    }
}

/// A browser sends a cross-site POST without a body directly, without a preflight. The page could
/// not read the answer, but it could acquire every key of a server on the user's own machine.
#[test]
fn a_cross_site_page_changes_nothing() {
    let server = Server::in_memory(&[]);
    let client = &mut server.client();
    client.ask("POST /v1/pools/default/keys").is(201, &json!({}));
    let from_site = |site| [("sec-fetch-site", site)];
    for request in [
        "POST /v1/pools/default/leases",
        "POST /v1/pools/default/keys",
        "PUT /v1/pools/default",
        "DELETE /v1/pools/default",
        "POST /keys",
        "POST /api/v1/random_api_key/",
    ] {
        // On a new connection, which may be on the fast path, and on one that hyper serves.
        for is_new in [true, false] {
            let mut new = server.client();
            let client = if is_new { &mut new } else { &mut *client };
            let answer = client.try_send(request, &from_site("cross-site"), "").unwrap();
            let problem = answer.problem(403, "forbidden");
            assert_eq!(problem["outcome"], "not_applied", "{request}");
        }
    }
    let counts = json!({ "available": 1, "total": 1 });
    client
        .try_send("GET /v1/pools/default", &from_site("cross-site"), "")
        .unwrap()
        .is(200, &counts);
    for site in ["none", "same-origin"] {
        let created = client.try_send("POST /v1/pools/default/keys", &from_site(site), "").unwrap();
        created.is(201, &json!({}));
    }
}

/// Regression: `same-site` was accepted without a look at the Origin, and a page on another port of
/// this machine, or on another name of the same domain, is `same-site`.
#[test]
fn a_page_of_the_same_site_changes_something_only_with_the_servers_own_origin() {
    let server = Server::in_memory(&["--allow-host", "keys.example"]);
    let client = &mut server.client();
    client.ask("POST /v1/pools/default/keys").is(201, &json!({}));
    let own = format!("http://{}", server.addr());
    for (origin, is_own) in [
        (Some(&*own), true),
        (Some("https://keys.example"), true),
        (Some("http://127.0.0.1:1"), false),
        (Some("https://evil.example"), false),
        (Some("null"), false),
        (None, false),
    ] {
        for request in ["POST /v1/pools/default/keys", "GET /keys"] {
            let mut headers = vec![("sec-fetch-site", "same-site")];
            headers.extend(origin.map(|origin| ("origin", origin)));
            let answer = client.try_send(request, &headers, "").unwrap();
            let context = format!("{request}, {origin:?}: {answer:?}");
            if is_own {
                assert!(answer.status < 300, "{context}");
            } else {
                answer.problem(403, "forbidden");
            }
        }
    }
    client.ask("GET /v1/pools/default").is(200, &json!({ "total": 3, "leased": 2 }));
}

/// Regression: `DELETE /v1/pools/q1?dry_run=true` deleted the pool, and `?ttl_seconds=5` was ignored.
#[test]
fn an_unknown_parameter_is_refused_on_every_canonical_route() {
    let server = Server::in_memory(&[]);
    let client = &mut server.client();
    client.ask("PUT /v1/pools/q1").is(201, &json!({}));
    client.ask("POST /v1/pools/q1/keys").is(201, &json!({}));
    let mut count = 0;
    for route in ROUTES.iter().filter(|route| route.path.starts_with("/v1/")) {
        let path = route.path.replace("{pool}", "q1").replace("{id}", UNKNOWN_ID);
        let path = path.replace("{lease}", UNKNOWN_ID).replace("{shard}", "0");
        let methods = [route.method, "HEAD"];
        for method in &methods[..=usize::from(route.has_head())] {
            let request = format!("{method} {path}?dry_run=true");
            let answer = client.ask(&request);
            assert_eq!(answer.status, 422, "{request}: {answer:?}");
            count += 1;
            if *method == "HEAD" {
                continue;
            }
            let problem = answer.problem(422, "invalid");
            assert_eq!(problem["field"], "dry_run", "{request}");
            let allowed = match route.operation {
                "listKeys" => "state, label, limit, cursor",
                "listPools" => "limit, cursor",
                "verify" | "authorize" => "states",
                "showHistory" | "showPoolHistory" => "seconds",
                _ => "no parameters",
            };
            assert_eq!(problem["allowed"], allowed, "{request}");
        }
    }
    assert!(count > 16, "{count} routes");
    client.ask("GET /v1/pools/q1").is(200, &json!({ "total": 1, "leased": 0 }));
    client.ask("DELETE /v1/pools/nope?dry_run=true").problem(404, "unknown_pool");
    client.ask("PUT /v1/pools/new?a=1").problem(422, "invalid");
    client.ask("GET /v1/pools/new").problem(404, "unknown_pool");
    client.ask("GET /v1/pools/q1?").is(200, &json!({}));
    // The words of the compatibility APIs stay, and probes may add what they like.
    client.ask("GET /readyz?from=lb-1").is(200, &json!({}));
    client.ask("GET /keys?x=y").is(404, &json!({}));
}

/// A body that a route would ignore can be a condition that its client relies on.
#[test]
fn a_delete_with_a_body_is_refused() {
    let server = Server::in_memory(&[]);
    let client = &mut server.client();
    client.ask("PUT /v1/pools/q1").is(201, &json!({}));
    let key = client.ask("POST /v1/pools/q1/keys").json();
    let key = format!("DELETE /v1/pools/q1/keys/{}", key["keys"][0]["id"].as_str().unwrap());
    for request in [key.as_str(), "DELETE /v1/pools/q1"] {
        let problem = client.send(request, &json!({ "dry_run": true })).problem(422, "invalid");
        assert_eq!(
            (&problem["field"], &problem["allowed"]),
            (&json!("dry_run"), &json!("no fields"))
        );
        client.try_send(request, &[], "x").unwrap().problem(415, "unsupported_media_type");
        client.send(request, &json!({})).is(204, &Value::Null);
    }
}

/// Regression: `PUT` with `If-None-Match: *` changed an existing pool.
#[test]
fn the_existence_of_a_pool_can_be_a_precondition() {
    let server = Server::in_memory(&[]);
    let client = &mut server.client();
    let policy = json!({ "rest_seconds": 7 });
    let mut send = |request: &str, name: &str, value: &str| {
        let headers = [(name, value), ("content-type", "application/json")];
        let body = if request.starts_with("PUT") { policy.to_string() } else { String::new() };
        client.try_send(request, &headers, &body).unwrap()
    };
    let failed = |answer: Answer| {
        assert_eq!(answer.problem(412, "precondition_failed")["outcome"], "not_applied");
    };
    failed(send("PUT /v1/pools/q1", "if-match", "*"));
    failed(send("PUT /v1/pools/q1", "if-match", "\"tag\""));
    failed(send("PUT /v1/pools/q1", "if-unmodified-since", "Thu, 26 Nov 2026 13:26:14 GMT"));
    send("PUT /v1/pools/q1", "if-none-match", "*").is(201, &policy);
    failed(send("PUT /v1/pools/q1", "if-none-match", "*"));
    failed(send("PUT /v1/pools/default", "if-none-match", " * "));
    send("PUT /v1/pools/q1", "if-none-match", "\"tag\"").is(200, &policy);
    send("PUT /v1/pools/q1", "if-match", "*").is(200, &policy);
    failed(send("DELETE /v1/pools/q1", "if-match", "\"tag\""));
    failed(send("DELETE /v1/pools/q1", "if-none-match", "*"));
    send("GET /v1/pools/q1", "if-match", "\"tag\"").is(200, &policy);
    send("DELETE /v1/pools/q1", "if-match", "*").is(204, &Value::Null);
    send("DELETE /v1/pools/q1", "if-match", "*").problem(404, "unknown_pool");
    send("DELETE /v1/pools/q1", "if-none-match", "*").problem(404, "unknown_pool");
    client.ask("GET /v1/pools/default").is(200, &json!({ "rest_seconds": 0 }));
}

/// One of many clients that create a pool at once creates it, and no other changes it.
#[test]
fn one_of_many_clients_creates_a_pool_that_must_not_exist() {
    let server = Server::in_memory(&[]);
    let statuses: Vec<u16> = std::thread::scope(|scope| {
        let create = |index: usize| {
            let (mut client, body) = (server.client(), json!({ "rest_seconds": index }));
            let headers = [("if-none-match", "*"), ("content-type", "application/json")];
            let answer = client.try_send("PUT /v1/pools/one", &headers, &body.to_string());
            answer.unwrap().status
        };
        let threads: Vec<_> = (0..16).map(|index| scope.spawn(move || create(index))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let created = statuses.iter().position(|status| *status == 201).unwrap();
    assert_eq!(statuses.iter().filter(|status| **status == 412).count(), 15, "{statuses:?}");
    server.client().ask("GET /v1/pools/one").is(200, &json!({ "rest_seconds": created }));
}

/// A precondition that a call does not support is never ignored.
#[test]
fn a_change_without_preconditions_refuses_every_one() {
    let server = Server::in_memory(&[]);
    let client = &mut server.client();
    let key = client.ask("POST /v1/pools/default/keys").json();
    let id = key["keys"][0]["id"].as_str().unwrap();
    let changes = ROUTES
        .iter()
        .filter(|route| route.path.starts_with("/v1/pools/{pool}/") && route.method != "GET");
    for route in changes {
        let path = route.path.replace("{pool}", "default").replace("{id}", id);
        let request = format!("{} {}", route.method, path.replace("{lease}", UNKNOWN_ID));
        for name in ["If-Match", "If-None-Match", "If-Unmodified-Since"] {
            let answer = client.try_send(&request, &[(name, "*")], "").unwrap();
            let problem = answer.problem(412, "precondition_failed");
            assert!(problem["detail"].as_str().unwrap().contains(name), "{request}");
        }
    }
    client.ask("GET /v1/pools/default").is(200, &json!({ "available": 1, "total": 1 }));
}
