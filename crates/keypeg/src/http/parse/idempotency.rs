//! The `Idempotency-Key` header: the engine runs a call with a key once and answers a retry with
//! the stored answer.
//!
//! Two bodies are equal when their values are, whatever their order and spacing. Does not know
//! where answers are stored or for how long.

use super::members::RequestBody;
use crate::http::error::Problem;
use hyper::header::HeaderMap;
use keypeg_core::BodyDigest;
use keypeg_fields::IDEMPOTENCY_KEY_MAX;
use keypeg_store::Call;

const HEADER: &str = "idempotency-key";

/// A request's Idempotency-Key and the digest of its body.
#[derive(Debug)]
pub(crate) struct KeyAndDigest {
    key: Box<str>,
    body: BodyDigest,
}

/// Reads the header; returns `None` if the request has none.
pub(crate) fn header(headers: &HeaderMap) -> Result<Option<Box<str>>, Problem> {
    let mut values = headers.get_all(HEADER).iter();
    let Some(first) = values.next() else { return Ok(None) };
    let visible = first.as_bytes().iter().all(u8::is_ascii_graphic);
    match first.to_str() {
        Ok(key)
            if visible
                && (1..=IDEMPOTENCY_KEY_MAX).contains(&key.len())
                && values.next().is_none() =>
        {
            Ok(Some(key.into()))
        }
        _ => Err(Problem::out_of_range(
            "Idempotency-Key",
            &format!("one value of 1..{IDEMPOTENCY_KEY_MAX} visible ASCII characters"),
        )),
    }
}

impl KeyAndDigest {
    /// Combines a key with the digest of the request's body.
    pub(crate) fn of(key: Option<Box<str>>, body: &mut impl RequestBody) -> Option<Self> {
        key.map(|key| Self { key, body: body.digest() })
    }
}

/// Makes a call idempotent if its request has an Idempotency-Key.
pub(crate) fn with_key(key: Option<KeyAndDigest>, call: Call) -> Call {
    match key {
        None => call,
        Some(KeyAndDigest { key, body }) => Call::Idempotent { key, body, call: Box::new(call) },
    }
}
