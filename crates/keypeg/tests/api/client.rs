//! `keypeg-client` against the real binary: each method, each kind of error, and the lease guard.

use crate::support::Server;
use crate::support::late::unless_late_async;
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
fn assert_refused<T: std::fmt::Debug>(answer: Result<T, Error>, code: Code) {
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
async fn each_method_calls_its_route() {
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
    assert_refused(client.release("ci", &grant.id).await, Code::LeaseEnded);
    let other = client.acquire("ci", &AcquireRequest::default()).await.unwrap();
    let rest_seconds = Some(Seconds::from_ms(60_000));
    let with_rest = ReleaseRequest { rest_seconds, reason: Some("429".into()), quarantine: None };
    client.release_with("ci", &other.id, &with_rest).await.unwrap();
    let key = client.key("ci", &other.key_id).await.unwrap();
    assert_eq!((key.state, key.reason.as_deref()), (KeyState::Resting, Some("429")));
    assert!(client.force_release("ci", &other.key_id).await.unwrap().released);
    assert!(!client.force_release("ci", &grant.key_id).await.unwrap().released);
    assert_eq!(client.keep_alive("ci", &grant.key_id).await.unwrap().id, grant.key_id);
    let all = KeepAliveRequest { all: Some(true), ids: None };
    assert_eq!(client.keep_alive_many("ci", &all).await.unwrap().kept, 2);
    client.delete_key("ci", &grant.key_id).await.unwrap();
    assert_refused(client.key("ci", &grant.key_id).await, Code::UnknownKey);
    assert_eq!(client.pool("ci").await.unwrap().total, 1);
    let names: Vec<_> = client.pools().await.unwrap().into_iter().map(|pool| pool.pool).collect();
    assert_eq!(names, ["ci", "default"]);
    let first = client.list_pools(Some(1), None).await.unwrap();
    assert_eq!((&*first.pools[0].pool, first.next_cursor.as_deref()), ("ci", Some("default")));
    let second = client.list_pools(None, first.next_cursor.as_deref()).await.unwrap();
    assert_eq!((&*second.pools[0].pool, second.next_cursor), ("default", None));
    let mut limited = client.list_all_pools().with_limit(1);
    assert_eq!(limited.next().await.unwrap().map(|pools| pools.len()), Some(1));
    assert_eq!(limited.next().await.unwrap(), None);
    client.delete_pool("ci").await.unwrap();
    client.live().await.unwrap();
    client.ready().await.unwrap();
    assert_eq!(client.version().await.unwrap().name, "keypeg");
    assert!(client.metrics().await.unwrap().contains("keypeg_pools 1\n"));
}

#[tokio::test]
async fn errors_distinguish_a_refusal_no_answer_and_a_foreign_server() {
    let mut server = Server::in_memory(&[]);
    let client = client(&server);
    let no_key = client.acquire("default", &AcquireRequest::default()).await.unwrap_err();
    let problem = no_key.problem().unwrap();
    assert_eq!(problem.code, Code::NoKeyAvailable);
    assert_eq!(problem.outcome, Some(Outcome::NotApplied));
    assert_eq!(problem.extensions.cause.as_deref(), Some("pool_empty"));
    assert_refused(client.pool("nope").await, Code::UnknownPool);
    assert!(matches!(client.pool("../readyz").await, Err(Error::InvalidInput(_))));
    server.kill();
    assert!(matches!(client.pools().await, Err(Error::Unreachable(_))));

    let foreign_server = TcpListener::bind("127.0.0.1:0").unwrap();
    let foreign_client =
        Client::new(&format!("http://{}", foreign_server.local_addr().unwrap())).unwrap();
    let answers = std::thread::spawn(move || {
        for status in ["200 OK", "502 Bad Gateway", "302 Found"] {
            let (mut socket, _) = foreign_server.accept().unwrap();
            let answer = format!(
                "HTTP/1.1 {status}\r\nlocation: /elsewhere\r\ncontent-length: 2\r\n\
                 connection: close\r\n\r\nhi"
            );
            assert!(socket.read(&mut [0; 4096]).unwrap() > 0);
            socket.write_all(answer.as_bytes()).unwrap();
        }
    });
    for expected in [200, 502, 302] {
        match foreign_client.pools().await {
            Err(Error::Unexpected { status, .. }) => assert_eq!(status, expected),
            other => panic!("{expected}: {other:?}"),
        }
    }
    answers.join().unwrap();
}

#[test]
fn a_guard_renews_its_lease_and_releases_it() {
    unless_late_async(std::time::Duration::from_millis(100), || async {
        let server = Server::in_memory(&[]);
        let client = client(&server);
        client.put_pool("ci", &policy(2_000, 60_000)).await.unwrap();
        client.generate("ci", &GenerateRequest::default()).await.unwrap();
        let guard = client.acquire_guard("ci", &AcquireRequest::default()).await.unwrap();
        let first_end = guard.valid_until().unwrap();
        // Past the end of the first lease: without renewal another client could acquire the key.
        while tokio::time::Instant::now() < first_end + std::time::Duration::from_secs(1) {
            assert_refused(
                client.acquire("ci", &AcquireRequest::default()).await,
                Code::NoKeyAvailable,
            );
            tokio::task::yield_now().await;
        }
        assert!(guard.valid_until().is_some());
        guard.release().await.unwrap();
        let guard = client.acquire_guard("ci", &AcquireRequest::default()).await.unwrap();
        let key = guard.grant().key_id.clone();
        client.force_release("ci", &key).await.unwrap();
        let patience = std::time::Duration::from_mins(1);
        tokio::time::timeout(patience, guard.ended()).await.expect("the guard ends");
        assert_eq!(guard.valid_until(), None);
        assert_refused(guard.release().await, Code::LeaseEnded);
    });
}

#[tokio::test]
async fn a_guard_ends_at_the_maximum_hold_and_a_dropped_guard_releases() {
    let server = Server::in_memory(&["--lease-ttl", "300ms"]);
    let client = client(&server);
    client.generate("default", &GenerateRequest::default()).await.unwrap();
    let sent_at = tokio::time::Instant::now();
    let guard = client.acquire_guard("default", &AcquireRequest::default()).await.unwrap();
    guard.ended().await;
    assert!(sent_at.elapsed() >= std::time::Duration::from_millis(300), "{:?}", sent_at.elapsed());
    drop(guard);
    client.put_pool("long", &policy(600_000, 600_000)).await.unwrap();
    client.generate("long", &GenerateRequest::default()).await.unwrap();
    drop(client.acquire_guard("long", &AcquireRequest::default()).await.unwrap());
    // A guard that never releases is a failure, not a test that hangs.
    let released = async {
        while client.pool("long").await.unwrap().available != 1 {
            tokio::task::yield_now().await;
        }
    };
    let patience = std::time::Duration::from_mins(1);
    tokio::time::timeout(patience, released).await.expect("a dropped guard releases");
    // A guard that is dropped without a runtime cannot release: its lease ends by time.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let other = Client::new(&format!("http://{}", server.addr())).unwrap();
    let guard = std::thread::spawn(move || {
        runtime.block_on(other.acquire_guard("long", &AcquireRequest::default())).unwrap()
    });
    let guard = guard.join().unwrap();
    std::thread::spawn(move || drop(guard)).join().unwrap();
    assert_eq!(client.pool("long").await.unwrap().leased, 1);
}

#[tokio::test]
async fn a_listing_continues_over_all_pages() {
    let server = Server::in_memory(&[]);
    let client = client(&server);
    let values = (0..1_500).map(|index| Secret(format!("value-{index}"))).collect();
    let keys = client.import("default", values).await.unwrap().keys;
    assert_eq!((keys.len(), &*keys[7].key.0), (1_500, "value-7"));
    let page = client.list_keys("default", None, Some(2), None).await.unwrap();
    let cursor = page.next_cursor.unwrap();
    let next = client.list_keys("default", None, Some(2), Some(&cursor)).await.unwrap();
    assert!(page.keys.len() == 2 && next.keys.len() == 2 && page.keys[0].id != next.keys[0].id);
    for (state, expected) in
        [(None, 1_500), (Some(KeyState::Available), 1_500), (Some(KeyState::Leased), 0)]
    {
        let mut pages = client.list_all_keys("default", state);
        let mut found = 0;
        while let Some(keys) = pages.next().await.unwrap() {
            found += keys.len();
        }
        assert_eq!(found, expected, "{state:?}");
        assert_eq!(pages.next().await.unwrap(), None, "there is no page after the last one");
    }
    let forged = client.list_keys("default", None, None, Some("a&limit=1")).await;
    assert!(matches!(forged, Err(Error::InvalidInput(_))), "{forged:?}");
    assert_refused(client.list_keys("default", None, None, Some("x")).await, Code::BadCursor);
    assert_refused(client.import("default", vec![Secret("value-7".into())]).await, Code::KeyExists);
    assert_refused(client.list_all_keys("nope", None).next().await, Code::UnknownPool);
}

#[tokio::test]
async fn the_client_library_sends_the_key_it_is_given() {
    let server = Server::in_memory(&[]);
    let client = client(&server);
    let two = GenerateRequest { count: Some(2), ..GenerateRequest::default() };
    let made = client.with_idempotency_key("make").generate("default", &two).await.unwrap();
    let again = client.with_idempotency_key("make").generate("default", &two).await.unwrap();
    assert_eq!(made.keys[0].id, again.keys[0].id);
    let lent = client
        .with_idempotency_key("lend")
        .acquire("default", &AcquireRequest::default())
        .await
        .unwrap();
    let again = client
        .with_idempotency_key("lend")
        .acquire("default", &AcquireRequest::default())
        .await
        .unwrap();
    assert_eq!((&lent.id, lent.expires_at), (&again.id, again.expires_at));
    let other = client
        .with_idempotency_key("other")
        .acquire("default", &AcquireRequest::default())
        .await
        .unwrap();
    assert_ne!(lent.id, other.id);
    let refused =
        client.with_idempotency_key("").acquire("default", &AcquireRequest::default()).await;
    assert_eq!(refused.unwrap_err().problem().unwrap().code, Code::Invalid);
}
