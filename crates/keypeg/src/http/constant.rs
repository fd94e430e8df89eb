//! Constant answers, for `bench/run` alone: what this server's HTTP costs without its engine.
//!
//! Behind the feature `bench-constant`. The pool of that name lends always the same and takes
//! anything back, the way acquire and release go but for the engine, with an answer as long as
//! theirs.

use super::body::Fields;
use super::leases;
use hyper::StatusCode;

/// The pool.
pub(super) const POOL: &str = "bench-constant";
const GRANT: &str = r#"{"id":"6674ecnpkeibtvvpj0t7ngvphl","pool":"bench-constant","key_id":"3e19ob8uiq8ulb0e3v7o7kaciu","key":"EP4EHmEDGjNsr9emT5fE","fencing_token":1795407714706997,"holder":"bench-17","granted_at":"2026-11-23T04:21:55.745Z","waited_seconds":0,"expires_at":"2026-11-23T04:22:55.745Z","expires_in_seconds":60,"key_expires_at":"2026-11-23T04:26:55.733Z"}"#;

/// What is told.
pub(super) enum Constant {
    Granted,
    Released,
}

impl Constant {
    pub(super) fn read<'a>(
        below: [Option<&str>; 4],
        fields: impl FnOnce(&'a [&'static str]) -> Option<Fields>,
    ) -> Option<Self> {
        match below {
            [Some("leases"), None, ..] => {
                leases::Wanted::of(fields(leases::ACQUIRE)?).ok()?;
                Some(Self::Granted)
            }
            [Some("leases"), Some(_), Some("release"), None] => {
                leases::verdict(fields(leases::RELEASE)?).ok()?;
                Some(Self::Released)
            }
            _ => None,
        }
    }

    pub(super) fn status(&self) -> StatusCode {
        match self {
            Self::Granted => StatusCode::CREATED,
            Self::Released => StatusCode::NO_CONTENT,
        }
    }

    pub(super) fn body(&self) -> &'static [u8] {
        match self {
            Self::Granted => GRANT.as_bytes(),
            Self::Released => b"",
        }
    }
}
