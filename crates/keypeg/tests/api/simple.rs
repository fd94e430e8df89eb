//! The simple API: six calls on the default pool.

use crate::support::Server;
use serde_json::{Value, json};

#[test]
fn a_key_goes_through_its_whole_life() {
    let server = Server::in_memory(&[]);
    let client = &mut server.client();
    client.ask("GET /keys").is(404, &json!({}));
    let created = client.ask("POST /keys").is(201, &json!({ "keyId": "*", "key": "*" }));
    let path = format!("/keys/{}", created["keyId"].as_str().unwrap());
    let show = format!("GET {path}");
    client.ask(&show).is(
        200,
        &json!({
            "isBlocked": false, "blockedAt": null, "createdAt": "*",
        }),
    );
    assert_eq!(client.ask("GET /keys").is(200, &created), created);
    client.ask(&show).is(200, &json!({ "isBlocked": true, "blockedAt": "*", "createdAt": "*" }));
    client.ask("GET /keys").is(404, &json!({}));
    client.ask(&format!("HEAD {path}")).is(200, &Value::Null);
    for _ in 0..2 {
        client.ask(&format!("PUT {path}")).is(200, &json!({}));
    }
    client.ask(&show).is(200, &json!({ "isBlocked": false, "blockedAt": null }));
    client
        .ask(&format!("PUT /keepalive/{}", created["keyId"].as_str().unwrap()))
        .is(200, &json!({}));
    client.ask(&format!("DELETE {path}")).is(200, &json!({}));
    for method in ["GET", "PUT", "DELETE"] {
        client.ask(&format!("{method} {path}")).is(404, &json!({}));
    }
    client.ask("PUT /keepalive/nonsense").is(404, &json!({}));
}

#[test]
fn neither_head_nor_a_cross_site_page_gets_a_key() {
    let server = Server::in_memory(&[]);
    let client = &mut server.client();
    client.ask("POST /keys").is(201, &json!({}));
    let head = client.ask("HEAD /keys");
    assert_eq!(head.header("allow"), Some("GET, POST, OPTIONS"));
    head.is(405, &Value::Null);
    let cross_site = [("Sec-Fetch-Site", "cross-site")];
    client.try_send("GET /keys", &cross_site, "").unwrap().problem(403, "forbidden");
    let foreign = [("Origin", "https://evil.example")];
    client.try_send("GET /keys", &foreign, "").unwrap().problem(403, "forbidden");
    for (request, allow) in
        [("POST /keys/x", "GET, HEAD, PUT, DELETE, OPTIONS"), ("GET /keepalive/x", "PUT, OPTIONS")]
    {
        let answer = client.ask(request);
        assert_eq!(answer.header("allow"), Some(allow), "{request}");
        answer.problem(405, "method_not_allowed");
    }
    client.ask("GET /keys").is(200, &json!({ "keyId": "*", "key": "*" }));
}
