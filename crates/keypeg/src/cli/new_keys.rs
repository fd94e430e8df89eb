//! Printing keys that were generated or imported: their ids, and their values only on request.
//!
//! By default no value is printed, because output often ends in the logs of a CI system.

use crate::failure::{Failure, exit};
use crate::streams;
use keypeg_client::{KeyState, NewKey, Secret, UnixMs};
use serde::Serialize;

/// A new key as it is printed.
#[derive(Debug, Serialize)]
pub(super) struct NewKeyRow<'a> {
    id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<&'a Secret>,
    state: KeyState,
    created_at: UnixMs,
    expires_at: Option<UnixMs>,
}

impl<'a> NewKeyRow<'a> {
    pub(super) fn of(key: &'a NewKey, shows_key: bool) -> Self {
        let NewKey { id, key, state, created_at, expires_at } = key;
        Self {
            id,
            key: shows_key.then_some(key),
            state: *state,
            created_at: *created_at,
            expires_at: *expires_at,
        }
    }
}

/// Returns the columns of a table of new keys.
pub(super) fn columns(shows_keys: bool) -> &'static [&'static str] {
    if shows_keys { &["id", "key", "expires_at"] } else { &["id", "expires_at"] }
}

/// Returns a number of keys in words.
pub(super) fn count(keys: usize) -> String {
    if keys == 1 { "1 key".into() } else { format!("{keys} keys") }
}

/// Prints what happened to stderr, and how to see the values.
pub(super) fn print_count(happened: &str, shows_keys: bool) {
    let hint = if shows_keys { "" } else { "; --show-keys prints the values" };
    streams::print_message(&format!("{happened}{hint}"));
}

/// Returns an error before anything is changed if values would be printed to a closed stdout.
pub(super) fn require_stdout() -> Result<(), Failure> {
    streams::require_open().map_err(|error| {
        let message = format!("{error}, and the output would be lost; nothing was changed");
        Failure::new(exit::IO, message)
    })
}
