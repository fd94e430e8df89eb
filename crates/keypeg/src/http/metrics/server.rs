//! The metrics of the server as `OpenMetrics` text: what each is called, and where its value is.
//!
//! Each number is read once for a scrape. Does not know the metrics of single pools.

use super::cluster::ClusterScrape;
use super::counts::{CoreCounts, Family, LATENCY_BUCKETS_US, STATUS_CLASSES};
use super::pools::PoolReading;
use super::process::Process;
use super::{Metrics, StartInfo};
use crate::access::GateCounters;
use crate::audit::AuditCounters;
use crate::build_info;
use crate::http::connection::places::PlaceCounts;
use crate::log;
use crate::memory::MemoryPlan;
use crate::tls::TlsCounters;
use keypeg_client::Code;
use keypeg_core::KeyCounts;
use keypeg_store::{
    ANSWERS_PER_TURN_BUCKETS, COMMIT_BUCKETS_BYTES, COMMIT_BUCKETS_US, Histogram,
    LATENESS_BUCKETS_US,
};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

impl Metrics {
    /// Returns the metrics of the server, without an end mark.
    pub(super) fn server_text(
        &self,
        lane_depths: Vec<usize>,
        process: Process,
        pools: &PoolReading,
    ) -> String {
        let mut registry = Registry::default();
        let scrape = self.scrape(lane_depths, pools);
        registry.sub_registry_with_prefix("keypeg").register_collector(Box::new(scrape));
        let process = ProcessScrape { process, started_ms: self.started_ms };
        registry.register_collector(Box::new(process));
        let mut text = String::with_capacity(super::SERVER_BYTES);
        let written = text::encode_registry(&mut text, &registry);
        written.expect("invariant: writing to a string never fails");
        text
    }

    fn scrape(&self, lane_depths: Vec<usize>, pools: &PoolReading) -> Scrape {
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let &PoolReading { pools, keys, waiting, .. } = pools;
        let StartInfo {
            recovery,
            access,
            audit,
            tls,
            memory,
            store_metrics,
            recovery_time,
            backups,
            ..
        } = &self.start_info;
        let latencies = self.cores.iter().map(|core| &core.latency_us);
        Scrape {
            answered: std::array::from_fn(|family| {
                std::array::from_fn(|class| self.total(|core| &core.answered[family][class]))
            }),
            refused: std::array::from_fn(|code| self.total(|core| &core.refused[code])),
            latency: HistogramTotals::sum(1e6, &LATENCY_BUCKETS_US, latencies),
            commit: HistogramTotals::sum(1e6, &COMMIT_BUCKETS_US, [&store_metrics.commit_us]),
            commit_bytes: HistogramTotals::sum(
                1.0,
                &COMMIT_BUCKETS_BYTES,
                [&store_metrics.commit_bytes],
            ),
            lateness: HistogramTotals::sum(
                1e6,
                &LATENESS_BUCKETS_US,
                [&store_metrics.expiry_lateness_us],
            ),
            lane_depths,
            recovery_time: *recovery_time,
            journal: [
                ("journal_bytes", "Size of the journal, in bytes", &store_metrics.journal_bytes),
                (
                    "journal_bytes_max",
                    "Size above which the server shrinks the journal, in bytes",
                    &store_metrics.journal_bytes_max,
                ),
                (
                    "checkpoint_lag_bytes",
                    "Journal that is not checkpointed yet, in bytes",
                    &store_metrics.checkpoint_lag_bytes,
                ),
                (
                    "checkpoint_lag_bytes_max",
                    "Lag above which the server refuses new keys, in bytes",
                    &store_metrics.checkpoint_lag_bytes_max,
                ),
                (
                    "disk_refuses",
                    "What a full disk refuses: 0 nothing, 1 new keys, 2 also grants, 3 all changes",
                    &store_metrics.disk_refuses,
                ),
            ]
            .map(|(name, help, value)| (name, help, load(value))),
            answers: HistogramTotals::sum(1.0, &ANSWERS_PER_TURN_BUCKETS, [&store_metrics.answers]),
            connections: self.places.counts(),
            pools,
            keys,
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
            last_backup: backups.as_ref().map(|_| self.last_backup.seconds()),
            cluster: self.cluster(load(&store_metrics.append_retries)),
        }
    }

    /// Returns the values of a server that shares its pools.
    fn cluster(&self, append_retries: u64) -> Option<ClusterScrape> {
        let status = self.lanes.first()?.cluster()?.status();
        let forwarded = std::array::from_fn(|outcome| self.total(|core| &core.forwarded[outcome]));
        Some(ClusterScrape { status, forwarded, append_retries })
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
    commit_bytes: HistogramTotals,
    lateness: HistogramTotals,
    answers: HistogramTotals,
    /// The requests in each lane that the store has not taken yet.
    lane_depths: Vec<usize>,
    /// Names, help texts and values of the journal's metrics.
    journal: [(&'static str, &'static str, u64); 5],
    recovery_time: Duration,
    connections: PlaceCounts,
    pools: u64,
    keys: KeyCounts,
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
    /// In seconds since 1970; `None` if the store has no backups.
    last_backup: Option<u64>,
    cluster: Option<ClusterScrape>,
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
        self.encode_store(&mut encoder)?;
        self.encode_memory(&mut encoder)?;
        self.encode_access(&mut encoder)?;
        self.encode_tls(&mut encoder)?;
        self.cluster.as_ref().map_or(Ok(()), |cluster| cluster.encode(&mut encoder))
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
        let help =
            "Time from the end of a request's head to its response, without its wait for a key";
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
        let help = "Bytes of the records in one batch of the journal";
        histogram(to, "commit_bytes", help, &self.commit_bytes)?;
        let help = "Requests answered in one turn of the engine";
        histogram(to, "turn_answers", help, &self.answers)?;
        let help =
            "How late a turn executed the first passed deadline of a lease, a rest or a wait";
        histogram(to, "expiry_lateness_seconds", help, &self.lateness)?;
        gauge(to, "pools", "Number of pools", self.pools)?;
        let mut family =
            to.encode_descriptor("keys", "Keys of all pools, by state", None, MetricType::Gauge)?;
        let KeyCounts { available, leased, resting, quarantined, draining: _ } = self.keys;
        for (state, count) in [
            ("available", available),
            ("leased", leased),
            ("resting", resting),
            ("quarantined", quarantined),
        ] {
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
    fn encode_store(&self, to: &mut DescriptorEncoder<'_>) -> fmt::Result {
        for (name, help, value) in self.journal {
            gauge(to, name, help, value)?;
        }
        let help = "Requests queued for the engine at this instant, by core";
        let mut family = to.encode_descriptor("lane_depth", help, None, MetricType::Gauge)?;
        for (core, &depth) in self.lane_depths.iter().enumerate() {
            let labels = [("core", core.to_string())];
            ConstGauge::new(depth as u64).encode(family.encode_family(&labels)?)?;
        }
        let help = "Time that this start took to read the data directory";
        let encoder = to.encode_descriptor("recovery_seconds", help, None, MetricType::Gauge)?;
        ConstGauge::new(self.recovery_time.as_secs_f64()).encode(encoder)?;
        let Some(last_backup) = self.last_backup else { return Ok(()) };
        let help =
            "When this server sent the last complete backup, in seconds since 1970; 0: none yet";
        gauge(to, "backup_last_success_timestamp_seconds", help, last_backup)
    }

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

/// The metrics that every program has, under names without a prefix.
#[derive(Debug)]
struct ProcessScrape {
    process: Process,
    started_ms: u64,
}

impl Collector for ProcessScrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let to = &mut encoder;
        let Process { cpu_us, open_fds, max_fds, virtual_bytes, resident_bytes, threads } =
            self.process;
        let help = "Processor time of the process";
        let cpu = to.encode_descriptor("process_cpu_seconds", help, None, MetricType::Counter)?;
        ConstCounter::new(float(cpu_us) / 1e6).encode(cpu)?;
        for (name, help, value) in [
            ("process_open_fds", "Open file descriptors", open_fds),
            ("process_max_fds", "Greatest number of open file descriptors", max_fds),
            ("process_virtual_memory_bytes", "Virtual memory, in bytes", virtual_bytes),
            ("process_resident_memory_bytes", "Resident memory, in bytes", resident_bytes),
            ("process_threads", "Threads of the process", threads),
        ] {
            value.map_or(Ok(()), |value| gauge(to, name, help, value))?;
        }
        let help = "When the process started, in seconds since 1970";
        let start =
            to.encode_descriptor("process_start_time_seconds", help, None, MetricType::Gauge)?;
        ConstGauge::new(float(self.started_ms) / 1e3).encode(start)
    }
}
