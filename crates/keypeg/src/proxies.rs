//! The proxies in front of the server, and the address of a caller behind them.
//!
//! A proxy appends the address of its client to `X-Forwarded-For` or `Forwarded` (RFC 7239). Any
//! client can send these headers, so they count only on connections from a named proxy, and only
//! up to the last address that is not one. Does not know connections.

use hyper::header::{FORWARDED, HeaderMap, HeaderName, HeaderValue};
use ipnet::IpNet;
use serde::Deserialize;
use std::net::IpAddr;
use std::str::FromStr;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The addresses of a proxy, or of a network of proxies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "toml::Value")]
pub(crate) struct ProxyNet(IpNet);

impl FromStr for ProxyNet {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let net = text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from)).ok();
        net.filter(|net| net.prefix_len() > 0).map(|net| Self(net.trunc())).ok_or(
            "must be the address or the network of a proxy, such as 10.0.0.7, 10.1.0.0/16 or ::1",
        )
    }
}

/// The proxies of a server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Proxies(Vec<ProxyNet>);

impl Proxies {
    pub(crate) fn new(nets: Vec<ProxyNet>) -> Self {
        Self(nets)
    }

    /// Returns whether there is none.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn has(&self, address: IpAddr) -> bool {
        self.0.iter().any(|net| net.0.contains(&address))
    }

    /// Returns the address of the caller of a request that a connection from `peer` brought.
    pub(crate) fn caller_of(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        if self.is_empty() {
            return peer;
        }
        let values = |name| headers.get_all(name).iter().rev().map(HeaderValue::as_bytes);
        self.caller(peer, values(FORWARDED), values(X_FORWARDED_FOR))
    }

    /// Like [`caller_of`](Self::caller_of), with the values of the two headers, the last ones first.
    ///
    /// A proxy that appends to one header passes the other one on as its client sent it. So where
    /// both are present, they must name the same caller; otherwise the request counts for the proxy.
    pub(crate) fn caller<'a>(
        &self,
        peer: IpAddr,
        forwarded: impl Iterator<Item = &'a [u8]>,
        x_forwarded_for: impl Iterator<Item = &'a [u8]>,
    ) -> IpAddr {
        let peer = peer.to_canonical();
        if !self.has(peer) {
            return peer;
        }
        let elements = |value: &'a [u8]| value.rsplit(|&byte| byte == b',');
        let forwarded = self.last_other(peer, forwarded.flat_map(elements).map(forwarded_for));
        let x_forwarded_for =
            self.last_other(peer, x_forwarded_for.flat_map(elements).map(address));
        match (forwarded, x_forwarded_for) {
            (Some(caller), None) | (None, Some(caller)) => caller,
            (Some(one), Some(other)) if one == other => one,
            (None, None) | (Some(_), Some(_)) => peer,
        }
    }

    /// Returns the first address that is not a proxy, from the last hop to the first one. `None`
    /// without hops. A hop without an address hides those before it.
    fn last_other(
        &self,
        peer: IpAddr,
        hops: impl Iterator<Item = Option<IpAddr>>,
    ) -> Option<IpAddr> {
        let mut caller = None;
        for hop in hops {
            let Some(hop) = hop else { return Some(caller.unwrap_or(peer)) };
            if !self.has(hop) {
                return Some(hop);
            }
            caller = Some(hop);
        }
        caller
    }
}

/// Parses an address with an optional port; an IPv6 address with a port has brackets.
fn address(text: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(text).ok()?.trim();
    let address = match text.strip_prefix('[') {
        Some(rest) => {
            let (address, port) = rest.split_once(']')?;
            let is_port = port.is_empty() || port.strip_prefix(':').is_some_and(is_port);
            is_port.then_some(address)?
        }
        None => match text.split_once(':') {
            Some((address, port)) if is_port(port) && address.contains('.') => address,
            _ => text,
        },
    };
    address.parse().ok().map(|address: IpAddr| address.to_canonical())
}

fn is_port(text: &str) -> bool {
    (1..=5).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Returns the address in the parameter `for` of one element of `Forwarded`. An element with a comma
/// in quotes was cut, and has none.
fn forwarded_for(element: &[u8]) -> Option<IpAddr> {
    if element.split(|&byte| byte == b'"').count() % 2 == 0 {
        return None;
    }
    let mut found = None;
    for pair in element.split(|&byte| byte == b';') {
        let Some(equals) = pair.iter().position(|&byte| byte == b'=') else { continue };
        let (name, value) = (pair[..equals].trim_ascii(), pair[equals + 1..].trim_ascii());
        if !name.eq_ignore_ascii_case(b"for") {
            continue;
        }
        let quoted = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\""));
        // A second one is ambiguous.
        if found.replace(address(quoted.unwrap_or(value))).is_some() {
            return None;
        }
    }
    found.flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxies(nets: &[&str]) -> Proxies {
        Proxies::new(nets.iter().map(|net| net.parse().unwrap()).collect())
    }

    fn caller(peer: &str, headers: &[(&'static str, &str)]) -> String {
        let proxies = proxies(&["10.0.0.1", "10.1.0.0/16", "fd00::/8"]);
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, value.parse().unwrap());
        }
        proxies.caller_of(peer.parse().unwrap(), &map).to_string()
    }

    #[test]
    fn only_a_named_proxy_names_the_caller() {
        let headers = [("x-forwarded-for", "1.2.3.4"), ("forwarded", "for=1.2.3.4")];
        for header in headers {
            assert_eq!(caller("10.0.0.1", &[header]), "1.2.3.4");
            assert_eq!(caller("10.1.255.9", &[header]), "1.2.3.4");
            assert_eq!(caller("::ffff:10.0.0.1", &[header]), "1.2.3.4", "mapped");
            assert_eq!(caller("fd12::1", &[header]), "1.2.3.4");
            for other in ["10.0.0.2", "127.0.0.1", "::1", "1.2.3.4"] {
                assert_eq!(caller(other, &[header]), other);
            }
        }
        assert_eq!(caller("10.0.0.1", &[]), "10.0.0.1");
        let none = proxies(&[]);
        let mut map = HeaderMap::new();
        map.append("x-forwarded-for", "1.2.3.4".parse().unwrap());
        assert_eq!(none.caller_of("10.0.0.1".parse().unwrap(), &map).to_string(), "10.0.0.1");
    }

    /// A client can send the headers too: what stands before the last address is its own claim.
    #[test]
    fn the_caller_is_the_last_address_that_is_not_a_proxy() {
        for (value, expected) in [
            ("6.6.6.6, 1.2.3.4", "1.2.3.4"),
            ("6.6.6.6,1.2.3.4,10.1.0.7", "1.2.3.4"),
            ("1.2.3.4, 10.1.0.7, fd00::9", "1.2.3.4"),
            ("10.1.0.7, 10.1.0.8", "10.1.0.7"),
            ("1.2.3.4:5678", "1.2.3.4"),
            ("2001:db8::1", "2001:db8::1"),
            ("[2001:db8::1]", "2001:db8::1"),
            ("[2001:db8::1]:80", "2001:db8::1"),
            ("::ffff:1.2.3.4", "1.2.3.4"),
            // Nothing behind a hop without an address counts.
            ("1.2.3.4, unknown", "10.0.0.1"),
            ("1.2.3.4, unknown, 10.1.0.7", "10.1.0.7"),
            ("1.2.3.4, ", "10.0.0.1"),
            ("", "10.0.0.1"),
            ("1.2.3.4:", "10.0.0.1"),
            ("1.2.3.4:x", "10.0.0.1"),
            ("[1.2.3.4", "10.0.0.1"),
            ("[::1]x", "10.0.0.1"),
            ("1.2.3.999", "10.0.0.1"),
        ] {
            assert_eq!(caller("10.0.0.1", &[("x-forwarded-for", value)]), expected, "{value:?}");
        }
        let two = [("x-forwarded-for", "6.6.6.6"), ("x-forwarded-for", "1.2.3.4")];
        assert_eq!(caller("10.0.0.1", &two), "1.2.3.4", "the last line of a header counts");
    }

    #[test]
    fn forwarded_is_read_as_rfc_7239_writes_it() {
        for (value, expected) in [
            ("for=1.2.3.4;proto=https;by=10.0.0.1", "1.2.3.4"),
            ("For=\"[2001:db8::1]:4711\"", "2001:db8::1"),
            ("for=\"1.2.3.4:80\"", "1.2.3.4"),
            ("for=6.6.6.6, proto=http ; FOR = 1.2.3.4", "1.2.3.4"),
            ("for=6.6.6.6, for=1.2.3.4, for=10.1.0.7", "1.2.3.4"),
            ("for=6.6.6.6;for=1.2.3.4", "10.0.0.1"),
            ("for=_hidden", "10.0.0.1"),
            ("for=unknown, for=10.1.0.7", "10.1.0.7"),
            ("proto=https", "10.0.0.1"),
            ("for=1.2.3.4;host=\"a,b\"", "10.0.0.1"),
            ("for=\"1.2.3.4", "10.0.0.1"),
        ] {
            assert_eq!(caller("10.0.0.1", &[("forwarded", value)]), expected, "{value:?}");
        }
    }

    /// A proxy that appends to one header passes the other one on as its client sent it.
    #[test]
    fn two_headers_must_name_the_same_caller() {
        let both =
            |forwarded, x| caller("10.0.0.1", &[("forwarded", forwarded), ("x-forwarded-for", x)]);
        assert_eq!(both("for=1.2.3.4", "1.2.3.4"), "1.2.3.4");
        assert_eq!(both("for=6.6.6.6", "1.2.3.4"), "10.0.0.1");
        assert_eq!(both("for=1.2.3.4", "6.6.6.6"), "10.0.0.1");
        assert_eq!(both("for=unknown", "1.2.3.4"), "10.0.0.1");
    }

    #[test]
    fn a_proxy_is_an_address_or_a_network() {
        for good in ["10.0.0.7", "10.1.2.3/16", "::1", "fd00::/8", "127.0.0.1/32"] {
            assert!(good.parse::<ProxyNet>().is_ok(), "{good}");
        }
        for bad in ["", "proxy", "10.0.0.7:80", "0.0.0.0/0", "::/0", "10.0.0.0/33", "10.0.0"] {
            assert!(bad.parse::<ProxyNet>().is_err(), "{bad}");
        }
    }
}
