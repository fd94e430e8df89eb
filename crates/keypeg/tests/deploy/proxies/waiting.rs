//! Requests that wait, through a proxy: their answers, what happens when their clients leave, and
//! event streams.

use super::{Kind, Proxy, for_each_proxy};
use crate::support::{Client, Server, eventually};
use serde_json::json;

for_each_proxy!(
    an_acquire_waits_for_its_key,
    a_request_whose_client_left_is_abandoned,
    an_event_arrives_at_once,
);

const LEASES: &str = "POST /v1/pools/default/leases";

/// Waits until so many requests are in the wait queue.
pub(super) fn until_waiting(server: &Server, count: u64) {
    let mut client = server.client();
    eventually("the number of waiting requests", || {
        let pool = client.ask("GET /v1/pools/default").json();
        (pool["waiting"] == count).then_some(())
    });
}

pub(super) fn generate(server: &Server) {
    server.client().ask("POST /v1/pools/default/keys").is(201, &json!({}));
}

/// `just proxies` waits for longer than the 60 s after which proxies give up without a configuration.
fn an_acquire_waits_for_its_key(kind: Kind) {
    let seconds: u64 = match std::env::var("KEYPEG_PROXY_WAIT") {
        Ok(seconds) => seconds.parse().expect("seconds"),
        Err(_) => 1,
    };
    let server = Server::in_memory(&[]);
    let Some(proxy) = Proxy::start(kind, server.addr()) else { return };
    let request = json!({ "wait_seconds": seconds });
    let mut waiting = WaitingClient::new(&proxy, seconds);
    waiting.client.write(&waiting.request).unwrap();
    let answer = waiting.client.read(false);
    answer.unwrap().problem(404, "no_key_available");
    // The same with a key at the end.
    let mut waiting = WaitingClient::new(&proxy, 300);
    waiting.client.write(&waiting.request).unwrap();
    until_waiting(&server, 1);
    generate(&server);
    waiting.client.read(false).unwrap().is(201, &json!({}));
    proxy.client().send(LEASES, &request).problem(404, "no_key_available");
}

struct WaitingClient {
    client: Client,
    request: Vec<u8>,
}

impl WaitingClient {
    fn new(proxy: &Proxy, seconds: u64) -> Self {
        let body = json!({ "wait_seconds": seconds }).to_string();
        let request = format!(
            "{LEASES} HTTP/1.1\r\nhost: {}\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n{body}",
            proxy.addr,
            body.len()
        );
        Self { client: proxy.client(), request: request.into() }
    }

    fn sent(proxy: &Proxy) -> Self {
        let mut waiting = Self::new(proxy, 300);
        waiting.client.write(&waiting.request).unwrap();
        waiting
    }
}

/// The first one leaves the queue, so the key goes to the second.
fn a_request_whose_client_left_is_abandoned(kind: Kind) {
    let server = Server::in_memory(&[]);
    let Some(proxy) = Proxy::start(kind, server.addr()) else { return };
    for _ in 0..3 {
        let leaving = WaitingClient::sent(&proxy);
        until_waiting(&server, 1);
        let mut staying = WaitingClient::sent(&proxy);
        until_waiting(&server, 2);
        drop(leaving);
        until_waiting(&server, 1);
        generate(&server);
        staying.client.read(false).unwrap().is(201, &json!({}));
    }
    // A client that sent a further request, and closes.
    let mut leaving = WaitingClient::sent(&proxy);
    until_waiting(&server, 1);
    if kind != Kind::Caddy {
        leaving.client.write(b"GET /readyz HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
    }
    drop(leaving);
    until_waiting(&server, 0);
    server.client().ask("GET /v1/pools/default").is(200, &json!({"leased": 3, "available": 0}));
}

/// A proxy with a buffer would keep the event until the buffer is full.
fn an_event_arrives_at_once(kind: Kind) {
    let server = Server::in_memory(&[]);
    let Some(proxy) = Proxy::start(kind, server.addr()) else { return };
    let mut stream = proxy.client();
    let request = format!("GET /v1/pools/default/events HTTP/1.1\r\nhost: {}\r\n\r\n", proxy.addr);
    stream.write(request.as_bytes()).unwrap();
    let mut until =
        |text: &str| while !stream.line().expect("the stream goes on").contains(text) {};
    until("event: resync");
    for _ in 0..3 {
        generate(&server);
        until("event: generated");
    }
    let followers = || {
        let metrics = server.client().ask("GET /metrics").body;
        let line = metrics.lines().find_map(|line| line.strip_prefix("keypeg_followers "));
        line.unwrap().to_owned()
    };
    assert_eq!(followers(), "1");
    drop(stream);
    eventually("the stream ends with its client", || (followers() == "0").then_some(()));
}
