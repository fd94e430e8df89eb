//! The `Idempotency-Key` header: the engine runs a call with a key once and answers a retry with
//! the stored answer.
//!
//! Two bodies are equal when their values are, whatever their order and spacing. Does not know
//! where answers are stored or for how long.

use super::members::BodyFields;
use crate::http::error::Problem;
use hyper::header::HeaderMap;
use keypeg_fields::IDEMPOTENCY_KEY_MAX;
use keypeg_store::Idempotency;

const HEADER: &str = "idempotency-key";

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

/// Combines a key with the digest of the request's body.
pub(crate) fn with_body(key: Option<Box<str>>, body: &mut impl BodyFields) -> Option<Idempotency> {
    key.map(|key| Idempotency::new(&key, body.digest()))
}
