//! One line of the audit log: its fields are the format of the file.
//!
//! No line contains a key's value, a lease id or a token. Knows neither the queue nor the file.

use crate::clock;
use crate::share::CallerId;
use keypeg_client::UnixMs;
use keypeg_core::{KeyId, PoolName};
use serde::Serialize;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
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
    /// The holder of the granted, renewed or ended lease, as its client named it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) holder: Option<Box<str>>,
    /// The label of the key, for an operation on one key that shows it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) label: Option<Box<str>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    key_ids: Vec<String>,
    /// The number of keys, for an operation on keys.
    #[serde(skip_serializing_if = "Option::is_none")]
    keys: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) fencing_token: Option<u64>,
    /// The shard that is moved.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) shard: Option<usize>,
    /// The server that is to own it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) server: Option<Box<str>>,
    outcome: Outcome,
    status: Option<u16>,
    code: Option<&'static str>,
}

#[expect(clippy::ref_option, reason = "the signature that serde calls")]
fn serialize_name<S: serde::Serializer>(name: &Option<Arc<str>>, to: S) -> Result<S::Ok, S::Error> {
    name.as_deref().serialize(to)
}

/// A line about refusals that have no line of their own; `Line` has the fields that both share.
#[derive(Debug, Serialize)]
pub(super) struct Summary {
    at: String,
    request_id: Option<String>,
    #[serde(serialize_with = "serialize_name")]
    token: Option<Arc<str>>,
    address: Option<String>,
    operation: &'static str,
    pool: Option<String>,
    outcome: Outcome,
    status: Option<u16>,
    code: Option<&'static str>,
    /// The number of refusals, and of each code.
    count: u64,
    codes: BTreeMap<&'static str, u64>,
    first_at: String,
    last_at: String,
    /// Whether the line is about all callers that have no line of their own.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    others: bool,
}

impl Summary {
    /// Creates the line of a caller, or of all others; `times` are those of the first and the last
    /// refusal.
    pub(super) fn new(
        caller: Option<&CallerId>,
        codes: BTreeMap<&'static str, u64>,
        (first_ms, last_ms): (u64, u64),
    ) -> Self {
        let (token, address) = match caller {
            Some(CallerId::Token(name)) => (Some(Arc::clone(name)), None),
            Some(CallerId::Network(network)) => (None, Some(network_text(*network))),
            None => (None, None),
        };
        Self {
            at: String::new(),
            request_id: None,
            token,
            address,
            operation: "refusals",
            pool: None,
            outcome: Outcome::Refused,
            status: None,
            code: None,
            count: codes.values().sum(),
            codes,
            first_at: UnixMs(first_ms).to_string(),
            last_at: UnixMs(last_ms).to_string(),
            others: caller.is_none(),
        }
    }

    /// Appends the line as JSON, with the time of the log.
    pub(super) fn write_to(&mut self, bytes: &mut Vec<u8>) {
        self.at = UnixMs(clock::wall_ms()).to_string();
        serde_json::to_writer(&mut *bytes, self).expect("invariant: a line always serialises");
        bytes.push(b'\n');
    }
}

/// Returns an address of IPv4, or a /64 of IPv6.
fn network_text(network: u128) -> String {
    match IpAddr::V6(Ipv6Addr::from_bits(network)).to_canonical() {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("{address}/64"),
    }
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
