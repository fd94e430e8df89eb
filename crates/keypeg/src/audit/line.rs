//! One line of the audit log: its fields are the format of the file.
//!
//! No line contains a key's value, a lease id or a token. Knows neither the queue nor the file.

use crate::clock;
use keypeg_client::UnixMs;
use keypeg_core::{KeyId, PoolName};
use serde::Serialize;
use std::net::IpAddr;
use std::sync::Arc;

/// Key ids in one line; the number of keys is always exact.
const KEYS_MAX: usize = 100;

/// The outcome of a requested change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Outcome {
    /// The change was made.
    Applied,
    /// The change was not made.
    Refused,
    /// The client disconnected before the answer, or the server failed.
    #[default]
    Unknown,
}

/// One line of the log; the field names are part of its format.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Line {
    at: String,
    pub(crate) request_id: String,
    /// The token's name; null without configured tokens or a valid token.
    #[serde(serialize_with = "serialize_name")]
    pub(crate) token: Option<Arc<str>>,
    pub(crate) address: Option<IpAddr>,
    pub(crate) operation: &'static str,
    pub(crate) pool: Option<String>,
    /// The lease's holder as its client named it, where the server knows it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) holder: Option<Box<str>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    key_ids: Vec<String>,
    /// The number of keys, for an operation on keys.
    #[serde(skip_serializing_if = "Option::is_none")]
    keys: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) fencing_token: Option<u64>,
    outcome: Outcome,
    status: Option<u16>,
    code: Option<&'static str>,
}

#[expect(clippy::ref_option, reason = "the signature that serde calls")]
fn serialize_name<S: serde::Serializer>(name: &Option<Arc<str>>, to: S) -> Result<S::Ok, S::Error> {
    name.as_deref().serialize(to)
}

impl Line {
    /// Sets the pool, if the name is valid.
    pub(crate) fn pool(&mut self, name: &str) {
        self.pool = PoolName::parse(name).map(|name| name.as_str().into());
    }

    /// Sets the number of keys and the first `KEYS_MAX` ids.
    pub(crate) fn keys(&mut self, ids: impl ExactSizeIterator<Item = KeyId>) {
        self.keys = Some(ids.len());
        self.key_ids = ids.take(KEYS_MAX).map(|id| id.to_string()).collect();
    }

    /// Sets how the request ended.
    pub(super) fn end(&mut self, outcome: Outcome, status: u16, code: Option<&'static str>) {
        (self.outcome, self.status, self.code) = (outcome, Some(status), code);
    }

    /// Sets the time of the line.
    pub(super) fn date(&mut self) {
        self.at = UnixMs(clock::wall_ms()).to_string();
    }

    /// Appends the line as JSON; it escapes all control characters, so that it stays one line.
    pub(super) fn write_to(&self, bytes: &mut Vec<u8>) {
        serde_json::to_writer(&mut *bytes, self).expect("invariant: a line always serialises");
        bytes.push(b'\n');
    }
}
