//! The URL of the store: what belongs to the log, and what to PostgreSQL.

use keypeg_log::LogError;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;
use tokio_postgres::Config;
use tokio_postgres::config::{Host, LoadBalanceHosts, SslMode, TargetSessionAttrs};
use url::form_urlencoded;

/// The parameters that a URL can have beside those of PostgreSQL, with their values.
pub const PARAMETERS: &str = "durability=replicated|storage, schema=NAME, timeout_s=1..60, \
    sslmode=require|disable, sslrootcert=FILE";
/// The allowed values of `timeout_s`.
pub const TIMEOUT_S: RangeInclusive<u64> = 1..=60;

const SCHEMA: &str = "keypeg";
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// How an acknowledged append survives the loss of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// PostgreSQL has synchronous standbys. A server without them is refused.
    Replicated,
    /// The storage below PostgreSQL is replicated, which PostgreSQL cannot show: the operator says
    /// so with `durability=storage`.
    Storage,
}

/// The settings of a log in PostgreSQL.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How to connect to each host of the URL.
    pub(crate) hosts: Vec<Config>,
    pub(crate) durability: Durability,
    /// The schema with the tables: letters, digits and underscores.
    pub(crate) schema: String,
    /// After this time a call ends, and its connection with it.
    pub(crate) timeout: Duration,
    /// The file with the authorities that sign the server's certificate.
    pub(crate) authorities: Option<PathBuf>,
}

impl FromStr for Settings {
    type Err = LogError;

    /// Reads `postgres://USER:PASSWORD@HOST[,HOST…]/DATABASE?PARAMETERS`.
    fn from_str(url: &str) -> Result<Self, LogError> {
        let (base, query) = url.split_once('?').unwrap_or((url, ""));
        if !base.starts_with("postgres://") && !base.starts_with("postgresql://") {
            return Err(invalid("it does not begin with postgres://"));
        }
        let mut durability = Durability::Replicated;
        let (mut schema, mut timeout) = (SCHEMA.to_owned(), DEFAULT_TIMEOUT);
        let (mut ssl_mode, mut authorities) = (None, None);
        let mut rest = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let parsed = form_urlencoded::parse(pair.as_bytes()).next();
            let (name, value) = parsed.ok_or_else(|| invalid("a parameter is not NAME=VALUE"))?;
            match &*name {
                "durability" => durability = parse_durability(&value)?,
                "schema" => schema = parse_schema(&value)?,
                "timeout_s" => timeout = parse_timeout(&value)?,
                "sslmode" => ssl_mode = Some(parse_ssl_mode(&value)?),
                "sslrootcert" => authorities = Some(PathBuf::from(&*value)),
                _ => rest.push(pair),
            }
        }
        let rest = rest.join("&");
        let whole = config(base, &rest)?;
        let ssl_mode = ssl_mode.unwrap_or_else(|| default_ssl_mode(&whole));
        let (before, names, after) = split_hosts(base);
        let hosts = names.split(',').map(|name| {
            let mut host = config(&format!("{before}{name}{after}"), &rest)?;
            complete(&mut host, ssl_mode);
            Ok(host)
        });
        let hosts = hosts.collect::<Result<_, _>>()?;
        Ok(Self { hosts, durability, schema, timeout, authorities })
    }
}

/// Splits a URL without parameters into what precedes its hosts, its hosts, and what follows them.
fn split_hosts(base: &str) -> (&str, &str, &str) {
    let authority = base.find("://").map_or(0, |at| at + 3);
    let end = base[authority..].find('/').map_or(base.len(), |at| authority + at);
    let begin = base[authority..end].rfind('@').map_or(authority, |at| authority + at + 1);
    (&base[..begin], &base[begin..end], &base[end..])
}

/// Reads a URL that has only parameters of PostgreSQL.
fn config(base: &str, parameters: &str) -> Result<Config, LogError> {
    let config = Config::from_str(&format!("{base}?{parameters}")).map_err(|error| {
        let cause = std::error::Error::source(&error)
            .map_or_else(String::new, |cause| format!(": {cause}"));
        invalid(&format!("{error}{cause}"))
    })?;
    if config.get_hosts().is_empty() {
        return Err(invalid("it names no host"));
    }
    if config.get_user().is_none_or(str::is_empty) {
        return Err(invalid("it names no user: postgres://USER@HOST/DATABASE"));
    }
    Ok(config)
}

/// Without TLS a password and all keys would cross the network as text.
fn default_ssl_mode(config: &Config) -> SslMode {
    let is_local = config.get_hosts().iter().all(is_loopback);
    if is_local { SslMode::Disable } else { SslMode::Require }
}

/// Sets what a URL leaves open.
fn complete(config: &mut Config, ssl_mode: SslMode) {
    config.ssl_mode(ssl_mode);
    // A name can have the addresses of several servers.
    config.load_balance_hosts(LoadBalanceHosts::Random);
    config.target_session_attrs(TargetSessionAttrs::ReadWrite);
    if config.get_connect_timeout().is_none() {
        config.connect_timeout(CONNECT_TIMEOUT);
    }
    if config.get_application_name().is_none() {
        config.application_name("keypeg");
    }
}

fn is_loopback(host: &Host) -> bool {
    match host {
        Host::Tcp(name) => {
            let name = name.trim_start_matches('[').trim_end_matches(']');
            name == "localhost" || name.parse().is_ok_and(|address: IpAddr| address.is_loopback())
        }
        Host::Unix(_) => true,
    }
}

fn parse_durability(value: &str) -> Result<Durability, LogError> {
    match value {
        "replicated" => Ok(Durability::Replicated),
        "storage" => Ok(Durability::Storage),
        _ => Err(parameter("durability", value, "replicated or storage")),
    }
}

fn parse_schema(value: &str) -> Result<String, LogError> {
    let is_allowed = |sign: char| sign.is_ascii_lowercase() || sign.is_ascii_digit() || sign == '_';
    let is_valid = (1..=63).contains(&value.len())
        && value.chars().all(is_allowed)
        && !value.starts_with(|sign: char| sign.is_ascii_digit())
        && !value.starts_with("pg_");
    if is_valid {
        return Ok(value.to_owned());
    }
    let allowed = "1 to 63 of a-z, 0-9 and '_', beginning with neither a digit nor 'pg_'";
    Err(parameter("schema", value, allowed))
}

fn parse_timeout(value: &str) -> Result<Duration, LogError> {
    let seconds = value.parse().ok().filter(|seconds| TIMEOUT_S.contains(seconds));
    seconds
        .map(Duration::from_secs)
        .ok_or_else(|| parameter("timeout_s", value, "a whole number of seconds from 1 to 60"))
}

fn parse_ssl_mode(value: &str) -> Result<SslMode, LogError> {
    match value {
        "disable" => Ok(SslMode::Disable),
        // The certificate and its host name are checked in every mode that uses TLS.
        "require" | "verify-full" => Ok(SslMode::Require),
        _ => Err(parameter("sslmode", value, "require, verify-full or disable")),
    }
}

fn parameter(name: &str, value: &str, allowed: &str) -> LogError {
    invalid(&format!("{name}={value} is not allowed: use {allowed}"))
}

/// The URL itself is not shown: it can have a password.
fn invalid(what: &str) -> LogError {
    LogError::Unsuitable(format!(
        "the URL of the store is not valid: {what}. Use postgres://USER@HOST/DATABASE, with any of \
         {PARAMETERS}, and the connection parameters of PostgreSQL"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(url: &str) -> String {
        url.parse::<Settings>().unwrap_err().to_string()
    }

    #[test]
    fn a_url_gives_the_settings_and_the_rest_goes_to_postgresql() {
        let url = "postgres://u:p%40@db1:5433,db2/keys?durability=storage&schema=a_1&timeout_s=3\
                   &sslrootcert=%2Ftmp%2Fca.pem&keepalives_idle=7";
        let settings: Settings = url.parse().unwrap();
        assert_eq!(settings.durability, Durability::Storage);
        assert_eq!((settings.schema.as_str(), settings.timeout.as_secs()), ("a_1", 3));
        assert_eq!(settings.authorities, Some(PathBuf::from("/tmp/ca.pem")));
        let names = ["db1", "db2"].map(|name| vec![Host::Tcp(name.to_owned())]);
        assert_eq!(settings.hosts.iter().map(Config::get_hosts).collect::<Vec<_>>(), names);
        let ports: Vec<_> = settings.hosts.iter().map(|host| host.get_ports().to_vec()).collect();
        assert_eq!(ports, [vec![5433], vec![5432]]);
        for host in &settings.hosts {
            assert_eq!(host.get_password(), Some(b"p@".as_slice()));
            assert_eq!(host.get_keepalives_idle().as_secs(), 7);
            assert_eq!(host.get_dbname(), Some("keys"));
        }
    }

    #[test]
    fn a_remote_host_needs_tls_unless_the_url_says_otherwise() {
        for (url, expected) in [
            ("postgres://u@localhost/d", SslMode::Disable),
            ("postgres://u@127.0.0.1/d", SslMode::Disable),
            ("postgres://u@%2Frun%2Fpostgresql/d", SslMode::Disable),
            ("postgres://u@db.example.com/d", SslMode::Require),
            ("postgres://u@localhost,db.example.com/d", SslMode::Require),
            ("postgres://u@10.0.0.1/d?sslmode=disable", SslMode::Disable),
            ("postgres://u@localhost/d?sslmode=verify-full", SslMode::Require),
        ] {
            let settings: Settings = url.parse().unwrap();
            for host in &settings.hosts {
                assert_eq!(host.get_ssl_mode(), expected, "{url}");
            }
            assert_eq!(settings.durability, Durability::Replicated);
        }
    }

    #[test]
    fn an_invalid_parameter_is_named_with_what_is_allowed_and_no_password_is_shown() {
        for (url, expected) in [
            ("http://u:secret@h/d", "does not begin with postgres://"),
            ("postgres://u:secret@h/d?durability=disk", "durability=disk is not allowed: use repl"),
            ("postgres://u:secret@h/d?schema=a;b", "schema=a;b is not allowed: use 1 to 63"),
            ("postgres://u:secret@h/d?schema=pg_a", "beginning with neither"),
            ("postgres://u:secret@h/d?schema=", "schema= is not allowed"),
            ("postgres://u:secret@h/d?timeout_s=0", "from 1 to 60"),
            ("postgres://u:secret@h/d?timeout_s=61", "from 1 to 60"),
            ("postgres://u:secret@h/d?timeout_s=x", "timeout_s=x is not allowed"),
            ("postgres://u:secret@h/d?sslmode=prefer", "use require, verify-full or disable"),
            ("postgres://u:secret@h/d?durabilty=storage", "unknown option `durabilty`"),
            ("postgres://u:secret@/d", "names no host"),
            ("postgres://h/d", "names no user"),
        ] {
            let error = error(url);
            assert!(error.contains(expected), "{url}: {error}");
            assert!(error.contains("durability=replicated|storage"), "{error}");
            assert!(!error.contains("secret"), "{error}");
        }
    }
}
