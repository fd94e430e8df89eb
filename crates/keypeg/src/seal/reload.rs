//! Rereads the seal key file at SIGHUP: its first key seals the data directory from then on.
//!
//! A file that does not open the directory changes nothing, so the file on the disk and the
//! directory fit each other at every moment, also after a crash.

use super::key_file;
use crate::SystemRandom;
use crate::failure::{Failure, exit};
use crate::reloads::Reloads;
use crate::vital;
use keypeg_engine::{SealControl, SealUse};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

/// Starts a thread that rereads the file at each SIGHUP for as long as the seal exists.
pub(crate) fn watch(control: &Arc<SealControl>, path: PathBuf) -> Result<(), Failure> {
    let failed = |error| Failure::new(exit::OS, format!("cannot watch the seal key file: {error}"));
    let runtime = tokio::runtime::Builder::new_current_thread().build().map_err(failed)?;
    let (control, reloads) = (Arc::downgrade(control), Reloads::join());
    vital::spawn("keypeg-seal", move || runtime.block_on(reload(&control, &path, reloads)))
        .map(drop)
        .map_err(failed)
}

async fn reload(control: &Weak<SealControl>, path: &Path, mut reloads: Reloads) {
    loop {
        reloads.requested().await;
        let Some(control) = control.upgrade() else { return };
        apply(&control, path);
        reloads.done();
    }
}

fn apply(control: &SealControl, path: &Path) {
    let keys = match key_file::read("--seal-key", path) {
        Ok(keys) => keys,
        Err(failure) => {
            tracing::error!("{failure}; the directory stays sealed with the key {}", control.key());
            return;
        }
    };
    match control.use_keys(&keys, &mut SystemRandom::new()) {
        Ok(SealUse::Unchanged(key)) => tracing::info!(%key, "reread the seal key file"),
        Ok(SealUse::Rotated { from, to }) => tracing::info!(
            key = %to, before = %from,
            "the data directory is sealed with the first key of the seal key file: the key before \
             it can be removed from the file"
        ),
        Err(error) => tracing::error!(
            "seal key file {}: {error}; the directory stays sealed with the key {}",
            path.display(),
            control.key()
        ),
    }
}
