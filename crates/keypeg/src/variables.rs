//! The names of environment variables that no option has, and a warning about names that look like
//! options of the server and are none.
//!
//! `KEYPEG_TOKENS_FILE` instead of `KEYPEG_TOKENS` would start a server without access control. The
//! variables that Kubernetes sets for a service named `keypeg` are no mistakes. Knows names only,
//! and never logs a value.

use crate::toml_text::nearest;
use clap::{Arg, Command};
use std::collections::BTreeSet;

const PREFIX: &str = "KEYPEG_";
/// The variable with the level of the log.
pub(crate) const LOG: &str = "KEYPEG_LOG";
/// The variable that contains an access token for the commands that call a server.
pub(crate) const TOKEN: &str = "KEYPEG_TOKEN";
/// The variable with the descriptor from which `keypeg exec` reads its access token, see
/// `cli/exec/secrets.rs`.
pub(crate) const TOKEN_DESCRIPTOR: &str = "KEYPEG_TOKEN_DESCRIPTOR";
/// The variable with the value of the key, for the command of `keypeg exec`.
pub(crate) const KEY: &str = "KEYPEG_KEY";
/// The variable with the id of the key, for the command of `keypeg exec`.
pub(crate) const KEY_ID: &str = "KEYPEG_KEY_ID";
/// The variable with the id of the lease, for the command of `keypeg exec`.
pub(crate) const LEASE_ID: &str = "KEYPEG_LEASE_ID";
/// The variable with the fencing token, for the command of `keypeg exec`.
pub(crate) const FENCING_TOKEN: &str = "KEYPEG_FENCING_TOKEN";
/// The variables that no option has.
const WITHOUT_OPTION: [&str; 7] =
    [LOG, TOKEN, TOKEN_DESCRIPTOR, KEY, KEY_ID, LEASE_ID, FENCING_TOKEN];

/// Logs a warning for each variable with the prefix `KEYPEG_` that no command of `program` has.
pub(crate) fn warn_of_unknown(program: &Command) {
    let names = Names::of(program);
    let set = std::env::vars_os().filter_map(|(name, value)| {
        Some((name.into_string().ok()?, value.into_string().unwrap_or_default()))
    });
    for (name, value) in set {
        if let Some(unknown) = names.unknown(&name, &value) {
            tracing::warn!("{unknown}");
        }
    }
}

/// The names of all variables of the program.
struct Names {
    known: BTreeSet<String>,
    /// Those of `keypeg serve`, the only ones to suggest to a server.
    of_server: BTreeSet<String>,
}

impl Names {
    fn of(program: &Command) -> Self {
        let variables = |command: &Command| -> Vec<String> {
            let variables = command.get_arguments().filter_map(Arg::get_env);
            variables.filter_map(|name| Some(name.to_str()?.to_owned())).collect()
        };
        let mut known: BTreeSet<_> = program.get_subcommands().flat_map(variables).collect();
        known.extend(WITHOUT_OPTION.map(String::from));
        let server = program.find_subcommand("serve").expect("invariant: a command of the program");
        let mut of_server: BTreeSet<_> = variables(server).into_iter().collect();
        of_server.insert(LOG.into());
        Self { known, of_server }
    }

    /// Returns the warning about a variable; `None` for a name that is known or of Kubernetes.
    fn unknown(&self, name: &str, value: &str) -> Option<String> {
        let is_unknown =
            name.starts_with(PREFIX) && !self.known.contains(name) && !is_service_link(name, value);
        if !is_unknown {
            return None;
        }
        let known = self.of_server.iter().filter_map(|known| known.strip_prefix(PREFIX));
        let hint = match nearest(&name[PREFIX.len()..], known) {
            Some(known) => format!("did you mean {PREFIX}{known}?"),
            None => "`keypeg serve --help` lists the variables".into(),
        };
        Some(format!("the variable {name} has no effect: the server has no such option; {hint}"))
    }
}

/// Returns whether Kubernetes or Docker set the variable for a service whose name begins with
/// `keypeg`: `KEYPEG_SERVICE_HOST`, `KEYPEG_PORT=tcp://…`, `KEYPEG_PORT_8000_TCP_ADDR`, and so on.
fn is_service_link(name: &str, value: &str) -> bool {
    let has_port_part = name.split_once("_PORT_").is_some_and(|(_, rest)| {
        let (number, protocol) = rest.split_once('_').unwrap_or((rest, ""));
        let is_number = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
        is_number && ["TCP", "UDP", "SCTP"].iter().any(|known| protocol.starts_with(known))
    });
    has_port_part
        || name.ends_with("_SERVICE_HOST")
        || name.ends_with("_SERVICE_PORT")
        || name.contains("_SERVICE_PORT_")
        || (name.ends_with("_PORT") && value.contains("://"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command_line::Cli;
    use clap::CommandFactory;

    #[test]
    fn an_unknown_name_gets_a_warning_with_the_nearest_known_one() {
        let names = Names::of(&Cli::command());
        let near = |name: &str| {
            let warning = names.unknown(name, "9000").unwrap_or_default();
            warning
                .split("did you mean ")
                .nth(1)
                .unwrap_or_default()
                .trim_end_matches('?')
                .to_owned()
        };
        for (name, known) in [
            ("KEYPEG_TOKENS_FILE", "KEYPEG_TOKENS"),
            ("KEYPEG_TOKENFILE", "KEYPEG_TOKENS"),
            ("KEYPEG_AUDIT_LOG", "KEYPEG_AUDIT"),
            ("KEYPEG_DATA_DIR", "KEYPEG_DATA"),
            ("KEYPEG_LISTEN_ADDR", "KEYPEG_LISTEN"),
            ("KEYPEG_LOG_LEVEL", "KEYPEG_LOG"),
            ("KEYPEG_LEASETTL", "KEYPEG_LEASE_TTL"),
        ] {
            assert_eq!(near(name), known, "{name}");
        }
        assert!(names.unknown("KEYPEG_PORT", "9000").is_some(), "a port, not a link");
        let far = names.unknown("KEYPEG_XYZZY_QUUX_FROBNICATE", "").unwrap();
        assert!(far.contains("has no effect"), "{far}");
    }

    #[test]
    fn known_names_and_the_service_links_of_kubernetes_get_no_warning() {
        let names = Names::of(&Cli::command());
        for (name, value) in [
            ("KEYPEG_TOKENS", "/x"),
            ("KEYPEG_LOG", "debug"),
            ("KEYPEG_TOKEN", "kpt_1"),
            ("KEYPEG_FENCING_TOKEN", "7"),
            ("PATH", "/bin"),
            ("KEYPEG_SERVICE_HOST", "10.0.0.1"),
            ("KEYPEG_SERVICE_PORT", "8000"),
            ("KEYPEG_SERVICE_PORT_HTTP", "8000"),
            ("KEYPEG_PORT", "tcp://10.0.0.1:8000"),
            ("KEYPEG_PORT_8000_TCP", "tcp://10.0.0.1:8000"),
            ("KEYPEG_PORT_8000_TCP_PROTO", "tcp"),
            ("KEYPEG_PORT_8000_TCP_PORT", "8000"),
            ("KEYPEG_PORT_8000_TCP_ADDR", "10.0.0.1"),
            ("KEYPEG_HEADLESS_SERVICE_HOST", "10.0.0.2"),
            ("KEYPEG_HEADLESS_PORT", "udp://10.0.0.2:53"),
        ] {
            assert_eq!(names.unknown(name, value), None, "{name}");
        }
        #[cfg(feature = "cli")]
        assert_eq!(names.unknown("KEYPEG_SERVER", "http://localhost:8000"), None);
    }
}
