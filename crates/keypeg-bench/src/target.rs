//! The server to load: its URL, the `Host` header and the address to connect to.
//!
//! The host is resolved once, before the run, so that no lookup is measured.

use std::net::{SocketAddr, ToSocketAddrs};
use std::str::FromStr;

/// The server to load.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The URL as it was given, which the report repeats.
    pub(crate) url: String,
    /// The URL's host and port, for the `Host` header.
    pub(crate) host: String,
    pub(crate) addr: SocketAddr,
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
        let rest =
            rest.ok_or_else(|| TargetError("bench needs a URL that starts with http://".into()))?;
        let host = rest.trim_end_matches('/');
        let has_port = host.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        let with_port = if has_port { host.to_owned() } else { format!("{host}:80") };
        let mut addrs =
            with_port.to_socket_addrs().map_err(|error| TargetError(error.to_string()))?;
        let addr = addrs.next().ok_or_else(|| TargetError("the host has no address".into()))?;
        Ok(Self { url: url.to_owned(), host: host.to_owned(), addr })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_url_has_an_address_with_or_without_a_port() {
        for (url, host, addr) in [
            ("http://127.0.0.1:8000", "127.0.0.1:8000", "127.0.0.1:8000"),
            ("http://127.0.0.1/", "127.0.0.1", "127.0.0.1:80"),
            ("http://[::1]:9", "[::1]:9", "[::1]:9"),
        ] {
            let found = url.parse::<Target>().unwrap();
            let (url, host, addr) = (url.to_owned(), host.to_owned(), addr.parse().unwrap());
            assert_eq!(found, Target { url, host, addr });
        }
        for bad in ["127.0.0.1:8000", "https://127.0.0.1", "http://"] {
            assert!(bad.parse::<Target>().is_err(), "{bad}");
        }
    }
}
