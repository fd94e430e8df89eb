//! The tokens' file, read again and again: what it says now holds within a second.
//!
//! Twice a second, and at SIGHUP, it is read and compared as a whole, so that no change is too quick
//! or too clever to be seen. A file that cannot be taken changes nothing, and says so once.

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

/// How often the file is read.
const EVERY: Duration = Duration::from_millis(500);
/// The largest file, in bytes.
const FILE_MAX: u64 = 4 << 20;

/// Why a tokens' file cannot be taken.
#[derive(Debug)]
pub(crate) enum Unread {
    /// The system says no.
    Io(io::Error),
    /// Somebody else could have written it.
    Mode(String),
    /// What it says is wrong.
    Content(String),
}

impl std::fmt::Display for Unread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Io(error) => write!(f, "{error}"),
            Self::Mode(wrong) | Self::Content(wrong) => f.write_str(wrong),
        }
    }
}

impl Unread {
    /// What the server says where it cannot start for it.
    pub(crate) fn failure(self, path: &Path) -> Failure {
        let code = match &self {
            Self::Io(error) if error.kind() == io::ErrorKind::NotFound => exit::NO_INPUT,
            Self::Io(error) if error.kind() == io::ErrorKind::PermissionDenied => exit::PERMISSION,
            Self::Io(_) => exit::IO,
            Self::Mode(_) | Self::Content(_) => exit::CONFIG,
        };
        Failure::new(code, format!("tokens in {}: {self}", path.display()))
    }
}

/// What was read, and whether everybody on the machine can read it too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) text: String,
    pub(crate) readable: bool,
}

/// Reads the file, if nobody but its owner can write it or put another in its place. Links are followed: that is how secrets are
/// mounted into containers. What it leads to is what is judged.
pub(crate) fn read(path: &Path) -> Result<Found, Unread> {
    check_directories(path)?;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = open(path, flags, Mode::empty()).map_err(|error| Unread::Io(error.into()))?;
    let stat = fstat(&file).map_err(|error| Unread::Io(error.into()))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(Unread::Mode("it is no file".into()));
    }
    let mode = Mode::from_raw_mode(stat.st_mode);
    if mode.intersects(Mode::WGRP | Mode::WOTH) {
        return Err(Unread::Mode("others can write it: chmod 0600".into()));
    }
    let mut text = String::new();
    File::from(file).take(FILE_MAX + 1).read_to_string(&mut text).map_err(Unread::Io)?;
    if text.len() as u64 > FILE_MAX {
        return Err(Unread::Content(format!("it is larger than {FILE_MAX} bytes")));
    }
    Ok(Found { text, readable: mode.contains(Mode::ROTH) })
}

/// Refuses a file in a directory in which anybody may put another in its place: of the file as it is
/// named, and where a link leads, of what it leads to.
fn check_directories(path: &Path) -> Result<(), Unread> {
    let real = std::fs::canonicalize(path).map_err(Unread::Io)?;
    for file in [path, &real] {
        let directory = match file.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        let mode = stat(directory).map_err(|error| Unread::Io(error.into()))?.st_mode;
        let mode = Mode::from_raw_mode(mode);
        if mode.contains(Mode::WOTH) && !mode.contains(Mode::SVTX) {
            let directory = directory.display();
            return Err(Unread::Mode(format!("others can write in {directory}: chmod o-w")));
        }
    }
    Ok(())
}

/// Follows the file as long as the gate is there.
pub(crate) fn watch(gate: &Arc<Gate>) -> Result<(), Failure> {
    let failed = |error| Failure::new(exit::OS, format!("watching the tokens: {error}"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(failed)?;
    let hangup = runtime.block_on(async { signal(SignalKind::hangup()) }).map_err(failed)?;
    let gate = Arc::downgrade(gate);
    std::thread::Builder::new()
        .name("keypeg-tokens".into())
        .spawn(move || runtime.block_on(follow(gate, hangup)))
        .map(drop)
        .map_err(failed)
}

async fn follow(gate: Weak<Gate>, mut hangup: Signal) {
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut last, mut was_readable) = (None, false);
    loop {
        let asked = tokio::select! {
            _ = ticks.tick() => false,
            _ = hangup.recv() => true,
        };
        let Some(gate) = gate.upgrade() else { return };
        let found = read(&gate.path);
        let readable = found.as_ref().is_ok_and(|found| found.readable);
        if readable && !was_readable {
            let path = gate.path.display();
            tracing::warn!(
                "tokens in {path}: everybody on this machine can read their names and hashes: \
                 chmod 0640 or 0600"
            );
        }
        was_readable = readable;
        let text = found.map(|found| found.text);
        // What is as wrong as before is said once; what somebody asks for is always answered.
        let now = text.as_ref().map(String::clone).map_err(ToString::to_string);
        if last.as_ref() == Some(&now) && !asked {
            continue;
        }
        let first = last.replace(now).is_none();
        match gate.take(text) {
            Ok(count) if !first || asked => tracing::info!(count, "access tokens read anew"),
            Ok(_) => {}
            Err(error) => {
                let path = gate.path.display();
                tracing::error!("tokens in {path}: {error}; those from before hold");
            }
        }
    }
}
