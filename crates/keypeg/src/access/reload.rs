//! The token file: reads it, checks its permissions, and reloads it within a second of a change.
//!
//! Twice a second and at SIGHUP the whole file is read and compared, so that no change is missed,
//! whatever its timestamps. An invalid file changes nothing; its error is logged once.

use super::Gate;
use crate::failure::{Failure, exit};
use rustix::fs::{FileType, Mode, OFlags, fstat, open, stat};
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{MissedTickBehavior, interval};

/// Interval between two reads of the file.
const RELOAD_INTERVAL: Duration = Duration::from_millis(500);
/// The largest token file, in bytes.
const FILE_MAX: u64 = 4 << 20;

/// The reason why a token file cannot be used.
#[derive(Debug)]
pub(crate) enum TokenFileError {
    /// The system could not read it.
    Io(io::Error),
    /// It is not a regular file, or another user could write or replace it.
    Mode(String),
    /// Its content is invalid.
    Content(String),
}

impl std::fmt::Display for TokenFileError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Io(error) => write!(f, "{error}"),
            Self::Mode(message) | Self::Content(message) => f.write_str(message),
        }
    }
}

impl TokenFileError {
    /// Returns the failure of a command that needs the file.
    pub(crate) fn into_failure(self, path: &Path) -> Failure {
        let code = match &self {
            Self::Io(error) if error.kind() == io::ErrorKind::NotFound => exit::NO_INPUT,
            Self::Io(error) if error.kind() == io::ErrorKind::PermissionDenied => exit::PERMISSION,
            Self::Io(_) => exit::IO,
            Self::Mode(_) | Self::Content(_) => exit::CONFIG,
        };
        Failure::new(code, format!("token file {}: {self}", path.display()))
    }
}

/// The text of a token file, and whether every user of the machine can read it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TokenFile {
    pub(crate) text: String,
    pub(crate) is_world_readable: bool,
}

/// Reads the token file, if only its owner can write or replace it. Symbolic links are followed,
/// because secrets are mounted into containers that way; the permissions of the target count.
pub(crate) fn read_token_file(path: &Path) -> Result<TokenFile, TokenFileError> {
    check_directories(path)?;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file =
        open(path, flags, Mode::empty()).map_err(|error| TokenFileError::Io(error.into()))?;
    let stat = fstat(&file).map_err(|error| TokenFileError::Io(error.into()))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(TokenFileError::Mode("not a regular file".into()));
    }
    let mode = Mode::from_raw_mode(stat.st_mode);
    if mode.intersects(Mode::WGRP | Mode::WOTH) {
        return Err(TokenFileError::Mode(
            "other users can write this file: run chmod 0600 on it".into(),
        ));
    }
    let mut text = String::new();
    File::from(file).take(FILE_MAX + 1).read_to_string(&mut text).map_err(TokenFileError::Io)?;
    if text.len() as u64 > FILE_MAX {
        return Err(TokenFileError::Content(format!("the file is larger than {FILE_MAX} bytes")));
    }
    Ok(TokenFile { text, is_world_readable: mode.contains(Mode::ROTH) })
}

/// Refuses a file whose directory lets every user replace it. Checks the directory of the path and,
/// for a symbolic link, the directory of the target. A directory with the sticky bit is accepted.
fn check_directories(path: &Path) -> Result<(), TokenFileError> {
    let real = std::fs::canonicalize(path).map_err(TokenFileError::Io)?;
    for file in [path, &real] {
        let directory = match file.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        let mode = stat(directory).map_err(|error| TokenFileError::Io(error.into()))?.st_mode;
        let mode = Mode::from_raw_mode(mode);
        if mode.contains(Mode::WOTH) && !mode.contains(Mode::SVTX) {
            let directory = directory.display();
            return Err(TokenFileError::Mode(format!(
                "other users can replace this file, since they can write to {directory}: \
                 run chmod o-w on that directory"
            )));
        }
    }
    Ok(())
}

/// Starts a thread that reloads the file for as long as the gate exists.
pub(crate) fn watch(gate: &Arc<Gate>) -> Result<(), Failure> {
    let failed = |error| Failure::new(exit::OS, format!("cannot watch the token file: {error}"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(failed)?;
    let hangup = runtime.block_on(async { signal(SignalKind::hangup()) }).map_err(failed)?;
    let gate = Arc::downgrade(gate);
    std::thread::Builder::new()
        .name("keypeg-tokens".into())
        .spawn(move || runtime.block_on(reload_on_change(gate, hangup)))
        .map(drop)
        .map_err(failed)
}

async fn reload_on_change(gate: Weak<Gate>, mut hangup: Signal) {
    let mut ticks = interval(RELOAD_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut last, mut was_world_readable) = (None, false);
    loop {
        let is_requested = tokio::select! {
            _ = ticks.tick() => false,
            _ = hangup.recv() => true,
        };
        let Some(gate) = gate.upgrade() else { return };
        let file = read_token_file(&gate.path);
        let is_world_readable = file.as_ref().is_ok_and(|file| file.is_world_readable);
        if is_world_readable && !was_world_readable {
            let path = gate.path.display();
            tracing::warn!(
                "token file {path}: every user of this machine can read the names and hashes of \
                 the tokens: run chmod 0640 or 0600 on it"
            );
        }
        was_world_readable = is_world_readable;
        let text = file.map(|file| file.text);
        // An unchanged error is logged once, but a SIGHUP always logs its result.
        let now = text.as_ref().map(String::clone).map_err(ToString::to_string);
        if last.as_ref() == Some(&now) && !is_requested {
            continue;
        }
        let is_first = last.replace(now).is_none();
        match gate.reload(text) {
            Ok(count) if !is_first || is_requested => {
                tracing::info!(count, "reloaded the access tokens");
            }
            Ok(_) => {}
            Err(error) => {
                let path = gate.path.display();
                tracing::error!("token file {path}: {error}; the tokens loaded before stay valid");
            }
        }
    }
}
