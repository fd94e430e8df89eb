//! The server to load: its URL, the `Host` header and the address to connect to.
//!
//! The host is resolved once, before the run, so that no lookup is measured.

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

    /// Resolves the host of an `http` URL; the port is 80 if the URL has none. Blocks during a
    /// lookup.
    fn from_str(url: &str) -> Result<Self, TargetError> {
        let rest = url.strip_prefix("http://");
        let rest = rest.ok_or_else(|| {
            TargetError("use a URL that starts with http://: it has no TLS".into())
        })?;
        let (host, path) = match rest.split_once('/') {
            Some((host, path)) => (host, path.trim_end_matches('/')),
            None => (rest, ""),
        };
        if rest.bytes().any(|byte| !byte.is_ascii_graphic() || b"?#*@".contains(&byte)) {
            return Err(TargetError("use http://HOST:PORT or http://HOST:PORT/PATH".into()));
        }
        let path = if path.is_empty() { String::new() } else { format!("/{path}") };
        let has_port = host.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        let with_port = if has_port { host.to_owned() } else { format!("{host}:80") };
        let mut addrs =
            with_port.to_socket_addrs().map_err(|error| TargetError(error.to_string()))?;
        let addr = addrs.next().ok_or_else(|| TargetError("the host has no address".into()))?;
        Ok(Self { url: url.to_owned(), host: host.to_owned(), path, addr, token: None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_url_has_an_address_with_or_without_a_port() {
        for (url, host, path, addr) in [
            ("http://127.0.0.1:8000", "127.0.0.1:8000", "", "127.0.0.1:8000"),
            ("http://127.0.0.1/", "127.0.0.1", "", "127.0.0.1:80"),
            ("http://[::1]:9", "[::1]:9", "", "[::1]:9"),
            ("http://[::1]:9/a/b/", "[::1]:9", "/a/b", "[::1]:9"),
        ] {
            let found = url.parse::<Target>().unwrap();
            let (url, host, path) = (url.to_owned(), host.to_owned(), path.to_owned());
            let addr = addr.parse().unwrap();
            assert_eq!(found, Target { url, host, path, addr, token: None });
        }
        for bad in
            ["127.0.0.1:8000", "https://127.0.0.1", "http://", "http://a@b", "http://127.0.0.1/?a"]
        {
            assert!(bad.parse::<Target>().is_err(), "{bad}");
        }
        let shown =
            format!("{:?}", "http://127.0.0.1".parse::<Target>().unwrap().with_token("kpt"));
        assert!(!shown.contains("kpt"), "{shown}");
    }
}
