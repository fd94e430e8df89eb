//! Events over HTTP: a pool followed as server-sent events.
//!
//! The stream reads the engine's feed at its client's pace and keeps nothing but one frame: where
//! the client takes nothing, nothing is read, until the wire's own time for that is over. It ends
//! when the pool is removed or the server stops.

use super::admit::Leave;
use super::answer::Body;
use super::error::Problem;
use super::{Answered, Asking, Request, Response, SHAPES, pool_name};
use bytes::Bytes;
use hyper::Method;
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use keypeg_client as wire;
use keypeg_client::{Seconds, UnixMs};
use keypeg_engine::core::{KeyCounts, KeyState, Policy};
use keypeg_engine::feed::{FeedBatch, FeedEvent, FeedEventKind, Subscriber};
use keypeg_engine::{Call, Reply};
use std::fmt::{self, Write};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::time::{Sleep, sleep};

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
/// Tells nginx and those who follow it not to keep events back.
const BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");
/// Events told at once.
const SLICE_MAX: usize = 256;
/// How long a stream that has told all there was lets more come together.
const PACE_TIME: Duration = Duration::from_millis(20);
/// How long a stream is silent at most, so that the dead are found and proxies keep it open.
const BEAT_TIME: Duration = Duration::from_secs(15);
/// What a stream begins with: after a lost connection a browser comes back within so long.
const OPENING: &str = "retry: 1000\n\n";
const BEAT: &str = ":\n\n";

pub(super) async fn follow(app: &Asking<'_>, pool: &str, request: Request) -> Answered {
    let pool = pool_name(pool)?;
    let body = if request.method() == Method::HEAD {
        app.ask(Call::GetPool { pool }).await?;
        Body::default()
    } else {
        let Reply::Subscription(following) = app.ask(Call::Subscribe { pool }).await? else {
            unreachable!("{SHAPES}")
        };
        // What is no id at all is an id of nothing here: answered with the counts.
        let last = request.headers().get(LAST_EVENT_ID).map(|id| id.to_str().unwrap_or_default());
        let follower = following.subscribe(last).ok_or_else(Problem::too_many_followers)?;
        Body::Events(Box::new(Stream::new(follower, app.leave())))
    };
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(BUFFERING, HeaderValue::from_static("no"));
    Ok(response)
}

/// One client's stream.
#[derive(Debug)]
pub(crate) struct Stream {
    follower: Subscriber,
    /// FeedEvent nothing more, and ended at the next beat, once its token is over.
    leave: Option<Leave>,
    opened: bool,
    /// Whether more is let come together, until `pace` is over.
    rests: bool,
    pace: Pin<Box<Sleep>>,
    beat: Pin<Box<Sleep>>,
}

impl Stream {
    fn new(follower: Subscriber, leave: Option<Leave>) -> Self {
        let (pace, beat) = (Box::pin(sleep(PACE_TIME)), Box::pin(sleep(BEAT_TIME)));
        Self { follower, leave, opened: false, rests: false, pace, beat }
    }

    fn may_go_on(&self) -> bool {
        self.leave.as_ref().is_none_or(Leave::holds)
    }

    /// What is to be sent next; `None` at the end.
    pub(super) fn poll_bytes(&mut self, context: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if !self.opened {
            self.opened = true;
            return Poll::Ready(Some(OPENING.into()));
        }
        if self.rests {
            ready!(self.pace.as_mut().poll(context));
            self.rests = false;
        }
        let told = self.follower.poll_next(context, SLICE_MAX);
        if told.is_ready() && !self.may_go_on() {
            return Poll::Ready(None);
        }
        match told {
            Poll::Ready(Some(slice)) => {
                self.rests = !matches!(&slice, FeedBatch::Events(all) if all.len() == SLICE_MAX);
                if self.rests {
                    self.pace.as_mut().set(sleep(PACE_TIME));
                }
                self.beat.as_mut().set(sleep(BEAT_TIME));
                Poll::Ready(Some(text(&self.follower, slice).into()))
            }
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Pending => {
                ready!(self.beat.as_mut().poll(context));
                if !self.may_go_on() {
                    return Poll::Ready(None);
                }
                self.beat.as_mut().set(sleep(BEAT_TIME));
                Poll::Ready(Some(BEAT.into()))
            }
        }
    }
}

fn text(follower: &Subscriber, slice: FeedBatch) -> String {
    const EACH: usize = 256;
    let pool = follower.pool().as_str();
    let mut text = String::new();
    let written = match slice {
        FeedBatch::Resync { seq, at_ms, counts } => {
            write(&mut text, &follower.event_id(seq), &resync(pool, at_ms, counts))
        }
        FeedBatch::Events(all) => {
            text.reserve(all.len() * EACH);
            all.into_iter().try_for_each(|told| {
                let id = follower.event_id(told.seq);
                write(&mut text, &id, &event(pool, told))
            })
        }
    };
    written.expect("invariant: writing to a string never fails");
    text
}

/// JSON has no line ends of its own, so data is one line.
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

fn event(pool: &str, told: FeedEvent) -> wire::Event {
    let (at, pool) = (UnixMs(told.at_ms), String::from(pool));
    let words = |text: Option<Arc<str>>| text.map(|text| text.as_ref().to_owned());
    match told.kind {
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
                holder: words(holder),
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
            let rests = rests_until_ms.is_some();
            let over = wire::LeaseOver {
                at,
                pool,
                key_id: key.to_string(),
                fencing_token: token,
                state: if rests { wire::KeyState::Resting } else { wire::KeyState::Available },
                rests_until: rests_until_ms.map(UnixMs),
                reason: words(reason),
            };
            if by_time { wire::Event::Expired(over) } else { wire::Event::Released(over) }
        }
        FeedEventKind::Quarantined { key, token, reason } => {
            wire::Event::Quarantined(wire::Quarantined {
                at,
                pool,
                key_id: key.to_string(),
                fencing_token: token,
                reason: words(reason),
            })
        }
        FeedEventKind::KeyFreed { key, was } => wire::Event::Restored(wire::KeyMoved {
            at,
            pool,
            key_id: key.to_string(),
            was: state(was),
        }),
        FeedEventKind::KeyRemoved { by_time, key, was } => {
            let moved = wire::KeyMoved { at, pool, key_id: key.to_string(), was: state(was) };
            if by_time { wire::Event::Purged(moved) } else { wire::Event::Deleted(moved) }
        }
        FeedEventKind::PolicyChanged(policy) => wire::Event::Policy(changed(at, pool, *policy)),
        FeedEventKind::PoolDeleted => wire::Event::Dropped(wire::PoolDropped { at, pool }),
    }
}

fn changed(at: UnixMs, pool: String, policy: Policy) -> wire::PolicyChanged {
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

fn state(state: KeyState) -> wire::KeyState {
    match state {
        KeyState::Available => wire::KeyState::Available,
        KeyState::Leased => wire::KeyState::Leased,
        KeyState::Resting => wire::KeyState::Resting,
        KeyState::Quarantined => wire::KeyState::Quarantined,
    }
}
