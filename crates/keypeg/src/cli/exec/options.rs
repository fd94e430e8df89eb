//! The options of `keypeg exec`, and what they say about an exit code.
//!
//! Checks what the command line alone can show to be wrong; knows no server and no process.

use crate::cli::lease::LeaseArgs;
use crate::cli::server::ServerArgs;
use crate::duration::HumanDuration;
use crate::number::number;
use crate::variables;
use clap::Args;
use keypeg_client::{ReleaseRequest, Seconds};
use std::ffi::OsString;
use std::str::FromStr;

/// The options of `keypeg exec`.
#[derive(Debug, Args)]
pub struct ExecArgs {
    /// The options of the lease.
    #[command(flatten)]
    pub(super) lease: LeaseArgs,
    /// Variable that gets the value of the key
    #[arg(long = "env", value_name = "NAME", default_value = variables::KEY)]
    #[arg(value_parser = variable_name)]
    pub(super) variable: String,
    /// Pass the id of the lease in `KEYPEG_LEASE_ID`, which lets the command renew and release it
    #[arg(long)]
    pub(super) pass_lease_id: bool,
    /// Time for the command between SIGTERM and SIGKILL, when it has to end; 0s: no SIGTERM
    #[arg(long, value_name = "DURATION", default_value = "5s")]
    pub(super) grace: HumanDuration<0>,
    /// Release the key with a rest if the command exits with this code, such as 29=1m; repeatable
    #[arg(long, value_name = "CODE=DURATION")]
    pub(super) rest_on: Vec<RestOn>,
    /// Quarantine the key if the command exits with this code; repeatable
    #[arg(long, value_name = "CODE", value_parser = number(0..=u8::MAX))]
    pub(super) quarantine_on: Vec<u8>,
    /// The server, the token, the pool and the output format.
    #[command(flatten)]
    pub(super) server: ServerArgs,
    /// Command to run, with its arguments
    #[arg(required = true, last = true, value_name = "CMD")]
    pub(super) command: Vec<OsString>,
}

/// An exit code, and the rest of the key after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RestOn {
    code: u8,
    rest_ms: u64,
}

impl FromStr for RestOn {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (code, rest) =
            text.split_once('=').ok_or("must be an exit code, = and a duration, such as 29=1m")?;
        let code = code.parse().map_err(|_| "the exit code must be 0 to 255, as in 29=1m")?;
        let rest = rest.parse::<HumanDuration<0>>().map_err(|error| format!("the rest {error}"))?;
        Ok(Self { code, rest_ms: rest.ms() })
    }
}

impl ExecArgs {
    /// Returns a code that has two meanings, which is a mistake.
    pub(super) fn ambiguous_code(&self) -> Option<u8> {
        let codes = self.rest_on.iter().map(|rest| rest.code).chain(self.quarantine_on.clone());
        let codes: Vec<u8> = codes.collect();
        codes.iter().enumerate().find_map(|(at, code)| codes[..at].contains(code).then_some(*code))
    }

    /// Returns what is reported about the key after the command has exited with this code.
    pub(super) fn release_for(&self, code: u8) -> ReleaseRequest {
        let rest = self.rest_on.iter().find(|rest| rest.code == code);
        let is_quarantined = self.quarantine_on.contains(&code);
        let has_reason = rest.is_some() || is_quarantined;
        ReleaseRequest {
            rest_seconds: rest.map(|rest| Seconds::from_ms(rest.rest_ms)),
            quarantine: is_quarantined.then_some(true),
            reason: has_reason.then(|| format!("exit code {code} of the command")),
        }
    }
}

/// Parses the name of an environment variable.
fn variable_name(text: &str) -> Result<String, String> {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let has_other_use = [variables::KEY_ID, variables::FENCING_TOKEN, variables::LEASE_ID];
    if has_other_use.contains(&text) {
        return Err(format!("{text} has another meaning: choose another name"));
    }
    if text.is_empty()
        || text.starts_with(|c: char| c.is_ascii_digit())
        || !text.chars().all(is_allowed)
    {
        return Err("must consist of letters, digits and _, and not begin with a digit".into());
    }
    Ok(text.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rest_names_its_exit_code() {
        assert_eq!("29=1m".parse(), Ok(RestOn { code: 29, rest_ms: 60_000 }));
        assert_eq!("0=0s".parse(), Ok(RestOn { code: 0, rest_ms: 0 }));
        for (bad, says) in [
            ("29", "such as 29=1m"),
            ("=1m", "0 to 255"),
            ("256=1m", "0 to 255"),
            ("-1=1m", "0 to 255"),
            ("1=soon", "with a unit"),
            ("1=60", "with a unit"),
        ] {
            let error = bad.parse::<RestOn>().unwrap_err();
            assert!(error.contains(says), "{bad}: {error}");
        }
    }

    #[test]
    fn a_variable_has_a_name_that_shells_accept() {
        for good in ["KEY", "_x1", "KEYPEG_KEY", "ACCOUNT_TOKEN"] {
            assert_eq!(variable_name(good).as_deref(), Ok(good));
        }
        for bad in ["", "1A", "A=B", "a-b", "ä", "KEYPEG_KEY_ID", "KEYPEG_LEASE_ID"] {
            assert!(variable_name(bad).is_err(), "{bad}");
        }
    }
}
