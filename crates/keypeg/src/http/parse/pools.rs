//! The body of a request that creates a pool or changes its policy.
//!
//! Limits between two fields are checked by the pool, which knows its present policy.

use super::members::{BodyFields, Member};
use keypeg_core::PolicyPatch;
use keypeg_fields::{
    DRAINING, KEEPALIVE_TTL, KEY_LENGTH, KEY_PREFIX, LEASE_TTL, MAX_HOLD, MAX_KEYS, POOL_READ_ONLY,
    REST,
};

/// The body of a change of a policy. It can be a whole pool, as a client read it.
#[derive(Debug, Default)]
pub(crate) struct PolicyBody {
    patch: PolicyPatch,
    key_length: Option<u64>,
}

impl BodyFields for PolicyBody {
    const MEMBERS: &'static [Member<Self>] = &[
        Member::Ms(&LEASE_TTL, |body| &mut body.patch.lease_ttl_ms),
        Member::MsOrNull(&MAX_HOLD, |body| &mut body.patch.max_hold_ms),
        Member::MsOrNull(&KEEPALIVE_TTL, |body| &mut body.patch.keepalive_ttl_ms),
        Member::Ms(&REST, |body| &mut body.patch.rest_ms),
        Member::Integer(&KEY_LENGTH, |body| &mut body.key_length),
        Member::Text(&KEY_PREFIX, |body| &mut body.patch.key_prefix),
        Member::IntegerOrNull(&MAX_KEYS, |body| &mut body.patch.max_keys),
        Member::Flag(&DRAINING, |body| &mut body.patch.draining),
    ];
    const READ_ONLY: &'static [&'static str] = &POOL_READ_ONLY;
}

impl PolicyBody {
    /// Returns the change of the policy.
    pub(crate) fn into_patch(self) -> PolicyPatch {
        let key_length = self
            .key_length
            .map(|length| u16::try_from(length).expect("invariant: the range of the field fits"));
        PolicyPatch { key_length, ..self.patch }
    }
}
