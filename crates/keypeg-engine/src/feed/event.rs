//! Conversion of the pools' events to feed events, and their size in a ring.

use keypeg_core::{Event, KeyId, Now, Policy};
use keypeg_store::{FeedEvent, FeedEventKind};
use std::sync::Arc;

/// The most keys in one event; a call that creates more yields several events.
const EVENT_KEYS_MAX: usize = 100;

/// Converts an event; one with many keys becomes several.
pub(super) fn each_feed_event(event: &Event<'_>, now: Now, mut each: impl FnMut(FeedEventKind)) {
    let rests = |until_us: u64| (until_us > 0).then(|| now.lease_to_wall_ms(until_us));
    each(match *event {
        Event::KeysCreated { imported, keys } => {
            for chunk in keys.chunks(EVENT_KEYS_MAX) {
                let has_label = chunk.iter().any(|key| key.label.is_some());
                each(FeedEventKind::KeysCreated {
                    imported,
                    keys: chunk.iter().map(|key| key.id).collect(),
                    labels: has_label.then(|| chunk.iter().map(|key| key.label.clone()).collect()),
                    expires_at_ms: chunk[0].expires_at_ms,
                });
            }
            return;
        }
        Event::Labelled { key, label } => {
            FeedEventKind::Labelled { key, label: label.map(Arc::from) }
        }
        Event::Granted { key, token, holder, label, until_us } => FeedEventKind::Granted {
            key,
            token,
            holder: holder.map(Arc::from),
            label: label.map(Arc::from),
            expires_at_ms: now.lease_to_wall_ms(until_us),
        },
        Event::Renewed { key, token, until_us } => {
            FeedEventKind::Renewed { key, token, expires_at_ms: now.lease_to_wall_ms(until_us) }
        }
        Event::Released { key, token, rest_until_us, reason } => FeedEventKind::LeaseEnded {
            by_time: false,
            key,
            token,
            rests_until_ms: rests(rest_until_us),
            reason: reason.map(Arc::from),
        },
        Event::Expired { key, token, rest_until_us } => {
            let rests_until_ms = rests(rest_until_us);
            FeedEventKind::LeaseEnded { by_time: true, key, token, rests_until_ms, reason: None }
        }
        Event::Quarantined { key, was, token, reason } => {
            FeedEventKind::Quarantined { key, was, token, reason: reason.map(Arc::from) }
        }
        Event::Draining { key, token, reason } => {
            FeedEventKind::Draining { key, token, reason: reason.map(Arc::from) }
        }
        Event::DrainCancelled { key, token } => FeedEventKind::DrainCancelled { key, token },
        Event::KeyFreed { key, was } => FeedEventKind::KeyFreed { key, was },
        Event::Deleted { key, was } => FeedEventKind::KeyRemoved { by_time: false, key, was },
        Event::Purged { key, was } => FeedEventKind::KeyRemoved { by_time: true, key, was },
    });
}

/// Returns the memory that an event takes in a ring, in bytes.
pub(super) fn size_of_event(event: &FeedEvent) -> usize {
    size_of::<FeedEvent>() + heap_bytes(&event.kind)
}

/// Returns the heap memory of the event, in bytes.
fn heap_bytes(kind: &FeedEventKind) -> usize {
    let len = |text: &Option<Arc<str>>| text.as_ref().map_or(0, |text| text.len());
    match kind {
        FeedEventKind::KeysCreated { keys, labels, .. } => {
            let texts = labels.iter().flat_map(|labels| labels.iter().flatten());
            let texts: usize = texts.map(|label| label.len()).sum();
            let labels = labels.as_ref().map_or(0, |labels| size_of_val(&**labels));
            size_of_val::<[KeyId]>(keys) + labels + texts
        }
        FeedEventKind::Granted { holder, label, .. } => len(holder) + len(label),
        FeedEventKind::Labelled { label: text, .. }
        | FeedEventKind::LeaseEnded { reason: text, .. }
        | FeedEventKind::Quarantined { reason: text, .. }
        | FeedEventKind::Draining { reason: text, .. } => len(text),
        FeedEventKind::PolicyChanged(policy) => size_of::<Policy>() + policy.key_prefix.len(),
        FeedEventKind::Renewed { .. }
        | FeedEventKind::KeyFreed { .. }
        | FeedEventKind::DrainCancelled { .. }
        | FeedEventKind::KeyRemoved { .. }
        | FeedEventKind::PoolDeleted => 0,
    }
}
