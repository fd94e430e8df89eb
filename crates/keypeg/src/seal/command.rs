//! `keypeg seal`: creates a seal key, and replaces the seal key of a data directory that no server
//! uses.
//!
//! A running server replaces it by itself, see `reload.rs`.

use super::key_file;
use crate::SystemRandom;
use crate::config::DATA;
use crate::failure::{Failure, exit};
use crate::streams;
use clap::{Args, Subcommand};
use keypeg_core::RandomSource as _;
use keypeg_engine::{SEAL_KEY_LEN, SealKey, SealUse, StartError, rotate_seal_key};
use rustix::fs::{Mode, OFlags, open};
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// A command on seal keys.
#[derive(Debug, Subcommand)]
pub enum SealCommand {
    /// Create a seal key in a new file, for --seal-key
    ///
    /// Without this file nothing opens the values that the key seals: keep a copy of it in another
    /// place than the data directory and its backups.
    New(NewSealKey),
    /// Replace the seal key of a data directory that no server uses
    ///
    /// A running server replaces it without a stop: write the new key before the old one into the
    /// file of --seal-key, and send SIGHUP.
    Rotate(RotateSealKey),
}

/// The options of `keypeg seal new`.
#[derive(Debug, Args)]
pub struct NewSealKey {
    /// File to create, with mode 0600
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

/// The options of `keypeg seal rotate`.
#[derive(Debug, Args)]
pub struct RotateSealKey {
    /// Data directory
    #[arg(long, env = "KEYPEG_DATA", value_name = "DIR", default_value = DATA)]
    data: PathBuf,
    /// File with the key that seals the directory now
    #[arg(long, value_name = "FILE")]
    seal_key: PathBuf,
    /// File with the new key
    #[arg(long, value_name = "FILE")]
    new_seal_key: PathBuf,
}

impl SealCommand {
    /// Runs the command and prints its result to stdout.
    pub fn run(&self) -> Result<(), Failure> {
        let line = match self {
            Self::New(options) => options.run()?,
            Self::Rotate(options) => options.run()?,
        };
        // The file is written: a closed stdout is no failure.
        let _ = streams::print(&line);
        Ok(())
    }
}

impl NewSealKey {
    fn run(&self) -> Result<String, Failure> {
        let path = self.file.display();
        let mut bytes = Zeroizing::new([0; SEAL_KEY_LEN]);
        SystemRandom::new().fill(&mut *bytes);
        let id = SealKey::new(*bytes).id();
        let mut text = Zeroizing::new(format!("# Seal key {id} of keypeg\n"));
        text.reserve(2 * SEAL_KEY_LEN + 1);
        for byte in *bytes {
            write!(text, "{byte:02x}").expect("invariant: writing to a string never fails");
        }
        text.push('\n');
        create(&self.file, text.as_bytes()).map_err(|error| {
            let (code, step) = if error.kind() == ErrorKind::AlreadyExists {
                (exit::CANNOT_CREATE, "name a file that does not exist: no key is overwritten")
            } else if error.kind() == ErrorKind::PermissionDenied {
                (exit::PERMISSION, "check the directory")
            } else {
                (exit::CANNOT_CREATE, "check the path")
            };
            Failure::new(code, format!("cannot create {path}: {error}; {step}"))
        })?;
        // A key must not remain where others could read or replace it.
        key_file::read("seal new", &self.file)
            .inspect_err(|_| drop(std::fs::remove_file(&self.file)))?;
        Ok(format!(
            "created {path} with the seal key {id}: keep a copy of it apart from the data directory\n"
        ))
    }
}

impl RotateSealKey {
    fn run(&self) -> Result<String, Failure> {
        let old = key_file::read("--seal-key", &self.seal_key)?;
        let new = key_file::read("--new-seal-key", &self.new_seal_key)?;
        let dir = self.data.display();
        let used = rotate_seal_key(&self.data, &old, &new, &mut SystemRandom::new());
        let used = used.map_err(|error| {
            if let StartError::InUse { dir } = error {
                let message = format!(
                    "{dir} is in use by another process: stop it, or let the server rotate: write \
                     the new key before the old one into the file of --seal-key, and send SIGHUP"
                );
                return Failure::new(exit::TEMPORARY, message);
            }
            error.into()
        })?;
        Ok(match used {
            SealUse::Unchanged(key) => format!("{dir} is sealed with the key {key} already\n"),
            SealUse::Rotated { from, to } => {
                format!("{dir} is sealed with the key {to}; before, with {from}\n")
            }
        })
    }
}

/// Creates a file that only this user can read, durably.
fn create(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let mode = Mode::RUSR | Mode::WUSR;
    let file = open(path, flags, mode)?;
    // Whatever the umask is, the owner must be able to read it.
    rustix::fs::fchmod(&file, mode)?;
    let mut file = File::from(file);
    let written = file.write_all(bytes).and_then(|()| file.sync_all());
    let parent = path.parent().filter(|parent| *parent != Path::new("")).unwrap_or(Path::new("."));
    let written = written.and_then(|()| File::open(parent)?.sync_all());
    written.inspect_err(|_| drop(std::fs::remove_file(path)))
}
