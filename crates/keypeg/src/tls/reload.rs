//! Reloads the certificate and the key within a second of a change.
//!
//! Twice a second and at SIGHUP the files are read and compared, so that no change is missed,
//! whatever their timestamps. Unusable files change nothing; their error is logged once. Two files
//! are not replaced at the same instant, so an error counts when two reads in a row find it.

use super::acceptor::TlsAcceptor;
use super::files::{TlsBytes, TlsFilesError};
use crate::failure::{Failure, exit};
use crate::reloads::Reloads;
use crate::vital;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::time::{MissedTickBehavior, interval};

/// Interval between two reads of the files.
const RELOAD_INTERVAL: Duration = Duration::from_millis(400);

/// Starts a thread that reloads the files for as long as the acceptor exists.
pub(crate) fn watch(acceptor: &Arc<TlsAcceptor>) -> Result<(), Failure> {
    let failed = |error| Failure::new(exit::OS, format!("cannot watch the certificate: {error}"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(failed)?;
    let (acceptor, reloads) = (Arc::downgrade(acceptor), Reloads::join());
    vital::spawn("keypeg-tls", move || runtime.block_on(reload_on_change(acceptor, reloads)))
        .map(drop)
        .map_err(failed)
}

/// What a read of the files found: the hash of their bytes, or the error.
type Found = Result<[u8; 32], String>;

/// What the reads of the files found so far.
struct Seen {
    /// The last read.
    last: Option<Found>,
    /// The last read that was applied, or whose error was reported.
    applied: Found,
    warnings: Vec<String>,
}

impl Seen {
    /// Notes what a read found. Returns whether its error, if it is one, is certain; `None` if it is
    /// known already, and a reload is not requested.
    fn note(&mut self, found: &Found, is_requested: bool) -> Option<bool> {
        let is_stable = self.last.replace(found.clone()).as_ref() == Some(found);
        let is_new = self.applied != *found;
        (is_requested || is_new).then_some(is_requested || is_stable)
    }
}

async fn reload_on_change(acceptor: Weak<TlsAcceptor>, mut reloads: Reloads) {
    let mut ticks = interval(RELOAD_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let Some(hash) = acceptor.upgrade().map(|acceptor| acceptor.hash()) else { return };
    let mut seen = Seen { last: None, applied: Ok(hash), warnings: Vec::new() };
    loop {
        let is_requested = tokio::select! {
            _ = ticks.tick() => false,
            () = reloads.requested() => true,
        };
        let Some(acceptor) = acceptor.upgrade() else { return };
        let bytes = acceptor.files.read();
        if let Ok(bytes) = &bytes {
            for warning in bytes.warnings.iter().filter(|it| !seen.warnings.contains(*it)) {
                tracing::warn!("{warning}");
            }
            seen.warnings.clone_from(&bytes.warnings);
        }
        let found = found(&bytes);
        if let Some(is_certain) = seen.note(&found, is_requested) {
            apply(&acceptor, bytes, is_certain, &mut seen, found);
        }
        if is_requested {
            reloads.done();
        }
    }
}

fn found(bytes: &Result<TlsBytes, TlsFilesError>) -> Found {
    bytes.as_ref().map(|bytes| bytes.hash).map_err(ToString::to_string)
}

/// Applies what was read. An error is reported if it is `certain`, and is tried again else.
fn apply(
    acceptor: &TlsAcceptor,
    bytes: Result<TlsBytes, TlsFilesError>,
    is_certain: bool,
    seen: &mut Seen,
    found: Found,
) {
    // Files that make a parser panic are one more invalid certificate: they must not end the server.
    let reloaded = catch_unwind(AssertUnwindSafe(|| acceptor.reload(bytes, is_certain)));
    match reloaded {
        Ok(Ok(not_after)) => {
            seen.applied = found;
            let not_after = i64::try_from(not_after).ok();
            let not_after = not_after.and_then(|at| jiff::Timestamp::from_second(at).ok());
            let not_after = not_after.map_or_else(|| "never".into(), |at| at.to_string());
            tracing::info!("reloaded the TLS certificate, which expires at {not_after}");
        }
        Ok(Err(_)) if !is_certain => {}
        Ok(Err(error)) => {
            seen.applied = found;
            tracing::warn!("{error}; the certificate loaded before stays in use");
        }
        Err(_) => {
            seen.applied = found;
            acceptor.mark_broken();
            tracing::error!(
                "reading the certificate failed by a defect of the server; the certificate loaded \
                 before stays in use"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two files are replaced one after the other: a read between the two finds a key that does not
    /// belong to the certificate, which must neither be logged nor set the metric of unusable files.
    #[test]
    fn an_error_of_the_files_is_certain_when_two_reads_find_it_or_a_reload_is_requested() {
        let [old, new, pair] = [Ok([1; 32]), Ok([2; 32]), Err("they do not belong together")];
        let found = |it: Result<[u8; 32], &str>| it.map_err(str::to_owned);
        let mut seen = Seen { last: None, applied: found(old), warnings: Vec::new() };
        let reads = [
            (old, false, None),
            (old, false, None),
            (pair, false, Some(false)),
            (new, false, Some(false)),
            (pair, false, Some(false)),
            (pair, false, Some(true)),
            (old, true, Some(true)),
            (pair, true, Some(true)),
        ];
        for (index, (read, is_requested, expected)) in reads.into_iter().enumerate() {
            assert_eq!(seen.note(&found(read), is_requested), expected, "read {index}");
        }
    }
}
