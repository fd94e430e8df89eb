//! A server behind a proxy that stops, restarts or closes a connection: what the client gets, and
//! that the proxy sends no request a second time.

use super::recorder::Recorder;
use super::{Kind, Proxy, for_each_proxy};
use crate::support::{Server, binary, eventually};
use serde_json::json;
use std::process::Command;

for_each_proxy!(
    a_connection_is_kept_and_no_request_is_repeated,
    a_kept_connection_that_the_server_closed_fails_no_request,
    a_stopped_server_is_an_error_of_the_proxy,
);

/// The server closes the connection after it got the request of a path with `lost`.
fn a_connection_is_kept_and_no_request_is_repeated(kind: Kind) {
    let recorder = Recorder::start();
    let Some(proxy) = Proxy::start(kind, recorder.addr()) else { return };
    let mut client = proxy.client();
    for _ in 0..50 {
        client.ask("POST /v1/pools/p/leases").is(200, &json!({}));
    }
    // Caddy can get a request before it has put the last connection back among the kept ones.
    assert_eq!(recorder.heads().len(), 50);
    assert!(recorder.connections() < 50, "no connection was kept");
    let closes = |head: &String| head.to_lowercase().contains("\r\nconnection: close");
    assert!(!recorder.heads().iter().any(closes), "{:?}", recorder.heads().first());
    for request in ["POST /lost-1", "DELETE /lost-2", "GET /lost-3"] {
        client.ask("POST /v1/pools/p/leases").is(200, &json!({}));
        // HAProxy closes the client's connection instead of an answer.
        let answer = client.try_send(request, &[], "");
        assert!(answer.as_ref().map_or(kind == Kind::Haproxy, |it| it.status == 502), "{answer:?}");
        let heads = recorder.heads();
        let sent = heads.iter().filter(|head| head.starts_with(request)).count();
        // Caddy repeats a GET on a new connection.
        let sent_max = if kind == Kind::Caddy && request.starts_with("GET") { 2 } else { 1 };
        assert!((1..=sent_max).contains(&sent), "{request}: {sent}");
    }
}

/// The server closes idle connections earlier here than the proxy expects.
fn a_kept_connection_that_the_server_closed_fails_no_request(kind: Kind) {
    let server = Server::in_memory(&["--idle-timeout", "200ms"]);
    let Some(proxy) = Proxy::start(kind, server.addr()) else { return };
    let mut client = proxy.client();
    for _ in 0..3 {
        client.ask("POST /v1/pools/default/keys").is(201, &json!({}));
        // Only the connection that asks is open.
        eventually("the server closes the kept connection", || {
            let metrics = server.client().ask("GET /metrics").body;
            metrics.contains("\nkeypeg_http_connections 1\n").then_some(())
        });
        eventually("the proxy closes it too", || {
            (!has_half_closed(server.addr().port())).then_some(())
        });
    }
}

/// Returns whether a connection to this port is open although the server has closed it.
fn has_half_closed(port: u16) -> bool {
    const CLOSE_WAIT: &str = "08";
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    table.lines().any(|line| {
        let mut cells = line.split_whitespace().skip(2);
        let (remote, state) = (cells.next().unwrap_or_default(), cells.next());
        remote.ends_with(&format!(":{port:04X}")) && state == Some(CLOSE_WAIT)
    })
}

fn a_stopped_server_is_an_error_of_the_proxy(kind: Kind) {
    let mut server = Server::in_memory(&[]);
    let Some(proxy) = Proxy::start(kind, server.addr()) else { return };
    proxy.client().ask("GET /readyz").is(200, &json!({}));
    server.kill();
    let answer = eventually("the proxy answers for the server", || {
        proxy.client().try_send("GET /readyz", &[], "").ok()
    });
    assert!(matches!(answer.status, 502..=504), "{answer:?}");
    assert_ne!(answer.header("content-type"), Some("application/problem+json"), "{answer:?}");
    let mut command = Command::new(binary());
    let output = command.args(["pools", "--server", &proxy.url()]).env_clear().output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(76), "{stderr}");
    for says in ["did not come from Keypeg", "a proxy", "whether the server behind it runs"] {
        assert!(stderr.contains(says), "{stderr}");
    }
}

/// What needs a store that keeps its data: see CONTRIBUTING.md.
mod durability {
    use crate::deploy::proxies::waiting::{generate, until_waiting};
    use crate::deploy::proxies::{Kind, Proxy, for_each_proxy};
    use crate::support::proxy::Proxy as Address;
    use crate::support::{Server, TempDir, binary};
    use serde_json::json;
    use std::process::{Command, Stdio};

    for_each_proxy!(a_command_that_waits_goes_on_after_a_restart_of_the_server);

    /// The address of the server stays, as it does when a supervisor starts it again.
    fn a_command_that_waits_goes_on_after_a_restart_of_the_server(kind: Kind) {
        let dir = TempDir::new();
        let mut server = Server::on(&dir, &[]);
        let address = Address::to(server.addr());
        let upstream = address.url().strip_prefix("http://").unwrap().parse().unwrap();
        let Some(proxy) = Proxy::start(kind, upstream) else { return };
        let mut command = Command::new(binary());
        command.args(["acquire", "--wait", "10m", "--server", &proxy.url()]).env_clear();
        let waiting = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        until_waiting(&server, 1);
        address.remove_server();
        server.kill();
        let server = Server::on(&dir, &[]);
        address.replace_server(server.addr());
        until_waiting(&server, 1);
        generate(&server);
        let output = waiting.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        server.client().ask("GET /v1/pools/default").is(200, &json!({ "leased": 1 }));
    }
}
