//! The server's metrics and their `OpenMetrics` text for `/metrics`.
//!
//! Each core writes only its own counters, so counting takes no lock and shares no cache line. A
//! scrape sums them. No label comes from client input, which bounds the number of series.

pub(super) mod exposition;
mod pool_totals;

use super::connection::places::{PlaceCounts, Places};
use super::lanes::Lanes;
use crate::access::{Access, GateCounters};
use crate::audit::{Audit, AuditCounters};
use crate::build_info;
use crate::http::error::Problem;
use crate::log;
use crate::memory::MemoryPlan;
use crate::proxies::Proxies;
use crate::tls::{TlsAcceptor, TlsCounters};
use hyper::StatusCode;
use keypeg_client::{Code, routes};
use keypeg_store::{
    ANSWERS_PER_TURN_BUCKETS, BackupSource, COMMIT_BUCKETS_US, Histogram, StartReport, StoreMetrics,
};
use pool_totals::{PoolTotals, SharedPoolTotals};
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

/// The upper bounds of the request latency buckets, in microseconds.
const LATENCY_BUCKETS_US: [u64; 15] = [
    50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 1_000_000,
    10_000_000, 60_000_000,
];
const STATUS_CLASSES: [&str; 4] = ["2xx", "3xx", "4xx", "5xx"];

/// The part of the API that a request is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
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
    const ALL: [(Self, &'static str); 10] = [
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
    pub(super) fn of(path: &str) -> Self {
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
pub(super) struct CoreCounts {
    answered: [[AtomicU64; STATUS_CLASSES.len()]; Family::ALL.len()],
    refused: [AtomicU64; Code::ALL.len()],
    latency_us: Histogram<16>,
}

impl Default for CoreCounts {
    fn default() -> Self {
        let refused = std::array::from_fn(|_| AtomicU64::default());
        Self { answered: Default::default(), refused, latency_us: Histogram::default() }
    }
}

impl CoreCounts {
    /// Counts a response and its latency, measured from the end of the request's head.
    pub(super) fn answered(&self, family: Family, status: StatusCode, latency: Duration) {
        let class =
            usize::from(status.as_u16() / 100).saturating_sub(2).min(STATUS_CLASSES.len() - 1);
        self.answered[family as usize][class].fetch_add(1, Ordering::Relaxed);
        let latency_us = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        self.latency_us.observe(&LATENCY_BUCKETS_US, latency_us);
    }

    /// Counts a problem by its code.
    pub(super) fn refused(&self, code: Code) {
        self.refused[code as usize].fetch_add(1, Ordering::Relaxed);
    }
}

/// What the server gets from its start: the store's report and the shared parts.
#[derive(Debug)]
pub(crate) struct StartInfo {
    /// What the store found when it opened.
    pub(crate) recovery: StartReport,
    /// The access rules.
    pub(crate) access: Arc<Access>,
    /// The audit log, if there is one.
    pub(crate) audit: Option<Arc<Audit>>,
    /// The certificate of the server, if it speaks HTTPS.
    pub(crate) tls: Option<Arc<TlsAcceptor>>,
    /// The proxies in front of the server.
    pub(crate) proxies: Proxies,
    /// The bounds of the server's memory.
    pub(crate) memory: MemoryPlan,
    /// The store's metrics.
    pub(crate) store_metrics: Arc<StoreMetrics>,
    /// The source of backups.
    pub(crate) backups: Option<Arc<dyn BackupSource>>,
}

/// The sources of a scrape.
#[derive(Debug)]
pub(super) struct Metrics {
    start_info: StartInfo,
    cores: Vec<Arc<CoreCounts>>,
    places: Arc<Places>,
    pools: SharedPoolTotals,
}

impl Metrics {
    pub(super) fn new(
        start_info: StartInfo,
        cores: Vec<Arc<CoreCounts>>,
        places: Arc<Places>,
    ) -> Self {
        Self { start_info, cores, places, pools: SharedPoolTotals::default() }
    }

    /// Returns all metrics as `OpenMetrics` text; reads the pools through the lanes. O(pools) for all
    /// simultaneous scrapes together.
    pub(super) async fn text(&self, lanes: &Lanes) -> Result<String, Problem> {
        let pools = self.pools.read(lanes).await?;
        let mut registry = Registry::with_prefix("keypeg");
        registry.register_collector(Box::new(self.scrape(pools)));
        let mut text = String::with_capacity(16 << 10);
        text::encode(&mut text, &registry).expect("invariant: writing to a string never fails");
        Ok(text)
    }

    fn scrape(&self, totals: PoolTotals) -> Scrape {
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let PoolTotals { pools, keys, waiting } = totals;
        let StartInfo { recovery, access, audit, tls, memory, store_metrics, .. } =
            &self.start_info;
        let latencies = self.cores.iter().map(|core| &core.latency_us);
        Scrape {
            answered: std::array::from_fn(|family| {
                std::array::from_fn(|class| self.total(|core| &core.answered[family][class]))
            }),
            refused: std::array::from_fn(|code| self.total(|core| &core.refused[code])),
            latency: HistogramTotals::sum(1e6, &LATENCY_BUCKETS_US, latencies),
            commit: HistogramTotals::sum(1e6, &COMMIT_BUCKETS_US, [&store_metrics.commit_us]),
            answers: HistogramTotals::sum(1.0, &ANSWERS_PER_TURN_BUCKETS, [&store_metrics.answers]),
            connections: self.places.counts(),
            pools,
            keys: [
                ("available", keys.available),
                ("leased", keys.leased),
                ("resting", keys.resting),
                ("quarantined", keys.quarantined),
            ],
            waiting,
            followers: load(&store_metrics.subscribers),
            events: load(&store_metrics.events),
            refused_keep_alives: load(&store_metrics.refused_keep_alives),
            resyncs: load(&store_metrics.resyncs),
            starts: recovery.starts_before + 1,
            batches_cut: recovery.batches_cut,
            tokens: access.gate.as_ref().map(|gate| gate.counters()),
            audit: audit.as_ref().map(|audit| audit.counters()),
            tls: tls.as_ref().map(|tls| tls.counters()),
            log_lines_lost: log::lines_lost(),
            memory: *memory,
            pool_bytes: load(&store_metrics.pool_bytes),
        }
    }

    fn total(&self, of: impl Fn(&CoreCounts) -> &AtomicU64) -> u64 {
        self.cores.iter().map(|core| of(core).load(Ordering::Relaxed)).sum()
    }
}

/// All values of one scrape.
#[derive(Debug)]
struct Scrape {
    answered: [[u64; STATUS_CLASSES.len()]; Family::ALL.len()],
    refused: [u64; Code::ALL.len()],
    latency: HistogramTotals,
    commit: HistogramTotals,
    answers: HistogramTotals,
    connections: PlaceCounts,
    pools: u64,
    keys: [(&'static str, u64); 4],
    waiting: u64,
    followers: u64,
    events: u64,
    refused_keep_alives: u64,
    resyncs: u64,
    starts: u64,
    batches_cut: u64,
    /// The counters of the access tokens, if the server has any.
    tokens: Option<GateCounters>,
    /// Lines written, changes refused, and whether the log cannot be written.
    audit: Option<AuditCounters>,
    tls: Option<TlsCounters>,
    log_lines_lost: u64,
    memory: MemoryPlan,
    pool_bytes: u64,
}

/// A summed histogram. Each bucket has its upper bound and the number of values between the
/// previous bound and it (not cumulative).
#[derive(Debug)]
struct HistogramTotals {
    buckets: Vec<(f64, u64)>,
    sum: f64,
    count: u64,
}

impl HistogramTotals {
    /// Sums histograms with the same bounds and divides by `scale`: 1e6 turns microseconds into
    /// seconds.
    fn sum<'a, const N: usize>(
        scale: f64,
        bounds: &[u64],
        histograms: impl IntoIterator<Item = &'a Histogram<N>>,
    ) -> Self {
        let (mut totals, mut sum) = ([0; N], 0);
        for (counts, one_sum) in histograms.into_iter().map(Histogram::read) {
            totals.iter_mut().zip(counts).for_each(|(total, count)| *total += count);
            sum += one_sum;
        }
        let bounds = bounds.iter().map(|&bound| float(bound) / scale).chain([f64::INFINITY]);
        let buckets: Vec<_> = bounds.zip(totals).collect();
        Self { buckets, sum: float(sum) / scale, count: totals.iter().sum() }
    }
}

#[expect(clippy::cast_precision_loss, reason = "exact below 2^53, which takes centuries to reach")]
fn float(number: u64) -> f64 {
    number as f64
}

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        encode_build(&mut encoder)?;
        self.encode_http(&mut encoder)?;
        self.encode_engine(&mut encoder)?;
        self.encode_memory(&mut encoder)?;
        self.encode_access(&mut encoder)?;
        self.encode_tls(&mut encoder)
    }
}

impl Scrape {
    fn encode_http(&self, to: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Requests answered, by part of the API and status class";
        let mut family = to.encode_descriptor("http_requests", help, None, MetricType::Counter)?;
        for ((_, route), classes) in Family::ALL.iter().zip(&self.answered) {
            for (class, &count) in STATUS_CLASSES.iter().zip(classes) {
                let labels = [("route", *route), ("status", *class)];
                ConstCounter::new(count).encode(family.encode_family(&labels)?)?;
            }
        }
        let help = "Requests refused, by problem code";
        let mut family = to.encode_descriptor("refusals", help, None, MetricType::Counter)?;
        for (code, &count) in Code::ALL.iter().zip(&self.refused) {
            let labels = [("code", code.as_str())];
            ConstCounter::new(count).encode(family.encode_family(&labels)?)?;
        }
        let help = "Time from the end of a request's head to its response";
        histogram(to, "http_request_seconds", help, &self.latency)?;
        let PlaceCounts { open, unproven, displaced, refused } = self.connections;
        gauge(to, "http_connections", "Open connections", open)?;
        let help = "Open connections of which the server has admitted no request";
        gauge(to, "http_connections_unproven", help, unproven)?;
        let help = "Idle connections closed to give their places to new ones";
        counter(to, "http_connections_displaced", help, displaced)?;
        let help = "New connections closed at once, because none could be displaced";
        counter(to, "http_connections_refused", help, refused)?;
        let help = "Lines of the log that stderr or stdout did not take";
        counter(to, "log_lines_lost", help, self.log_lines_lost)
    }

    fn encode_engine(&self, to: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Time to write and sync one batch of the journal";
        histogram(to, "commit_seconds", help, &self.commit)?;
        let help = "Requests answered in one turn of the engine";
        histogram(to, "turn_answers", help, &self.answers)?;
        gauge(to, "pools", "Number of pools", self.pools)?;
        let mut family =
            to.encode_descriptor("keys", "Keys of all pools, by state", None, MetricType::Gauge)?;
        for (state, count) in self.keys {
            ConstGauge::new(count).encode(family.encode_family(&[("state", state)])?)?;
        }
        gauge(to, "waiting", "Requests waiting for a key", self.waiting)?;
        gauge(to, "followers", "Open event streams", self.followers)?;
        let help = "Events delivered to subscribers, counted once per subscriber";
        counter(to, "events", help, self.events)?;
        let help =
            "Resync events sent to subscribers that could not continue from an earlier event";
        counter(to, "resyncs", help, self.resyncs)?;
        let help = "Keep-alives refused because a limit was reached; serving time stands still";
        counter(to, "refused_keepalives", help, self.refused_keep_alives)?;
        let help = "Starts of the server on this data directory, including this one";
        gauge(to, "starts", help, self.starts)?;
        let help = "Incomplete batches that this start discarded at the end of the journal";
        gauge(to, "batches_cut", help, self.batches_cut)
    }
}

impl Scrape {
    fn encode_memory(&self, to: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Memory that a part of the server may take, in bytes";
        let mut family = to.encode_descriptor("memory_bytes_max", help, None, MetricType::Gauge)?;
        for (part, bytes) in self.memory.parts() {
            ConstGauge::new(bytes).encode(family.encode_family(&[("part", part)])?)?;
        }
        let help = "Memory of all pools, with their keys, leases and stored answers, in bytes";
        gauge(to, "pool_bytes", help, self.pool_bytes)
    }

    fn encode_access(&self, to: &mut DescriptorEncoder<'_>) -> fmt::Result {
        if let Some(GateCounters { tokens, reloads, is_broken }) = self.tokens {
            gauge(to, "tokens", "Number of access tokens", tokens)?;
            counter(to, "token_reloads", "Reloads of the token file", reloads)?;
            let help =
                "1 while the token file is unusable and the last good version applies, else 0";
            gauge(to, "tokens_broken", help, is_broken.into())?;
        }
        if let Some(AuditCounters { written, refused, is_failing }) = self.audit {
            counter(to, "audit_lines", "Lines written to the audit log", written)?;
            let help = "Changes refused because the audit log could not take their entry";
            counter(to, "audit_refusals", help, refused)?;
            let help = "1 while the audit log cannot be written and changes are refused, else 0";
            gauge(to, "audit_failing", help, is_failing.into())?;
        }
        Ok(())
    }
}

impl Scrape {
    fn encode_tls(&self, to: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let Some(tls) = self.tls else { return Ok(()) };
        let help = "When the first certificate of the chain expires, in seconds since 1970";
        gauge(to, "tls_certificate_not_after_seconds", help, tls.not_after)?;
        let help = "1 while the certificate or its key is unusable and the last good one applies";
        gauge(to, "tls_certificate_broken", help, tls.is_broken.into())?;
        counter(to, "tls_certificate_reloads", "Reloads of the certificate", tls.reloads)?;
        let help = "TLS handshakes, by result";
        let mut family = to.encode_descriptor("tls_handshakes", help, None, MetricType::Counter)?;
        for (result, count) in
            [("completed", tls.completed), ("failed", tls.failed), ("timed_out", tls.timed_out)]
        {
            ConstCounter::new(count).encode(family.encode_family(&[("result", result)])?)?;
        }
        Ok(())
    }
}

/// Writes which build runs, as labels of a gauge that is always 1. Dashboards join it to the other
/// metrics.
fn encode_build(to: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let help = "Always 1; the labels are version, commit and target of the program";
    let mut family = to.encode_descriptor("build_info", help, None, MetricType::Gauge)?;
    let labels = [
        ("version", build_info::VERSION),
        ("commit", build_info::commit_or_unknown()),
        ("target", build_info::TARGET),
    ];
    ConstGauge::new(1_u64).encode(family.encode_family(&labels)?)
}

fn gauge(to: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: u64) -> fmt::Result {
    let encoder = to.encode_descriptor(name, help, None, MetricType::Gauge)?;
    ConstGauge::new(value).encode(encoder)
}

fn counter(to: &mut DescriptorEncoder<'_>, name: &str, help: &str, count: u64) -> fmt::Result {
    let encoder = to.encode_descriptor(name, help, None, MetricType::Counter)?;
    ConstCounter::new(count).encode(encoder)
}

fn histogram(
    to: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    totals: &HistogramTotals,
) -> fmt::Result {
    let mut encoder = to.encode_descriptor(name, help, None, MetricType::Histogram)?;
    encoder.encode_histogram::<NoLabelSet>(totals.sum, totals.count, &totals.buckets, None)
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
            ("/", Family::Ops),
            ("//", Family::Other),
            ("*", Family::Other),
        ] {
            assert_eq!(Family::of(path), family, "{path}");
        }
    }
}
