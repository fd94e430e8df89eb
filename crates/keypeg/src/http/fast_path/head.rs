//! Reads a request that is all here and has nothing unusual in it.
//!
//! Takes fewer requests than HTTP has, and none that two readers could take for different ones: one
//! `POST` of HTTP/1.1 to a plain path below the pools, with one Host, at most one Content-Length in
//! digits, and no header that somebody else here wants to see. Whatever is not like that is not
//! refused here but left to hyper.

use httparse::Status;
use std::mem::MaybeUninit;

/// Headers that a request may have here.
const HEADERS_MAX: usize = 32;
/// The largest body taken here: those of the calls answered here are far below it.
const BODY_MAX: usize = 4 << 10;
/// How every request that is taken begins.
const BEGINNING: &[u8] = b"POST /v1/pools/";
/// Headers that say something of a request which only the long way listens to.
const ELSEWHERE: [&str; 9] = [
    "transfer-encoding",
    "content-encoding",
    "idempotency-key",
    "sec-fetch-site",
    "expect",
    "prefer",
    "trailer",
    "upgrade",
    "te",
];

/// What the bytes that came are.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Read<'a> {
    /// A request, in the first so many of them.
    Whole(Head<'a>, usize),
    /// The beginning of what may become one.
    Part,
    /// Not for here.
    Other,
}

/// A request, as far as it matters.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Head<'a> {
    pub(super) path: &'a str,
    pub(super) host: &'a [u8],
    pub(super) authorization: Option<&'a [u8]>,
    pub(super) content_type: Option<&'a [u8]>,
    pub(super) body: &'a [u8],
}

/// Reads the first request of `bytes`.
pub(super) fn read(bytes: &[u8]) -> Read<'_> {
    let begun = bytes.len().min(BEGINNING.len());
    if bytes[..begun] != BEGINNING[..begun] {
        return Read::Other;
    }
    let mut headers = [const { MaybeUninit::uninit() }; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut []);
    match request.parse_with_uninit_headers(bytes, &mut headers) {
        Ok(Status::Complete(end)) => whole(&request, bytes, end).unwrap_or(Read::Other),
        Ok(Status::Partial) => Read::Part,
        Err(_) => Read::Other,
    }
}

fn whole<'a>(request: &httparse::Request<'_, 'a>, bytes: &'a [u8], end: usize) -> Option<Read<'a>> {
    let path = request.path?;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._/".contains(&byte);
    if request.version != Some(1) || !path.bytes().all(plain) {
        return None;
    }
    let (mut host, mut length) = (None, None);
    let (mut authorization, mut content_type) = (None, None);
    for header in &*request.headers {
        let once = match kind(header.name) {
            Kind::Host => &mut host,
            Kind::Length => &mut length,
            Kind::Authorization => &mut authorization,
            Kind::ContentType => &mut content_type,
            Kind::Connection if header.value.eq_ignore_ascii_case(b"keep-alive") => continue,
            Kind::Connection | Kind::Elsewhere => return None,
            Kind::Nothing => continue,
        };
        if once.replace(header.value).is_some() {
            return None;
        }
    }
    let length = length.map_or(Some(0), digits).filter(|&length| length <= BODY_MAX)?;
    let (host, end_of_body) = (host?, end + length);
    let Some(body) = bytes.get(end..end_of_body) else { return Some(Read::Part) };
    let head = Head { path, host, authorization, content_type, body };
    Some(Read::Whole(head, end_of_body))
}

enum Kind {
    Host,
    Length,
    Authorization,
    ContentType,
    Connection,
    /// It matters, but not to anybody here.
    Elsewhere,
    /// It matters to nobody.
    Nothing,
}

fn kind(name: &str) -> Kind {
    let is = |other: &str| name.eq_ignore_ascii_case(other);
    match name.len() {
        4 if is("host") => Kind::Host,
        14 if is("content-length") => Kind::Length,
        13 if is("authorization") => Kind::Authorization,
        12 if is("content-type") => Kind::ContentType,
        10 if is("connection") => Kind::Connection,
        len if ELSEWHERE.iter().any(|other| other.len() == len && is(other)) => Kind::Elsewhere,
        _ => Kind::Nothing,
    }
}

/// Reads a number as RFC 9110 writes it: digits and nothing else.
fn digits(value: &[u8]) -> Option<usize> {
    let digits = (1..=9).contains(&value.len()) && value.iter().all(u8::is_ascii_digit);
    digits.then(|| value.iter().fold(0, |number, digit| number * 10 + usize::from(digit - b'0')))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = "POST /v1/pools/ci/leases HTTP/1.1\r\n";

    /// What a request of these headers, a Host among them, and this body is taken for.
    fn check(headers: &str, body: &str) -> &'static str {
        let text = format!("{LINE}Host: a\r\n{headers}\r\n{body}");
        match read(text.as_bytes()) {
            Read::Whole(head, used) => {
                assert_eq!((head.path, head.host), ("/v1/pools/ci/leases", &b"a"[..]));
                assert_eq!(used, text.len(), "{text:?}");
                assert_eq!(head.body, body.as_bytes());
                "whole"
            }
            Read::Part => "part",
            Read::Other => "other",
        }
    }

    #[test]
    fn plain_requests_are_taken() {
        for (headers, body) in [
            ("", ""),
            ("Content-Length: 0\r\n", ""),
            ("content-length: 000000002\r\nContent-Type: x\r\n", "{}"),
            ("Connection: Keep-Alive\r\nAuthorization: Bearer x\r\n", ""),
            ("Accept: */*\r\nUser-Agent: x\r\nAccept-Encoding: gzip\r\nX:\t\u{e4} \r\n", ""),
            ("X: y\n", ""),
        ] {
            assert_eq!(check(headers, body), "whole", "{headers:?}");
        }
        let large = " ".repeat(BODY_MAX);
        assert_eq!(check(&format!("Content-Length: {BODY_MAX}\r\n"), &large), "whole");
        assert_eq!(check(&"X: y\r\n".repeat(HEADERS_MAX - 1), ""), "whole");
    }

    /// Were one of these taken, whoever sent it would not get what it asks for.
    #[test]
    fn whatever_means_something_elsewhere_is_left_to_it() {
        for name in [
            "Transfer-Encoding",
            "Content-Encoding",
            "Idempotency-Key",
            "Sec-Fetch-Site",
            "Expect",
            "Prefer",
            "Trailer",
            "Upgrade",
            "TE",
        ] {
            for name in [name.to_owned(), name.to_ascii_lowercase(), name.to_ascii_uppercase()] {
                assert_eq!(check(&format!("{name}: x\r\n"), ""), "other", "{name}");
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
            " folded\r\n",
            "X : y\r\n",
        ] {
            assert_eq!(check(headers, ""), "other", "{headers:?}");
        }
        assert_eq!(check(&"X: y\r\n".repeat(HEADERS_MAX), ""), "other");
    }

    #[test]
    fn another_line_is_not_for_here() {
        let host = "Host: a\r\n\r\n";
        for line in [
            "GET /v1/pools/ci HTTP/1.1\r\n",
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
            assert_eq!(read(format!("{line}{host}").as_bytes()), Read::Other, "{line:?}");
        }
        assert_eq!(read(format!("{LINE}\r\n").as_bytes()), Read::Other, "no Host");
    }

    /// At each cut it may still become a request; what stands behind it is not its own.
    #[test]
    fn the_beginning_of_a_request_is_no_request_and_what_follows_is_not_its_own() {
        let text = format!("{LINE}Host: a\r\nContent-Length: 2\r\n\r\n{{}}");
        for cut in 0..text.len() {
            assert_eq!(read(&text.as_bytes()[..cut]), Read::Part, "{cut}");
        }
        for more in ["P", "\r\n", "{}", &text] {
            let bytes = [text.as_bytes(), more.as_bytes()].concat();
            let Read::Whole(head, used) = read(&bytes) else { panic!("{more:?}") };
            assert_eq!((head.body, used), (&b"{}"[..], text.len()));
        }
    }
}
