//! The calls of the fast path: reads each of them from its request.
//!
//! Uses the readers of the hyper path's handlers, so both paths read the same arguments.

use super::head::RequestHead;
#[cfg(feature = "bench-constant")]
use crate::http::handlers::constant;
use crate::http::handlers::operation::Operation;
use crate::http::handlers::verify;
use crate::http::lanes::Lanes;
use crate::http::metrics::Family;
use crate::http::parse::body;
use crate::http::parse::keys::{ActiveStates, VerifyBody};
use crate::http::parse::leases::{AcquireArgs, ReleaseBody, RenewBody};
use crate::http::parse::members::{BodyFields, NoFields};
use keypeg_core::{KeyId, KeyRef, LeaseId, PoolName};
use keypeg_store::Place;

/// A call that the fast path answers.
pub(super) enum FastCall {
    Operation(Operation),
    /// A verification for a gateway, whose answer is in headers.
    Authorize(Operation),
    #[cfg(feature = "bench-constant")]
    Constant(constant::Constant),
}

impl FastCall {
    /// Returns whether this server serves the pool of the call, as far as it knows.
    pub(super) fn is_served_here(&self, lanes: &Lanes) -> bool {
        let Some(cluster) = lanes.cluster() else { return true };
        match self {
            Self::Operation(operation) | Self::Authorize(operation) => operation
                .pool()
                .is_some_and(|pool| cluster.place(cluster.shard_of(pool)) == Place::Here),
            #[cfg(feature = "bench-constant")]
            Self::Constant(_) => true,
        }
    }

    /// Returns the part of the API that the call belongs to.
    pub(super) fn family(&self) -> Family {
        match self {
            Self::Operation(operation) | Self::Authorize(operation) => operation.family(),
            #[cfg(feature = "bench-constant")]
            Self::Constant(_) => Family::Leases,
        }
    }

    /// Reads the call from a request; returns `None` for any other call and for one that would be
    /// refused.
    pub(super) fn read(head: &RequestHead<'_>) -> Option<Self> {
        let mut segments = head.path.strip_prefix("/v1/pools/")?.split('/');
        let pool = PoolName::parse(segments.next()?)?;
        let below_pool = [segments.next(), segments.next(), segments.next(), segments.next()];
        #[cfg(feature = "bench-constant")]
        if pool.as_str() == constant::POOL && head.method == "POST" {
            return constant::Constant::read(below_pool, head.body, head.content_type)
                .map(Self::Constant);
        }
        let is_get = head.method == "GET";
        let operation = match below_pool {
            [Some("verify"), None, ..] if is_get => {
                let value = verify::key_of_header(head.api_key.filter(|_| head.body.is_empty())?)?;
                return Some(Self::Authorize(Operation::verify(
                    pool,
                    value,
                    ActiveStates::default(),
                )));
            }
            _ if is_get => return None,
            [Some("leases"), None, ..] => {
                Operation::acquire(pool, AcquireArgs::of(read_body(head)?), None)
            }
            [Some("leases"), Some(lease), Some("release"), None] => {
                let options = read_body::<ReleaseBody>(head)?.into_options();
                Operation::release(pool, LeaseId::parse(lease)?, options)
            }
            [Some("leases"), Some(lease), Some("renew"), None] => {
                let RenewBody { ttl_ms } = read_body(head)?;
                Operation::renew(pool, LeaseId::parse(lease)?, ttl_ms)
            }
            [Some("keys"), Some(key), Some("keepalive"), None] => {
                let NoFields = read_body(head)?;
                Operation::keep_alive(pool, KeyRef::Id(KeyId::parse(key)?))
            }
            [Some("verify"), None, ..] => {
                let value = read_body::<VerifyBody>(head)?.value().ok()?;
                Operation::verify(pool, value, ActiveStates::default())
            }
            _ => return None,
        };
        Some(Self::Operation(operation))
    }
}

fn read_body<B: BodyFields>(head: &RequestHead<'_>) -> Option<B> {
    body::of_complete_body(head.body, head.content_type)
}

#[cfg(test)]
mod tests {
    use super::super::head::{Parsed, parse};
    use super::*;

    /// Returns whether the fast path reads a call, and whether it is for a gateway.
    fn read(line: &str, headers: &str, body: &str) -> Option<bool> {
        let length = body.len();
        let text = format!(
            "{line} HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n{headers}\r\n{body}"
        );
        let Parsed::Complete { head, .. } = parse(text.as_bytes()) else { return None };
        FastCall::read(&head).map(|call| matches!(call, FastCall::Authorize(_)))
    }

    #[test]
    fn a_call_belongs_to_the_family_of_its_path() {
        let (lease, key) = ("1".repeat(26), "6674ecnpkeibtvvpj0t7ngvphl");
        for (path, body) in [
            ("leases".to_owned(), ""),
            (format!("leases/{lease}/release"), ""),
            (format!("leases/{lease}/renew"), ""),
            (format!("keys/{key}/keepalive"), ""),
            ("verify".to_owned(), r#"{"key":"k"}"#),
        ] {
            let path = &*format!("/v1/pools/ci/{path}");
            let length = body.len();
            let headers = "Content-Type: application/json\r\n";
            let text = format!(
                "POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n{headers}\r\n{body}"
            );
            let Parsed::Complete { head, .. } = parse(text.as_bytes()) else { panic!("{path}") };
            let call = FastCall::read(&head).unwrap_or_else(|| panic!("{path}"));
            assert_eq!(call.family(), Family::of(path), "{path}");
        }
    }

    #[test]
    fn a_get_is_only_a_verification_for_a_gateway() {
        let verify = "GET /v1/pools/ci/verify";
        assert_eq!(read(verify, "X-Api-Key: k\r\n", ""), Some(true));
        assert_eq!(read("POST /v1/pools/ci/leases", "X-Api-Key: k\r\n", ""), Some(false));
        for (line, headers, body) in [
            (verify, "", ""),
            (verify, "X-Api-Key:\r\n", ""),
            (verify, "X-Api-Key: k\r\nContent-Type: application/json\r\n", "{}"),
            ("GET /v1/pools/ci/verify/x", "X-Api-Key: k\r\n", ""),
            ("GET /v1/pools/ci", "X-Api-Key: k\r\n", ""),
            ("GET /v1/pools/ci/leases", "X-Api-Key: k\r\n", ""),
            ("GET /v1/pools/ci/keys/k/keepalive", "X-Api-Key: k\r\n", ""),
        ] {
            assert_eq!(read(line, headers, body), None, "{line} {headers}");
        }
    }
}
