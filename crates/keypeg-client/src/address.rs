//! The address of a server, and whether requests to it may go through a proxy.
//!
//! A request to this machine never goes through the proxy that the environment names: the proxy
//! would get the access token, and would look for the server on its own machine. Sends nothing.

use reqwest::Url;
use std::net::IpAddr;

/// The address of a server: `http://HOST:PORT` or `https://HOST:PORT`, with a path if a proxy in
/// front of it adds one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ServerAddress {
    /// Without a slash at the end.
    pub(crate) base: String,
    /// Whether the server is on this machine.
    pub(crate) is_loopback: bool,
}

/// Checks the address of a server. The error has the address, except for one that may contain a
/// password, and the forms that are allowed.
pub fn check_server_address(address: &str) -> Result<(), String> {
    ServerAddress::parse(address).map(|_| ())
}

impl ServerAddress {
    pub(crate) fn parse(address: &str) -> Result<Self, String> {
        if address.contains('@') {
            // The address is not repeated: it can contain a password.
            return Err(
                "invalid server address: remove the user name and the password; an access \
                        token has its own options"
                    .into(),
            );
        }
        let invalid = |hint: &str| format!("invalid server address {address:?}: {hint}");
        let schemes = ["http://", "https://"];
        let scheme = schemes.into_iter().find(|scheme| address.starts_with(scheme));
        let Some((scheme, rest)) = scheme.map(|scheme| (scheme, &address[scheme.len()..])) else {
            let is_bare = !address.is_empty() && !address.contains("://");
            let given = if is_bare { address } else { "HOST:PORT" };
            return Err(invalid(&format!("use http://{given}, or https://{given} with TLS")));
        };
        let (authority, path) = match rest.split_once('/') {
            Some((authority, path)) => (authority, path.trim_end_matches('/')),
            None => (rest, ""),
        };
        let is_allowed = |byte: u8| byte.is_ascii_graphic() && !b"?#\\".contains(&byte);
        let has_dots = path.split('/').any(|segment| matches!(segment, "." | ".."));
        let forms = format!("use {scheme}HOST:PORT, or {scheme}HOST:PORT/PATH behind a proxy");
        if authority.is_empty() || !rest.bytes().all(is_allowed) || has_dots {
            return Err(invalid(&forms));
        }
        // What the HTTP client would refuse, without a name of the value.
        Url::parse(address).map_err(|error| invalid(&format!("{error}; {forms}")))?;
        let base = match path {
            "" => format!("{scheme}{authority}"),
            path => format!("{scheme}{authority}/{path}"),
        };
        let host = if authority.ends_with(']') { authority } else { without_port(authority) };
        Ok(Self { base, is_loopback: is_loopback(host) })
    }

    /// Returns whether the server speaks TLS.
    pub(crate) fn is_https(&self) -> bool {
        self.base.starts_with("https://")
    }
}

fn without_port(authority: &str) -> &str {
    authority.rsplit_once(':').map_or(authority, |(host, _)| host)
}

/// Returns whether a host, without its port, is this machine.
pub(crate) fn is_loopback(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']').trim_end_matches('.');
    let host = host.to_ascii_lowercase();
    // A connection to the unspecified address reaches this machine too.
    let is_local = |address: IpAddr| address.is_loopback() || address.is_unspecified();
    host == "localhost" || host.ends_with(".localhost") || host.parse().is_ok_and(is_local)
}

/// Returns the variable that names a proxy for requests to other machines, if one does.
pub(crate) fn proxy_variable(is_https: bool) -> Option<&'static str> {
    let is_set = |name: &&str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let own = if is_https { ["https_proxy", "HTTPS_PROXY"] } else { ["http_proxy", "HTTP_PROXY"] };
    own.into_iter().chain(["all_proxy", "ALL_PROXY"]).find(is_set)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_scheme_a_host_and_perhaps_a_path() {
        for (address, base, is_loopback) in [
            ("http://127.0.0.1:8000", "http://127.0.0.1:8000", true),
            ("http://localhost/", "http://localhost", true),
            ("http://LOCALHOST:1", "http://LOCALHOST:1", true),
            ("http://a.localhost.:1", "http://a.localhost.:1", true),
            ("http://127.255.0.1", "http://127.255.0.1", true),
            ("http://0.0.0.0:8000", "http://0.0.0.0:8000", true),
            ("http://[::1]:8000", "http://[::1]:8000", true),
            ("http://[::1]", "http://[::1]", true),
            ("http://[fe80::1]:8000", "http://[fe80::1]:8000", false),
            ("http://10.0.0.1:80/keys//", "http://10.0.0.1:80/keys", false),
            ("http://keys.example/a/b", "http://keys.example/a/b", false),
            ("http://localhost.example", "http://localhost.example", false),
            ("https://localhost:8443/", "https://localhost:8443", true),
            ("https://keys.example/a", "https://keys.example/a", false),
        ] {
            let expected = ServerAddress { base: base.into(), is_loopback };
            assert_eq!(ServerAddress::parse(address).unwrap(), expected, "{address}");
        }
        for (address, says) in [
            ("", "use http://HOST:PORT"),
            ("localhost:8000", "use http://localhost:8000"),
            ("https://", "use https://HOST:PORT"),
            ("https://a/?b", "https://HOST:PORT/PATH"),
            ("ftp://a", "use http://HOST:PORT"),
            ("http://", "use http://HOST:PORT"),
            ("http:///a", "use http://HOST:PORT"),
            ("http://user:p4ss@b", "remove the user name"),
            ("https://user:p4ss@b", "remove the user name"),
            ("user:p4ss@b", "remove the user name"),
            ("http://a/?b", "http://HOST:PORT/PATH"),
            ("http://a/../b", "http://HOST:PORT/PATH"),
            ("http://a b", "http://HOST:PORT/PATH"),
            ("http://127.0.0.1:80a", "invalid port number; use http://HOST:PORT"),
            ("https://a:99999/b", "invalid port number; use https://HOST:PORT"),
            ("http://[::1", "invalid IPv6 address; use"),
            ("http://1.2.3.256", "invalid IPv4 address; use"),
            ("http://a%zz", "use http://HOST:PORT"),
        ] {
            let error = ServerAddress::parse(address).unwrap_err();
            assert!(error.starts_with("invalid server address"), "{address}: {error}");
            assert!(error.contains(says), "{address}: {error}");
            assert!(!error.contains("p4ss"), "{address}: {error}");
        }
    }
}
