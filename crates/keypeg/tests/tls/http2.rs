//! HTTP/2: the same answers as over HTTP/1.1, and the bounds of what one client can take.

use crate::support::certificates::{Authority, TlsClient, VALID};
use crate::support::tokens::Tokens;
use crate::support::{Server, eventually};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http2::{self, SendRequest};
use hyper::{Request, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::ServerName;
use rustls::version::TLS13;
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

/// The longest time to wait for an event before the test fails.
const PATIENCE: Duration = Duration::from_mins(1);

fn server(authority: &Authority, args: &[&str]) -> Server {
    let tls = authority.args(&authority.server(VALID));
    let tls = tls.iter().map(String::as_str);
    Server::in_memory(&args.iter().copied().chain(tls).collect::<Vec<_>>())
}

type Client = SendRequest<Full<Bytes>>;

/// Opens a connection that speaks HTTP/2, as ALPN has agreed.
async fn connect(authority: &Authority, server: &Server) -> Client {
    connect_with(authority, server, |_| {}).await
}

async fn connect_with(
    authority: &Authority,
    server: &Server,
    configure: impl FnOnce(&mut http2::Builder<TokioExecutor>),
) -> Client {
    let mut config = authority.client(&[&TLS13], None);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let socket = TcpStream::connect(server.addr()).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let stream = TlsConnector::from(Arc::new(config)).connect(name, socket).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let mut builder = http2::Builder::new(TokioExecutor::new());
    configure(&mut builder);
    let (client, connection) = builder.handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    client
}

/// What a client sees of an answer: status, headers that do not change from answer to answer, body.
#[derive(Debug, PartialEq)]
struct Seen {
    status: u16,
    headers: Vec<(String, String)>,
    body: String,
}

/// Headers of one answer alone, and those of HTTP/1.1.
const OWN_HEADERS: [&str; 3] = ["date", "x-request-id", "connection"];

fn seen(status: u16, headers: impl Iterator<Item = (String, String)>, body: &str) -> Seen {
    let own = |name: &str| OWN_HEADERS.contains(&name);
    let mut headers: Vec<_> = headers.filter(|(name, _)| !own(name)).collect();
    headers.sort();
    // Members that name one request or one moment.
    let body = match serde_json::from_str::<Value>(body) {
        Ok(mut value) => {
            strip(&mut value);
            value.to_string()
        }
        Err(_) => body.to_owned(),
    };
    Seen { status, headers, body }
}

fn strip(value: &mut Value) {
    const OF_THE_MOMENT: [&str; 10] = [
        "request_id",
        "instance",
        "id",
        "key",
        "key_id",
        "fencing_token",
        "expires_at",
        "granted_at",
        "created_at",
        "next_cursor",
    ];
    match value {
        Value::Object(members) => {
            for (name, member) in members {
                if OF_THE_MOMENT.contains(&name.as_str()) || name.ends_with("_at") {
                    *member = Value::Null;
                } else {
                    strip(member);
                }
            }
        }
        Value::Array(all) => all.iter_mut().for_each(strip),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

async fn ask(client: &mut Client, request: &str, headers: &[(&str, &str)], body: &str) -> Seen {
    let (method, path) = request.split_once(' ').unwrap();
    let mut built = Request::builder().method(method).uri(format!("https://localhost{path}"));
    for (name, value) in headers {
        built = built.header(*name, *value);
    }
    if !body.is_empty() {
        built = built.header("content-type", "application/json");
    }
    let request = built.body(Full::new(Bytes::copy_from_slice(body.as_bytes()))).unwrap();
    let sent = timeout(PATIENCE, client.send_request(request));
    let response = sent.await.unwrap().unwrap();
    let status = response.status().as_u16();
    let headers: Vec<_> = response
        .headers()
        .iter()
        .map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()))
        .collect();
    let body = timeout(PATIENCE, response.into_body().collect()).await.unwrap().unwrap();
    let body = String::from_utf8(body.to_bytes().to_vec()).unwrap();
    seen(status, headers.into_iter(), &body)
}

/// The same requests, one after the other, to two servers.
const SAMPLE: &[(&str, &str)] = &[
    ("GET /livez", ""),
    ("GET /readyz", ""),
    ("HEAD /readyz", ""),
    ("GET /version", ""),
    ("HEAD /version", ""),
    ("GET /v1/pools", ""),
    ("OPTIONS /v1/pools", ""),
    ("PUT /v1/pools/ci", r#"{"lease_ttl_seconds": 30}"#),
    ("GET /v1/pools/ci", ""),
    ("POST /v1/pools/ci/leases", ""),
    ("POST /v1/pools/ci/leases", r#"{"wait_seconds": 0.05}"#),
    ("POST /v1/pools/ci/keys", r#"{"count": 3}"#),
    ("POST /v1/pools/ci/keys", r#"{"count": 0}"#),
    ("POST /v1/pools/ci/keys", "{"),
    ("GET /v1/pools/ci/keys?limit=2", ""),
    ("POST /v1/pools/ci/leases", r#"{"holder": "a"}"#),
    ("POST /v1/pools/ci/leases", ""),
    ("GET /v1/pools/ci/keys?limit=x", ""),
    ("POST /v1/pools/ci/keepalive", r#"{"all": true}"#),
    ("POST /v1/pools/ci/leases/nope/release", ""),
    ("POST /v1/pools/none/leases", ""),
    ("DELETE /v1/pools/ci/keys/nope", ""),
    ("PATCH /v1/pools/ci", ""),
    ("GET /nope", ""),
    ("GET /%2e%2e/v1/pools", ""),
    ("GET /openapi.json", ""),
    ("GET /docs", ""),
    ("HEAD /docs", ""),
    ("GET /problems/no_key_available", ""),
    ("DELETE /v1/pools/ci", ""),
    ("DELETE /v1/pools/default", ""),
];

#[tokio::test]
async fn a_sample_of_requests_gets_the_same_answers_as_over_http_1_1() {
    let authority = Authority::new();
    let servers = [(); 2].map(|()| server(&authority, &[]));
    let mut one = TlsClient::connect(servers[0].addr(), authority.client(&[&TLS13], None)).unwrap();
    let mut two = connect(&authority, &servers[1]).await;
    let large = format!(r#"{{"values": ["{}"]}}"#, "x".repeat(9 << 20));
    for (request, body) in SAMPLE.iter().copied().chain([("POST /v1/pools/ci/keys", &*large)]) {
        let first = one.try_send(request, &[], body).unwrap();
        let expected = seen(first.status, first.headers.into_iter(), &first.body);
        let found = ask(&mut two, request, &[], body).await;
        assert_eq!(found, expected, "{request}");
    }
}

#[tokio::test]
async fn tokens_hosts_and_other_sites_are_checked_as_over_http_1_1() {
    let (authority, tokens) = (Authority::new(), Tokens::new());
    let token = tokens.add("ci", "ci", &["read"], &[]);
    let bearer = format!("Bearer {token}");
    let args = tokens.args();
    let args = args.iter().map(String::as_str).chain(["--allow-host", "keys.example"]);
    let server = server(&authority, &args.collect::<Vec<_>>());
    let client = &mut connect(&authority, &server).await;
    assert_eq!(ask(client, "GET /v1/pools", &[], "").await.status, 401);
    let auth = ("authorization", &*bearer);
    assert_eq!(ask(client, "GET /v1/pools", &[auth], "").await.status, 200);
    assert_eq!(ask(client, "GET /v1/pools/default", &[auth], "").await.status, 403);
    let site = ("sec-fetch-site", "cross-site");
    assert_eq!(ask(client, "DELETE /v1/pools/ci", &[auth, site], "").await.status, 403);
    let request = Request::get("https://evil.example/v1/pools").header("authorization", &bearer);
    let answer = client.send_request(request.body(Full::default()).unwrap()).await.unwrap();
    assert_eq!(answer.status(), StatusCode::MISDIRECTED_REQUEST);
    let long = "x".repeat(20 << 10);
    assert_eq!(ask(client, "GET /v1/pools", &[("x-long", &long)], "").await.status, 431);
}

async fn metric(client: &mut Client, name: &str) -> Option<u64> {
    let body = ask(client, "GET /metrics", &[], "").await.body;
    let line = body.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
    line.parse().ok()
}

async fn until(client: &mut Client, name: &str, value: u64) {
    let reached = async {
        while metric(client, name).await != Some(value) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, reached).await.unwrap_or_else(|_| panic!("never: {name} {value}"));
}

fn acquire(body: &str) -> Request<Full<Bytes>> {
    Request::post("https://localhost/v1/pools/default/leases")
        .header("content-type", "application/json")
        .body(Full::new(Bytes::copy_from_slice(body.as_bytes())))
        .unwrap()
}

/// A stream that its client resets ends its wait, and no key is lost; the others go on.
#[tokio::test]
async fn a_waiting_request_ends_with_its_stream_alone() {
    let authority = Authority::new();
    let server = server(&authority, &[]);
    let client = &mut connect(&authority, &server).await;
    let wait = r#"{"wait_seconds": 60}"#;
    let mut waiting = Vec::new();
    for count in 1..=3 {
        waiting.push(Box::pin(client.send_request(acquire(wait))));
        let sent = futures_poll(&mut waiting).await;
        assert!(!sent, "it waits");
        until(client, "keypeg_waiting", count).await;
    }
    drop(waiting.remove(1));
    until(client, "keypeg_waiting", 2).await;
    let keys = ask(client, "POST /v1/pools/default/keys", &[], r#"{"count": 2}"#).await;
    assert_eq!(keys.status, 201);
    for waiting in waiting {
        assert_eq!(timeout(PATIENCE, waiting).await.unwrap().unwrap().status(), 201);
    }
    let pool = ask(client, "GET /v1/pools/default", &[], "").await.body;
    assert!(pool.contains("\"leased\":2"), "{pool}");
}

/// Polls each of the requests once; returns whether any has its answer.
async fn futures_poll<F: Future + Unpin>(requests: &mut [F]) -> bool {
    std::future::poll_fn(|cx| {
        let is_ready = |request: &mut F| std::pin::Pin::new(request).poll(cx).is_ready();
        std::task::Poll::Ready(requests.iter_mut().any(is_ready))
    })
    .await
}

#[tokio::test]
async fn an_event_stream_and_requests_share_a_connection() {
    let authority = Authority::new();
    let server = server(&authority, &[]);
    let client = &mut connect(&authority, &server).await;
    let request = Request::get("https://localhost/v1/pools/default/events");
    let request = request.body(Full::default()).unwrap();
    let mut events = client.send_request(request).await.unwrap().into_body();
    let mut text = String::new();
    ask(client, "POST /v1/pools/default/keys", &[], r#"{"count": 1}"#).await;
    let read = async {
        while !text.contains("event: generated") {
            let frame = events.frame().await.unwrap().unwrap();
            text.push_str(std::str::from_utf8(frame.data_ref().unwrap()).unwrap());
        }
    };
    timeout(PATIENCE, read).await.expect("the event of new keys");
    until(client, "keypeg_followers", 1).await;
    drop(events);
    until(client, "keypeg_followers", 0).await;
}

/// Requests beyond the limit of one connection wait at the client: 64 are in progress.
#[tokio::test]
async fn a_connection_has_a_limit_of_requests_in_progress() {
    let authority = Authority::new();
    let server = server(&authority, &[]);
    let client = &mut connect(&authority, &server).await;
    // The client learns the limit of the server with its first answer.
    ask(client, "GET /readyz", &[], "").await;
    let wait = r#"{"wait_seconds": 60}"#;
    let mut waiting: Vec<_> =
        (0..80).map(|_| Box::pin(client.send_request(acquire(wait)))).collect();
    assert!(!futures_poll(&mut waiting).await);
    let observer = &mut connect(&authority, &server).await;
    until(observer, "keypeg_waiting", 64).await;
    ask(observer, "POST /v1/pools/default/keys", &[], r#"{"count": 80}"#).await;
    for waiting in waiting {
        assert_eq!(timeout(PATIENCE, waiting).await.unwrap().unwrap().status(), 201);
    }
}

/// CVE-2023-44487: a client that resets each request at once makes the server work without a bound.
#[tokio::test]
async fn a_client_that_cancels_nearly_all_its_requests_is_disconnected() {
    let authority = Authority::new();
    let server = server(&authority, &[]);
    let client = &mut connect(&authority, &server).await;
    let wait = r#"{"wait_seconds": 60}"#;
    let mut answered = 0;
    let flood = async {
        for _ in 0..1_000 {
            if client.ready().await.is_err() {
                return;
            }
            let mut request = Box::pin(client.send_request(acquire(wait)));
            if futures_poll(std::slice::from_mut(&mut request)).await {
                answered += 1;
            }
            tokio::task::yield_now().await;
        }
        let closed = async {
            while client.ready().await.is_ok() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        closed.await;
    };
    timeout(PATIENCE, flood).await.expect("the connection ends");
    let observer = &mut connect(&authority, &server).await;
    until(observer, "keypeg_waiting", 0).await;
    until(observer, "keypeg_http_connections", 1).await;
    // A client that cancels some of its requests keeps its connection.
    for _ in 0..150 {
        let mut request = Box::pin(observer.send_request(acquire(wait)));
        futures_poll(std::slice::from_mut(&mut request)).await;
        drop(request);
        assert_eq!(ask(observer, "GET /readyz", &[], "").await.status, 200);
    }
}

/// PING, SETTINGS and others ask for nothing and take time.
#[test]
fn a_flood_of_frames_without_requests_ends_the_connection() {
    let authority = Authority::new();
    let server = server(&authority, &[]);
    let ping = b"\0\0\x08\x06\0\0\0\0\0pingpong".to_vec();
    let settings = b"\0\0\0\x04\0\0\0\0\0".to_vec();
    let priority = b"\0\0\x05\x02\0\0\0\0\x01\0\0\0\x03\x01".to_vec();
    for frame in [ping, settings, priority] {
        let mut config = authority.client(&[&TLS13], None);
        config.alpn_protocols = vec![b"h2".to_vec()];
        let mut client = TlsClient::connect(server.addr(), config).unwrap();
        let stream = client.stream.get_mut();
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
        stream.write_all(b"\0\0\0\x04\0\0\0\0\0").unwrap();
        // Ends with an error, or when the server has closed the connection.
        for _ in 0..100 {
            if stream.write_all(&frame.repeat(100)).is_err() || stream.flush().is_err() {
                break;
            }
        }
        let _ = stream.read_to_end(&mut Vec::new());
    }
    eventually("all connections have ended", || {
        let mut client =
            TlsClient::connect(server.addr(), authority.client(&[&TLS13], None)).unwrap();
        client.ask("GET /metrics").body.contains("\nkeypeg_http_connections 1\n").then_some(())
    });
}

/// A client that reads the connection but gives its responses no window would keep them.
#[tokio::test]
async fn a_response_that_is_not_accepted_ends_the_connection() {
    let authority = Authority::new();
    let server = server(&authority, &["--write-timeout", "300ms"]);
    let observer = &mut connect(&authority, &server).await;
    ask(observer, "POST /v1/pools/default/keys", &[], r#"{"count": 10000}"#).await;
    let mut stuck = connect_with(&authority, &server, |http| {
        http.initial_stream_window_size(1_000);
    })
    .await;
    let list = Request::get("https://localhost/v1/pools/default/keys?limit=1000");
    let response = stuck.send_request(list.body(Full::default()).unwrap()).await.unwrap();
    assert_eq!(response.status(), 200);
    // The body is not read, so its window stays closed.
    until(observer, "keypeg_http_connections", 1).await;
    assert!(timeout(PATIENCE, response.into_body().collect()).await.unwrap().is_err());
}

#[tokio::test]
async fn an_idle_connection_ends_and_one_that_waits_does_not() {
    let authority = Authority::new();
    let server = server(&authority, &["--idle-timeout", "300ms", "--head-timeout", "300ms"]);
    let closed = |mut client: Client| async move {
        let closed = async {
            while client.ready().await.is_ok() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(PATIENCE, closed).await.expect("the connection ends");
    };
    closed(connect(&authority, &server).await).await;
    let mut client = connect(&authority, &server).await;
    let answer = client.send_request(acquire(r#"{"wait_seconds": 1}"#)).await.unwrap();
    assert_eq!(answer.status(), 404, "it waited longer than a connection may be idle");
    assert_eq!(ask(&mut client, "GET /readyz", &[], "").await.status, 200);
    closed(client).await;
}

#[tokio::test]
async fn a_stop_answers_the_requests_in_progress() {
    let authority = Authority::new();
    let mut server = server(&authority, &[]);
    let client = &mut connect(&authority, &server).await;
    let idle = connect(&authority, &server).await;
    let mut waiting = Box::pin(client.send_request(acquire(r#"{"wait_seconds": 60}"#)));
    assert!(!futures_poll(std::slice::from_mut(&mut waiting)).await);
    until(client, "keypeg_waiting", 1).await;
    let stopping = tokio::task::spawn_blocking(move || server.terminate().code());
    assert_eq!(timeout(PATIENCE, waiting).await.unwrap().unwrap().status(), 503);
    assert_eq!(stopping.await.unwrap(), Some(0));
    drop(idle);
}

/// A sequence of answers of some megabytes goes through the windows of the client.
#[tokio::test]
async fn large_answers_and_bodies_pass() {
    let authority = Authority::new();
    let server = server(&authority, &[]);
    let client = &mut connect(&authority, &server).await;
    let values: Vec<_> = (0..5_000).map(|index| format!("value-{index:0>200}")).collect();
    let body = json!({ "values": values }).to_string();
    assert_eq!(ask(client, "POST /v1/pools/default/keys", &[], &body).await.status, 201);
    for _ in 0..5 {
        let page = ask(client, "GET /v1/pools/default/keys?limit=1000", &[], "").await;
        let page: Value = serde_json::from_str(&page.body).unwrap();
        assert_eq!(page["keys"].as_array().unwrap().len(), 1_000);
    }
}
