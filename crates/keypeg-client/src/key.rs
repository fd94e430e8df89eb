//! Keys on the wire.
//!
//! The value of a key is in [`NewKey`], [`RevealedKey`] and the requests that import or verify it
//! only, as a [`Secret`], which `Debug` never shows.

use crate::time::UnixMs;
use serde::{Deserialize, Serialize};
use std::fmt;

/// The value of a key. `Debug` does not show it.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(schemars::JsonSchema))]
#[serde(transparent)]
#[cfg_attr(feature = "openapi", schemars(inline))]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// The state of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum KeyState {
    /// It can be lent.
    Available,
    /// A lease holds it.
    Leased,
    /// It was released, and is not lent before its rest ends.
    Resting,
    /// It is not lent until it is put back or force-released.
    Quarantined,
}

impl KeyState {
    /// All states.
    pub const ALL: [Self; 4] = [Self::Available, Self::Leased, Self::Resting, Self::Quarantined];

    /// Returns the word on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Available => "available",
            Self::Leased => "leased",
            Self::Resting => "resting",
            Self::Quarantined => "quarantined",
        }
    }
}

/// A key without its value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(schemars::JsonSchema))]
pub struct Key {
    /// The public id of the key.
    pub id: String,
    /// The pool of the key.
    pub pool: String,
    /// The state of the key.
    pub state: KeyState,
    /// The label of the key: a text that operators choose; null: none.
    pub label: Option<String>,
    /// When the key was created.
    pub created_at: UnixMs,
    /// When the key is purged unless it is kept alive; null: never.
    pub expires_at: Option<UnixMs>,
    /// When the rest ends; null if the key does not rest.
    pub rests_until: Option<UnixMs>,
    /// True: it is leased, and is quarantined when its lease ends.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schemars(required))]
    pub draining: bool,
    /// The reason that a request gave for the rest, the quarantine or the draining.
    pub reason: Option<String>,
    /// Whether the key needs keep-alives where its pool has a keep-alive TTL. False: it is never
    /// purged by time.
    #[serde(default = "true_by_default")]
    #[cfg_attr(feature = "openapi", schemars(required))]
    pub keepalive: bool,
    /// The running lease of the key, if any.
    pub lease: Option<KeyLease>,
}

/// What a server of an earlier version means, which does not show the field.
fn true_by_default() -> bool {
    true
}

/// Which keys a listing has; by default all.
#[cfg(feature = "client")]
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyFilter {
    /// Only keys in this state.
    pub state: Option<KeyState>,
    /// Only keys with exactly this label; an empty one is no filter.
    pub label: Option<String>,
}

#[cfg(feature = "client")]
impl KeyFilter {
    /// Returns the parts of the query.
    pub(crate) fn query(&self) -> impl Iterator<Item = String> {
        let state = self.state.map(|state| format!("state={}", state.as_str()));
        let label = self.label.as_deref().map(|label| format!("label={}", escape(label)));
        state.into_iter().chain(label)
    }
}

/// Escapes a text for a query: each byte but letters and digits.
#[cfg(feature = "client")]
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() {
            escaped.push(char::from(byte));
        } else {
            let digit = |nibble: u8| char::from_digit(nibble.into(), 16).expect("four bits");
            escaped.extend(['%', digit(byte >> 4), digit(byte & 15)]);
        }
    }
    escaped
}

#[cfg(feature = "client")]
impl From<Option<KeyState>> for KeyFilter {
    fn from(state: Option<KeyState>) -> Self {
        Self { state, label: None }
    }
}

/// One page of a list of keys.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(schemars::JsonSchema))]
pub struct KeyPage {
    /// The keys; a page before the last one can be empty.
    pub keys: Vec<Key>,
    /// The `cursor` of the next page; null on the last page.
    pub next_cursor: Option<String>,
}

/// The public part of a key's running lease: without its id, which is a secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(schemars::JsonSchema))]
pub struct KeyLease {
    /// The holder, as the acquire request named it.
    pub holder: Option<String>,
    /// The fencing token of the lease.
    pub fencing_token: u64,
    /// When the lease was granted.
    pub granted_at: UnixMs,
    /// When the lease ends.
    pub expires_at: UnixMs,
}

/// A new key, with its value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(schemars::JsonSchema), schemars(rename = "AddedKey"))]
pub struct NewKey {
    /// The public id of the key.
    pub id: String,
    /// The value of the key.
    pub key: Secret,
    /// The state of the key.
    pub state: KeyState,
    /// The label of the key; null: none.
    pub label: Option<String>,
    /// When the key was created.
    pub created_at: UnixMs,
    /// When the key is purged unless it is kept alive; null: never.
    pub expires_at: Option<UnixMs>,
}

/// New keys, in order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(schemars::JsonSchema), schemars(rename = "AddedKeys"))]
pub struct NewKeys {
    /// The keys.
    pub keys: Vec<NewKey>,
}

/// A request to generate keys or to import values; both together are rejected.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(schemars::JsonSchema))]
pub struct GenerateRequest {
    /// How many keys to generate. Default: 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u32>,
    /// Values to import instead. Their limit counts bytes of UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub values: Option<Vec<Secret>>,
    /// Only with `values`: false imports keys that are never purged by time. Default: true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keepalive: Option<bool>,
    /// Only with `values`, and only with the scope `admin`: true also imports values whose keys
    /// were deleted or purged. Default: false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow_retired: Option<bool>,
    /// The label of all new keys: printable characters. Default, and empty: no label.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// The labels of the new keys instead, where they differ: one for each key, in their order.
    /// Empty: no label.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<Vec<String>>,
}

/// A request to change a key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(schemars::JsonSchema))]
pub struct KeyRequest {
    /// The new label: printable characters. Null and empty: no label.
    #[cfg_attr(feature = "openapi", schemars(required))]
    pub label: Option<String>,
}

/// A request to quarantine a key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(schemars::JsonSchema))]
pub struct QuarantineRequest {
    /// What happens to a running lease. `now` ends it, and `free` lets it end by itself: until then
    /// the key is draining. A key that is not leased is quarantined at once. Default: `now`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schemars(with = "Option<String>"))]
    pub when: Option<QuarantineWhen>,
    /// A text that is shown with the key. Default: none, or the reason that it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// When the quarantine of a leased key begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QuarantineWhen {
    /// At once: the lease ends.
    Now,
    /// When the lease ends.
    Free,
}

/// A request to keep keys alive: those in `ids`, or all. Neither or both are rejected.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(schemars::JsonSchema))]
pub struct KeepAliveRequest {
    /// The ids of the keys.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ids: Option<Vec<String>>,
    /// Every key of the pool; only `true` is allowed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub all: Option<bool>,
}

/// A key that was kept alive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(schemars::JsonSchema), schemars(rename = "Kept"))]
pub struct KeptAlive {
    /// The id of the key.
    pub id: String,
    /// When the key is purged unless it is kept alive again; null: never.
    pub expires_at: Option<UnixMs>,
}

/// The result of keeping many keys alive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(schemars::JsonSchema), schemars(rename = "KeptMany"))]
pub struct KeptAliveMany {
    /// How many distinct keys were kept alive.
    pub kept: u64,
    /// The requested ids that no key has.
    pub missing: Vec<String>,
}

/// The value of a key, revealed to a caller that does not hold the key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(schemars::JsonSchema), schemars(rename = "Revealed"))]
pub struct RevealedKey {
    /// The id of the key.
    pub id: String,
    /// The value of the key.
    pub key: Secret,
}

/// A request to verify a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(schemars::JsonSchema))]
pub struct VerifyRequest {
    /// The value of the key.
    pub key: Secret,
}

/// Whether a key is active. The members after `active` are present if it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(schemars::JsonSchema))]
pub struct Verification {
    /// True if the key exists, and its state is one of `states` of the request: leased, by default.
    pub active: bool,
    /// The state of the key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<KeyState>,
    /// The id of the key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_id: Option<String>,
    /// The label of the key; absent if it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// The running lease of the key; absent if the key is not leased.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<KeyLease>,
}

/// The result of a force-release.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(schemars::JsonSchema), schemars(rename = "Freed"))]
pub struct KeyReleased {
    /// False if the key was already available.
    pub released: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_state_has_a_word_that_parses_back() {
        for state in KeyState::ALL {
            let word = format!("{:?}", state.as_str());
            assert_eq!(serde_json::to_string(&state).unwrap(), word);
            assert_eq!(serde_json::from_str::<KeyState>(&word).unwrap(), state);
        }
    }

    #[test]
    fn debug_does_not_show_a_value() {
        let key = NewKey {
            id: "0".into(),
            key: Secret("hunter2".into()),
            state: KeyState::Available,
            label: None,
            created_at: UnixMs(0),
            expires_at: None,
        };
        assert!(!format!("{key:?}").contains("hunter2"));
        assert!(serde_json::to_string(&key).unwrap().contains(r#""key":"hunter2""#));
    }
}
