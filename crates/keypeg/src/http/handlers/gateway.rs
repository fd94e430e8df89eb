//! The answer to a gateway about an active key: its headers, as a response and as lines.
//!
//! Knows neither requests nor the engine. Both forms have the same headers in the same order.

use crate::http::message::Response;
use crate::http::respond::no_content;
use hyper::header::{HeaderName, HeaderValue};
use keypeg_client::Verification;
use std::fmt::Write;

const STATE: HeaderName = HeaderName::from_static("keypeg-state");
const KEY_ID: HeaderName = HeaderName::from_static("keypeg-key-id");
const HOLDER: HeaderName = HeaderName::from_static("keypeg-holder");
const FENCING_TOKEN: HeaderName = HeaderName::from_static("keypeg-fencing-token");
const EXPIRES_AT: HeaderName = HeaderName::from_static("keypeg-expires-at");

/// Returns the answer to a gateway, which can pass the headers on to the service.
pub(super) fn authorized(verification: &Verification) -> Response {
    let mut response = no_content();
    for_each_header(verification, |name, value| {
        let value = HeaderValue::try_from(value).expect("invariant: visible ASCII");
        response.headers_mut().insert(name, value);
    });
    response
}

/// Returns the header lines that [`authorized`] adds.
pub(super) fn authorized_lines(verification: &Verification) -> Vec<u8> {
    let mut lines = Vec::new();
    for_each_header(verification, |name, value| {
        for part in [name.as_str(), ": ", value, "\r\n"] {
            lines.extend_from_slice(part.as_bytes());
        }
    });
    lines
}

/// Calls `add` for each header that shows an active key.
fn for_each_header(
    Verification { state, key_id, lease, .. }: &Verification,
    mut add: impl FnMut(HeaderName, &str),
) {
    if let Some(state) = state {
        add(STATE, state.as_str());
    }
    if let Some(id) = key_id {
        add(KEY_ID, id);
    }
    if let Some(lease) = lease {
        if let Some(holder) = &lease.holder {
            add(HOLDER, &encoded(holder));
        }
        add(FENCING_TOKEN, &lease.fencing_token.to_string());
        add(EXPIRES_AT, &lease.expires_at.to_string());
    }
}

/// Percent-encodes what is not a visible ASCII character, and `%` itself.
fn encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for &byte in text.as_bytes() {
        if byte.is_ascii_graphic() && byte != b'%' {
            encoded.push(char::from(byte));
        } else {
            write!(encoded, "%{byte:02X}").expect("invariant: writing to a string never fails");
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_holder_is_encoded_for_a_header() {
        for (holder, header) in
            [("job-7", "job-7"), ("a b", "a%20b"), ("100%", "100%25"), ("\u{e4},\"", "%C3%A4,\"")]
        {
            assert_eq!(encoded(holder), header);
        }
    }
}
