//! Who may do what: access tokens and their paces, the names this server goes by, and the log of
//! what was done.
//!
//! Decides; `http/admit.rs` asks and tells. Where no tokens and no log are configured nothing here
//! is asked but the host's name.

mod audit;
mod hosts;
mod mint;
mod pace;
mod reload;
mod tokens;

pub(crate) use audit::{Audit, Entry, Outcome};
pub(crate) use audit::{Settings as AuditSettings, Writer as AuditWriter};
pub use hosts::Hosts;
pub use mint::Mint;
pub(crate) use pace::Busy;
pub(crate) use reload::{read, watch};
pub(crate) use tokens::{Shown, Token};

use crate::clock;
use keypeg_client::routes::{Access as Needs, Route};
use pace::{Failures, Shares};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};
use tokens::Tokens;

/// What is asked before a request is let through.
#[derive(Debug, Default)]
pub(crate) struct Access {
    pub(crate) hosts: Hosts,
    pub(crate) gate: Option<Arc<Gate>>,
    pub(crate) audit: Option<Arc<Audit>>,
}

impl Access {
    /// Whether somebody wants to know where requests come from.
    pub(crate) fn wants_addresses(&self) -> bool {
        self.gate.is_some() || self.audit.is_some()
    }
}

/// Lets through whoever shows a token that allows what is asked.
#[derive(Debug)]
pub(crate) struct Gate {
    path: PathBuf,
    tokens: RwLock<Arc<Tokens>>,
    /// Whether the file as it is now cannot be taken, so that an older one holds.
    broken: AtomicBool,
    reloads: AtomicU64,
    failures: Failures,
    shares: Arc<Shares>,
    begun: Instant,
}

/// Why a request is not let through.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// It shows no token.
    NoToken,
    /// What it shows is none, or none any more.
    BadToken,
    /// As the last, and its address has shown many.
    Guesses(Duration),
    /// The token lacks this scope.
    Scope(&'static str),
    /// The token is for other pools.
    Pool,
    /// The token asks more often than it may.
    TooOften(Duration),
    /// The token has so many requests under way that others would come short.
    TooMany,
}

/// A request that is let through.
#[derive(Debug)]
pub(crate) struct Admitted {
    pub(crate) shown: Shown,
    #[expect(dead_code, reason = "its end is what it is kept for")]
    pub(crate) busy: Busy,
}

impl Gate {
    /// Reads the file; `room` is how many requests there is room for at once.
    pub(crate) fn open(path: PathBuf, room: usize) -> Result<Self, reload::Unread> {
        let tokens = Tokens::parse(&read(&path)?.text, None).map_err(reload::Unread::Content)?;
        Ok(Self {
            path,
            tokens: RwLock::new(Arc::new(tokens)),
            broken: AtomicBool::new(false),
            reloads: AtomicU64::new(0),
            failures: Failures::new(),
            shares: Arc::new(Shares::new(room)),
            begun: clock::stopwatch(),
        })
    }

    /// Decides about a request for a route that is not open to everybody.
    pub(crate) fn admit(
        &self,
        (route, pool): (&Route, Option<&str>),
        shown: Option<&[u8]>,
        from: Option<IpAddr>,
        now: Instant,
    ) -> Result<Admitted, (Option<Shown>, Refused)> {
        let now = now.saturating_duration_since(self.begun);
        let now_ns = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        let shown = shown.ok_or((None, Refused::NoToken))?;
        let found = self.tokens().find(shown);
        let found = found.filter(|found| !found.token.is_over(clock::wall_ms));
        let Some(found) = found else {
            let guesses = from.map_or(Ok(()), |from| self.failures.count(from, now_ns));
            return Err((None, guesses.map_or_else(Refused::Guesses, |()| Refused::BadToken)));
        };
        match self.allow(&found.token, route, pool, now_ns) {
            Ok(busy) => Ok(Admitted { shown: found, busy }),
            Err(refused) => Err((Some(found), refused)),
        }
    }

    fn allow(
        &self,
        token: &Token,
        route: &Route,
        pool: Option<&str>,
        now_ns: u64,
    ) -> Result<Busy, Refused> {
        if let Some(pace) = &token.pace {
            pace.take(now_ns).map_err(Refused::TooOften)?;
        }
        if let Needs::Scope(scope) = route.access
            && !token.allows(scope)
        {
            return Err(Refused::Scope(scope.as_str()));
        }
        if pool.is_some_and(|pool| !token.is_for(pool)) {
            return Err(Refused::Pool);
        }
        self.shares.begin(&token.busy).ok_or(Refused::TooMany)
    }

    /// Whether what was let through once would be let through now, but for its pace.
    pub(crate) fn still_admits(&self, shown: &Shown) -> bool {
        self.tokens().still_has(shown) && !shown.token.is_over(clock::wall_ms)
    }

    fn tokens(&self) -> Arc<Tokens> {
        Arc::clone(&self.tokens.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes another text of the file, or keeps the tokens as they are and says why.
    fn take(&self, text: Result<String, reload::Unread>) -> Result<usize, reload::Unread> {
        let before = self.tokens();
        let parsed = text
            .and_then(|text| Tokens::parse(&text, Some(&before)).map_err(reload::Unread::Content));
        self.broken.store(parsed.is_err(), Ordering::Relaxed);
        let parsed = parsed?;
        let count = parsed.len();
        *self.tokens.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(parsed);
        self.reloads.fetch_add(1, Ordering::Relaxed);
        Ok(count)
    }

    /// How many tokens there are, how often the file was taken anew, and whether it is broken.
    pub(crate) fn told(&self) -> (u64, u64, bool) {
        let (reloads, broken) = (&self.reloads, &self.broken);
        let count = self.tokens().len() as u64;
        (count, reloads.load(Ordering::Relaxed), broken.load(Ordering::Relaxed))
    }
}
