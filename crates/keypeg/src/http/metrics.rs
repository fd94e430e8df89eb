//! What the server counts, and how it is told at `/metrics`.
//!
//! Each core has counters of its own, which only that core writes: counting takes no lock and
//! shares no cache line. A scrape sums them. No label is made from anything a client said.

use crate::access::Access;
use hyper::StatusCode;
use keypeg_client::Code;
use keypeg_engine::metrics::{
    ANSWERS_PER_TURN_BUCKETS, COMMIT_BUCKETS_US, EngineMetrics, Histogram,
};
use keypeg_engine::{PoolView, RecoveryReport};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::Semaphore;

/// Upper bounds of what a request may take, in microseconds.
const LATENCY_US: [u64; 15] = [
    50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 1_000_000,
    10_000_000, 60_000_000,
];
const CLASSES: [&str; 4] = ["2xx", "3xx", "4xx", "5xx"];

/// Which part of the API a request is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    Pools,
    Keys,
    Leases,
    KeepAlive,
    Events,
    Seed,
    Plain,
    Ops,
    Other,
}

impl Family {
    const ALL: [(Self, &'static str); 9] = [
        (Self::Pools, "pools"),
        (Self::Keys, "keys"),
        (Self::Leases, "leases"),
        (Self::KeepAlive, "keepalive"),
        (Self::Events, "events"),
        (Self::Seed, "seed"),
        (Self::Plain, "plain"),
        (Self::Ops, "ops"),
        (Self::Other, "other"),
    ];

    /// Tells it by the path alone, whether there is such a route or not.
    pub(super) fn of(path: &str) -> Self {
        if let Some(below) = path.strip_prefix("/v1/pools") {
            return match below.split('/').nth(2) {
                None => Self::Pools,
                Some("keys") => Self::Keys,
                Some("leases") => Self::Leases,
                Some("keepalive") => Self::KeepAlive,
                Some("events") => Self::Events,
                Some(_) => Self::Other,
            };
        }
        match path.split('/').nth(1) {
            Some("api") => Self::Seed,
            Some("keys" | "keepalive") => Self::Plain,
            Some("livez" | "readyz" | "version" | "metrics" | "openapi.json" | "docs") => Self::Ops,
            _ => Self::Other,
        }
    }
}

/// What one core counts.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(super) struct CoreCounts {
    answered: [[AtomicU64; CLASSES.len()]; Family::ALL.len()],
    refused: [AtomicU64; Code::ALL.len()],
    latency_us: Histogram<16>,
}

impl CoreCounts {
    /// KeyCounts an answer and how long it took from the head's end on.
    pub(super) fn answered(&self, family: Family, status: StatusCode, took: Duration) {
        let class = usize::from(status.as_u16() / 100).saturating_sub(2).min(CLASSES.len() - 1);
        self.answered[family as usize][class].fetch_add(1, Ordering::Relaxed);
        let took_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.latency_us.observe(&LATENCY_US, took_us);
    }

    /// KeyCounts a problem.
    pub(super) fn refused(&self, code: Code) {
        self.refused[code as usize].fetch_add(1, Ordering::Relaxed);
    }
}

/// What is known when serving begins.
#[derive(Debug)]
pub(crate) struct Begun {
    /// What the start found.
    pub(crate) recovered: RecoveryReport,
    /// Who may do what.
    pub(crate) access: Arc<Access>,
    /// What the engine counts.
    pub(crate) meter: Arc<EngineMetrics>,
}

/// Where all that is told at a scrape comes from.
#[derive(Debug)]
pub(super) struct Metrics {
    begun: Begun,
    cores: Vec<Arc<CoreCounts>>,
    connections: Arc<Semaphore>,
    connections_max: usize,
}

impl Metrics {
    pub(super) fn new(
        begun: Begun,
        cores: Vec<Arc<CoreCounts>>,
        connections: Arc<Semaphore>,
        connections_max: usize,
    ) -> Self {
        Self { begun, cores, connections, connections_max }
    }

    /// Tells everything as `OpenMetrics` text. O(pools).
    pub(super) fn text(&self, pools: &[PoolView]) -> String {
        let mut registry = Registry::with_prefix("keypeg");
        registry.register_collector(Box::new(self.snapshot(pools)));
        let mut text = String::with_capacity(16 << 10);
        text::encode(&mut text, &registry).expect("invariant: writing to a string never fails");
        text
    }

    fn snapshot(&self, pools: &[PoolView]) -> Snapshot {
        let told = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let sum = |of: fn(&PoolView) -> u64| pools.iter().map(of).sum();
        Snapshot {
            answered: std::array::from_fn(|family| {
                std::array::from_fn(|class| self.total(|core| &core.answered[family][class]))
            }),
            refused: std::array::from_fn(|code| self.total(|core| &core.refused[code])),
            latency: Told::sum(1e6, &LATENCY_US, self.cores.iter().map(|core| &core.latency_us)),
            commit: Told::sum(1e6, &COMMIT_BUCKETS_US, [&self.begun.meter.commit_us]),
            answers: Told::sum(1.0, &ANSWERS_PER_TURN_BUCKETS, [&self.begun.meter.answers]),
            connections: self.connections_max - self.connections.available_permits(),
            pools: pools.len() as u64,
            keys: [
                ("available", sum(|pool| pool.counts.available)),
                ("leased", sum(|pool| pool.counts.leased)),
                ("resting", sum(|pool| pool.counts.resting)),
                ("quarantined", sum(|pool| pool.counts.quarantined)),
            ],
            waiting: sum(|pool| pool.waiting),
            followers: told(&self.begun.meter.subscribers),
            events: told(&self.begun.meter.events),
            resyncs: told(&self.begun.meter.resyncs),
            starts: self.begun.recovered.starts_before + 1,
            batches_cut: self.begun.recovered.batches_cut,
            tokens: self.begun.access.gate.as_ref().map(|gate| gate.told()),
            audit: self.begun.access.audit.as_ref().map(|audit| audit.told()),
        }
    }

    fn total(&self, of: impl Fn(&CoreCounts) -> &AtomicU64) -> u64 {
        self.cores.iter().map(|core| of(core).load(Ordering::Relaxed)).sum()
    }
}

/// All numbers of one scrape.
#[derive(Debug)]
struct Snapshot {
    answered: [[u64; CLASSES.len()]; Family::ALL.len()],
    refused: [u64; Code::ALL.len()],
    latency: Told,
    commit: Told,
    answers: Told,
    connections: usize,
    pools: u64,
    keys: [(&'static str, u64); 4],
    waiting: u64,
    followers: u64,
    events: u64,
    resyncs: u64,
    starts: u64,
    batches_cut: u64,
    /// How many, how often read anew, whether the file is broken.
    tokens: Option<(u64, u64, bool)>,
    /// Lines, changes refused, whether it cannot be written.
    audit: Option<(u64, u64, bool)>,
}

/// A histogram as it is told: each bound with the values that are not above it and above the one
/// before.
#[derive(Debug)]
struct Told {
    buckets: Vec<(f64, u64)>,
    sum: f64,
    count: u64,
}

impl Told {
    /// Sums histograms over the same bounds; `unit` of what was counted are one of what is told.
    fn sum<'a, const N: usize>(
        unit: f64,
        bounds: &[u64],
        all: impl IntoIterator<Item = &'a Histogram<N>>,
    ) -> Self {
        let (mut places, mut sum) = ([0; N], 0);
        for (each, of_it) in all.into_iter().map(Histogram::read) {
            places.iter_mut().zip(each).for_each(|(total, count)| *total += count);
            sum += of_it;
        }
        let bounds = bounds.iter().map(|&bound| float(bound) / unit).chain([f64::INFINITY]);
        let buckets: Vec<_> = bounds.zip(places).collect();
        Self { buckets, sum: float(sum) / unit, count: places.iter().sum() }
    }
}

#[expect(clippy::cast_precision_loss, reason = "exact below 2^53, which takes centuries to reach")]
fn float(number: u64) -> f64 {
    number as f64
}

impl Collector for Snapshot {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        self.encode_http(&mut encoder)?;
        self.encode_engine(&mut encoder)?;
        self.encode_access(&mut encoder)
    }
}

impl Snapshot {
    fn encode_http(&self, to: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Requests answered, by part of the API and class of status";
        let mut family = to.encode_descriptor("http_requests", help, None, MetricType::Counter)?;
        for ((_, route), classes) in Family::ALL.iter().zip(&self.answered) {
            for (class, &count) in CLASSES.iter().zip(classes) {
                let labels = [("route", *route), ("status", *class)];
                ConstCounter::new(count).encode(family.encode_family(&labels)?)?;
            }
        }
        let help = "Refusals, by the code of their problem";
        let mut family = to.encode_descriptor("refusals", help, None, MetricType::Counter)?;
        for (code, &count) in Code::ALL.iter().zip(&self.refused) {
            let labels = [("code", code.as_str())];
            ConstCounter::new(count).encode(family.encode_family(&labels)?)?;
        }
        let help = "From a request's head to its answer";
        histogram(to, "http_request_seconds", help, &self.latency)?;
        let open = self.connections as u64;
        gauge(to, "http_connections", "Connections that are open", open)
    }

    fn encode_engine(&self, to: &mut DescriptorEncoder<'_>) -> fmt::Result {
        histogram(to, "commit_seconds", "Write and sync of a batch", &self.commit)?;
        histogram(to, "turn_answers", "Requests answered by one turn", &self.answers)?;
        gauge(to, "pools", "Pools there are", self.pools)?;
        let mut family =
            to.encode_descriptor("keys", "Keys of all pools, by state", None, MetricType::Gauge)?;
        for (state, count) in self.keys {
            ConstGauge::new(count).encode(family.encode_family(&[("state", state)])?)?;
        }
        gauge(to, "waiting", "Requests that wait for a key", self.waiting)?;
        gauge(to, "followers", "Clients that follow a pool's events", self.followers)?;
        counter(to, "events", "Events told, to each client that was told", self.events)?;
        let help = "How often a client was told the counts, since events before were not there";
        counter(to, "resyncs", help, self.resyncs)?;
        gauge(to, "starts", "Starts of the data directory, this one included", self.starts)?;
        let help = "Batches that this start cut from the journal's end";
        gauge(to, "batches_cut", help, self.batches_cut)
    }
}

impl Snapshot {
    fn encode_access(&self, to: &mut DescriptorEncoder<'_>) -> fmt::Result {
        if let Some((tokens, reloads, broken)) = self.tokens {
            gauge(to, "tokens", "Access tokens there are", tokens)?;
            counter(to, "token_reloads", "How often the tokens' file was taken anew", reloads)?;
            let help = "1 while the tokens' file cannot be taken and an older one holds";
            gauge(to, "tokens_broken", help, broken.into())?;
        }
        if let Some((lines, refused, failing)) = self.audit {
            counter(to, "audit_lines", "Lines written to the audit log", lines)?;
            let help = "Changes refused since the audit log had no room for them";
            counter(to, "audit_refusals", help, refused)?;
            let help = "1 while the audit log cannot be written and changes are refused";
            gauge(to, "audit_failing", help, failing.into())?;
        }
        Ok(())
    }
}

fn gauge(to: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: u64) -> fmt::Result {
    let encoder = to.encode_descriptor(name, help, None, MetricType::Gauge)?;
    ConstGauge::new(value).encode(encoder)
}

fn counter(to: &mut DescriptorEncoder<'_>, name: &str, help: &str, count: u64) -> fmt::Result {
    let encoder = to.encode_descriptor(name, help, None, MetricType::Counter)?;
    ConstCounter::new(count).encode(encoder)
}

fn histogram(to: &mut DescriptorEncoder<'_>, name: &str, help: &str, told: &Told) -> fmt::Result {
    let mut encoder = to.encode_descriptor(name, help, None, MetricType::Histogram)?;
    encoder.encode_histogram::<NoLabelSet>(told.sum, told.count, &told.buckets, None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_family_and_code_has_its_own_place() {
        for (at, (family, _)) in Family::ALL.into_iter().enumerate() {
            assert_eq!(family as usize, at, "{family:?}");
        }
        for (at, code) in Code::ALL.into_iter().enumerate() {
            assert_eq!(code as usize, at, "{code:?}");
        }
    }

    #[test]
    fn a_path_tells_its_family() {
        for (path, family) in [
            ("/v1/pools", Family::Pools),
            ("/v1/pools/keys", Family::Pools),
            ("/v1/pools/ci/keys", Family::Keys),
            ("/v1/pools/ci/keys/x/release", Family::Keys),
            ("/v1/pools/ci/leases/x/renew", Family::Leases),
            ("/v1/pools/ci/keepalive", Family::KeepAlive),
            ("/v1/pools/ci/events", Family::Events),
            ("/v1/pools/ci/nope", Family::Other),
            ("/api/v1/random_api_key/", Family::Seed),
            ("/keys/x", Family::Plain),
            ("/keepalive/x", Family::Plain),
            ("/metrics", Family::Ops),
            ("/", Family::Other),
            ("*", Family::Other),
        ] {
            assert_eq!(Family::of(path), family, "{path}");
        }
    }
}
