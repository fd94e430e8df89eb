//! The headers between the servers of an installation: what the receiving server adds to a request
//! that it forwards, and what the owner adds to its answer.
//!
//! They count only beside the secret of the installation, which is compared in constant time. The
//! same headers of an ordinary client are ignored, and never reach another server.

use crate::http::origin::{Origin, RequestId};
use crate::http::respond::REQUEST_ID;
use crate::tls::ClientCertificate;
use hyper::header::{CONNECTION, EXPECT, HOST, HeaderMap, HeaderName, HeaderValue, TE, TRAILER};
use hyper::header::{PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TRANSFER_ENCODING, UPGRADE};
use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::Arc;
use subtle::ConstantTimeEq as _;

const SECRET: HeaderName = HeaderName::from_static("keypeg-forwarded");
const CLIENT: HeaderName = HeaderName::from_static("keypeg-client");
const CERTIFICATE: HeaderName = HeaderName::from_static("keypeg-client-certificate");
const WAITED_MS: HeaderName = HeaderName::from_static("keypeg-waited-ms");
/// Why the owner did not handle a request that another server may handle.
const REFUSED: HeaderName = HeaderName::from_static("keypeg-refused");
/// The shards whose pools a list contains.
const SHARDS: HeaderName = HeaderName::from_static("keypeg-shards");
/// All headers of this file.
const OWN: [HeaderName; 6] = [SECRET, CLIENT, CERTIFICATE, WAITED_MS, REFUSED, SHARDS];
/// Headers that concern one connection (RFC 9110, 7.6.1), and a request for 100 (Continue), which
/// this server answers by itself.
const OF_CONNECTION: [HeaderName; 10] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
    EXPECT,
];

/// What another server says about a request that it forwards.
#[derive(Clone, Debug)]
pub(crate) struct Forwarded {
    /// The address of the client.
    pub(crate) client_ip: Option<IpAddr>,
    /// The verified certificate of the client.
    pub(crate) certificate: Option<Arc<ClientCertificate>>,
    /// The id of the request, for the logs of both servers.
    pub(crate) id: Option<RequestId>,
    /// How long the request has waited, in milliseconds.
    pub(crate) waited_ms: u64,
}

impl Forwarded {
    /// Reads the headers of a request; `None` for one of an ordinary client.
    pub(crate) fn of(headers: &HeaderMap, secret: &[u8; 32]) -> Option<Self> {
        let shown = decode_hex(headers.get(SECRET)?.as_bytes())?;
        if !bool::from(shown.ct_eq(secret)) {
            return None;
        }
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
        Some(Self {
            client_ip: text(CLIENT).and_then(|ip| ip.parse().ok()),
            certificate: text(CERTIFICATE).and_then(read_certificate).map(Arc::new),
            id: text(REQUEST_ID).and_then(RequestId::parse),
            waited_ms: text(WAITED_MS).and_then(|ms| ms.parse().ok()).unwrap_or(0),
        })
    }
}

/// What a server says about a request that it forwards.
pub(super) struct Forwarding<'a> {
    pub(super) secret: [u8; 32],
    pub(super) origin: &'a Origin,
    pub(super) certificate: Option<&'a ClientCertificate>,
    pub(super) waited_ms: u64,
    /// The host of the request, where it has no header `Host`.
    pub(super) host: &'a str,
}

impl Forwarding<'_> {
    /// Returns the headers of the forwarded request.
    pub(super) fn headers(&self, of_client: &HeaderMap) -> HeaderMap {
        let mut headers = of_client.clone();
        remove_of_connection(&mut headers);
        let value = |text: &str| HeaderValue::try_from(text).expect("invariant: visible ASCII");
        headers.insert(SECRET, value(&encode_hex(&self.secret)));
        headers.insert(REQUEST_ID, value(&self.origin.id.to_string()));
        if let Some(ip) = self.origin.client_ip {
            headers.insert(CLIENT, value(&ip.to_string()));
        }
        if let Some(certificate) = self.certificate {
            headers.insert(CERTIFICATE, value(&write_certificate(certificate)));
        }
        if self.waited_ms > 0 {
            headers.insert(WAITED_MS, self.waited_ms.into());
        }
        if !headers.contains_key(HOST)
            && let Ok(host) = HeaderValue::try_from(self.host)
        {
            headers.insert(HOST, host);
        }
        headers
    }
}

/// Removes what concerns one connection, and what only servers say to each other.
fn remove_of_connection(headers: &mut HeaderMap) {
    let named: Vec<_> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| HeaderName::try_from(name.trim()).ok())
        .collect();
    for name in named.iter().chain(&OF_CONNECTION).chain(&OWN) {
        headers.remove(name);
    }
}

/// Marks the answer to a forwarded request that this server did not handle and another one may.
pub(crate) fn mark_refused(headers: &mut HeaderMap) {
    headers.insert(REFUSED, HeaderValue::from_static("not_owner"));
}

/// Says to the server that forwarded a list which shards it has.
pub(crate) fn mark_shards(headers: &mut HeaderMap, shards: &[usize]) {
    let text: Vec<_> = shards.iter().map(ToString::to_string).collect();
    let text = HeaderValue::try_from(text.join(",")).expect("invariant: digits and commas");
    headers.insert(SHARDS, text);
}

/// What the headers of an answer say to the server that forwarded the request.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Answered {
    /// Whether the request was not handled, and another server may handle it.
    pub(super) is_refused: bool,
    /// The shards whose pools a list contains.
    pub(super) shards: Vec<usize>,
}

impl Answered {
    /// Takes what concerns only the servers out of the headers of an answer.
    pub(super) fn take(headers: &mut HeaderMap) -> Self {
        let shards = headers.get(SHARDS).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let shards = shards.split(',').filter_map(|shard| shard.parse().ok()).collect();
        let is_refused = headers.contains_key(REFUSED);
        remove_of_connection(headers);
        Self { is_refused, shards }
    }
}

/// Writes the names of a certificate, which can contain any character, in hexadecimal digits.
fn write_certificate(ClientCertificate { names, not_after_ms }: &ClientCertificate) -> String {
    let json = serde_json::to_vec(&(not_after_ms, names));
    encode_hex(&json.expect("invariant: numbers and texts always serialise"))
}

fn read_certificate(text: &str) -> Option<ClientCertificate> {
    let json = decode_hex(text.as_bytes())?;
    let (not_after_ms, names) = serde_json::from_slice(&json).ok()?;
    Some(ClientCertificate { names, not_after_ms })
}

fn encode_hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        write!(text, "{byte:02x}").expect("invariant: writing to a string never fails");
    }
    text
}

fn decode_hex(text: &[u8]) -> Option<Vec<u8>> {
    let digit = |byte: &u8| char::from(*byte).to_digit(16).and_then(|it| u8::try_from(it).ok());
    let pairs = text.chunks(2).map(|pair| match pair {
        [high, low] => Some(digit(high)? << 4 | digit(low)?),
        _ => None,
    });
    pairs.collect()
}
