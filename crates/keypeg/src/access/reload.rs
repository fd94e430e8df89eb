//! Reloads the token file within a second of a change.
//!
//! Twice a second and at SIGHUP the whole file is read and compared, so that no change is missed,
//! whatever its timestamps. An invalid file changes nothing; its error is logged once.

use super::gate::Gate;
use super::token_file::{TokenFileError, read_token_file};
use crate::failure::{Failure, exit};
use crate::permissions::Trusted;
use crate::reloads::Reloads;
use crate::vital;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::time::{MissedTickBehavior, interval};

/// Interval between two reads of the file.
const RELOAD_INTERVAL: Duration = Duration::from_millis(500);

/// Starts a thread that reloads the file for as long as the gate exists.
pub(crate) fn watch(gate: &Arc<Gate>) -> Result<(), Failure> {
    let failed = |error| Failure::new(exit::OS, format!("cannot watch the token file: {error}"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(failed)?;
    let (gate, reloads) = (Arc::downgrade(gate), Reloads::join());
    vital::spawn("keypeg-tokens", move || runtime.block_on(reload_on_change(gate, reloads)))
        .map(drop)
        .map_err(failed)
}

async fn reload_on_change(gate: Weak<Gate>, mut reloads: Reloads) {
    let mut ticks = interval(RELOAD_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut last, mut last_warnings) = (None, Vec::new());
    loop {
        let is_requested = tokio::select! {
            _ = ticks.tick() => false,
            () = reloads.requested() => true,
        };
        let Some(gate) = gate.upgrade() else { return };
        let file = read_token_file(&gate.path, Trusted::own());
        let warnings = file.as_ref().map(|file| file.warnings.clone()).unwrap_or_default();
        for warning in warnings.iter().filter(|warning| !last_warnings.contains(*warning)) {
            tracing::warn!("token file {}: {warning}", gate.path.display());
        }
        last_warnings = warnings;
        let text = file.map(|file| file.text);
        // An unchanged error is logged once, but a SIGHUP always logs its result.
        let now = text.as_ref().map(String::clone).map_err(ToString::to_string);
        if last.as_ref() == Some(&now) && !is_requested {
            continue;
        }
        let is_first = last.replace(now).is_none();
        // A file that makes the parser panic is one more invalid file: it must not end the server.
        let reloaded = catch_unwind(AssertUnwindSafe(|| gate.reload(text)));
        let reloaded = reloaded.unwrap_or_else(|_| {
            gate.mark_broken();
            Err(TokenFileError::Content("reading it failed by a defect of the server".into()))
        });
        match reloaded {
            Ok(count) if !is_first || is_requested => {
                tracing::info!(count, "reloaded the access tokens");
            }
            Ok(_) => {}
            Err(error) => {
                let path = gate.path.display();
                tracing::error!("token file {path}: {error}; the tokens loaded before stay valid");
            }
        }
        if is_requested {
            reloads.done();
        }
    }
}
