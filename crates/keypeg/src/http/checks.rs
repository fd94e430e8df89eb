//! The checks of a request that come before its admission: unambiguous framing, a Host that names
//! this server, and no request from another site in a browser.

use super::error::Problem;
use super::message::Request;
use crate::access::Hosts;
use hyper::Version;
use hyper::header::{HOST, HeaderMap, TRANSFER_ENCODING};
use keypeg_client::Code;

/// Refuses a request whose bytes two readers could take for different requests (request smuggling).
pub(super) fn check_framing(ambiguous: bool, request: &Request) -> Result<(), Problem> {
    if ambiguous && request.headers().contains_key(TRANSFER_ENCODING) {
        let detail = "Send either Content-Length or Transfer-Encoding, not both.";
        return Err(Problem::new(Code::Malformed, detail).closing());
    }
    let mut encodings = request.headers().get_all(TRANSFER_ENCODING).iter();
    let first = encodings.next();
    let chunked = first.is_none_or(|first| first.as_bytes().eq_ignore_ascii_case(b"chunked"));
    if !chunked || encodings.next().is_some() {
        let detail = "Only a single `Transfer-Encoding: chunked` is supported.";
        return Err(Problem::new(Code::Malformed, detail).closing());
    }
    let mut hosts = request.headers().get_all(HOST).iter();
    let first = hosts.next();
    let missing = first.is_none() && request.version() == Version::HTTP_11;
    if missing || hosts.next().is_some() || !first.is_none_or(|host| is_host(host.as_bytes())) {
        let detail =
            "HTTP/1.1 requires exactly one Host header: a name or address, with an optional port.";
        return Err(Problem::new(Code::Malformed, detail).closing());
    }
    Ok(())
}

/// Returns whether a Host value has only characters that are legal in a host and a port, see
/// RFC 3986, 3.2.2. An empty value is legal: a client without a host name has to send it.
fn is_host(value: &[u8]) -> bool {
    let legal = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=%:[]".contains(byte);
    value.iter().all(legal)
}

/// Refuses a request for another host.
pub(super) fn check_host(hosts: &Hosts, request: &Request) -> Result<(), Problem> {
    let header = request.headers().get(HOST).map(|host| host.to_str().unwrap_or("?"));
    let target = request.uri().scheme().and(request.uri().host());
    if header.into_iter().chain(target).all(|host| hosts.take(host)) {
        return Ok(());
    }
    let detail = "The Host header does not name this server: use localhost, an IP address, or a \
                  name given with --allow-host.";
    Err(Problem::new(Code::Misdirected, detail))
}

/// Returns whether a Host is well-formed and names this server.
pub(super) fn accepts_host(hosts: &Hosts, host: &[u8]) -> bool {
    is_host(host) && std::str::from_utf8(host).is_ok_and(|host| hosts.take(host))
}

/// Refuses a request that a page of another site made a browser send (CSRF). It protects changes,
/// which need no body and so no CORS preflight, and grants by GET.
pub(super) fn refuse_cross_site(headers: &HeaderMap) -> Result<(), Problem> {
    if headers.get("sec-fetch-site").is_some_and(|site| site == "cross-site") {
        let detail = "Cross-site requests from a browser cannot acquire or change keys \
                      (Sec-Fetch-Site: cross-site).";
        return Err(Problem::new(Code::Forbidden, detail));
    }
    Ok(())
}
