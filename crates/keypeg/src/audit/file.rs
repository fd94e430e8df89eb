//! The files of the audit log: opened, rotated by size, and reopened when the path leads elsewhere.
//!
//! Knows bytes of whole lines only. A write is complete or leaves no part of a line, as far as the
//! disk allows.

use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use std::ffi::OsString;
use std::fs::{File, rename};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The path of the log, and how much of it to keep.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) path: PathBuf,
    /// Size in bytes above which the file is rotated.
    pub(crate) file_max: u64,
    /// Number of rotated files to keep.
    pub(crate) keep: u32,
}

/// The open log file and its length.
#[derive(Debug)]
pub(super) struct LogFile {
    settings: Settings,
    file: Option<File>,
    len: u64,
}

impl LogFile {
    pub(super) fn open(settings: Settings) -> io::Result<Self> {
        let mut log = Self { settings, file: None, len: 0 };
        log.reopen()?;
        Ok(log)
    }

    pub(super) fn path(&self) -> &Path {
        &self.settings.path
    }

    /// Closes the file, which another process may have moved, and opens or creates the one that the
    /// path leads to.
    pub(super) fn reopen(&mut self) -> io::Result<()> {
        self.close();
        let file = create_or_open(&self.settings.path)?;
        self.len = file.metadata()?.len();
        self.file = Some(file);
        Ok(())
    }

    /// Syncs and closes the file; the next write opens what the path leads to.
    pub(super) fn close(&mut self) {
        self.sync();
        self.file = None;
    }

    /// Reopens the file if the path no longer leads to it, because it was moved or removed; returns
    /// whether it did.
    pub(super) fn follow_path(&mut self) -> io::Result<bool> {
        if let Some(file) = &self.file {
            let of_file = file.metadata()?;
            match std::fs::symlink_metadata(&self.settings.path) {
                Ok(of_path) if (of_path.dev(), of_path.ino()) == (of_file.dev(), of_file.ino()) => {
                    // Another process may have truncated it.
                    self.len = of_file.len();
                    return Ok(false);
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        self.reopen()?;
        Ok(true)
    }

    /// Appends whole lines. After a failed write the file is truncated to its old length, if
    /// possible.
    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        let is_full = self.len > 0 && self.len + bytes.len() as u64 > self.settings.file_max;
        if is_full && self.file.is_some() {
            self.close();
            rotate(&self.settings)?;
        }
        if self.file.is_none() {
            self.reopen()?;
        }
        let file = self.file.as_mut().expect("invariant: the file is open");
        let written = file.write_all(bytes);
        if written.is_ok() {
            self.len += bytes.len() as u64;
        } else {
            if file.metadata().is_ok_and(|metadata| metadata.len() > self.len) {
                drop(file.set_len(self.len));
            }
            // Reopened for the next attempt: the path may lead to another file by then.
            self.file = None;
        }
        written
    }

    pub(super) fn sync(&self) {
        if let Some(Err(error)) = self.file.as_ref().map(File::sync_data) {
            tracing::warn!(%error, "cannot sync the audit log");
        }
    }
}

/// Creates or opens the file. A symbolic link is not followed, and only a regular file is accepted.
fn create_or_open(path: &Path) -> io::Result<File> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::APPEND | OFlags::CLOEXEC;
    let flags = flags | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let mode = Mode::RUSR | Mode::WUSR;
    if let Ok(file) = open(path, flags | OFlags::EXCL, mode) {
        // Whatever the umask is, the next start must be able to open the file.
        rustix::fs::fchmod(&file, mode)?;
        return Ok(File::from(file));
    }
    let file = File::from(open(path, flags, mode).map_err(|error| match error {
        Errno::LOOP => io::Error::new(
            io::ErrorKind::InvalidInput,
            "it is a symbolic link, which is not followed: name the file itself",
        ),
        error => error.into(),
    })?);
    if file.metadata()?.is_file() {
        return Ok(file);
    }
    Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"))
}

/// Renames each file to the next number, which replaces the last one.
fn rotate(settings: &Settings) -> io::Result<()> {
    let path_of = |number: u32| {
        let mut name = OsString::from(settings.path.clone());
        if number > 0 {
            name.push(format!(".{number}"));
        }
        PathBuf::from(name)
    };
    if settings.keep == 0 {
        return match std::fs::remove_file(path_of(0)) {
            // Another process has removed it already.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        };
    }
    for number in (0..settings.keep).rev() {
        match rename(path_of(number), path_of(number + 1)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            renamed => renamed?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use keypeg_testkit::TempDir;

    fn settings(dir: &TempDir, file_max: u64, keep: u32) -> Settings {
        Settings { path: dir.path().join("audit"), file_max, keep }
    }

    fn lines(dir: &TempDir, name: &str) -> Vec<String> {
        let text = std::fs::read_to_string(dir.path().join(name)).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn files_are_bounded_in_size_and_number() {
        let dir = TempDir::new();
        let settings = settings(&dir, 10, 2);
        let mut log = LogFile::open(settings.clone()).unwrap();
        for n in 0..9 {
            log.write(format!("line{n}\n").as_bytes()).unwrap();
        }
        drop(log);
        let mut log = LogFile::open(settings).unwrap();
        log.write(b"more\n").unwrap();
        assert_eq!(lines(&dir, "audit"), ["more"], "the length of an existing file counts");
        assert_eq!([lines(&dir, "audit.1"), lines(&dir, "audit.2")], [["line8"], ["line7"]]);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 3);
    }

    #[test]
    fn a_file_is_filled_to_its_last_byte() {
        let dir = TempDir::new();
        let mut log = LogFile::open(settings(&dir, 12, 1)).unwrap();
        for line in ["line0\n", "line1\n"] {
            log.write(line.as_bytes()).unwrap();
        }
        assert_eq!(lines(&dir, "audit"), ["line0", "line1"], "12 bytes");
        log.write(b"line2\n").unwrap();
        assert_eq!((lines(&dir, "audit.1").len(), lines(&dir, "audit")), (2, vec!["line2".into()]));
    }

    #[test]
    fn a_moved_removed_replaced_or_truncated_file_is_noticed() {
        let dir = TempDir::new();
        let mut log = LogFile::open(settings(&dir, 20, 1)).unwrap();
        let (path, moved) = (dir.path().join("audit"), dir.path().join("moved"));
        log.write(b"one\n").unwrap();
        assert!(!log.follow_path().unwrap(), "the same file");
        rename(&path, &moved).unwrap();
        assert!(log.follow_path().unwrap());
        log.write(b"two\n").unwrap();
        assert_eq!(
            (lines(&dir, "moved"), lines(&dir, "audit")),
            (vec!["one".into()], vec!["two".into()])
        );
        std::fs::remove_file(&path).unwrap();
        assert!(log.follow_path().unwrap());
        std::fs::write(dir.path().join("other"), "other\n").unwrap();
        rename(dir.path().join("other"), &path).unwrap();
        assert!(log.follow_path().unwrap());
        log.write(b"three\n").unwrap();
        assert_eq!(lines(&dir, "audit"), ["other", "three"]);
        File::options().write(true).open(&path).unwrap().set_len(0).unwrap();
        assert!(!log.follow_path().unwrap());
        log.write(b"0123456789012345\n").unwrap();
        assert_eq!(lines(&dir, "audit"), ["0123456789012345"], "its length starts again at 0");
        assert!(!dir.path().join("audit.1").exists(), "it was not full");
        // A link that is put in its place is not followed.
        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink(&moved, &path).unwrap();
        assert!(log.follow_path().is_err());
        assert_eq!(lines(&dir, "moved"), ["one"]);
    }

    /// A device takes every line and keeps none.
    #[test]
    fn a_device_is_no_log() {
        let settings = Settings { path: "/dev/null".into(), file_max: 10, keep: 0 };
        let error = LogFile::open(settings).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }

    /// The path can lead to a file with space by the next attempt: an operator made that one.
    #[test]
    fn a_failed_write_is_followed_by_one_to_the_file_at_the_path() {
        let dir = TempDir::new();
        let settings = settings(&dir, 100, 1);
        let path = settings.path.clone();
        let mut log = LogFile::open(settings).unwrap();
        // A file that was opened for reading takes no bytes.
        log.file = Some(File::open(&path).unwrap());
        log.write(b"one\n").unwrap_err();
        rename(&path, dir.path().join("moved")).unwrap();
        log.write(b"two\n").unwrap();
        assert_eq!((lines(&dir, "moved").len(), lines(&dir, "audit")), (0, vec!["two".into()]));
    }
}
