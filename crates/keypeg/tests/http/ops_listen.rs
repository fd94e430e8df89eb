//! `--ops-listen`: health and metrics on an address of their own, whatever happens on the other one.

use crate::support::tokens::Tokens;
use crate::support::{Client, Server, TempDir, eventually, keypeg_under, skipped};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;

const OPS: [&str; 2] = ["--ops-listen", "127.0.0.1:0"];

fn ops_addr(server: &Server) -> SocketAddr {
    let (_, addr) = server.ready().split_once(", operations on http://").expect("both addresses");
    addr.parse().unwrap()
}

#[test]
fn the_operations_address_serves_health_metrics_and_version_only() {
    let server = Server::in_memory(&OPS);
    let [ops, clients] = &mut [Client::new(ops_addr(&server)), server.client()];
    for path in ["/livez", "/readyz", "/metrics", "/version"] {
        assert_eq!(ops.ask(&format!("GET {path}")).status, 200, "{path}");
        assert_eq!(clients.ask(&format!("GET {path}")).status, 200, "{path}");
    }
    for request in [
        "GET /v1/pools",
        "POST /v1/pools/default/leases",
        "GET /keys",
        "GET /",
        "GET /docs",
        "OPTIONS /v1/pools",
        "GET /nope",
    ] {
        let problem = ops.ask(request).problem(404, "not_found");
        assert!(problem["detail"].as_str().unwrap().contains("--listen"), "{request}: {problem}");
    }
    ops.ask("POST /livez").problem(405, "method_not_allowed");
    // Requests of this address count too.
    let metrics = ops.ask("GET /metrics").body;
    assert!(
        metrics.contains("keypeg_http_requests_total{route=\"ops\",status=\"2xx\"} 8"),
        "{metrics}"
    );
}

#[test]
fn the_operations_address_needs_the_same_tokens() {
    let tokens = Tokens::new();
    let scraper = tokens.add("scraper", "*", &["metrics"], &[]);
    let [option, file] = tokens.args();
    let server = Server::in_memory(&[OPS[0], OPS[1], &option, &file]);
    let ops = &mut Client::new(ops_addr(&server));
    assert_eq!(ops.ask("GET /livez").status, 200);
    assert_eq!(ops.ask("GET /readyz").status, 200);
    ops.ask("GET /metrics").problem(401, "unauthorized");
    ops.ask("GET /version").problem(401, "unauthorized");
    assert_eq!(ops.with(&scraper, "GET /metrics").status, 200);
}

#[test]
fn health_is_answered_while_clients_fill_the_other_address() {
    if Command::new("prlimit").arg("--version").output().is_err() {
        return skipped("health_is_answered_while_clients_fill_the_other_address", "no prlimit");
    }
    let dir = TempDir::new();
    let mut command = keypeg_under(&["prlimit", "--nofile=200:200", "--"], &["--ephemeral"]);
    let server = Server::logged(command.args(OPS), &dir.path().join("log"));
    let ops = &mut Client::new(ops_addr(&server));
    let head = "POST /v1/pools/default/leases HTTP/1.1\r\nhost: localhost\r\nprefer: wait=300\r\n";
    let mut waiting = Vec::new();
    eventually("no place is left", || {
        let mut client = server.client();
        client.write(format!("{head}\r\n").as_bytes()).unwrap();
        waiting.push(client);
        let metrics = ops.ask("GET /metrics").body;
        (!metrics.contains("keypeg_http_connections_refused_total 0")).then_some(())
    });
    assert_eq!(ops.ask("GET /readyz").status, 200);
    // Its own places are as few as it needs, and silent connections do not fill them either.
    let silent: Vec<_> = (0..100).map(|_| TcpStream::connect(ops_addr(&server)).unwrap()).collect();
    assert_eq!(Client::new(ops_addr(&server)).ask("GET /livez").status, 200);
    drop(silent);
}
