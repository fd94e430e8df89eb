//! Printing keys that were generated or imported: their ids, and their values only on request.
//!
//! By default no value is printed, because output often ends in the logs of a CI system.

use crate::failure::{Failure, exit};
use crate::output::{Fit, OutputArgs};
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
    label: Option<&'a str>,
    created_at: UnixMs,
    expires_at: Option<UnixMs>,
}

impl<'a> NewKeyRow<'a> {
    pub(super) fn of(key: &'a NewKey, shows_key: bool) -> Self {
        let NewKey { id, key, state, label, created_at, expires_at } = key;
        Self {
            id,
            key: shows_key.then_some(key),
            state: *state,
            label: label.as_deref(),
            created_at: *created_at,
            expires_at: *expires_at,
        }
    }
}

/// The columns of a table of new keys.
pub(super) const COLUMNS: &[(&str, Fit)] = &[("id", Fit::Whole), ("expires_at", Fit::Whole)];
/// The same with their values.
pub(super) const COLUMNS_WITH_KEYS: &[(&str, Fit)] =
    &[("id", Fit::Whole), ("key", Fit::Whole), ("expires_at", Fit::Whole)];
/// The fields of a new key.
const FIELDS: [&str; 6] = ["id", "key", "state", "label", "created_at", "expires_at"];

/// Returns whether values are printed. `--field key` without `--show-keys` is an error, before
/// anything is changed.
pub(super) fn shows_values(show_keys: bool, output: &OutputArgs) -> Result<bool, Failure> {
    if !show_keys && output.field.as_deref() == Some("key") {
        let message =
            "--field key prints the values of the keys: add --show-keys; nothing was changed";
        return Err(Failure::new(exit::USAGE, message));
    }
    output.require_field(&FIELDS)?;
    Ok(show_keys)
}

/// Returns a number of keys in words.
pub(super) fn count(keys: u64) -> String {
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
