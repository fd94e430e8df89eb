//! The server to load: its URL, the `Host` header and the address to connect to.
//!
//! The host is resolved once, before the run, so that no lookup is measured.

use rustls::pki_types::ServerName;
use std::fmt;
use std::net::{SocketAddr, ToSocketAddrs};
use std::str::FromStr;

/// The server to load.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The URL as it was given, which the report repeats.
    pub(crate) url: String,
    /// The URL's host and port, for the `Host` header.
    pub(crate) host: String,
    /// The URL's path without a slash at the end; the path of each request begins with it.
    pub(crate) path: String,
    pub(crate) addr: SocketAddr,
    /// The name that the server's certificate must have; `None` for plain HTTP.
    pub(crate) server_name: Option<ServerName<'static>>,
    pub(crate) token: Option<Token>,
}

/// An access token; `Debug` does not show it.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Token(pub(crate) String);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

impl Target {
    /// Returns the target whose requests have this access token. The token must not contain
    /// line ends.
    #[must_use]
    pub fn with_token(self, token: &str) -> Self {
        Self { token: Some(Token(token.to_owned())), ..self }
    }
}

/// The reason why a URL cannot be loaded.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct TargetError(String);

impl FromStr for Target {
    type Err = TargetError;

    /// Resolves the host of a URL; without a port it is 80, or 443 for `https`. Blocks during a
    /// lookup.
    fn from_str(url: &str) -> Result<Self, TargetError> {
        let schemes = [("http://", 80), ("https://", 443)];
        let found = schemes
            .into_iter()
            .find_map(|(scheme, port)| url.strip_prefix(scheme).map(|rest| (scheme, port, rest)));
        let (scheme, port, rest) = found
            .ok_or_else(|| TargetError("use a URL that starts with http:// or https://".into()))?;
        let (host, path) = match rest.split_once('/') {
            Some((host, path)) => (host, path.trim_end_matches('/')),
            None => (rest, ""),
        };
        if rest.bytes().any(|byte| !byte.is_ascii_graphic() || b"?#*@".contains(&byte)) {
            let forms = format!("use {scheme}HOST:PORT or {scheme}HOST:PORT/PATH");
            return Err(TargetError(forms));
        }
        let path = if path.is_empty() { String::new() } else { format!("/{path}") };
        let has_port = host.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        let with_port = if has_port { host.to_owned() } else { format!("{host}:{port}") };
        let mut addrs =
            with_port.to_socket_addrs().map_err(|error| TargetError(error.to_string()))?;
        let addr = addrs.next().ok_or_else(|| TargetError("the host has no address".into()))?;
        let server_name =
            if scheme == "https://" { Some(server_name(host, has_port)?) } else { None };
        let (url, host) = (url.to_owned(), host.to_owned());
        Ok(Self { url, host, path, addr, server_name, token: None })
    }
}

/// Returns the name of a host without its port and the brackets of an IPv6 address.
fn server_name(host: &str, has_port: bool) -> Result<ServerName<'static>, TargetError> {
    let name = host.rsplit_once(':').filter(|_| has_port).map_or(host, |(name, _)| name);
    let name = name.trim_start_matches('[').trim_end_matches(']');
    ServerName::try_from(name.to_owned())
        .map_err(|_| TargetError(format!("{name:?} is neither a DNS name nor an address")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_url_has_an_address_with_or_without_a_port() {
        for (url, host, path, addr, name) in [
            ("http://127.0.0.1:8000", "127.0.0.1:8000", "", "127.0.0.1:8000", None),
            ("http://127.0.0.1/", "127.0.0.1", "", "127.0.0.1:80", None),
            ("http://[::1]:9", "[::1]:9", "", "[::1]:9", None),
            ("http://[::1]:9/a/b/", "[::1]:9", "/a/b", "[::1]:9", None),
            ("https://127.0.0.1", "127.0.0.1", "", "127.0.0.1:443", Some("127.0.0.1")),
            ("https://[::1]:9/a", "[::1]:9", "/a", "[::1]:9", Some("::1")),
            ("https://[::1]", "[::1]", "", "[::1]:443", Some("::1")),
        ] {
            let found = url.parse::<Target>().unwrap();
            let (url, host, path) = (url.to_owned(), host.to_owned(), path.to_owned());
            let addr = addr.parse().unwrap();
            let server_name = name.map(|name| ServerName::try_from(name).unwrap());
            assert_eq!(found, Target { url, host, path, addr, server_name, token: None });
        }
        for bad in [
            "127.0.0.1:8000",
            "ftp://127.0.0.1",
            "https://",
            "http://",
            "http://a@b",
            "http://127.0.0.1/?a",
        ] {
            assert!(bad.parse::<Target>().is_err(), "{bad}");
        }
        let shown =
            format!("{:?}", "http://127.0.0.1".parse::<Target>().unwrap().with_token("kpt"));
        assert!(!shown.contains("kpt"), "{shown}");
    }
}
