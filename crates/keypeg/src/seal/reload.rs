//! Rereads the seal key file at SIGHUP: its first key seals the data directory from then on. The seal
//! key of a store stays: its file is checked only, and messages say which key it must contain.
//!
//! A file that does not open the directory changes nothing, so the file on the disk and the
//! directory fit each other at every moment, also after a crash.

use super::key_file;
use crate::SystemRandom;
use crate::failure::{Failure, exit};
use crate::reloads::Reloads;
use crate::vital;
use keypeg_engine::{SealControl, SealKeyId, SealKeys, SealUse};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

/// Starts a thread that rereads the file at each SIGHUP for as long as the seal exists.
pub(crate) fn watch(control: &Arc<SealControl>, path: PathBuf) -> Result<(), Failure> {
    let control = Arc::downgrade(control);
    spawn(move || Weak::upgrade(&control).map(|control| apply(&control, &path)).is_some())
}

/// Checks that the key of a sealed store is the first one of the file, and starts a thread that rereads
/// the file at each SIGHUP.
pub(crate) fn watch_store(key: SealKeyId, keys: &SealKeys, path: PathBuf) -> Result<(), Failure> {
    warn_unless_first(key, keys, &path);
    spawn(move || {
        check_store(key, &path);
        true
    })
}

/// Starts a thread that calls `reread` at each SIGHUP, until it returns `false`.
fn spawn(reread: impl Fn() -> bool + Send + 'static) -> Result<(), Failure> {
    let failed = |error| Failure::new(exit::OS, format!("cannot watch the seal key file: {error}"));
    let runtime = tokio::runtime::Builder::new_current_thread().build().map_err(failed)?;
    let mut reloads = Reloads::join();
    let run = async move {
        loop {
            reloads.requested().await;
            if !reread() {
                return;
            }
            reloads.done();
        }
    };
    vital::spawn("keypeg-seal", move || runtime.block_on(run)).map(drop).map_err(failed)
}

fn check_store(key: SealKeyId, path: &Path) {
    match key_file::read("--seal-key", path) {
        Ok(keys) if keys.contains(key) => {
            tracing::info!(%key, "reread the seal key file");
            warn_unless_first(key, &keys, path);
        }
        Ok(keys) => tracing::error!(
            "seal key file {}: it contains {keys}, and not the key {key}, which seals the store and its \
             backups. The seal key of a store cannot be replaced: put the key {key} back. This server \
             goes on with the key in its memory, and cannot start again without it",
            path.display()
        ),
        Err(failure) => tracing::error!(
            "{failure}; this server goes on with the key {key} in its memory, which seals the store, and \
             cannot start again without it"
        ),
    }
}

fn warn_unless_first(key: SealKeyId, keys: &SealKeys, path: &Path) {
    if keys.first().id() != key {
        tracing::warn!(
            "seal key file {}: its first key does not seal the store, because the seal key of a store \
             cannot be replaced: keep the key {key} in the file",
            path.display()
        );
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
