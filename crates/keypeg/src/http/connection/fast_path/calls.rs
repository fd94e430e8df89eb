//! The calls of the fast path: reads each of them from its request.
//!
//! Uses the readers of the hyper path's handlers, so both paths read the same arguments.

use super::head::RequestHead;
#[cfg(feature = "bench-constant")]
use crate::http::handlers::constant;
use crate::http::handlers::operation::Operation;
use crate::http::parse::body::Fields;
use crate::http::parse::leases::{self, AcquireArgs};
use keypeg_core::{KeyId, KeyRef, LeaseId, PoolName};

/// A call that the fast path answers.
pub(super) enum FastCall {
    Operation(Operation),
    #[cfg(feature = "bench-constant")]
    Constant(constant::Constant),
}

impl FastCall {
    /// Reads the call from a request; returns `None` for any other call and for one that would be
    /// refused.
    pub(super) fn read(head: &RequestHead<'_>) -> Option<Self> {
        let fields = |known| Fields::of_complete_body(head.body, head.content_type, known);
        let mut segments = head.path.strip_prefix("/v1/pools/")?.split('/');
        let pool = PoolName::parse(segments.next()?)?;
        let below_pool = [segments.next(), segments.next(), segments.next(), segments.next()];
        #[cfg(feature = "bench-constant")]
        if pool.as_str() == constant::POOL {
            return constant::Constant::read(below_pool, fields).map(Self::Constant);
        }
        let operation = match below_pool {
            [Some("leases"), None, ..] => {
                let acquire = AcquireArgs::of(fields(leases::ACQUIRE_FIELDS)?).ok()?;
                Operation::acquire(pool, acquire, None)
            }
            [Some("leases"), Some(lease), Some("release"), None] => {
                let options = leases::release_options(fields(leases::RELEASE_FIELDS)?).ok()?;
                Operation::release(pool, LeaseId::parse(lease)?, options)
            }
            [Some("leases"), Some(lease), Some("renew"), None] => {
                let ttl_ms = leases::renew_ttl(fields(leases::RENEW_FIELDS)?).ok()?;
                Operation::renew(pool, LeaseId::parse(lease)?, ttl_ms)
            }
            [Some("keys"), Some(key), Some("keepalive"), None] => {
                fields(&[])?;
                Operation::keep_alive(pool, KeyRef::Id(KeyId::parse(key)?))
            }
            _ => return None,
        };
        Some(Self::Operation(operation))
    }
}
