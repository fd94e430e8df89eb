//! The fast path answers exactly as hyper does: a client cannot see which of the two served it.
//!
//! Each test sends the same bytes to servers in the same state, on connections that the fast path
//! or hyper serves, and compares the answers: status line, headers in their order, body, and
//! whether the connection stays open. Hyper keeps a connection once it has answered a request on
//! it; the fast path keeps one that begins with one of its calls, and it leaves every request with
//! a `TE` header to hyper.

mod arrival;
mod calls;
mod ends;
mod gateways;
mod half_closed;
mod mutants;
mod targets;

use crate::support::{Client, Server};
use serde_json::json;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// A request that shows that a connection is still open, and then closes it.
const CLOSING_REQUEST: &str = "GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
const PATIENCE: Duration = Duration::from_mins(1);

/// The code that serves a request, and how a test selects it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Via {
    /// The fast path, if it takes the request: the first one of a connection.
    FastPath,
    /// The fast path: behind a call that it has answered.
    FastPathSecond,
    /// Hyper: behind a request that it has answered.
    HyperSecond,
    /// Hyper: by a header that the fast path does not take.
    HyperByHeader,
}

impl Via {
    const ALL: [Self; 4] =
        [Self::FastPath, Self::FastPathSecond, Self::HyperSecond, Self::HyperByHeader];

    /// Returns the request that is sent, and answered, before the tested one.
    fn first_request(self) -> &'static str {
        match self {
            Self::FastPath | Self::HyperByHeader => "",
            Self::FastPathSecond => {
                "POST /v1/pools/default/leases HTTP/1.1\r\nHost: localhost\r\n\r\n"
            }
            Self::HyperSecond => "GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n",
        }
    }

    /// Returns the bytes to send for a request, with the `TE` header for [`Via::HyperByHeader`].
    fn bytes(self, request: &[u8]) -> Vec<u8> {
        // A request may follow empty lines.
        let start = request.iter().position(|byte| !byte.is_ascii_whitespace()).unwrap_or(0);
        let end = request[start..].iter().position(|&byte| byte == b'\n');
        let end = end.map_or(0, |end| start + end + 1);
        let (line, rest) = request.split_at(end);
        let header: &[u8] = if self == Self::HyperByHeader { b"TE: trailers\r\n" } else { b"" };
        [line, header, rest].concat()
    }
}

/// An answer without the values that differ between any two requests.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Answer {
    status: String,
    headers: Vec<(String, String)>,
    body: String,
}

/// JSON members whose values differ between any two requests.
const VARYING_MEMBERS: [&str; 16] = [
    "id",
    "key",
    "key_id",
    "key_ids",
    "fencing_token",
    "granted_at",
    "expires_at",
    "expires_in_seconds",
    "key_expires_at",
    "request_id",
    "at",
    "first_at",
    "last_at",
    "created_at",
    "next_return_at",
    "next_purge_at",
];

/// Replaces the values of [`VARYING_MEMBERS`] by a star; null stays null.
fn masked(json: &str) -> String {
    let mut masked = json.to_owned();
    for name in VARYING_MEMBERS {
        let prefix = format!("\"{name}\":");
        let mut from = 0;
        while let Some(index) = masked[from..].find(&prefix) {
            let value = from + index + prefix.len();
            let rest = &masked[value..];
            let len = match rest.as_bytes().first() {
                Some(b'"') => 2 + rest[1..].find('"').unwrap(),
                Some(b'[') => 1 + rest.find(']').unwrap(),
                _ => rest.find([',', '}']).unwrap(),
            };
            if &rest[..len] != "null" {
                masked.replace_range(value..value + len, "*");
            }
            from = value;
        }
    }
    masked
}

/// One connection, with answers read as they arrive.
struct Connection(BufReader<TcpStream>);

impl Connection {
    fn new(addr: SocketAddr) -> Self {
        let stream = TcpStream::connect(addr).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self(BufReader::new(stream))
    }

    /// Opens a connection on which requests are served this way.
    fn on(addr: SocketAddr, via: Via) -> Self {
        let mut connection = Self::new(addr);
        if !via.first_request().is_empty() {
            connection.send(via.first_request().as_bytes());
            connection.read_answer().unwrap().unwrap();
        }
        connection
    }

    /// Sends bytes, as far as the server accepts them.
    fn send(&mut self, bytes: &[u8]) {
        let _ = self.0.get_mut().write_all(bytes);
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = Vec::new();
        self.0.read_until(b'\n', &mut line)?;
        Ok(String::from_utf8(line).unwrap())
    }

    /// Reads one answer; returns `None` at the end of the connection.
    fn read_answer(&mut self) -> io::Result<Option<Answer>> {
        let status = self.line()?;
        if status.is_empty() {
            return Ok(None);
        }
        let (mut headers, mut length) = (Vec::new(), 0);
        loop {
            let line = self.line()?;
            let Some((name, value)) = line.trim_end().split_once(": ") else { break };
            let value = match name {
                "content-length" => {
                    length = value.parse().unwrap();
                    "*"
                }
                "date"
                | "x-request-id"
                | "keypeg-key-id"
                | "keypeg-fencing-token"
                | "keypeg-expires-at" => "*",
                "retry-after" if value.parse::<u64>().is_ok() => "seconds",
                compared => {
                    headers.push((compared.to_owned(), value.to_owned()));
                    continue;
                }
            };
            headers.push((name.into(), value.into()));
        }
        // An answer to HEAD has a length but no body.
        let length = if status.contains(" 405 ") && self.0.buffer().first() != Some(&b'{') {
            0
        } else {
            length
        };
        let mut body = vec![0; length];
        self.0.read_exact(&mut body)?;
        let body = masked(&String::from_utf8(body).unwrap());
        Ok(Some(Answer { status, headers, body }))
    }

    /// Reads all answers until the connection ends, also with an error.
    fn rest(&mut self) -> Vec<Answer> {
        let mut all = Vec::new();
        while let Ok(Some(answer)) = self.read_answer() {
            all.push(answer);
        }
        all
    }
}

/// One server for each [`Via`].
struct Servers {
    servers: Vec<(Via, Server)>,
}

impl Servers {
    /// Starts the servers without keys.
    fn start(args: &[&str]) -> Self {
        let servers = Via::ALL.map(|via| (via, Server::in_memory(args)));
        Self { servers: servers.into() }
    }

    /// Starts the servers with 1000 keys each in the default pool.
    fn new(args: &[&str]) -> Self {
        let all = Self::start(args);
        for (_, server) in &all.servers {
            server.client().send("POST /v1/pools/default/keys", &json!({ "count": 1000 }));
        }
        all
    }

    /// Runs the same steps on every server, asserts that the results are equal and returns the
    /// result.
    #[track_caller]
    fn assert_same<T: PartialEq + std::fmt::Debug>(
        &self,
        what: &str,
        mut run: impl FnMut(Via, &Server) -> T,
    ) -> T {
        let mut all = self.servers.iter().map(|(via, server)| (via, run(*via, server)));
        let (_, first) = all.next().unwrap();
        for (via, other) in all {
            assert_eq!(first, other, "{what}: {:?} and {via:?}", Via::FastPath);
        }
        first
    }
}

/// The names in a pool that was created for one case.
#[derive(Debug)]
struct PoolNames {
    pool: String,
    key: String,
    lease: String,
    ended: String,
}

impl PoolNames {
    /// Creates a pool with an available key, a leased one, and a lease that has ended.
    fn create(client: &mut Client, pool: &str, policy: &serde_json::Value) -> Self {
        let path = format!("/v1/pools/{pool}");
        client.send(&format!("PUT {path}"), policy).is(201, &json!({}));
        let send = |client: &mut Client, request: String| {
            client.try_send(&request, &[("te", "trailers")], "").unwrap()
        };
        send(client, format!("POST {path}/keys"));
        send(client, format!("POST {path}/keys"));
        let grants = [(); 2].map(|()| send(client, format!("POST {path}/leases")));
        let [lease, ended] = [0, 1].map(|index: usize| grants[index].text("id"));
        let key = grants[0].text("key_id");
        assert_eq!(send(client, format!("POST {path}/leases/{ended}/release")).status, 204);
        Self { pool: pool.into(), key, lease, ended }
    }

    /// Replaces the placeholders by the names.
    fn fill(&self, text: &[u8]) -> Vec<u8> {
        let mut text = text.to_vec();
        for (name, value) in [
            ("<pool>", &self.pool),
            ("<key>", &self.key),
            ("<lease>", &self.lease),
            ("<ended>", &self.ended),
        ] {
            while let Some(index) = text.windows(name.len()).position(|it| it == name.as_bytes()) {
                text.splice(index..index + name.len(), value.bytes());
            }
        }
        text
    }
}

/// Returns a request with this line, a Host header and these headers; a body is JSON, with its
/// length.
fn request(line: &str, headers: &str, body: &str) -> Vec<u8> {
    let mut text = format!("{line} HTTP/1.1\r\nHost: localhost\r\n{headers}");
    if !body.is_empty() {
        let length = body.len();
        let length = length.to_string();
        text.push_str("Content-Type: application/json\r\nContent-Length: ");
        text.extend([&length, "\r\n"]);
    }
    format!("{text}\r\n{body}").into_bytes()
}
