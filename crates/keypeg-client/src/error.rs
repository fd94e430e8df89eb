//! Why a request of the client failed: the server refused it, did not answer, or is not a Keypeg
//! server.

use crate::address::{is_loopback, proxy_variable};
use crate::problem::Problem;
use crate::tls_error::{explain, tls_error};
use std::time::Duration;

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The server refused the request; [`Problem::outcome`] says whether a change was applied.
    #[error("{}", .0.detail)]
    Refused(Box<Problem>),
    /// No answer arrived. It is unknown whether a change was applied.
    #[error("{}", unreachable(.0))]
    Unreachable(#[source] reqwest::Error),
    /// The answer is not an answer of a Keypeg server.
    #[error("the answer did not come from Keypeg (status {status}): {detail}")]
    Unexpected {
        /// The HTTP status of the answer.
        status: u16,
        /// What is wrong with the answer, and where it may have come from.
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
    /// Returns whether a proxy answered because it cannot reach its server, or because its server
    /// does not answer: the server may restart, so the same request can succeed later.
    pub fn is_proxy_failure(&self) -> bool {
        matches!(self, Self::Unexpected { status: 502..=504, .. })
    }

    /// Returns the problem that the server answered, if it refused the request.
    pub fn problem(&self) -> Option<&Problem> {
        match self {
            Self::Refused(problem) => Some(problem),
            Self::WaitEnded { last, .. } => last.as_ref()?.problem(),
            Self::Unreachable(_) | Self::Unexpected { .. } | Self::InvalidInput(_) => None,
        }
    }
}

impl Error {
    /// Returns whether client and server could not agree on TLS.
    pub fn is_tls(&self) -> bool {
        matches!(self, Self::Unreachable(error) if tls_error(error).is_some())
    }
}

fn reason(last: Option<&Error>) -> String {
    last.map_or_else(String::new, |error| format!("; the last attempt: {error}"))
}

/// Names the server without the path of the request, which can contain the id of a lease.
fn unreachable(error: &reqwest::Error) -> String {
    let host = error
        .url()
        .and_then(|url| Some((url.scheme(), url.host_str()?, url.port_or_known_default()?)));
    let (server, is_local, is_https) = match host {
        Some((scheme, host, port)) => {
            (format!(" at {scheme}://{host}:{port}"), is_loopback(host), scheme == "https")
        }
        None => (String::new(), true, false),
    };
    if let Some(error) = tls_error(error) {
        return format!("no TLS connection to the server{server}: {}", explain(error));
    }
    let proxy = match proxy_variable(is_https).filter(|_| !is_local) {
        Some(variable) => format!(" through the proxy that the variable {variable} names"),
        None => String::new(),
    };
    format!("the server{server} cannot be reached{proxy}: {}", root_cause(error))
}

/// Returns the root cause of an error, which is the most specific.
pub(crate) fn root_cause(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
