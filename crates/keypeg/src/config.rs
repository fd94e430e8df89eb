//! The configuration: the command line, `KEYPEG_*` variables and the file, read once and checked.
//!
//! A flag takes precedence over a variable, a variable over the file, the file over the default. A
//! variable that is set but empty is an error: in practice it is a mistake in a script.

use crate::access::{AuditSettings, Hosts, TokenCommand};
use crate::failure::{Failure, exit};
use crate::file::File;
use clap::builder::BoolishValueParser;
use clap::{Args, CommandFactory, Parser, Subcommand, value_parser};
use keypeg_core::{DURATION_MAX_MS, Policy, PolicyPatch};
use keypeg_store::LANE_MAX;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

/// Server that lends API keys from pools under exclusive, durable leases with fencing tokens
#[derive(Debug, Parser)]
#[command(name = "keypeg", version)]
pub struct Cli {
    /// The command to run.
    #[command(subcommand)]
    pub command: Command,
}

/// A command of the program.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the server
    Serve(Box<ServeArgs>),
    /// Call a running server
    #[cfg(feature = "cli")]
    #[command(flatten)]
    Client(crate::cli::ClientCommand),
    /// Check a data directory without changing it, and report what a start would recover
    Check(CheckArgs),
    /// Create access tokens
    #[command(subcommand)]
    Token(TokenCommand),
}

/// The options of `keypeg check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Data directory
    #[arg(long, env = "KEYPEG_DATA", value_name = "DIR", default_value = "./keypeg-data")]
    pub data: PathBuf,
}

/// The options of `keypeg serve`.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// Configuration file in TOML; flags and environment variables take precedence
    #[arg(long, env = "KEYPEG_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,

    /// Address and port to listen on; port 0 selects a free port [default: 127.0.0.1:8000]
    #[arg(long, env = "KEYPEG_LISTEN", value_name = "ADDR:PORT")]
    listen: Option<SocketAddr>,

    /// Data directory, created if it does not exist [default: ./keypeg-data]
    #[arg(long, env = "KEYPEG_DATA", value_name = "DIR")]
    data: Option<PathBuf>,

    /// Refuse to create the data directory, for volumes that may not be mounted yet
    #[arg(long, env = "KEYPEG_EXISTING", value_name = "BOOL")]
    #[arg(value_parser = BoolishValueParser::new())]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    existing: Option<bool>,

    /// Keep all data in memory only: --data is ignored, and a restart loses everything
    #[arg(long, env = "KEYPEG_EPHEMERAL", value_name = "BOOL")]
    #[arg(value_parser = BoolishValueParser::new())]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    ephemeral: Option<bool>,

    /// Lease TTL of the default pool, such as 500ms, 2s, 5m or 1h [default: 60s]
    ///
    /// Applies only to new data: an existing data directory keeps its stored policy.
    #[arg(long, env = "KEYPEG_LEASE_TTL", value_name = "DURATION", value_parser = duration_ms)]
    lease_ttl: Option<u64>,

    /// Time after which a key of the default pool is purged without a keep-alive [default: 5m]
    ///
    /// Applies only to new data: an existing data directory keeps its stored policy.
    #[arg(long, env = "KEYPEG_KEEPALIVE_TTL", value_name = "DURATION", value_parser = duration_ms)]
    keepalive_ttl: Option<u64>,

    /// Requests per core that may wait for the engine, 16 to 16384 [default: 16384]
    ///
    /// Beyond it, new work is refused with 503. The same number again is reserved for releases,
    /// renewals, keep-alives and deletions.
    #[arg(long, env = "KEYPEG_MAX_QUEUED", value_name = "N", value_parser = max_queued)]
    max_queued: Option<usize>,

    /// Access token file, reloaded within a second of a change; see `keypeg token new`
    ///
    /// Without it, every client that can connect may do everything.
    #[arg(long, env = "KEYPEG_TOKENS", value_name = "FILE")]
    tokens: Option<PathBuf>,

    /// Audit log file: one line of JSON per change, with caller, operation and outcome
    #[arg(long, env = "KEYPEG_AUDIT", value_name = "FILE")]
    audit: Option<PathBuf>,

    /// Size in MiB at which the audit log is rotated [default: 64]
    #[arg(long, env = "KEYPEG_AUDIT_MIB", value_name = "N")]
    #[arg(value_parser = value_parser!(u32).range(1..=65_536))]
    audit_mib: Option<u32>,

    /// Rotated audit log files to keep [default: 8]
    #[arg(long, env = "KEYPEG_AUDIT_KEEP", value_name = "N")]
    #[arg(value_parser = value_parser!(u32).range(0..=1_000))]
    audit_keep: Option<u32>,

    /// Host name of this server besides localhost and IP addresses; may be repeated, * allows any
    #[arg(
        long = "allow-host",
        env = "KEYPEG_ALLOW_HOST",
        value_name = "NAME",
        value_delimiter = ','
    )]
    allow_hosts: Vec<String>,

    /// Allow a --listen address beyond this machine, although there is no TLS
    ///
    /// Keys and tokens can be read on the network. Without --tokens, every client that can connect
    /// gets every key.
    #[arg(long, env = "KEYPEG_INSECURE_LISTEN", value_name = "BOOL")]
    #[arg(value_parser = BoolishValueParser::new())]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    insecure_listen: Option<bool>,
}

/// The default listen address.
const LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8000);
/// The smallest `--max-queued`.
const MAX_QUEUED_MIN: usize = 16;
/// The default data directory.
const DATA: &str = "./keypeg-data";

/// The default size of an audit log file, in MiB.
const AUDIT_MIB: u32 = 64;
/// The default number of rotated audit log files to keep.
const AUDIT_KEEP: u32 = 8;

/// The checked configuration of a server.
#[derive(Clone, Debug)]
pub struct Config {
    /// The listen address.
    pub listen: SocketAddr,
    /// The data directory; `None` keeps all data in memory.
    pub data: Option<PathBuf>,
    /// Whether the data directory must already exist.
    pub existing: bool,
    /// The default pool's policy in a new data directory.
    pub default_policy: Policy,
    /// Whether a flag, a variable or the file set part of that policy.
    pub policy_given: bool,
    /// The maximum number of keys in all pools together.
    pub max_keys: u64,
    /// Requests of a core that may wait for the engine.
    pub max_queued: usize,
    /// The access token file; `None` lets every client do everything.
    pub tokens: Option<PathBuf>,
    /// The settings of the audit log; `None` writes none.
    pub(crate) audit: Option<AuditSettings>,
    /// The host names of this server.
    pub hosts: Hosts,
}

impl Cli {
    /// Reads the command line and the environment.
    pub fn read() -> Result<Self, clap::Error> {
        refuse_empty_variables(&Self::command())?;
        Self::try_parse()
    }
}

fn refuse_empty_variables(command: &clap::Command) -> Result<(), clap::Error> {
    for argument in command.get_subcommands().flat_map(clap::Command::get_arguments) {
        let Some(variable) = argument.get_env() else { continue };
        if std::env::var_os(variable).is_some_and(|value| value.is_empty()) {
            let message =
                format!("{} is set but empty: unset it, or set a value\n", variable.display());
            return Err(clap::Error::raw(clap::error::ErrorKind::InvalidValue, message));
        }
    }
    Ok(())
}

impl Config {
    /// Combines arguments, variables and the file, if one is named, and checks the result.
    pub fn new(args: ServeArgs) -> Result<Self, Failure> {
        let file = args.config.as_deref().map(File::read).transpose()?.unwrap_or_default();
        let listen = args.listen.or(file.listen).unwrap_or(LISTEN);
        let lease_ttl_ms = args.lease_ttl.or(file.lease_ttl_ms);
        let keepalive_ttl_ms = args.keepalive_ttl.or(file.keepalive_ttl_ms);
        let insecure_listen = args.insecure_listen.or(file.insecure_listen).unwrap_or(false);
        let tokens = args.tokens.or(file.tokens);
        if !listen.ip().is_loopback() && !insecure_listen {
            let risk = if tokens.is_some() {
                "there is no TLS, and keys and tokens could be read on the network"
            } else {
                "without --tokens, every client that can connect would get every key"
            };
            return Err(Failure::new(
                exit::CONFIG,
                format!(
                    "--listen {listen} is refused: {risk}; \
                     listen on 127.0.0.1 or [::1], or add --insecure-listen"
                ),
            ));
        }
        let names =
            if args.allow_hosts.is_empty() { file.allow_hosts } else { Some(args.allow_hosts) };
        let hosts = Hosts::new(&names.unwrap_or_default()).map_err(|name| {
            let message = format!(
                "--allow-host {name:?} is not a host name: \
                 use a name without scheme and port, such as keys.example, or *"
            );
            Failure::new(exit::CONFIG, message)
        })?;
        let audit_mib = args.audit_mib.or(file.audit_mib).unwrap_or(AUDIT_MIB);
        let audit_keep = args.audit_keep.or(file.audit_keep).unwrap_or(AUDIT_KEEP);
        let audit = args.audit.or(file.audit).map(|path| AuditSettings {
            path,
            file_max: u64::from(audit_mib) << 20,
            keep: audit_keep,
        });
        let patch = PolicyPatch {
            lease_ttl_ms,
            keepalive_ttl_ms: keepalive_ttl_ms.map(Some),
            ..PolicyPatch::default()
        };
        let default_policy = Policy::default().with_patch(patch).map_err(|error| {
            Failure::new(exit::CONFIG, format!("{} must be {}", error.field, error.allowed))
        })?;
        let ephemeral = args.ephemeral.or(file.ephemeral).unwrap_or(false);
        let data = args.data.or(file.data).unwrap_or_else(|| DATA.into());
        Ok(Self {
            listen,
            data: (!ephemeral).then_some(data),
            existing: args.existing.or(file.existing).unwrap_or(false),
            default_policy,
            policy_given: lease_ttl_ms.is_some() || keepalive_ttl_ms.is_some(),
            max_keys: crate::memory::max_keys(),
            max_queued: args.max_queued.or(file.max_queued).unwrap_or(LANE_MAX),
            tokens,
            audit,
            hosts,
        })
    }
}

/// Parses `--max-queued`.
pub(crate) fn max_queued(text: &str) -> Result<usize, String> {
    let count = text.parse().ok().filter(|count| (MAX_QUEUED_MIN..=LANE_MAX).contains(count));
    count.ok_or_else(|| format!("must be {MAX_QUEUED_MIN} to {LANE_MAX}"))
}

/// Parses a duration such as `500ms`, `2s`, `5m` or `1h`, from 1 ms to 7 days, in milliseconds.
pub(crate) fn duration_ms(text: &str) -> Result<u64, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let unit_ms = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => {
            let message =
                "a duration is a whole number followed by ms, s, m or h, such as 500ms or 5m";
            return Err(message.into());
        }
    };
    number
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(unit_ms))
        .filter(|ms| (1..=DURATION_MAX_MS).contains(ms))
        .ok_or_else(|| "a duration must be 1ms to 168h (7 days)".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(line: &str) -> Result<Config, u8> {
        let cli = Cli::try_parse_from(line.split_whitespace()).map_err(|_| exit::USAGE)?;
        let Command::Serve(args) = cli.command else { return Err(exit::USAGE) };
        Config::new(*args).map_err(|failure| failure.exit)
    }

    #[test]
    fn durations_have_a_unit_and_a_range() {
        for (text, ms) in [
            ("500ms", 500),
            ("2s", 2_000),
            ("5m", 300_000),
            ("1h", 3_600_000),
            ("168h", 604_800_000),
        ] {
            assert_eq!(duration_ms(text), Ok(ms), "{text}");
        }
        for bad in ["", "5", "s", "0s", "-1s", "1.5s", "1 s", "1d", "169h", "99999999999999999999h"]
        {
            assert!(duration_ms(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn defaults_need_no_configuration() {
        let config = config("keypeg serve").unwrap();
        assert_eq!(config.listen.to_string(), "127.0.0.1:8000");
        assert_eq!(config.data, Some("./keypeg-data".into()));
        assert_eq!(config.default_policy, Policy::default());
        assert!(!config.policy_given);
    }

    #[test]
    fn options_are_accepted_or_refused() {
        let both = config("keypeg serve --lease-ttl 300ms --keepalive-ttl 1s").unwrap();
        assert_eq!(both.default_policy.lease_ttl_ms, 300);
        assert_eq!(both.default_policy.keepalive_ttl_ms, Some(1_000));
        assert!(both.policy_given);
        assert_eq!(config("keypeg serve --ephemeral").unwrap().data, None);
        for (line, code) in [
            ("keypeg serve --listen 0.0.0.0:8000", exit::CONFIG),
            ("keypeg serve --listen [::]:0", exit::CONFIG),
            ("keypeg serve --listen 8000", exit::USAGE),
            ("keypeg serve --lease-ttl soon", exit::USAGE),
            ("keypeg serve --lease", exit::USAGE),
            ("keypeg", exit::USAGE),
        ] {
            assert_eq!(config(line).map(|_| ()), Err(code), "{line}");
        }
        for line in
            ["keypeg serve --listen [::1]:0", "keypeg serve --listen 0.0.0.0:0 --insecure-listen"]
        {
            assert!(config(line).is_ok(), "{line}");
        }
    }
}
