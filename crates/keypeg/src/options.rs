//! The options of `keypeg serve`, each in one place: its flag, environment variable, key in the
//! configuration file, help text and type.
//!
//! The key in the file is the flag with `_` in place of `-`. The type owns the range and the text
//! of an error, see [`value`]. Defaults are applied in `config.rs`; a test compares them with the
//! help texts, and another the help texts with `docs/operations/options.md`.

pub(crate) mod value;

use crate::duration::HumanDuration;
use crate::log::LogFormat;
use crate::proxies::ProxyNet;
use clap::Args;
use serde::Deserialize;
use std::path::PathBuf;
use value::{
    Bounded, FilePath, HTTP_THREADS_MAX, ListenAddr, MemorySize, QUEUE_MAX, SHARDS_MAX, StoreUrl,
    Switch, Timeout,
};

/// The options that a source gives: the command line with its variables, or the file. An option
/// that the source omits is `None`.
#[derive(Debug, Default, PartialEq, Eq, Args, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// Configuration file in TOML; a variable overrides the file, a flag overrides both
    #[arg(long, env = "KEYPEG_CONFIG", value_name = "FILE")]
    #[serde(skip)]
    pub(crate) config: Option<PathBuf>,

    /// Address and port to listen on; port 0 selects a free port [default: 127.0.0.1:8000]
    #[arg(long, env = "KEYPEG_LISTEN", value_name = "ADDR:PORT")]
    pub(crate) listen: Option<ListenAddr>,

    /// Second address and port, for /livez, /readyz, /metrics and /version only
    ///
    /// It has connections of its own, so it answers while clients fill those of --listen.
    #[arg(long, env = "KEYPEG_OPS_LISTEN", value_name = "ADDR:PORT")]
    pub(crate) ops_listen: Option<ListenAddr>,

    /// Data directory, created if it does not exist [default: ./keypeg-data]
    ///
    /// With --store: a directory for temporary files, by default one that the server creates.
    #[arg(long, env = "KEYPEG_DATA", value_name = "DIR")]
    pub(crate) data: Option<FilePath>,

    /// Stop with an error if the data directory does not exist (a volume may not be mounted yet)
    ///
    /// With --store: if the store has no installation yet.
    #[arg(long, env = "KEYPEG_EXISTING", value_name = "BOOL")]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) existing: Option<Switch>,

    /// Keep all data in memory only: --data is ignored, and a restart loses everything
    #[arg(long, env = "KEYPEG_EPHEMERAL", value_name = "BOOL")]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) ephemeral: Option<Switch>,

    /// URL of a store that several servers share: PostgreSQL or an object store
    ///
    /// `postgres://USER@HOST/DATABASE`, `s3://BUCKET/PREFIX`, `gs://BUCKET/PREFIX` or
    /// `az://CONTAINER/PREFIX`. The pools are in the store, and --data has only temporary files. Give
    /// a URL with a password by the variable: other users of the machine can read a command line.
    #[arg(long, env = "KEYPEG_STORE", value_name = "URL", hide_env_values = true)]
    pub(crate) store: Option<StoreUrl>,

    /// URL at which the other servers reach this one; required with --store
    ///
    /// http:// or https:// with a host and a port; port 0 stands for the port of --listen.
    #[arg(long, env = "KEYPEG_ADVERTISE", value_name = "URL")]
    pub(crate) advertise: Option<String>,

    /// Name of this server among those of --store; without it, host name and port of --advertise
    #[arg(long, env = "KEYPEG_SERVER_NAME", value_name = "NAME")]
    pub(crate) server_name: Option<String>,

    /// Number of shards of a new installation, 1 to 128, fixed from then on [default: 16]
    ///
    /// The pools are spread over the shards, and a shard is served by one server at a time.
    #[arg(long, env = "KEYPEG_SHARDS", value_name = "N")]
    pub(crate) shards: Option<Bounded<1, SHARDS_MAX>>,

    /// Authorities in PEM that sign the certificates of the other servers
    ///
    /// Without it, those that the operating system trusts.
    #[arg(long, env = "KEYPEG_CLUSTER_CA", value_name = "FILE")]
    pub(crate) cluster_ca: Option<FilePath>,

    /// Lease TTL of the default pool, 1ms to 168h, such as 500ms or 1m30s [default: 60s]
    ///
    /// Applies only to new data: an existing data directory keeps its stored policy.
    #[arg(long, env = "KEYPEG_LEASE_TTL", value_name = "DURATION")]
    pub(crate) lease_ttl: Option<HumanDuration>,

    /// Time after which a key without keep-alive is deleted, in a new default pool [default: 5m]
    ///
    /// Applies only to new data: an existing data directory keeps its stored policy.
    #[arg(long, env = "KEYPEG_KEEPALIVE_TTL", value_name = "DURATION")]
    pub(crate) keepalive_ttl: Option<HumanDuration>,

    /// Threads that answer HTTP, 1 to 256; by default the number of processors minus one, at least 1
    ///
    /// Without --store, one more thread changes all pools; with it, each shard has a thread.
    #[arg(long, env = "KEYPEG_HTTP_THREADS", value_name = "N")]
    pub(crate) http_threads: Option<Bounded<1, HTTP_THREADS_MAX>>,

    /// Requests that may be queued, per HTTP thread, 16 to 16384 [default: 16384]
    ///
    /// Beyond it, new work is refused with 503. The same number again is reserved for releases,
    /// renewals, keep-alives and deletions.
    #[arg(long, env = "KEYPEG_MAX_QUEUED", value_name = "N")]
    pub(crate) max_queued: Option<Bounded<16, QUEUE_MAX>>,

    /// Pools with metrics of their own, 0 to 10000; all others are summed up [default: 1000]
    #[arg(long, env = "KEYPEG_METRICS_POOLS", value_name = "N")]
    pub(crate) metrics_pools: Option<Bounded<0, 10_000>>,

    /// Memory that the server may take, 64MiB to 16TiB, such as 512MiB
    ///
    /// By default half of the machine's memory, or three quarters of the limit of the control group
    /// if that is less. Beyond it, the server refuses what would take more.
    #[arg(long, env = "KEYPEG_MEMORY", value_name = "SIZE")]
    pub(crate) memory: Option<MemorySize>,

    /// File with the key that encrypts the values of keys on the disk; see `keypeg seal new`
    ///
    /// A new data directory is sealed with the first key of the file. A sealed one starts only with
    /// its key.
    #[arg(long, env = "KEYPEG_SEAL_KEY", value_name = "FILE")]
    pub(crate) seal_key: Option<FilePath>,

    /// Seal a data directory that is not sealed with --seal-key, before the server listens
    #[arg(long, env = "KEYPEG_SEAL_EXISTING", value_name = "BOOL")]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) seal_existing: Option<Switch>,

    /// Access token file, reloaded within a second of a change; see `keypeg token new`
    ///
    /// Without it, every client that can connect may do everything.
    #[arg(long, env = "KEYPEG_TOKENS", value_name = "FILE")]
    pub(crate) tokens: Option<FilePath>,

    /// Certificate chain in PEM, the server's first; with --tls-key the server speaks HTTPS
    ///
    /// Both files are reloaded within a second of a change.
    #[arg(long, env = "KEYPEG_TLS_CERT", value_name = "FILE")]
    pub(crate) tls_cert: Option<FilePath>,

    /// Private key of the certificate in PEM, not encrypted
    #[arg(long, env = "KEYPEG_TLS_KEY", value_name = "FILE")]
    pub(crate) tls_key: Option<FilePath>,

    /// Authorities of client certificates in PEM; the token file names the certificates
    #[arg(long, env = "KEYPEG_TLS_CLIENT_CA", value_name = "FILE")]
    pub(crate) tls_client_ca: Option<FilePath>,

    /// Audit log file: one line of JSON per change, with caller, operation and outcome
    #[arg(long, env = "KEYPEG_AUDIT", value_name = "FILE")]
    pub(crate) audit: Option<FilePath>,

    /// Size in MiB at which the audit log is rotated, 1 to 65536 [default: 64]
    #[arg(long, env = "KEYPEG_AUDIT_MIB", value_name = "N")]
    pub(crate) audit_mib: Option<Bounded<1, 65_536>>,

    /// Rotated audit log files to keep, 0 to 1000 [default: 8]
    #[arg(long, env = "KEYPEG_AUDIT_KEEP", value_name = "N")]
    pub(crate) audit_keep: Option<Bounded<0, 1_000>>,

    /// Format of the log on stderr: text, or json for one object per line [default: text]
    #[arg(long, env = "KEYPEG_LOG_FORMAT", value_name = "FORMAT")]
    pub(crate) log_format: Option<LogFormat>,

    /// Accept requests whose Host header has this name; may be repeated, * accepts any name
    #[arg(long, env = "KEYPEG_ALLOW_HOST", value_name = "NAME", value_delimiter = ',')]
    #[serde(default, deserialize_with = "value::host_names")]
    pub(crate) allow_host: Option<Vec<String>>,

    /// Addresses or networks of proxies, whose Forwarded or X-Forwarded-For name the caller
    ///
    /// The caller's address counts for the audit log, limits and shares. These proxies speak TLS with
    /// the clients: with --tokens, the server may listen beyond this machine without TLS of its own.
    #[arg(long, env = "KEYPEG_BEHIND_PROXY", value_name = "ADDR", value_delimiter = ',')]
    pub(crate) behind_proxy: Option<Vec<ProxyNet>>,

    /// Time after which an idle connection is closed, 100ms to 24h [default: 75s]
    ///
    /// Use more than the idle time of the load balancer or proxy in front of the server.
    #[arg(long, env = "KEYPEG_IDLE_TIMEOUT", value_name = "DURATION")]
    pub(crate) idle_timeout: Option<Timeout>,

    /// Time within which a request head must be complete, 100ms to 24h [default: 10s]
    #[arg(long, env = "KEYPEG_HEAD_TIMEOUT", value_name = "DURATION")]
    pub(crate) head_timeout: Option<Timeout>,

    /// Time within which a request body must be complete, 100ms to 24h [default: 30s]
    #[arg(long, env = "KEYPEG_BODY_TIMEOUT", value_name = "DURATION")]
    pub(crate) body_timeout: Option<Timeout>,

    /// Time without progress after which a response is given up, 100ms to 24h [default: 30s]
    #[arg(long, env = "KEYPEG_WRITE_TIMEOUT", value_name = "DURATION")]
    pub(crate) write_timeout: Option<Timeout>,

    /// Lowest rate in KiB/s at which a client must read a response, 0 to 1048576 [default: 16]
    ///
    /// A slower client is disconnected; 0 sets no limit. Event streams have no lowest rate: their
    /// client is disconnected if it does not read one frame within --write-timeout.
    #[arg(long, env = "KEYPEG_WRITE_RATE", value_name = "N")]
    pub(crate) write_rate: Option<Bounded<0, 1_048_576>>,

    /// Allow an address beyond this machine without TLS or without tokens
    ///
    /// Without TLS, keys and tokens can be read on the network. Without --tokens, every client that
    /// can connect gets every key.
    #[arg(long, env = "KEYPEG_INSECURE_LISTEN", value_name = "BOOL")]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) insecure_listen: Option<Switch>,
}

impl Options {
    /// Returns these options, and those of `other` where these have none.
    pub(crate) fn or(self, other: Self) -> Self {
        Self {
            config: self.config.or(other.config),
            listen: self.listen.or(other.listen),
            ops_listen: self.ops_listen.or(other.ops_listen),
            data: self.data.or(other.data),
            existing: self.existing.or(other.existing),
            ephemeral: self.ephemeral.or(other.ephemeral),
            store: self.store.or(other.store),
            advertise: self.advertise.or(other.advertise),
            server_name: self.server_name.or(other.server_name),
            shards: self.shards.or(other.shards),
            cluster_ca: self.cluster_ca.or(other.cluster_ca),
            lease_ttl: self.lease_ttl.or(other.lease_ttl),
            keepalive_ttl: self.keepalive_ttl.or(other.keepalive_ttl),
            http_threads: self.http_threads.or(other.http_threads),
            max_queued: self.max_queued.or(other.max_queued),
            metrics_pools: self.metrics_pools.or(other.metrics_pools),
            memory: self.memory.or(other.memory),
            seal_key: self.seal_key.or(other.seal_key),
            seal_existing: self.seal_existing.or(other.seal_existing),
            tokens: self.tokens.or(other.tokens),
            tls_cert: self.tls_cert.or(other.tls_cert),
            tls_key: self.tls_key.or(other.tls_key),
            tls_client_ca: self.tls_client_ca.or(other.tls_client_ca),
            audit: self.audit.or(other.audit),
            audit_mib: self.audit_mib.or(other.audit_mib),
            audit_keep: self.audit_keep.or(other.audit_keep),
            log_format: self.log_format.or(other.log_format),
            allow_host: self.allow_host.or(other.allow_host),
            behind_proxy: self.behind_proxy.or(other.behind_proxy),
            idle_timeout: self.idle_timeout.or(other.idle_timeout),
            head_timeout: self.head_timeout.or(other.head_timeout),
            body_timeout: self.body_timeout.or(other.body_timeout),
            write_timeout: self.write_timeout.or(other.write_timeout),
            write_rate: self.write_rate.or(other.write_rate),
            insecure_listen: self.insecure_listen.or(other.insecure_listen),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{Arg, Command, FromArgMatches as _};

    const OPERATIONS: &str =
        concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/operations/options.md");

    /// Returns the cells of an option's row in the document: flag, variable, file key, default.
    fn row(argument: &Arg) -> [String; 4] {
        let flag = argument.get_long().expect("a long flag");
        let variable = argument.get_env().expect("a variable").display();
        let help = argument.get_help().expect("a help text").to_string();
        let default = match help.split_once("[default: ") {
            Some((_, default)) => format!("`{}`", default.trim_end_matches(']')),
            None if argument.get_possible_values().is_empty() => "none".into(),
            None => "`false`".into(),
        };
        let key = match flag {
            "config" => "none".into(),
            _ => format!("`{}`", flag.replace('-', "_")),
        };
        [format!("`--{flag}`"), format!("`{variable}`"), key, default]
    }

    #[test]
    fn the_document_has_a_row_for_each_option() {
        let document = std::fs::read_to_string(OPERATIONS).unwrap();
        let (table, _) = document.split_once("\n## ").unwrap();
        let rows = table.lines().filter(|line| line.starts_with("| `--"));
        let documented: Vec<_> = rows
            .map(|row| row.split('|').skip(1).map(|cell| cell.trim().to_owned()))
            .map(|cells| cells.take(4).collect::<Vec<_>>())
            .collect();
        let command = Options::augment_args(Command::new("serve"));
        let expected: Vec<_> = command.get_arguments().map(row).collect();
        assert_eq!(documented, expected);
    }

    #[test]
    fn the_file_has_a_key_for_each_flag_but_config() {
        let command = Options::augment_args(Command::new("serve"));
        for flag in command.get_arguments().filter_map(Arg::get_long) {
            let key = flag.replace('-', "_");
            let error = toml::from_str::<Options>(&format!("{key} = {{}}")).unwrap_err();
            let is_unknown = error.message().contains("unknown field");
            assert_eq!(is_unknown, flag == "config", "{key}: {error}");
        }
    }

    #[test]
    fn the_file_of_the_document_is_valid() {
        let document = std::fs::read_to_string(OPERATIONS).unwrap();
        let (_, section) = document.split_once("cat > keypeg.toml <<'END'\n").unwrap();
        let (file, _) = section.split_once("\nEND\n").unwrap();
        toml::from_str::<Options>(file).unwrap();
    }

    #[test]
    fn every_key_is_read() {
        let text = "listen = \"[::1]:9\"\nops_listen = \"[::1]:10\"\ndata = 'd'\nexisting = false\nephemeral = true\n\
                    store = 'postgres://h/d'\nadvertise = 'http://h:1'\nserver_name = 'n'\nshards = 4\n\
                    cluster_ca = 'cca'\n\
                    lease_ttl = \"2s\"\nkeepalive_ttl = \"1h\"\nhttp_threads = 3\nmax_queued = 64\nmetrics_pools = 7\nmemory = '1GiB'\n\
                    seal_key = 's'\nseal_existing = true\n\
                    insecure_listen = false\ntokens = 't'\ntls_cert = 'c'\n\
                    tls_key = 'k'\ntls_client_ca = 'ca'\naudit = 'a'\naudit_mib = 1\n\
                    audit_keep = 0\nlog_format = 'json'\nallow_host = ['h']\nbehind_proxy = ['::1']\nidle_timeout = \"10m\"\n\
                    head_timeout = \"1s\"\nbody_timeout = \"2s\"\nwrite_timeout = \"3s\"\n\
                    write_rate = 8\n";
        let file: Options = toml::from_str(text).unwrap();
        let line = "--listen [::1]:9 --ops-listen [::1]:10 --data d --existing=false --ephemeral \
                    --store postgres://h/d --advertise http://h:1 --server-name n --shards 4 --cluster-ca cca --lease-ttl 2s \
                    --keepalive-ttl 1h --http-threads 3 --max-queued 64 --metrics-pools 7 --memory 1GiB --seal-key s --seal-existing --insecure-listen=false --tokens t \
                    --tls-cert c --tls-key k --tls-client-ca ca \
                    --audit a --audit-mib 1 --audit-keep 0 --log-format json --allow-host h --behind-proxy ::1 --idle-timeout 10m \
                    --head-timeout 1s --body-timeout 2s --write-timeout 3s --write-rate 8";
        let command = Options::augment_args(Command::new("serve").no_binary_name(true));
        let matches = command.try_get_matches_from(line.split_whitespace()).unwrap();
        let flags = Options::from_arg_matches(&matches).unwrap();
        assert_eq!(file, flags);
        assert_eq!(Options::default().or(file), flags);
        let other = toml::from_str("lease_ttl = '9s'\nexisting = true").unwrap();
        assert_eq!(flags.or(other).lease_ttl, Some("2s".parse().unwrap()));
    }
}
