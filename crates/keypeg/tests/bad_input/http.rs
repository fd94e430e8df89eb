//! Bytes, requests and fields, against a server that has keys, leases and pools to lose.

use super::{Log, Piece, cases, each, long_names, read, unhex};
use crate::support::{Answer, Client, Server, TempDir, keypeg, now};
use serde::Deserialize;
use serde_json::{Value, json};
use std::cell::RefCell;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

/// A server with something of everything.
struct Scene {
    server: Server,
    log: Log,
    names: Vec<(&'static str, String)>,
    before: RefCell<Value>,
    _dir: TempDir,
}

impl Scene {
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
        let mut names = long_names();
        names.extend([
            ("lease", text(&held, "id")),
            ("key", text(&held, "key_id")),
            ("value", text(&held, "key")),
            ("ended", text(&ended, "id")),
            ("gone", gone),
            ("other", text(&others["keys"][0], "id")),
            ("cursor", text(&page, "next_cursor")),
        ]);
        let scene = Self { server, log, names, before: RefCell::default(), _dir: dir };
        scene.before.replace(scene.state());
        scene
    }

    /// All pools, their policies and counts, but for instants, which keep-alives may move.
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
    fn is_unchanged(&self, after: &str) {
        let now = self.state();
        let before = self.before.replace(now.clone());
        assert_eq!(now, before, "changed by {after}");
    }

    fn ends_clean(mut self) {
        assert_eq!(self.server.ended(), None);
        self.is_unchanged("all of it");
        let value = &self.names.iter().find(|(name, _)| *name == "value").unwrap().1;
        self.log.is_clean(&[value]);
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
    hangs_up: bool,
    #[serde(default)]
    answers: Vec<String>,
    #[serde(default = "yes")]
    ends: bool,
    /// The least number of seconds until the server ends it.
    #[serde(default)]
    after: u64,
    /// What goes on being sent, a bit at a time.
    drip: Option<String>,
    /// Nothing is read until the server ends it.
    #[serde(default)]
    unread: bool,
}

fn yes() -> bool {
    true
}

/// Whether one answer is what a pattern allows: `400|413 too_large`, the code only where one is
/// named.
fn fits(answer: &Answer, pattern: &str) -> bool {
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
                Some(answer) => assert!(fits(answer, pattern), "{why}: {answer:?}"),
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

/// Reads until the server closes, and takes the bytes for answers.
fn answers(stream: &mut TcpStream, why: &str) -> Vec<Answer> {
    let mut bytes = Vec::new();
    if let Err(error) = stream.read_to_end(&mut bytes) {
        assert!(is_close(&error), "{why}: {error}: {}", String::from_utf8_lossy(&bytes));
    }
    Answer::all(&bytes)
}

#[test]
fn bytes_that_are_no_requests() {
    let scene = Scene::new();
    let Framing { case, .. } = read("framing.toml", &scene.names);
    each(
        &case,
        |connection| connection.why.clone(),
        |connection| {
            let mut stream = connect(&scene.server);
            let bytes: Vec<u8> = connection.send.iter().flat_map(Piece::bytes).collect();
            if let Err(error) = stream.write_all(&bytes) {
                assert!(connection.ends && is_close(&error), "{error}");
            }
            if connection.hangs_up {
                let _ = stream.shutdown(Shutdown::Write);
            }
            let mut expected = connection.answers.clone();
            if !connection.ends {
                // Still in step, and still served.
                let last = b"GET /version HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
                stream.write_all(last).unwrap();
                expected.push("200".into());
            }
            check_answers(&connection.why, &expected, &answers(&mut stream, &connection.why));
            scene.is_unchanged(&connection.why);
        },
    );
    scene.ends_clean();
}

#[test]
fn bytes_that_take_their_time() {
    let scene = Scene::new();
    let Framing { slow, .. } = read("framing.toml", &scene.names);
    std::thread::scope(|scope| {
        for connection in &slow {
            let server = &scene.server;
            scope.spawn(move || play_slowly(connection, server));
        }
    });
    scene.ends_clean();
}

/// Plays one until the server ends it, which is not before its time.
fn play_slowly(connection: &Connection, server: &Server) {
    let begun = now();
    let mut stream = connect(server);
    let bytes: Vec<u8> = connection.send.iter().flat_map(Piece::bytes).collect();
    if connection.unread {
        let error = stream.write_all(&bytes).expect_err("never read, and never ended");
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
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}"),
            }
            if let Some(drip) = &connection.drip {
                let _ = stream.write_all(drip.as_bytes());
            }
            assert!(begun.elapsed() < Duration::from_mins(2), "{}: never ended", connection.why);
        }
        check_answers(&connection.why, &connection.answers, &Answer::all(&found));
    }
    let least = Duration::from_secs(connection.after);
    assert!(begun.elapsed() >= least, "{}: after {:?}", connection.why, begun.elapsed());
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
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

impl Asked {
    fn ask(&self, client: &mut Client) -> Answer {
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
fn requests_that_mean_nothing_here() {
    let scene = Scene::new();
    let client = &mut scene.server.client();
    each(
        &cases::<Asked>("api.toml", &scene.names),
        |asked| format!("{:.200} {}", asked.request, asked.why),
        |asked| {
            let answer = asked.ask(client);
            asked.check(answer);
            scene.is_unchanged(&asked.request);
        },
    );
    scene.ends_clean();
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
fn values_that_fields_may_not_have() {
    let scene = Scene::new();
    let client = &mut scene.server.client();
    let Fields { field: fields } = read("fields.toml", &scene.names);
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
            scene.is_unchanged(body);
        },
    );
    scene.ends_clean();
}

/// The other side of each bound: without it, a field that takes nothing at all would pass.
#[test]
fn values_at_the_bounds_of_fields() {
    let scene = Scene::new();
    let client = &mut scene.server.client();
    let Fields { field: fields } = read("fields.toml", &long_names());
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
            if request.contains("{lease}") || body.contains("{key}") {
                let grant = client.ask(&format!("POST {pool}/leases")).json();
                request = request.replace("{lease}", grant["id"].as_str().unwrap());
                body = body.replace("{key}", grant["key_id"].as_str().unwrap());
            }
            let answer = client.try_send(&request, &json_type, &body).unwrap();
            assert_eq!(Some(answer.status), field.ok, "{answer:?}");
            client.ask(&format!("DELETE {pool}")).is(204, &Value::Null);
        },
    );
    scene.ends_clean();
}
