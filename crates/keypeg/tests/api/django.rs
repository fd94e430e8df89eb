//! The Django API: the calls, bodies and statuses of the older server, exactly as its readme has
//! them.

use crate::support::{Client, Server};
use serde_json::{Value, json};

const PATH: &str = "/api/v1/random_api_key/";
const NO_SUCH_KEY: &str = "Kindly send key to be updated, given key does not exist";

fn create(client: &mut Client) -> String {
    client.ask(&format!("POST {PATH}")).text("api_key")
}

#[test]
fn a_key_is_created_lent_released_kept_alive_and_deleted() {
    let server = Server::in_memory(&[]);
    let client = &mut server.client();
    let no_key = json!({ "message": "No available key found" });
    assert_eq!(client.ask(&format!("GET {PATH}")).is(404, &no_key), no_key);
    let key = create(client);
    assert!(key.len() == 20 && key.bytes().all(|byte| byte.is_ascii_alphanumeric()), "{key}");
    let lent = json!({ "api_key": key });
    assert_eq!(client.ask(&format!("GET {PATH}")).is(200, &lent), lent);
    client.ask(&format!("GET {PATH}")).is(404, &no_key);
    client.ask(&format!("PUT {PATH}?api_key={key}")).is(200, &lent);
    client.ask(&format!("PUT {PATH}?api_key={key}")).is(200, &lent);
    client.ask(&format!("GET {PATH}")).is(200, &lent);
    client.ask(&format!("PATCH {PATH}?api_key={key}")).is(200, &lent);
    client.ask(&format!("DELETE {PATH}?api_key={key}")).is(200, &json!({ "message": "*" }));
    for method in ["PUT", "DELETE", "PATCH"] {
        let answer = client.ask(&format!("{method} {PATH}?api_key={key}"));
        assert_eq!(answer.header("cache-control"), Some("no-store"));
        answer.is(400, &json!({ "message": NO_SUCH_KEY }));
    }
}

#[test]
fn a_value_of_the_caller_is_added_only_once() {
    let server = Server::in_memory(&[]);
    let client = &mut server.client();
    let post = format!("POST {PATH}");
    let body = json!({ "api_key": "my own + key/ä%", "other": [1] });
    client.send(&post, &body).is(201, &json!({ "api_key": "my own + key/ä%" }));
    let exists = json!({ "api_key": ["key with this api key already exists"] });
    assert_eq!(client.send(&post, &body).is(400, &exists), exists);
    let named = "my+own%20%2B+key%2F%c3%A4%25";
    client.ask(&format!("PUT {PATH}?x=1&api_key=no&api_key={named}&y")).is(
        200,
        &json!({
            "api_key": "my own + key/ä%",
        }),
    );
    client.ask(&format!("DELETE {PATH}?api_key={named}")).is(200, &json!({ "message": "*" }));
    client.send(&post, &body).is(400, &exists);
}

#[test]
fn an_invalid_value_is_refused_with_the_messages_of_the_older_server() {
    let server = Server::in_memory(&[]);
    let client = &mut server.client();
    for (value, message) in [
        (json!(""), "This field may not be blank."),
        (json!(null), "This field may not be null."),
        (json!(7), "Not a valid string."),
        (json!(["a"]), "Not a valid string."),
        (json!("x".repeat(4_097)), "Ensure this field has no more than 4096 bytes."),
    ] {
        let body = json!({ "api_key": value });
        client.send(&format!("POST {PATH}"), &body).is(400, &json!({ "api_key": [message] }));
    }
    client
        .send(&format!("POST {PATH}"), &json!({ "api_key": "x".repeat(4_096) }))
        .is(201, &json!({}));
}

#[test]
fn a_call_without_the_parameter_names_no_key() {
    let server = Server::in_memory(&[]);
    let client = &mut server.client();
    create(client);
    for query in ["", "?", "?api_key", "?api_key=", "?key=a", "?API_KEY=a", "?api_key=nope"] {
        for method in ["PUT", "DELETE", "PATCH"] {
            client
                .ask(&format!("{method} {PATH}{query}"))
                .is(400, &json!({ "message": NO_SUCH_KEY }));
        }
    }
}

#[test]
fn the_slash_at_the_end_is_optional() {
    let server = Server::in_memory(&[]);
    let client = &mut server.client();
    let key = client.ask("POST /api/v1/random_api_key").is(201, &json!({ "api_key": "*" }));
    client.ask("GET /api/v1/random_api_key").is(200, &json!({ "api_key": key["api_key"] }));
    for path in ["/api/v1/start_scheduler/", "/api/v1/start_scheduler"] {
        for _ in 0..2 {
            client.ask(&format!("GET {path}")).is(200, &json!({ "message": "*" }));
        }
    }
}

#[test]
fn neither_head_nor_a_cross_site_page_gets_a_key() {
    let server = Server::in_memory(&[]);
    let client = &mut server.client();
    create(client);
    let head = client.ask(&format!("HEAD {PATH}"));
    assert_eq!(head.header("allow"), Some("GET, POST, PUT, PATCH, DELETE, OPTIONS"));
    head.is(405, &Value::Null);
    let get = format!("GET {PATH}");
    let from = |site| [("Sec-Fetch-Site", site)];
    let answer = client.try_send(&get, &from("cross-site"), "").unwrap();
    assert_eq!(answer.problem(403, "forbidden")["outcome"], "not_applied");
    let foreign = [("Origin", "https://evil.example")];
    client.try_send(&get, &foreign, "").unwrap().problem(403, "forbidden");
    client.try_send(&get, &from("same-origin"), "").unwrap().is(200, &json!({ "api_key": "*" }));
}

#[test]
fn framing_and_content_types_are_checked_as_in_the_canonical_api() {
    let server = Server::in_memory(&[]);
    let client = &mut server.client();
    let post = format!("POST {PATH}");
    let form = [("content-type", "application/x-www-form-urlencoded")];
    let answer = client.try_send(&post, &form, "api_key=abc").unwrap();
    answer.problem(415, "unsupported_media_type");
    let json_type = [("content-type", "application/json")];
    client.try_send(&post, &json_type, "{").unwrap().problem(400, "malformed");
    client.ask("OPTIONS /api/v1/random_api_key/").is(204, &Value::Null);
    client.ask("POST /api/v1/start_scheduler/").problem(405, "method_not_allowed");
}
