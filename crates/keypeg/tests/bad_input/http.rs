//! Raw bytes, requests and fields, sent to a server that has keys, leases and pools to lose.

use super::{Log, Piece, cases, each, long_values, read, unhex};
use crate::support::{Answer, Client, Server, TempDir, keypeg, now};
use serde::Deserialize;
use serde_json::{Value, json};
use std::cell::RefCell;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

/// A server with several pools, keys in several states and a lease.
struct Fixture {
    server: Server,
    log: Log,
    names: Vec<(&'static str, String)>,
    before: RefCell<Value>,
    _dir: TempDir,
}

impl Fixture {
    fn new() -> Self {
        let (dir, log) = (TempDir::new(), Log::new());
        let mut command = keypeg(&["--lease-ttl", "1h", "--keepalive-ttl", "1h", "--data"]);
        command.arg(dir.path().join("data")).env("KEYPEG_LOG", "debug");
        let server = Server::logged(&mut command, log.path());
        let client = &mut server.client();
        let lend = |client: &mut Client, pool: &str| {
            client.ask(&format!("POST /v1/pools/{pool}/keys"));
            client.ask(&format!("POST /v1/pools/{pool}/leases")).is(201, &json!({}))
        };
        for (pool, policy) in [("other", json!({})), ("small", json!({ "max_keys": 2 }))] {
            client.send(&format!("PUT /v1/pools/{pool}"), &policy).is(201, &json!({}));
        }
        client.send("PUT /v1/pools/one", &json!({ "lease_ttl_seconds": 3600 }));
        lend(client, "one");
        let (held, ended) = (lend(client, "default"), lend(client, "default"));
        let text = |grant: &Value, name: &str| grant[name].as_str().unwrap().to_owned();
        let release = format!("POST /v1/pools/default/leases/{}/release", text(&ended, "id"));
        client.ask(&release).is(204, &Value::Null);
        let two =
            client.send("POST /v1/pools/default/keys", &json!({ "values": ["retired", "x"] }));
        let gone = text(&two.json()["keys"][0], "id");
        client.ask(&format!("DELETE /v1/pools/default/keys/{gone}")).is(204, &Value::Null);
        let others = client.send("POST /v1/pools/other/keys", &json!({ "count": 2 })).json();
        let page = client.ask("GET /v1/pools/other/keys?limit=1").json();
        let mut names = long_values();
        names.extend([
            ("lease", text(&held, "id")),
            ("key", text(&held, "key_id")),
            ("value", text(&held, "key")),
            ("ended", text(&ended, "id")),
            ("gone", gone),
            ("other", text(&others["keys"][0], "id")),
            ("cursor", text(&page, "next_cursor")),
        ]);
        let fixture = Self { server, log, names, before: RefCell::default(), _dir: dir };
        fixture.before.replace(fixture.state());
        fixture
    }

    /// Returns all pools with policies and counts, without the instants that keep-alives may move.
    fn state(&self) -> Value {
        let mut pools = self.server.client().ask("GET /v1/pools").is(200, &json!({}));
        for pool in pools["pools"].as_array_mut().unwrap() {
            for instant in ["next_return_at", "next_purge_at"] {
                pool.as_object_mut().unwrap().remove(instant);
            }
        }
        pools
    }

    #[track_caller]
    fn assert_unchanged(&self, after: &str) {
        let now = self.state();
        let before = self.before.replace(now.clone());
        assert_eq!(now, before, "changed by {after}");
    }

    fn finish(mut self) {
        assert_eq!(self.server.ended(), None);
        self.assert_unchanged("all cases");
        let value = &self.names.iter().find(|(name, _)| *name == "value").unwrap().1;
        self.log.assert_clean(&[value]);
        assert_eq!(self.server.terminate().code(), Some(0));
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Framing {
    case: Vec<Connection>,
    slow: Vec<Connection>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Connection {
    why: String,
    send: Vec<Piece>,
    #[serde(default)]
    disconnects: bool,
    #[serde(default)]
    answers: Vec<String>,
    #[serde(default = "yes")]
    ends: bool,
    /// The least number of seconds until the server closes it.
    #[serde(default)]
    after: u64,
    /// Text that is sent again and again, slowly.
    drip: Option<String>,
    /// Whether the client reads nothing until the server closes it.
    #[serde(default)]
    unread: bool,
}

fn yes() -> bool {
    true
}

/// Returns whether an answer matches a pattern such as `400|413 too_large`; a pattern without a
/// code matches any code.
fn matches(answer: &Answer, pattern: &str) -> bool {
    pattern.split('|').any(|allowed| {
        let (status, code) = allowed.split_once(' ').unwrap_or((allowed, ""));
        answer.status.to_string() == status
            && (code.is_empty() || answer.body.contains(&format!("\"code\":\"{code}\"")))
    })
}

fn check_answers(why: &str, expected: &[String], answers: &[Answer]) {
    let mut answers = answers.iter();
    for expected in expected {
        let (pattern, times) = expected.split_once('*').unwrap_or((expected, "1"));
        for _ in 0..times.parse().unwrap() {
            match answers.next() {
                Some(answer) => assert!(matches(answer, pattern), "{why}: {answer:?}"),
                None => assert!(pattern.split('|').any(str::is_empty), "{why}: no {pattern}"),
            }
        }
    }
    assert!(answers.next().is_none(), "{why}: more answers");
}

fn connect(server: &Server) -> TcpStream {
    let stream = TcpStream::connect(server.addr()).unwrap();
    stream.set_read_timeout(Some(Duration::from_mins(1))).unwrap();
    stream.set_write_timeout(Some(Duration::from_mins(1))).unwrap();
    stream
}

fn is_close(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe)
}

/// Reads until the server closes the connection, and parses the bytes as answers.
fn answers(stream: &mut TcpStream, why: &str) -> Vec<Answer> {
    let mut bytes = Vec::new();
    if let Err(error) = stream.read_to_end(&mut bytes) {
        assert!(is_close(&error), "{why}: {error}: {}", String::from_utf8_lossy(&bytes));
    }
    Answer::all(&bytes)
}

#[test]
fn malformed_requests_are_refused() {
    let fixture = Fixture::new();
    let Framing { case, .. } = read("framing.toml", &fixture.names);
    each(
        &case,
        |connection| connection.why.clone(),
        |connection| {
            let mut stream = connect(&fixture.server);
            let bytes: Vec<u8> = connection.send.iter().flat_map(Piece::bytes).collect();
            if let Err(error) = stream.write_all(&bytes) {
                assert!(connection.ends && is_close(&error), "{error}");
            }
            if connection.disconnects {
                let _ = stream.shutdown(Shutdown::Write);
            }
            let mut expected = connection.answers.clone();
            if !connection.ends {
                // The connection is still in step and still served.
                let last = b"GET /version HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
                stream.write_all(last).unwrap();
                expected.push("200".into());
            }
            check_answers(&connection.why, &expected, &answers(&mut stream, &connection.why));
            fixture.assert_unchanged(&connection.why);
        },
    );
    fixture.finish();
}

#[test]
fn slow_connections_are_closed() {
    let fixture = Fixture::new();
    let Framing { slow, .. } = read("framing.toml", &fixture.names);
    std::thread::scope(|scope| {
        for connection in &slow {
            let server = &fixture.server;
            scope.spawn(move || run_slowly(connection, server));
        }
    });
    fixture.finish();
}

/// Runs a connection until the server closes it, and checks that this was not too early.
fn run_slowly(connection: &Connection, server: &Server) {
    let start = now();
    let mut stream = connect(server);
    let bytes: Vec<u8> = connection.send.iter().flat_map(Piece::bytes).collect();
    if connection.unread {
        let error = stream.write_all(&bytes).expect_err("the server never closed it");
        assert!(is_close(&error), "{}: {error}", connection.why);
    } else {
        stream.write_all(&bytes).unwrap();
        let mut found = Vec::new();
        stream.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        loop {
            let mut some = [0; 4096];
            match stream.read(&mut some) {
                Ok(0) => break,
                Ok(len) => found.extend_from_slice(&some[..len]),
                Err(error) if is_close(&error) => break,
                Err(error) => {
                    // A stop of this process interrupts the read.
                    let is_none = [ErrorKind::WouldBlock, ErrorKind::Interrupted];
                    assert!(is_none.contains(&error.kind()), "{error}");
                }
            }
            if let Some(drip) = &connection.drip {
                let _ = stream.write_all(drip.as_bytes());
            }
            assert!(
                start.elapsed() < Duration::from_mins(2),
                "{}: the server never closed it",
                connection.why
            );
        }
        check_answers(&connection.why, &connection.answers, &Answer::all(&found));
    }
    let least = Duration::from_secs(connection.after);
    assert!(start.elapsed() >= least, "{}: after {:?}", connection.why, start.elapsed());
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RequestCase {
    #[serde(default)]
    why: String,
    request: String,
    #[serde(default)]
    headers: Vec<(String, String)>,
    #[serde(rename = "type")]
    content_type: Option<String>,
    #[serde(default)]
    body: String,
    body_hex: Option<String>,
    status: u16,
    code: Option<String>,
    has: Option<toml::Value>,
    #[serde(default)]
    headers_out: Vec<(String, String)>,
    #[serde(default)]
    headers_not: Vec<String>,
}

impl RequestCase {
    fn send(&self, client: &mut Client) -> Answer {
        let body =
            self.body_hex.as_ref().map_or_else(|| self.body.clone().into_bytes(), |hex| unhex(hex));
        let mut head = format!("{} HTTP/1.1\r\nhost: localhost\r\n", self.request);
        for (name, value) in &self.headers {
            head.extend([name, ": ", value, "\r\n"]);
        }
        if !body.is_empty() {
            let content_type = self.content_type.as_deref().unwrap_or("application/json");
            let length = body.len().to_string();
            head.extend(["content-type: ", content_type, "\r\ncontent-length: ", &length, "\r\n"]);
        }
        head.push_str("\r\n");
        client.raw(&[head.as_bytes(), &body].concat()).unwrap()
    }

    fn check(&self, answer: Answer) {
        for (name, value) in &self.headers_out {
            assert_eq!(answer.header(name), Some(value.as_str()), "{answer:?}");
        }
        for name in &self.headers_not {
            assert_eq!(answer.header(name), None, "{answer:?}");
        }
        assert!(answer.header("x-request-id").is_some(), "{answer:?}");
        let body = match &self.code {
            Some(code) => answer.problem(self.status, code),
            None if self.has.is_some() => answer.is(self.status, &json!({})),
            None => return assert_eq!(answer.status, self.status, "{answer:?}"),
        };
        if let Some(has) = &self.has {
            let has = serde_json::to_value(has).unwrap();
            for (name, value) in has.as_object().unwrap() {
                assert_eq!(&body[name], value, "{body}");
            }
        }
        let reads = ["GET ", "HEAD ", "OPTIONS "].iter().any(|read| self.request.starts_with(read));
        if !reads && self.code.is_some() {
            assert_eq!(body["outcome"], "not_applied", "{body}");
        }
    }
}

#[test]
fn invalid_requests_are_refused() {
    let fixture = Fixture::new();
    let client = &mut fixture.server.client();
    each(
        &cases::<RequestCase>("api.toml", &fixture.names),
        |case| format!("{:.200} {}", case.request, case.why),
        |case| {
            let answer = case.send(client);
            case.check(answer);
            fixture.assert_unchanged(&case.request);
        },
    );
    fixture.finish();
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Field {
    request: String,
    #[serde(rename = "field")]
    name: String,
    allowed: String,
    #[serde(default)]
    with: String,
    bad: Vec<String>,
    #[serde(default)]
    good: Vec<String>,
    ok: Option<u16>,
}

impl Field {
    fn body(&self, value: &str) -> String {
        let comma = if self.with.is_empty() { "" } else { "," };
        format!("{{\"{}\":{value}{comma}{}}}", self.name, self.with)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields {
    field: Vec<Field>,
}

#[test]
fn invalid_field_values_are_refused() {
    let fixture = Fixture::new();
    let client = &mut fixture.server.client();
    let Fields { field: fields } = read("fields.toml", &fixture.names);
    let json_type = [("content-type", "application/json")];
    let cases: Vec<_> = fields
        .iter()
        .flat_map(|field| field.bad.iter().map(move |value| (field, field.body(value))))
        .collect();
    each(
        &cases,
        |(field, body)| format!("{} {body}", field.request),
        |(field, body)| {
            let answer = client.try_send(&field.request, &json_type, body).unwrap();
            let problem = answer.problem(422, "invalid");
            assert_eq!(problem["field"], *field.name, "{problem}");
            assert_eq!(problem["allowed"], *field.allowed, "{problem}");
            assert_eq!(problem["outcome"], "not_applied", "{problem}");
            fixture.assert_unchanged(body);
        },
    );
    fixture.finish();
}

/// Tests the valid side of each limit: without it, a field that refuses every value would pass.
#[test]
fn field_values_at_the_limits_are_accepted() {
    let fixture = Fixture::new();
    let client = &mut fixture.server.client();
    let Fields { field: fields } = read("fields.toml", &long_values());
    let json_type = [("content-type", "application/json")];
    let cases: Vec<_> = fields
        .iter()
        .flat_map(|field| field.good.iter().map(move |value| (field, value)))
        .zip(0..)
        .collect();
    each(
        &cases,
        |((field, value), _)| format!("{} {}: {value:.200}", field.request, field.name),
        |((field, value), number)| {
            let pool = format!("/v1/pools/good-{number}");
            let policy = json!({ "lease_ttl_seconds": 3600, "max_hold_seconds": 604_800 });
            client.send(&format!("PUT {pool}"), &policy).is(201, &json!({}));
            client.ask(&format!("POST {pool}/keys")).is(201, &json!({}));
            let mut request = field.request.replace("/v1/pools/default", &pool);
            let mut body = field.body(value);
            if request.contains("{lease}") || request.contains("{key}") || body.contains("{key}") {
                let grant = client.ask(&format!("POST {pool}/leases")).json();
                request = request.replace("{lease}", grant["id"].as_str().unwrap());
                request = request.replace("{key}", grant["key_id"].as_str().unwrap());
                body = body.replace("{key}", grant["key_id"].as_str().unwrap());
            }
            let answer = client.try_send(&request, &json_type, &body).unwrap();
            assert_eq!(Some(answer.status), field.ok, "{answer:?}");
            client.ask(&format!("DELETE {pool}")).is(204, &Value::Null);
        },
    );
    fixture.finish();
}
