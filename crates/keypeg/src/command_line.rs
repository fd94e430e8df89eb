//! The command line of the program: its commands, and what errors add to those of clap.
//!
//! A variable that is set but empty is an error: in practice it is a mistake in a script. The
//! options of each command are defined in the file of that command.

use crate::access::TokenCommand;
use crate::build_info;
#[cfg(feature = "cli")]
use crate::cli::ClientCommand;
use crate::config::DATA;
use crate::manual::{CompletionsArgs, ManArgs};
use crate::options::Options;
use crate::restore::{ContinueArgs, RestoreArgs};
use crate::seal::SealCommand;
use clap::builder::{PossibleValue, StyledStr};
use clap::error::{ContextKind, ContextValue, Error, ErrorKind};
use clap::{Arg, Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use std::path::PathBuf;

/// Server that lends API keys from pools under exclusive, durable leases with fencing tokens
#[derive(Debug, Parser)]
#[command(name = build_info::NAME, version = build_info::short(), long_version = build_info::long())]
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
    /// Check a data directory or a backup without changing it, and report what a start or a restore
    /// would recover
    Check(CheckArgs),
    /// Create a data directory from a backup
    ///
    /// Each key counts as leased for as long as a client of the original server can still hold it.
    /// Stop the original server first.
    Restore(RestoreArgs),
    /// Create, list and revoke access tokens
    #[command(subcommand)]
    Token(TokenCommand),
    /// Create seal keys, and replace that of a data directory
    #[command(subcommand)]
    Seal(SealCommand),
    /// Print completions for a shell
    Completions(CompletionsArgs),
    /// Write the man pages of all commands
    Man(ManArgs),
}

/// The options of `keypeg check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Backup to check in place of a data directory; - is stdin
    #[arg(value_name = "BACKUP")]
    pub backup: Option<PathBuf>,
    /// Data directory
    #[arg(long, env = "KEYPEG_DATA", value_name = "DIR", default_value = DATA)]
    pub data: PathBuf,
    /// How the restored server would continue.
    #[command(flatten)]
    pub how: ContinueArgs,
}

impl Cli {
    /// Reads the command line and the environment.
    pub fn read() -> Result<Self, Error> {
        let command = Self::command();
        refuse_empty_variables(&command)?;
        let parsed = taking_negative_numbers(command.clone()).try_get_matches();
        parsed
            .and_then(|matches| Self::from_arg_matches(&matches))
            .map_err(|error| with_tips(error, &command))
    }
}

/// Reads `--shards -1` as an option with its value, so that the error names the allowed range, in
/// place of an unknown option `-1`.
fn taking_negative_numbers(command: clap::Command) -> clap::Command {
    command
        .mut_args(|arg| {
            let takes_value = !arg.is_positional() && arg.get_action().takes_values();
            arg.allow_negative_numbers(takes_value)
        })
        .mut_subcommands(taking_negative_numbers)
}

/// Returns the arguments of the commands and of those below them.
fn arguments(command: &clap::Command) -> impl Iterator<Item = &Arg> {
    let below = command.get_subcommands().flat_map(clap::Command::get_subcommands);
    command.get_subcommands().chain(below).flat_map(clap::Command::get_arguments)
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

/// Adds to an error about a value what clap does not report: the allowed values of a switch, and
/// the variable that gives the value if no flag does.
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
    use std::any::TypeId;

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

    #[test]
    fn each_number_of_the_command_line_has_a_range_that_its_error_names() {
        let numbers = [TypeId::of::<u8>(), TypeId::of::<u16>(), TypeId::of::<u32>()];
        let numbers = [&numbers[..], &[TypeId::of::<u64>(), TypeId::of::<usize>()]].concat();
        // The arguments of a hidden command come from this program itself.
        let shown = |command: &&clap::Command| !command.is_hide_set();
        let command = Cli::command();
        let below = command.get_subcommands().flat_map(clap::Command::get_subcommands);
        let commands = command.get_subcommands().chain(below).filter(shown);
        let is_number =
            |arg: &&Arg| numbers.iter().any(|number| arg.get_value_parser().type_id() == *number);
        let mut found = 0;
        for arg in commands.flat_map(clap::Command::get_arguments).filter(is_number) {
            let alone = clap::Command::new("alone").arg(arg.clone().required(false));
            let line = match arg.get_long() {
                Some(long) => vec!["alone".to_owned(), format!("--{long}=x")],
                None => vec!["alone".to_owned(), "x".to_owned()],
            };
            let error = alone.try_get_matches_from(line).unwrap_err().to_string();
            assert!(error.contains("must be a whole number "), "{}: {error}", arg.get_id());
            found += 1;
        }
        // The server without the commands that call it has three.
        assert!(found >= 3, "{found} numbers");
    }
}
