//! The published document, `docs/openapi.json`: the server serves it, and the limits of every field
//! are exactly those of the server.
//!
//! That the document matches the code is tested in keypeg-openapi.

use crate::support::{Client, Server};
use serde_json::{Map, Value, json};
use std::path::Path;

fn published() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/openapi.json");
    std::fs::read_to_string(path).unwrap()
}

#[test]
fn the_server_serves_the_published_document() {
    let server = Server::in_memory(&[]);
    let answer = server.client().ask("GET /openapi.json");
    assert_eq!(answer.header("content-type"), Some("application/json"));
    assert!(answer.body == published(), "the server embeds another document");
}

#[test]
fn the_page_loads_nothing_from_other_hosts() {
    let server = Server::in_memory(&[]);
    let client = &mut server.client();
    for (path, content_type) in [("/docs", "text/html"), ("/docs/style.css", "text/css")] {
        let answer = client.ask(&format!("GET {path}"));
        assert_eq!(answer.status, 200);
        let policy = answer.header("content-security-policy").unwrap();
        assert!(policy.starts_with("default-src 'none'; style-src 'self'; "), "{policy}");
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
        assert!(answer.header("content-type").unwrap().starts_with(content_type));
        assert!(!answer.body.is_empty());
    }
    assert!(client.ask("GET /docs").body.contains("/v1/pools/{pool}/leases/{lease}/renew"));
}

fn sent(client: &mut Client, request: &str, body: &Value) -> (u16, Value) {
    let answer = client.send(request, body);
    let body = if answer.body.is_empty() { Value::Null } else { answer.json() };
    (answer.status, body["field"].clone())
}

/// Returns values at the limits of a schema, and values just outside of them.
fn edges(schema: &Map<String, Value>) -> (Vec<Value>, Vec<Value>) {
    let (mut allowed, mut rejected) = (Vec::new(), Vec::new());
    let is_integer = schema.get("type").is_some_and(|types| types.to_string().contains("integer"));
    for (name, step) in [("minimum", -1), ("maximum", 1)] {
        let Some(limit) = schema.get(name) else { continue };
        allowed.push(limit.clone());
        rejected.push(match limit.as_f64() {
            _ if is_integer => json!(limit.as_i64().unwrap() + step),
            // A number above zero is rounded up to milliseconds.
            _ if *limit == json!(0.001) => json!(0),
            limit => json!(limit.unwrap() + 0.0011 * f64::from(i32::try_from(step).unwrap())),
        });
    }
    let filled = |n: u64| match schema.get("items") {
        Some(_) => (0..n).map(|index| format!("edge-{n}-{index}")).collect::<Vec<_>>().into(),
        None => Value::from("x".repeat(usize::try_from(n).unwrap())),
    };
    for (keyword, is_minimum) in
        [("minLength", true), ("minItems", true), ("maxLength", false), ("maxItems", false)]
    {
        if let Some(limit) = schema.get(keyword).and_then(Value::as_u64) {
            allowed.push(filled(limit));
            rejected.push(filled(if is_minimum { limit - 1 } else { limit + 1 }));
        }
    }
    let nullable = schema["type"].as_array().is_some_and(|types| types.contains(&"null".into()));
    if nullable { &mut allowed } else { &mut rejected }.push(Value::Null);
    (allowed, rejected)
}

#[test]
fn the_limits_of_every_body_field_are_exactly_those_of_the_server() {
    let server = Server::in_memory(&["--lease-ttl", "604800s"]);
    let client = &mut server.client();
    let document: Value = serde_json::from_str(&published()).unwrap();
    let key = client.ask("POST /v1/pools/default/keys").is(201, &json!({}));
    let change = format!("PATCH /v1/pools/default/keys/{}", key["keys"][0]["id"].as_str().unwrap());
    let lease = client.ask("POST /v1/pools/default/leases").text("id");
    let renew = format!("POST /v1/pools/default/leases/{lease}/renew");
    let release = "POST /v1/pools/default/leases/00000000000000000000000000/release";
    let mut count = 0;
    for (schema, request) in [
        ("PolicyRequest", "PUT /v1/pools/edges"),
        ("GenerateRequest", "POST /v1/pools/default/keys"),
        ("KeyRequest", &change),
        ("KeepAliveRequest", "POST /v1/pools/default/keepalive"),
        ("AcquireRequest", "POST /v1/pools/default/leases"),
        ("ReleaseRequest", release),
        ("RenewRequest", &renew),
    ] {
        let members = document["components"]["schemas"][schema]["properties"].as_object().unwrap();
        for (name, member) in members {
            let (allowed, rejected) = edges(member.as_object().unwrap());
            for value in allowed {
                // max_hold_seconds must not be less than lease_ttl_seconds: a limit between fields.
                if request.starts_with("PUT") {
                    client.ask("DELETE /v1/pools/edges");
                    client.send("PUT /v1/pools/edges", &json!({ "lease_ttl_seconds": 0.001 }));
                }
                let mut body = json!({ name.as_str(): &value });
                // Null leaves one of the two fields out, so the other one must be given.
                if value.is_null() && schema == "KeepAliveRequest" {
                    let other =
                        if name == "ids" { ("all", json!(true)) } else { ("ids", json!([])) };
                    body[other.0] = other.1;
                }
                // One label for each new key.
                if let (Some(labels), "labels") = (value.as_array(), &**name) {
                    body["count"] = labels.len().into();
                }
                let (status, field) = sent(client, request, &body);
                assert_ne!(status, 422, "{request} {name} {field}: {}", short(&value));
                count += 1;
            }
            for value in rejected {
                let (status, field) = sent(client, request, &json!({ name.as_str(): value }));
                assert_eq!((status, &field), (422, &json!(name)), "{request} {}", short(&value));
                count += 1;
            }
        }
        let unknown = sent(client, request, &json!({ "no_such_member": 1 }));
        assert_eq!(unknown, (422, json!("no_such_member")), "{request}");
    }
    assert!(count > 60, "{count} values");
}

fn short(value: &Value) -> String {
    value.to_string().chars().take(60).collect()
}
