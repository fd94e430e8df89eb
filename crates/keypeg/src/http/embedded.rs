//! A file that the server embeds: as it is, and as gzip too if it is large. The compressed form is
//! written when the file is, so the server compresses nothing.
//!
//! The two forms have different bytes, so each has its own tag, and caches keep them apart by `Vary`.
//! Knows no path, and not how long a client may keep a file.

use super::message::{Body, Request, Response};
use bytes::Bytes;
use hyper::StatusCode;
use hyper::header::{
    ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE, ETAG, HeaderMap, HeaderValue, IF_NONE_MATCH,
    REFERRER_POLICY, VARY, X_CONTENT_TYPE_OPTIONS,
};
use sha2::{Digest as _, Sha256};
use std::fmt::Write as _;

/// The bytes of a digest in a tag, and in the name of a file.
const DIGEST_BYTES: usize = 8;

/// An embedded file.
pub(super) struct EmbeddedFile {
    content_type: &'static str,
    content: &'static str,
    gzip: Option<&'static [u8]>,
    digest: String,
}

impl EmbeddedFile {
    pub(super) fn new(content_type: &'static str, content: &'static str) -> Self {
        let mut digest = String::new();
        for byte in &Sha256::digest(content)[..DIGEST_BYTES] {
            write!(digest, "{byte:02x}").expect("invariant: writing to a string never fails");
        }
        Self { content_type, content, gzip: None, digest }
    }

    /// Adds the content as gzip.
    pub(super) fn with_gzip(self, gzip: &'static [u8]) -> Self {
        Self { gzip: Some(gzip), ..self }
    }

    /// Returns the first bytes of the digest of the content, as hexadecimal digits.
    pub(super) fn digest(&self) -> &str {
        &self.digest
    }

    /// Answers with the form that the client accepts, or with 304 if the client has it already.
    pub(super) fn answer(&self, request: &Request) -> Response {
        let gzip = self.gzip.filter(|_| accepts_gzip(request.headers()));
        let etag = format!("\"{}{}\"", self.digest, if gzip.is_some() { "-gzip" } else { "" });
        let is_known = has_tag(request.headers(), &etag);
        let content = gzip.unwrap_or(self.content.as_bytes());
        let body = if is_known { Body::default() } else { Bytes::from_static(content).into() };
        let mut response = Response::new(body);
        let headers = response.headers_mut();
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
        headers.insert(ETAG, HeaderValue::try_from(etag).expect("invariant: hexadecimal digits"));
        if self.gzip.is_some() {
            headers.insert(VARY, HeaderValue::from_static("accept-encoding"));
        }
        if is_known {
            *response.status_mut() = StatusCode::NOT_MODIFIED;
            return response;
        }
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(self.content_type));
        if gzip.is_some() {
            headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        }
        response
    }
}

/// Returns whether the client accepts gzip by name, with a weight above 0 (RFC 9110, 12.5.3). A `*`
/// alone gets the plain file, which every client can read.
fn accepts_gzip(headers: &HeaderMap) -> bool {
    let values = headers.get_all(ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|text| text.split(',')).any(|coding| {
        let (name, parameters) = coding.split_once(';').unwrap_or((coding, ""));
        let weight = parameters.trim().strip_prefix(['q', 'Q']).map(str::trim_start);
        let weight = weight.and_then(|rest| rest.strip_prefix('='));
        let is_refused = weight.is_some_and(|weight| weight.trim().parse() == Ok(0.0_f32));
        name.trim().eq_ignore_ascii_case("gzip") && !is_refused
    })
}

/// Returns whether the client has this version already (RFC 9110, 13.1.2).
fn has_tag(headers: &HeaderMap, etag: &str) -> bool {
    let known = headers.get_all(IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    known.flat_map(|text| text.split(',')).any(|tag| {
        let tag = tag.trim();
        tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == etag
    })
}
