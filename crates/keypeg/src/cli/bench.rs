//! `keypeg bench`: loads a server over raw HTTP/1.1 and tells what it did.
//!
//! Only the wire is used, so what it measures is what any client would see; keys are prepared over
//! `keypeg-client`. A closed loop asks again as soon as it is answered, an open one (`--rate`) keeps
//! to a schedule and counts latency from when a request was due. Where the server's processes are
//! found on this machine, so are their processor time and memory.

mod histogram;
mod load;
mod pace;
#[cfg(feature = "bench-peers")]
mod peers;
mod process;
mod report;
mod talk;

use super::To;
use super::output::Output;
use crate::config::length_ms;
use crate::failure::{Failure, exit};
use clap::{Args, ValueEnum, value_parser};
use keypeg_client::{Code, Error, GenerateRequest, PolicyRequest, Seconds};
use load::Plan;
use pace::Schedule;
use report::{About, Report};
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;
use talk::{Pair, Same, Talk};

/// Keys that one call makes.
const GENERATE_MAX: u64 = 10_000;
/// How long keys live that nobody keeps alive, in a pool made here: the longest there is.
const LIFE_MS: u64 = 7 * 24 * 3_600_000;
/// Keys that `keepalive` names, one after the other.
const NAMES_MAX: usize = 100_000;

/// What is asked, how much, for how long.
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// What is asked
    #[arg(value_enum, default_value_t = Scenario::AcquireRelease)]
    scenario: Scenario,
    /// Connections, each with one request under way
    #[arg(short, long, value_name = "N", default_value_t = 64, value_parser = value_parser!(u16).range(1..=10_000))]
    connections: u16,
    /// How long, such as 10s
    #[arg(short, long = "for", value_name = "LENGTH", default_value = "10s", value_parser = length_ms)]
    length: u64,
    /// Requests a second, on a schedule that waits for nobody [default: as many as are answered]
    #[arg(short, long, value_name = "N", value_parser = rate)]
    rate: Option<f64>,
    /// Threads of the load itself; one is enough for most servers
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = value_parser!(u16).range(1..=256))]
    threads: u16,
    /// Makes the pool, if it is not there, and keys until it has as many
    #[arg(long, value_name = "N")]
    keys: Option<u64>,
    /// Keys that one request of `generate` makes
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = value_parser!(u16).range(1..=10_000))]
    count: u16,
    /// Characters of the holder's name that `acquire-release` gives
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = value_parser!(u8).range(8..=128))]
    holder: u8,
    /// The path that `constant` asks for
    #[arg(long, value_name = "PATH", default_value = "/livez", value_parser = path)]
    path: String,
    /// Rows of the table that `postgres` asks
    #[cfg(feature = "bench-peers")]
    #[arg(long, value_name = "N", default_value_t = 1)]
    rows: u64,
    /// The server's process; its descendants count with it [default: who listens there, on loopback]
    #[arg(long, value_name = "PID")]
    server_pid: Vec<u32>,
    /// Where to ask, and how to tell.
    #[command(flatten)]
    to: To,
}

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Scenario {
    /// Acquires a key, gives it back by its lease, and again
    AcquireRelease,
    /// The same by the first API: GET and PUT of `/api/v1/random_api_key/`
    Seed,
    /// Keeps one key of the pool alive after the other
    Keepalive,
    /// Makes keys, which stay
    Generate,
    /// Gets one path again and again
    Constant,
    /// Lends and returns members of a set in Redis, by scripts
    #[cfg(feature = "bench-peers")]
    Redis,
    /// Reserves and releases jobs of beanstalkd
    #[cfg(feature = "bench-peers")]
    Beanstalk,
    /// Lends and returns rows of `PostgreSQL`, by SKIP LOCKED
    #[cfg(feature = "bench-peers")]
    Postgres,
}

impl Scenario {
    fn kinds(self) -> &'static [&'static str] {
        match self {
            Self::Keepalive => &["keepalive"],
            Self::Generate => &["generate"],
            Self::Constant => &["constant"],
            Self::AcquireRelease | Self::Seed => &["acquire", "release"],
            #[cfg(feature = "bench-peers")]
            Self::Redis | Self::Beanstalk | Self::Postgres => &["acquire", "release"],
        }
    }

    fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }
}

/// Why a request came to nothing.
#[derive(Debug, PartialEq, Eq)]
enum Broken {
    /// What came is not what was to come.
    Unclear(&'static str),
    /// The connection.
    Io(std::io::ErrorKind),
}

impl From<std::io::Error> for Broken {
    fn from(error: std::io::Error) -> Self {
        Self::Io(error.kind())
    }
}

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unclear(what) => f.write_str(what),
            Self::Io(kind) => kind.fmt(f),
        }
    }
}

impl BenchArgs {
    /// Loads and tells; exits 70 when there was not one good answer.
    pub(super) async fn run(self) -> Result<u8, Failure> {
        let (host, addr) = address(&self.to.server)?;
        if let Some(keys) = self.keys {
            self.prepare(keys).await?;
        }
        let names = if self.scenario == Scenario::Keepalive {
            self.names().await?
        } else {
            Vec::new().into()
        };
        let pids = match &self.server_pid[..] {
            [] => process::listening(addr),
            given => given.to_vec(),
        };
        let about = About {
            scenario: self.scenario.name(),
            server: self.to.server.clone(),
            connections: self.connections.into(),
            threads: self.threads.into(),
            rate: self.rate,
            kinds: self.scenario.kinds(),
        };
        let plan = Plan {
            addr,
            connections: about.connections,
            threads: about.threads.min(about.connections),
            length: Duration::from_millis(self.length),
            schedule: self.rate.map(Schedule::new),
            kinds: about.kinds,
            talk: self.talk(&host, names),
            pids,
        };
        // Nothing else runs on this runtime.
        let loaded = load::run(plan).map_err(|why| Failure::new(exit::UNAVAILABLE, why))?;
        let report = Report::new(about, loaded);
        match self.to.output {
            Output::Json => self.to.output.fields(&report)?,
            Output::Table => self.to.output.fields(&report.flat())?,
        };
        Ok(if report.is_empty() { exit::SOFTWARE } else { 0 })
    }

    /// Makes what is missing: a pool whose keys outlive the run, and keys.
    async fn prepare(&self, wanted: u64) -> Result<(), Failure> {
        let (client, pool) = (self.to.client()?, &self.to.pool);
        let total = match client.pool(pool).await {
            Ok(pool) => pool.total,
            Err(Error::Refused(problem)) if problem.code == Code::UnknownPool => {
                let keepalive_ttl_seconds = Some(Some(Seconds::from_ms(LIFE_MS)));
                let policy = PolicyRequest { keepalive_ttl_seconds, ..PolicyRequest::default() };
                client.put_pool(pool, &policy).await?.total
            }
            Err(error) => return Err(error.into()),
        };
        let mut missing = wanted.saturating_sub(total);
        while missing > 0 {
            let count = missing.min(GENERATE_MAX);
            let request =
                GenerateRequest { count: u32::try_from(count).ok(), ..GenerateRequest::default() };
            client.generate(pool, &request).await?;
            missing -= count;
        }
        Ok(())
    }

    async fn names(&self) -> Result<Arc<[String]>, Failure> {
        let mut names = Vec::new();
        let mut pages = self.to.client()?.list(&self.to.pool, None);
        while names.len() < NAMES_MAX
            && let Some(keys) = pages.next().await?
        {
            names.extend(keys.into_iter().map(|key| key.id));
        }
        if names.is_empty() {
            let message =
                format!("pool {} has no key to keep alive: say --keys 1000", self.to.pool);
            return Err(Failure::new(exit::NO_INPUT, message));
        }
        Ok(names.into())
    }

    fn talk(
        &self,
        host: &str,
        names: Arc<[String]>,
    ) -> Box<dyn Fn(usize) -> Box<dyn Talk> + Send + Sync> {
        let headers = talk::headers(host, None);
        let request =
            move |method: &str, path: &str, body: &str| talk::request(method, path, &headers, body);
        let pool = format!("/v1/pools/{}", self.to.pool);
        let each = usize::from(self.connections);
        match self.scenario {
            Scenario::AcquireRelease => {
                let give = request("POST", &format!("{pool}/leases/*/release"), "");
                let length = usize::from(self.holder);
                Box::new(move |number| {
                    let holder = format!("bench-{number}");
                    let body = format!("{{\"holder\":\"{holder:.<length$}\"}}");
                    let take = request("POST", &format!("{pool}/leases"), &body);
                    Box::new(Pair::new(take, "\"id\":", &give))
                })
            }
            Scenario::Seed => {
                let give = request("PUT", "/api/v1/random_api_key/?api_key=*", "");
                let take = request("GET", "/api/v1/random_api_key/", "");
                Box::new(move |_| Box::new(Pair::new(take.clone(), "\"api_key\":", &give)))
            }
            Scenario::Keepalive => {
                let asked = request("POST", &format!("{pool}/keys/*/keepalive"), "");
                Box::new(move |number| {
                    let from = number * names.len() / each;
                    Box::new(Same::of_each(&asked, Arc::clone(&names), from))
                })
            }
            Scenario::Generate => {
                let body = format!("{{\"count\":{}}}", self.count);
                let asked = request("POST", &format!("{pool}/keys"), &body);
                Box::new(move |_| Box::new(Same::new(asked.clone())))
            }
            Scenario::Constant => {
                let asked = request("GET", &self.path, "");
                Box::new(move |_| Box::new(Same::new(asked.clone())))
            }
            #[cfg(feature = "bench-peers")]
            Scenario::Redis => Box::new(|number| Box::new(peers::Redis::new(number))),
            #[cfg(feature = "bench-peers")]
            Scenario::Beanstalk => Box::new(|_| Box::new(peers::Beanstalk::default())),
            #[cfg(feature = "bench-peers")]
            Scenario::Postgres => {
                let (table, rows) = (self.to.pool.clone(), self.rows);
                Box::new(move |number| Box::new(peers::Postgres::new(&table, rows, number)))
            }
        }
    }
}

/// The host as it is named, and its address.
fn address(url: &str) -> Result<(String, SocketAddr), Failure> {
    let unusable = |why: String| Failure::new(exit::USAGE, format!("--server {url}: {why}"));
    let rest = url.strip_prefix("http://");
    let rest = rest.ok_or_else(|| unusable("it begins with http:// here".into()))?;
    let host = rest.trim_end_matches('/');
    let with_port = if host.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok()) {
        host.to_owned()
    } else {
        format!("{host}:80")
    };
    let mut found = with_port.to_socket_addrs().map_err(|error| unusable(error.to_string()))?;
    let addr = found.next().ok_or_else(|| unusable("no address".into()))?;
    Ok((host.to_owned(), addr))
}

fn rate(text: &str) -> Result<f64, String> {
    let rate = text.parse().ok().filter(|rate| (0.1..=10_000_000.0).contains(rate));
    rate.ok_or_else(|| "it is 0.1 to 10000000".into())
}

fn path(text: &str) -> Result<String, String> {
    let plain = text.starts_with('/') && text.bytes().all(|byte| byte.is_ascii_graphic());
    plain.then(|| text.to_owned()).ok_or_else(|| "it begins with / and has no blanks".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_an_address_with_or_without_a_port() {
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
