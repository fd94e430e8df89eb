//! The canonical API: how each kind of wrong request is refused.

use crate::support::Server;
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
        (generate, json!({ "count": null }), "count", "1..10000"),
        (generate, json!({ "n": 1 }), "n", "count, values, keepalive, allow_retired"),
        (
            generate,
            json!({ "count": 1, "values": ["a"] }),
            "count",
            "left out when values is given",
        ),
        (generate, json!({ "values": [] }), "values", VALUES),
        (generate, json!({ "values": "a" }), "values", VALUES),
        (generate, json!({ "values": null }), "values", VALUES),
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
        (acquire, json!({ "wait_seconds": null }), "wait_seconds", "0..300"),
        (acquire, json!({ "holder": 7 }), "holder", "*"),
        (acquire, json!({ "holder": "a\nb" }), "holder", "*"),
        (acquire, json!({ "holder": "x".repeat(129) }), "holder", "*"),
        (acquire, json!({ "hodler": "x" }), "hodler", "ttl_seconds, wait_seconds, holder"),
        (&release, json!({ "why": 1 }), "why", "rest_seconds, quarantine, reason"),
        (&release, json!({ "rest_seconds": 604_800.001 }), "rest_seconds", REST),
        (&release, json!({ "rest_seconds": -0.001 }), "rest_seconds", REST),
        (&release, json!({ "rest_seconds": null }), "rest_seconds", REST),
        (&release, json!({ "quarantine": 1 }), "quarantine", "true or false"),
        (&release, json!({ "quarantine": null }), "quarantine", "true or false"),
        (&release, json!({ "reason": 401 }), "reason", "at most 256 printable characters"),
        (&release, json!({ "reason": "a\tb" }), "reason", "at most 256 printable characters"),
        (&release, json!({ "reason": "x".repeat(257) }), "reason", "*"),
        (&renew, json!({ "ttl_seconds": [] }), "ttl_seconds", "*"),
        (&keep, json!({ "ttl_seconds": 1 }), "ttl_seconds", "no fields"),
        (put, json!({ "lease_ttl_seconds": 0 }), "lease_ttl_seconds", "0.001..604800"),
        (put, json!({ "lease_ttl_seconds": 604_800.001 }), "lease_ttl_seconds", "0.001..604800"),
        (put, json!({ "lease_ttl_seconds": null }), "lease_ttl_seconds", "0.001..604800"),
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
        ("state=blocked", "state", "available, leased, resting, quarantined"),
        ("state=", "state", "available, leased, resting, quarantined"),
        ("stat%65=leased&page=2", "page", "state, limit, cursor"),
        ("page", "page", "state, limit, cursor"),
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
    for pool in ["nope", "Bad", "%64efault"] {
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
        "/",
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
        ("POST /v1/pools", "GET, HEAD"),
        ("POST /v1/pools/default", "GET, HEAD, PUT, DELETE"),
        ("BREW /v1/pools/default", "GET, HEAD, PUT, DELETE"),
        ("PUT /v1/pools/default/keys", "GET, HEAD, POST"),
        ("GET /v1/pools/default/leases", "POST"),
        ("HEAD /v1/pools/default/leases", "POST"),
        ("PUT /v1/pools/default/keepalive", "POST"),
        ("PATCH /v1/pools/default/keys/x", "GET, HEAD, DELETE"),
        ("GET /v1/pools/default/keys/x/release", "POST"),
        ("DELETE /v1/pools/default/keys/x/keepalive", "POST"),
        ("GET /v1/pools/default/leases/x/renew", "POST"),
        ("OPTIONS /v1/pools/default/leases/x/release", "POST"),
        ("POST /livez", "GET, HEAD"),
        ("DELETE /readyz", "GET, HEAD"),
        ("PUT /version", "GET, HEAD"),
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
    for site in ["none", "same-origin", "same-site"] {
        let created = client.try_send("POST /v1/pools/default/keys", &from_site(site), "").unwrap();
        created.is(201, &json!({}));
    }
}
