//! `keypeg-client` against the real binary: each call, each kind of error, and the guard's life.

use crate::support::Server;
use keypeg_client::{
    AcquireRequest, Client, Code, Error, GenerateRequest, KeepAliveRequest, KeyState, Outcome,
    PolicyRequest, ReleaseRequest, RenewRequest, Seconds, Secret,
};
use std::io::{Read, Write};
use std::net::TcpListener;

fn client(server: &Server) -> Client {
    Client::new(&format!("http://{}", server.addr())).unwrap()
}

#[track_caller]
fn refused<T: std::fmt::Debug>(answer: Result<T, Error>, code: Code) {
    let error = answer.unwrap_err();
    assert_eq!(error.problem().map(|problem| problem.code), Some(code), "{error:?}");
}

fn policy(lease_ms: u64, hold_ms: u64) -> PolicyRequest {
    PolicyRequest {
        lease_ttl_seconds: Some(Seconds::from_ms(lease_ms)),
        max_hold_seconds: Some(Some(Seconds::from_ms(hold_ms))),
        ..PolicyRequest::default()
    }
}

#[tokio::test]
async fn each_call_does_what_its_route_does() {
    let server = Server::in_memory(&[]);
    let client = client(&server);
    let pool = client.put_pool("ci", &policy(60_000, 600_000)).await.unwrap();
    assert_eq!(pool.max_hold_seconds, Some(Seconds::from_ms(600_000)));
    let two = GenerateRequest { count: Some(2), ..GenerateRequest::default() };
    let keys = client.generate("ci", &two).await.unwrap().keys;
    let holder = Some("job-7".to_owned());
    let request = AcquireRequest {
        ttl_seconds: Some(Seconds::from_ms(5_000)),
        holder,
        ..AcquireRequest::default()
    };
    let grant = client.acquire("ci", &request).await.unwrap();
    assert!(keys.iter().any(|key| key.id == grant.key_id && key.key == grant.key));
    let key = client.key("ci", &grant.key_id).await.unwrap();
    assert_eq!(key.state, KeyState::Leased);
    assert_eq!(key.lease.unwrap().holder.as_deref(), Some("job-7"));
    let renewed = client.renew("ci", &grant.id, &RenewRequest::default()).await.unwrap();
    assert_eq!(renewed.fencing_token, grant.fencing_token);
    assert!(renewed.expires_at > grant.expires_at);
    client.release("ci", &grant.id).await.unwrap();
    refused(client.release("ci", &grant.id).await, Code::LeaseEnded);
    let other = client.acquire("ci", &AcquireRequest::default()).await.unwrap();
    let rest_seconds = Some(Seconds::from_ms(60_000));
    let tired = ReleaseRequest { rest_seconds, reason: Some("429".into()), quarantine: None };
    client.release_with("ci", &other.id, &tired).await.unwrap();
    let key = client.key("ci", &other.key_id).await.unwrap();
    assert_eq!((key.state, key.reason.as_deref()), (KeyState::Resting, Some("429")));
    assert!(client.release_key("ci", &other.key_id).await.unwrap().released);
    assert!(!client.release_key("ci", &grant.key_id).await.unwrap().released);
    assert_eq!(client.keep_alive("ci", &grant.key_id).await.unwrap().id, grant.key_id);
    let all = KeepAliveRequest { all: Some(true), ids: None };
    assert_eq!(client.keep_alive_many("ci", &all).await.unwrap().kept, 2);
    client.delete_key("ci", &grant.key_id).await.unwrap();
    refused(client.key("ci", &grant.key_id).await, Code::UnknownKey);
    assert_eq!(client.pool("ci").await.unwrap().total, 1);
    let names: Vec<_> = client.pools().await.unwrap().into_iter().map(|pool| pool.pool).collect();
    assert_eq!(names, ["ci", "default"]);
    client.delete_pool("ci").await.unwrap();
    client.live().await.unwrap();
    client.ready().await.unwrap();
    assert_eq!(client.version().await.unwrap().name, "keypeg");
    assert!(client.metrics().await.unwrap().contains("keypeg_pools 1\n"));
}

#[tokio::test]
async fn errors_tell_a_refusal_from_silence_and_from_strangers() {
    let mut server = Server::in_memory(&[]);
    let kept = client(&server);
    let no_key = kept.acquire("default", &AcquireRequest::default()).await.unwrap_err();
    let problem = no_key.problem().unwrap();
    assert_eq!(problem.code, Code::NoKeyAvailable);
    assert_eq!(problem.outcome, Some(Outcome::NotApplied));
    assert_eq!(problem.more.cause.as_deref(), Some("pool_empty"));
    refused(kept.pool("nope").await, Code::UnknownPool);
    assert!(matches!(kept.pool("../readyz").await, Err(Error::Unusable(_))));
    server.kill();
    assert!(matches!(kept.pools().await, Err(Error::Unreachable(_))));

    let stranger = TcpListener::bind("127.0.0.1:0").unwrap();
    let asked = Client::new(&format!("http://{}", stranger.local_addr().unwrap())).unwrap();
    let answers = std::thread::spawn(move || {
        for status in ["200 OK", "502 Bad Gateway", "302 Found"] {
            let (mut socket, _) = stranger.accept().unwrap();
            let answer = format!(
                "HTTP/1.1 {status}\r\nlocation: /elsewhere\r\ncontent-length: 2\r\n\
                 connection: close\r\n\r\nhi"
            );
            assert!(socket.read(&mut [0; 4096]).unwrap() > 0);
            socket.write_all(answer.as_bytes()).unwrap();
        }
    });
    for expected in [200, 502, 302] {
        match asked.pools().await {
            Err(Error::Unexpected { status, .. }) => assert_eq!(status, expected),
            other => panic!("{expected}: {other:?}"),
        }
    }
    answers.join().unwrap();
}

#[tokio::test]
async fn a_guard_holds_its_key_far_beyond_one_lease_and_gives_it_back() {
    let server = Server::in_memory(&[]);
    let client = client(&server);
    client.put_pool("ci", &policy(600, 60_000)).await.unwrap();
    client.generate("ci", &GenerateRequest::default()).await.unwrap();
    let guard = client.hold("ci", &AcquireRequest::default()).await.unwrap();
    let granted = guard.until().unwrap();
    // Leases on: without renewal it would be over, and somebody else could have the key.
    while tokio::time::Instant::now() < granted + std::time::Duration::from_secs(1) {
        refused(client.acquire("ci", &AcquireRequest::default()).await, Code::NoKeyAvailable);
        tokio::task::yield_now().await;
    }
    assert!(guard.until().is_some());
    guard.release().await.unwrap();
    let guard = client.hold("ci", &AcquireRequest::default()).await.unwrap();
    let key = guard.grant().key_id.clone();
    client.release_key("ci", &key).await.unwrap();
    guard.ended().await;
    assert_eq!(guard.until(), None);
    refused(guard.release().await, Code::LeaseEnded);
}

#[tokio::test]
async fn a_guard_ends_at_the_longest_hold_and_one_that_is_dropped_gives_back() {
    let server = Server::in_memory(&["--lease-ttl", "300ms"]);
    let client = client(&server);
    client.generate("default", &GenerateRequest::default()).await.unwrap();
    let asked = tokio::time::Instant::now();
    let guard = client.hold("default", &AcquireRequest::default()).await.unwrap();
    guard.ended().await;
    assert!(asked.elapsed() >= std::time::Duration::from_millis(300), "{:?}", asked.elapsed());
    drop(guard);
    client.put_pool("long", &policy(600_000, 600_000)).await.unwrap();
    client.generate("long", &GenerateRequest::default()).await.unwrap();
    drop(client.hold("long", &AcquireRequest::default()).await.unwrap());
    loop {
        if client.pool("long").await.unwrap().available == 1 {
            break;
        }
        tokio::task::yield_now().await;
    }
    // And a runtime that is gone with the guard leaves the lease to its own end.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let other = Client::new(&format!("http://{}", server.addr())).unwrap();
    let guard = std::thread::spawn(move || {
        runtime.block_on(other.hold("long", &AcquireRequest::default())).unwrap()
    });
    let guard = guard.join().unwrap();
    std::thread::spawn(move || drop(guard)).join().unwrap();
    assert_eq!(client.pool("long").await.unwrap().leased, 1);
}

#[tokio::test]
async fn a_listing_goes_on_from_page_to_page() {
    let server = Server::in_memory(&[]);
    let client = client(&server);
    let values = (0..1_500).map(|at| Secret(format!("value-{at}"))).collect();
    let made = client.import("default", values).await.unwrap().keys;
    assert_eq!((made.len(), &*made[7].key.0), (1_500, "value-7"));
    let page = client.list_keys("default", None, Some(2), None).await.unwrap();
    let cursor = page.next_cursor.unwrap();
    let next = client.list_keys("default", None, Some(2), Some(&cursor)).await.unwrap();
    assert!(page.keys.len() == 2 && next.keys.len() == 2 && page.keys[0].id != next.keys[0].id);
    for (state, expected) in
        [(None, 1_500), (Some(KeyState::Available), 1_500), (Some(KeyState::Leased), 0)]
    {
        let mut pages = client.list("default", state);
        let mut found = 0;
        while let Some(keys) = pages.next().await.unwrap() {
            found += keys.len();
        }
        assert_eq!(found, expected, "{state:?}");
        assert_eq!(pages.next().await.unwrap(), None, "the end stays the end");
    }
    let forged = client.list_keys("default", None, None, Some("a&limit=1")).await;
    assert!(matches!(forged, Err(Error::Unusable(_))), "{forged:?}");
    refused(client.list_keys("default", None, None, Some("x")).await, Code::BadCursor);
    refused(client.import("default", vec![Secret("value-7".into())]).await, Code::KeyExists);
    refused(client.list("nope", None).next().await, Code::UnknownPool);
}
