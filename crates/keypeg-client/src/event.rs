//! Events on the wire: the stream of `GET /v1/pools/{pool}/events`, one type for each event name.
//!
//! Each event gives the new state of its key, and the old state if that is not clear from the name,
//! so a subscriber can keep the counts. No event contains the value of a key or the id of a lease.

use crate::key::KeyState;
use crate::time::{Seconds, UnixMs};
use serde::{Deserialize, Serialize};

/// An event of a pool. Its name is on the `event:` line, the rest is in `data:`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Event {
    /// `resync`: the stream does not contain all earlier events; the counts start here.
    Resync(Resync),
    /// `generated`: keys were generated.
    Generated(KeysAdded),
    /// `imported`: values were imported.
    Imported(KeysAdded),
    /// `labelled`: a key got another label, or lost its label.
    Labelled(Labelled),
    /// `granted`: an available key was leased.
    Granted(Granted),
    /// `renewed`: a lease was renewed.
    Renewed(Renewed),
    /// `released`: a lease ended by a request.
    Released(LeaseEnded),
    /// `expired`: a lease ended by time.
    Expired(LeaseEnded),
    /// `quarantined`: a key was quarantined.
    Quarantined(Quarantined),
    /// `draining`: a leased key is quarantined when its lease ends.
    Draining(Draining),
    /// `drain_cancelled`: a draining key is not quarantined when its lease ends.
    DrainCancelled(DrainCancelled),
    /// `restored`: a resting or quarantined key is available again.
    Restored(KeyChanged),
    /// `deleted`: a key was deleted by a request.
    Deleted(KeyChanged),
    /// `purged`: a key was purged by time.
    Purged(KeyChanged),
    /// `policy`: the pool's policy was changed.
    Policy(PolicyChanged),
    /// `dropped`: the pool was deleted with all its keys; this is the last event.
    Dropped(PoolDeleted),
}

impl Event {
    /// All names, in the order of the variants.
    pub const NAMES: [&'static str; 16] = [
        "resync",
        "generated",
        "imported",
        "labelled",
        "granted",
        "renewed",
        "released",
        "expired",
        "quarantined",
        "draining",
        "drain_cancelled",
        "restored",
        "deleted",
        "purged",
        "policy",
        "dropped",
    ];

    /// Returns the name on the `event:` line.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Resync(_) => "resync",
            Self::Generated(_) => "generated",
            Self::Imported(_) => "imported",
            Self::Labelled(_) => "labelled",
            Self::Granted(_) => "granted",
            Self::Renewed(_) => "renewed",
            Self::Released(_) => "released",
            Self::Expired(_) => "expired",
            Self::Quarantined(_) => "quarantined",
            Self::Draining(_) => "draining",
            Self::DrainCancelled(_) => "drain_cancelled",
            Self::Restored(_) => "restored",
            Self::Deleted(_) => "deleted",
            Self::Purged(_) => "purged",
            Self::Policy(_) => "policy",
            Self::Dropped(_) => "dropped",
        }
    }

    /// Parses the `data:` of the event with this name; `None` for an unknown name, which a newer
    /// server can send.
    #[cfg(feature = "client")]
    pub fn parse(name: &str, data: &str) -> Option<Result<Self, serde_json::Error>> {
        Some(match name {
            "resync" => serde_json::from_str(data).map(Self::Resync),
            "generated" => serde_json::from_str(data).map(Self::Generated),
            "imported" => serde_json::from_str(data).map(Self::Imported),
            "labelled" => serde_json::from_str(data).map(Self::Labelled),
            "granted" => serde_json::from_str(data).map(Self::Granted),
            "renewed" => serde_json::from_str(data).map(Self::Renewed),
            "released" => serde_json::from_str(data).map(Self::Released),
            "expired" => serde_json::from_str(data).map(Self::Expired),
            "quarantined" => serde_json::from_str(data).map(Self::Quarantined),
            "draining" => serde_json::from_str(data).map(Self::Draining),
            "drain_cancelled" => serde_json::from_str(data).map(Self::DrainCancelled),
            "restored" => serde_json::from_str(data).map(Self::Restored),
            "deleted" => serde_json::from_str(data).map(Self::Deleted),
            "purged" => serde_json::from_str(data).map(Self::Purged),
            "policy" => serde_json::from_str(data).map(Self::Policy),
            "dropped" => serde_json::from_str(data).map(Self::Dropped),
            _ => return None,
        })
    }
}

/// The number of keys in each state at this point of the stream. A subscriber discards the states
/// that it derived from earlier events, and reads them from the server again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resync {
    /// When the counts were taken.
    pub at: UnixMs,
    /// The pool.
    pub pool: String,
    /// Available keys.
    pub available: u64,
    /// Leased keys.
    pub leased: u64,
    /// Resting keys: released, and not lent before their rest ends.
    pub resting: u64,
    /// Quarantined keys: not lent until they are put back or force-released.
    pub quarantined: u64,
    /// The leased keys that are quarantined when their leases end: a part of `leased`.
    #[serde(default)]
    pub draining_keys: u64,
    /// All keys of the pool.
    pub total: u64,
}

/// New keys, which are available. One request that adds many keys is reported in several events.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeysAdded {
    /// When it happened.
    pub at: UnixMs,
    /// The pool.
    pub pool: String,
    /// The number of keys.
    pub count: u64,
    /// The ids of the keys, in order; at most 100.
    pub key_ids: Vec<String>,
    /// The labels of the keys, in the same order; absent if no key has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<Vec<Option<String>>>,
    /// When the keys are purged unless they are kept alive; null: never.
    pub expires_at: Option<UnixMs>,
}

/// A key with another label. Its state stays.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Labelled {
    /// When it happened.
    pub at: UnixMs,
    /// The pool.
    pub pool: String,
    /// The id of the key.
    pub key_id: String,
    /// The label; null: none.
    pub label: Option<String>,
}

/// A key that was leased.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Granted {
    /// When it happened.
    pub at: UnixMs,
    /// The pool.
    pub pool: String,
    /// The id of the key.
    pub key_id: String,
    /// The label of the key; null: none.
    pub label: Option<String>,
    /// The holder, as the acquire request named it.
    pub holder: Option<String>,
    /// The fencing token of the lease.
    pub fencing_token: u64,
    /// When the lease ends.
    pub expires_at: UnixMs,
}

/// A lease that was renewed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Renewed {
    /// When it happened.
    pub at: UnixMs,
    /// The pool.
    pub pool: String,
    /// The id of the key.
    pub key_id: String,
    /// The fencing token of the lease.
    pub fencing_token: u64,
    /// The new end of the lease.
    pub expires_at: UnixMs,
}

/// A lease that ended; its key still exists.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseEnded {
    /// When it happened.
    pub at: UnixMs,
    /// The pool.
    pub pool: String,
    /// The id of the key.
    pub key_id: String,
    /// The fencing token of the lease.
    pub fencing_token: u64,
    /// The new state of the key: `available` or `resting`.
    pub state: KeyState,
    /// When the rest ends; null if the key does not rest.
    pub rests_until: Option<UnixMs>,
    /// The reason that the holder gave for the rest.
    pub reason: Option<String>,
}

/// A key that was quarantined.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quarantined {
    /// When it happened.
    pub at: UnixMs,
    /// The pool.
    pub pool: String,
    /// The id of the key.
    pub key_id: String,
    /// The old state of the key.
    #[serde(default = "leased")]
    pub was: KeyState,
    /// The fencing token of the lease that this ended; null if the key was not leased.
    pub fencing_token: Option<u64>,
    /// The reason that the request gave.
    pub reason: Option<String>,
}

/// What a server of an earlier version means, which does not name the old state.
fn leased() -> KeyState {
    KeyState::Leased
}

/// A leased key that is quarantined when its lease ends. Its state stays.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Draining {
    /// When it happened.
    pub at: UnixMs,
    /// The pool.
    pub pool: String,
    /// The id of the key.
    pub key_id: String,
    /// The fencing token of the lease.
    pub fencing_token: u64,
    /// The reason that the request gave.
    pub reason: Option<String>,
}

/// A draining key that is not quarantined when its lease ends. Its state stays.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrainCancelled {
    /// When it happened.
    pub at: UnixMs,
    /// The pool.
    pub pool: String,
    /// The id of the key.
    pub key_id: String,
    /// The fencing token of the lease.
    pub fencing_token: u64,
}

/// A key that became available, was deleted or was purged; the name of the event says which.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyChanged {
    /// When it happened.
    pub at: UnixMs,
    /// The pool.
    pub pool: String,
    /// The id of the key.
    pub key_id: String,
    /// The old state of the key.
    pub was: KeyState,
}

/// The new policy of the pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyChanged {
    /// When it happened.
    pub at: UnixMs,
    /// The pool.
    pub pool: String,
    /// The maximum length of a lease.
    pub lease_ttl_seconds: Seconds,
    /// The maximum length of a renewed lease, from its grant; null: `lease_ttl_seconds`.
    pub max_hold_seconds: Option<Seconds>,
    /// How long a key lives without a keep-alive; null: it is never purged by time.
    pub keepalive_ttl_seconds: Option<Seconds>,
    /// How long a key rests after each lease.
    pub rest_seconds: Seconds,
    /// The number of symbols in a generated value after its prefix.
    pub key_length: u16,
    /// The prefix of a generated value.
    pub key_prefix: String,
    /// The maximum number of keys in the pool; null: only the limit of the server applies.
    pub max_keys: Option<u64>,
    /// Whether the pool is draining: it grants no key.
    #[serde(default)]
    pub draining: bool,
}

/// A pool that was deleted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolDeleted {
    /// When it happened.
    pub at: UnixMs,
    /// The pool.
    pub pool: String,
}

#[cfg(all(test, feature = "client"))]
mod tests {
    use super::*;

    #[test]
    fn each_name_has_a_type_and_parses_back() {
        let (at, pool, key_id) = (UnixMs(0), "ci".to_owned(), "k".to_owned());
        let changed = KeyChanged { at, pool: pool.clone(), key_id, was: KeyState::Resting };
        let text = concat!(
            r#"{"at":"1970-01-01T00:00:00.000Z","pool":"ci","key_id":"k","#,
            r#""was":"resting"}"#
        );
        for event in [
            Event::Restored(changed.clone()),
            Event::Deleted(changed.clone()),
            Event::Purged(changed),
        ] {
            assert_eq!(serde_json::to_string(&event).unwrap(), text);
            assert_eq!(Event::parse(event.name(), text).unwrap().unwrap(), event);
        }
        let dropped = Event::Dropped(PoolDeleted { at, pool });
        let text = serde_json::to_string(&dropped).unwrap();
        assert_eq!(Event::parse("dropped", &text).unwrap().unwrap(), dropped);
        for name in Event::NAMES {
            assert!(Event::parse(name, "{}").unwrap().is_err(), "{name} has no empty form");
        }
        assert!(Event::parse("from_a_newer_server", "{}").is_none());
    }
}
