//! The canonical API: the answer of each call.

use crate::support::{Client, Server, eventually};
use serde_json::{Value, json};
use std::collections::HashSet;

const UNKNOWN_KEY: &str = "00000000000000000000000000";

/// Sends one request and asserts the headers, status and body of its answer; returns the body.
#[track_caller]
fn check(client: &mut Client, request: &str, body: &Value, status: u16, expected: &Value) -> Value {
    let answer = client.send(request, body);
    assert!(answer.header("x-request-id").is_some(), "{answer:?}");
    assert_eq!(answer.header("cache-control"), Some("no-store"), "{answer:?}");
    answer.is(status, expected)
}

fn generate(client: &mut Client, pool: &str, count: usize) -> Vec<Value> {
    let answer = client.send(&format!("POST /v1/pools/{pool}/keys"), &json!({ "count": count }));
    let body = answer.is(201, &json!({ "keys": "*" }));
    let keys = body["keys"].as_array().unwrap().clone();
    assert_eq!(keys.len(), count);
    keys
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

fn names(object: &Value) -> Vec<&str> {
    object.as_object().unwrap().keys().map(String::as_str).collect()
}

#[test]
fn a_pool_is_created_changed_shown_listed_and_deleted() {
    let server = Server::in_memory(&[]);
    let client = &mut server.client();
    let fresh = json!({
        "pool": "ci", "lease_ttl_seconds": 60, "max_hold_seconds": null,
        "keepalive_ttl_seconds": 300, "keepalive_every_seconds": 120, "rest_seconds": 0,
        "key_length": 20, "key_prefix": "", "max_keys": null, "draining": false,
        "available": 0, "leased": 0, "resting": 0, "quarantined": 0, "draining_keys": 0, "total": 0, "waiting": 0,
        "next_return_at": null, "next_purge_at": null,
    });
    let created = check(client, "PUT /v1/pools/ci", &Value::Null, 201, &fresh);
    assert_eq!(created, fresh, "no further member");
    let policy = json!({
        "lease_ttl_seconds": 0.25, "max_hold_seconds": 90, "keepalive_ttl_seconds": null,
        "rest_seconds": 0, "key_length": 32, "key_prefix": "ci_", "max_keys": 7,
    });
    let mut changed = policy.clone();
    changed["keepalive_every_seconds"] = Value::Null;
    check(client, "PUT /v1/pools/ci", &policy, 200, &changed);
    check(client, "PUT /v1/pools/ci", &json!({}), 200, &changed);
    check(
        client,
        "PUT /v1/pools/ci",
        &json!({ "max_hold_seconds": null }),
        200,
        &json!({
            "lease_ttl_seconds": 0.25, "max_hold_seconds": null, "max_keys": 7,
        }),
    );
    check(client, "GET /v1/pools/ci", &Value::Null, 200, &json!({ "key_prefix": "ci_" }));
    let key = &generate(client, "ci", 1)[0]["key"];
    assert!(text(key).starts_with("ci_") && text(key).len() == 35, "{key}");
    check(
        client,
        "GET /v1/pools",
        &Value::Null,
        200,
        &json!({
            "pools": [{ "pool": "ci", "available": 1, "total": 1 }, { "pool": "default", "total": 0 }],
        }),
    );
    check(client, "DELETE /v1/pools/ci", &Value::Null, 204, &Value::Null);
    client.ask("GET /v1/pools/ci").problem(404, "unknown_pool");
    client.ask("DELETE /v1/pools/ci").problem(404, "unknown_pool");
    client.ask("DELETE /v1/pools/default").problem(409, "default_pool");
}

#[test]
fn a_key_is_generated_shown_kept_alive_and_deleted() {
    let server = Server::in_memory(&[]);
    let client = &mut server.client();
    let one = check(
        client,
        "POST /v1/pools/default/keys",
        &Value::Null,
        201,
        &json!({
            "keys": [{
                "id": "*", "key": "*", "state": "available", "label": null, "created_at": "*",
                "expires_at": "*",
            }],
        }),
    );
    assert_eq!(names(&one["keys"][0]), ["created_at", "expires_at", "id", "key", "label", "state"]);
    let keys = generate(client, "default", 100);
    let values: HashSet<&str> = keys.iter().map(|key| text(&key["key"])).collect();
    assert_eq!(values.len(), 100);
    assert!(
        values.iter().all(
            |value| value.len() == 20 && value.bytes().all(|byte| byte.is_ascii_alphanumeric())
        )
    );

    let id = text(&keys[0]["id"]);
    let path = format!("/v1/pools/default/keys/{id}");
    let shown = check(
        client,
        &format!("GET {path}"),
        &Value::Null,
        200,
        &json!({
            "id": id, "pool": "default", "state": "available", "created_at": keys[0]["created_at"],
            "expires_at": keys[0]["expires_at"], "rests_until": null, "reason": null, "lease": null,
        }),
    );
    assert!(!shown.to_string().contains(text(&keys[0]["key"])), "no secret");
    check(
        client,
        &format!("POST {path}/keepalive"),
        &json!({}),
        200,
        &json!({
            "id": id, "expires_at": "*",
        }),
    );
    check(client, &format!("DELETE {path}"), &Value::Null, 204, &Value::Null);
    for request in ["GET", "DELETE"].map(|method| format!("{method} {path}")) {
        client.ask(&request).problem(404, "unknown_key");
    }
    for call in ["keepalive", "release"] {
        client.ask(&format!("POST {path}/{call}")).problem(404, "unknown_key");
    }
}

/// JSON has one kind of number, and some clients write an integer with a fraction of zero.
#[test]
fn an_integer_may_have_a_zero_fraction_or_an_exponent() {
    let server = Server::in_memory(&[]);
    let client = &mut server.client();
    let json_type = [("content-type", "application/json")];
    for body in ["{\"count\":2.0}", "{\"count\":2e0}", "{\"count\":0.2E1}"] {
        let request = "POST /v1/pools/default/keys";
        let answer = client.try_send(request, &json_type, body).unwrap();
        answer.is(201, &json!({ "keys": ["*", "*"] }));
    }
    let policy = "{\"key_length\":32.0,\"max_keys\":1e9}";
    let put = client.try_send("PUT /v1/pools/ci", &json_type, policy).unwrap();
    put.is(201, &json!({ "key_length": 32, "max_keys": 1_000_000_000 }));
}

#[test]
fn a_bulk_keep_alive_names_the_missing_keys() {
    let server = Server::in_memory(&[]);
    let client = &mut server.client();
    let keys = generate(client, "default", 3);
    let (a, b) = (text(&keys[0]["id"]), text(&keys[1]["id"]));
    let path = "POST /v1/pools/default/keepalive";
    check(
        client,
        path,
        &json!({ "ids": [a, UNKNOWN_KEY, b, a, "nonsense"] }),
        200,
        &json!({
            "kept": 2, "missing": ["nonsense", UNKNOWN_KEY],
        }),
    );
    check(client, path, &json!({ "ids": [] }), 200, &json!({ "kept": 0, "missing": [] }));
    check(client, path, &json!({ "all": true }), 200, &json!({ "kept": 3, "missing": [] }));
    for (body, field) in [
        (json!({}), "ids"),
        (json!({ "all": false }), "all"),
        (json!({ "all": 1 }), "all"),
        (json!({ "ids": [a], "all": true }), "all"),
        (json!({ "ids": "x" }), "ids"),
        (json!({ "ids": [1] }), "ids"),
        (json!({ "ids": vec![UNKNOWN_KEY; 10_001] }), "ids"),
    ] {
        let problem = client.send(path, &body).problem(422, "invalid");
        assert_eq!(problem["field"], field, "{body}");
    }
}

#[test]
fn a_lease_is_granted_renewed_and_released_and_then_has_ended() {
    let server = Server::in_memory(&[]);
    let client = &mut server.client();
    let keys = generate(client, "default", 1);
    let body = json!({ "ttl_seconds": 30, "holder": "job-7 ✓" });
    let grant = check(
        client,
        "POST /v1/pools/default/leases",
        &body,
        201,
        &json!({
            "id": "*", "pool": "default", "key_id": keys[0]["id"], "key": keys[0]["key"],
            "fencing_token": "*", "holder": "job-7 ✓", "label": null, "granted_at": "*", "waited_seconds": 0,
            "expires_at": "*", "expires_in_seconds": 30, "key_expires_at": keys[0]["expires_at"],
        }),
    );
    assert_eq!(grant.as_object().unwrap().len(), 12, "no further member");
    let key = format!("/v1/pools/default/keys/{}", text(&grant["key_id"]));
    check(
        client,
        &format!("GET {key}"),
        &Value::Null,
        200,
        &json!({
            "state": "leased",
            "lease": {
                "holder": "job-7 ✓", "fencing_token": grant["fencing_token"],
                "granted_at": grant["granted_at"], "expires_at": grant["expires_at"],
            },
        }),
    );
    check(
        client,
        "GET /v1/pools/default",
        &Value::Null,
        200,
        &json!({
            "available": 0, "leased": 1, "total": 1, "next_return_at": grant["expires_at"],
        }),
    );

    let lease = format!("/v1/pools/default/leases/{}", text(&grant["id"]));
    let renewed = check(
        client,
        &format!("POST {lease}/renew"),
        &json!({ "ttl_seconds": 40 }),
        200,
        &json!({
            "id": grant["id"], "key_id": grant["key_id"], "fencing_token": grant["fencing_token"],
            "holder": "job-7 ✓", "granted_at": grant["granted_at"], "expires_at": "*",
        }),
    );
    assert!(text(&renewed["expires_at"]) > text(&grant["expires_at"]));
    assert!(renewed.get("key").is_none(), "no secret");
    check(client, &format!("POST {lease}/release"), &Value::Null, 204, &Value::Null);
    for call in ["release", "renew"] {
        let ended = client.ask(&format!("POST {lease}/{call}")).problem(410, "lease_ended");
        assert_eq!(
            (&ended["cause"], &ended["outcome"]),
            (&json!("released"), &json!("not_applied"))
        );
    }
    check(
        client,
        &format!("GET {key}"),
        &Value::Null,
        200,
        &json!({ "state": "available", "lease": null }),
    );
    let next = check(
        client,
        "POST /v1/pools/default/leases",
        &json!({}),
        201,
        &json!({
            "key_id": grant["key_id"], "holder": null, "expires_in_seconds": 60,
        }),
    );
    assert!(next["fencing_token"].as_u64() > grant["fencing_token"].as_u64());
}

/// Generated clients write every optional field that is not set as null, some a whole body.
#[test]
fn null_means_left_out_in_each_body() {
    let server = Server::in_memory(&[]);
    let client = &mut server.client();
    let bodies = |fields: &[&str]| {
        let nulls = fields.iter().map(|field| ((*field).to_owned(), Value::Null)).collect();
        [String::new(), " \n".into(), "null".into(), "{}".into(), Value::Object(nulls).to_string()]
    };
    let json_type = [("content-type", "application/json")];
    let mut send = |request: &str, body: &str, status: u16| {
        let answer = client.try_send(request, &json_type, body).unwrap();
        assert_eq!(answer.status, status, "{request} {body}: {answer:?}");
        answer
    };
    let policy = ["lease_ttl_seconds", "rest_seconds", "key_length", "key_prefix"];
    for (number, body) in bodies(&policy).iter().enumerate() {
        let pool = format!("/v1/pools/null-{number}");
        let made = send(&format!("PUT {pool}"), body, 201).json();
        assert_eq!((&made["lease_ttl_seconds"], &made["key_length"]), (&json!(60), &json!(20)));
        send(&format!("PUT {pool}"), r#"{"max_hold_seconds":600}"#, 200);
        for body in bodies(&["count", "values"]) {
            let keys = send(&format!("POST {pool}/keys"), &body, 201).json();
            assert_eq!(keys["keys"].as_array().unwrap().len(), 1, "{body}");
        }
        for body in bodies(&["ttl_seconds", "wait_seconds", "holder"]) {
            let grant = send(&format!("POST {pool}/leases"), &body, 201).json();
            assert_eq!(grant["holder"], Value::Null, "{body}");
            let lease = format!("POST {pool}/leases/{}", text(&grant["id"]));
            for body in bodies(&["ttl_seconds"]) {
                send(&format!("{lease}/renew"), &body, 200);
            }
            let key = format!("POST {pool}/keys/{}", text(&grant["key_id"]));
            for body in bodies(&[]) {
                send(&format!("{key}/keepalive"), &body, 200);
                send(&format!("{key}/reveal"), &body, 200);
            }
            for body in
                bodies(&["rest_seconds", "quarantine", "reason"]).iter().skip(number).take(1)
            {
                send(&format!("{lease}/release"), body, 204);
                send(&format!("{key}/release"), "null", 200);
            }
        }
        send(&format!("POST {pool}/keepalive"), r#"{"ids":null,"all":true}"#, 200);
        send(&format!("POST {pool}/keepalive"), r#"{"ids":[],"all":null}"#, 200);
    }
    send("POST /keys", "null", 201);
    // A blank body has no type to declare.
    let form = [("content-type", "application/x-www-form-urlencoded")];
    let answer = client.try_send("POST /v1/pools/null-0/keys", &form, " ").unwrap();
    assert_eq!(answer.status, 201, "{answer:?}");
}

#[test]
fn a_byte_order_mark_before_the_json_is_skipped() {
    let server = Server::in_memory(&[]);
    let client = &mut server.client();
    let json_type = [("content-type", "application/json")];
    let send = |client: &mut Client, request: &str, body: &str| {
        client.try_send(request, &json_type, body).unwrap().is(201, &json!({}))
    };
    send(client, "PUT /v1/pools/ci", "\u{feff}{\"key_length\":30}");
    let keys = send(client, "POST /v1/pools/ci/keys", "\u{feff} {\"count\":2}");
    assert_eq!(text(&keys["keys"][0]["key"]).len(), 30);
    let grant = send(client, "POST /v1/pools/ci/leases", "\u{feff}{\"holder\":\"a\"}");
    assert_eq!(grant["holder"], "a");
    send(client, "POST /v1/pools/ci/leases", "\u{feff}");
}

#[test]
fn a_pool_that_was_read_can_be_sent_back() {
    let server = Server::in_memory(&[]);
    let client = &mut server.client();
    let policy = json!({
        "lease_ttl_seconds": 90, "max_hold_seconds": 600, "keepalive_ttl_seconds": null,
        "rest_seconds": 0.5, "key_length": 24, "key_prefix": "ci_", "max_keys": 7, "draining": true,
    });
    client.send("PUT /v1/pools/ci", &policy).is(201, &json!({}));
    client.ask("POST /v1/pools/ci/keys").is(201, &json!({}));
    let pool = client.ask("GET /v1/pools/ci").is(200, &policy);
    let again = client.send("PUT /v1/pools/ci", &pool).is(200, &policy);
    assert_eq!(again, pool);
    // A copy has the policy and none of the keys.
    let copy = client.send("PUT /v1/pools/copy", &pool).is(201, &policy);
    assert_eq!((&copy["pool"], &copy["total"]), (&json!("copy"), &json!(0)));
    let mut wrong = pool;
    wrong["totals"] = json!(1);
    assert_eq!(client.send("PUT /v1/pools/ci", &wrong).problem(422, "invalid")["field"], "totals");
}

/// A renewal with a short TTL was refused with `max_hold_reached`, although the hold was not
/// reached.
#[test]
fn a_renewal_never_shortens_a_lease() {
    let server = Server::in_memory(&[]);
    let client = &mut server.client();
    client.send("PUT /v1/pools/ci", &json!({ "max_hold_seconds": 600 })).is(201, &json!({}));
    generate(client, "ci", 1);
    let grant = client.ask("POST /v1/pools/ci/leases").is(201, &json!({ "id": "*" }));
    let renew = format!("POST /v1/pools/ci/leases/{}/renew", text(&grant["id"]));
    let unchanged = json!({ "id": grant["id"], "expires_at": grant["expires_at"] });
    client.send(&renew, &json!({ "ttl_seconds": 5 })).is(200, &unchanged);
    client.send(&renew, &json!({ "ttl_seconds": 0.001 })).is(200, &unchanged);
    let longer = client.ask(&renew).is(200, &json!({}));
    assert!(text(&longer["expires_at"]) >= text(&grant["expires_at"]));
}

#[test]
fn a_lease_is_not_renewed_beyond_max_hold() {
    let server = Server::in_memory(&[]);
    let client = &mut server.client();
    generate(client, "default", 1);
    let grant = client.ask("POST /v1/pools/default/leases").is(201, &json!({ "id": "*" }));
    let renew = format!("POST /v1/pools/default/leases/{}/renew", text(&grant["id"]));
    // Within the clock tick of its grant, a renewal has nothing to extend, and succeeds.
    let refused = eventually("a renewal is refused", || {
        Some(client.ask(&renew)).filter(|answer| answer.status != 200)
    });
    let problem = refused.problem(409, "max_hold_reached");
    assert_eq!(problem["expires_at"], grant["expires_at"]);
}

#[test]
fn a_force_release_frees_a_key_of_any_holder() {
    let server = Server::in_memory(&[]);
    let client = &mut server.client();
    generate(client, "default", 1);
    let grant = client.ask("POST /v1/pools/default/leases").is(201, &json!({ "id": "*" }));
    let release = format!("POST /v1/pools/default/keys/{}/release", text(&grant["key_id"]));
    check(client, &release, &json!({}), 200, &json!({ "released": true }));
    check(client, &release, &Value::Null, 200, &json!({ "released": false }));
    let lease = format!("POST /v1/pools/default/leases/{}/release", text(&grant["id"]));
    client.ask(&lease).problem(410, "lease_ended");
}

#[test]
fn an_acquire_without_a_key_gets_the_cause_and_when_to_retry() {
    let server = Server::in_memory(&[]);
    let client = &mut server.client();
    let acquire = "POST /v1/pools/default/leases";
    let empty = client.ask(acquire);
    assert_eq!(empty.header("retry-after"), None, "{empty:?}");
    let problem = empty.problem(404, "no_key_available");
    assert_eq!(problem["cause"], "pool_empty");
    generate(client, "default", 1);
    client.send(acquire, &json!({ "ttl_seconds": 1.2 })).is(201, &json!({}));
    let leased = client.ask(acquire);
    let retry_after: u64 = leased.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=2).contains(&retry_after), "{leased:?}");
    leased.problem(404, "no_key_available");
    let problem = client.ask(acquire).is(
        404,
        &json!({
            "cause": "all_leased", "outcome": "not_applied",
            "available": 0, "leased": 1, "resting": 0, "quarantined": 0, "total": 1,
        }),
    );
    assert_eq!(problem["title"], "No key available");
}

#[test]
fn a_full_pool_accepts_no_key_and_generate_is_all_or_nothing() {
    let server = Server::in_memory(&[]);
    let client = &mut server.client();
    client.send("PUT /v1/pools/small", &json!({ "max_keys": 3 })).is(201, &json!({}));
    let path = "POST /v1/pools/small/keys";
    let full = client.send(path, &json!({ "count": 4 })).problem(507, "pool_full");
    assert_eq!((&full["max"], &full["outcome"]), (&json!(3), &json!("not_applied")));
    client.ask("GET /v1/pools/small").is(200, &json!({ "total": 0 }));
    generate(client, "small", 3);
    client.ask(path).problem(507, "pool_full");
}

#[test]
fn a_key_or_lease_of_one_pool_is_unknown_in_another() {
    let server = Server::in_memory(&[]);
    let client = &mut server.client();
    client.ask("PUT /v1/pools/other").is(201, &json!({}));
    generate(client, "default", 1);
    let grant = client.ask("POST /v1/pools/default/leases").is(201, &json!({ "id": "*" }));
    let (key, lease) = (text(&grant["key_id"]), text(&grant["id"]));
    client.ask(&format!("DELETE /v1/pools/other/keys/{key}")).problem(404, "unknown_key");
    let release = |pool| format!("POST /v1/pools/{pool}/leases/{lease}/release");
    client.ask(&release("other")).problem(410, "lease_ended");
    client.ask(&release("default")).is(204, &Value::Null);
}

#[test]
fn head_is_answered_like_get_without_the_body() {
    let server = Server::in_memory(&[]);
    let client = &mut server.client();
    for path in ["/v1/pools", "/v1/pools/default", "/livez", "/readyz", "/version"] {
        let length = client.ask(&format!("GET {path}")).header("content-length").map(str::to_owned);
        let head = client.ask(&format!("HEAD {path}"));
        assert_eq!(head.header("content-length"), length.as_deref(), "{path}");
        head.is(200, &Value::Null);
    }
}

#[test]
fn the_server_reports_its_health_and_version() {
    let server = Server::in_memory(&[]);
    let client = &mut server.client();
    client.ask("GET /livez").is(200, &json!({ "status": "live" }));
    client.ask("GET /readyz").is(200, &json!({ "status": "ready" }));
    let version = env!("CARGO_PKG_VERSION");
    let expected = json!({ "name": "keypeg", "version": version });
    let answer = client.ask("GET /version").is(200, &expected);
    assert!(answer["target"].as_str().unwrap().contains("linux"), "{answer}");
    // A build without git and without SOURCE_DATE_EPOCH knows neither.
    let is_commit = |commit: &str| commit.len() >= 7;
    assert!(answer["commit"].as_str().is_none_or(is_commit), "{answer}");
    let is_utc = |date: &str| date.len() == 20 && date.ends_with('Z');
    assert!(answer["built_at"].as_str().is_none_or(is_utc), "{answer}");
    assert_eq!(answer.as_object().unwrap().len(), 5, "{answer}");
    let ids: HashSet<String> = (0..100)
        .map(|_| client.ask("GET /livez").header("x-request-id").unwrap().to_owned())
        .collect();
    assert_eq!(ids.len(), 100);
}
