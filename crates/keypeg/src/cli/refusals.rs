//! What a refusal or a failed call means at the command line: an exit code, and the next step.
//!
//! The server's answer names the next step of a client of the API; this adds that of a user of the
//! commands. Knows the error codes, and nothing of what was called.

use crate::failure::{Failure, exit};
use keypeg_client::{Code, Error, Problem};

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let code = match &error {
            Error::Refused(problem) => exit_of(problem),
            Error::Unreachable(_) => exit::UNAVAILABLE,
            Error::WaitEnded { last: Some(last), .. } => match &**last {
                Error::Refused(problem) => exit_of(problem),
                Error::Unreachable(_) => exit::UNAVAILABLE,
                Error::Unexpected { .. } | Error::WaitEnded { .. } | Error::InvalidInput(_) => {
                    exit::TEMPORARY
                }
            },
            Error::WaitEnded { last: None, .. } => exit::TEMPORARY,
            Error::Unexpected { .. } => exit::PROTOCOL,
            Error::InvalidInput(_) => exit::USAGE,
        };
        let suffix = match &error {
            Error::Refused(problem) => match next_step(problem) {
                "" => format!(" ({})", problem.code.as_str()),
                step => format!(" ({}); {step}", problem.code.as_str()),
            },
            error if error.is_tls() => String::new(),
            Error::Unreachable(_) => {
                "; start it with \"keypeg serve\", or name it with --server or KEYPEG_SERVER".into()
            }
            Error::WaitEnded { last, .. } => {
                let problem = last.as_deref().and_then(Error::problem);
                problem.map_or_else(String::new, |last| format!(" ({})", last.code.as_str()))
            }
            Error::Unexpected { .. } | Error::InvalidInput(_) => String::new(),
        };
        Self::new(code, format!("{error}{suffix}"))
    }
}

/// Returns the next step at the command line, where the server's answer names only one of the API.
fn next_step(problem: &Problem) -> &'static str {
    match (problem.code.as_str(), problem.extensions.cause.as_deref()) {
        ("unauthorized", _) => "name the file of an access token with --token-file",
        ("unknown_pool", _) => {
            "\"keypeg pools\" prints the pools, --pool names one, \"keypeg pool create\" creates one"
        }
        ("unknown_key", _) => "\"keypeg list\" prints the ids of the keys",
        ("lease_ended", _) => "\"keypeg list --state leased\" prints the keys that are leased",
        ("no_key_available", Some("pool_empty")) => {
            "\"keypeg generate\" or \"keypeg import\" adds keys"
        }
        ("no_key_available", Some("all_quarantined")) => {
            "\"keypeg list --state quarantined\" prints them, \"keypeg quarantine --undo\" puts one back"
        }
        ("no_key_available", Some("draining")) => {
            "\"keypeg pool drain POOL --undo\" lets the pool grant keys again"
        }
        ("no_key_available", _) => "add --wait to wait for a key",
        ("no_owner" | "not_moved", _) => "\"keypeg cluster status\" prints the servers and shards",
        ("no_cluster", _) => "name a server that was started with --store with --server",
        ("misdirected", _) => "start the server with --allow-host and this name",
        _ => "",
    }
}

/// Maps a problem to an exit code, mostly by its status, so that future codes are covered.
fn exit_of(problem: &Problem) -> u8 {
    match problem.status {
        _ if matches!(problem.code, Code::NoKeyAvailable | Code::NotMoved) => exit::TEMPORARY,
        401 | 403 => exit::PERMISSION,
        404 | 410 => exit::NO_INPUT,
        408 | 429 | 503 => exit::TEMPORARY,
        507 => exit::CANNOT_CREATE,
        500.. => exit::SOFTWARE,
        _ => exit::DATA,
    }
}
