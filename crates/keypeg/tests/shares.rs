//! One token cannot take the server from the others: under overload its surplus is refused, and
//! whatever another asks is answered.

use crate::support::tokens::Tokens;
use crate::support::{Client, Server, TempDir, eventually, keypeg_under, skipped};
use serde_json::json;
use std::process::Command;

const POOL: &str = "/v1/pools/default";
/// Connections of a server with so few descriptors, and half of them.
const ROOM: usize = 400 - 64;
const HALF: usize = ROOM / 2;

fn metric(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no {name}: {text}"))
}

/// Asks for a key that is not there, and waits for it.
fn wait(server: &Server, token: &str) -> Client {
    let mut client = server.client();
    let head = format!("POST {POOL}/leases HTTP/1.1\r\nhost: localhost\r\nprefer: wait=300");
    client.write(format!("{head}\r\nauthorization: Bearer {token}\r\n\r\n").as_bytes()).unwrap();
    client
}

#[test]
fn a_noisy_token_leaves_the_others_theirs() {
    if Command::new("prlimit").arg("--version").output().is_err() {
        return skipped("a_noisy_token_leaves_the_others_theirs", "no prlimit");
    }
    let (tokens, dir) = (Tokens::new(), TempDir::new());
    let [noisy, calm, late] =
        ["noisy", "calm", "late"].map(|name| tokens.add(name, "*", &["admin"], &[]));
    let mut command = keypeg_under(&["prlimit", "--nofile=400:400", "--"], &["--ephemeral"]);
    let server = Server::logged(command.args(tokens.args()), &dir.path().join("log"));
    let client = &mut server.client();
    let waiting = |client: &mut Client| {
        client.with(&calm, &format!("GET {POOL}")).json()["waiting"]
            .as_u64()
            .map(usize::try_from)
            .unwrap()
            .unwrap()
    };
    // While nobody else wants any, it may have half of all there is room for, and no more.
    let mut alone = Vec::new();
    eventually("half is taken", || {
        let is = waiting(client) == HALF;
        if !is {
            alone.push(wait(&server, &noisy));
        }
        is.then_some(())
    });
    let refused = |server: &Server| {
        let answer = wait(server, &noisy).read(false).unwrap();
        assert!(answer.header("retry-after").is_some());
        assert_eq!(answer.header("connection"), Some("close"), "so that others find room");
        answer.problem(429, "rate_limited");
    };
    for _ in 0..50 {
        refused(&server);
    }
    // All that another asks is answered, at the same time as much as is its share.
    let asks = |client: &mut Client| {
        let made = client.with(&calm, "PUT /v1/pools/ci");
        assert!(made.status < 300, "{made:?}");
        for _ in 0..20 {
            client.with(&calm, "POST /v1/pools/ci/keys").is(201, &json!({}));
            let lease = client.with(&calm, "POST /v1/pools/ci/leases").text("id");
            let release = format!("POST /v1/pools/ci/leases/{lease}/release");
            assert_eq!(client.with(&calm, &release).status, 204);
            refused(&server);
        }
    };
    asks(client);
    let calms: Vec<_> = (0..HALF / 2 - 2).map(|_| wait(&server, &calm)).collect();
    eventually("both wait", || (waiting(client) == HALF + calms.len()).then_some(()));
    asks(client);
    for _ in 0..5 {
        assert_eq!(server.client().with(&late, "GET /v1/pools").status, 200, "a third finds room");
    }
    let metrics = client.with(&calm, "GET /metrics").body;
    assert!(metric(&metrics, "keypeg_refusals_total{code=\"rate_limited\"}") >= 90);
    // What is given back is there for whoever comes; nothing of it was lost.
    alone.clear();
    drop(calms);
    eventually("nobody waits", || (waiting(client) == 0).then_some(()));
    client.with(&calm, &format!("POST {POOL}/keys")).is(201, &json!({}));
    server.client().with(&noisy, &format!("POST {POOL}/leases")).is(201, &json!({}));
}
