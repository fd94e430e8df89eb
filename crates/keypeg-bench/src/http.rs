//! The client side of HTTP/1.1, as bytes: requests with an id in their path, and their responses.
//!
//! Knows nothing of sockets and time. A response is parsed as far as its end, its status and one
//! string of its body.

use crate::protocol::{ExchangeError, Protocol, Response};
use crate::target::{Target, Token};
use std::str::from_utf8;
use std::sync::Arc;

/// Returns the headers that a program's requests typically have behind a proxy, and the access
/// token if the target has one.
pub(crate) fn headers(target: &Target) -> String {
    let Target { host, token, .. } = target;
    let token = token.as_ref().map(|Token(token)| format!("Authorization: Bearer {token}\r\n"));
    format!(
        "Host: {host}\r\n\
         User-Agent: keypeg-bench/{}\r\n\
         Accept: application/json\r\n\
         Accept-Encoding: gzip, deflate, br\r\n\
         X-Forwarded-For: 203.0.113.7, 198.51.100.11\r\n\
         X-Forwarded-Proto: https\r\n\
         X-Request-Id: 0af7651916cd43dd8448eb211c80319c\r\n\
         Traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n{}",
        env!("CARGO_PKG_VERSION"),
        token.unwrap_or_default()
    )
}

/// Returns a complete request; a body is JSON.
pub(crate) fn request(method: &str, path: &str, headers: &str, body: &str) -> Vec<u8> {
    let length = match (method, body.len()) {
        ("GET" | "HEAD" | "DELETE", 0) => String::new(),
        (_, 0) => "Content-Length: 0\r\n".into(),
        (_, length) => format!("Content-Type: application/json\r\nContent-Length: {length}\r\n"),
    };
    format!("{method} {path} HTTP/1.1\r\n{headers}{length}\r\n{body}").into_bytes()
}

/// A request with a gap for an id.
struct Template {
    before: Vec<u8>,
    after: Vec<u8>,
}

impl Template {
    /// Splits a request at its first `*`. The `Accept` header of these requests names one type, so
    /// the first `*` is in the path.
    fn new(request: &[u8]) -> Self {
        let star = request.iter().position(|&byte| byte == b'*');
        let star = star.expect("invariant: the request has a place for an id");
        Self { before: request[..star].to_vec(), after: request[star + 1..].to_vec() }
    }

    fn write(&self, id: &[u8], out: &mut Vec<u8>) {
        out.extend_from_slice(&self.before);
        out.extend_from_slice(id);
        out.extend_from_slice(&self.after);
    }
}

/// Acquires, releases what it acquired, and repeats.
pub(crate) struct AcquireRelease {
    acquire: Vec<u8>,
    /// The text before the acquired id in the response's body.
    id_prefix: &'static str,
    release: Template,
    /// Empty when nothing is held.
    held_id: Vec<u8>,
}

impl AcquireRelease {
    /// `release` has a `*` in the place of the acquired id.
    pub(crate) fn new(acquire: Vec<u8>, id_prefix: &'static str, release: &[u8]) -> Self {
        Self { acquire, id_prefix, release: Template::new(release), held_id: Vec::new() }
    }
}

impl Protocol for AcquireRelease {
    fn write_request(&mut self, out: &mut Vec<u8>) -> usize {
        if self.held_id.is_empty() {
            out.extend_from_slice(&self.acquire);
            return 0;
        }
        self.release.write(&self.held_id, out);
        1
    }

    fn parse_response(&mut self, bytes: &[u8]) -> Result<Option<Response>, ExchangeError> {
        let Some((response, body)) = parse_http(bytes)? else { return Ok(None) };
        // A refused release is not repeated: the lease expires.
        let is_acquired = self.held_id.is_empty() && response.status < 300;
        self.held_id.clear();
        if is_acquired {
            let id = json_string_after(body, self.id_prefix);
            let id = id.ok_or(ExchangeError::Protocol("a response without the acquired id"))?;
            self.held_id.extend_from_slice(id);
        }
        Ok(Some(response))
    }

    fn must_release(&self) -> bool {
        !self.held_id.is_empty()
    }
}

/// Acquires a key, verifies its value as a gateway does, repeatedly, and acquires again when it is
/// refused. Does not release: the lease ends by time.
pub(crate) struct AcquireVerify {
    acquire: Vec<u8>,
    verify: Template,
    /// The value of the acquired key; empty without one.
    value: Vec<u8>,
}

impl AcquireVerify {
    /// `verify` has a `*` in the place of the value.
    pub(crate) fn new(acquire: Vec<u8>, verify: &[u8]) -> Self {
        Self { acquire, verify: Template::new(verify), value: Vec::new() }
    }
}

impl Protocol for AcquireVerify {
    fn write_request(&mut self, out: &mut Vec<u8>) -> usize {
        if self.value.is_empty() {
            out.extend_from_slice(&self.acquire);
            return 0;
        }
        self.verify.write(&self.value, out);
        1
    }

    fn parse_response(&mut self, bytes: &[u8]) -> Result<Option<Response>, ExchangeError> {
        let Some((response, body)) = parse_http(bytes)? else { return Ok(None) };
        if response.status >= 300 {
            self.value.clear();
        } else if self.value.is_empty() {
            let value = json_string_after(body, "\"key\":");
            let value = value.ok_or(ExchangeError::Protocol("a response without the key"))?;
            self.value.extend_from_slice(value);
        }
        Ok(Some(response))
    }
}

/// Repeats one request, or one request with each of several ids.
pub(crate) struct Repeat {
    request: Template,
    /// Empty for a request without an id.
    ids: Arc<[String]>,
    next: usize,
}

impl Repeat {
    pub(crate) fn new(request: Vec<u8>) -> Self {
        let request = Template { before: request, after: Vec::new() };
        Self { request, ids: Vec::new().into(), next: 0 }
    }

    /// `request` has a `*` in the place of an id; `first` is the index of the first id to use.
    pub(crate) fn with_each(request: &[u8], ids: Arc<[String]>, first: usize) -> Self {
        Self { request: Template::new(request), ids, next: first }
    }
}

impl Protocol for Repeat {
    fn write_request(&mut self, out: &mut Vec<u8>) -> usize {
        if self.ids.is_empty() {
            self.request.write(b"", out);
            return 0;
        }
        self.request.write(self.ids[self.next % self.ids.len()].as_bytes(), out);
        // A prime step, coprime to round numbers of ids: all ids are used, neighbours far apart.
        self.next += 7_919;
        0
    }

    fn parse_response(&mut self, bytes: &[u8]) -> Result<Option<Response>, ExchangeError> {
        Ok(parse_http(bytes)?.map(|(response, _)| response))
    }
}

/// Parses an HTTP response and returns its body too; `None` if it is incomplete.
fn parse_http(bytes: &[u8]) -> Result<Option<(Response, &[u8])>, ExchangeError> {
    let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else { return Ok(None) };
    let head = from_utf8(&bytes[..end])
        .map_err(|_| ExchangeError::Protocol("a response head that is not UTF-8"))?;
    let mut lines = head.split("\r\n");
    let line = lines.next().filter(|line| line.starts_with("HTTP/1."));
    let status = line.and_then(|line| line.get(9..12)?.parse::<u16>().ok());
    let status = status.ok_or(ExchangeError::Protocol("a response without a status"))?;
    let (mut length, mut closes) = (None, false);
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse::<usize>().ok();
        } else if name.eq_ignore_ascii_case("connection") {
            closes = value.trim().eq_ignore_ascii_case("close");
        }
    }
    let has_no_body = matches!(status, 204 | 304);
    let length = length
        .or(has_no_body.then_some(0))
        .ok_or(ExchangeError::Protocol("a response without Content-Length"))?;
    let start = end + 4;
    let Some(body) = bytes.get(start..start + length) else { return Ok(None) };
    Ok(Some((Response { len: start + length, status, closes }, body)))
}

/// Returns the JSON string after a prefix such as `"id":`. Ids contain no escapes.
fn json_string_after<'a>(body: &'a [u8], prefix: &str) -> Option<&'a [u8]> {
    let start = body.windows(prefix.len()).position(|window| window == prefix.as_bytes())?;
    let rest = body[start + prefix.len()..].trim_ascii_start().strip_prefix(b"\"")?;
    let end = rest.iter().position(|&byte| byte == b'"')?;
    Some(&rest[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn response(len: usize, status: u16, closes: bool) -> Response {
        Response { len, status, closes }
    }

    #[test]
    fn a_response_ends_where_its_length_says() {
        let whole = b"HTTP/1.1 201 Created\r\ncontent-LENGTH: 4\r\nx: y\r\n\r\nbodyHTTP/1.1";
        for cut in 0..whole.len() - 8 {
            assert_eq!(parse_http(&whole[..cut]), Ok(None), "{cut}");
        }
        assert_eq!(parse_http(whole), Ok(Some((response(53, 201, false), &b"body"[..]))));
        let none = b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n";
        assert_eq!(parse_http(none), Ok(Some((response(none.len(), 204, true), &b""[..]))));
        for invalid in [&b"HTTP/1.1 200 OK\r\n\r\n"[..], b"HTTP/2 two\r\n\r\n", b"+OK\r\n\r\n"] {
            assert!(parse_http(invalid).is_err(), "{invalid:?}");
        }
    }

    #[test]
    fn an_acquired_id_is_released_once() {
        let acquire = request("POST", "/take", "Host: h\r\n", "");
        let release = request("POST", "/give/*/now", "Host: h\r\n", "");
        let mut protocol = AcquireRelease::new(acquire.clone(), "\"id\":", &release);
        let mut out = Vec::new();
        let write = |protocol: &mut AcquireRelease, out: &mut Vec<u8>| {
            out.clear();
            protocol.write_request(out)
        };
        assert_eq!(write(&mut protocol, &mut out), 0);
        assert_eq!(out, acquire);
        let refused = b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\n{}";
        assert!(protocol.parse_response(refused).unwrap().is_some());
        assert!(!protocol.must_release());
        write(&mut protocol, &mut out);
        let lent = b"HTTP/1.1 201 Created\r\nContent-Length: 20\r\n\r\n{\"a\":1,\"id\": \"l_7\" }";
        assert_eq!(protocol.parse_response(lent), Ok(Some(response(lent.len(), 201, false))));
        assert!(protocol.must_release());
        assert_eq!(write(&mut protocol, &mut out), 1);
        assert!(out.starts_with(b"POST /give/l_7/now HTTP/1.1\r\n"), "{out:?}");
        let ended = b"HTTP/1.1 410 Gone\r\nContent-Length: 0\r\n\r\n";
        assert!(protocol.parse_response(ended).unwrap().is_some());
        assert!(!protocol.must_release());
        let without_id = b"HTTP/1.1 201 Created\r\nContent-Length: 2\r\n\r\n{}";
        assert!(protocol.parse_response(without_id).is_err());
    }

    #[test]
    fn an_acquired_value_is_verified_until_it_is_refused() {
        let verify = request("GET", "/verify", "Host: h\r\nX-Api-Key: *\r\n", "");
        let mut protocol = AcquireVerify::new(request("POST", "/take", "", ""), &verify);
        let mut sends = |answer: &[u8]| {
            let mut out = Vec::new();
            let kind = protocol.write_request(&mut out);
            assert!(protocol.parse_response(answer).unwrap().is_some());
            (kind, String::from_utf8(out).unwrap())
        };
        let none = b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\n{}";
        let lent = b"HTTP/1.1 201 Created\r\nContent-Length: 11\r\n\r\n{\"key\":\"V\"}";
        let (active, refused) =
            (b"HTTP/1.1 204 No Content\r\n\r\n", b"HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n");
        assert_eq!([sends(none).0, sends(lent).0], [0, 0]);
        for answer in [&active[..], active, refused] {
            let (kind, sent) = sends(answer);
            assert_eq!((kind, sent.contains("\r\nX-Api-Key: V\r\n")), (1, true), "{sent}");
        }
        assert_eq!(sends(lent).0, 0);
    }

    #[test]
    fn ids_are_used_in_turn() {
        let ids: Arc<[String]> = ["a", "b", "c"].map(String::from).into();
        let mut repeat = Repeat::with_each(b"<*>", ids, 1);
        let mut out = Vec::new();
        for _ in 0..3 {
            repeat.write_request(&mut out);
        }
        let mut parts: Vec<_> = out.chunks(3).collect();
        assert_eq!(parts[0], b"<b>");
        parts.sort_unstable();
        assert_eq!(parts, [b"<a>", b"<b>", b"<c>"]);
        let mut out = Vec::new();
        Repeat::new(b"all".to_vec()).write_request(&mut out);
        assert_eq!(out, b"all");
    }
}
