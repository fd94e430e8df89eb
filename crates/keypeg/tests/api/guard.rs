//! The lease guard of `keypeg-client` behind a bad network, and what it learns from events.
//!
//! Once, the guard could have counted a lease from the answer instead of the sending, or could have
//! noticed its end a second late after a renewal without an answer, and no test would have failed.

use crate::support::late::unless_late_async;
use crate::support::proxy::{Fault, Proxy};
use crate::support::tokens::Tokens;
use crate::support::{Server, TempDir};
use keypeg_client::{
    AcquireRequest, Client, ClientSource, Code, Error, GenerateRequest, GuardOptions, LeaseEnd,
    LeaseGuard, LongWait, PolicyRequest, ReleaseRequest, Seconds,
};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::time::{Instant, timeout};

const PATIENCE: Duration = Duration::from_mins(1);
const LEASE_MS: u64 = 2_000;
const LEASE: Duration = Duration::from_millis(LEASE_MS);
/// A tenth of the time that a renewal has at least.
const LATE: Duration = Duration::from_millis(LEASE_MS / 20);

/// Fails instead of hanging.
async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("never: {what}"))
}

fn policy(lease_ms: u64) -> PolicyRequest {
    PolicyRequest {
        lease_ttl_seconds: Some(Seconds::from_ms(lease_ms)),
        max_hold_seconds: Some(Some(Seconds::from_ms(3_600_000))),
        ..PolicyRequest::default()
    }
}

/// A server with one key in the pool `ci`, a proxy to it, and clients of both.
async fn setup(lease_ms: u64) -> (Server, Proxy, Client, Client) {
    let server = Server::in_memory(&[]);
    let direct = Client::new(&format!("http://{}", server.addr())).unwrap();
    direct.put_pool("ci", &policy(lease_ms)).await.unwrap();
    direct.generate("ci", &GenerateRequest::default()).await.unwrap();
    let proxy = Proxy::to(server.addr());
    let client = Client::new(&proxy.url()).unwrap();
    (server, proxy, direct, client)
}

async fn following(source: ClientSource, pool: &str) -> LeaseGuard {
    let granted = source.acquire(pool, &AcquireRequest::default()).await.unwrap();
    let options = GuardOptions { follow_events: true, ..GuardOptions::default() };
    LeaseGuard::new(source, granted, &options)
}

#[test]
fn a_lease_counts_from_the_sending_of_its_request_not_from_the_answer() {
    unless_late_async(LATE, || async {
        let (_server, proxy, _, client) = setup(LEASE_MS).await;
        let delay = Duration::from_millis(400);
        proxy.fail("POST /v1/pools/ci/leases", Fault::Delay(delay), usize::MAX);
        let guard = client.acquire_guard("ci", &AcquireRequest::default()).await.unwrap();
        let mut end = guard.valid_until().unwrap();
        assert!(end <= Instant::now() + LEASE - delay, "the grant");
        for round in 0..2 {
            end = soon("a renewal", guard.next_end(Some(end))).await;
            assert!(end <= Instant::now() + LEASE - delay, "renewal {round}");
        }
        guard.release().await.unwrap();
    });
}

#[test]
fn a_renewal_without_an_answer_does_not_delay_the_end_of_the_lease() {
    unless_late_async(LATE, || async {
        let (_server, proxy, direct, client) = setup(LEASE_MS).await;
        proxy.fail("/renew", Fault::StallRequest, usize::MAX);
        let guard = client.acquire_guard("ci", &AcquireRequest::default()).await.unwrap();
        let end = guard.valid_until().unwrap();
        let next = AcquireRequest {
            wait_seconds: Some(Seconds::from_ms(60_000)),
            ..AcquireRequest::default()
        };
        let ended = async { (soon("ended", guard.ended()).await, Instant::now()) };
        let lent = async { (direct.acquire("ci", &next).await.unwrap(), Instant::now()) };
        let ((cause, ended_at), (_, lent_at)) = tokio::join!(ended, lent);
        assert_eq!(cause, LeaseEnd::NotRenewed(None));
        assert!(ended_at >= end, "not early");
        // The tolerance is for a slow machine; the fault was a second.
        assert!(ended_at <= lent_at + Duration::from_millis(500), "{:?}", ended_at - lent_at);
        assert!(proxy.faults() >= 2, "a renewal without an answer is repeated");
    });
}

#[test]
fn a_lease_survives_an_answer_that_is_stalled_cut_halved_or_late() {
    unless_late_async(LATE, || async {
        let (_server, proxy, _, client) = setup(LEASE_MS).await;
        let guard = client.acquire_guard("ci", &AcquireRequest::default()).await.unwrap();
        let faults = [Fault::StallRequest, Fault::StallAnswer, Fault::Cut, Fault::Half];
        for (index, fault) in faults.into_iter().enumerate() {
            proxy.fail("/renew", fault, 1);
            let end = guard.valid_until().unwrap();
            soon("a renewal", guard.next_end(Some(end))).await;
            assert!(guard.valid_until().is_some(), "{fault:?}");
            assert!(proxy.faults() > index, "{fault:?} was applied");
        }
        guard.release().await.unwrap();
    });
}

#[test]
fn a_failure_before_a_successful_renewal_is_not_why_a_lease_ended() {
    unless_late_async(LATE, || async {
        let (_server, proxy, _, client) = setup(LEASE_MS).await;
        let guard = client.acquire_guard("ci", &AcquireRequest::default()).await.unwrap();
        proxy.fail("/renew", Fault::Half, 1);
        let end = guard.valid_until();
        soon("a renewal after a failed one", guard.next_end(end)).await;
        assert_eq!(proxy.faults(), 1);
        proxy.fail("/renew", Fault::StallRequest, usize::MAX);
        assert_eq!(soon("ended", guard.ended()).await, LeaseEnd::NotRenewed(None));
    });
}

#[test]
fn each_renewal_asks_for_the_ttl_of_the_guard() {
    unless_late_async(LATE, || async {
        let (_server, _proxy, _, client) = setup(3_600_000).await;
        let ttl_seconds = Some(Seconds::from_ms(LEASE_MS));
        let request = AcquireRequest { ttl_seconds, ..AcquireRequest::default() };
        let guard = client.acquire_guard("ci", &request).await.unwrap();
        let mut end = guard.valid_until();
        for round in 0..2 {
            end = Some(soon("a renewal", guard.next_end(end)).await);
            assert!(end <= Some(Instant::now() + LEASE), "renewal {round}: {end:?}");
        }
        guard.release().await.unwrap();
    });
}

#[test]
fn a_lease_after_a_wait_counts_from_the_end_of_the_wait() {
    unless_late_async(LATE, || async {
        let (_server, _proxy, direct, client) = setup(LEASE_MS).await;
        // Its lease expires, and the waiter gets the key.
        direct.acquire("ci", &AcquireRequest::default()).await.unwrap();
        let wait_seconds = Some(Seconds::from_ms(60_000));
        let request = AcquireRequest { wait_seconds, ..AcquireRequest::default() };
        let sent_at = Instant::now();
        let guard = client.acquire_guard("ci", &request).await.unwrap();
        let waited = Duration::from_millis(guard.grant().waited_seconds.ms);
        assert!(waited > LEASE / 2, "{waited:?}");
        assert!(guard.valid_until() >= Some(sent_at + waited + LEASE));
        guard.release().await.unwrap();
    });
}

/// A release that the server refused has not released: the guard still does, when it is dropped, and
/// with the token that it has read since.
#[tokio::test]
async fn a_guard_whose_release_was_refused_releases_when_it_is_dropped() {
    let tokens = Tokens::new();
    let admin = tokens.add("admin", "*", &["admin"], &[]);
    let first = tokens.add("first", "*", &["lend"], &[]);
    let second = tokens.add("second", "*", &["lend"], &[]);
    let server = Server::in_memory(&tokens.args().each_ref().map(String::as_str));
    let client = Client::new(&format!("http://{}", server.addr())).unwrap();
    let admin = client.with_token(&admin).unwrap();
    admin.put_pool("ci", &policy(3_600_000)).await.unwrap();
    admin.generate("ci", &GenerateRequest::default()).await.unwrap();
    let client = client.with_token(&first).unwrap();
    let source = ClientSource::with_token_reader(client.clone(), move || Some(second.clone()));
    let granted = source.acquire("ci", &AcquireRequest::default()).await.unwrap();
    let mut guard = LeaseGuard::new(source, granted, &GuardOptions::default());
    tokens.revoke("first");
    let is_unauthorized =
        |error: &Error| error.problem().is_some_and(|problem| problem.code == Code::Unauthorized);
    let revoked = async {
        while !client.pool("ci").await.as_ref().is_err_and(is_unauthorized) {
            tokio::task::yield_now().await;
        }
    };
    soon("the first token is revoked", revoked).await;
    let error = guard.release_with(&ReleaseRequest::default()).await.unwrap_err();
    assert!(is_unauthorized(&error), "{error:?}");
    drop(guard);
    let released = async {
        while admin.pool("ci").await.unwrap().available != 1 {
            tokio::task::yield_now().await;
        }
    };
    soon("the dropped guard releases", released).await;
}

/// The holder could not stop its work, so no other client may get the key before the lease ends.
#[tokio::test]
async fn a_guard_left_to_expire_releases_nothing_when_it_is_dropped() {
    let (_server, proxy, direct, client) = setup(3_600_000).await;
    let mut guard = client.acquire_guard("ci", &AcquireRequest::default()).await.unwrap();
    guard.leave_to_expire();
    drop(guard);
    // Enough turns of this runtime for a release in the background.
    for _ in 0..20 {
        client.pool("ci").await.unwrap();
    }
    assert_eq!(proxy.requests("/release"), 0);
    assert_eq!(direct.pool("ci").await.unwrap().leased, 1);
}

#[tokio::test]
async fn events_report_the_end_of_a_long_lease_at_once() {
    let (_server, proxy, direct, client) = setup(3_600_000).await;
    let source = ClientSource::fixed(client);
    let guard = following(source.clone(), "ci").await;
    direct.force_release("ci", &guard.grant().key_id).await.unwrap();
    assert_eq!(soon("ended", guard.ended()).await, LeaseEnd::Released);
    let guard = following(source.clone(), "ci").await;
    direct.delete_key("ci", &guard.grant().key_id).await.unwrap();
    let cause = soon("ended", guard.ended()).await;
    let is_right = matches!(cause, LeaseEnd::KeyDeleted | LeaseEnd::Refused(_));
    assert!(is_right, "{cause:?}");
    direct.generate("ci", &GenerateRequest::default()).await.unwrap();
    let guard = following(source, "ci").await;
    direct.delete_pool("ci").await.unwrap();
    let cause = soon("ended", guard.ended()).await;
    assert!(matches!(cause, LeaseEnd::PoolDeleted | LeaseEnd::Refused(_)), "{cause:?}");
    assert!(proxy.requests("/renew") < 30, "no renewals beside the events");
}

#[tokio::test]
async fn without_events_short_renewals_report_the_end() {
    let (_server, proxy, direct, client) = setup(3_600_000).await;
    for fault in [Fault::Cut, Fault::StallAnswer, Fault::StallRequest] {
        proxy.heal();
        proxy.fail("/events", fault, usize::MAX);
        let guard = following(ClientSource::fixed(client.clone()), "ci").await;
        direct.force_release("ci", &guard.grant().key_id).await.unwrap();
        assert_eq!(soon("ended", guard.ended()).await, LeaseEnd::Released, "{fault:?}");
    }
    let tokens = Tokens::new();
    let admin = tokens.add("admin", "*", &["admin"], &[]);
    let lender = tokens.add("lender", "*", &["lend"], &[]);
    let server = Server::in_memory(&tokens.args().each_ref().map(String::as_str));
    let client = Client::new(&format!("http://{}", server.addr())).unwrap();
    let admin = client.with_token(&admin).unwrap();
    admin.put_pool("ci", &policy(3_600_000)).await.unwrap();
    admin.generate("ci", &GenerateRequest::default()).await.unwrap();
    let source = ClientSource::fixed(client.with_token(&lender).unwrap());
    let guard = following(source, "ci").await;
    admin.force_release("ci", &guard.grant().key_id).await.unwrap();
    assert_eq!(soon("ended", guard.ended()).await, LeaseEnd::Released, "no scope read");
}

#[test]
fn a_refused_token_is_read_again_and_not_sent_faster_and_faster() {
    unless_late_async(LATE, || async {
        let tokens = Tokens::new();
        let admin = tokens.add("admin", "*", &["admin"], &[]);
        let first = tokens.add("first", "*", &["lend", "read"], &[]);
        let second = tokens.add("second", "*", &["lend", "read"], &[]);
        let server = Server::in_memory(&tokens.args().each_ref().map(String::as_str));
        let proxy = Proxy::to(server.addr());
        let client = Client::new(&proxy.url()).unwrap();
        let admin = client.with_token(&admin).unwrap();
        admin.put_pool("ci", &policy(LEASE_MS)).await.unwrap();
        admin.generate("ci", &GenerateRequest::default()).await.unwrap();
        let dir = TempDir::new();
        let file = dir.path().join("token");
        std::fs::write(&file, &first).unwrap();
        let read = {
            let file = file.clone();
            move || std::fs::read_to_string(&file).ok()
        };
        let source = ClientSource::with_token_reader(client.with_token(&first).unwrap(), read);
        let granted = source.acquire("ci", &AcquireRequest::default()).await.unwrap();
        let guard = LeaseGuard::new(source, granted, &GuardOptions::default());
        tokens.revoke("first");
        std::fs::write(&file, &second).unwrap();
        let mut end = guard.valid_until();
        for _ in 0..2 {
            end = Some(soon("a renewal with the second token", guard.next_end(end)).await);
        }
        tokens.revoke("second");
        let before = proxy.requests("/renew");
        let cause = soon("ended", guard.ended()).await;
        let LeaseEnd::NotRenewed(Some(words)) = &cause else { panic!("{cause:?}") };
        assert!(words.contains("status 401, unauthorized"), "{words}");
        let attempts = proxy.requests("/renew") - before;
        assert!((2..=24).contains(&attempts), "{attempts} attempts within half a lease");
    });
}

fn key_of(counter: &AtomicUsize) -> String {
    format!("wait-{}", counter.fetch_add(1, Ordering::Relaxed))
}

/// The server lets one request wait for 300 s at most. A repeat takes the place of the request
/// before that ends, so a long wait neither ends early nor loses its place to a later one.
#[test]
fn a_wait_longer_than_a_request_keeps_its_place_in_the_queue() {
    unless_late_async(LATE, || async {
        let (_server, _proxy, direct, client) = setup(3_600_000).await;
        let held = direct.acquire("ci", &AcquireRequest::default()).await.unwrap();
        let source = ClientSource::fixed(client);
        let counter = AtomicUsize::new(0);
        let (mut new_key, mut on_retry) = (|| key_of(&counter), |error: &Error| panic!("{error}"));
        let mut wait = LongWait::new(PATIENCE, &mut new_key, &mut on_retry);
        wait.per_request = Duration::from_secs(1);
        let request = AcquireRequest { holder: Some("first".into()), ..AcquireRequest::default() };
        let first = source.acquire_within("ci", &request, wait);
        let waiting = async |expected: u64| {
            while direct.pool("ci").await.unwrap().waiting != expected {
                tokio::task::yield_now().await;
            }
        };
        let second = AcquireRequest {
            wait_seconds: Some(Seconds::from_ms(60_000)),
            ..AcquireRequest::default()
        };
        let release = async {
            soon("first waits", waiting(1)).await;
            let later = direct.acquire("ci", &second);
            let after_several_requests = async {
                soon("both wait", waiting(2)).await;
                tokio::time::sleep(Duration::from_secs(3)).await;
                direct.release("ci", &held.id).await.unwrap();
            };
            let ((), later) =
                tokio::join!(after_several_requests, timeout(Duration::from_secs(6), later));
            assert!(later.is_err(), "the later request was served first");
        };
        let (granted, ()) = tokio::join!(first, release);
        assert_eq!(granted.unwrap().grant.holder.as_deref(), Some("first"));
    });
}

#[tokio::test]
async fn a_wait_survives_lost_answers_and_ends_with_its_time() {
    let (_server, proxy, direct, client) = setup(3_600_000).await;
    let source = ClientSource::fixed(client);
    let counter = AtomicUsize::new(0);
    let mut retries = 0;
    let (mut new_key, mut on_retry) = (|| key_of(&counter), |_: &Error| retries += 1);
    proxy.fail("POST /v1/pools/ci/leases", Fault::Cut, 1);
    proxy.fail("POST /v1/pools/ci/leases", Fault::Half, 1);
    let wait = LongWait::new(PATIENCE, &mut new_key, &mut on_retry);
    let granted = source.acquire_within("ci", &AcquireRequest::default(), wait).await.unwrap();
    assert_eq!(direct.pool("ci").await.unwrap().leased, 1, "no second lease is left behind");
    assert_eq!(retries, 2);
    assert!(granted.sent_at <= Instant::now());
    proxy.fail("POST /v1/pools/ci/leases", Fault::StallAnswer, usize::MAX);
    let mut on_retry = |_: &Error| ();
    for wait in [Duration::from_millis(300), Duration::from_millis(1_500)] {
        let mut wait = LongWait::new(wait, &mut new_key, &mut on_retry);
        wait.per_request = Duration::from_millis(700);
        let request = AcquireRequest::default();
        let ended = source.acquire_within("ci", &request, wait);
        let error = soon("the wait ends", ended).await.unwrap_err();
        assert!(matches!(error, Error::WaitEnded { .. }), "{error:?}");
    }
    proxy.heal();
    let wait = LongWait::new(Duration::from_millis(300), &mut new_key, &mut on_retry);
    let request = AcquireRequest::default();
    let ended = source.acquire_within("ci", &request, wait);
    let error = soon("the wait ends", ended).await.unwrap_err();
    assert_eq!(error.problem().map(|problem| problem.code), Some(Code::NoKeyAvailable));
}

/// The server refuses such a wait at once, so a client that repeated it would send ten requests a
/// second.
#[tokio::test]
async fn a_wait_for_a_key_of_a_draining_pool_is_refused_at_once() {
    let (_server, proxy, direct, client) = setup(3_600_000).await;
    let drain = PolicyRequest { draining: Some(true), ..PolicyRequest::default() };
    direct.put_pool("ci", &drain).await.unwrap();
    let (counter, mut on_retry) = (AtomicUsize::new(0), |_: &Error| ());
    let mut new_key = || key_of(&counter);
    let wait = LongWait::new(Duration::from_hours(1), &mut new_key, &mut on_retry);
    let (source, request) = (ClientSource::fixed(client), AcquireRequest::default());
    let refused = source.acquire_within("ci", &request, wait);
    let error = soon("the refusal", refused).await.unwrap_err();
    let Error::Refused(problem) = &error else { panic!("{error:?}") };
    assert_eq!(problem.extensions.cause.as_deref(), Some("draining"));
    assert_eq!(proxy.requests("POST /v1/pools/ci/leases"), 1);
}

/// The repeat of a request whose answer was lost gets the stored answer. If its lease has ended by
/// then, the wait needs a new Idempotency-Key, or it would get that answer again and again.
#[tokio::test]
async fn a_wait_goes_on_after_the_lease_of_a_lost_answer_has_ended() {
    let (server, proxy, direct, client) = setup(3_600_000).await;
    let key = direct.list_keys("ci", None, None, None).await.unwrap().keys[0].id.clone();
    let counter = AtomicUsize::new(0);
    let mut new_key = || key_of(&counter);
    let mut on_retry = |error: &Error| {
        if error.problem().is_none() {
            let release = format!("POST /v1/pools/ci/keys/{key}/release");
            assert_eq!(server.client().ask(&release).status, 200, "{error}");
        }
    };
    proxy.fail("POST /v1/pools/ci/leases", Fault::Cut, 1);
    let wait = LongWait::new(PATIENCE, &mut new_key, &mut on_retry);
    let source = ClientSource::fixed(client);
    source.acquire_within("ci", &AcquireRequest::default(), wait).await.unwrap();
    assert_eq!(counter.load(Ordering::Relaxed), 2, "one new Idempotency-Key");
    assert_eq!(direct.pool("ci").await.unwrap().leased, 1);
}

#[tokio::test]
async fn a_wait_is_not_ended_by_the_rate_limit_of_its_token() {
    let tokens = Tokens::new();
    let admin = tokens.add("admin", "*", &["admin"], &[]);
    let slow = tokens.add("slow", "*", &["lend"], &["--requests-per-second", "1"]);
    let server = Server::in_memory(&tokens.args().each_ref().map(String::as_str));
    let client = Client::new(&format!("http://{}", server.addr())).unwrap();
    let admin = client.with_token(&admin).unwrap();
    let generate = GenerateRequest { count: Some(20), ..GenerateRequest::default() };
    admin.generate("default", &generate).await.unwrap();
    let source = ClientSource::fixed(client.with_token(&slow).unwrap());
    let counter = AtomicUsize::new(0);
    let mut limited = 0;
    for _ in 0..20 {
        let mut new_key = || key_of(&counter);
        let mut on_retry = |error: &Error| {
            let code = error.problem().map(|problem| problem.code);
            limited += u32::from(code == Some(Code::RateLimited));
        };
        let wait = LongWait::new(PATIENCE, &mut new_key, &mut on_retry);
        source.acquire_within("default", &AcquireRequest::default(), wait).await.unwrap();
        if limited > 0 {
            break;
        }
    }
    assert!(limited > 0, "the limit was reached");
}
