//! The counters of one core: answers by part of the API and status, refusals by code, latencies.
//!
//! Only their own core writes them, so counting takes no lock and shares no cache line. The latency
//! of a request does not contain its wait for a key.

use hyper::StatusCode;
use keypeg_client::{Code, routes};
use keypeg_store::Histogram;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The upper bounds of the request latency buckets, in microseconds.
pub(super) const LATENCY_BUCKETS_US: [u64; 15] = [
    50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 1_000_000,
    10_000_000, 60_000_000,
];
/// How a forwarded request can end, as values of the label `outcome`.
pub(super) const FORWARD_OUTCOMES: [&str; 4] = ["answered", "not_there", "lost", "abandoned"];
pub(super) const STATUS_CLASSES: [&str; 4] = ["2xx", "3xx", "4xx", "5xx"];

/// The part of the API that a request is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::http) enum Family {
    Pools,
    Keys,
    Leases,
    KeepAlive,
    Verify,
    Events,
    /// The Django API.
    Django,
    /// The simple API.
    Simple,
    Ops,
    Other,
}

impl Family {
    /// Every family with its value of the label `route`. The values are part of the published
    /// metrics and keep the older names of the compatibility APIs.
    pub(super) const ALL: [(Self, &'static str); 10] = [
        (Self::Pools, "pools"),
        (Self::Keys, "keys"),
        (Self::Leases, "leases"),
        (Self::KeepAlive, "keepalive"),
        (Self::Verify, "verify"),
        (Self::Events, "events"),
        (Self::Django, "seed"),
        (Self::Simple, "plain"),
        (Self::Ops, "ops"),
        (Self::Other, "other"),
    ];

    /// Returns a path's family; the path need not be an existing route.
    pub(in crate::http) fn of(path: &str) -> Self {
        if let Some(below) = path.strip_prefix("/v1/pools") {
            return match below.split('/').nth(2) {
                None | Some("history") => Self::Pools,
                Some("keys") => Self::Keys,
                Some("leases") => Self::Leases,
                Some("keepalive") => Self::KeepAlive,
                Some("verify") => Self::Verify,
                Some("events") => Self::Events,
                Some(_) => Self::Other,
            };
        }
        match path.split('/').nth(1) {
            Some("api") => Self::Django,
            Some("keys" | "keepalive") => Self::Simple,
            Some("") if path == "/" => Self::Ops,
            Some("v1") if [routes::BACKUP, routes::ACCESS].contains(&path) => Self::Ops,
            Some("v1") if path.starts_with(routes::CLUSTER) => Self::Ops,
            Some("v1") if path == routes::HISTORY => Self::Pools,
            Some(
                "livez" | "readyz" | "version" | "metrics" | "openapi.json" | "docs" | "problems"
                | "ui",
            ) => Self::Ops,
            _ => Self::Other,
        }
    }
}

/// One core's counters.
#[derive(Debug)]
#[repr(align(128))]
pub(in crate::http) struct CoreCounts {
    pub(super) answered: [[AtomicU64; STATUS_CLASSES.len()]; Family::ALL.len()],
    pub(super) refused: [AtomicU64; Code::ALL.len()],
    pub(super) latency_us: Histogram<16>,
    /// By [`ForwardOutcome`].
    pub(super) forwarded: [AtomicU64; FORWARD_OUTCOMES.len()],
}

/// How one attempt to have another server answer has ended.
#[derive(Clone, Copy, Debug)]
pub(in crate::http) enum ForwardOutcome {
    Answered,
    /// The request was surely not applied there.
    NotThere,
    /// The request may have been applied there.
    Lost,
    /// The client has left.
    Abandoned,
}

impl Default for CoreCounts {
    fn default() -> Self {
        let refused = std::array::from_fn(|_| AtomicU64::default());
        let forwarded = Default::default();
        Self { answered: Default::default(), refused, latency_us: Histogram::default(), forwarded }
    }
}

impl CoreCounts {
    /// Counts a response and its latency, measured from the end of the request's head.
    pub(in crate::http) fn answered(&self, family: Family, status: StatusCode, latency: Duration) {
        let class =
            usize::from(status.as_u16() / 100).saturating_sub(2).min(STATUS_CLASSES.len() - 1);
        self.answered[family as usize][class].fetch_add(1, Ordering::Relaxed);
        let latency_us = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        self.latency_us.observe(&LATENCY_BUCKETS_US, latency_us);
    }

    /// Counts an attempt to have another server answer.
    pub(in crate::http) fn forwarded(&self, outcome: ForwardOutcome) {
        self.forwarded[outcome as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a problem by its code.
    pub(in crate::http) fn refused(&self, code: Code) {
        self.refused[code as usize].fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_family_and_code_indexes_its_own_counter() {
        for (index, (family, _)) in Family::ALL.into_iter().enumerate() {
            assert_eq!(family as usize, index, "{family:?}");
        }
        for (index, code) in Code::ALL.into_iter().enumerate() {
            assert_eq!(code as usize, index, "{code:?}");
        }
    }

    #[test]
    fn a_path_determines_its_family() {
        for (path, family) in [
            ("/v1/pools", Family::Pools),
            ("/v1/pools/keys", Family::Pools),
            ("/v1/pools/ci/keys", Family::Keys),
            ("/v1/pools/ci/keys/x/release", Family::Keys),
            ("/v1/pools/ci/leases/x/renew", Family::Leases),
            ("/v1/pools/ci/keepalive", Family::KeepAlive),
            ("/v1/pools/ci/events", Family::Events),
            ("/v1/pools/ci/nope", Family::Other),
            ("/api/v1/random_api_key/", Family::Django),
            ("/keys/x", Family::Simple),
            ("/keepalive/x", Family::Simple),
            ("/metrics", Family::Ops),
            ("/v1/cluster", Family::Ops),
            ("/v1/cluster/shards/0/move", Family::Ops),
            ("/", Family::Ops),
            ("//", Family::Other),
            ("*", Family::Other),
        ] {
            assert_eq!(Family::of(path), family, "{path}");
        }
    }
}
