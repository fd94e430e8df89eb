//! A call through a proxy has the answer of the server: status, body and headers, whatever the path,
//! the body and the framing are; and the server gets the address of the client from the proxy alone.

use super::recorder::Recorder;
use super::{Kind, NAME, Proxy, for_each_proxy};
use crate::support::{Answer, Client, Server, eventually};
use serde_json::{Value, json};

for_each_proxy!(
    paths_reach_the_server_unaltered,
    an_answer_is_the_answer_of_the_server,
    bodies_of_every_size_and_framing_reach_the_server,
    a_body_above_the_limit_gets_the_problem_of_the_server,
    pipelined_requests_are_answered_in_order,
    the_address_of_the_client_replaces_what_the_client_sent,
    the_name_that_the_client_uses_reaches_the_server,
    the_log_has_request_ids_but_no_lease_ids_and_no_queries,
);

fn paths_reach_the_server_unaltered(kind: Kind) {
    let recorder = Recorder::start();
    let Some(proxy) = Proxy::start(kind, recorder.addr()) else { return };
    let mut client = proxy.client();
    let paths = [
        "/v1/pools/ci%2D1/keys?limit=1&cursor=a%2Fb",
        "/v1/pools/ci-1/keys?",
        "/v1/pools/a%2fb",
        "/v1/pools/ci%252D1",
        "//v1//pools",
        "/v1/./pools/../pools/",
        "/v1/pools/%2e%2e/x",
        "/api/v1/random_api_key/?api_key=a%20b+c&x",
        "/v1/pools/%C3%A9",
        "/keys/%41%5F",
    ];
    for path in paths {
        assert_eq!(client.ask(&format!("PATCH {path}")).status, 200, "{path}");
    }
    let heads = recorder.heads();
    let found = heads.iter().map(|head| head.split(' ').nth(1).unwrap());
    assert_eq!(found.collect::<Vec<_>>(), paths);
}

/// Returns the part of an answer that two equal requests have in common.
fn lasting(answer: &Answer) -> (u16, Vec<(String, String)>, String) {
    let changes = ["date", "x-request-id", "server", "connection", "keep-alive", "alt-svc"];
    let mut headers = answer.headers.clone();
    headers.retain(|(name, _)| !changes.contains(&name.as_str()));
    headers.sort();
    let id = answer.header("x-request-id").expect("a request id");
    // The length of a request id varies.
    headers.retain(|(name, _)| name != "content-length" || !answer.body.contains(id));
    (answer.status, headers, answer.body.replace(id, "ID"))
}

/// Method and path, headers, body.
type Request<'a> = (&'a str, &'a [(&'a str, &'a str)], &'a str);

fn an_answer_is_the_answer_of_the_server(kind: Kind) {
    let server = Server::in_memory(&[]);
    let Some(proxy) = Proxy::start(kind, server.addr()) else { return };
    let (mut direct, mut through) = (server.client(), proxy.client());
    direct.send("POST /v1/pools/default/keys", &json!({"values": ["a-value"]})).is(201, &json!({}));
    let json = ("content-type", "application/json");
    let cases: [Request<'_>; 17] = [
        ("GET /readyz", &[], ""),
        ("GET /livez", &[], ""),
        ("HEAD /v1/pools", &[], ""),
        ("OPTIONS /v1/pools/default", &[], ""),
        ("GET /v1/pools/default/keys?limit=1", &[], ""),
        ("GET /v1/pools/default/keys?limit=0", &[], ""),
        ("GET /v1/pools/nowhere", &[], ""),
        ("GET /v1/pools/a%2Fb", &[], ""),
        ("GET //v1/pools", &[], ""),
        ("PUT /v1/pools/ci", &[json, ("if-match", "*")], "{}"),
        ("PUT /v1/pools/ci%2D1", &[json], "{\"lease_ttl_seconds\": \"x\"}"),
        ("POST /v1/pools/default/keys", &[json], "{\"values\": [\"a-value\"]}"),
        ("POST /v1/pools/default/keys", &[("content-type", "text/plain")], "{}"),
        ("POST /v1/pools/default/keys", &[json, ("content-encoding", "gzip")], "{}"),
        ("POST /v1/pools/default/leases/none/release", &[], ""),
        ("POST /v1/pools/default/leases", &[("sec-fetch-site", "cross-site")], ""),
        ("DELETE /v1/pools/default", &[], ""),
    ];
    for (request, headers, body) in cases {
        let expected = lasting(&direct.try_send(request, headers, body).unwrap());
        assert_eq!(
            lasting(&through.try_send(request, headers, body).unwrap()),
            expected,
            "{request}"
        );
    }
    let created = through.send("PUT /v1/pools/created", &json!({}));
    assert_eq!(created.header("location"), Some("/v1/pools/created"), "{created:?}");
    // An answer without a body, a stored answer, and a grant with a Prefer header.
    let headers = [("idempotency-key", "k-1"), ("prefer", "wait=1")];
    let grant = through.try_send("POST /v1/pools/default/leases", &headers, "").unwrap();
    assert_eq!(grant.header("preference-applied"), Some("wait=1"), "{grant:?}");
    let repeat = through.try_send("POST /v1/pools/default/leases", &headers, "").unwrap();
    assert_eq!(repeat.text("id"), grant.text("id"));
    let release = format!("POST /v1/pools/default/leases/{}/release", grant.text("id"));
    through.ask(&release).is(204, &Value::Null);
}

fn bodies_of_every_size_and_framing_reach_the_server(kind: Kind) {
    let server = Server::in_memory(&[]);
    let Some(proxy) = Proxy::start(kind, server.addr()) else { return };
    let mut client = proxy.client();
    // A list of as many ids as one call can have, about 400 KiB.
    client.send("POST /v1/pools/default/keys", &json!({"count": 10_000})).is(201, &json!({}));
    let page = client.ask("GET /v1/pools/default/keys?limit=1000").json();
    let known = page["keys"].as_array().unwrap().iter().map(|key| key["id"].clone());
    let mut ids: Vec<Value> = known.collect();
    ids.extend((ids.len()..10_000).map(|index| json!(format!("{index:036}"))));
    let kept = client.send("POST /v1/pools/default/keepalive", &json!({"ids": ids}));
    assert_eq!(kept.is(200, &json!({"kept": 1000}))["missing"].as_array().unwrap().len(), 9000);
    // An import of nearly 8 MiB, whole and in chunks.
    client.send("PUT /v1/pools/large", &json!({})).is(201, &json!({}));
    for pool in ["first", "second"] {
        let values: Vec<_> = (0..2000).map(|index| format!("{pool}{index:04088}")).collect();
        let body = json!({ "values": values }).to_string();
        assert!(body.len() > 8_000_000, "{}", body.len());
        let head = "POST /v1/pools/large/keys HTTP/1.1\r\nhost: localhost\r\n\
                    content-type: application/json\r\n";
        let request = if pool == "first" {
            format!("{head}content-length: {}\r\n\r\n{body}", body.len())
        } else {
            format!("{head}transfer-encoding: chunked\r\n\r\n{}", chunked(&body))
        };
        let answer = Client::new(proxy.addr).raw(request.as_bytes()).unwrap();
        let keys = answer.is(201, &json!({}));
        assert_eq!(keys["keys"].as_array().unwrap().len(), 2000);
    }
    let expecting = "POST /v1/pools/default/keys HTTP/1.1\r\nhost: localhost\r\n\
                     content-type: application/json\r\ncontent-length: 11\r\n\
                     expect: 100-continue\r\n\r\n";
    let mut client = proxy.client();
    assert_eq!(client.raw(expecting.as_bytes()).unwrap().status, 100);
    client.write(b"{\"count\":3}").unwrap();
    // Caddy sends its own 100, and that of the server.
    let mut answers = std::iter::repeat_with(|| client.read(false).unwrap());
    answers.find(|answer| answer.status != 100).unwrap().is(201, &json!({}));
}

fn chunked(body: &str) -> String {
    let chunk =
        |bytes: &[u8]| format!("{:x}\r\n{}\r\n", bytes.len(), std::str::from_utf8(bytes).unwrap());
    body.as_bytes().chunks(10_000).map(chunk).collect::<Vec<_>>().concat() + "0\r\n\r\n"
}

/// The server answers from the head, while the client still sends. Caddy can close the connection of
/// such a client before the client has read the answer.
fn a_body_above_the_limit_gets_the_problem_of_the_server(kind: Kind) {
    let server = Server::in_memory(&[]);
    let Some(proxy) = Proxy::start(kind, server.addr()) else { return };
    for (path, length) in [("keys", (8 << 20) + 1), ("keys", 10 << 20), ("leases", (1 << 20) + 1)] {
        let body = " ".repeat(length);
        let head = format!(
            "POST /v1/pools/default/{path} HTTP/1.1\r\nhost: localhost\r\n\
             content-type: application/json\r\n"
        );
        let whole = format!("{head}content-length: {length}\r\n\r\n{body}");
        let in_chunks = format!("{head}transfer-encoding: chunked\r\n\r\n{}", chunked(&body));
        for request in [whole, in_chunks] {
            match proxy.client().raw(request.as_bytes()) {
                Ok(answer) => drop(answer.problem(413, "too_large")),
                Err(error) => assert_eq!(kind, Kind::Caddy, "{path} {length}: {error}"),
            }
        }
    }
    // A client that waits for the answer before it sends the body gets the answer from each.
    let expecting = format!(
        "POST /v1/pools/default/keys HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\
         content-type: application/json\r\nexpect: 100-continue\r\n\r\n",
        (8 << 20) + 1
    );
    let mut client = proxy.client();
    client.write(expecting.as_bytes()).unwrap();
    let mut answers = std::iter::repeat_with(|| client.read(false).unwrap());
    answers.find(|answer| answer.status != 100).unwrap().problem(413, "too_large");
    proxy.client().ask("GET /readyz").is(200, &json!({}));
}

fn pipelined_requests_are_answered_in_order(kind: Kind) {
    let server = Server::in_memory(&[]);
    let Some(proxy) = Proxy::start(kind, server.addr()) else { return };
    let mut client = proxy.client();
    for index in 0..20 {
        client.send(&format!("PUT /v1/pools/pool-{index}"), &json!({})).is(201, &json!({}));
    }
    let request = |index| format!("GET /v1/pools/pool-{index} HTTP/1.1\r\nhost: localhost\r\n\r\n");
    let requests = (0..20).map(request).collect::<Vec<_>>().concat();
    client.write(requests.as_bytes()).unwrap();
    for index in 0..20 {
        client.read(false).unwrap().is(200, &json!({ "pool": format!("pool-{index}") }));
    }
}

fn the_address_of_the_client_replaces_what_the_client_sent(kind: Kind) {
    let recorder = Recorder::start();
    let Some(proxy) = Proxy::start(kind, recorder.addr()) else { return };
    let forged = [
        ("x-forwarded-for", "203.0.113.7"),
        ("X-Forwarded-For", "203.0.113.8, 203.0.113.9"),
        ("forwarded", "for=203.0.113.10"),
        ("Forwarded", "for=\"[2001:db8::1]\""),
        ("x-forwarded-proto", "gopher"),
    ];
    proxy.client().try_send("GET /v1/pools", &forged, "").unwrap();
    let head = recorder.heads().remove(0).to_lowercase();
    let of = |name: &str| {
        let start = format!("\r\n{name}: ");
        head.split(&start).skip(1).map(|rest| rest.lines().next().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(of("x-forwarded-for"), ["127.0.0.1"], "{head}");
    assert!(!head.contains("203.0.113.") && !head.contains("2001:db8") && !head.contains("gopher"));
    let forwarded = of("forwarded");
    assert!(forwarded.iter().all(|value| value.starts_with("for=127.0.0.1;")), "{head}");
    assert_eq!(forwarded.len(), usize::from(kind != Kind::Caddy), "{head}");
}

fn the_name_that_the_client_uses_reaches_the_server(kind: Kind) {
    let server = Server::in_memory(&["--allow-host", NAME]);
    let Some(proxy) = Proxy::start(kind, server.addr()) else { return };
    let call = |host: &str| {
        let request = format!("GET /v1/pools HTTP/1.1\r\nhost: {host}\r\n\r\n");
        proxy.client().raw(request.as_bytes()).unwrap()
    };
    for host in [NAME.to_owned(), format!("{NAME}:{}", proxy.addr.port()), proxy.addr.to_string()] {
        call(&host).is(200, &json!({}));
    }
    for host in ["other.example", "keys.example.other"] {
        call(host).problem(421, "misdirected");
    }
    // A browser that shows a page of the same name sends its Origin.
    let origin = format!("http://{}", proxy.addr);
    let post = |origin: &str| {
        proxy.client().try_send("POST /v1/pools/default/keys", &[("origin", origin)], "").unwrap()
    };
    post(&origin).is(201, &json!({}));
    post("http://other.example").problem(403, "forbidden");
}

fn the_log_has_request_ids_but_no_lease_ids_and_no_queries(kind: Kind) {
    let mut server = Server::in_memory(&[]);
    let Some(proxy) = Proxy::start(kind, server.addr()) else { return };
    let mut client = proxy.client();
    client.send("POST /v1/pools/default/keys", &json!({"values": ["s3cret"]})).is(201, &json!({}));
    let lease = client.ask("POST /v1/pools/default/leases").text("id");
    client.ask(&format!("POST /v1/pools/default/leases/{lease}/renew?n3ver")).is(422, &json!({}));
    let released = client.ask(&format!("POST /v1/pools/default/leases/{lease}/release"));
    client.ask("PATCH /api/v1/random_api_key/?api_key=s3cret").is(200, &json!({}));
    let token = [("authorization", "Bearer t0ken")];
    let last = client.try_send("GET /v1/pools/default", &token, "").unwrap();
    let log = eventually("the log has the last request", || {
        Some(proxy.output()).filter(|log| log.contains(last.header("x-request-id").unwrap()))
    });
    assert!(log.contains(released.header("x-request-id").unwrap()), "{log}");
    assert!(log.contains("/release") && log.contains("random_api_key"), "{log}");
    // An error of the proxy has no more of the request.
    server.kill();
    let late = format!("POST /v1/pools/default/leases/{lease}/release?s3cret");
    assert_ne!(proxy.client().try_send(&late, &[], "").map_or(502, |answer| answer.status), 204);
    let log = eventually("the log has the failed request", || {
        Some(proxy.output()).filter(|log| log.matches("/release").count() >= 2)
    });
    for secret in [&lease, "s3cret", "t0ken", "n3ver"] {
        assert!(!log.contains(secret), "{secret}: {log}");
    }
}
