//! The calls that are answered ahead of hyper: nobody can tell which way a request went.
//!
//! The same bytes are sent on connections that go each way, to servers in the same state, and what
//! comes back is compared: status line, headers in their order, body, and whether the connection
//! lives on. A connection on which hyper answered one request is hyper's for ever; one that begins
//! with a hot call is not; and a `TE` is left to hyper.

mod arrival;
mod calls;
mod ends;
mod mutants;

use crate::support::{Answer, Client, Server};
use serde_json::json;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// Ends a connection that can still be talked on, and shows that it can.
const LAST: &str = "GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
const PATIENCE: Duration = Duration::from_mins(1);

/// How a request is made to go where it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// As it is, on a new connection: ahead of hyper, where it may.
    Quick,
    /// Behind a hot call that was answered.
    Behind,
    /// Behind a request of hyper's.
    Long,
    /// With a header that is hyper's alone.
    Marked,
}

impl Way {
    const ALL: [Self; 4] = [Self::Quick, Self::Behind, Self::Long, Self::Marked];

    /// What is sent, and answered, before the request.
    fn before(self) -> &'static str {
        match self {
            Self::Quick | Self::Marked => "",
            Self::Behind => "POST /v1/pools/default/leases HTTP/1.1\r\nHost: localhost\r\n\r\n",
            Self::Long => "GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n",
        }
    }

    fn bytes(self, request: &[u8]) -> Vec<u8> {
        // Line ends may stand before a request.
        let begun = request.iter().position(|byte| !byte.is_ascii_whitespace()).unwrap_or(0);
        let end = request[begun..].iter().position(|&byte| byte == b'\n');
        let end = end.map_or(0, |end| begun + end + 1);
        let (line, rest) = request.split_at(end);
        let mark: &[u8] = if self == Self::Marked { b"TE: trailers\r\n" } else { b"" };
        [line, mark, rest].concat()
    }
}

/// An answer but for what is never the same twice.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Told {
    status: String,
    headers: Vec<(String, String)>,
    body: String,
}

/// Members whose values are their request's own.
const OWN: [&str; 14] = [
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
    "created_at",
    "next_return_at",
    "next_purge_at",
];

/// Puts a star where a value is its request's own; null stays null.
fn masked(json: &str) -> String {
    let mut masked = json.to_owned();
    for name in OWN {
        let start = format!("\"{name}\":");
        let mut from = 0;
        while let Some(at) = masked[from..].find(&start) {
            let value = from + at + start.len();
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

/// One connection, and what comes on it as it comes.
struct Wire(BufReader<TcpStream>);

impl Wire {
    fn new(addr: SocketAddr) -> Self {
        let stream = TcpStream::connect(addr).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self(BufReader::new(stream))
    }

    /// Opens one on which requests go this way.
    fn on(addr: SocketAddr, way: Way) -> Self {
        let mut wire = Self::new(addr);
        if !way.before().is_empty() {
            wire.send(way.before().as_bytes());
            wire.told().unwrap().unwrap();
        }
        wire
    }

    /// Sends bytes, as far as the server takes them.
    fn send(&mut self, bytes: &[u8]) {
        let _ = self.0.get_mut().write_all(bytes);
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = Vec::new();
        self.0.read_until(b'\n', &mut line)?;
        Ok(String::from_utf8(line).unwrap())
    }

    /// Reads one answer; `None` where the connection ended.
    fn told(&mut self) -> io::Result<Option<Told>> {
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
                "date" | "x-request-id" => "*",
                "retry-after" if value.parse::<u64>().is_ok() => "seconds",
                value_of_its_own => {
                    headers.push((value_of_its_own.to_owned(), value.to_owned()));
                    continue;
                }
            };
            headers.push((name.into(), value.into()));
        }
        // What answers HEAD tells of a length and has none.
        let length = if status.contains(" 405 ") && self.0.buffer().first() != Some(&b'{') {
            0
        } else {
            length
        };
        let mut body = vec![0; length];
        self.0.read_exact(&mut body)?;
        let body = masked(&String::from_utf8(body).unwrap());
        Ok(Some(Told { status, headers, body }))
    }

    /// Reads all answers until the connection ends, however it does.
    fn rest(&mut self) -> Vec<Told> {
        let mut all = Vec::new();
        while let Ok(Some(told)) = self.told() {
            all.push(told);
        }
        all
    }
}

/// A server for each way.
struct Sides {
    sides: Vec<(Way, Server)>,
}

impl Sides {
    fn start(args: &[&str]) -> Self {
        let sides = Way::ALL.map(|way| (way, Server::in_memory(args)));
        Self { sides: sides.into() }
    }

    fn new(args: &[&str]) -> Self {
        let sides = Self::start(args);
        for (_, server) in &sides.sides {
            server.client().send("POST /v1/pools/default/keys", &json!({ "count": 1000 }));
        }
        sides
    }

    /// Does the same everywhere, and takes what came of it for the same.
    #[track_caller]
    fn same<T: PartialEq + std::fmt::Debug>(
        &self,
        what: &str,
        mut play: impl FnMut(Way, &Server) -> T,
    ) -> T {
        let mut all = self.sides.iter().map(|(way, server)| (way, play(*way, server)));
        let (_, first) = all.next().unwrap();
        for (way, other) in all {
            assert_eq!(first, other, "{what}: quick and {way:?}");
        }
        first
    }
}

/// What a pool that was made for one case holds.
#[derive(Debug)]
struct Names {
    pool: String,
    key: String,
    lease: String,
    ended: String,
}

impl Names {
    /// Makes a pool with a free key, a leased one, and a lease that has ended.
    fn made(client: &mut Client, pool: &str, policy: &serde_json::Value) -> Self {
        let path = format!("/v1/pools/{pool}");
        client.send(&format!("PUT {path}"), policy).is(201, &json!({}));
        let ask = |client: &mut Client, request: String| -> Answer {
            client.try_send(&request, &[("te", "trailers")], "").unwrap()
        };
        ask(client, format!("POST {path}/keys"));
        ask(client, format!("POST {path}/keys"));
        let grants = [(); 2].map(|()| ask(client, format!("POST {path}/leases")));
        let [lease, ended] = [0, 1].map(|at: usize| grants[at].text("id"));
        let key = grants[0].text("key_id");
        assert_eq!(ask(client, format!("POST {path}/leases/{ended}/release")).status, 204);
        Self { pool: pool.into(), key, lease, ended }
    }

    /// Puts names in their places.
    fn fill(&self, text: &[u8]) -> Vec<u8> {
        let mut text = text.to_vec();
        for (name, value) in [
            ("<pool>", &self.pool),
            ("<key>", &self.key),
            ("<lease>", &self.lease),
            ("<ended>", &self.ended),
        ] {
            while let Some(at) = text.windows(name.len()).position(|it| it == name.as_bytes()) {
                text.splice(at..at + name.len(), value.bytes());
            }
        }
        text
    }
}

/// A request of this line, with a Host and these headers; a body is JSON and has its length.
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
