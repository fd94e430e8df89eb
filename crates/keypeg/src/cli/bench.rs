//! `keypeg bench`: loads a server over raw HTTP/1.1 and reports what it measured.
//!
//! Uses only the wire protocol, so it measures what any client would see; keys are prepared over
//! `keypeg-client`. A closed loop sends the next request when the last is answered. An open loop
//! (`--rate`) follows a schedule and counts latency from the time a request was due. Processor time
//! and memory are reported if the server's processes are found on this machine.

mod histogram;
mod load;
#[cfg(feature = "bench-peers")]
mod peers;
mod process;
mod protocol;
mod report;
mod schedule;

use super::ServerArgs;
use super::output::OutputFormat;
use crate::config::duration_ms;
use crate::failure::{Failure, exit};
use clap::{Args, ValueEnum, value_parser};
use keypeg_client::{Code, Error, GenerateRequest, PolicyRequest, Seconds};
use load::Plan;
use protocol::{AcquireRelease, Protocol, Repeat};
use report::{Report, RunInfo};
use schedule::Schedule;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

/// Keys per call to generate them, which is the server's limit.
const GENERATE_MAX: u64 = 10_000;
/// Keep-alive TTL of a pool created here: the largest, so that no key is purged during the run.
const KEEPALIVE_TTL_MS: u64 = 7 * 24 * 3_600_000;
/// Keys that the scenario `keepalive` uses in turn.
const KEY_IDS_MAX: usize = 100_000;

/// The scenario, its load and its duration.
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// Scenario to run
    #[arg(value_enum, default_value_t = Scenario::AcquireRelease)]
    scenario: Scenario,
    /// Number of connections, each with one request in flight
    #[arg(short, long, value_name = "N", default_value_t = 64)]
    #[arg(value_parser = value_parser!(u16).range(1..=10_000))]
    connections: u16,
    /// Duration of the run, such as 10s
    #[arg(short = 'l', long = "for", value_name = "DURATION", default_value = "10s")]
    #[arg(value_parser = duration_ms)]
    duration_ms: u64,
    /// Requests per second on a fixed schedule [default: no schedule, as fast as answered]
    #[arg(short, long, value_name = "N", value_parser = rate)]
    rate: Option<f64>,
    /// Threads that generate the load; one is enough for most servers
    #[arg(long, value_name = "N", default_value_t = 1)]
    #[arg(value_parser = value_parser!(u16).range(1..=256))]
    threads: u16,
    /// Create the pool if it does not exist, and generate keys until it has N
    #[arg(long, value_name = "N")]
    keys: Option<u64>,
    /// Keys per request in the scenario `generate`
    #[arg(long, value_name = "N", default_value_t = 1)]
    #[arg(value_parser = value_parser!(u16).range(1..=10_000))]
    count: u16,
    /// Length of the holder name in the scenario `acquire-release`, in characters
    #[arg(long, value_name = "N", default_value_t = 8)]
    #[arg(value_parser = value_parser!(u8).range(8..=128))]
    holder: u8,
    /// Path to request in the scenario `constant`
    #[arg(long, value_name = "PATH", default_value = "/livez", value_parser = path)]
    path: String,
    /// Rows of the table in the scenario `postgres`
    #[cfg(feature = "bench-peers")]
    #[arg(long, value_name = "N", default_value_t = 1)]
    rows: u64,
    /// Process of the server, counted with its descendants [default: the listener, on loopback]
    #[arg(long, value_name = "PID")]
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
    /// Keep the keys of the pool alive, one per request
    Keepalive,
    /// Generate keys, which remain in the pool
    Generate,
    /// Request one path with GET
    Constant,
    /// Acquire and release members of a Redis set, with scripts
    #[cfg(feature = "bench-peers")]
    Redis,
    /// Reserve and release jobs of beanstalkd
    #[cfg(feature = "bench-peers")]
    Beanstalk,
    /// Acquire and release rows of `PostgreSQL`, with SKIP LOCKED
    #[cfg(feature = "bench-peers")]
    Postgres,
}

impl Scenario {
    /// Returns the names of the kinds of requests.
    fn kinds(self) -> &'static [&'static str] {
        match self {
            Self::Keepalive => &["keepalive"],
            Self::Generate => &["generate"],
            Self::Constant => &["constant"],
            Self::AcquireRelease | Self::Django => &["acquire", "release"],
            #[cfg(feature = "bench-peers")]
            Self::Redis | Self::Beanstalk | Self::Postgres => &["acquire", "release"],
        }
    }

    fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }
}

/// The reason why a request has no usable response.
#[derive(Debug, PartialEq, Eq)]
enum ExchangeError {
    /// The response could not be parsed, or never came.
    Protocol(&'static str),
    /// The connection failed.
    Io(std::io::ErrorKind),
}

impl From<std::io::Error> for ExchangeError {
    fn from(error: std::io::Error) -> Self {
        Self::Io(error.kind())
    }
}

impl std::fmt::Display for ExchangeError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Protocol(message) => f.write_str(message),
            Self::Io(kind) => kind.fmt(f),
        }
    }
}

impl BenchArgs {
    /// Runs the load and prints the report. The exit code is 70 if no request succeeded.
    pub(super) async fn run(self) -> Result<u8, Failure> {
        let (host, addr) = address(&self.server.url)?;
        if let Some(keys) = self.keys {
            self.prepare(keys).await?;
        }
        let key_ids = if self.scenario == Scenario::Keepalive {
            self.key_ids().await?
        } else {
            Vec::new().into()
        };
        let pids = match &self.server_pid[..] {
            [] => process::listening(addr),
            given => given.to_vec(),
        };
        let info = RunInfo {
            scenario: self.scenario.name(),
            server: self.server.url.clone(),
            connections: self.connections.into(),
            threads: self.threads.into(),
            rate: self.rate,
            kinds: self.scenario.kinds(),
        };
        let plan = Plan {
            addr,
            connections: info.connections,
            threads: info.threads.min(info.connections),
            duration: Duration::from_millis(self.duration_ms),
            schedule: self.rate.map(Schedule::new),
            kinds: info.kinds,
            new_protocol: self.protocols(&host, key_ids),
            pids,
        };
        // Blocks the thread: no other task runs on this runtime.
        let outcome = load::run(plan).map_err(|error| Failure::new(exit::UNAVAILABLE, error))?;
        let report = Report::new(info, outcome);
        let format = self.server.format;
        match format {
            OutputFormat::Json => format.print_fields(&report)?,
            OutputFormat::Table => format.print_fields(&report.flat())?,
        };
        Ok(if report.is_empty() { exit::SOFTWARE } else { 0 })
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
        while missing > 0 {
            let count = missing.min(GENERATE_MAX);
            let request =
                GenerateRequest { count: u32::try_from(count).ok(), ..GenerateRequest::default() };
            client.generate(pool, &request).await?;
            missing -= count;
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

    /// Returns a constructor of the scenario's protocol; its argument is the connection's number.
    fn protocols(
        &self,
        host: &str,
        key_ids: Arc<[String]>,
    ) -> Box<dyn Fn(usize) -> Box<dyn Protocol> + Send + Sync> {
        let headers = protocol::headers(host, None);
        let request = move |method: &str, path: &str, body: &str| {
            protocol::request(method, path, &headers, body)
        };
        let pool = format!("/v1/pools/{}", self.server.pool);
        let connections = usize::from(self.connections);
        match self.scenario {
            Scenario::AcquireRelease => {
                let release = request("POST", &format!("{pool}/leases/*/release"), "");
                let length = usize::from(self.holder);
                Box::new(move |number| {
                    let holder = format!("bench-{number}");
                    let body = format!("{{\"holder\":\"{holder:.<length$}\"}}");
                    let acquire = request("POST", &format!("{pool}/leases"), &body);
                    Box::new(AcquireRelease::new(acquire, "\"id\":", &release))
                })
            }
            Scenario::Django => {
                let release = request("PUT", "/api/v1/random_api_key/?api_key=*", "");
                let acquire = request("GET", "/api/v1/random_api_key/", "");
                let member = "\"api_key\":";
                Box::new(move |_| Box::new(AcquireRelease::new(acquire.clone(), member, &release)))
            }
            Scenario::Keepalive => {
                let keep_alive = request("POST", &format!("{pool}/keys/*/keepalive"), "");
                Box::new(move |number| {
                    let first = number * key_ids.len() / connections;
                    Box::new(Repeat::with_each(&keep_alive, Arc::clone(&key_ids), first))
                })
            }
            Scenario::Generate => {
                let body = format!("{{\"count\":{}}}", self.count);
                let generate = request("POST", &format!("{pool}/keys"), &body);
                Box::new(move |_| Box::new(Repeat::new(generate.clone())))
            }
            Scenario::Constant => {
                let get = request("GET", &self.path, "");
                Box::new(move |_| Box::new(Repeat::new(get.clone())))
            }
            #[cfg(feature = "bench-peers")]
            Scenario::Redis => Box::new(|number| Box::new(peers::Redis::new(number))),
            #[cfg(feature = "bench-peers")]
            Scenario::Beanstalk => Box::new(|_| Box::new(peers::Beanstalk::default())),
            #[cfg(feature = "bench-peers")]
            Scenario::Postgres => {
                let (table, rows) = (self.server.pool.clone(), self.rows);
                Box::new(move |number| Box::new(peers::Postgres::new(&table, rows, number)))
            }
        }
    }
}

/// Returns the URL's host, for the `Host` header, and its address.
fn address(url: &str) -> Result<(String, SocketAddr), Failure> {
    let unusable = |why: String| Failure::new(exit::USAGE, format!("--server {url}: {why}"));
    let rest = url.strip_prefix("http://");
    let rest = rest.ok_or_else(|| unusable("bench needs a URL that starts with http://".into()))?;
    let host = rest.trim_end_matches('/');
    let with_port = if host.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok()) {
        host.to_owned()
    } else {
        format!("{host}:80")
    };
    let mut addrs = with_port.to_socket_addrs().map_err(|error| unusable(error.to_string()))?;
    let addr = addrs.next().ok_or_else(|| unusable("the host has no address".into()))?;
    Ok((host.to_owned(), addr))
}

fn rate(text: &str) -> Result<f64, String> {
    let rate = text.parse().ok().filter(|rate| (0.1..=10_000_000.0).contains(rate));
    rate.ok_or_else(|| "a rate must be 0.1 to 10000000 requests per second".into())
}

fn path(text: &str) -> Result<String, String> {
    let is_valid = text.starts_with('/') && text.bytes().all(|byte| byte.is_ascii_graphic());
    let error = || "a path must start with / and contain no spaces".into();
    is_valid.then(|| text.to_owned()).ok_or_else(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_url_has_an_address_with_or_without_a_port() {
        for (url, host, addr) in [
            ("http://127.0.0.1:8000", "127.0.0.1:8000", "127.0.0.1:8000"),
            ("http://127.0.0.1/", "127.0.0.1", "127.0.0.1:80"),
            ("http://[::1]:9", "[::1]:9", "[::1]:9"),
        ] {
            let found = address(url).unwrap();
            assert_eq!(found, (host.to_owned(), addr.parse().unwrap()), "{url}");
        }
        for bad in ["127.0.0.1:8000", "https://127.0.0.1", "http://"] {
            assert!(address(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn rates_and_paths_are_checked() {
        assert_eq!(rate("0.5"), Ok(0.5));
        assert!(["0", "-1", "NaN", "inf", "many"].iter().all(|bad| rate(bad).is_err()));
        assert!(path("/livez").is_ok());
        assert!(["livez", "/a b", "/a\r\nX: y"].iter().all(|bad| path(bad).is_err()));
    }
}
