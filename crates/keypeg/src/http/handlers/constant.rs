//! Constant responses, used only by `bench/run` to measure the cost of HTTP without the engine.
//!
//! Compiled with the feature `bench-constant`. For the pool of that name, every acquire returns the
//! same grant and every release succeeds. Requests are read as for a real pool, the engine is not
//! called, and the responses are as long as real ones.

use crate::http::parse::body;
use crate::http::parse::leases::{AcquireBody, ReleaseBody};
use hyper::StatusCode;

/// The name of the pool.
pub(crate) const POOL: &str = "bench-constant";
const GRANT: &str = r#"{"id":"6674ecnpkeibtvvpj0t7ngvphl","pool":"bench-constant","key_id":"3e19ob8uiq8ulb0e3v7o7kaciu","key":"EP4EHmEDGjNsr9emT5fE","fencing_token":1795407714706997,"holder":"bench-17","granted_at":"2026-11-23T04:21:55.745Z","waited_seconds":0,"expires_at":"2026-11-23T04:22:55.745Z","expires_in_seconds":60,"key_expires_at":"2026-11-23T04:26:55.733Z"}"#;

/// A constant response.
pub(crate) enum Constant {
    Granted,
    Released,
}

impl Constant {
    /// Reads a request from its path below the pool and its body; returns `None` for any other
    /// call.
    pub(crate) fn read(
        segments: [Option<&str>; 4],
        body: &[u8],
        content_type: Option<&[u8]>,
    ) -> Option<Self> {
        match segments {
            [Some("leases"), None, ..] => {
                body::of_complete_body::<AcquireBody>(body, content_type)?;
                Some(Self::Granted)
            }
            [Some("leases"), Some(_), Some("release"), None] => {
                body::of_complete_body::<ReleaseBody>(body, content_type)?;
                Some(Self::Released)
            }
            _ => None,
        }
    }

    /// Returns the response's status.
    pub(crate) fn status(&self) -> StatusCode {
        match self {
            Self::Granted => StatusCode::CREATED,
            Self::Released => StatusCode::NO_CONTENT,
        }
    }

    /// Returns the response's body.
    pub(crate) fn body(&self) -> &'static [u8] {
        match self {
            Self::Granted => GRANT.as_bytes(),
            Self::Released => b"",
        }
    }
}
