//! The address of a caller behind a real proxy, with `--behind-proxy`: in the audit log and in the
//! limits, also behind two proxies, and never one that the caller wrote itself.
//!
//! All proxies have the address 127.0.0.1. A caller has another address of loopback.

use super::{Kind, Proxy, for_each_proxy};
use crate::support::tokens::Tokens;
use crate::support::{Client, Server, TempDir, eventually};
use serde_json::Value;
use std::net::{Ipv4Addr, SocketAddr};

for_each_proxy!(
    the_audit_log_has_the_address_of_the_caller,
    limits_count_for_the_caller,
    a_caller_behind_two_proxies_has_its_own_address,
);

const CALLER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
const OTHER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 3);
/// What a caller writes to seem another one.
const FORGED: [&[(&str, &str)]; 4] = [
    &[],
    &[("x-forwarded-for", "203.0.113.7, 127.0.0.1")],
    &[("forwarded", "for=203.0.113.7")],
    &[("x-forwarded-for", "203.0.113.7"), ("forwarded", "for=203.0.113.7")],
];
/// The fast path answers the first, hyper the other.
const REQUESTS: [&str; 2] = ["POST /v1/pools/default/leases", "PUT /v1/pools/default"];

/// A server that names 127.0.0.1 as its proxy, and its audit log.
struct Behind {
    server: Server,
    dir: TempDir,
    seen: usize,
}

impl Behind {
    fn new(more: &[&str]) -> Self {
        let dir = TempDir::new();
        let audit = dir.path().join("audit");
        let args = ["--behind-proxy", "127.0.0.1", "--audit", audit.to_str().unwrap()];
        Self { server: Server::in_memory(&[&args[..], more].concat()), dir, seen: 0 }
    }

    /// Sends a request from an address to a proxy or to the server; returns the address in its line
    /// of the audit log.
    fn logged(
        &mut self,
        from: Ipv4Addr,
        to: SocketAddr,
        request: &str,
        forged: &[(&str, &str)],
    ) -> String {
        Client::from(to, from).try_send(request, forged, "").unwrap();
        self.seen += 1;
        eventually("the line of the audit log", || {
            let text = std::fs::read_to_string(self.dir.path().join("audit")).unwrap();
            let line = text.split_inclusive('\n').nth(self.seen - 1)?;
            let line: Value = serde_json::from_str(line.strip_suffix('\n')?).unwrap();
            Some(line["address"].as_str().unwrap().to_owned())
        })
    }
}

fn the_audit_log_has_the_address_of_the_caller(kind: Kind) {
    let mut behind = Behind::new(&[]);
    let Some(proxy) = Proxy::start(kind, behind.server.addr()) else { return };
    let (through, direct) = (proxy.addr, behind.server.addr());
    for request in REQUESTS {
        for forged in FORGED {
            for from in [CALLER, OTHER] {
                let logged = behind.logged(from, through, request, forged);
                assert_eq!(logged, from.to_string(), "{request} {forged:?}");
            }
            // A caller that is no proxy, without one.
            let logged = behind.logged(CALLER, direct, request, forged);
            assert_eq!(logged, CALLER.to_string(), "{request} {forged:?}");
        }
    }
}

fn limits_count_for_the_caller(kind: Kind) {
    let tokens = Tokens::new();
    let token = tokens.add("ci", "*", &["read", "lend"], &[]);
    let behind = Behind::new(&tokens.args().each_ref().map(String::as_str));
    let Some(proxy) = Proxy::start(kind, behind.server.addr()) else { return };
    let ask = |from: Ipv4Addr, token: &str| {
        let bearer = format!("Bearer {token}");
        let headers = [("authorization", &*bearer), ("x-forwarded-for", "203.0.113.7")];
        Client::from(proxy.addr, from).try_send(REQUESTS[0], &headers, "").unwrap().status
    };
    // The burst is 20, and one a second comes back.
    let limited = (0..1_000).map(|_| ask(CALLER, "kpt_wrong")).find(|status| *status != 401);
    assert_eq!(limited, Some(429));
    assert_eq!(ask(OTHER, "kpt_wrong"), 401, "another caller has its own limit");
    assert_eq!(ask(CALLER, &token), 404, "a valid token is accepted");
}

/// The lines of the shipped configuration that change where another proxy is in front.
fn second_of_two(kind: Kind) -> &'static [(&'static str, &'static str)] {
    match kind {
        Kind::Nginx => &[
            (
                "proxy_set_header X-Forwarded-For $remote_addr;",
                "proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;",
            ),
            ("proxy_set_header Forwarded $keypeg_forwarded;", "proxy_set_header Forwarded \"\";"),
        ],
        Kind::Haproxy => &[
            (
                "http-request set-header X-Forwarded-For %[src]",
                "http-request add-header X-Forwarded-For %[src]",
            ),
            (
                "http-request set-header Forwarded for=%[src];proto=https\n",
                "http-request del-header Forwarded\n",
            ),
            (
                "    http-request set-header Forwarded for=\\\"[%[src]]\\\";proto=https if { src -m sub : }\n",
                "",
            ),
        ],
        Kind::Caddy => {
            &[("header_up -Forwarded\n", "header_up -Forwarded\n\t\ttrusted_proxies 127.0.0.1\n")]
        }
    }
}

fn a_caller_behind_two_proxies_has_its_own_address(kind: Kind) {
    let mut behind = Behind::new(&[]);
    let changes = second_of_two(kind);
    let Some(second) = Proxy::with(kind, behind.server.addr(), None, changes) else { return };
    for first in [Kind::Nginx, Kind::Haproxy, Kind::Caddy] {
        let Some(first) = Proxy::start(first, second.addr) else { continue };
        for request in REQUESTS {
            for forged in FORGED {
                let logged = behind.logged(CALLER, first.addr, request, forged);
                assert_eq!(logged, CALLER.to_string(), "{:?} {request} {forged:?}", first.kind);
            }
        }
    }
    // The second proxy can be asked without the first one.
    for forged in FORGED {
        let logged = behind.logged(CALLER, second.addr, REQUESTS[0], forged);
        assert_eq!(logged, CALLER.to_string(), "{forged:?}");
    }
}

#[test]
fn the_page_has_the_lines_of_the_second_of_two_proxies() {
    let page = include_str!("../../../../../docs/operations/proxy.md");
    for kind in [Kind::Nginx, Kind::Haproxy, Kind::Caddy] {
        for (_, to) in second_of_two(kind) {
            let line = to.trim().lines().last().unwrap_or_default().trim();
            let line = line.replace("127.0.0.1", "10.0.0.6");
            assert!(page.contains(&line), "{kind:?}: {line}");
        }
    }
}
