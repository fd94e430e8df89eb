//! The report of a run: one JSON object, or one line per member.
//!
//! The members' names and units are an interface: scripts read them.

use crate::histogram::Histogram;
use crate::load::{Outcome, ServerUsage};
use crate::protocol::ExchangeError;
use crate::schedule::Rate;
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Duration;

/// The report of a run; it serialises to one JSON object.
#[derive(Debug, Serialize)]
pub struct Report {
    scenario: &'static str,
    server: String,
    connections: usize,
    threads: usize,
    /// Requests per second that were due; null for a closed loop.
    rate: Option<f64>,
    seconds: f64,
    /// Successes within that time; then per second.
    requests: u64,
    requests_per_second: f64,
    /// Responses other than successes, by status.
    refused: BTreeMap<u16, u64>,
    /// Lost connections and responses that could not be parsed; then the last error.
    broken: u64,
    broken_why: Option<ExchangeError>,
    /// Requests due within the time and not sent even seconds after it. More than 0 means that the
    /// server, or this client, cannot keep up with the rate; then the latencies are lower bounds.
    unsent: u64,
    /// Successes after the time: late responses to requests due within it, and releases.
    after: u64,
    /// Of all successes within the time, then by kind; with a rate, late responses are included.
    latency: Latency,
    by: BTreeMap<&'static str, Latency>,
    /// The server's processes; null if they were not found.
    process: Option<Process>,
    client_cpu_seconds: f64,
}

#[derive(Debug, Serialize)]
struct Latency {
    count: u64,
    mean_ms: f64,
    p50_ms: f64,
    p99_ms: f64,
    p99_9_ms: f64,
    max_ms: f64,
}

#[derive(Debug, Serialize)]
struct Process {
    cpu_seconds: f64,
    requests_per_cpu_second: Option<f64>,
    resident_bytes: u64,
}

/// The options of a run that its report repeats.
pub(crate) struct RunInfo {
    pub(crate) scenario: &'static str,
    pub(crate) server: String,
    pub(crate) connections: usize,
    pub(crate) threads: usize,
    pub(crate) rate: Option<Rate>,
    pub(crate) kinds: &'static [&'static str],
}

impl Report {
    #[expect(clippy::cast_precision_loss, reason = "counts of one run")]
    pub(crate) fn new(info: RunInfo, outcome: Outcome) -> Self {
        let Outcome { tally, duration, unsent, server, own_cpu_seconds } = outcome;
        let mut all = Histogram::default();
        for latencies in &tally.latencies {
            all.merge(latencies);
        }
        let by = info.kinds.iter().copied().zip(tally.latencies.iter().map(Latency::of)).collect();
        let seconds = duration.as_secs_f64();
        let requests = all.count() - tally.late;
        let process = server.map(|ServerUsage { cpu_seconds, resident_bytes }| {
            let per_cpu_second =
                (cpu_seconds > 0.0).then(|| rounded(requests as f64 / cpu_seconds, 10.0));
            Process {
                cpu_seconds: rounded(cpu_seconds, 100.0),
                requests_per_cpu_second: per_cpu_second,
                resident_bytes,
            }
        });
        Self {
            scenario: info.scenario,
            server: info.server,
            connections: info.connections,
            threads: info.threads,
            rate: info.rate.map(Rate::per_second),
            seconds: rounded(seconds, 1_000.0),
            requests,
            requests_per_second: rounded(requests as f64 / seconds, 10.0),
            refused: tally.refused,
            broken: tally.broken,
            broken_why: tally.broken_why,
            unsent,
            after: tally.after,
            latency: Latency::of(&all),
            by,
            process,
            client_cpu_seconds: rounded(own_cpu_seconds, 100.0),
        }
    }

    /// Returns whether no request succeeded within the time.
    pub fn is_empty(&self) -> bool {
        self.requests == 0
    }

    /// Returns the error of the last request whose connection failed.
    pub fn last_error(&self) -> Option<&ExchangeError> {
        self.broken_why.as_ref()
    }

    /// Returns the report with nested members named `outer.inner`, for a table.
    pub fn flat(&self) -> serde_json::Value {
        let mut fields = serde_json::Map::new();
        let whole = serde_json::to_value(self)
            .expect("invariant: a report of numbers and names serialises");
        flatten("", whole, &mut fields);
        fields.into()
    }
}

fn flatten(
    name: &str,
    value: serde_json::Value,
    into: &mut serde_json::Map<String, serde_json::Value>,
) {
    let serde_json::Value::Object(members) = value else {
        into.insert(name.into(), value);
        return;
    };
    for (member, value) in members {
        let dot = if name.is_empty() { "" } else { "." };
        flatten(&format!("{name}{dot}{member}"), value, into);
    }
}

impl Latency {
    fn of(latencies: &Histogram) -> Self {
        let ms = |latency: Duration| rounded(latency.as_secs_f64() * 1_000.0, 1_000.0);
        Self {
            count: latencies.count(),
            mean_ms: ms(latencies.mean()),
            p50_ms: ms(latencies.quantile(500)),
            p99_ms: ms(latencies.quantile(990)),
            p99_9_ms: ms(latencies.quantile(999)),
            max_ms: ms(latencies.max()),
        }
    }
}

fn rounded(value: f64, steps: f64) -> f64 {
    (value * steps).round() / steps
}
