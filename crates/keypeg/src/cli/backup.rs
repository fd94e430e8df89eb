//! `keypeg backup`: writes a backup of a server to a file or to stdout, and checks it on the way.
//!
//! A file appears under its name only when the backup is complete and durable. It contains the
//! values of all keys, so only its owner can read it.

use super::new_keys::require_stdout;
use super::progress::{Progress, Unit};
use super::server::ServerArgs;
use crate::failure::{Failure, exit, is_full};
use crate::store::BackupCheck;
use crate::streams;
use clap::Args;
use rustix::fs::{FlockOperation, Mode, OFlags, fchmod, flock, open};
use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};

/// Bytes of a file that are synced together. The disk can be that of the server's journal: its
/// commits would wait for one long sync at the end.
const SYNC_EVERY: usize = 1 << 20;

/// The options of `keypeg backup`.
#[derive(Debug, Args)]
pub struct BackupArgs {
    /// File to create; - is stdout
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Replace the file if it exists, once the new backup is complete
    #[arg(long)]
    force: bool,
    /// The server and the token, which needs the scope `admin`.
    #[command(flatten)]
    server: ServerArgs,
}

impl BackupArgs {
    /// Creates the backup.
    pub(super) async fn run(&self) -> Result<u8, Failure> {
        if self.file == Path::new("-") {
            require_stdout()?;
            if io::stdout().is_terminal() {
                let message = "a backup is binary and contains the values of all keys: redirect \
                               stdout, or name a file";
                return Err(Failure::new(exit::USAGE, message));
            }
            let failed = |error| write_error("stdout", &error);
            let mut out = io::stdout();
            self.copy(&mut |bytes| out.write_all(bytes).map_err(failed)).await?;
            io::stdout().flush().map_err(failed)?;
            return Ok(0);
        }
        if !self.force && self.file.symlink_metadata().is_ok() {
            let message = format!(
                "{} exists: use another name, or --force to replace it",
                self.file.display()
            );
            return Err(Failure::new(exit::CANNOT_CREATE, message));
        }
        let partial = PartialFile::create(&self.file)?;
        let mut file = &partial.file;
        let failed = |error| file_error(&partial.path, &error);
        let mut unsynced = 0;
        let mut write = |bytes: &[u8]| {
            file.write_all(bytes).map_err(failed)?;
            unsynced += bytes.len();
            if unsynced < SYNC_EVERY {
                return Ok(());
            }
            unsynced = 0;
            file.sync_data().map_err(failed)
        };
        let bytes = self.copy(&mut write).await?;
        partial.keep(&self.file)?;
        if !self.server.output.quiet {
            streams::print_message(&format!("{bytes} bytes written to {}", self.file.display()));
        }
        Ok(0)
    }

    /// Passes the bytes of a backup to `write`; returns their number once the backup is complete.
    async fn copy(
        &self,
        write: &mut dyn FnMut(&[u8]) -> Result<(), Failure>,
    ) -> Result<u64, Failure> {
        let mut backup = self.server.client()?.backup().await?;
        let (mut check, mut count) = (BackupCheck::default(), 0);
        // The server does not know beforehand how long its backup will be.
        let mut progress =
            Progress::new(self.server.output.quiet, "writing the backup", Unit::Bytes, None);
        let damaged = |error| {
            let message = format!("the backup did not arrive as the server sent it: {error}");
            Failure::new(exit::PROTOCOL, message)
        };
        while let Some(bytes) = backup.next().await? {
            let bytes = bytes.as_ref();
            check.feed(bytes).map_err(damaged)?;
            write(bytes)?;
            count += bytes.len() as u64;
            progress.set(count);
        }
        check.finish().map_err(damaged)?;
        Ok(count)
    }
}

fn write_error(name: &str, error: &io::Error) -> Failure {
    Failure::new(exit::IO, format!("cannot write to {name}: {error}; the backup is incomplete"))
}

/// Returns the error of a write to the file of a backup, which then does not get its name.
fn file_error(path: &Path, error: &io::Error) -> Failure {
    let step = if is_full(error) {
        "free space there, or name a file on another disk"
    } else {
        "check the disk of this file, or name a file on another one"
    };
    let path = path.display();
    let message = format!(
        "cannot write to {path}: {error}; the backup is incomplete and was removed: {step}"
    );
    Failure::new(exit::IO, message)
}

/// A file that is not complete yet, beside the file that it becomes. It is removed unless it is
/// kept.
struct PartialFile {
    path: PathBuf,
    file: File,
    is_kept: std::cell::Cell<bool>,
}

impl PartialFile {
    /// Creates the file, or takes over the one that an interrupted backup left.
    fn create(target: &Path) -> Result<Self, Failure> {
        let mut name = target.as_os_str().to_owned();
        name.push(".partial");
        let path = PathBuf::from(name);
        let failed = |error: rustix::io::Errno| {
            let (code, step) = match error {
                rustix::io::Errno::ACCESS => (exit::PERMISSION, "check its directory"),
                rustix::io::Errno::NOENT => (exit::CANNOT_CREATE, "create its directory first"),
                _ => (exit::CANNOT_CREATE, "check the path"),
            };
            Failure::new(code, format!("cannot create {}: {error}; {step}", path.display()))
        };
        let mode = Mode::RUSR | Mode::WUSR;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = File::from(open(&path, flags, mode).map_err(failed)?);
        flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|error| {
            if error == rustix::io::Errno::WOULDBLOCK {
                let message =
                    format!("another backup writes to {}: wait until it ends", path.display());
                return Failure::new(exit::TEMPORARY, message);
            }
            failed(error)
        })?;
        // Whatever the umask is: before the first value is written.
        fchmod(&file, mode).map_err(failed)?;
        file.set_len(0).map_err(|error| file_error(&path, &error))?;
        Ok(Self { path, file, is_kept: std::cell::Cell::new(false) })
    }

    /// Makes the file durable under its final name.
    fn keep(&self, target: &Path) -> Result<(), Failure> {
        let kept = self.file.sync_all().and_then(|()| std::fs::rename(&self.path, target));
        kept.map_err(|error| file_error(target, &error))?;
        self.is_kept.set(true);
        let parent = target.parent().filter(|parent| *parent != Path::new(""));
        let synced = File::open(parent.unwrap_or(Path::new("."))).and_then(|dir| dir.sync_all());
        synced.map_err(|error| {
            let message = format!(
                "{} is complete, but its name may not survive a power cut: {error}",
                target.display()
            );
            Failure::new(exit::IO, message)
        })
    }
}

impl Drop for PartialFile {
    fn drop(&mut self) {
        if !self.is_kept.get() {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}
