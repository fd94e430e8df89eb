//! What the server is told: the command line, `KEYPEG_*` and the file, read once and checked.
//!
//! A flag wins over the environment, the environment over the file, the file over the default. A
//! variable that is set but
//! empty is an error: it is a script's mistake, not a wish.

use crate::access::{AuditSettings, Hosts, Mint};
use crate::failure::{Failure, exit};
use crate::file::File;
use clap::builder::BoolishValueParser;
use clap::{Args, CommandFactory, Parser, Subcommand, value_parser};
use keypeg_engine::LANE_MAX;
use keypeg_engine::core::{DURATION_MAX_MS, Policy, PolicyPatch};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

/// Lends API keys from pools: exclusive, fenced, exact in time, durable.
#[derive(Debug, Parser)]
#[command(name = "keypeg", version)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What the program can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Runs the server
    Serve(Box<ServeArgs>),
    /// Asks a running server
    #[cfg(feature = "cli")]
    #[command(flatten)]
    Ask(crate::cli::Ask),
    /// Tells what a start would make of a data directory, and changes nothing in it
    Check(CheckArgs),
    /// Makes access tokens
    #[command(subcommand)]
    Token(Mint),
}

/// The options of `keypeg check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// The data directory
    #[arg(long, env = "KEYPEG_DATA", value_name = "DIR", default_value = "./keypeg-data")]
    pub data: PathBuf,
}

/// The options of `keypeg serve`.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// A file of these options, in TOML: a flag or a variable wins over it
    #[arg(long, env = "KEYPEG_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,

    /// Address and port to listen on; port 0 takes any free one [default: 127.0.0.1:8000]
    #[arg(long, env = "KEYPEG_LISTEN", value_name = "ADDR:PORT")]
    listen: Option<SocketAddr>,

    /// Directory that keeps everything; made when it is not there [default: ./keypeg-data]
    #[arg(long, env = "KEYPEG_DATA", value_name = "DIR")]
    data: Option<PathBuf>,

    /// Refuses to make the directory: for volumes that may not be mounted yet
    #[arg(long, env = "KEYPEG_EXISTING", value_name = "BOOL", value_parser = BoolishValueParser::new())]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    existing: Option<bool>,

    /// Keeps everything in memory alone: --data is not used, and a restart forgets all
    #[arg(long, env = "KEYPEG_EPHEMERAL", value_name = "BOOL", value_parser = BoolishValueParser::new())]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    ephemeral: Option<bool>,

    /// How long a lease of the default pool lasts, such as 500ms, 2s, 5m or 1h [default: 60s]
    ///
    /// Only for a new directory: a stored policy stands.
    #[arg(long, env = "KEYPEG_LEASE_TTL", value_name = "LENGTH", value_parser = length_ms)]
    lease_ttl: Option<u64>,

    /// How long a key of the default pool lives without a keep-alive [default: 5m]
    ///
    /// Only for a new directory: a stored policy stands.
    #[arg(long, env = "KEYPEG_KEEPALIVE_TTL", value_name = "LENGTH", value_parser = length_ms)]
    keepalive_ttl: Option<u64>,

    /// How many requests of each core may wait for the engine before new work is refused with 503,
    /// 16 to 16384 [default: 16384]
    ///
    /// As many again are kept for releases, renewals, keep-alives and deletions.
    #[arg(long, env = "KEYPEG_MAX_QUEUED", value_name = "N", value_parser = max_queued)]
    max_queued: Option<usize>,

    /// A file of access tokens, read anew within a second of a change; see `keypeg token new`
    ///
    /// Without it everybody who can connect may do everything.
    #[arg(long, env = "KEYPEG_TOKENS", value_name = "FILE")]
    tokens: Option<PathBuf>,

    /// A file that is told of each change: who, what, and what came of it
    #[arg(long, env = "KEYPEG_AUDIT", value_name = "FILE")]
    audit: Option<PathBuf>,

    /// MiB after which another file of the audit log is begun [default: 64]
    #[arg(long, env = "KEYPEG_AUDIT_MIB", value_name = "N", value_parser = value_parser!(u32).range(1..=65_536))]
    audit_mib: Option<u32>,

    /// Older files of the audit log that are kept [default: 8]
    #[arg(long, env = "KEYPEG_AUDIT_KEEP", value_name = "N", value_parser = value_parser!(u32).range(0..=1_000))]
    audit_keep: Option<u32>,

    /// A name this server goes by, beside localhost and addresses; may be said again, * is any
    #[arg(
        long = "allow-host",
        env = "KEYPEG_ALLOW_HOST",
        value_name = "NAME",
        value_delimiter = ','
    )]
    allow_hosts: Vec<String>,

    /// Allows to listen beyond this machine, where everybody who can connect has every key
    #[arg(long, env = "KEYPEG_INSECURE_LISTEN", value_name = "BOOL", value_parser = BoolishValueParser::new())]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    insecure_listen: Option<bool>,
}

/// Where to listen when nothing else is said.
const LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8000);
/// The fewest requests that `--max-queued` lets wait.
const MAX_QUEUED_MIN: usize = 16;
/// The directory when nothing else is said.
const DATA: &str = "./keypeg-data";

/// MiB of an audit file when nothing else is said.
const AUDIT_MIB: u32 = 64;
/// Older audit files that are kept when nothing else is said.
const AUDIT_KEEP: u32 = 8;

/// What the server is told, checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where to listen.
    pub listen: SocketAddr,
    /// The directory that keeps everything; `None` keeps it in memory.
    pub data: Option<PathBuf>,
    /// Whether that directory must be there already.
    pub existing: bool,
    /// The default pool's policy when the directory is made new.
    pub default_policy: Policy,
    /// Whether that policy was asked for, rather than being the default.
    pub policy_asked: bool,
    /// The most keys in all pools together.
    pub max_keys: u64,
    /// Requests of a core that may wait for the engine.
    pub max_queued: usize,
    /// The file of access tokens; `None` where everybody may do everything.
    pub tokens: Option<PathBuf>,
    /// Where what was done is told.
    pub(crate) audit: Option<AuditSettings>,
    /// The names this server goes by.
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
                format!("{} is set but empty: unset it or give it a value\n", variable.display());
            return Err(clap::Error::raw(clap::error::ErrorKind::InvalidValue, message));
        }
    }
    Ok(())
}

impl Config {
    /// Reads the file, if one is named, and checks what was given as a whole.
    pub fn new(args: ServeArgs) -> Result<Self, Failure> {
        let file = args.config.as_deref().map(File::read).transpose()?.unwrap_or_default();
        let listen = args.listen.or(file.listen).unwrap_or(LISTEN);
        let lease_ttl_ms = args.lease_ttl.or(file.lease_ttl_ms);
        let keepalive_ttl_ms = args.keepalive_ttl.or(file.keepalive_ttl_ms);
        let insecure_listen = args.insecure_listen.or(file.insecure_listen).unwrap_or(false);
        let tokens = args.tokens.or(file.tokens);
        if !listen.ip().is_loopback() && !insecure_listen {
            let why = if tokens.is_some() {
                "send keys and tokens for all on the way to read, since there is no TLS yet"
            } else {
                "give every key to whoever can connect"
            };
            return Err(Failure::new(
                exit::CONFIG,
                format!(
                    "listening on {listen} would {why}: \
                     listen on 127.0.0.1 or [::1], or say --insecure-listen"
                ),
            ));
        }
        let named =
            if args.allow_hosts.is_empty() { file.allow_hosts } else { Some(args.allow_hosts) };
        let hosts = Hosts::new(&named.unwrap_or_default()).ok_or_else(|| {
            let message =
                "--allow-host takes names without scheme and port, such as keys.example, or *";
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
        let default_policy = Policy::default().with_patch(patch).map_err(|wrong| {
            Failure::new(exit::CONFIG, format!("{} must be {}", wrong.field, wrong.allowed))
        })?;
        let ephemeral = args.ephemeral.or(file.ephemeral).unwrap_or(false);
        let data = args.data.or(file.data).unwrap_or_else(|| DATA.into());
        Ok(Self {
            listen,
            data: (!ephemeral).then_some(data),
            existing: args.existing.or(file.existing).unwrap_or(false),
            default_policy,
            policy_asked: lease_ttl_ms.is_some() || keepalive_ttl_ms.is_some(),
            max_keys: crate::memory::max_keys(),
            max_queued: args.max_queued.or(file.max_queued).unwrap_or(LANE_MAX),
            tokens,
            audit,
            hosts,
        })
    }
}

/// Reads how many requests may wait.
pub(crate) fn max_queued(text: &str) -> Result<usize, String> {
    let count = text.parse().ok().filter(|count| (MAX_QUEUED_MIN..=LANE_MAX).contains(count));
    count.ok_or_else(|| format!("must be {MAX_QUEUED_MIN}..{LANE_MAX}"))
}

/// Reads a length such as `500ms`, `2s`, `5m` or `1h`, of 1 ms to 7 days.
pub(crate) fn length_ms(text: &str) -> Result<u64, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let unit_ms = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err("a length is a whole number and ms, s, m or h, such as 500ms or 5m".into()),
    };
    number
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(unit_ms))
        .filter(|ms| (1..=DURATION_MAX_MS).contains(ms))
        .ok_or_else(|| "a length is 1ms to 168h (7 days)".into())
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
    fn lengths_have_a_unit_and_a_range() {
        for (text, ms) in [
            ("500ms", 500),
            ("2s", 2_000),
            ("5m", 300_000),
            ("1h", 3_600_000),
            ("168h", 604_800_000),
        ] {
            assert_eq!(length_ms(text), Ok(ms), "{text}");
        }
        for bad in ["", "5", "s", "0s", "-1s", "1.5s", "1 s", "1d", "169h", "99999999999999999999h"]
        {
            assert!(length_ms(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn defaults_need_no_configuration() {
        let config = config("keypeg serve").unwrap();
        assert_eq!(config.listen.to_string(), "127.0.0.1:8000");
        assert_eq!(config.data, Some("./keypeg-data".into()));
        assert_eq!(config.default_policy, Policy::default());
        assert!(!config.policy_asked);
    }

    #[test]
    fn what_is_given_is_taken_or_refused() {
        let both = config("keypeg serve --lease-ttl 300ms --keepalive-ttl 1s").unwrap();
        assert_eq!(both.default_policy.lease_ttl_ms, 300);
        assert_eq!(both.default_policy.keepalive_ttl_ms, Some(1_000));
        assert!(both.policy_asked);
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
