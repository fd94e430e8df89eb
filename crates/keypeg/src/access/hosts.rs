//! The host names of this server, as a defence against DNS rebinding: a page of another site whose
//! name resolves to this server still sends that name in `Host`, and is refused.
//!
//! IP addresses are always accepted: no other site can make an address resolve to this server.

use std::net::{IpAddr, Ipv6Addr};

/// The accepted values of `Host`. Ports are ignored.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hosts {
    names: Vec<String>,
    allows_any: bool,
}

impl Hosts {
    /// Accepts these names besides `localhost` and addresses; `*` accepts any. Fails with the first
    /// invalid name.
    pub fn new(names: &[String]) -> Result<Self, String> {
        let mut hosts = Self::default();
        for given in names {
            let name = given.to_ascii_lowercase();
            let is_valid = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
            match &*name {
                "*" => hosts.allows_any = true,
                "" => return Err(given.clone()),
                name if name.bytes().all(is_valid) => hosts.names.push(name.into()),
                _ => return Err(given.clone()),
            }
        }
        Ok(hosts)
    }

    /// Accepts any name.
    pub(crate) fn any() -> Self {
        Self { names: Vec::new(), allows_any: true }
    }

    /// Returns whether `name` was configured.
    pub(crate) fn has_name(&self, name: &str) -> bool {
        let name = name.strip_suffix('.').unwrap_or(name);
        self.names.iter().any(|known| known.eq_ignore_ascii_case(name))
    }

    /// Returns whether `host`, with or without a port, names this server. An empty one does:
    /// clients without a name send it, and browsers never do.
    pub(crate) fn take(&self, host: &str) -> bool {
        let name = name_of(host);
        let name = name.strip_suffix('.').unwrap_or(name);
        self.allows_any
            || name.is_empty()
            || is_localhost(name)
            || is_address(name)
            || self.has_name(name)
    }
}

/// Returns whether a name is `localhost` or below it: such names always resolve to this machine
/// (RFC 6761, 6.3).
fn is_localhost(name: &str) -> bool {
    let top = name.rsplit('.').next().unwrap_or(name);
    top.eq_ignore_ascii_case("localhost")
}

fn name_of(host: &str) -> &str {
    if host.starts_with('[') {
        return host.find(']').map_or(host, |end| &host[..=end]);
    }
    host.split_once(':').map_or(host, |(name, _)| name)
}

fn is_address(name: &str) -> bool {
    let inner = name.strip_prefix('[').and_then(|name| name.strip_suffix(']'));
    inner.map_or_else(|| name.parse::<IpAddr>().is_ok(), |name| name.parse::<Ipv6Addr>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configured_names_and_all_addresses_are_accepted() {
        let hosts = Hosts::new(&["Keys.example".into(), "keypeg".into()]).unwrap();
        for good in [
            "",
            "localhost",
            "LOCALHOST:8000",
            "localhost.",
            "keys.localhost:8000",
            "a.b.LOCALHOST.",
            "127.0.0.1",
            "127.0.0.1:8000",
            "[::1]",
            "[::1]:8000",
            "10.1.2.3:80",
            "keys.example",
            "KEYS.example.:443",
            "keypeg:8000",
        ] {
            assert!(hosts.take(good), "{good}");
        }
        for bad in [
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "xkeypeg",
            "xlocalhost",
            "localhost.com",
            "keypeg.",
            "x.keypeg",
            "[::1",
            "[evil]",
            "evil.example:8000",
            "127.1",
            "0x7f000001",
        ] {
            assert_eq!(hosts.take(bad), bad == "keypeg.", "{bad}");
        }
        assert!(Hosts::new(&["*".into()]).unwrap().take("evil.example"));
        for bad in ["", "a b", "http://a", "a/b", "a:1", "*.example"] {
            assert_eq!(Hosts::new(&[bad.into()]), Err(bad.into()), "{bad}");
        }
    }
}
