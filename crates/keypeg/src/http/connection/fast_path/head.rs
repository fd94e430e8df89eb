//! Parses a request head for the fast path, given the complete request.
//!
//! Accepts a subset of HTTP, and nothing that two readers could interpret differently: a `POST`, or a
//! `GET` without a body, of HTTP/1.1 to a plain path below the pools, with one Host, at most one
//! Content-Length in digits, and no header whose meaning only the hyper path knows. Refuses nothing: any other request is
//! left to hyper.

use httparse::Status;
use std::mem::MaybeUninit;

/// The longest Host that a connection remembers: a name of 253 bytes, a dot, a colon and a port.
const HOST_MAX: usize = 260;

/// The most headers of a request on the fast path.
const HEADERS_MAX: usize = 32;
/// The largest body on the fast path, in bytes: the bodies of its calls are far smaller.
const BODY_MAX: usize = 4 << 10;
/// The first bytes of the requests on the fast path.
const PREFIXES: [&[u8]; 2] = [b"POST /v1/pools/", b"GET /v1/pools/"];
/// Headers whose meaning only the hyper path knows.
const HYPER_HEADERS: [&str; 14] = [
    "transfer-encoding",
    "content-encoding",
    "idempotency-key",
    "sec-fetch-site",
    "origin",
    "if-match",
    "if-none-match",
    "if-unmodified-since",
    "expect",
    "prefer",
    "trailer",
    "upgrade",
    "te",
    "keypeg-forwarded",
];

/// The lengths of these names, a bit for each: most other headers have another one.
const HYPER_LENGTHS: u64 = {
    let (mut lengths, mut index) = (0, 0);
    while index < HYPER_HEADERS.len() {
        lengths |= 1 << HYPER_HEADERS[index].len();
        index += 1;
    }
    lengths
};

/// What the received bytes are.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Parsed<'a> {
    /// A complete request of `len` bytes.
    Complete { head: RequestHead<'a>, len: usize },
    /// The beginning of what may become a request for the fast path.
    Incomplete,
    /// A request for hyper.
    Unsupported,
}

/// The parts of a request that the fast path uses.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct RequestHead<'a> {
    /// `POST` or `GET`.
    pub(super) method: &'a str,
    pub(super) path: &'a str,
    pub(super) host: &'a [u8],
    pub(super) authorization: Option<&'a [u8]>,
    pub(super) content_type: Option<&'a [u8]>,
    pub(super) forwarded: Option<&'a [u8]>,
    pub(super) x_forwarded_for: Option<&'a [u8]>,
    pub(super) api_key: Option<&'a [u8]>,
    pub(super) body: &'a [u8],
}

/// Parses the first request of `bytes`.
pub(super) fn parse(bytes: &[u8]) -> Parsed<'_> {
    let begins_with = |prefix: &[u8]| {
        let len = bytes.len().min(prefix.len());
        bytes[..len] == prefix[..len]
    };
    if !PREFIXES.into_iter().any(begins_with) {
        return Parsed::Unsupported;
    }
    let mut headers = [const { MaybeUninit::uninit() }; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut []);
    match request.parse_with_uninit_headers(bytes, &mut headers) {
        Ok(Status::Complete(end)) => with_body(&request, bytes, end).unwrap_or(Parsed::Unsupported),
        Ok(Status::Partial) => Parsed::Incomplete,
        Err(_) => Parsed::Unsupported,
    }
}

/// Combines a complete head, which ends at `head_end`, with its body; `None` if hyper must read it.
fn with_body<'a>(
    request: &httparse::Request<'_, 'a>,
    bytes: &'a [u8],
    head_end: usize,
) -> Option<Parsed<'a>> {
    let (method, path) = (request.method?, request.path?);
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._/".contains(&byte);
    if request.version != Some(1) || !path.bytes().all(is_plain) {
        return None;
    }
    let (mut host, mut length) = (None, None);
    let (mut authorization, mut content_type) = (None, None);
    let (mut forwarded, mut x_forwarded_for, mut api_key) = (None, None, None);
    for header in &*request.headers {
        let slot = match kind(header.name) {
            HeaderKind::Host => &mut host,
            HeaderKind::Length => &mut length,
            HeaderKind::Authorization => &mut authorization,
            HeaderKind::ContentType => &mut content_type,
            HeaderKind::Forwarded => &mut forwarded,
            HeaderKind::XForwardedFor => &mut x_forwarded_for,
            HeaderKind::ApiKey => &mut api_key,
            HeaderKind::Connection if header.value.eq_ignore_ascii_case(b"keep-alive") => continue,
            HeaderKind::Connection | HeaderKind::Hyper => return None,
            HeaderKind::Ignored => continue,
        };
        // A repeated header is ambiguous.
        if slot.replace(header.value).is_some() {
            return None;
        }
    }
    let length = length.map_or(Some(0), digits).filter(|&length| length <= BODY_MAX)?;
    let (host, body_end) = (host?, head_end + length);
    let Some(body) = bytes.get(head_end..body_end) else { return Some(Parsed::Incomplete) };
    let head = RequestHead {
        method,
        path,
        host,
        authorization,
        content_type,
        forwarded,
        x_forwarded_for,
        api_key,
        body,
    };
    Some(Parsed::Complete { head, len: body_end })
}

enum HeaderKind {
    Host,
    Length,
    Authorization,
    ContentType,
    Forwarded,
    XForwardedFor,
    ApiKey,
    Connection,
    /// Only the hyper path knows its meaning.
    Hyper,
    /// The server never uses it.
    Ignored,
}

fn kind(name: &str) -> HeaderKind {
    let is = |other: &str| name.eq_ignore_ascii_case(other);
    match name.len() {
        4 if is("host") => HeaderKind::Host,
        14 if is("content-length") => HeaderKind::Length,
        13 if is("authorization") => HeaderKind::Authorization,
        12 if is("content-type") => HeaderKind::ContentType,
        10 if is("connection") => HeaderKind::Connection,
        9 if is("forwarded") => HeaderKind::Forwarded,
        15 if is("x-forwarded-for") => HeaderKind::XForwardedFor,
        9 if is("x-api-key") => HeaderKind::ApiKey,
        len if len < 64
            && HYPER_LENGTHS & (1 << len) != 0
            && HYPER_HEADERS.iter().any(|other| other.len() == len && is(other)) =>
        {
            HeaderKind::Hyper
        }
        _ => HeaderKind::Ignored,
    }
}

/// Parses a Content-Length as RFC 9110 writes it, digits only. At most nine, so that it cannot
/// overflow.
fn digits(value: &[u8]) -> Option<usize> {
    let is_number = (1..=9).contains(&value.len()) && value.iter().all(u8::is_ascii_digit);
    is_number.then(|| value.iter().fold(0, |number, digit| number * 10 + usize::from(digit - b'0')))
}

/// Remembers an accepted Host unless it is longer than any name with a port: an idle connection
/// holds no buffer. An empty value stands for none; the server accepts an empty Host anyway.
pub(super) fn remember(last_host: &mut Vec<u8>, host: &[u8]) {
    last_host.clear();
    if host.len() <= HOST_MAX {
        last_host.extend_from_slice(host);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = "POST /v1/pools/ci/leases HTTP/1.1\r\n";

    /// Classifies a request with a Host, these headers and this body.
    fn classify(headers: &str, body: &str) -> &'static str {
        let text = format!("{LINE}Host: a\r\n{headers}\r\n{body}");
        match parse(text.as_bytes()) {
            Parsed::Complete { head, len } => {
                assert_eq!((head.path, head.host), ("/v1/pools/ci/leases", &b"a"[..]));
                assert_eq!(len, text.len(), "{text:?}");
                assert_eq!(head.body, body.as_bytes());
                "complete"
            }
            Parsed::Incomplete => "incomplete",
            Parsed::Unsupported => "unsupported",
        }
    }

    #[test]
    fn plain_requests_are_accepted() {
        for (headers, body) in [
            ("", ""),
            ("Content-Length: 0\r\n", ""),
            ("content-length: 000000002\r\nContent-Type: x\r\n", "{}"),
            ("Connection: Keep-Alive\r\nAuthorization: Bearer x\r\n", ""),
            ("Accept: */*\r\nUser-Agent: x\r\nAccept-Encoding: gzip\r\nX:\t\u{e4} \r\n", ""),
            ("X: y\n", ""),
        ] {
            assert_eq!(classify(headers, body), "complete", "{headers:?}");
        }
        let large = " ".repeat(BODY_MAX);
        assert_eq!(classify(&format!("Content-Length: {BODY_MAX}\r\n"), &large), "complete");
        assert_eq!(classify(&"X: y\r\n".repeat(HEADERS_MAX - 1), ""), "complete");
    }

    #[test]
    fn a_get_has_its_method_and_the_key_of_the_forwarded_request() {
        let text = "GET /v1/pools/ci/verify HTTP/1.1\r\nHost: a\r\nx-API-key: k\r\n\r\n";
        for cut in 0..text.len() {
            assert_eq!(parse(&text.as_bytes()[..cut]), Parsed::Incomplete, "{cut}");
        }
        let Parsed::Complete { head, len } = parse(text.as_bytes()) else { panic!("{text}") };
        assert_eq!((head.method, head.path, len), ("GET", "/v1/pools/ci/verify", text.len()));
        assert_eq!(head.api_key, Some(&b"k"[..]));
    }

    /// The fast path would ignore the meaning of these headers.
    #[test]
    fn a_request_with_a_header_that_only_hyper_handles_is_left_to_hyper() {
        for name in [
            "Transfer-Encoding",
            "Content-Encoding",
            "Idempotency-Key",
            "Sec-Fetch-Site",
            "Origin",
            "If-Match",
            "If-None-Match",
            "If-Unmodified-Since",
            "Expect",
            "Prefer",
            "Trailer",
            "Upgrade",
            "TE",
            "Keypeg-Forwarded",
        ] {
            for name in [name.to_owned(), name.to_ascii_lowercase(), name.to_ascii_uppercase()] {
                assert_eq!(classify(&format!("{name}: x\r\n"), ""), "unsupported", "{name}");
            }
        }
        for headers in [
            "Host: a\r\n",
            "Connection: close\r\n",
            "Connection: keep-alive, close\r\n",
            "Connection: keep-alive\r\nConnection: close\r\n",
            "Content-Length: 0\r\nContent-Length: 0\r\n",
            "Content-Length: 0000000000\r\n",
            "Content-Length: 4097\r\n",
            "Content-Length: +0\r\n",
            "Content-Length: 0 0\r\n",
            "Content-Length:\r\n",
            "Content-Length: 99999999999999999999\r\n",
            "Content-Type: a\r\nContent-Type: a\r\n",
            "Authorization: a\r\nAuthorization: a\r\n",
            "X-Api-Key: a\r\nX-Api-Key: a\r\n",
            " folded\r\n",
            "X : y\r\n",
        ] {
            assert_eq!(classify(headers, ""), "unsupported", "{headers:?}");
        }
        assert_eq!(classify(&"X: y\r\n".repeat(HEADERS_MAX), ""), "unsupported");
    }

    #[test]
    fn a_request_line_of_another_form_is_left_to_hyper() {
        let host = "Host: a\r\n\r\n";
        for line in [
            "GET /v1/pool/ci HTTP/1.1\r\n",
            "HEAD /v1/pools/ci/verify HTTP/1.1\r\n",
            "GET /v1/pools/ci/verify?states=leased HTTP/1.1\r\n",
            "PUT /v1/pools/ci HTTP/1.1\r\n",
            "POST /v1/pools HTTP/1.1\r\n",
            "POST /v1/pools/ci/leases HTTP/1.0\r\n",
            "POST /v1/pools/ci/leases?x HTTP/1.1\r\n",
            "POST /v1/pools/%63i/leases HTTP/1.1\r\n",
            "POST  /v1/pools/ci/leases HTTP/1.1\r\n",
            "POST /v1/pools/ci/leases\r\n",
            "post /v1/pools/ci/leases HTTP/1.1\r\n",
            "POST http://a/v1/pools/ci/leases HTTP/1.1\r\n",
            "\r\nPOST /v1/pools/ci/leases HTTP/1.1\r\n",
        ] {
            assert_eq!(parse(format!("{line}{host}").as_bytes()), Parsed::Unsupported, "{line:?}");
        }
        assert_eq!(parse(format!("{LINE}\r\n").as_bytes()), Parsed::Unsupported, "no Host");
    }

    #[test]
    fn every_prefix_of_a_request_is_incomplete_and_bytes_after_it_are_not_part_of_it() {
        let text = format!("{LINE}Host: a\r\nContent-Length: 2\r\n\r\n{{}}");
        for cut in 0..text.len() {
            assert_eq!(parse(&text.as_bytes()[..cut]), Parsed::Incomplete, "{cut}");
        }
        for more in ["P", "\r\n", "{}", &text] {
            let bytes = [text.as_bytes(), more.as_bytes()].concat();
            let Parsed::Complete { head, len } = parse(&bytes) else { panic!("{more:?}") };
            assert_eq!((head.body, len), (&b"{}"[..], text.len()));
        }
    }

    /// A Host of `localhost:` and 15 000 more bytes was once kept for the life of its connection.
    #[test]
    fn a_connection_remembers_no_host_longer_than_a_name_and_port() {
        let mut last_host = Vec::new();
        for (host, expected) in [
            (&b"localhost:8000"[..], &b"localhost:8000"[..]),
            (&[b'a'; HOST_MAX], &[b'a'; HOST_MAX]),
            (&[b'a'; HOST_MAX + 1], b""),
            (&[b'a'; super::super::buffers::READ_MAX], b""),
        ] {
            remember(&mut last_host, host);
            assert_eq!(last_host, expected);
            assert!(last_host.capacity() <= 2 * HOST_MAX, "{}", last_host.capacity());
        }
    }
}
