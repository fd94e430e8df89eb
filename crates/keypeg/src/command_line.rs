//! The command line of the program: its commands, and what errors add to those of clap.
//!
//! A variable that is set but empty is an error: in practice it is a mistake in a script. The
//! options of each command are defined in the file of that command.

use crate::access::TokenCommand;
#[cfg(feature = "cli")]
use crate::cli::ClientCommand;
use crate::config::DATA;
use crate::options::Options;
use crate::toml_text::nearest;
use clap::builder::{PossibleValue, StyledStr};
use clap::error::{ContextKind, ContextValue, Error, ErrorKind};
use clap::{Arg, Args, CommandFactory, Parser, Subcommand};
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
    Serve(Box<Options>),
    /// Call a running server
    #[cfg(feature = "cli")]
    #[command(flatten)]
    Client(ClientCommand),
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
    #[arg(long, env = "KEYPEG_DATA", value_name = "DIR", default_value = DATA)]
    pub data: PathBuf,
}

impl Cli {
    /// Reads the command line and the environment.
    pub fn read() -> Result<Self, Error> {
        let command = Self::command();
        refuse_empty_variables(&command)?;
        Self::try_parse().map_err(|error| with_tips(error, &command))
    }
}

/// Returns the arguments of the commands, without those of nested ones, which have no variables.
fn arguments(command: &clap::Command) -> impl Iterator<Item = &Arg> {
    command.get_subcommands().flat_map(clap::Command::get_arguments)
}

fn refuse_empty_variables(command: &clap::Command) -> Result<(), Error> {
    for variable in arguments(command).filter_map(Arg::get_env) {
        if std::env::var_os(variable).is_some_and(|value| value.is_empty()) {
            let message =
                format!("{} is set but empty: unset it, or set a value\n", variable.display());
            return Err(Error::raw(ErrorKind::InvalidValue, message));
        }
    }
    Ok(())
}

/// Variables that are no option: of the log, and those that `keypeg exec` sets or removes.
const OTHER_VARIABLES: [&str; 5] =
    ["KEYPEG_LOG", "KEYPEG_TOKEN", "KEYPEG_KEY", "KEYPEG_KEY_ID", "KEYPEG_FENCING_TOKEN"];

/// Returns a warning for each variable of a server whose name looks like an option and is none.
///
/// Not an error: Kubernetes sets variables such as `KEYPEG_PORT` for a service named `keypeg`, which
/// are not even warned about.
pub fn unknown_variables() -> Vec<String> {
    let names = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    let mut unknown: Vec<_> = names.filter_map(|name| unknown_variable(&name)).collect();
    unknown.sort();
    unknown
}

fn unknown_variable(name: &str) -> Option<String> {
    let rest = name.strip_prefix("KEYPEG_")?;
    let command = Cli::command();
    let of = |arg: &Arg| arg.get_env().and_then(|name| name.to_str().map(str::to_owned));
    let is_known = arguments(&command).filter_map(of).any(|known| known == name)
        || OTHER_VARIABLES.contains(&name);
    let is_link = name.ends_with("_PORT")
        || ["_SERVICE_HOST", "_SERVICE_PORT", "_PORT_"].iter().any(|part| name.contains(part));
    if is_known || is_link {
        return None;
    }
    let serve = command.find_subcommand("serve").expect("invariant: serve is a command");
    let known: Vec<_> = serve.get_arguments().filter_map(of).collect();
    let hint = match nearest(rest, known.iter().filter_map(|known| known.strip_prefix("KEYPEG_"))) {
        Some(nearest) => format!("use KEYPEG_{nearest} if you mean that"),
        None => "\"keypeg serve --help\" prints the variables".into(),
    };
    Some(format!("the variable {name} has no effect: {hint}"))
}

/// Adds to an error about a value what clap does not report: the allowed values of a switch, and the
/// variable that gives the value if no flag does.
fn with_tips(mut error: Error, command: &clap::Command) -> Error {
    let Some(ContextValue::String(argument)) = error.get(ContextKind::InvalidArg) else {
        return error;
    };
    let flag = argument.split([' ', '[', '=']).next().unwrap_or_default().to_owned();
    let is_invalid =
        |arg: &&Arg| arg.get_long().is_some() && flag.strip_prefix("--") == arg.get_long();
    let Some(argument) = arguments(command).find(is_invalid) else { return error };
    let mut tips = Vec::new();
    if error.kind() == ErrorKind::ValueValidation {
        let allowed = argument.get_possible_values();
        let shown = allowed.iter().filter(|value| !value.is_hide_set());
        let allowed: Vec<_> = shown.map(PossibleValue::get_name).collect();
        tips.extend((!allowed.is_empty()).then(|| format!("use {}", allowed.join(" or "))));
    }
    let is_given = std::env::args_os().any(|arg| {
        arg.to_str().and_then(|arg| arg.split('=').next()).is_some_and(|name| name == flag)
    });
    let variable = argument.get_env().filter(|_| !is_given);
    if let Some(variable) = variable.filter(|name| std::env::var_os(name).is_some()) {
        tips.push(format!("the value is from the variable {}", variable.display()));
    }
    if !tips.is_empty() {
        let tips = tips.into_iter().map(StyledStr::from).collect();
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(tips));
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_that_is_no_option_is_reported_unless_it_is_a_service_link() {
        for (name, says) in [
            ("KEYPEG_TOKENS_FILE", "use KEYPEG_TOKENS if"),
            ("KEYPEG_LISTEN_ADDR", "use KEYPEG_LISTEN if"),
            ("KEYPEG_LEASETTL", "use KEYPEG_LEASE_TTL if"),
            ("KEYPEG_X", "--help"),
        ] {
            let said = unknown_variable(name).expect(name);
            assert!(said.contains(name) && said.contains(says), "{said}");
        }
        for name in ["KEYPEG_TOKENS", "KEYPEG_LOG", "KEYPEG_KEY", "PATH", "KEYPEGX"]
            .into_iter()
            .chain(["KEYPEG_PORT", "KEYPEG_SERVICE_HOST", "KEYPEG_SERVICE_PORT_HTTP"])
            .chain(["KEYPEG_PORT_8000_TCP_ADDR", "KEYPEG_SERVER_SERVICE_PORT"])
        {
            assert_eq!(unknown_variable(name), None, "{name}");
        }
    }

    #[test]
    fn a_command_line_is_accepted_or_refused() {
        for (line, is_valid) in [
            ("keypeg serve", true),
            ("keypeg serve --listen [::1]:0 --ephemeral", true),
            ("keypeg serve --listen 8000", false),
            ("keypeg serve --lease-ttl soon", false),
            ("keypeg serve --lease", false),
            ("keypeg", false),
        ] {
            assert_eq!(Cli::try_parse_from(line.split_whitespace()).is_ok(), is_valid, "{line}");
        }
        Cli::command().debug_assert();
    }
}
