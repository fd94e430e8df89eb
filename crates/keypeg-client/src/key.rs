//! Keys on the wire. A key's value is in [`NewKey`] alone, and in no `Debug`.

use crate::time::UnixMs;
use serde::{Deserialize, Serialize};
use std::fmt;

/// A key's value, in whatever holds text. `Debug` does not show it.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(schemars::JsonSchema))]
#[serde(transparent)]
#[cfg_attr(feature = "openapi", schemars(inline))]
pub struct Secret<Text = String>(pub Text);

impl<Text> fmt::Debug for Secret<Text> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Where a key stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum KeyState {
    /// Free to be lent.
    Available,
    /// Lent.
    Leased,
    /// Back, but not served until a time.
    Resting,
    /// Out of rotation until somebody puts it back.
    Quarantined,
}

impl KeyState {
    /// Every state.
    pub const ALL: [Self; 4] = [Self::Available, Self::Leased, Self::Resting, Self::Quarantined];

    /// The word on the wire.
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
    /// Its public handle.
    pub id: String,
    /// Its pool.
    pub pool: String,
    /// Where it stands.
    pub state: KeyState,
    /// When it was made.
    pub created_at: UnixMs,
    /// When it is purged if nobody keeps it alive; null never.
    pub expires_at: Option<UnixMs>,
    /// Until when it rests, if it does.
    pub rests_until: Option<UnixMs>,
    /// Why it rests or is out of rotation, where its last holder said so.
    pub reason: Option<String>,
    /// Its running lease, if any.
    pub lease: Option<KeyLease>,
}

/// Some keys of a listing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(schemars::JsonSchema))]
pub struct KeyPage {
    /// The keys; there may be none while the listing goes on.
    pub keys: Vec<Key>,
    /// What to ask for next; null at the end.
    pub next_cursor: Option<String>,
}

/// What everybody may see of a key's running lease: not its id, which is a right.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(schemars::JsonSchema))]
pub struct KeyLease {
    /// Who said to hold it.
    pub holder: Option<String>,
    /// Its fencing token.
    pub fencing_token: u64,
    /// When it was granted.
    pub granted_at: UnixMs,
    /// When it ends.
    pub expires_at: UnixMs,
}

/// A key just made, with its value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(schemars::JsonSchema))]
pub struct NewKey {
    /// Its public handle.
    pub id: String,
    /// Its value.
    pub key: Secret,
    /// Where it stands.
    pub state: KeyState,
    /// When it was made.
    pub created_at: UnixMs,
    /// When it is purged if nobody keeps it alive; null never.
    pub expires_at: Option<UnixMs>,
}

/// Keys just made, in order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(schemars::JsonSchema))]
pub struct NewKeys {
    /// The keys.
    pub keys: Vec<NewKey>,
}

/// Asks for keys to be made, or for values to be brought in; both is refused.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(schemars::JsonSchema))]
pub struct GenerateRequest {
    /// How many; one when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u32>,
    /// Values to bring in instead, at most 10 000 of 1 to 4096 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub values: Option<Vec<Secret>>,
}

/// Asks for keys to be kept alive: those of `ids`, or all. Neither or both is refused.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(schemars::JsonSchema))]
pub struct KeepAliveRequest {
    /// The keys.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ids: Option<Vec<String>>,
    /// Every key of the pool; only ever true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub all: Option<bool>,
}

/// A key kept alive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(schemars::JsonSchema))]
pub struct Kept {
    /// The key.
    pub id: String,
    /// When it is purged if nobody keeps it alive again; null never.
    pub expires_at: Option<UnixMs>,
}

/// Keys kept alive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(schemars::JsonSchema))]
pub struct KeptMany {
    /// How many distinct keys.
    pub kept: u64,
    /// Those that are not there.
    pub missing: Vec<String>,
}

/// A key's value, shown to somebody it was not lent to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(schemars::JsonSchema))]
pub struct Revealed {
    /// The key.
    pub id: String,
    /// Its value.
    pub key: Secret,
}

/// Whether putting a key back changed anything.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(schemars::JsonSchema))]
pub struct Freed {
    /// False when it was free already.
    pub released: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_state_has_its_word_and_reads_back() {
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
            created_at: UnixMs(0),
            expires_at: None,
        };
        assert!(!format!("{key:?}").contains("hunter2"));
        assert!(serde_json::to_string(&key).unwrap().contains(r#""key":"hunter2""#));
    }
}
