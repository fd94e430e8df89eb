//! The address of a caller behind a proxy: in the audit log and in limits, on the fast path and on
//! the way of hyper, and never from a client that is no proxy.

use crate::support::tokens::Tokens;
use crate::support::{Client, Server, TempDir, eventually};
use serde_json::json;
use std::net::Ipv4Addr;

/// The fast path answers the first, hyper the others.
const REQUESTS: [&str; 3] =
    ["POST /v1/pools/default/leases", "POST /v1/pools/default/leases?", "PUT /v1/pools/default"];

struct Behind {
    server: Server,
    dir: TempDir,
}

impl Behind {
    fn new(more: &[&str]) -> Self {
        let dir = TempDir::new();
        let audit = dir.path().join("audit");
        let args = ["--behind-proxy", "127.0.0.1,10.1.0.0/16", "--audit", audit.to_str().unwrap()];
        Self { server: Server::in_memory(&[&args[..], more].concat()), dir }
    }

    /// Returns the addresses in the audit log, once it has `count` lines.
    fn addresses(&self, count: usize) -> Vec<String> {
        eventually("the lines of the audit log", || {
            let text = std::fs::read_to_string(self.dir.path().join("audit")).unwrap();
            let lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
            let lines: Vec<serde_json::Value> = lines.collect();
            let address = |line: &serde_json::Value| line["address"].as_str().unwrap().to_owned();
            (lines.len() >= count).then(|| lines.iter().map(address).collect())
        })
    }
}

#[test]
fn the_audit_log_has_the_address_of_the_caller() {
    let behind = Behind::new(&[]);
    let client = &mut behind.server.client();
    client.send("POST /v1/pools/default/keys", &json!({ "count": 10 })).is(201, &json!({}));
    let mut expected = vec!["127.0.0.1".to_owned()];
    for request in REQUESTS {
        for (headers, address) in [
            (&[("x-forwarded-for", "6.6.6.6, 1.2.3.4")][..], "1.2.3.4"),
            (&[("forwarded", "for=\"[2001:db8::1]:5\"")], "2001:db8::1"),
            (&[("x-forwarded-for", "1.2.3.4, 10.1.2.3")], "1.2.3.4"),
            (&[("x-forwarded-for", "6.6.6.6"), ("x-forwarded-for", "1.2.3.5")], "1.2.3.5"),
            (&[("x-forwarded-for", "1.2.3.4"), ("forwarded", "for=6.6.6.6")], "127.0.0.1"),
            (&[("x-forwarded-for", "unknown")], "127.0.0.1"),
            (&[("x-real-ip", "6.6.6.6")], "127.0.0.1"),
        ] {
            client.try_send(request, headers, "").unwrap();
            expected.push(address.into());
            assert_eq!(behind.addresses(expected.len()), expected, "{request} {headers:?}");
        }
    }
}

#[test]
fn a_client_that_is_no_proxy_names_no_other_address() {
    let behind = Behind::new(&[]);
    let mut client = Client::from(behind.server.addr(), Ipv4Addr::new(127, 0, 0, 2));
    let mut expected = Vec::new();
    for request in REQUESTS {
        for header in [("x-forwarded-for", "1.2.3.4"), ("forwarded", "for=1.2.3.4")] {
            client.try_send(request, &[header], "").unwrap();
            expected.push("127.0.0.2".to_owned());
            assert_eq!(behind.addresses(expected.len()), expected, "{request} {header:?}");
        }
    }
}

/// All clients behind a proxy once shared one address: one that guessed tokens shut out the others.
#[test]
fn wrong_tokens_count_for_the_caller_and_not_for_the_proxy() {
    let tokens = Tokens::new();
    tokens.add("ci", "*", &["read", "lend"], &[]);
    let args = tokens.args();
    let behind = Behind::new(&args.each_ref().map(String::as_str));
    for request in REQUESTS {
        let ask = |address: &str| {
            let headers = [("authorization", "Bearer kpt_wrong"), ("x-forwarded-for", address)];
            behind.server.client().try_send(request, &headers, "").unwrap().status
        };
        let guesses: Vec<_> = (0..60).map(|_| ask("1.2.3.4")).collect();
        assert!(guesses.contains(&429), "{request}: {guesses:?}");
        assert_eq!(ask(&format!("1.2.3.{}", request.len())), 401, "{request}");
    }
}

/// The refusal said that all clients of a gateway share one limit, also where they do not.
#[test]
fn unknown_keys_count_for_the_caller_and_not_for_the_gateway() {
    let behind = Behind::new(&[]);
    let client = &mut behind.server.client();
    let mut ask = |address: &str| {
        let headers = [("x-api-key", "guess"), ("x-forwarded-for", address)];
        client.try_send("GET /v1/pools/default/verify", &headers, "").unwrap()
    };
    // The burst is 1000, and 100 a second come back.
    let limited = (0..100_000).map(|_| ask("1.2.3.4")).find(|answer| answer.status != 403);
    let problem = limited.expect("guesses are limited").problem(429, "rate_limited");
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.contains("--behind-proxy"), "{detail}");
    assert_eq!(ask("1.2.3.5").status, 403);
}

#[test]
fn an_address_that_is_not_one_is_refused_at_the_start() {
    for (value, says) in [("proxy", "must be the address"), ("0.0.0.0/0", "must be the address")] {
        let mut command = crate::support::keypeg(&["--ephemeral", "--behind-proxy", value]);
        let (code, said) = crate::support::exit_of(&mut command);
        assert!(code == 64 && said.contains(says), "{value}: {code} {said}");
    }
}
