//! The names this server goes by: a page of another site whose own name was made to lead here
//! (DNS rebinding) still sends that name in `Host`, and is refused by it.
//!
//! An address is no name that somebody else could have made lead here, so addresses are taken.

use std::net::{IpAddr, Ipv6Addr};

/// What `Host` may say. Ports do not matter: whoever is here has found the right one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hosts {
    named: Vec<String>,
    any: bool,
}

impl Hosts {
    /// Takes names beside `localhost` and addresses; `*` is any. `None` where one is no name.
    pub fn new(names: &[String]) -> Option<Self> {
        let mut hosts = Self::default();
        for name in names {
            let name = name.to_ascii_lowercase();
            let sign = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
            match &*name {
                "*" => hosts.any = true,
                "" => return None,
                name if name.bytes().all(sign) => hosts.named.push(name.into()),
                _ => return None,
            }
        }
        Some(hosts)
    }

    /// Tells whether `host`, with or without a port, is this server. An empty one is: it is what a
    /// client without a name sends, and no browser does.
    pub(crate) fn take(&self, host: &str) -> bool {
        let name = name_of(host);
        let name = name.strip_suffix('.').unwrap_or(name);
        self.any
            || name.is_empty()
            || name.eq_ignore_ascii_case("localhost")
            || is_address(name)
            || self.named.iter().any(|named| named.eq_ignore_ascii_case(name))
    }
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
    fn names_are_known_and_addresses_are_nobodys() {
        let hosts = Hosts::new(&["Keys.example".into(), "keypeg".into()]).unwrap();
        for good in [
            "",
            "localhost",
            "LOCALHOST:8000",
            "localhost.",
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
            assert_eq!(Hosts::new(&[bad.into()]), None, "{bad}");
        }
    }
}
