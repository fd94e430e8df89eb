//! The text of a frame: the events of a batch as server-sent events, in the wire format.

use keypeg_client as wire;
use keypeg_client::{Seconds, UnixMs};
use keypeg_core::{KeyCounts, KeyState, Policy};
use keypeg_store::{FeedBatch, FeedEvent, FeedEventKind, Subscriber};
use std::fmt::{self, Write};
use std::sync::Arc;

/// Returns the text of one frame.
pub(super) fn text(subscriber: &dyn Subscriber, batch: FeedBatch) -> String {
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
        draining_keys: counts.draining,
        total: counts.total(),
    })
}

fn wire_event(pool: &str, event: FeedEvent) -> wire::Event {
    let (at, pool) = (UnixMs(event.at_ms), String::from(pool));
    let owned = |text: Option<Arc<str>>| text.map(|text| text.as_ref().to_owned());
    match event.kind {
        FeedEventKind::KeysCreated { imported, keys, labels, expires_at_ms } => {
            let owned = |label: &Option<Box<str>>| label.as_deref().map(Into::into);
            let added = wire::KeysAdded {
                at,
                pool,
                count: keys.len() as u64,
                key_ids: keys.iter().map(ToString::to_string).collect(),
                labels: labels.map(|labels| labels.iter().map(owned).collect()),
                expires_at: expires_at_ms.map(UnixMs),
            };
            if imported { wire::Event::Imported(added) } else { wire::Event::Generated(added) }
        }
        FeedEventKind::Labelled { key, label } => wire::Event::Labelled(wire::Labelled {
            at,
            pool,
            key_id: key.to_string(),
            label: owned(label),
        }),
        FeedEventKind::Granted { key, token, holder, label, expires_at_ms } => {
            wire::Event::Granted(wire::Granted {
                at,
                pool,
                key_id: key.to_string(),
                label: owned(label),
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
        FeedEventKind::Quarantined { key, was, token, reason } => {
            wire::Event::Quarantined(wire::Quarantined {
                at,
                pool,
                key_id: key.to_string(),
                was: wire_state(was),
                fencing_token: token,
                reason: owned(reason),
            })
        }
        FeedEventKind::Draining { key, token, reason } => wire::Event::Draining(wire::Draining {
            at,
            pool,
            key_id: key.to_string(),
            fencing_token: token,
            reason: owned(reason),
        }),
        FeedEventKind::DrainCancelled { key, token } => {
            wire::Event::DrainCancelled(wire::DrainCancelled {
                at,
                pool,
                key_id: key.to_string(),
                fencing_token: token,
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
        draining: policy.draining,
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
