//! The configuration of a server: the options of all sources combined, with defaults, and checked.
//!
//! A flag takes precedence over a variable, a variable over the file, the file over the default.

mod cluster;

pub use cluster::ClusterSettings;
pub(crate) use cluster::SHARDS;

use crate::access::Hosts;
use crate::audit::AuditSettings;
use crate::credentials;
use crate::duration::HumanDuration;
use crate::failure::{Failure, exit};
use crate::file;
use crate::http::Timeouts;
use crate::log::LogFormat;
use crate::memory::{self, MemoryPlan};
use crate::options::Options;
use crate::options::value::{FilePath, HTTP_THREADS_MAX, Switch};
use crate::proxies::Proxies;
use crate::seal::SealSettings;
use crate::tls::TlsFiles;
use keypeg_core::{KEY_BYTES_MIN, Policy, PolicyPatch};
use keypeg_store::LANE_MAX;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZero;
use std::path::PathBuf;

/// The default listen address.
const LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8000);
/// The default data directory.
pub(crate) const DATA: &str = "./keypeg-data";
/// The default size of an audit log file, in MiB.
const AUDIT_MIB: u32 = 64;
/// The most pools with series of their own in the metrics.
const METRICS_POOLS: usize = 1_000;
/// The default number of rotated audit log files to keep.
const AUDIT_KEEP: u32 = 8;

/// The checked configuration of a server.
#[derive(Clone, Debug)]
pub struct Config {
    /// The listen address.
    pub listen: SocketAddr,
    /// The listen address for operations alone, if there is one.
    pub ops_listen: Option<SocketAddr>,
    /// The data directory; `None` keeps all data in memory, or in the store of several servers.
    pub data: Option<PathBuf>,
    /// The store that several servers share, if this server has one.
    pub cluster: Option<ClusterSettings>,
    /// Whether the data directory, or the installation in the store, must already exist.
    pub existing: bool,
    /// The default pool's policy in a new data directory.
    pub default_policy: Policy,
    /// Whether a flag, a variable or the file set part of that policy.
    pub policy_given: bool,
    /// The maximum number of keys in all pools together.
    pub max_keys: u64,
    /// The memory that the server may take, in parts.
    pub(crate) memory: MemoryPlan,
    /// The threads that answer HTTP; the reserve is not one of them.
    pub(crate) http_threads: usize,
    /// Requests of a core that may wait for the engine.
    pub max_queued: usize,
    /// The most pools with series of their own in the metrics.
    pub metrics_pools: usize,
    /// The access token file; `None` lets every client do everything.
    pub tokens: Option<PathBuf>,
    /// The files of TLS; `None` is plain HTTP.
    pub(crate) tls: Option<TlsFiles>,
    /// The seal of the data directory; `None` for values as they are.
    pub(crate) seal: Option<SealSettings>,
    /// The settings of the audit log; `None` writes none.
    pub(crate) audit: Option<AuditSettings>,
    /// The format of the log.
    pub(crate) log_format: LogFormat,
    /// The host names of this server.
    pub hosts: Hosts,
    /// The proxies in front of the server.
    pub(crate) proxies: Proxies,
    /// The time limits of connections.
    pub(crate) timeouts: Timeouts,
}

impl Config {
    /// Returns the number of cores.
    pub(crate) fn cores(&self) -> usize {
        cores(self.http_threads, self.cluster.is_some())
    }

    /// Returns whether the last core runs turns of the store, and the first is its reserve.
    pub(crate) fn has_reserve(&self) -> bool {
        self.cores() > self.http_threads
    }

    /// Combines the options of flags and variables with those of the file, if one is named, and
    /// checks the result.
    pub fn new(given: Options) -> Result<Self, Failure> {
        let file = given.config.as_deref().map(file::read).transpose()?.unwrap_or_default();
        let options = given.or(file);
        let cluster = ClusterSettings::new(&options)?;
        let listen = options.listen.map_or(LISTEN, |listen| listen.0);
        let is_on = |switch: Option<Switch>| switch.is_some_and(|switch| switch.0);
        let tokens =
            options.tokens.map(|path| path.0).or_else(|| credentials::path(credentials::TOKENS));
        let tls = tls_files(options.tls_cert, options.tls_key)?;
        let tls = with_client_ca(tls, options.tls_client_ca, tokens.is_some())?;
        let seal = seal_settings(options.seal_key, is_on(options.seal_existing))?;
        let ops_listen = options.ops_listen.map(|listen| listen.0);
        let named = [("--listen", Some(listen)), ("--ops-listen", ops_listen)];
        let proxies = Proxies::new(options.behind_proxy.unwrap_or_default());
        // Such a proxy has ended TLS before.
        let has_tls = tls.is_some() || !proxies.is_empty();
        let has = Protection { tls: has_tls, tokens: tokens.is_some() };
        for (option, address) in named {
            if let Some(address) = address.filter(|address| !address.ip().is_loopback())
                && !is_on(options.insecure_listen)
            {
                has.check(option, address)?;
            }
        }
        // A page with a name that resolves to this server (DNS rebinding) has no access token.
        let allow_host = options.allow_host.map_or_else(
            || if tokens.is_some() { Ok(Hosts::any()) } else { Hosts::new(&[]) },
            |names| Hosts::new(&names),
        );
        let hosts = allow_host.map_err(|name| {
            let message = format!(
                "--allow-host {name:?} is not a host name: \
                 use a name without scheme and port, such as keys.example, or *"
            );
            Failure::new(exit::CONFIG, message)
        })?;
        let audit = options.audit.map(|path| AuditSettings {
            path: path.0,
            file_max: u64::from(options.audit_mib.map_or(AUDIT_MIB, |mib| mib.0)) << 20,
            keep: options.audit_keep.map_or(AUDIT_KEEP, |keep| keep.0),
        });
        let patch = PolicyPatch {
            lease_ttl_ms: options.lease_ttl.map(HumanDuration::ms),
            keepalive_ttl_ms: options.keepalive_ttl.map(|ttl| Some(ttl.ms())),
            ..PolicyPatch::default()
        };
        let default_policy = Policy::default().with_patch(patch).map_err(|error| {
            Failure::new(exit::CONFIG, format!("{} must be {}", error.field.name(), error.field))
        })?;
        let unset = Timeouts::default();
        let timeouts = Timeouts {
            idle: options.idle_timeout.map_or(unset.idle, |time| time.0),
            head: options.head_timeout.map_or(unset.head, |time| time.0),
            body: options.body_timeout.map_or(unset.body, |time| time.0),
            write: options.write_timeout.map_or(unset.write, |time| time.0),
            write_rate: options.write_rate.map_or(unset.write_rate, |kib| u64::from(kib.0) << 10),
        };
        let memory = options.memory.map_or_else(memory::of_machine, |size| size.0);
        let http_threads = options.http_threads.map_or_else(http_threads, |count| count.0 as usize);
        let memory = MemoryPlan::new(memory, cores(http_threads, cluster.is_some()));
        let has_data = !is_on(options.ephemeral) && cluster.is_none();
        let data = options.data.map_or_else(|| DATA.into(), |path| path.0);
        Ok(Self {
            listen,
            ops_listen,
            data: has_data.then_some(data),
            cluster,
            existing: is_on(options.existing),
            default_policy,
            policy_given: options.lease_ttl.is_some() || options.keepalive_ttl.is_some(),
            max_keys: memory.keys / KEY_BYTES_MIN,
            memory,
            http_threads,
            max_queued: options.max_queued.map_or(LANE_MAX, |max| max.0 as usize),
            metrics_pools: options.metrics_pools.map_or(METRICS_POOLS, |max| max.0 as usize),
            tokens,
            tls,
            seal,
            audit,
            log_format: options.log_format.unwrap_or_default(),
            hosts,
            proxies,
            timeouts,
        })
    }

    /// Returns the most bytes of the keys of all pools.
    pub fn memory_of_keys(&self) -> u64 {
        self.memory.keys
    }

    /// Returns the configuration of a second server in this process, which only this one calls: on a
    /// free port of the loopback address, without TLS, an audit log and an address for operations.
    #[must_use]
    pub fn of_neighbour(&self) -> Self {
        let listen = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
        Self { listen, ops_listen: None, tls: None, audit: None, ..self.clone() }
    }
}

/// Returns how many threads answer HTTP by default: one for each processor that the process may use but
/// one, which is left for the engine's thread. With more busy threads than processors, a core gets fewer
/// requests at a time, and each costs more switches between threads.
fn http_threads() -> usize {
    let processors = std::thread::available_parallelism().map_or(1, NonZero::get);
    (processors - 1).clamp(1, HTTP_THREADS_MAX as usize)
}

/// Returns how many cores there are: the threads that answer HTTP, and the reserve of a single one that
/// runs turns of the store.
fn cores(http_threads: usize, is_shared: bool) -> usize {
    http_threads + usize::from(http_threads == 1 && !is_shared)
}

/// Returns the seal key file, of its option or of the credential of the service.
fn seal_settings(
    path: Option<FilePath>,
    seals_existing: bool,
) -> Result<Option<SealSettings>, Failure> {
    let path = path.map(|path| path.0).or_else(|| credentials::path(credentials::SEAL_KEY));
    if path.is_none() && seals_existing {
        let message = "--seal-existing is given without --seal-key: name the file of the key that \
                       is to seal the data directory";
        return Err(Failure::new(exit::CONFIG, message));
    }
    Ok(path.map(|path| SealSettings { path, seals_existing }))
}

/// Returns the files of TLS: of both options, or of both credentials of the service.
fn tls_files(
    certificate: Option<FilePath>,
    key: Option<FilePath>,
) -> Result<Option<TlsFiles>, Failure> {
    let is_given = certificate.is_some() || key.is_some();
    let or_credential = |path: Option<FilePath>, name| {
        path.map(|path| path.0).or_else(|| credentials::path(name).filter(|_| !is_given))
    };
    let certificate = or_credential(certificate, credentials::TLS_CERTIFICATE);
    let key = or_credential(key, credentials::TLS_KEY);
    match (certificate, key) {
        (None, None) => Ok(None),
        (Some(certificate), Some(key)) => Ok(Some(TlsFiles { certificate, key, client_ca: None })),
        (certificate, _) => {
            let [given, missing] = match certificate {
                Some(_) => ["--tls-cert", "--tls-key"],
                None => ["--tls-key", "--tls-cert"],
            };
            let message = format!("{given} is given without {missing}: TLS needs both files");
            Err(Failure::new(exit::CONFIG, message))
        }
    }
}

/// Adds the authorities of client certificates. Only the token file gives a certificate its rights.
fn with_client_ca(
    tls: Option<TlsFiles>,
    client_ca: Option<FilePath>,
    has_tokens: bool,
) -> Result<Option<TlsFiles>, Failure> {
    let Some(FilePath(client_ca)) = client_ca else { return Ok(tls) };
    let missing = match (&tls, has_tokens) {
        (None, _) => "--tls-cert and --tls-key",
        (_, false) => "--tokens, whose entries name the certificates (certificate = \"NAME\")",
        (Some(_), true) => {
            return Ok(tls.map(|tls| TlsFiles { client_ca: Some(client_ca), ..tls }));
        }
    };
    Err(Failure::new(exit::CONFIG, format!("--tls-client-ca needs {missing}")))
}

/// What protects a server that other machines can reach.
struct Protection {
    tls: bool,
    tokens: bool,
}

impl Protection {
    /// Refuses a listen address beyond this machine unless the server has both.
    fn check(&self, option: &str, listen: SocketAddr) -> Result<(), Failure> {
        let (risk, step) = match (self.tls, self.tokens) {
            (true, true) => return Ok(()),
            (false, true) => (
                "there is no TLS, and keys and tokens could be read on the network",
                "add --tls-cert and --tls-key, name the proxies that speak TLS with --behind-proxy",
            ),
            (true, false) => (
                "without --tokens, every client that can connect would get every key",
                "add --tokens",
            ),
            (false, false) => (
                "without --tokens, every client that can connect would get every key",
                "add --tokens, --tls-cert and --tls-key",
            ),
        };
        let message = format!(
            "{option} {listen} is refused: {risk}; {step}, listen on 127.0.0.1 or [::1], or add \
             --insecure-listen"
        );
        Err(Failure::new(exit::CONFIG, message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{Args as _, Command, FromArgMatches as _};

    fn config(line: &str) -> Result<Config, Failure> {
        let words = line.split_whitespace();
        let command = Options::augment_args(Command::new("serve").no_binary_name(true));
        let matches = command.try_get_matches_from(words).unwrap();
        Config::new(Options::from_arg_matches(&matches).unwrap())
    }

    #[test]
    fn defaults_need_no_configuration() {
        let config = config("").unwrap();
        assert_eq!(config.listen.to_string(), "127.0.0.1:8000");
        assert_eq!(config.data, Some("./keypeg-data".into()));
        assert_eq!(config.default_policy, Policy::default());
        assert!(!config.policy_given);
    }

    #[test]
    fn the_defaults_are_those_of_the_help_texts() {
        let without_given = |mut config: Config| {
            config.policy_given = false;
            if let Some(cluster) = &mut config.cluster {
                cluster.shards = Some(cluster.new_shards());
            }
            format!("{config:?}")
        };
        let command = Options::augment_args(Command::new("serve"));
        let mut count = 0;
        for argument in command.get_arguments() {
            let help = argument.get_help().expect("a help text").to_string();
            let Some((_, default)) = help.split_once("[default: ") else { continue };
            let flag = argument.get_long().expect("a long flag");
            let audit = match flag {
                "shards" => "--store s3://b --advertise http://h:1",
                _ if flag.starts_with("audit") => "--audit a",
                _ => "",
            };
            let with_flag = format!("{audit} --{flag} {}", default.trim_end_matches(']'));
            let [given, default] = [&*with_flag, audit].map(|line| config(line).unwrap());
            assert_eq!(without_given(given), without_given(default), "{with_flag}");
            count += 1;
        }
        assert_eq!(count, 15);
    }

    #[test]
    fn options_are_accepted_or_refused() {
        let both = config("--lease-ttl 300ms --keepalive-ttl 1s").unwrap();
        assert_eq!(both.default_policy.lease_ttl_ms, 300);
        assert_eq!(both.default_policy.keepalive_ttl_ms, Some(1_000));
        assert!(both.policy_given);
        assert_eq!(config("--ephemeral").unwrap().data, None);
        for line in [
            "--listen 0.0.0.0:8000",
            "--listen [::]:0",
            "--ops-listen 0.0.0.0:9000",
            "--listen 0.0.0.0:0 --tokens t",
            "--listen 0.0.0.0:0 --behind-proxy 10.0.0.1",
            "--listen 0.0.0.0:0 --tls-cert c --tls-key k",
            "--ops-listen 0.0.0.0:0 --tls-cert c --tls-key k",
            "--tls-cert c",
            "--seal-existing",
            "--tls-key k --tokens t",
            "--tls-client-ca c --tokens t",
            "--tls-client-ca c --tls-cert c --tls-key k",
            "--allow-host a:1",
        ] {
            assert_eq!(config(line).map(drop).map_err(|failure| failure.exit), Err(exit::CONFIG));
        }
        for line in [
            "--listen [::1]:0",
            "--ops-listen [::1]:0",
            "--ops-listen 0.0.0.0:0 --insecure-listen",
            "--listen 0.0.0.0:0 --insecure-listen",
            "--listen 0.0.0.0:0 --ops-listen [::]:0 --tls-cert c --tls-key k --tokens t",
            "--tls-cert c --tls-key k",
            "--tls-client-ca c --tls-cert c --tls-key k --tokens t",
            "--listen 0.0.0.0:0 --tokens t --behind-proxy 10.0.0.1,10.1.0.0/16",
        ] {
            assert!(config(line).is_ok(), "{line}");
        }
    }
}
