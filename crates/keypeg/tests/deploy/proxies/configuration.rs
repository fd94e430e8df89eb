//! The values of the configurations, compared with the limits of the server.

use super::Kind;

const ALL: [Kind; 3] = [Kind::Nginx, Kind::Haproxy, Kind::Caddy];

/// Returns the value of a setting, which must occur once.
fn setting(kind: Kind, name: &str) -> String {
    let text = kind.configuration();
    let lines = text.lines().map(str::trim);
    let mut values = lines.filter_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    let value = values.next().unwrap_or_else(|| panic!("{kind:?} has no {name}"));
    assert_eq!(values.next(), None, "{kind:?}: {name}");
    value.trim_end_matches(';').trim().into()
}

fn seconds(kind: Kind, name: &str) -> u64 {
    setting(kind, name).strip_suffix('s').and_then(|number| number.parse().ok()).unwrap()
}

#[test]
fn a_proxy_waits_longer_than_the_longest_wait_of_an_acquire() {
    let longest = keypeg_fields::WAIT_MAX_MS / 1000;
    for (kind, name) in [
        (Kind::Nginx, "proxy_read_timeout"),
        (Kind::Haproxy, "timeout server"),
        (Kind::Haproxy, "timeout client"),
        (Kind::Caddy, "response_header_timeout"),
    ] {
        assert!(seconds(kind, name) >= longest + 15, "{kind:?}: {name}");
    }
}

/// If the server closed first, a request that is on its way would be lost.
#[test]
fn a_proxy_closes_an_idle_connection_before_the_server_does() {
    let timeouts = include_str!("../../../src/http/timeouts.rs");
    let (_, idle) = timeouts.split_once("idle: Duration::from_secs(").unwrap();
    let idle: u64 = idle.split(')').next().unwrap().parse().unwrap();
    for (kind, name) in [
        (Kind::Nginx, "keepalive_timeout"),
        (Kind::Haproxy, "timeout http-keep-alive"),
        (Kind::Caddy, "keepalive"),
    ] {
        assert!(seconds(kind, name) + 10 <= idle, "{kind:?}: {name}");
    }
}

/// Above its share of the places, a caller is refused. All clients of a proxy can be one caller.
#[test]
fn a_proxy_has_fewer_connections_than_the_server_gives_one_caller() {
    for kind in ALL {
        let text = kind.configuration();
        let name = ["max_conns=", "maxconn ", "max_conns_per_host "]
            .into_iter()
            .find(|name| text.contains(name))
            .unwrap();
        let (_, value) = text.split_once(name).unwrap();
        let digits: String = value.chars().take_while(char::is_ascii_digit).collect();
        assert!(digits.parse::<u64>().unwrap() < 10_000 * 7 / 8, "{kind:?}: {digits}");
    }
}

#[test]
fn the_page_explains_the_values_of_the_configurations() {
    let page = include_str!("../../../../../docs/operations/proxy.md");
    for kind in ALL {
        assert!(page.contains(&format!("deploy/proxies/{}", kind.file())), "{kind:?}");
    }
    for name in [
        "proxy_read_timeout",
        "proxy_ignore_client_abort",
        "proxy_next_upstream",
        "proxy_buffering",
        "client_max_body_size",
        "worker_connections",
        "abortonclose",
        "redispatch",
        "timeout http-keep-alive",
        "flush_interval",
        "lb_retries",
        "response_header_timeout",
        "X-Forwarded-For",
        "--allow-host",
        "/readyz",
    ] {
        assert!(page.contains(name), "{name}");
    }
}
