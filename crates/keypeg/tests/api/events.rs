//! Events over HTTP, read with the client library: the event of each change, resuming after a
//! reconnect, and that neither a slow subscriber nor an open stream delays the server.

use crate::support::{self, Server, TempDir, eventually};
use keypeg_client::{
    AcquireRequest, Client, Code, Event, Events, GenerateRequest, KeyState, KeysAdded,
    PolicyRequest, Seconds,
};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

/// The longest time to wait for an event before the test fails.
const PATIENCE: Duration = Duration::from_mins(1);

fn client(server: &Server) -> Client {
    Client::new(&format!("http://{}", server.addr())).unwrap()
}

fn keys(count: u32) -> GenerateRequest {
    GenerateRequest { count: Some(count), ..GenerateRequest::default() }
}

async fn next(events: &mut Events) -> Option<Event> {
    tokio::time::timeout(PATIENCE, events.next()).await.expect("in time").unwrap()
}

/// Reads the next events and returns their names.
async fn names(events: &mut Events, count: usize) -> Vec<&'static str> {
    let mut names = Vec::new();
    for _ in 0..count {
        names.push(next(events).await.expect("an event").name());
    }
    names
}

#[tokio::test]
async fn each_change_of_a_pool_is_an_event() {
    let server = Server::in_memory(&[]);
    let client = client(&server);
    let policy = PolicyRequest {
        lease_ttl_seconds: Some(Seconds::from_ms(60_000)),
        max_hold_seconds: Some(Some(Seconds::from_ms(600_000))),
        ..PolicyRequest::default()
    };
    client.put_pool("ci", &policy).await.unwrap();
    let mut events = client.events("ci", None).await.unwrap();
    let Some(Event::Resync(resync)) = next(&mut events).await else { panic!("resync") };
    assert_eq!((resync.pool.as_str(), resync.total), ("ci", 0));
    let generated = client.generate("ci", &keys(1)).await.unwrap().keys;
    let Some(Event::Generated(KeysAdded { count: 1, key_ids, expires_at, .. })) =
        next(&mut events).await
    else {
        panic!("generated")
    };
    assert_eq!((&key_ids[0], expires_at), (&generated[0].id, generated[0].expires_at));
    let request = AcquireRequest {
        ttl_seconds: Some(Seconds::from_ms(5_000)),
        holder: Some("job \"7\" \\ ü".into()),
        ..AcquireRequest::default()
    };
    let lease = client.acquire("ci", &request).await.unwrap();
    let Some(Event::Granted(granted)) = next(&mut events).await else { panic!("granted") };
    assert_eq!((&granted.key_id, &granted.holder), (&lease.key_id, &request.holder));
    assert_eq!(
        (granted.fencing_token, granted.expires_at, granted.at),
        (lease.fencing_token, lease.expires_at, lease.granted_at)
    );
    let renewal = client.renew("ci", &lease.id, &keypeg_client::RenewRequest::default()).await;
    let Some(Event::Renewed(renewed)) = next(&mut events).await else { panic!("renewed") };
    assert_eq!(renewed.expires_at, renewal.unwrap().expires_at);
    client.release("ci", &lease.id).await.unwrap();
    let Some(Event::Released(released)) = next(&mut events).await else { panic!("released") };
    assert_eq!((released.state, released.rests_until), (KeyState::Available, None));
    client.delete_key("ci", &lease.key_id).await.unwrap();
    let Some(Event::Deleted(deleted)) = next(&mut events).await else { panic!("deleted") };
    assert_eq!((deleted.key_id, deleted.was), (lease.key_id, KeyState::Available));
    let rest_seconds = Some(Seconds::from_ms(1_500));
    let policy = PolicyRequest { rest_seconds, draining: Some(true), ..policy };
    client.put_pool("ci", &policy).await.unwrap();
    let Some(Event::Policy(changed)) = next(&mut events).await else { panic!("policy") };
    assert!(changed.draining);
    assert_eq!(changed.rest_seconds, Seconds::from_ms(1_500));
    client.delete_pool("ci").await.unwrap();
    let Some(Event::Dropped(_)) = next(&mut events).await else { panic!("dropped") };
    assert_eq!(next(&mut events).await, None);
}

#[tokio::test]
async fn expiry_and_purge_are_events_without_any_request() {
    let server = Server::in_memory(&[]);
    let client = client(&server);
    let short = Some(Seconds::from_ms(50));
    let policy = PolicyRequest {
        lease_ttl_seconds: short,
        rest_seconds: short,
        keepalive_ttl_seconds: Some(Some(Seconds::from_ms(400))),
        ..PolicyRequest::default()
    };
    client.put_pool("ci", &policy).await.unwrap();
    let mut events = client.events("ci", None).await.unwrap();
    assert_eq!(names(&mut events, 1).await, ["resync"]);
    client.generate("ci", &keys(1)).await.unwrap();
    client.acquire("ci", &AcquireRequest::default()).await.unwrap();
    let found = names(&mut events, 5).await;
    assert_eq!(found, ["generated", "granted", "expired", "restored", "purged"]);
}

/// Opens an event stream of the default pool and returns it unparsed.
fn open_raw(server: &Server, headers: &str) -> BufReader<TcpStream> {
    open_raw_from(server, Ipv4Addr::LOCALHOST, headers)
}

fn open_raw_from(server: &Server, source: Ipv4Addr, headers: &str) -> BufReader<TcpStream> {
    // A small receive buffer, so that unread events stay with the server.
    let mut stream = support::small_socket_from(server.addr(), source);
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let head = "GET /v1/pools/default/events HTTP/1.1\r\nhost: localhost\r\n";
    stream.write_all(format!("{head}{headers}\r\n").as_bytes()).unwrap();
    BufReader::new(stream)
}

/// A proxy closes a silent connection, also after the first heartbeat.
#[test]
fn a_silent_stream_has_one_heartbeat_after_the_other() {
    let server = Server::in_memory(&[]);
    let mut stream = open_raw(&server, "");
    until(&mut stream, "event: resync");
    let (mut line, mut heartbeats) = (String::new(), 0);
    while heartbeats < 2 {
        line.clear();
        assert!(stream.read_line(&mut line).unwrap() > 0, "the stream has ended");
        heartbeats += usize::from(line == ":\n");
    }
}

/// Reads lines up to one that contains `what`; fails at the end of the stream or a comment line.
#[track_caller]
fn until(stream: &mut BufReader<TcpStream>, what: &str) -> String {
    let mut text = String::new();
    while !text.lines().next_back().is_some_and(|line| line.contains(what)) {
        let len = stream.read_line(&mut text).unwrap();
        assert!(
            len > 0 && !text.ends_with("\n:\n"),
            "the end or a comment line instead of {what}: {text}"
        );
    }
    text
}

#[test]
fn a_stream_follows_the_sse_standard_and_contains_no_secret() {
    let server = Server::in_memory(&[]);
    let client = &mut server.client();
    let mut stream = open_raw(&server, "last-event-id: \u{e9}\r\n");
    until(&mut stream, "resync");
    let values: Vec<_> = (0..3).map(|index| format!("imported-{index}")).collect();
    let generated = client.ask("POST /v1/pools/default/keys").is(201, &json!({}));
    client.send("POST /v1/pools/default/keys", &json!({ "values": values })).is(201, &json!({}));
    let mut leases = Vec::new();
    for _ in 0..4 {
        let body = json!({ "holder": "h" });
        leases.push(client.send("POST /v1/pools/default/leases", &body).text("id"));
    }
    for (lease, body) in leases.iter().zip([
        json!({ "rest_seconds": 5, "reason": "why" }),
        json!({ "quarantine": true }),
        json!({}),
    ]) {
        let path = format!("POST /v1/pools/default/leases/{lease}/release");
        client.send(&path, &body).is(204, &Value::Null);
    }
    client.send("PUT /v1/pools/default", &json!({ "rest_seconds": 1 })).is(200, &json!({}));
    until(&mut stream, "event: policy");
    let second = &mut open_raw(&server, "");
    let head = until(second, "retry");
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    for header in ["content-type: text/event-stream", "cache-control: no-store"] {
        assert!(head.contains(header), "{head}");
    }
    let first_id =
        until(second, "data").lines().find_map(|line| line.strip_prefix("id: ").map(str::to_owned));
    let first_id = first_id.unwrap();
    // Every event after the first one again.
    let id = format!("last-event-id: {}-1\r\n", first_id.rsplit_once('-').unwrap().0);
    let mut all = open_raw(&server, &id);
    let text = until(&mut all, "rest_seconds");
    let values = values.iter().map(String::as_str);
    let secret = generated["keys"][0]["key"].as_str().unwrap();
    for hidden in values.chain([secret]).chain(leases.iter().map(String::as_str)) {
        assert!(!text.contains(hidden), "{hidden} in {text}");
    }
    for name in ["generated", "imported", "granted", "released", "quarantined", "policy"] {
        assert!(text.contains(&format!("\nevent: {name}\ndata: {{\"at\":\"20")), "{name}: {text}");
    }
}

#[tokio::test]
async fn a_subscriber_that_reconnects_gets_exactly_the_events_it_missed() {
    let server = Server::in_memory(&[]);
    let client = client(&server);
    let mut events = client.events("default", None).await.unwrap();
    names(&mut events, 1).await;
    client.generate("default", &keys(3)).await.unwrap();
    names(&mut events, 1).await;
    let id = events.last_id().unwrap().to_owned();
    drop(events);
    let mut granted = Vec::new();
    for _ in 0..3 {
        let lease = client.acquire("default", &AcquireRequest::default()).await.unwrap();
        granted.push(lease.fencing_token);
        client.release("default", &lease.id).await.unwrap();
    }
    let mut events = client.events("default", Some(&id)).await.unwrap();
    assert_eq!(events.last_id(), Some(id.as_str()));
    for token in granted {
        let Some(Event::Granted(event)) = next(&mut events).await else { panic!("granted") };
        assert_eq!(event.fencing_token, token);
        let Some(Event::Released(event)) = next(&mut events).await else { panic!("released") };
        assert_eq!(event.fencing_token, token);
    }
    client.generate("default", &keys(1)).await.unwrap();
    assert_eq!(names(&mut events, 1).await, ["generated"]);
}

#[tokio::test]
#[expect(clippy::wildcard_enum_match_arm, reason = "no other event may occur here")]
async fn a_subscriber_that_does_not_read_delays_no_other_and_resumes_with_the_counts() {
    const GRANTS: usize = 12_000;
    // The stuck subscriber keeps its stream for longer than a busy machine takes.
    let server = Server::in_memory(&["--write-timeout", "1h"]);
    let client = client(&server);
    client.generate("default", &keys(100)).await.unwrap();
    let mut stuck = open_raw(&server, "");
    until(&mut stuck, "resync");
    let mut reader = client.events("default", None).await.unwrap();
    assert_eq!(names(&mut reader, 1).await, ["resync"]);
    let tasks = (0..20).map(|_| {
        let client = client.clone();
        tokio::spawn(async move {
            for _ in 0..GRANTS / 20 {
                let request = AcquireRequest {
                    holder: Some("\u{1d11e}".repeat(128)),
                    ..AcquireRequest::default()
                };
                let lease = client.acquire("default", &request).await.unwrap();
                client.release("default", &lease.id).await.unwrap();
            }
        })
    });
    let tasks: Vec<_> = tasks.collect();
    let mut granted = 0;
    while granted < GRANTS {
        match next(&mut reader).await.expect("an event") {
            Event::Granted(_) => granted += 1,
            Event::Released(_) => {}
            other => panic!("a subscriber that keeps up misses nothing: {}", other.name()),
        }
    }
    for task in tasks {
        task.await.unwrap();
    }
    // First the events that the kernel buffered, then a resync for the missed ones.
    let text = until(&mut stuck, "event: resync");
    assert!(text.matches("event: granted").count() < GRANTS);
    let data = until(&mut stuck, "data: ");
    assert!(data.contains("\"available\":100,\"leased\":0"), "{data}");
    drop(stuck);
    drop(reader);
    // A client's connections end on its own runtime, which must not be blocked meanwhile.
    let unsubscribed = async {
        loop {
            let metrics = client.metrics().await.unwrap();
            if metrics.contains("\nkeypeg_followers 0\n") {
                break metrics;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let metrics = tokio::time::timeout(PATIENCE, unsubscribed).await.expect("no subscriber");
    assert!(metrics.contains("\nkeypeg_resyncs_total 3\n"), "{metrics}");
    let line = metrics.lines().find_map(|line| line.strip_prefix("keypeg_events_total "));
    let sent: usize = line.unwrap().parse().unwrap();
    // The reader has all grants, and releases but those of the last 20 grants; the other subscriber
    // has few, because the kernel takes little for it.
    assert!((2 * GRANTS - 20..3 * GRANTS).contains(&sent), "{sent} events to two subscribers");
}

#[tokio::test]
async fn an_invalid_subscription_is_refused_before_a_stream_begins() {
    let server = Server::in_memory(&[]);
    let refused = client(&server).events("nope", None).await.unwrap_err();
    assert_eq!(refused.problem().map(|problem| problem.code), Some(Code::UnknownPool));
    let client = &mut server.client();
    client.ask("GET /v1/pools/No/events").problem(404, "unknown_pool");
    let answer = client.ask("POST /v1/pools/default/events");
    assert_eq!(answer.header("allow"), Some("GET, HEAD, OPTIONS"));
    answer.problem(405, "method_not_allowed");
    let head = client.ask("HEAD /v1/pools/default/events");
    assert_eq!((head.status, head.header("content-type")), (200, Some("text/event-stream")));
    assert_eq!(client.ask("HEAD /v1/pools/nope/events").status, 404);
}

/// One caller once took all places.
#[test]
fn a_thousand_streams_are_the_limit_and_half_of_them_that_of_one_caller() {
    const STREAMS: &str = "GET /v1/pools/default/events";
    let server = Server::in_memory(&["--memory", "4GiB"]);
    let (mut client, own) = (server.client(), Ipv4Addr::LOCALHOST);
    let mut all: Vec<_> = (0..500).map(|_| open_raw_from(&server, own, "")).collect();
    let followers = |client: &mut support::Client, count: u32| {
        eventually("the subscribers", || {
            let line = format!("\nkeypeg_followers {count}\n");
            client.ask("GET /metrics").body.contains(&line).then_some(())
        });
    };
    followers(&mut client, 500);
    let share = client.ask(STREAMS);
    assert_eq!(share.header("retry-after"), Some("1"));
    share.problem(429, "rate_limited");
    let others = (0..500).map(|n| Ipv4Addr::from(0x7f01_0001 + n));
    all.extend(others.map(|other| open_raw_from(&server, other, "")));
    followers(&mut client, 1_000);
    let problem = support::Client::from(server.addr(), [127, 2, 0, 1].into()).ask(STREAMS);
    assert_eq!(problem.header("retry-after"), Some("1"));
    problem.problem(503, "overloaded");
    drop(all);
    followers(&mut client, 0);
    assert_eq!(client.ask("HEAD /v1/pools/default/events").status, 200);
}

/// What needs a store that keeps its data: see CONTRIBUTING.md.
mod durability {
    use super::{AcquireRequest, Event, Server, TempDir, client, keys, names, next};

    #[tokio::test]
    async fn a_stop_ends_the_stream_and_the_next_start_sends_the_counts() {
        let dir = TempDir::new();
        let mut server = Server::on(&dir, &[]);
        let first = client(&server);
        let mut events = first.events("default", None).await.unwrap();
        assert_eq!(names(&mut events, 1).await, ["resync"]);
        first.generate("default", &keys(2)).await.unwrap();
        first.acquire("default", &AcquireRequest::default()).await.unwrap();
        assert_eq!(names(&mut events, 2).await, ["generated", "granted"]);
        let id = events.last_id().unwrap().to_owned();
        assert_eq!(server.terminate().code(), Some(0), "a stream does not delay a stop");
        assert_eq!(next(&mut events).await, None, "the stream ended and was not cut off");
        let server = Server::on(&dir, &[]);
        let mut events = client(&server).events("default", Some(&id)).await.unwrap();
        let Some(Event::Resync(resync)) = next(&mut events).await else { panic!("resync") };
        assert_eq!((resync.available, resync.leased, resync.total), (1, 1, 2));
    }
}
