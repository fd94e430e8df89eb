//! A small blocking HTTP/1.1 client with one keep-alive connection.
//!
//! It opens a new connection when the server has closed the last one. It follows no redirect and
//! sends no header of its own but Host and Content-Length, so that a test controls every byte.

use rustix::net::sockopt::set_socket_recv_buffer_size;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, connect, socket_with};
use serde_json::Value;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

/// The longest time to wait for an answer before the test fails.
const PATIENCE: Duration = Duration::from_mins(1);

/// One connection to a server.
pub(crate) struct Client {
    addr: SocketAddr,
    stream: Option<BufReader<TcpStream>>,
}

/// An answer: status, headers in the order received, and body.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: String,
}

impl Client {
    pub(crate) fn new(addr: SocketAddr) -> Self {
        Self { addr, stream: None }
    }

    /// Returns a client that connects from `source`. A later connection uses the default address.
    pub(crate) fn from(addr: SocketAddr, source: Ipv4Addr) -> Self {
        Self { addr, stream: Some(BufReader::new(socket_from(addr, source))) }
    }

    /// Sends `METHOD path` with an access token.
    pub(crate) fn with(&mut self, token: &str, request: &str) -> Answer {
        let bearer = format!("Bearer {token}");
        self.try_send(request, &[("authorization", &bearer)], "").unwrap()
    }

    /// Sends `METHOD path` with a JSON body, unless that is null.
    pub(crate) fn send(&mut self, request: &str, body: &Value) -> Answer {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        self.try_send(request, &[("content-type", "application/json")], &body).unwrap()
    }

    /// Sends `METHOD path` without a body.
    pub(crate) fn ask(&mut self, request: &str) -> Answer {
        self.try_send(request, &[], "").unwrap()
    }

    /// Sends `METHOD path` with these headers and this body, unchanged.
    pub(crate) fn try_send(
        &mut self,
        request: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> io::Result<Answer> {
        let mut text = format!("{request} HTTP/1.1\r\nhost: {}\r\n", self.addr);
        for (name, value) in headers {
            text.extend([name, ": ", value, "\r\n"]);
        }
        if !body.is_empty() {
            text.extend(["content-length: ", &body.len().to_string(), "\r\n"]);
        }
        text.push_str("\r\n");
        text.push_str(body);
        self.raw(text.as_bytes())
    }

    /// Sends bytes and reads one answer.
    pub(crate) fn raw(&mut self, bytes: &[u8]) -> io::Result<Answer> {
        let head_only = bytes.starts_with(b"HEAD ");
        self.write(bytes)?;
        self.read(head_only)
    }

    /// Sends bytes.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            slot => {
                let stream = TcpStream::connect(self.addr)?;
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                slot.insert(BufReader::new(stream))
            }
        };
        stream.get_mut().write_all(bytes)
    }

    /// Returns the connection on which a request was sent.
    pub(crate) fn stream(&self) -> &TcpStream {
        self.stream.as_ref().expect("a request was sent").get_ref()
    }

    /// Reads one answer; drops the connection after an error or `Connection: close`.
    pub(crate) fn read(&mut self, head_only: bool) -> io::Result<Answer> {
        let stream = self.stream.as_mut().expect("a request was sent");
        let answer = read_answer(stream, head_only);
        if answer.as_ref().map_or(true, |answer| answer.header("connection") == Some("close")) {
            self.stream = None;
        }
        answer
    }

    /// Reads one line; returns `None` when the server has closed the connection.
    pub(crate) fn line(&mut self) -> Option<String> {
        line(self.stream.as_mut().expect("a request was sent")).ok()
    }

    /// Reads until the server closes the connection and returns all bytes as text.
    pub(crate) fn rest(&mut self) -> String {
        let mut rest = Vec::new();
        let mut stream = self.stream.take().expect("a request was sent");
        stream.read_to_end(&mut rest).unwrap();
        String::from_utf8(rest).unwrap()
    }

    /// Reads until the server closes the connection; returns whether it sent no more bytes.
    pub(crate) fn is_closed(&mut self) -> bool {
        let Some(mut stream) = self.stream.take() else { return true };
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).map_or(true, |len| len == 0)
    }
}

/// Connects from `source`.
pub(crate) fn socket_from(addr: SocketAddr, source: Ipv4Addr) -> TcpStream {
    connected(addr, source, None)
}

/// Connects a socket for which the kernel keeps few bytes, so that unread answers soon block the
/// server's writes.
pub(crate) fn small_socket_from(addr: SocketAddr, source: Ipv4Addr) -> TcpStream {
    connected(addr, source, Some(4 << 10))
}

/// No process that another test starts inherits the socket: it would keep the connection open.
fn connected(addr: SocketAddr, source: Ipv4Addr, receive_buffer: Option<usize>) -> TcpStream {
    let flags = SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None).unwrap();
    if let Some(size) = receive_buffer {
        set_socket_recv_buffer_size(&socket, size).unwrap();
    }
    bind(&socket, &SocketAddr::new(source.into(), 0)).unwrap();
    connect(&socket, &addr).unwrap();
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Reads one answer with a Content-Length.
pub(crate) fn read_answer(stream: &mut impl BufRead, head_only: bool) -> io::Result<Answer> {
    let status_line = line(stream)?;
    let status = status_line.split(' ').nth(1).and_then(|status| status.parse().ok());
    let mut headers = Vec::new();
    loop {
        let line = line(stream)?;
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(": ").expect("a header");
        headers.push((name.to_ascii_lowercase(), value.into()));
    }
    let mut answer =
        Answer { status: status.expect("a status line"), headers, body: String::new() };
    if !head_only {
        let length = answer.header("content-length").map_or(0, |length| length.parse().unwrap());
        let mut body = vec![0; length];
        stream.read_exact(&mut body)?;
        answer.body = String::from_utf8(body).unwrap();
    }
    Ok(answer)
}

fn line(stream: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    if stream.read_line(&mut line)? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(line.trim_end().into())
}

impl Answer {
    /// Parses all bytes of a connection as answers, none of them to HEAD.
    pub(crate) fn all(bytes: &[u8]) -> Vec<Self> {
        let mut rest = BufReader::new(bytes);
        let mut answers = Vec::new();
        while rest.fill_buf().is_ok_and(|bytes| !bytes.is_empty()) {
            answers.push(read_answer(&mut rest, false).unwrap());
        }
        answers
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Returns one member of the body, a string.
    pub(crate) fn text(&self, member: &str) -> String {
        self.json()[member].as_str().unwrap_or_else(|| panic!("no {member}: {self:?}")).into()
    }

    /// Asserts the status and a part of the body, and returns the body. Members that `expected`
    /// does not name are not compared, and `"*"` matches anything but null.
    #[track_caller]
    pub(crate) fn is(self, status: u16, expected: &Value) -> Value {
        assert_eq!(self.status, status, "{self:?}");
        if expected.is_null() {
            assert_eq!(self.body, "", "{self:?}");
            return Value::Null;
        }
        let body = self.json();
        if let Some(difference) = difference(expected, &body) {
            panic!("{difference}: {self:?}");
        }
        body
    }

    /// Asserts that the answer is a problem with this status and code, and its common members.
    #[track_caller]
    pub(crate) fn problem(self, status: u16, code: &str) -> Value {
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{self:?}");
        let id = self.header("x-request-id").expect("a request id").to_owned();
        self.is(
            status,
            &serde_json::json!({
                "type": format!("/problems/{code}"),
                "title": "*",
                "status": status,
                "code": code,
                "detail": "*",
                "request_id": id,
            }),
        )
    }
}

fn difference(expected: &Value, found: &Value) -> Option<String> {
    match (expected, found) {
        (Value::String(any), found) if any == "*" && !found.is_null() => None,
        (Value::Object(expected), Value::Object(found)) => {
            expected.iter().find_map(|(name, expected)| match found.get(name) {
                Some(found) => difference(expected, found),
                None => Some(format!("no {name}")),
            })
        }
        (Value::Array(expected), Value::Array(found)) if expected.len() == found.len() => {
            expected.iter().zip(found).find_map(|(expected, found)| difference(expected, found))
        }
        _ => (expected != found).then(|| format!("{found} should be {expected}")),
    }
}
