//! `keypeg bench`: loads a server with the workloads of `keypeg-bench` and prints the report.
//!
//! Owns the options, and prepares the keys over `keypeg-client`; how the load is generated and
//! measured is the concern of `keypeg-bench`.

use super::progress::{Progress, Unit};
use super::server::ServerArgs;
use crate::duration::HumanDuration;
use crate::failure::{Failure, exit};
use crate::number::number;
use crate::output::OutputFormat;
use crate::{clock, streams};
use clap::{Args, ValueEnum};
use keypeg_bench::{LoadOptions, Rate, RunError, Target, Workload};
use keypeg_client::{Code, Error, GenerateRequest, PolicyRequest, Seconds, tls_next_step};
use keypeg_fields::{GENERATE_MAX, MAX_KEYS};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

/// Keep-alive TTL of a pool created here: the largest, so that no key is purged during the run.
const KEEPALIVE_TTL_MS: u64 = 7 * 24 * 3_600_000;
/// Keys that the scenario `keepalive` uses in turn.
const KEY_IDS_MAX: usize = 100_000;
/// The limit of Linux on process numbers.
const PID_MAX: u32 = 1 << 22;
/// The time between two drawings of the progress.
const REDRAW: Duration = Duration::from_millis(250);

/// The scenario, its load and its duration.
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// Scenario to run
    #[arg(value_enum, default_value_t = Scenario::AcquireRelease)]
    scenario: Scenario,
    /// Number of connections, each with one request in flight
    #[arg(short, long, value_name = "N", default_value_t = 64)]
    #[arg(value_parser = number(1_u16..=10_000))]
    connections: u16,
    /// Duration of the run, such as 10s or 1m30s
    #[arg(short = 'l', long = "for", value_name = "DURATION", default_value = "10s")]
    duration: HumanDuration,
    /// Requests per second on a fixed schedule [default: no schedule, as fast as answered]
    #[arg(short, long, value_name = "N")]
    rate: Option<Rate>,
    /// Threads that generate the load; one is enough for most servers
    #[arg(long, value_name = "N", default_value_t = 1)]
    #[arg(value_parser = number(1_u16..=256))]
    threads: u16,
    /// Create the pool if it does not exist, and generate keys until it has N
    #[arg(long, value_name = "N", value_parser = number(MAX_KEYS.least..=MAX_KEYS.most))]
    keys: Option<u64>,
    /// Keys per request in the scenario `generate`
    #[arg(long, value_name = "N", default_value_t = 1)]
    #[arg(value_parser = number(1_u16..=10_000))]
    count: u16,
    /// Length of the holder name in the scenario `acquire-release`, in characters
    #[arg(long, value_name = "N", default_value_t = 8)]
    #[arg(value_parser = number(8_u8..=128))]
    holder: u8,
    /// Path to request in the scenario `constant`
    #[arg(long, value_name = "PATH", default_value = "/livez", value_parser = path)]
    path: String,
    /// Process whose CPU and memory are measured, with its children [default: the local listener]
    #[arg(long, value_name = "PID", value_parser = number(1..=PID_MAX))]
    server_pid: Vec<u32>,
    /// The server, the token, the pool and the output format.
    #[command(flatten)]
    server: ServerArgs,
}

/// The requests of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Scenario {
    /// Acquire a key and release it by its lease, repeatedly
    AcquireRelease,
    /// Acquire and release with the Django API: GET and PUT of `/api/v1/random_api_key/`
    #[value(name = "seed")]
    Django,
    /// Verify the value of a leased key by GET, as gateways do
    Verify,
    /// Keep the keys of the pool alive, one per request
    Keepalive,
    /// Generate keys, which remain in the pool
    Generate,
    /// Request one path with GET
    Constant,
}

impl BenchArgs {
    /// Runs the load and prints the report. The exit code is 70 if no request succeeded.
    pub(super) async fn run(self) -> Result<u8, Failure> {
        let url = &self.server.connection.url;
        // Refuses an address with a password, which no message may repeat.
        let tls = self.server.connection.tls.settings()?;
        self.server.connection.client_without_token()?;
        let target: Target = url
            .parse()
            .map_err(|error| Failure::new(exit::USAGE, format!("--server {url}: {error}")))?;
        let target = match self.server.connection.token()? {
            Some(token) => target.with_token(&token),
            None => target,
        };
        if let Some(keys) = self.keys {
            self.prepare(keys).await?;
        }
        let key_ids = if self.scenario == Scenario::Keepalive {
            self.key_ids().await?
        } else {
            Vec::new().into()
        };
        let workload = self.workload(&target, key_ids);
        let tls = url.starts_with("https://").then(|| tls.config());
        let options = LoadOptions {
            target,
            tls: tls.transpose()?.map(Arc::new),
            connections: self.connections,
            threads: self.threads,
            duration: Duration::from_millis(self.duration.ms()),
            rate: self.rate,
            server_pids: self.server_pid,
        };
        let output = &self.server.output;
        let progress = RunProgress::begin(output.quiet, options.duration);
        // Blocks the thread: no other task runs on this runtime.
        let report = keypeg_bench::run(workload, options);
        progress.end();
        let report = report?;
        match output.format {
            OutputFormat::Json => output.print_fields(&report)?,
            OutputFormat::Table => output.print_fields(&report.flat())?,
        };
        if !report.is_empty() {
            return Ok(0);
        }
        if let Some(error) = report.last_error()
            && let Some(step) = tls_next_step(error)
        {
            streams::print_message(&format!("no request succeeded: {error}; {step}"));
        }
        Ok(exit::SOFTWARE)
    }

    /// Creates the pool and generates keys, as far as they are missing.
    async fn prepare(&self, keys: u64) -> Result<(), Failure> {
        let (client, pool) = (self.server.client()?, &self.server.pool);
        let total = match client.pool(pool).await {
            Ok(pool) => pool.total,
            Err(Error::Refused(problem)) if problem.code == Code::UnknownPool => {
                let keepalive_ttl_seconds = Some(Some(Seconds::from_ms(KEEPALIVE_TTL_MS)));
                let policy = PolicyRequest { keepalive_ttl_seconds, ..PolicyRequest::default() };
                client.put_pool(pool, &policy).await?.total
            }
            Err(error) => return Err(error.into()),
        };
        let mut missing = keys.saturating_sub(total);
        let is_quiet = self.server.output.quiet;
        let mut progress = Progress::new(is_quiet, "generating", Unit::Keys, Some(missing));
        while missing > 0 {
            let count = missing.min(GENERATE_MAX.into());
            let request =
                GenerateRequest { count: u32::try_from(count).ok(), ..GenerateRequest::default() };
            client.generate(pool, &request).await?;
            missing -= count;
            progress.add(count);
        }
        Ok(())
    }

    async fn key_ids(&self) -> Result<Arc<[String]>, Failure> {
        let mut ids = Vec::new();
        let mut pages = self.server.client()?.list_all_keys(&self.server.pool, None);
        while ids.len() < KEY_IDS_MAX
            && let Some(keys) = pages.next().await?
        {
            ids.extend(keys.into_iter().map(|key| key.id));
        }
        if ids.is_empty() {
            let message =
                format!("pool {:?} has no key to keep alive: add --keys 1000", self.server.pool);
            return Err(Failure::new(exit::NO_INPUT, message));
        }
        Ok(ids.into())
    }

    fn workload(&self, target: &Target, key_ids: Arc<[String]>) -> Workload {
        let pool = &self.server.pool;
        match self.scenario {
            Scenario::AcquireRelease => Workload::acquire_release(target, pool, self.holder),
            Scenario::Django => Workload::django(target),
            Scenario::Verify => Workload::verify(target, pool),
            Scenario::Keepalive => {
                Workload::keepalive(target, pool, key_ids, self.connections.into())
            }
            Scenario::Generate => Workload::generate(target, pool, self.count),
            Scenario::Constant => Workload::constant(target, &self.path),
        }
    }
}

/// Draws the progress of a run, whose length is known, from a thread of its own.
struct RunProgress {
    ends: SyncSender<()>,
    thread: JoinHandle<()>,
}

impl RunProgress {
    fn begin(is_quiet: bool, duration: Duration) -> Self {
        // Nothing is sent: the sender is dropped at the end.
        let (ends, ended) = sync_channel(0);
        let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let thread = std::thread::spawn(move || {
            let started = clock::stopwatch();
            let mut progress = Progress::new(is_quiet, "measuring", Unit::Time, Some(ms(duration)));
            while ended.recv_timeout(REDRAW) == Err(RecvTimeoutError::Timeout) {
                progress.set(ms(started.elapsed()));
            }
        });
        Self { ends, thread }
    }

    /// Removes the line.
    fn end(self) {
        drop(self.ends);
        // A panic of the thread has printed its message; the report is still right.
        let _ = self.thread.join();
    }
}

impl From<RunError> for Failure {
    fn from(error: RunError) -> Self {
        let step = tls_next_step(&error).map_or_else(String::new, |step| format!("; {step}"));
        Self::new(exit::UNAVAILABLE, format!("{error}{step}"))
    }
}

fn path(text: &str) -> Result<String, String> {
    let is_valid = text.starts_with('/') && text.bytes().all(|byte| byte.is_ascii_graphic());
    let error = || "a path must start with / and contain no spaces".into();
    is_valid.then(|| text.to_owned()).ok_or_else(error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        bench: BenchArgs,
    }

    #[test]
    fn the_report_names_the_scenario_by_its_argument() {
        let target = "http://127.0.0.1".parse().unwrap();
        for scenario in Scenario::value_variants() {
            let name = scenario.to_possible_value().unwrap().get_name().to_owned();
            let line = Line::parse_from(["bench", &name]);
            assert_eq!(line.bench.workload(&target, Vec::new().into()).name(), name);
        }
    }

    #[test]
    fn paths_are_checked() {
        assert!(path("/livez").is_ok());
        assert!(["livez", "/a b", "/a\r\nX: y"].iter().all(|bad| path(bad).is_err()));
    }
}
