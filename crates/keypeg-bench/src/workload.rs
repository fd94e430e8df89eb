//! The workloads on Keypeg's HTTP APIs, and the type that workloads on other servers use too.
//!
//! A workload is a name, the kinds of its requests, and a constructor of the protocol of one
//! connection. It knows nothing of schedules and reports.

use crate::http::{AcquireRelease, AcquireVerify, Repeat, headers, request};
use crate::protocol::Protocol;
use crate::target::Target;
use std::fmt;
use std::sync::Arc;

/// Returns the protocol of a new connection; the argument is the connection's number.
pub(crate) type NewProtocol = Box<dyn Fn(usize) -> Box<dyn Protocol> + Send + Sync>;

/// The requests of a run.
pub struct Workload {
    pub(crate) name: &'static str,
    /// The names of the kinds of requests.
    pub(crate) kinds: &'static [&'static str],
    pub(crate) new_protocol: NewProtocol,
}

impl fmt::Debug for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Workload").field("name", &self.name).finish_non_exhaustive()
    }
}

/// The kinds of requests of a workload that acquires and releases.
const ACQUIRE_RELEASE: &[&str] = &["acquire", "release"];

impl Workload {
    /// Returns a workload whose requests of kind 0 acquire and those of kind 1 release.
    /// `new_protocol` gets the number of the connection, from 0 on.
    pub fn of_acquire_release<P: Protocol + 'static>(
        name: &'static str,
        new_protocol: impl Fn(usize) -> P + Send + Sync + 'static,
    ) -> Self {
        Self::new(name, ACQUIRE_RELEASE, new_protocol)
    }

    fn new<P: Protocol + 'static>(
        name: &'static str,
        kinds: &'static [&'static str],
        new_protocol: impl Fn(usize) -> P + Send + Sync + 'static,
    ) -> Self {
        let new_protocol = Box::new(move |number| Box::new(new_protocol(number)) as Box<_>);
        Self { name, kinds, new_protocol }
    }

    /// Acquires a key and releases it by its lease, repeatedly. Holder names have `holder_length`
    /// characters.
    pub fn acquire_release(target: &Target, pool: &str, holder_length: u8) -> Self {
        let headers = headers(target);
        let leases = format!("{}/v1/pools/{pool}/leases", target.path);
        let release = request("POST", &format!("{leases}/*/release"), &headers, "");
        let length = usize::from(holder_length);
        Self::of_acquire_release("acquire-release", move |number| {
            let holder = format!("bench-{number}");
            let body = format!("{{\"holder\":\"{holder:.<length$}\"}}");
            let acquire = request("POST", &leases, &headers, &body);
            AcquireRelease::new(acquire, "\"id\":", &release)
        })
    }

    /// Acquires and releases with the Django API.
    pub fn django(target: &Target) -> Self {
        let headers = headers(target);
        let path = format!("{}/api/v1/random_api_key/", target.path);
        let release = request("PUT", &format!("{path}?api_key=*"), &headers, "");
        let acquire = request("GET", &path, &headers, "");
        Self::of_acquire_release("seed", move |_| {
            AcquireRelease::new(acquire.clone(), "\"api_key\":", &release)
        })
    }

    /// Verifies the value of a leased key as a gateway does, repeatedly. Each connection acquires a
    /// key of its own first, and does not release it.
    pub fn verify(target: &Target, pool: &str) -> Self {
        let headers = headers(target);
        let pool = format!("{}/v1/pools/{pool}", target.path);
        let verify = format!("{headers}X-Api-Key: *\r\n");
        let verify = request("GET", &format!("{pool}/verify"), &verify, "");
        let acquire = request("POST", &format!("{pool}/leases"), &headers, "{}");
        Self::new("verify", &["acquire", "verify"], move |_| {
            AcquireVerify::new(acquire.clone(), &verify)
        })
    }

    /// Keeps keys alive, one per request. Each of the `connections` starts at another key.
    pub fn keepalive(
        target: &Target,
        pool: &str,
        key_ids: Arc<[String]>,
        connections: usize,
    ) -> Self {
        let path = format!("{}/v1/pools/{pool}/keys/*/keepalive", target.path);
        let keep_alive = request("POST", &path, &headers(target), "");
        Self::new("keepalive", &["keepalive"], move |number| {
            let first = number * key_ids.len() / connections;
            Repeat::with_each(&keep_alive, Arc::clone(&key_ids), first)
        })
    }

    /// Generates `count` keys per request, which remain in the pool.
    pub fn generate(target: &Target, pool: &str, count: u16) -> Self {
        let path = format!("{}/v1/pools/{pool}/keys", target.path);
        let body = format!("{{\"count\":{count}}}");
        let generate = request("POST", &path, &headers(target), &body);
        Self::new("generate", &["generate"], move |_| Repeat::new(generate.clone()))
    }

    /// Requests one path with GET. The path must not contain spaces or line ends.
    pub fn constant(target: &Target, path: &str) -> Self {
        let path = format!("{}{path}", target.path);
        let get = request("GET", &path, &headers(target), "");
        Self::new("constant", &["constant"], move |_| Repeat::new(get.clone()))
    }

    /// Returns the name, which the report repeats.
    pub fn name(&self) -> &'static str {
        self.name
    }
}
