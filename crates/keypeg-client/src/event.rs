//! Events on the wire: what `GET /v1/pools/{pool}/events` tells, one shape a name.
//!
//! Each says where its key is from then on, and where it was wherever that could be more than one
//! state, so a reader can keep counts by them. No value of a key and no lease's id is in any.

use crate::key::KeyState;
use crate::time::{Seconds, UnixMs};
use serde::{Deserialize, Serialize};

/// Something that happened to a pool. Its name stands on the `event:` line, the rest is `data:`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Event {
    /// `resync`: what came before is not told, or not all of it.
    Resync(Resync),
    /// `generated`: keys were made.
    Generated(KeysAdded),
    /// `imported`: keys were brought in.
    Imported(KeysAdded),
    /// `granted`: an available key was lent.
    Granted(Granted),
    /// `renewed`: a lease was given more time.
    Renewed(Renewed),
    /// `released`: a lease was ended by a call.
    Released(LeaseOver),
    /// `expired`: a lease was ended by time.
    Expired(LeaseOver),
    /// `quarantined`: a leased key was taken out of rotation.
    Quarantined(Quarantined),
    /// `restored`: a key that rested or was out of rotation is available again.
    Restored(KeyMoved),
    /// `deleted`: a key was deleted by a call.
    Deleted(KeyMoved),
    /// `purged`: a key was purged by time.
    Purged(KeyMoved),
    /// `policy`: the pool's policy was changed.
    Policy(PolicyChanged),
    /// `dropped`: the pool was removed with all its keys; nothing comes after this.
    Dropped(PoolDropped),
}

impl Event {
    /// All names, in the order of the variants.
    pub const NAMES: [&'static str; 13] = [
        "resync",
        "generated",
        "imported",
        "granted",
        "renewed",
        "released",
        "expired",
        "quarantined",
        "restored",
        "deleted",
        "purged",
        "policy",
        "dropped",
    ];

    /// Its name on the `event:` line.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Resync(_) => "resync",
            Self::Generated(_) => "generated",
            Self::Imported(_) => "imported",
            Self::Granted(_) => "granted",
            Self::Renewed(_) => "renewed",
            Self::Released(_) => "released",
            Self::Expired(_) => "expired",
            Self::Quarantined(_) => "quarantined",
            Self::Restored(_) => "restored",
            Self::Deleted(_) => "deleted",
            Self::Purged(_) => "purged",
            Self::Policy(_) => "policy",
            Self::Dropped(_) => "dropped",
        }
    }

    /// Reads the `data:` of an event of this name; `None` for a name that is not known here, as a
    /// newer server may have.
    #[cfg(feature = "client")]
    pub fn parse(name: &str, data: &str) -> Option<Result<Self, serde_json::Error>> {
        Some(match name {
            "resync" => serde_json::from_str(data).map(Self::Resync),
            "generated" => serde_json::from_str(data).map(Self::Generated),
            "imported" => serde_json::from_str(data).map(Self::Imported),
            "granted" => serde_json::from_str(data).map(Self::Granted),
            "renewed" => serde_json::from_str(data).map(Self::Renewed),
            "released" => serde_json::from_str(data).map(Self::Released),
            "expired" => serde_json::from_str(data).map(Self::Expired),
            "quarantined" => serde_json::from_str(data).map(Self::Quarantined),
            "restored" => serde_json::from_str(data).map(Self::Restored),
            "deleted" => serde_json::from_str(data).map(Self::Deleted),
            "purged" => serde_json::from_str(data).map(Self::Purged),
            "policy" => serde_json::from_str(data).map(Self::Policy),
            "dropped" => serde_json::from_str(data).map(Self::Dropped),
            _ => return None,
        })
    }
}

/// How many keys stand where at this place of the stream: what was kept by earlier events is to be
/// read anew.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resync {
    /// When that was so.
    pub at: UnixMs,
    /// The pool.
    pub pool: String,
    /// Keys free to be lent.
    pub available: u64,
    /// Keys lent.
    pub leased: u64,
    /// Keys that are back, but not served yet.
    pub resting: u64,
    /// Keys out of rotation.
    pub quarantined: u64,
    /// All keys.
    pub total: u64,
}

/// Keys that came to be, available. A call that adds many is told in several of these.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeysAdded {
    /// When.
    pub at: UnixMs,
    /// The pool.
    pub pool: String,
    /// How many.
    pub count: u64,
    /// Their ids, in order; at most 100.
    pub key_ids: Vec<String>,
    /// When they are purged if nobody keeps them alive; null never.
    pub expires_at: Option<UnixMs>,
}

/// A key that was lent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Granted {
    /// When.
    pub at: UnixMs,
    /// The pool.
    pub pool: String,
    /// The key.
    pub key_id: String,
    /// Who says to hold it.
    pub holder: Option<String>,
    /// The lease's fencing token.
    pub fencing_token: u64,
    /// When the lease ends.
    pub expires_at: UnixMs,
}

/// A lease that was given more time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Renewed {
    /// When.
    pub at: UnixMs,
    /// The pool.
    pub pool: String,
    /// The key.
    pub key_id: String,
    /// The lease's fencing token.
    pub fencing_token: u64,
    /// When the lease ends now.
    pub expires_at: UnixMs,
}

/// A lease that ended while its key stays.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseOver {
    /// When.
    pub at: UnixMs,
    /// The pool.
    pub pool: String,
    /// The key.
    pub key_id: String,
    /// The lease's fencing token.
    pub fencing_token: u64,
    /// Where the key is now: `available` or `resting`.
    pub state: KeyState,
    /// Until when it rests, if it does.
    pub rests_until: Option<UnixMs>,
    /// Why it rests, where its holder said so.
    pub reason: Option<String>,
}

/// A leased key that was taken out of rotation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quarantined {
    /// When.
    pub at: UnixMs,
    /// The pool.
    pub pool: String,
    /// The key.
    pub key_id: String,
    /// The fencing token of the lease that this ended.
    pub fencing_token: u64,
    /// Why, where its holder said so.
    pub reason: Option<String>,
}

/// A key that is elsewhere now, or gone, as the event's name says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyMoved {
    /// When.
    pub at: UnixMs,
    /// The pool.
    pub pool: String,
    /// The key.
    pub key_id: String,
    /// Where it was.
    pub was: KeyState,
}

/// A policy as it is from now on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyChanged {
    /// When.
    pub at: UnixMs,
    /// The pool.
    pub pool: String,
    /// The longest a grant lasts.
    pub lease_ttl_seconds: Seconds,
    /// The longest a renewed lease lasts from its grant; null follows the lease ttl.
    pub max_hold_seconds: Option<Seconds>,
    /// How long a key lives without a keep-alive; null for ever.
    pub keepalive_ttl_seconds: Option<Seconds>,
    /// How long a key rests after each lease.
    pub rest_seconds: Seconds,
    /// Random symbols in a generated value.
    pub key_length: u16,
    /// What a generated value begins with.
    pub key_prefix: String,
    /// The most keys in this pool; null leaves only the server's own bound.
    pub max_keys: Option<u64>,
}

/// A pool that is no more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolDropped {
    /// When.
    pub at: UnixMs,
    /// The pool.
    pub pool: String,
}

#[cfg(all(test, feature = "client"))]
mod tests {
    use super::*;

    #[test]
    fn each_name_has_its_shape_and_reads_back() {
        let (at, pool, key_id) = (UnixMs(0), "ci".to_owned(), "k".to_owned());
        let moved = KeyMoved { at, pool: pool.clone(), key_id, was: KeyState::Resting };
        let text = concat!(
            r#"{"at":"1970-01-01T00:00:00.000Z","pool":"ci","key_id":"k","#,
            r#""was":"resting"}"#
        );
        for event in
            [Event::Restored(moved.clone()), Event::Deleted(moved.clone()), Event::Purged(moved)]
        {
            assert_eq!(serde_json::to_string(&event).unwrap(), text);
            assert_eq!(Event::parse(event.name(), text).unwrap().unwrap(), event);
        }
        let dropped = Event::Dropped(PoolDropped { at, pool });
        let text = serde_json::to_string(&dropped).unwrap();
        assert_eq!(Event::parse("dropped", &text).unwrap().unwrap(), dropped);
        for name in Event::NAMES {
            assert!(Event::parse(name, "{}").unwrap().is_err(), "{name} has no empty shape");
        }
        assert!(Event::parse("of a newer server", "{}").is_none());
    }
}
