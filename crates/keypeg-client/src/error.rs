//! Why a request of the client failed: the server refused it, did not answer, or is not a Keypeg
//! server.

use crate::problem::Problem;
use std::time::Duration;

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The server refused the request; [`Problem::outcome`] says whether a change was applied.
    #[error("{}", .0.detail)]
    Refused(Box<Problem>),
    /// No answer arrived. It is unknown whether a change was applied.
    #[error("the server cannot be reached: {}", root_cause(.0))]
    Unreachable(#[source] reqwest::Error),
    /// The answer is not an answer of a Keypeg server.
    #[error("unexpected answer, not from a Keypeg server? (status {status}): {detail}")]
    Unexpected {
        /// The HTTP status of the answer.
        status: u16,
        /// What is wrong with the answer.
        detail: String,
    },
    /// The time to wait for a key has passed, and no answer gave a key.
    #[error("no key became available within {waited:?}{}", reason(last.as_deref()))]
    WaitEnded {
        /// The whole wait.
        waited: Duration,
        /// The last answer, or why there was none.
        last: Option<Box<Error>>,
    },
    /// An argument is invalid, so no request was sent.
    #[error("{0}")]
    InvalidInput(String),
}

impl Error {
    /// Returns the problem that the server answered, if it refused the request.
    pub fn problem(&self) -> Option<&Problem> {
        match self {
            Self::Refused(problem) => Some(problem),
            Self::WaitEnded { last, .. } => last.as_ref()?.problem(),
            Self::Unreachable(_) | Self::Unexpected { .. } | Self::InvalidInput(_) => None,
        }
    }
}

fn reason(last: Option<&Error>) -> String {
    last.map_or_else(String::new, |error| format!("; the last attempt: {error}"))
}

/// Returns the root cause of an error, which is the most specific.
pub(crate) fn root_cause(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
