//! The pages of error codes that the server embeds: an index, and one page for each code.
//!
//! keypeg-openapi writes the files. A code without a page does not compile.

use keypeg_client::Code;

macro_rules! embedded {
    ($name:literal) => {
        include_str!(concat!("../../../ui/docs/problems/", $name, ".html"))
    };
}

/// Every code with its status and title.
pub(super) const INDEX: &str = embedded!("index");

/// Returns the page of one code.
pub(super) fn page(code: Code) -> &'static str {
    match code {
        Code::Malformed => embedded!("malformed"),
        Code::BadCursor => embedded!("bad_cursor"),
        Code::Unauthorized => embedded!("unauthorized"),
        Code::Forbidden => embedded!("forbidden"),
        Code::KeyRequired => embedded!("key_required"),
        Code::KeyNotActive => embedded!("key_not_active"),
        Code::NotFound => embedded!("not_found"),
        Code::MethodNotAllowed => embedded!("method_not_allowed"),
        Code::Timeout => embedded!("timeout"),
        Code::TooLarge => embedded!("too_large"),
        Code::UnsupportedMediaType => embedded!("unsupported_media_type"),
        Code::Misdirected => embedded!("misdirected"),
        Code::Invalid => embedded!("invalid"),
        Code::RateLimited => embedded!("rate_limited"),
        Code::UnknownPool => embedded!("unknown_pool"),
        Code::UnknownKey => embedded!("unknown_key"),
        Code::NoKeyAvailable => embedded!("no_key_available"),
        Code::LeaseEnded => embedded!("lease_ended"),
        Code::MaxHoldReached => embedded!("max_hold_reached"),
        Code::IdempotencyMismatch => embedded!("idempotency_mismatch"),
        Code::KeysGone => embedded!("keys_gone"),
        Code::TakenOver => embedded!("taken_over"),
        Code::PreconditionFailed => embedded!("precondition_failed"),
        Code::DefaultPool => embedded!("default_pool"),
        Code::KeyExists => embedded!("key_exists"),
        Code::TooManyPools => embedded!("too_many_pools"),
        Code::PoolFull => embedded!("pool_full"),
        Code::BackupRunning => embedded!("backup_running"),
        Code::BackupUnsupported => embedded!("backup_unsupported"),
        Code::StorageFull => embedded!("storage_full"),
        Code::Overloaded => embedded!("overloaded"),
        Code::ShuttingDown => embedded!("shutting_down"),
        Code::NotOwner => embedded!("not_owner"),
        Code::NoOwner => embedded!("no_owner"),
        Code::OwnerLost => embedded!("owner_lost"),
        Code::NoCluster => embedded!("no_cluster"),
        Code::NotMoved => embedded!("not_moved"),
        Code::Settling => embedded!("settling"),
        Code::Internal => embedded!("internal"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_code_has_its_own_page() {
        for code in Code::ALL {
            let heading =
                format!(" <small>{} <code>{}</code></small></h1>", code.status(), code.as_str());
            assert!(page(code).contains(&heading), "{code:?}");
        }
    }
}
