//! The audit log: one line of JSON per requested change, with the caller and the outcome.
//!
//! A change reserves its place in the queue of lines before it is made. With a full queue or a file
//! that cannot be written, changes are refused, so that no change lacks its line. A dedicated
//! thread writes the lines. No line contains a key's value, a lease id or a token.

use crate::clock;
use crate::failure::{Failure, exit};
use keypeg_client::UnixMs;
use keypeg_core::{KeyId, PoolName};
use rustix::fs::{Mode, OFlags, open};
use serde::Serialize;
use std::ffi::OsString;
use std::fs::{File, rename};
use std::io::{self, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::mpsc::{self, OwnedPermit};

/// Lines that may wait to be written. More than the limit on requests, so that acquires in a wait
/// queue, which reserve a place each, leave enough for others.
const QUEUE_MAX: usize = 16_384;
/// Key ids in one line; the number of keys is always exact.
const KEYS_MAX: usize = 100;
/// Bytes per write, about.
const WRITE_MAX: usize = 64 << 10;
/// Pause before the next attempt after a failed write.
const RETRY: Duration = Duration::from_secs(1);

/// The path of the log, and how much of it to keep.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) path: PathBuf,
    /// Size in bytes above which the file is rotated.
    pub(crate) file_max: u64,
    /// Number of rotated files to keep.
    pub(crate) keep: u32,
}

/// The audit log as requests use it.
#[derive(Debug)]
pub(crate) struct Audit {
    lines: mpsc::Sender<Message>,
    state: Arc<State>,
}

#[derive(Debug, Default)]
struct State {
    is_failing: AtomicBool,
    is_stopping: AtomicBool,
    written: AtomicU64,
    refused: AtomicU64,
}

/// A message to the writing thread.
#[derive(Debug)]
enum Message {
    Line(Box<Line>),
    Stop,
}

/// The outcome of a requested change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Outcome {
    /// The change was made.
    Applied,
    /// The change was not made.
    Refused,
    /// The client disconnected before the answer, or the server failed.
    #[default]
    Unknown,
}

/// One line of the log; the field names are part of its format.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Line {
    at: String,
    pub(crate) request_id: String,
    /// The token's name; null without configured tokens or a valid token.
    #[serde(serialize_with = "serialize_name")]
    pub(crate) token: Option<Arc<str>>,
    pub(crate) address: Option<IpAddr>,
    pub(crate) operation: &'static str,
    pub(crate) pool: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    key_ids: Vec<String>,
    /// The number of keys, for an operation on keys.
    #[serde(skip_serializing_if = "Option::is_none")]
    keys: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) fencing_token: Option<u64>,
    outcome: Outcome,
    status: Option<u16>,
    code: Option<&'static str>,
}

#[expect(clippy::ref_option, reason = "the signature that serde calls")]
fn serialize_name<S: serde::Serializer>(name: &Option<Arc<str>>, to: S) -> Result<S::Ok, S::Error> {
    name.as_deref().serialize(to)
}

impl Line {
    /// Sets the pool, if the name is valid.
    pub(crate) fn pool(&mut self, name: &str) {
        self.pool = PoolName::parse(name).map(|name| name.as_str().into());
    }

    /// Sets the number of keys and the first `KEYS_MAX` ids.
    pub(crate) fn keys(&mut self, ids: impl ExactSizeIterator<Item = KeyId>) {
        self.keys = Some(ids.len());
        self.key_ids = ids.take(KEYS_MAX).map(|id| id.to_string()).collect();
    }
}

/// A line with its reserved place in the queue. Dropped before [`Entry::end`] it is written with
/// the outcome `unknown`.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) line: Line,
    permit: Option<OwnedPermit<Message>>,
}

impl Entry {
    /// Sets the outcome and queues the line.
    pub(crate) fn end(mut self, outcome: Outcome, status: u16, code: Option<&'static str>) {
        (self.line.outcome, self.line.status, self.line.code) = (outcome, Some(status), code);
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let Some(permit) = self.permit.take() else { return };
        let mut line = std::mem::take(&mut self.line);
        line.at = UnixMs(clock::wall_ms()).to_string();
        permit.send(Message::Line(Box::new(line)));
    }
}

impl Audit {
    /// Opens the log file and starts the writing thread.
    pub(crate) fn open(settings: Settings) -> Result<(Self, Writer), Failure> {
        let failed = |error: io::Error| {
            let is_denied = error.kind() == io::ErrorKind::PermissionDenied;
            let code = if is_denied { exit::PERMISSION } else { exit::CANNOT_CREATE };
            let path = settings.path.display();
            Failure::new(code, format!("cannot open the audit log {path}: {error}; check --audit"))
        };
        let log = Log::open(&settings).map_err(failed)?;
        let (lines, messages) = mpsc::channel(QUEUE_MAX);
        let state = Arc::<State>::default();
        let shared = Arc::clone(&state);
        let thread = std::thread::Builder::new()
            .name("keypeg-audit".into())
            .spawn(move || run_writer(messages, log, &settings, &shared))
            .map_err(|error| {
                Failure::new(exit::OS, format!("cannot start the audit log's thread: {error}"))
            })?;
        let writer = Writer { lines: lines.clone(), state: Arc::clone(&state), thread };
        Ok((Self { lines, state }, writer))
    }

    /// Reserves a place for a line. Returns `None` with a full queue or a file that cannot be
    /// written: then the caller must refuse the change.
    pub(crate) fn begin(&self) -> Option<Entry> {
        let is_failing = self.state.is_failing.load(Ordering::Relaxed);
        let permit = self.lines.clone().try_reserve_owned().ok().filter(|_| !is_failing);
        if permit.is_none() {
            self.state.refused.fetch_add(1, Ordering::Relaxed);
        }
        Some(Entry { line: Line::default(), permit: Some(permit?) })
    }

    /// Returns the counters.
    pub(crate) fn counters(&self) -> AuditCounters {
        let State { is_failing, written, refused, .. } = &*self.state;
        AuditCounters {
            written: written.load(Ordering::Relaxed),
            refused: refused.load(Ordering::Relaxed),
            is_failing: is_failing.load(Ordering::Relaxed),
        }
    }
}

/// The counters of an audit log.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AuditCounters {
    /// The lines written.
    pub(crate) written: u64,
    /// The changes refused because the log could not take their entry.
    pub(crate) refused: u64,
    /// Whether the last write failed.
    pub(crate) is_failing: bool,
}

/// The handle of the writing thread.
#[derive(Debug)]
pub(crate) struct Writer {
    lines: mpsc::Sender<Message>,
    state: Arc<State>,
    thread: JoinHandle<()>,
}

impl Writer {
    /// Writes and syncs all queued lines, if possible, and ends the thread.
    pub(crate) fn end(self) {
        self.state.is_stopping.store(true, Ordering::Relaxed);
        self.thread.thread().unpark();
        let _ = self.lines.blocking_send(Message::Stop);
        if self.thread.join().is_err() {
            tracing::error!("the audit log's thread panicked: lines may be lost");
        }
    }
}

fn run_writer(
    mut messages: mpsc::Receiver<Message>,
    mut log: Log,
    settings: &Settings,
    state: &State,
) {
    let (mut bytes, mut is_last) = (Vec::new(), false);
    while !is_last {
        let mut lines = 0;
        let mut next = messages.blocking_recv();
        loop {
            match next {
                Some(Message::Line(line)) => {
                    serde_json::to_writer(&mut bytes, &line)
                        .expect("invariant: a line always serialises");
                    bytes.push(b'\n');
                    lines += 1;
                }
                Some(Message::Stop) | None => is_last = true,
            }
            if is_last || bytes.len() >= WRITE_MAX {
                break;
            }
            match messages.try_recv() {
                Ok(message) => next = Some(message),
                Err(_) => break,
            }
        }
        while let Err(error) = log.write(settings, &bytes) {
            if !state.is_failing.swap(true, Ordering::Relaxed) {
                let path = settings.path.display();
                tracing::error!(
                    "cannot write the audit log {path}: {error}; changes are refused until a write \
                     succeeds"
                );
            }
            if state.is_stopping.load(Ordering::Relaxed) {
                tracing::error!(
                    lines,
                    "the audit log could not be written before the stop: lines are lost"
                );
                break;
            }
            std::thread::park_timeout(RETRY);
        }
        bytes.clear();
        state.is_failing.store(false, Ordering::Relaxed);
        state.written.fetch_add(lines, Ordering::Relaxed);
    }
    log.sync();
}

/// The open log file and its length.
#[derive(Debug)]
struct Log {
    file: Option<File>,
    len: u64,
}

impl Log {
    fn open(settings: &Settings) -> io::Result<Self> {
        let file = create_or_open(&settings.path)?;
        let len = file.metadata()?.len();
        Ok(Self { file: Some(file), len })
    }

    /// Appends whole lines. After a failed write the file is truncated to its old length, if
    /// possible.
    fn write(&mut self, settings: &Settings, bytes: &[u8]) -> io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        let is_full = self.len > 0 && self.len + bytes.len() as u64 > settings.file_max;
        if is_full || self.file.is_none() {
            if is_full {
                self.sync();
                self.file = None;
                rotate(settings)?;
            }
            *self = Self::open(settings)?;
        }
        let file = self.file.as_mut().expect("invariant: the file is open");
        let written = file.write_all(bytes);
        if written.is_ok() {
            self.len += bytes.len() as u64;
        } else {
            drop(file.set_len(self.len));
            // Reopened for the next attempt: the path may lead to another file by then.
            self.file = None;
        }
        written
    }

    fn sync(&self) {
        if let Some(Err(error)) = self.file.as_ref().map(File::sync_data) {
            tracing::warn!(%error, "cannot sync the audit log");
        }
    }
}

/// Creates or opens the file. A symbolic link is not followed, and only a regular file is accepted.
fn create_or_open(path: &Path) -> io::Result<File> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::APPEND | OFlags::CLOEXEC;
    let flags = flags | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = File::from(open(path, flags, Mode::RUSR | Mode::WUSR)?);
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
        let mut log = Log::open(&settings).unwrap();
        for n in 0..9 {
            log.write(&settings, format!("line{n}\n").as_bytes()).unwrap();
        }
        drop(log);
        let mut log = Log::open(&settings).unwrap();
        log.write(&settings, b"more\n").unwrap();
        assert_eq!(lines(&dir, "audit"), ["more"], "the length of an existing file counts");
        assert_eq!([lines(&dir, "audit.1"), lines(&dir, "audit.2")], [["line8"], ["line7"]]);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 3);
    }

    #[test]
    fn an_entry_is_one_line_whatever_it_contains() {
        let dir = TempDir::new();
        let (audit, writer) = Audit::open(settings(&dir, 1 << 20, 0)).unwrap();
        let mut entry = audit.begin().unwrap();
        entry.line.request_id = "a\"}\n{\"operation\":\"b\u{2028}\u{7f}".into();
        entry.line.pool("ci\nx");
        entry.end(Outcome::Applied, 201, None);
        let entry = audit.begin().unwrap();
        drop(entry);
        writer.end();
        let lines = lines(&dir, "audit");
        let read = |line: &String| serde_json::from_str::<serde_json::Value>(line).unwrap();
        let [first, second] = &lines.iter().map(read).collect::<Vec<_>>()[..] else {
            panic!("{lines:?}")
        };
        assert_eq!(first["request_id"], "a\"}\n{\"operation\":\"b\u{2028}\u{7f}");
        assert_eq!((&first["outcome"], &first["status"]), (&"applied".into(), &201.into()));
        assert!(first["pool"].is_null(), "the pool name is invalid");
        assert_eq!(second["outcome"], "unknown", "the entry was dropped");
    }

    /// A change without a line must not happen: the queue has `QUEUE_MAX` places, reserved first.
    #[test]
    fn a_change_without_a_place_in_the_queue_is_refused() {
        let dir = TempDir::new();
        let (audit, writer) = Audit::open(settings(&dir, 1 << 30, 0)).unwrap();
        let entries: Vec<_> = (0..QUEUE_MAX + 10).filter_map(|_| audit.begin()).collect();
        assert_eq!((entries.len(), audit.counters().refused), (QUEUE_MAX, 10));
        drop(entries);
        writer.end();
        assert_eq!(lines(&dir, "audit").len(), QUEUE_MAX);
    }

    #[test]
    fn a_log_that_cannot_be_written_refuses_changes_until_it_can() {
        let dir = TempDir::new();
        let below = dir.path().join("below");
        std::fs::create_dir(&below).unwrap();
        let settings = Settings { path: below.join("audit"), file_max: 1, keep: 0 };
        let (audit, writer) = Audit::open(settings).unwrap();
        audit.begin().unwrap().end(Outcome::Applied, 201, None);
        while audit.counters().written < 1 {
            std::thread::yield_now();
        }
        // The next line rotates the file, whose directory no longer exists.
        std::fs::remove_dir_all(&below).unwrap();
        audit.begin().unwrap().end(Outcome::Applied, 202, None);
        while !audit.counters().is_failing {
            std::thread::yield_now();
        }
        assert!(audit.begin().is_none());
        std::fs::create_dir(&below).unwrap();
        while audit.counters().is_failing {
            writer.thread.thread().unpark();
            std::thread::yield_now();
        }
        assert!(audit.begin().is_some(), "a write succeeded, so changes are accepted");
        writer.end();
        let text = std::fs::read_to_string(below.join("audit")).unwrap_or_default();
        assert_eq!((text.lines().count(), audit.counters().written), (1, 3), "{text}");
        assert!(text.contains("unknown"), "the last line is alone in its file: {text}");
    }

    #[test]
    fn a_link_is_not_followed_and_other_users_cannot_read_the_file() {
        use std::os::unix::fs::PermissionsExt;
        let dir = TempDir::new();
        let elsewhere = dir.path().join("elsewhere");
        std::fs::write(&elsewhere, "").unwrap();
        std::os::unix::fs::symlink(&elsewhere, dir.path().join("audit")).unwrap();
        assert!(Audit::open(settings(&dir, 1, 0)).is_err());
        std::fs::remove_file(dir.path().join("audit")).unwrap();
        let (_audit, writer) = Audit::open(settings(&dir, 1, 0)).unwrap();
        let mode = std::fs::metadata(dir.path().join("audit")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        writer.end();
    }
}
