//! The client of `bench/run`: loads Keypeg and the servers that it is compared with.
//!
//! One client for all of them, so that none is measured by another client. It only loads:
//! `bench/run` starts and fills the servers. The report is one line of JSON on stdout. Exit codes:
//! 1 if the load could not run, 2 for an invalid command line, 70 if no request succeeded.

mod peers;

use clap::{Parser, ValueEnum, value_parser};
use keypeg_bench::{LoadOptions, Rate, Target, Workload};
use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

/// The exit code of a run without a success, as of `keypeg bench`.
const NO_SUCCESS: u8 = 70;

/// Load Keypeg or a server that it is compared with, and print a report in JSON
#[derive(Debug, Parser)]
#[command(name = "keypeg-bench", version)]
struct Cli {
    /// Scenario to run
    #[arg(value_enum)]
    scenario: Scenario,
    /// Address of the server, as a URL that starts with http:// whatever its protocol is
    #[arg(long, value_name = "URL")]
    server: Target,
    /// Number of connections, each with one request in flight
    #[arg(short, long, value_name = "N", default_value_t = 64)]
    #[arg(value_parser = value_parser!(u16).range(1..=10_000))]
    connections: u16,
    /// Duration of the run in milliseconds
    #[arg(long = "for-ms", value_name = "N", default_value_t = 10_000)]
    #[arg(value_parser = value_parser!(u64).range(1..=86_400_000))]
    duration_ms: u64,
    /// Requests per second on a fixed schedule [default: no schedule, as fast as answered]
    #[arg(short, long, value_name = "N")]
    rate: Option<Rate>,
    /// Threads that generate the load; one is enough for most servers
    #[arg(long, value_name = "N", default_value_t = 1)]
    #[arg(value_parser = value_parser!(u16).range(1..=256))]
    threads: u16,
    /// Name of the pool in the scenarios `acquire-release` and `verify`, of the table in `postgres`
    #[arg(long, value_name = "NAME", default_value = "default")]
    pool: String,
    /// Rows of the table in the scenario `postgres`
    #[arg(long, value_name = "N", default_value_t = 1)]
    rows: u64,
    /// Process of the server, counted with its descendants [default: the listener, on loopback]
    #[arg(long, value_name = "PID")]
    server_pid: Vec<u32>,
}

/// The requests of a run.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Scenario {
    /// Acquire a key and release it by its lease, over HTTP
    AcquireRelease,
    /// Acquire and release with the Django API: GET and PUT of `/api/v1/random_api_key/`
    #[value(name = "seed")]
    Django,
    /// Verify the value of a leased key by GET, as gateways do
    Verify,
    /// Acquire and release members of a Redis set, with scripts
    Redis,
    /// Reserve and release jobs of beanstalkd
    Beanstalk,
    /// Acquire and release rows of `PostgreSQL`, with SKIP LOCKED
    Postgres,
}

/// The length of holder names, which is the default of `keypeg bench`.
const HOLDER_LENGTH: u8 = 8;

impl Cli {
    fn workload(&self) -> Workload {
        match self.scenario {
            Scenario::AcquireRelease => {
                Workload::acquire_release(&self.server, &self.pool, HOLDER_LENGTH)
            }
            Scenario::Django => Workload::django(&self.server),
            Scenario::Verify => Workload::verify(&self.server, &self.pool),
            Scenario::Redis => Workload::of_acquire_release("redis", |_| peers::Redis::default()),
            Scenario::Beanstalk => {
                Workload::of_acquire_release("beanstalk", |_| peers::Beanstalk::default())
            }
            Scenario::Postgres => {
                let (table, rows) = (self.pool.clone(), self.rows);
                Workload::of_acquire_release("postgres", move |number| {
                    peers::Postgres::new(&table, rows, number)
                })
            }
        }
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let workload = cli.workload();
    let options = LoadOptions {
        target: cli.server,
        tls: None,
        connections: cli.connections,
        threads: cli.threads,
        duration: Duration::from_millis(cli.duration_ms),
        rate: cli.rate,
        server_pids: cli.server_pid,
    };
    let failed = |error: &dyn std::fmt::Display| {
        // With stderr closed there is no other place to report to.
        let _ = writeln!(io::stderr(), "keypeg-bench: {error}");
        ExitCode::FAILURE
    };
    let report = match keypeg_bench::run(workload, options) {
        Ok(report) => report,
        Err(error) => return failed(&error),
    };
    let text = serde_json::to_string(&report)
        .expect("invariant: a report of numbers and names serialises");
    match writeln!(io::stdout(), "{text}") {
        Err(error) => failed(&format!("cannot write to stdout: {error}")),
        Ok(()) if report.is_empty() => ExitCode::from(NO_SUCCESS),
        Ok(()) => ExitCode::SUCCESS,
    }
}
