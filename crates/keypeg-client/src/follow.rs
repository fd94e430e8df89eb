//! Following the events of a pool for one lease: connecting, reconnecting, and giving up for a while.
//!
//! The state of the stream is reported, so that renewals find what the stream misses: each new
//! connection and each `resync` asks for a renewal.

use crate::Grant;
use crate::backoff::Backoff;
use crate::error::Error;
use crate::event::Event;
use crate::events::Events;
use crate::lease_end::LeaseEnd;
use crate::source::ClientSource;
use crate::wait::is_unauthorized;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

/// The pauses before a new connection.
const RECONNECT: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// The pause after a refusal that rarely changes, such as a missing scope, or too many events.
const LONG_PAUSE: Duration = Duration::from_mins(1);
/// More events per second than this cost more than the renewals that replace them.
const EVENTS_PER_SECOND_MAX: u32 = 2_000;

/// The state of the event stream.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Stream {
    /// Whether the events arrive.
    pub(crate) is_connected: bool,
}

/// Follows the events of the pool until one of them ends the lease; returns why it has ended.
pub(crate) async fn follow(
    source: &ClientSource,
    grant: &Grant,
    state: &watch::Sender<Stream>,
) -> LeaseEnd {
    let mut backoff = Backoff::new(RECONNECT.0, RECONNECT.1);
    let mut after: Option<String> = None;
    loop {
        let client = source.client();
        let pause = match client.events(&grant.pool, after.as_deref()).await {
            Ok(mut events) => {
                state.send_replace(Stream { is_connected: true });
                let ended = read(&mut events, grant, state).await;
                after = events.last_id().map(str::to_owned);
                state.send_replace(Stream { is_connected: false });
                match ended {
                    Ended::Lease(cause) => return cause,
                    Ended::TooMany => LONG_PAUSE,
                    Ended::Stream { had_events } => {
                        if had_events {
                            backoff.reset();
                        }
                        backoff.pause()
                    }
                }
            }
            Err(error) if is_unauthorized(&error) => {
                source.refresh(&client);
                backoff.pause()
            }
            Err(error) if is_lasting(&error) => LONG_PAUSE,
            Err(_) => backoff.pause(),
        };
        sleep(pause).await;
    }
}

/// Why reading has ended.
enum Ended {
    Lease(LeaseEnd),
    Stream { had_events: bool },
    TooMany,
}

async fn read(events: &mut Events, grant: &Grant, state: &watch::Sender<Stream>) -> Ended {
    let mut had_events = false;
    let (mut second, mut count) = (Instant::now(), 0);
    // A failed and an ended stream are the same: both need a new connection.
    while let Ok(Some(event)) = events.next().await {
        had_events = true;
        if let Some(cause) = LeaseEnd::of_event(&event, grant) {
            return Ended::Lease(cause);
        }
        if matches!(event, Event::Resync(_)) {
            // Events may be missing: a renewal finds out whether the lease still runs.
            state.send_replace(Stream { is_connected: true });
        }
        if second.elapsed() >= Duration::from_secs(1) {
            (second, count) = (Instant::now(), 0);
        }
        count += 1;
        if count > EVENTS_PER_SECOND_MAX {
            return Ended::TooMany;
        }
    }
    Ended::Stream { had_events }
}

/// Returns whether the same request will be refused for some time.
fn is_lasting(error: &Error) -> bool {
    match error {
        Error::Refused(problem) => matches!(problem.status, 400..=499),
        Error::Unexpected { .. } => !error.is_proxy_failure(),
        Error::InvalidInput(_) => true,
        Error::Unreachable(_) | Error::WaitEnded { .. } => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Resync;
    use crate::{Client, Seconds, Secret, UnixMs};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::time::timeout;

    fn grant() -> Grant {
        Grant {
            id: "l".into(),
            pool: "p".into(),
            key_id: "k".into(),
            key: Secret("a value".into()),
            fencing_token: 1,
            holder: None,
            label: None,
            granted_at: UnixMs(0),
            waited_seconds: Seconds { ms: 0 },
            expires_at: UnixMs(0),
            expires_in_seconds: Seconds { ms: 600_000 },
            key_expires_at: None,
        }
    }

    /// Returns the data of a resync.
    fn resync() -> String {
        let resync = Resync {
            at: UnixMs(0),
            pool: "p".into(),
            available: 0,
            leased: 1,
            resting: 0,
            quarantined: 0,
            draining_keys: 0,
            total: 1,
        };
        serde_json::to_string(&Event::Resync(resync)).unwrap()
    }

    /// Accepts a connection, reads its request and begins the stream; returns both.
    async fn begun_stream(listener: &TcpListener) -> (TcpStream, String) {
        let (mut connection, _) = listener.accept().await.unwrap();
        let mut request = Vec::new();
        while !request.windows(4).any(|end| end == b"\r\n\r\n") {
            assert!(connection.read_buf(&mut request).await.unwrap() > 0);
        }
        let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n";
        connection.write_all(head.as_bytes()).await.unwrap();
        (connection, String::from_utf8(request).unwrap())
    }

    /// A lease can end by an event that the stream has lost: a renewal finds it.
    #[tokio::test]
    async fn each_resync_within_a_stream_asks_for_a_renewal() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let source = ClientSource::fixed(Client::new(&url).unwrap());
        let grant = grant();
        let (state, mut states) = watch::channel(Stream::default());
        let data = resync();
        let served = async {
            let (mut connection, _) = begun_stream(&listener).await;
            states.changed().await.unwrap();
            for id in 1..=3 {
                let frame = format!("id: {id}\nevent: resync\ndata: {data}\n\n");
                connection.write_all(frame.as_bytes()).await.unwrap();
                states.changed().await.unwrap();
                assert!(states.borrow().is_connected, "resync {id} is no end of the stream");
            }
        };
        tokio::select! {
            ended = follow(&source, &grant, &state) => panic!("{ended:?}"),
            done = timeout(Duration::from_mins(1), served) => done.expect("a change at each resync"),
        }
    }

    /// While no stream is open renewals find what it would report; the next one begins after the last
    /// event, so that none is missed.
    #[tokio::test]
    async fn a_stream_that_ends_is_reported_and_continued_after_its_last_event() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let source = ClientSource::fixed(Client::new(&url).unwrap());
        let grant = grant();
        let (state, mut states) = watch::channel(Stream::default());
        let served = async {
            let (mut connection, request) = begun_stream(&listener).await;
            assert!(!request.contains("last-event-id"), "{request}");
            states.wait_for(|state| state.is_connected).await.unwrap();
            let frame = format!("id: an-id\nevent: resync\ndata: {}\n\n", resync());
            connection.write_all(frame.as_bytes()).await.unwrap();
            drop(connection);
            states.wait_for(|state| !state.is_connected).await.unwrap();
            let (_connection, request) = begun_stream(&listener).await;
            assert!(request.contains("last-event-id: an-id\r\n"), "{request}");
            states.wait_for(|state| state.is_connected).await.unwrap();
        };
        tokio::select! {
            ended = follow(&source, &grant, &state) => panic!("{ended:?}"),
            done = timeout(Duration::from_mins(1), served) => done.expect("both streams"),
        }
    }

    /// Regression: after a 502 of a proxy whose server restarted, no events were followed for a minute.
    #[test]
    fn a_proxy_without_its_server_is_asked_again_soon() {
        for (status, lasts) in [(502, false), (503, false), (504, false), (200, true), (404, true)]
        {
            let error = Error::Unexpected { status, detail: String::new() };
            assert_eq!(is_lasting(&error), lasts, "{status}");
        }
    }
}
