//! What a run is told as: one JSON object, or its lines for people.

use super::histogram::Histogram;
use super::load::{Loaded, Server};
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Duration;

/// What a run found.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    scenario: String,
    server: String,
    connections: usize,
    threads: usize,
    /// Requests a second that were due; null for a closed loop.
    rate: Option<f64>,
    seconds: f64,
    /// Good answers within that time, and each second.
    requests: u64,
    requests_per_second: f64,
    /// By status.
    refused: BTreeMap<u16, u64>,
    /// Connections lost and answers not understood, and why the last one was.
    broken: u64,
    broken_why: Option<String>,
    /// Due within the time and not sent even seconds after it: more than 0 says that the server, or
    /// this client, cannot keep up with the rate, so that the latencies are lower bounds.
    unsent: u64,
    /// Good answers after the time: what was due within it and came late, and what was given back.
    after: u64,
    /// Of all good answers within the time, and by kind; on a schedule also of those that came late.
    latency: Latency,
    by: BTreeMap<&'static str, Latency>,
    /// The server's processes; null where they were not found.
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

/// What a run was about.
pub(super) struct About {
    pub(super) scenario: String,
    pub(super) server: String,
    pub(super) connections: usize,
    pub(super) threads: usize,
    pub(super) rate: Option<f64>,
    pub(super) kinds: &'static [&'static str],
}

impl Report {
    #[expect(clippy::cast_precision_loss, reason = "counts of one run")]
    pub(super) fn new(about: About, loaded: Loaded) -> Self {
        let Loaded { tally, length, unsent, server, own_cpu_seconds } = loaded;
        let mut all = Histogram::default();
        for one in &tally.lengths {
            all.merge(one);
        }
        let by = about.kinds.iter().copied().zip(tally.lengths.iter().map(Latency::of)).collect();
        let seconds = length.as_secs_f64();
        let requests = all.count() - tally.late;
        let process = server.map(|Server { cpu_seconds, resident_bytes }| {
            let per = (cpu_seconds > 0.0).then(|| rounded(requests as f64 / cpu_seconds, 10.0));
            Process {
                cpu_seconds: rounded(cpu_seconds, 100.0),
                requests_per_cpu_second: per,
                resident_bytes,
            }
        });
        Self {
            scenario: about.scenario,
            server: about.server,
            connections: about.connections,
            threads: about.threads,
            rate: about.rate,
            seconds: rounded(seconds, 1_000.0),
            requests,
            requests_per_second: rounded(requests as f64 / seconds, 10.0),
            refused: tally.refused,
            broken: tally.broken,
            broken_why: tally.why,
            unsent,
            after: tally.after,
            latency: Latency::of(&all),
            by,
            process,
            client_cpu_seconds: rounded(own_cpu_seconds, 100.0),
        }
    }

    /// Whether there is nothing to tell: not one good answer.
    pub(super) fn is_empty(&self) -> bool {
        self.requests == 0
    }

    /// The same with members of members as `outer.inner`, for a table.
    pub(super) fn flat(&self) -> serde_json::Value {
        let mut fields = serde_json::Map::new();
        let whole = serde_json::to_value(self).expect("invariant: numbers and names");
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
    fn of(lengths: &Histogram) -> Self {
        let ms = |length: Duration| rounded(length.as_secs_f64() * 1_000.0, 1_000.0);
        Self {
            count: lengths.count(),
            mean_ms: ms(lengths.mean()),
            p50_ms: ms(lengths.quantile(500)),
            p99_ms: ms(lengths.quantile(990)),
            p99_9_ms: ms(lengths.quantile(999)),
            max_ms: ms(lengths.max()),
        }
    }
}

fn rounded(value: f64, steps: f64) -> f64 {
    (value * steps).round() / steps
}
