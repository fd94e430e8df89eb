//! The load generator: loads a server over TCP or TLS and reports what it measured.
//!
//! Sees only bytes of a wire protocol, so it measures what any client would see; it depends on no
//! other crate of the workspace. A closed loop sends the next request when the last is answered. An
//! open loop (a [`Rate`]) follows a schedule and counts latency from the time a request was due.
//! Processor time and memory are reported if the server's processes are found on this machine.
//! `keypeg bench` offers the workloads on Keypeg; the binary of this crate loads other servers too.

mod clock;
mod histogram;
mod http;
mod load;
mod process;
mod protocol;
mod report;
mod schedule;
mod stream;
mod target;
mod workload;

pub use load::RunError;
pub use protocol::{ExchangeError, Protocol, Response};
pub use report::Report;
pub use schedule::{Rate, RateError};
pub use target::{Target, TargetError};
pub use workload::Workload;

use load::Plan;
use report::RunInfo;
use schedule::Schedule;
use std::sync::Arc;
use std::time::Duration;
use stream::Endpoint;

/// The load of a run.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// The server to load.
    pub target: Target,
    /// How the connections to an `https` target check its certificate; not used for `http`.
    pub tls: Option<Arc<rustls::ClientConfig>>,
    /// Connections, each with one request in flight; at least 1.
    pub connections: u16,
    /// Threads that generate the load; at least 1. More than there are connections are not used.
    pub threads: u16,
    /// The time in which requests count.
    pub duration: Duration,
    /// The rate of an open loop; `None` for a closed loop.
    pub rate: Option<Rate>,
    /// The server's processes, counted with their descendants. If empty: the processes that listen
    /// on the target's port, if the target is on loopback.
    pub server_pids: Vec<u32>,
}

/// Runs a load and returns its report; fails if a connection cannot be opened, and for an `https`
/// target without the options of TLS.
///
/// Blocks the thread for the duration of the run, and up to 10 seconds more for late responses.
pub fn run(workload: Workload, options: LoadOptions) -> Result<Report, RunError> {
    let LoadOptions { target, tls, connections, threads, duration, rate, server_pids } = options;
    let endpoint = Endpoint::new(&target, tls)
        .ok_or_else(|| RunError::from("an https target needs the options of TLS"))?;
    let info = RunInfo {
        scenario: workload.name,
        server: target.url,
        connections: connections.into(),
        threads: threads.into(),
        rate,
        kinds: workload.kinds,
    };
    let pids = if server_pids.is_empty() { process::listening(target.addr) } else { server_pids };
    let plan = Plan {
        endpoint,
        connections: info.connections,
        threads: info.threads.min(info.connections),
        duration,
        schedule: rate.map(Schedule::new),
        kinds: workload.kinds,
        new_protocol: workload.new_protocol,
        pids,
    };
    Ok(Report::new(info, load::run(plan)?))
}
