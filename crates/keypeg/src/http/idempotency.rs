//! `Idempotency-Key`: what is asked under one is played once, and answered the same when asked again.
//!
//! Two bodies are the same when their fields are, in whatever order and spacing.

use super::body::Fields;
use super::error::Problem;
use hyper::header::HeaderMap;
use keypeg_engine::Call;
use keypeg_engine::core::BodyDigest;

const HEADER: &str = "idempotency-key";
const KEY_MAX: usize = 128;

/// An Idempotency-Key and what was asked under it.
#[derive(Debug)]
pub(super) struct Once {
    key: Box<str>,
    body: BodyDigest,
}

/// Reads the header; `None` where it is not there.
pub(super) fn key(headers: &HeaderMap) -> Result<Option<Box<str>>, Problem> {
    let mut values = headers.get_all(HEADER).iter();
    let Some(first) = values.next() else { return Ok(None) };
    let visible = first.as_bytes().iter().all(u8::is_ascii_graphic);
    match first.to_str() {
        Ok(key) if visible && (1..=KEY_MAX).contains(&key.len()) && values.next().is_none() => {
            Ok(Some(key.into()))
        }
        _ => Err(Problem::out_of_range("Idempotency-Key", "once, 1..128 visible characters")),
    }
}

impl Once {
    /// Ties a key to what is asked under it.
    pub(super) fn of(key: Option<Box<str>>, fields: &Fields) -> Option<Self> {
        key.map(|key| Self { key, body: BodyDigest::of(&fields.canonical()) })
    }
}

/// Has a call played once, where it came under an Idempotency-Key.
pub(super) fn asked(once: Option<Once>, call: Call) -> Call {
    match once {
        None => call,
        Some(Once { key, body }) => Call::Idempotent { key, body, call: Box::new(call) },
    }
}
