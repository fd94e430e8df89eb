//! The checks of a request that come before its admission: unambiguous framing, a Host that names
//! this server, a plain path, and no request from another site in a browser.

use super::error::Problem;
use super::message::Request;
use super::parse::json::echo;
use super::parse::path;
use crate::access::Hosts;
use hyper::header::{HOST, HeaderValue, ORIGIN, TRANSFER_ENCODING};
use hyper::http::uri::Authority;
use hyper::{Uri, Version};
use keypeg_client::Code;
use std::net::IpAddr;

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
    let Some(other) = header.into_iter().chain(target).find(|host| !hosts.take(host)) else {
        return Ok(());
    };
    let detail = format!(
        "The Host {:?} does not name this server: use localhost, an IP address, or a name given \
         with --allow-host.",
        echo(other)
    );
    Err(Problem::new(Code::Misdirected, detail))
}

/// Returns whether a Host is well-formed and names this server.
pub(super) fn accepts_host(hosts: &Hosts, host: &[u8]) -> bool {
    is_host(host) && std::str::from_utf8(host).is_ok_and(|host| hosts.take(host))
}

/// Replaces percent-encoded characters that need no escape by themselves: both forms are one path
/// (RFC 3986, 6.2.2.2). Other escapes stay, so that decoding never adds a segment; no name has them.
pub(super) fn decode_path(request: &mut Request) -> Result<(), Problem> {
    let path = request.uri().path();
    if !path.contains('%') {
        return Ok(());
    }
    let path = path::unescape_unreserved(path)?;
    let query = request.uri().query().map_or_else(String::new, |query| format!("?{query}"));
    let mut parts = request.uri().clone().into_parts();
    parts.path_and_query = format!("{path}{query}").try_into().ok();
    if let Ok(uri) = Uri::from_parts(parts) {
        *request.uri_mut() = uri;
    }
    Ok(())
}

/// Refuses a request that a page of another site made a browser send (CSRF). It protects changes,
/// which need no body and so no CORS preflight, and grants by GET.
///
/// Browsers send `Sec-Fetch-Site` over HTTPS and to loopback only, but `Origin` with every change.
/// A client that is no browser sends neither. A page on another port, or on another name of the same
/// domain, is `same-site`: it needs the `Origin` of this server. Headers that a proxy adds, such as
/// `X-Forwarded-Host`, do not count: a page can set them too.
pub(super) fn refuse_cross_site<B>(
    hosts: &Hosts,
    request: &hyper::Request<B>,
) -> Result<(), Problem> {
    let (mut is_own, mut is_same_site, mut is_cross_site) = (false, false, false);
    for site in request.headers().get_all("sec-fetch-site") {
        is_own |= site == "same-origin" || site == "none";
        is_same_site |= site == "same-site";
        is_cross_site |= site == "cross-site";
    }
    if is_cross_site {
        return Err(cross_site("Sec-Fetch-Site: cross-site"));
    }
    if is_own && !is_same_site {
        return Ok(());
    }
    let uri = request.uri();
    let header = || request.headers().get(HOST).and_then(|host| host.to_str().ok());
    let host = uri.authority().map(Authority::as_str).or_else(header).unwrap_or_default();
    let mut origins = request.headers().get_all(ORIGIN).iter().peekable();
    if is_same_site && origins.peek().is_none() {
        return Err(cross_site("Sec-Fetch-Site: same-site, without an Origin"));
    }
    let is_own = |origin: &HeaderValue| {
        origin.to_str().is_ok_and(|origin| is_own_origin(hosts, origin, host))
    };
    let Some(other) = origins.find(|origin| !is_own(origin)) else { return Ok(()) };
    Err(cross_site(&format!(
        "the Origin {:?} is not the Host {:?}. Behind a proxy, pass the Host of the request on, or \
         name it with --allow-host",
        echo(other.to_str().unwrap_or("?")),
        echo(host),
    )))
}

fn cross_site(why: &str) -> Problem {
    let detail =
        format!("Requests from a page of another site cannot acquire or change keys: {why}.");
    Problem::new(Code::Forbidden, detail)
}

/// Returns whether an origin is this server: its host and port are those of the `Host`, or it is a
/// configured name at the usual port, which a proxy may have replaced in the `Host`.
fn is_own_origin(hosts: &Hosts, origin: &str, host: &str) -> bool {
    let Some((scheme, authority)) = origin.split_once("://") else { return false };
    let usual_port = match &*scheme.to_ascii_lowercase() {
        "http" => 80,
        "https" => 443,
        _ => return false,
    };
    let Some((name, port)) = name_and_port(authority) else { return false };
    let port = port.unwrap_or(usual_port);
    let is_host = name_and_port(host).is_some_and(|(host_name, host_port)| {
        is_same_name(name, host_name) && port == host_port.unwrap_or(usual_port)
    });
    is_host || (port == usual_port && hosts.has_name(name))
}

/// Splits a name or address, and a port.
fn name_and_port(authority: &str) -> Option<(&str, Option<u16>)> {
    let end = match authority.strip_prefix('[') {
        Some(address) => address.find(']')? + 2,
        None => authority.find(':').unwrap_or(authority.len()),
    };
    let (name, port) = authority.split_at(end);
    if name.is_empty() || !is_host(name.as_bytes()) {
        return None;
    }
    let port = match port.strip_prefix(':') {
        None | Some("") if port.is_empty() || port == ":" => None,
        Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
            Some(digits.parse().ok()?)
        }
        _ => return None,
    };
    Some((name, port))
}

/// Compares two names or addresses: an IPv6 address has several forms.
fn is_same_name(name: &str, other: &str) -> bool {
    let address = |text: &str| {
        let inner = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
        inner.unwrap_or(text).parse::<IpAddr>().ok()
    };
    name.eq_ignore_ascii_case(other)
        || address(name).is_some_and(|found| address(other) == Some(found))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_own_if_it_is_the_host_or_a_configured_name() {
        let hosts = Hosts::new(&["keys.example".into(), "*".into()]).unwrap();
        for (origin, host, is_own) in [
            ("http://localhost:8000", "localhost:8000", true),
            ("HTTP://LocalHost:8000", "LOCALHOST:8000", true),
            ("http://localhost", "localhost", true),
            ("http://localhost:80", "localhost", true),
            ("http://localhost", "localhost:80", true),
            ("http://localhost", "localhost:", true),
            ("https://a.example", "a.example", true),
            ("https://a.example", "a.example:443", true),
            ("https://a.example:8443", "a.example:8443", true),
            ("http://[::1]:8000", "[::1]:8000", true),
            ("http://[::1]:8000", "[0:0:0:0:0:0:0:1]:8000", true),
            ("http://127.0.0.1:8000", "127.0.0.1:8000", true),
            ("https://keys.example", "10.0.0.1:8000", true),
            ("https://KEYS.example:443", "keypeg:8000", true),
            ("https://keys.example:444", "keypeg:8000", false),
            ("http://localhost:8000", "localhost", false),
            ("http://localhost", "localhost:8000", false),
            ("http://localhost:8000", "127.0.0.1:8000", false),
            ("http://127.0.0.1:8000", "[::1]:8000", false),
            ("https://a.example", "a.example:80", false),
            ("https://evil.example", "a.example", false),
            ("https://a.example.evil.example", "a.example", false),
            ("https://xkeys.example", "10.0.0.1", false),
            ("https://a.example", "", false),
            ("null", "", false),
            ("null", "null", false),
            ("", "", false),
            ("://", "", false),
            ("http://", "", false),
            ("http://:80", ":80", false),
            ("file://", "", false),
            ("chrome-extension://localhost", "localhost", false),
            ("http://a.example/", "a.example", false),
            ("http://u@a.example", "a.example", false),
            ("http://a.example:x", "a.example", false),
            ("http://a.example:99999", "a.example", false),
            ("http://[::1", "[::1", false),
            ("http://[::1]x", "[::1]", false),
        ] {
            assert_eq!(is_own_origin(&hosts, origin, host), is_own, "{origin} at {host}");
        }
    }

    /// Each row has the values of `Sec-Fetch-Site` and the `Origin` of a request for `host`. A request
    /// by HTTP/2 names its host in the target alone.
    #[test]
    fn a_page_of_another_origin_is_refused_however_the_request_names_its_host() {
        let hosts = Hosts::new(&[]).unwrap();
        let (own, other) = (Some("https://a.example"), Some("https://b.a.example"));
        for (sites, origin, is_accepted) in [
            (&[][..], None, true),
            (&[], own, true),
            (&[], other, false),
            (&["none"], None, true),
            (&["same-origin"], None, true),
            (&["same-site"], None, false),
            (&["same-site"], own, true),
            (&["same-site"], other, false),
            (&["cross-site"], own, false),
            // Two headers: the stricter one decides.
            (&["same-origin", "same-site"], None, false),
            (&["same-site", "none"], other, false),
            (&["same-origin", "cross-site"], own, false),
        ] {
            for is_in_target in [false, true] {
                let mut request = if is_in_target {
                    hyper::Request::post("https://a.example/v1/pools")
                } else {
                    hyper::Request::post("/v1/pools").header(HOST, "a.example")
                };
                for site in sites {
                    request = request.header("sec-fetch-site", *site);
                }
                if let Some(origin) = origin {
                    request = request.header(ORIGIN, origin);
                }
                let answer = refuse_cross_site(&hosts, &request.body(()).unwrap());
                let row = format!("{sites:?}, {origin:?}, host in the target: {is_in_target}");
                assert_eq!(answer.is_ok(), is_accepted, "{row}");
            }
        }
    }
}
