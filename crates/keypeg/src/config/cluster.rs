//! The options of a server that shares its pools with others: the store, the address for the other
//! servers, the name, the number of shards.
//!
//! It opens nothing. Invariant: no error contains the URL of the store, which can have a password.

use crate::failure::{Failure, exit};
use crate::options::Options;
use crate::options::value::StoreUrl;
use hyper::Uri;
use keypeg_log::{NAME_MAX, ServerName};
use std::net::IpAddr;
use std::path::PathBuf;

/// The greatest length of an address in bytes: a heartbeat also says which shards a server serves.
const ADDRESS_MAX: usize = 100;
/// The number of shards of a new installation.
pub(crate) const SHARDS: u16 = 16;
/// The schemes of stores, in the words of an error.
const STORES: &str = "postgres://USER@HOST/DATABASE, s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or \
                      az://CONTAINER/PREFIX";

/// What a server needs to share its pools with others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterSettings {
    /// The URL of the store.
    pub(crate) store: StoreUrl,
    /// The URL at which other servers reach this one: scheme, host and port, without a path.
    pub advertise: String,
    /// The name of this server.
    pub server: ServerName,
    /// The number of shards, where an option gives it.
    pub(crate) shards: Option<u16>,
    /// The authorities of the other servers' certificates.
    pub ca: Option<PathBuf>,
    /// The directory for temporary files; `None` creates one.
    pub(crate) scratch: Option<PathBuf>,
    /// Whether the name was derived from the address.
    is_name_derived: bool,
    /// What an operator should know, a sentence each.
    pub(crate) warnings: Vec<String>,
}

impl ClusterSettings {
    /// Checks the options; `None` for a server that shares nothing.
    pub(super) fn new(options: &Options) -> Result<Option<Self>, Failure> {
        let Some(store) = options.store.clone() else {
            return refuse_without_store(options).map(|()| None);
        };
        refuse_beside_store(options)?;
        if !store.0.contains("://") {
            return Err(refused(format!("the URL of --store is not valid: use {STORES}")));
        }
        let Some(advertise) = &options.advertise else {
            return Err(refused(
                "--store needs --advertise: name the URL at which the other servers reach this one, \
                 such as http://10.0.0.5:8000",
            ));
        };
        let (address, warning) = Address::parse(advertise)?;
        let has_tls = options.tls_cert.is_some() || options.tls_key.is_some();
        if has_tls && address.scheme == "http" && options.behind_proxy.is_none() {
            return Err(refused(format!(
                "--advertise {advertise} is plain HTTP, and the server speaks HTTPS: use https://"
            )));
        }
        let given = options.server_name.as_deref();
        let server = given.map_or_else(|| address.server_name(), server_name)?;
        Ok(Some(Self {
            store,
            advertise: address.url(),
            server,
            // The range is that of the option.
            shards: options.shards.and_then(|shards| u16::try_from(shards.0).ok()),
            ca: options.cluster_ca.clone().map(|path| path.0),
            scratch: options.data.clone().map(|path| path.0),
            is_name_derived: given.is_none(),
            warnings: warning.into_iter().collect(),
        }))
    }

    /// Returns the number of shards of a new installation.
    pub(crate) fn new_shards(&self) -> u16 {
        self.shards.unwrap_or(SHARDS)
    }

    /// Replaces port 0 by that of the listener.
    pub(crate) fn set_port(&mut self, port: u16) -> Result<(), Failure> {
        let (mut address, _) = Address::parse(&self.advertise)?;
        if address.port == 0 {
            address.port = port;
            self.advertise = address.url();
            if self.is_name_derived {
                self.server = address.server_name()?;
            }
        }
        Ok(())
    }
}

fn refused(message: impl Into<String>) -> Failure {
    Failure::new(exit::CONFIG, message)
}

/// Refuses options that mean something only for a server with a store.
fn refuse_without_store(options: &Options) -> Result<(), Failure> {
    let given = [
        ("--advertise", options.advertise.is_some()),
        ("--server-name", options.server_name.is_some()),
        ("--shards", options.shards.is_some()),
        ("--cluster-ca", options.cluster_ca.is_some()),
    ];
    match given.iter().find(|(_, is_given)| *is_given) {
        None => Ok(()),
        Some((option, _)) => Err(refused(format!(
            "{option} is for servers that share a store: add --store URL, or omit {option}"
        ))),
    }
}

/// Refuses options that contradict a store.
fn refuse_beside_store(options: &Options) -> Result<(), Failure> {
    if options.ephemeral.is_some_and(|switch| switch.0) {
        return Err(refused(
            "--ephemeral contradicts --store: it keeps all data in memory, and --store in a store; \
             omit one of them",
        ));
    }
    if options.seal_existing.is_some_and(|switch| switch.0) {
        return Err(refused(
            "--seal-existing does not work with --store: an installation is sealed when it is \
             created, with --seal-key",
        ));
    }
    Ok(())
}

fn server_name(name: &str) -> Result<ServerName, Failure> {
    ServerName::new(name).map_err(|error| refused(format!("--server-name: {error}")))
}

/// A URL of a server: scheme, host and port.
struct Address {
    scheme: &'static str,
    /// As in a URL: an IPv6 address is in brackets.
    host: String,
    port: u16,
}

impl Address {
    /// Parses the value of `--advertise`; also returns a warning about it.
    fn parse(text: &str) -> Result<(Self, Option<String>), Failure> {
        let invalid = |what: &str| {
            let allowed =
                "use http://HOST:PORT or https://HOST:PORT, such as https://keys-1.example:8443";
            refused(format!("--advertise {text:?} is not valid: {what}; {allowed}"))
        };
        let uri: Uri = text.parse().map_err(|_| invalid("it is not a URL"))?;
        let (scheme, default_port) = match uri.scheme_str() {
            Some("http") => ("http", 80),
            Some("https") => ("https", 443),
            _ => return Err(invalid("the scheme is neither http nor https")),
        };
        let authority = uri.authority().ok_or_else(|| invalid("it names no host"))?;
        if authority.as_str().contains('@') {
            return Err(refused(
                "--advertise contains a user: servers identify each other by a secret of the \
                 installation; use http://HOST:PORT or https://HOST:PORT",
            ));
        }
        if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
            return Err(invalid("it has a path"));
        }
        let host = authority.host();
        if host.is_empty() {
            return Err(invalid("it names no host"));
        }
        let has_port_sign = authority.as_str().len() > host.len();
        let port = match authority.port_u16() {
            None if has_port_sign => return Err(invalid("the port is not from 0 to 65535")),
            port => port.unwrap_or(default_port),
        };
        let address = Self { scheme, host: host.to_ascii_lowercase(), port };
        if address.url().len() > ADDRESS_MAX {
            return Err(invalid(&format!("it has more than {ADDRESS_MAX} bytes")));
        }
        let ip = address.host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().ok();
        if ip.is_some_and(|ip| ip.is_unspecified()) {
            return Err(invalid("no other machine reaches that address"));
        }
        let is_local = address.host == "localhost" || ip.is_some_and(|ip| ip.is_loopback());
        let warning = format!(
            "--advertise {}: only servers on this machine reach a loopback address; use an address \
             that all servers reach",
            address.url()
        );
        Ok((address, is_local.then_some(warning)))
    }

    fn url(&self) -> String {
        let Self { scheme, host, port } = self;
        format!("{scheme}://{host}:{port}")
    }

    /// Returns the name of a server at this address: host and port, with other signs replaced.
    fn server_name(&self) -> Result<ServerName, Failure> {
        let is_allowed = |sign: char| sign.is_ascii_alphanumeric() || "._-".contains(sign);
        let host = self.host.trim_start_matches('[').trim_end_matches(']');
        let host: String =
            host.chars().map(|sign| if is_allowed(sign) { sign } else { '-' }).collect();
        let suffix = format!("-{}", self.port);
        // The end of a long name differs between the machines of a domain less than its beginning.
        let host: String = host.chars().take(NAME_MAX - suffix.len()).collect();
        let name = format!("{}{suffix}", host.trim_start_matches(['.', '-']));
        ServerName::new(&name).map_err(|error| refused(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use crate::config::Config;
    use crate::failure::{Failure, exit};
    use crate::options::Options;
    use clap::{Args as _, Command, FromArgMatches as _};

    fn config(line: &str) -> Result<Config, Failure> {
        let command = Options::augment_args(Command::new("serve").no_binary_name(true));
        let matches = command.try_get_matches_from(line.split_whitespace()).unwrap();
        Config::new(Options::from_arg_matches(&matches).unwrap())
    }

    #[test]
    fn the_name_and_the_address_of_a_server_follow_from_advertise() {
        for (line, address, name) in [
            ("http://db-1.Example", "http://db-1.example:80", "db-1.example-80"),
            ("https://keys:8443/", "https://keys:8443", "keys-8443"),
            ("http://[2001:db8::1]:8000", "http://[2001:db8::1]:8000", "2001-db8--1-8000"),
            ("http://10.0.0.5:8000 --server-name a", "http://10.0.0.5:8000", "a"),
        ] {
            let config = config(&format!("--store s3://b/p --advertise {line}")).unwrap();
            let cluster = config.cluster.unwrap();
            assert_eq!((&*cluster.advertise, cluster.server.as_str()), (address, name));
            assert_eq!((cluster.new_shards(), cluster.warnings.len()), (16, 0));
        }
        let long = format!("{}.example", "x".repeat(70));
        let config = config(&format!("--store s3://b/p --advertise http://{long}:1")).unwrap();
        assert_eq!(config.cluster.unwrap().server.as_str().len(), 64);
    }

    #[test]
    fn port_0_stands_for_the_port_of_the_listener() {
        let config = config("--store s3://b/p --advertise http://127.0.0.1:0").unwrap();
        let mut cluster = config.cluster.unwrap();
        assert_eq!(cluster.warnings.len(), 1, "a loopback address");
        cluster.set_port(4_711).unwrap();
        assert_eq!(cluster.advertise, "http://127.0.0.1:4711");
        assert_eq!(cluster.server.as_str(), "127.0.0.1-4711");
    }

    #[test]
    fn an_option_that_does_not_fit_is_named_with_what_is_allowed() {
        let store = "--store postgres://u:hidden@h/d";
        let shared = format!("{store} --advertise http://h:1");
        for (line, says) in [
            (store.to_owned(), "--store needs --advertise"),
            ("--store u:hidden@h --advertise http://h:1".into(), "use postgres://USER@HOST"),
            ("--advertise http://h:1".into(), "add --store URL, or omit --advertise"),
            ("--server-name a".into(), "omit --server-name"),
            ("--shards 4".into(), "omit --shards"),
            ("--cluster-ca c".into(), "omit --cluster-ca"),
            (format!("{shared} --ephemeral"), "--ephemeral contradicts --store"),
            (format!("{shared} --seal-key k --seal-existing"), "--seal-existing does not work"),
            (format!("{shared} --server-name a/b"), "use 1 to 64 of"),
            (format!("{shared} --tls-cert c --tls-key k"), "the server speaks HTTPS: use https"),
            (format!("{store} --advertise h:1"), "neither http nor https"),
            (format!("{store} --advertise ftp://h:1"), "neither http nor https"),
            (format!("{store} --advertise http://h:1/a"), "it has a path"),
            (format!("{store} --advertise http://h:1?a=b"), "it has a path"),
            (format!("{store} --advertise http://h:70000"), "from 0 to 65535"),
            (format!("{store} --advertise http://0.0.0.0:1"), "no other machine reaches"),
            (format!("{store} --advertise http://[::]:1"), "no other machine reaches"),
            (format!("{store} --advertise http://:1"), "is not valid"),
            (format!("{store} --advertise http://a:hidden@h:1"), "contains a user"),
            (format!("{store} --advertise http://{}", "x".repeat(260)), "more than 100 bytes"),
        ] {
            let failure = config(&line).unwrap_err();
            assert_eq!(failure.exit, exit::CONFIG, "{line}");
            let message = failure.to_string();
            assert!(message.contains(says), "{line}: {message}");
            assert!(!message.contains("hidden"), "{message}");
        }
    }

    #[test]
    fn no_form_of_the_configuration_shows_the_password_of_the_store() {
        let config = config("--store postgres://u:hidden@h/d --advertise http://h:1").unwrap();
        let shown = format!("{config:?}");
        assert!(shown.contains("StoreUrl(postgres://…)") && !shown.contains("hidden"), "{shown}");
    }
}
