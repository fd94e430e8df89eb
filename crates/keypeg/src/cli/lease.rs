//! The options of a lease to acquire, and acquiring one with a wait of any length.
//!
//! Used by `acquire` and `exec`. What a longer wait means on the wire is the client's concern.

use crate::duration::HumanDuration;
use crate::random::SystemRandom;
use clap::Args;
use keypeg_client::{AcquireRequest, ClientSource, Error, LongWait, Seconds, SentGrant};
use keypeg_core::RandomSource;
use std::fmt::Write;
use std::time::Duration;

/// The options of a lease to acquire.
#[derive(Debug, Args)]
pub struct LeaseArgs {
    /// Lease TTL, such as 500ms, 1m30s or 2h [default: the pool's]
    #[arg(long, value_name = "DURATION")]
    pub(super) ttl: Option<HumanDuration>,
    /// Name of the holder, shown with the lease
    #[arg(long, value_name = "TEXT")]
    holder: Option<String>,
    /// Time to wait for a key, also while the server restarts; --wait alone means 5m [default: no wait]
    #[arg(long, value_name = "DURATION")]
    #[arg(num_args = 0..=1, default_missing_value = "5m")]
    pub(super) wait: Option<HumanDuration>,
}

impl LeaseArgs {
    /// Acquires a key, and waits for one for the given time. `report` gets the first of several
    /// failures in a row after which the request is repeated.
    pub(super) async fn acquire(
        &self,
        source: &ClientSource,
        pool: &str,
        report: &mut dyn FnMut(&str),
    ) -> Result<SentGrant, Error> {
        let request = AcquireRequest {
            ttl_seconds: self.ttl_seconds(),
            wait_seconds: None,
            holder: self.holder.clone(),
        };
        let Some(wait) = self.wait else { return source.acquire(pool, &request).await };
        let mut last = String::new();
        let mut on_retry = |error: &Error| {
            let words = error.to_string();
            if words != last {
                report(&format!("{words}; retrying until the wait ends"));
                last = words;
            }
        };
        let mut new_key = new_idempotency_key;
        let total = Duration::from_millis(wait.ms());
        source
            .acquire_within(pool, &request, LongWait::new(total, &mut new_key, &mut on_retry))
            .await
    }

    /// Returns the lease TTL on the wire.
    pub(super) fn ttl_seconds(&self) -> Option<Seconds> {
        self.ttl.map(|ttl| Seconds::from_ms(ttl.ms()))
    }
}

/// Returns a new Idempotency-Key: 128 random bits.
fn new_idempotency_key() -> String {
    let mut bytes = [0; 16];
    SystemRandom::new().fill(&mut bytes);
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
