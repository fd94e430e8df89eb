//! The gate: admits a request if its access token exists, has the scope and the pool, and stays
//! within its limits.
//!
//! Tokens are replaced as a whole when the token file changes. Knows nothing of HTTP.

use super::limits::FailedAttempts;
use super::token_file::{TokenFileError, read_token_file};
use super::tokens::{Shown, Token, Tokens};
use crate::clock;
use crate::permissions::Trusted;
use crate::share::{Budget, Held};
use crate::tls::ClientCertificate;
use keypeg_client::routes::{Access as RouteAccess, Route};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

/// Admits requests whose token allows them.
#[derive(Debug)]
pub(crate) struct Gate {
    pub(super) path: PathBuf,
    tokens: RwLock<Arc<Tokens>>,
    /// Whether the current token file is invalid, so that the tokens of an older one apply.
    is_broken: AtomicBool,
    reloads: AtomicU64,
    failed_attempts: FailedAttempts,
    /// The requests in flight, shared by the tokens.
    in_flight: Arc<Budget>,
    /// The origin of the times that limits use.
    started: Instant,
}

/// A request that a gate decides about.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attempt<'a> {
    /// The route, which requires a token.
    pub(crate) route: &'a Route,
    /// The pool that the path names.
    pub(crate) pool: Option<&'a str>,
    /// The token that the request sent.
    pub(crate) token: Option<&'a [u8]>,
    /// The certificate that its client showed, which counts without a token.
    pub(crate) certificate: Option<&'a ClientCertificate>,
    /// The client's address.
    pub(crate) from: Option<IpAddr>,
    /// The instant of the request.
    pub(crate) now: Instant,
}

/// The counters of a gate.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GateCounters {
    /// The number of tokens; each `sha256` of the file counts.
    pub(crate) tokens: u64,
    /// The number of reloads of the token file.
    pub(crate) reloads: u64,
    /// Whether the current token file is invalid.
    pub(crate) is_broken: bool,
}

/// The reason why a request is not admitted.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// The request has no token.
    NoToken,
    /// The token is unknown, revoked or expired.
    BadToken,
    /// There is no token, and the client certificate is in no entry, or has expired.
    Certificate,
    /// The token is invalid, and the address has sent too many invalid ones; retry after this time.
    Guesses(Duration),
    /// The token lacks this scope.
    Scope(&'static str),
    /// The token is for other pools.
    Pool,
    /// The token's rate limit is reached; retry after this time.
    TooOften(Duration),
    /// The token has its fair share of the requests in flight, and the request is not urgent.
    TooMany,
}

/// An admitted request; it counts as in flight until this is dropped.
#[derive(Debug)]
pub(crate) struct Admitted {
    pub(crate) shown: Shown,
    /// `None` for an urgent request beyond the token's share.
    pub(crate) in_flight: Option<Held>,
}

impl Gate {
    /// Reads the token file; `in_flight_max` is the server's limit on requests in flight.
    pub(crate) fn open(path: PathBuf, in_flight_max: usize) -> Result<Self, TokenFileError> {
        let text = read_token_file(&path, Trusted::own())?.text;
        let tokens = Tokens::parse(&text, None).map_err(TokenFileError::Content)?;
        Ok(Self {
            path,
            tokens: RwLock::new(Arc::new(tokens)),
            is_broken: AtomicBool::new(false),
            reloads: AtomicU64::new(0),
            failed_attempts: FailedAttempts::of_tokens(),
            in_flight: Budget::new(in_flight_max as u64),
            started: clock::stopwatch(),
        })
    }

    /// Decides about a request. A refusal contains the token if it is known.
    pub(crate) fn admit(&self, attempt: Attempt<'_>) -> Result<Admitted, (Option<Shown>, Refused)> {
        let Attempt { token, certificate, from, now, .. } = attempt;
        let now = now.saturating_duration_since(self.started);
        let now_ns = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        let found = match (token, certificate) {
            (Some(token), _) => self.tokens().find(token),
            (None, Some(certificate)) => self.tokens().find_certificate(certificate),
            (None, None) => return Err((None, Refused::NoToken)),
        };
        let found = found.filter(|found| !found.is_expired(clock::wall_ms));
        let Some(found) = found else {
            if token.is_none() {
                return Err((None, Refused::Certificate));
            }
            let counted = from.map_or(Ok(()), |from| self.failed_attempts.count(from, now_ns));
            return Err((None, counted.map_or_else(Refused::Guesses, |()| Refused::BadToken)));
        };
        match self.authorize(&found.token, attempt, now_ns) {
            Ok(in_flight) => Ok(Admitted { shown: found, in_flight }),
            Err(refused) => Err((Some(found), refused)),
        }
    }

    fn authorize(
        &self,
        token: &Token,
        Attempt { route, pool, .. }: Attempt<'_>,
        now_ns: u64,
    ) -> Result<Option<Held>, Refused> {
        if let Some(rate_limit) = &token.rate_limit {
            rate_limit.admit(now_ns).map_err(Refused::TooOften)?;
        }
        if let RouteAccess::Scope(scope) = route.access
            && !token.allows(scope)
        {
            return Err(Refused::Scope(scope.as_str()));
        }
        if pool.is_some_and(|pool| !token.is_for(pool)) {
            return Err(Refused::Pool);
        }
        match self.in_flight.admit_account(&token.in_flight, 1) {
            Ok(held) => Ok(Some(held)),
            // A token that waits for keys on all connections of its share must still return keys
            // and keep them alive. The number of connections bounds these requests; uncounted, they
            // take nothing from the shares of other tokens.
            Err(_) if route.is_urgent() => Ok(None),
            Err(_) => Err(Refused::TooMany),
        }
    }

    /// Returns whether a request admitted earlier would be admitted now, its limits aside.
    pub(crate) fn still_admits(&self, shown: &Shown) -> bool {
        self.tokens().still_has(shown) && !shown.is_expired(clock::wall_ms)
    }

    fn tokens(&self) -> Arc<Tokens> {
        Arc::clone(&self.tokens.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Replaces the tokens by those of another text of the file, and returns their number. After an
    /// error the tokens stay unchanged.
    pub(super) fn reload(
        &self,
        text: Result<String, TokenFileError>,
    ) -> Result<usize, TokenFileError> {
        let before = self.tokens();
        let parsed = text
            .and_then(|text| Tokens::parse(&text, Some(&before)).map_err(TokenFileError::Content));
        self.is_broken.store(parsed.is_err(), Ordering::Relaxed);
        let parsed = parsed?;
        let count = parsed.len();
        *self.tokens.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(parsed);
        self.reloads.fetch_add(1, Ordering::Relaxed);
        Ok(count)
    }

    /// Notes that the current file is unusable.
    pub(super) fn mark_broken(&self) {
        self.is_broken.store(true, Ordering::Relaxed);
    }

    /// Returns the counters.
    pub(crate) fn counters(&self) -> GateCounters {
        GateCounters {
            tokens: self.tokens().len() as u64,
            reloads: self.reloads.load(Ordering::Relaxed),
            is_broken: self.is_broken.load(Ordering::Relaxed),
        }
    }
}
