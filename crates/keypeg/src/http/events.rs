//! The event stream of a pool, as server-sent events.
//!
//! A stream reads the engine's feed at its client's pace and buffers one frame at most
//! (back-pressure): while the client does not read, the stream does not read the feed either, until
//! the connection's write timeout. It ends when the pool is deleted or the server stops.

use super::admit::StreamPermit;
use super::answer::Body;
use super::error::Problem;
use super::{HandlerResult, REPLY_VARIANT, Request, RequestContext, Response, pool_name};
use bytes::Bytes;
use hyper::Method;
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use keypeg_client as wire;
use keypeg_client::{Seconds, UnixMs};
use keypeg_core::{KeyCounts, KeyState, Policy};
use keypeg_store::{Call, Reply};
use keypeg_store::{FeedBatch, FeedEvent, FeedEventKind, Subscriber};
use std::fmt::{self, Write};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::time::{Sleep, sleep};

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
/// Disables response buffering in nginx and compatible proxies.
const BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");
/// The most events in one frame.
const FRAME_EVENTS_MAX: usize = 256;
/// How long a stream that has caught up collects events before it sends the next frame.
const BATCH_DELAY: Duration = Duration::from_millis(20);
/// The longest silence of a stream, so that dead connections are detected and proxies keep the
/// stream open.
const HEARTBEAT_TIME: Duration = Duration::from_secs(15);
/// The first frame: a browser reconnects 1 s after it loses the connection.
const OPENING: &str = "retry: 1000\n\n";
/// An empty comment.
const HEARTBEAT: &str = ":\n\n";

/// Opens the event stream of a pool. HEAD only checks that the pool exists.
pub(super) async fn subscribe(
    context: &RequestContext<'_>,
    pool: &str,
    request: Request,
) -> HandlerResult {
    let pool = pool_name(pool)?;
    let body = if request.method() == Method::HEAD {
        context.execute(Call::GetPool { pool }).await?;
        Body::default()
    } else {
        let Reply::Subscription(subscription) = context.execute(Call::Subscribe { pool }).await?
        else {
            unreachable!("{REPLY_VARIANT}")
        };
        // An unreadable id counts as unknown: the stream starts with the counts.
        let last = request.headers().get(LAST_EVENT_ID).map(|id| id.to_str().unwrap_or_default());
        let subscriber = subscription.subscribe(last).map_err(Problem::too_many_followers)?;
        Body::Events(Box::new(EventStream::new(subscriber, context.stream_permit())))
    };
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(BUFFERING, HeaderValue::from_static("no"));
    Ok(response)
}

/// One client's event stream.
#[derive(Debug)]
pub(crate) struct EventStream {
    subscriber: Box<dyn Subscriber>,
    /// Once the permit is no longer valid, the stream sends no event and ends when the next event
    /// or heartbeat is due.
    permit: Option<StreamPermit>,
    opened: bool,
    /// Whether the stream collects events until `batch_timer` fires.
    collecting: bool,
    batch_timer: Pin<Box<Sleep>>,
    heartbeat_timer: Pin<Box<Sleep>>,
}

impl EventStream {
    fn new(subscriber: Box<dyn Subscriber>, permit: Option<StreamPermit>) -> Self {
        let batch_timer = Box::pin(sleep(BATCH_DELAY));
        let heartbeat_timer = Box::pin(sleep(HEARTBEAT_TIME));
        Self { subscriber, permit, opened: false, collecting: false, batch_timer, heartbeat_timer }
    }

    fn is_permitted(&self) -> bool {
        self.permit.as_ref().is_none_or(StreamPermit::is_valid)
    }

    /// Returns the next bytes to send; `None` at the end.
    pub(super) fn poll_bytes(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if !self.opened {
            self.opened = true;
            return Poll::Ready(Some(OPENING.into()));
        }
        if self.collecting {
            ready!(self.batch_timer.as_mut().poll(cx));
            self.collecting = false;
        }
        let next = self.subscriber.poll_next(cx, FRAME_EVENTS_MAX);
        if next.is_ready() && !self.is_permitted() {
            return Poll::Ready(None);
        }
        match next {
            Poll::Ready(Some(batch)) => {
                let is_full =
                    matches!(&batch, FeedBatch::Events(events) if events.len() == FRAME_EVENTS_MAX);
                self.collecting = !is_full;
                if self.collecting {
                    self.batch_timer.as_mut().set(sleep(BATCH_DELAY));
                }
                self.heartbeat_timer.as_mut().set(sleep(HEARTBEAT_TIME));
                Poll::Ready(Some(frame(&*self.subscriber, batch).into()))
            }
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Pending => {
                ready!(self.heartbeat_timer.as_mut().poll(cx));
                if !self.is_permitted() {
                    return Poll::Ready(None);
                }
                self.heartbeat_timer.as_mut().set(sleep(HEARTBEAT_TIME));
                Poll::Ready(Some(HEARTBEAT.into()))
            }
        }
    }
}

fn frame(subscriber: &dyn Subscriber, batch: FeedBatch) -> String {
    /// An estimate of one event's length in bytes.
    const EVENT_LEN: usize = 256;
    let pool = subscriber.pool().as_str();
    let mut text = String::new();
    let written = match batch {
        FeedBatch::Resync { seq, at_ms, counts } => {
            write(&mut text, &subscriber.event_id(seq), &resync(pool, at_ms, counts))
        }
        FeedBatch::Events(events) => {
            text.reserve(events.len() * EVENT_LEN);
            events.into_iter().try_for_each(|event| {
                let id = subscriber.event_id(event.seq);
                write(&mut text, &id, &wire_event(pool, event))
            })
        }
    };
    written.expect("invariant: writing to a string never fails");
    text
}

/// Writes one event. Serialised JSON contains no line break, so its data is one line.
fn write(text: &mut String, id: &str, event: &wire::Event) -> fmt::Result {
    let data = serde_json::to_string(event).expect("invariant: wire types always serialise");
    write!(text, "id: {id}\nevent: {}\ndata: {data}\n\n", event.name())
}

fn resync(pool: &str, at_ms: u64, counts: KeyCounts) -> wire::Event {
    wire::Event::Resync(wire::Resync {
        at: UnixMs(at_ms),
        pool: pool.into(),
        available: counts.available,
        leased: counts.leased,
        resting: counts.resting,
        quarantined: counts.quarantined,
        total: counts.total(),
    })
}

fn wire_event(pool: &str, event: FeedEvent) -> wire::Event {
    let (at, pool) = (UnixMs(event.at_ms), String::from(pool));
    let owned = |text: Option<Arc<str>>| text.map(|text| text.as_ref().to_owned());
    match event.kind {
        FeedEventKind::KeysCreated { imported, keys, expires_at_ms } => {
            let added = wire::KeysAdded {
                at,
                pool,
                count: keys.len() as u64,
                key_ids: keys.iter().map(ToString::to_string).collect(),
                expires_at: expires_at_ms.map(UnixMs),
            };
            if imported { wire::Event::Imported(added) } else { wire::Event::Generated(added) }
        }
        FeedEventKind::Granted { key, token, holder, expires_at_ms } => {
            wire::Event::Granted(wire::Granted {
                at,
                pool,
                key_id: key.to_string(),
                holder: owned(holder),
                fencing_token: token,
                expires_at: UnixMs(expires_at_ms),
            })
        }
        FeedEventKind::Renewed { key, token, expires_at_ms } => {
            wire::Event::Renewed(wire::Renewed {
                at,
                pool,
                key_id: key.to_string(),
                fencing_token: token,
                expires_at: UnixMs(expires_at_ms),
            })
        }
        FeedEventKind::LeaseEnded { by_time, key, token, rests_until_ms, reason } => {
            let is_resting = rests_until_ms.is_some();
            let ended = wire::LeaseEnded {
                at,
                pool,
                key_id: key.to_string(),
                fencing_token: token,
                state: if is_resting { wire::KeyState::Resting } else { wire::KeyState::Available },
                rests_until: rests_until_ms.map(UnixMs),
                reason: owned(reason),
            };
            if by_time { wire::Event::Expired(ended) } else { wire::Event::Released(ended) }
        }
        FeedEventKind::Quarantined { key, token, reason } => {
            wire::Event::Quarantined(wire::Quarantined {
                at,
                pool,
                key_id: key.to_string(),
                fencing_token: token,
                reason: owned(reason),
            })
        }
        FeedEventKind::KeyFreed { key, was } => wire::Event::Restored(wire::KeyChanged {
            at,
            pool,
            key_id: key.to_string(),
            was: wire_state(was),
        }),
        FeedEventKind::KeyRemoved { by_time, key, was } => {
            let moved =
                wire::KeyChanged { at, pool, key_id: key.to_string(), was: wire_state(was) };
            if by_time { wire::Event::Purged(moved) } else { wire::Event::Deleted(moved) }
        }
        FeedEventKind::PolicyChanged(policy) => {
            wire::Event::Policy(policy_changed(at, pool, *policy))
        }
        FeedEventKind::PoolDeleted => wire::Event::Dropped(wire::PoolDeleted { at, pool }),
    }
}

fn policy_changed(at: UnixMs, pool: String, policy: Policy) -> wire::PolicyChanged {
    wire::PolicyChanged {
        at,
        pool,
        lease_ttl_seconds: Seconds::from_ms(policy.lease_ttl_ms),
        max_hold_seconds: policy.max_hold_ms.map(Seconds::from_ms),
        keepalive_ttl_seconds: policy.keepalive_ttl_ms.map(Seconds::from_ms),
        rest_seconds: Seconds::from_ms(policy.rest_ms),
        key_length: policy.key_length,
        key_prefix: policy.key_prefix.into(),
        max_keys: policy.max_keys,
    }
}

fn wire_state(state: KeyState) -> wire::KeyState {
    match state {
        KeyState::Available => wire::KeyState::Available,
        KeyState::Leased => wire::KeyState::Leased,
        KeyState::Resting => wire::KeyState::Resting,
        KeyState::Quarantined => wire::KeyState::Quarantined,
    }
}
