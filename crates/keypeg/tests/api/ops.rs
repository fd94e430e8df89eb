//! What a client needs around the API: links at the root, methods by OPTIONS, the paths of new
//! resources, and answers that no cache may keep.

use crate::support::tokens::Tokens;
use crate::support::{Answer, Server};
use keypeg_client::routes::{PROBLEM_ROUTES, ROUTES};
use serde_json::{Value, json};

#[test]
fn the_root_links_to_the_documentation() {
    let server = Server::in_memory(&[]);
    let client = &mut server.client();
    let links = client.ask("GET /").is(200, &json!({ "name": "keypeg" }));
    for (name, path) in links.as_object().unwrap() {
        if name != "name" {
            let answer = client.ask(&format!("GET {}", path.as_str().unwrap()));
            assert_eq!(answer.status, 200, "{name}");
        }
    }
    client.ask("HEAD /").is(200, &Value::Null);
    client.ask("POST /").problem(405, "method_not_allowed");
}

/// A proxy's health check has no token, and must not learn which pools exist.
#[test]
fn options_needs_no_token_and_does_not_depend_on_what_exists() {
    let tokens = Tokens::new();
    let token = tokens.add("all", "*", &["admin"], &[]);
    let [flag, file] = tokens.args();
    let server = Server::in_memory(&[&flag, &file]);
    let client = &mut server.client();
    client.with(&token, "PUT /v1/pools/secret").is(201, &json!({}));
    let without_id = |mut answer: Answer| {
        answer.headers.retain(|(name, _)| name != "x-request-id" && name != "date");
        (answer.status, answer.headers, answer.body)
    };
    let options = |path: &str| {
        let answer = server.client().ask(&format!("OPTIONS {path}"));
        assert_eq!(answer.status, 204, "{path}: {answer:?}");
        assert_eq!(answer.header("cache-control"), Some("no-store"));
        answer
    };
    assert_eq!(options("/").header("allow"), Some("GET, HEAD, OPTIONS"));
    let all = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS";
    assert_eq!(options("*").header("allow"), Some(all));
    assert_eq!(without_id(options("/v1/pools/secret")), without_id(options("/v1/pools/nope")));
    for route in ROUTES.iter().chain(PROBLEM_ROUTES) {
        let path = route.path.replace(['{', '}'], "").replace("code", "internal");
        let allow = options(&path).header("allow").unwrap().to_owned();
        assert!(allow.split(", ").any(|method| method == route.method), "{path}: {allow}");
    }
    client.ask("OPTIONS /nope").problem(404, "not_found");
    client.ask("GET /v1/pools/secret").problem(401, "unauthorized");
}

#[test]
fn a_server_alone_says_that_it_has_no_other_servers_and_no_shards() {
    let server = Server::in_memory(&[]);
    let client = &mut server.client();
    client.ask("GET /v1/cluster").problem(404, "no_cluster");
    assert_eq!(client.ask("HEAD /v1/cluster").status, 404);
    for body in [Value::Null, json!({ "server": "a" })] {
        let problem = client.send("POST /v1/cluster/shards/0/move", &body);
        assert_eq!(problem.problem(404, "no_cluster")["outcome"], "not_applied");
    }
}

#[test]
fn an_answer_that_creates_one_resource_names_its_path() {
    let server = Server::in_memory(&[]);
    let client = &mut server.client();
    let location = |answer: Answer| answer.header("location").map(str::to_owned);
    let pool = location(client.ask("PUT /v1/pools/ci"));
    assert_eq!(pool.as_deref(), Some("/v1/pools/ci"));
    assert_eq!(location(client.ask("PUT /v1/pools/ci")), None);
    for body in [json!({}), json!({ "count": 1 }), json!({ "values": ["one"] })] {
        let created = client.send("POST /v1/pools/ci/keys", &body);
        let id = created.json()["keys"][0]["id"].as_str().unwrap().to_owned();
        let path = location(created).unwrap();
        assert_eq!(path, format!("/v1/pools/ci/keys/{id}"));
        client.ask(&format!("GET {path}")).is(200, &json!({ "id": id }));
    }
    assert_eq!(location(client.send("POST /v1/pools/ci/keys", &json!({ "count": 2 }))), None);
    let simple = client.ask("POST /keys");
    let path = format!("/keys/{}", simple.text("keyId"));
    assert_eq!(location(simple).as_deref(), Some(&*path));
    client.ask(&format!("GET {path}")).is(200, &json!({ "isBlocked": false }));
    assert_eq!(location(client.ask("POST /api/v1/random_api_key/")), None, "its path is a secret");
}

/// Regression: a cache in front of the server answered health checks with an old state.
#[test]
fn no_cache_may_keep_an_answer_but_an_embedded_page() {
    let server = Server::in_memory(&[]);
    let embedded = ["/openapi.json", "/docs", "/docs/style.css", "/problems", "/problems/internal"];
    for route in ROUTES.iter().chain(PROBLEM_ROUTES) {
        let path = route.path.replace("{pool}", "default").replace("{code}", "internal");
        let path = path.replace(['{', '}'], "");
        for method in [route.method, "BREW"] {
            let answer = server.client().ask(&format!("{method} {path}"));
            let is_page = embedded.contains(&&*path) && method == "GET";
            let expected = if is_page { "no-cache" } else { "no-store" };
            assert_eq!(answer.header("cache-control"), Some(expected), "{method} {path}");
        }
    }
    for request in ["GET /nope HTTP/1.1\r\nhost: evil.example\r\n\r\n", "GET / HTTP/9.9\r\n\r\n"] {
        let answer = server.client().raw(request.as_bytes()).unwrap();
        assert_eq!(answer.header("cache-control"), Some("no-store"), "{request}");
    }
}

/// A path and its percent-encoded form are one path, also for what an access token may use.
#[test]
fn an_escape_that_is_not_needed_changes_nothing() {
    let tokens = Tokens::new();
    let admin = tokens.add("all", "*", &["admin"], &[]);
    let other = tokens.add("ci", "ci-*", &["read"], &[]);
    let [flag, file] = tokens.args();
    let server = Server::in_memory(&[&flag, &file]);
    let client = &mut server.client();
    client.with(&admin, "PUT /v1/pools/ci%2D1").is(201, &json!({ "pool": "ci-1" }));
    client.with(&admin, "PUT /v1/pools/x-1").is(201, &json!({}));
    client.with(&other, "GET /v1/p%6f%6fls/ci%2d1?").is(200, &json!({ "pool": "ci-1" }));
    client.with(&other, "GET /v1/pools/%63i-1/keys?limit=1").is(200, &json!({ "keys": [] }));
    client.with(&other, "GET /v1/pools/%78-1").problem(403, "forbidden");
    client.with(&other, "GET /v1/pools/ci%2D1%2F..%2Fx-1").problem(400, "malformed");
    client.ask("GET /%6Cive%7A").is(200, &json!({}));
    client.ask("GET /v1/pools/ci%2D1").problem(401, "unauthorized");
    client.ask("GET /livez%").problem(400, "malformed");
}
