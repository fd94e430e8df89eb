//! The published document: it is what the code says, what the server serves, and as exact as it
//! claims at the edges of every range.

use crate::support::{Client, Server};
use serde_json::{Map, Value, json};
use std::path::Path;

fn published() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/openapi.json");
    std::fs::read_to_string(path).unwrap()
}

/// `KEYPEG_BLESS=1` writes the file anew; the next build serves it.
#[test]
fn the_published_document_is_what_the_code_says() {
    let mut made = serde_json::to_string_pretty(&keypeg_client::openapi::document()).unwrap();
    made.push('\n');
    if std::env::var_os("KEYPEG_BLESS").is_some() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/openapi.json");
        std::fs::write(path, &made).unwrap();
    }
    let same = published() == made;
    assert!(
        same,
        "docs/openapi.json is old: KEYPEG_BLESS=1 cargo test -p keypeg --test server openapi"
    );
}

#[test]
fn the_server_serves_the_published_document() {
    let server = Server::in_memory(&[]);
    let answer = server.client().ask("GET /openapi.json");
    assert_eq!(answer.header("content-type"), Some("application/json"));
    assert_eq!(answer.body, published());
}

#[test]
fn the_page_is_readable_without_anything_from_elsewhere() {
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
    let told = if answer.body.is_empty() { Value::Null } else { answer.json() };
    (answer.status, told["field"].clone())
}

/// Values at the edge of what a schema allows, and values just beyond.
fn edges(schema: &Map<String, Value>) -> (Vec<Value>, Vec<Value>) {
    let (mut within, mut beyond) = (Vec::new(), Vec::new());
    let integer = schema.get("type").is_some_and(|types| types.to_string().contains("integer"));
    for (name, way) in [("minimum", -1), ("maximum", 1)] {
        let Some(bound) = schema.get(name) else { continue };
        within.push(bound.clone());
        beyond.push(match bound.as_f64() {
            _ if integer => json!(bound.as_i64().unwrap() + way),
            // What is above zero is rounded up to milliseconds.
            _ if *bound == json!(0.001) => json!(0),
            bound => json!(bound.unwrap() + 0.0011 * f64::from(i32::try_from(way).unwrap())),
        });
    }
    let filled = |n: u64| match schema.get("items") {
        Some(_) => (0..n).map(|at| format!("edge-{n}-{at}")).collect::<Vec<_>>().into(),
        None => Value::from("x".repeat(usize::try_from(n).unwrap())),
    };
    for (bound, less) in
        [("minLength", true), ("minItems", true), ("maxLength", false), ("maxItems", false)]
    {
        if let Some(bound) = schema.get(bound).and_then(Value::as_u64) {
            within.push(filled(bound));
            beyond.push(filled(if less { bound - 1 } else { bound + 1 }));
        }
    }
    let nullable = schema["type"].as_array().is_some_and(|types| types.contains(&"null".into()));
    if nullable { &mut within } else { &mut beyond }.push(Value::Null);
    (within, beyond)
}

/// For each member of each request body: the document's bounds are the server's.
#[test]
fn every_bound_of_a_body_is_exactly_the_servers() {
    let server = Server::in_memory(&["--lease-ttl", "604800s"]);
    let client = &mut server.client();
    let document = keypeg_client::openapi::document();
    client.ask("POST /v1/pools/default/keys").is(201, &json!({}));
    let lease = client.ask("POST /v1/pools/default/leases").text("id");
    let renew = format!("POST /v1/pools/default/leases/{lease}/renew");
    let release = "POST /v1/pools/default/leases/00000000000000000000000000/release";
    let mut count = 0;
    for (schema, request) in [
        ("PolicyRequest", "PUT /v1/pools/edges"),
        ("GenerateRequest", "POST /v1/pools/default/keys"),
        ("KeepAliveRequest", "POST /v1/pools/default/keepalive"),
        ("AcquireRequest", "POST /v1/pools/default/leases"),
        ("ReleaseRequest", release),
        ("RenewRequest", &renew),
    ] {
        let members = document["components"]["schemas"][schema]["properties"].as_object().unwrap();
        for (name, member) in members {
            let (within, beyond) = edges(member.as_object().unwrap());
            for value in within {
                // The longest hold is not less than the lease, which is a bound between fields.
                if request.starts_with("PUT") {
                    client.ask("DELETE /v1/pools/edges");
                    client.send("PUT /v1/pools/edges", &json!({ "lease_ttl_seconds": 0.001 }));
                }
                let (status, field) = sent(client, request, &json!({ name.as_str(): value }));
                assert_ne!(status, 422, "{request} {name} {field}: {}", short(&value));
                count += 1;
            }
            for value in beyond {
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
