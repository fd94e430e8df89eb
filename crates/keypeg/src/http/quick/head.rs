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
