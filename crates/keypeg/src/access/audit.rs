//! The audit log: a line of JSON for each change that was asked for, by whom, and what came of it.
//!
//! A line has its place before the change is made: where none is free, or the file cannot be
//! written, changes are refused, so that none is made that could not be told. Lines are written by a
//! thread of their own, off every request's way. No line has a key's value, a lease's id or a token.

use crate::clock;
use crate::failure::{Failure, exit};
use keypeg_client::UnixMs;
use keypeg_engine::core::{KeyId, PoolName};
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

/// Lines that may wait to be written; more than there can be requests, so that those who wait in
/// line for a key leave room.
const QUEUE_MAX: usize = 16_384;
/// Keys that one line names; how many there were it tells in any case.
const KEYS_MAX: usize = 100;
/// Bytes written at once.
const WRITE_MAX: usize = 64 << 10;
/// How long a file that cannot be written is let be.
const RETRY: Duration = Duration::from_secs(1);

/// Where the log is, and how much of it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) path: PathBuf,
    /// Bytes after which another file is begun.
    pub(crate) file_max: u64,
    /// Older files that are kept.
    pub(crate) keep: u32,
}

/// The log as requests see it.
#[derive(Debug)]
pub(crate) struct Audit {
    lines: mpsc::Sender<Told>,
    state: Arc<State>,
}

#[derive(Debug, Default)]
struct State {
    failing: AtomicBool,
    stopping: AtomicBool,
    written: AtomicU64,
    refused: AtomicU64,
}

#[derive(Debug)]
enum Told {
    Line(Box<Line>),
    Over,
}

/// What came of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Outcome {
    /// It was done.
    Applied,
    /// It was not.
    Refused,
    /// Nobody was left to be answered, or the server failed at it.
    #[default]
    Unknown,
}

/// One line.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Line {
    at: String,
    pub(crate) request_id: String,
    /// The token's name; null where none is configured or none was right.
    #[serde(serialize_with = "words")]
    pub(crate) token: Option<Arc<str>>,
    pub(crate) address: Option<IpAddr>,
    pub(crate) operation: &'static str,
    pub(crate) pool: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    key_ids: Vec<String>,
    /// How many keys it was about, where it was about keys.
    #[serde(skip_serializing_if = "Option::is_none")]
    keys: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) fencing_token: Option<u64>,
    outcome: Outcome,
    status: Option<u16>,
    code: Option<&'static str>,
}

#[expect(clippy::ref_option, reason = "what serde calls it with")]
fn words<S: serde::Serializer>(text: &Option<Arc<str>>, to: S) -> Result<S::Ok, S::Error> {
    text.as_deref().serialize(to)
}

impl Line {
    pub(crate) fn pool(&mut self, name: &str) {
        self.pool = PoolName::parse(name).map(|name| name.as_str().into());
    }

    pub(crate) fn keys(&mut self, ids: impl ExactSizeIterator<Item = KeyId>) {
        self.keys = Some(ids.len());
        self.key_ids = ids.take(KEYS_MAX).map(|id| id.to_string()).collect();
    }
}

/// A line's place in the log. Dropped unfinished it tells that the outcome is not known.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) line: Line,
    place: Option<OwnedPermit<Told>>,
}

impl Entry {
    /// Tells what came of it.
    pub(crate) fn end(mut self, outcome: Outcome, status: u16, code: Option<&'static str>) {
        (self.line.outcome, self.line.status, self.line.code) = (outcome, Some(status), code);
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let Some(place) = self.place.take() else { return };
        let mut line = std::mem::take(&mut self.line);
        line.at = UnixMs(clock::wall_ms()).to_string();
        place.send(Told::Line(Box::new(line)));
    }
}

impl Audit {
    /// Opens the log and starts the thread that writes it.
    pub(crate) fn open(settings: Settings) -> Result<(Self, Writer), Failure> {
        let failed = |error: io::Error| {
            let denied = error.kind() == io::ErrorKind::PermissionDenied;
            let code = if denied { exit::PERMISSION } else { exit::CANNOT_CREATE };
            let path = settings.path.display();
            Failure::new(code, format!("opening the audit log {path}: {error}"))
        };
        let log = Log::open(&settings).map_err(failed)?;
        let (lines, told) = mpsc::channel(QUEUE_MAX);
        let state = Arc::<State>::default();
        let shared = Arc::clone(&state);
        let thread = std::thread::Builder::new()
            .name("keypeg-audit".into())
            .spawn(move || write(told, log, &settings, &shared))
            .map_err(|error| Failure::new(exit::OS, format!("starting the audit log: {error}")))?;
        let writer = Writer { lines: lines.clone(), state: Arc::clone(&state), thread };
        Ok((Self { lines, state }, writer))
    }

    /// Takes a place in the log; `None` where there is none, or the file cannot be written: then the
    /// change is not to be made.
    pub(crate) fn begin(&self) -> Option<Entry> {
        let failing = self.state.failing.load(Ordering::Relaxed);
        let place = self.lines.clone().try_reserve_owned().ok().filter(|_| !failing);
        if place.is_none() {
            self.state.refused.fetch_add(1, Ordering::Relaxed);
        }
        Some(Entry { line: Line::default(), place: Some(place?) })
    }

    /// Lines written, changes refused for want of the log, and whether it cannot be written now.
    pub(crate) fn told(&self) -> (u64, u64, bool) {
        let State { failing, written, refused, .. } = &*self.state;
        let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
        (count(written), count(refused), failing.load(Ordering::Relaxed))
    }
}

/// The thread that writes.
#[derive(Debug)]
pub(crate) struct Writer {
    lines: mpsc::Sender<Told>,
    state: Arc<State>,
    thread: JoinHandle<()>,
}

impl Writer {
    /// Has all that was told written and synced, if that can be done, and ends.
    pub(crate) fn end(self) {
        self.state.stopping.store(true, Ordering::Relaxed);
        self.thread.thread().unpark();
        let _ = self.lines.blocking_send(Told::Over);
        if self.thread.join().is_err() {
            tracing::error!("the audit log's thread panicked");
        }
    }
}

fn write(mut told: mpsc::Receiver<Told>, mut log: Log, settings: &Settings, state: &State) {
    let (mut bytes, mut over) = (Vec::new(), false);
    while !over {
        let mut lines = 0;
        let mut next = told.blocking_recv();
        loop {
            match next {
                Some(Told::Line(line)) => {
                    serde_json::to_writer(&mut bytes, &line)
                        .expect("invariant: a line always serialises");
                    bytes.push(b'\n');
                    lines += 1;
                }
                Some(Told::Over) | None => over = true,
            }
            if over || bytes.len() >= WRITE_MAX {
                break;
            }
            match told.try_recv() {
                Ok(line) => next = Some(line),
                Err(_) => break,
            }
        }
        while let Err(error) = log.write(settings, &bytes) {
            if !state.failing.swap(true, Ordering::Relaxed) {
                let path = settings.path.display();
                tracing::error!(
                    "the audit log {path} cannot be written: {error}; changes are refused"
                );
            }
            if state.stopping.load(Ordering::Relaxed) {
                tracing::error!(lines, "lines of the audit log are lost");
                break;
            }
            std::thread::park_timeout(RETRY);
        }
        bytes.clear();
        state.failing.store(false, Ordering::Relaxed);
        state.written.fetch_add(lines, Ordering::Relaxed);
    }
    log.sync();
}

/// The file that is written, and how long it is.
#[derive(Debug)]
struct Log {
    file: Option<File>,
    len: u64,
}

impl Log {
    fn open(settings: &Settings) -> io::Result<Self> {
        let file = open_new_or_old(&settings.path)?;
        let len = file.metadata()?.len();
        Ok(Self { file: Some(file), len })
    }

    /// Adds whole lines. What a failed write left of one is cut off, as well as that goes.
    fn write(&mut self, settings: &Settings, bytes: &[u8]) -> io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        let full = self.len > 0 && self.len + bytes.len() as u64 > settings.file_max;
        if full || self.file.is_none() {
            if full {
                self.sync();
                self.file = None;
                rotate(settings)?;
            }
            *self = Self::open(settings)?;
        }
        let file = self.file.as_mut().expect("invariant: it was opened");
        let written = file.write_all(bytes);
        if written.is_ok() {
            self.len += bytes.len() as u64;
        } else {
            drop(file.set_len(self.len));
            // Opened anew for the next try: it may be there again, or elsewhere.
            self.file = None;
        }
        written
    }

    fn sync(&self) {
        if let Some(Err(error)) = self.file.as_ref().map(File::sync_data) {
            tracing::warn!(%error, "the audit log could not be synced");
        }
    }
}

/// A link is not followed, and what is there must be a file.
fn open_new_or_old(path: &Path) -> io::Result<File> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::APPEND | OFlags::CLOEXEC;
    let flags = flags | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = File::from(open(path, flags, Mode::RUSR | Mode::WUSR)?);
    if file.metadata()?.is_file() {
        return Ok(file);
    }
    Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no file"))
}

/// Gives each file the next number; the last is replaced by the one before it.
fn rotate(settings: &Settings) -> io::Result<()> {
    let named = |number: u32| {
        let mut name = OsString::from(settings.path.clone());
        if number > 0 {
            name.push(format!(".{number}"));
        }
        PathBuf::from(name)
    };
    if settings.keep == 0 {
        return match std::fs::remove_file(named(0)) {
            // Whoever took it away has done what was to be done.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        };
    }
    for number in (0..settings.keep).rev() {
        match rename(named(number), named(number + 1)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            renamed => renamed?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory of the test's own, removed with it.
    struct Dir(PathBuf);

    impl Dir {
        fn new(name: &str) -> Self {
            let name = format!("keypeg-audit-{}-{name}", std::process::id());
            let dir = std::env::temp_dir().join(name);
            std::fs::create_dir(&dir).unwrap();
            Self(dir)
        }

        fn settings(&self, file_max: u64, keep: u32) -> Settings {
            Settings { path: self.0.join("audit"), file_max, keep }
        }

        fn lines(&self, name: &str) -> Vec<String> {
            let text = std::fs::read_to_string(self.0.join(name)).unwrap_or_default();
            text.lines().map(str::to_owned).collect()
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn files_are_bounded_in_size_and_number() {
        let dir = Dir::new("rotates");
        let settings = dir.settings(10, 2);
        let mut log = Log::open(&settings).unwrap();
        for n in 0..9 {
            log.write(&settings, format!("line{n}\n").as_bytes()).unwrap();
        }
        drop(log);
        let mut log = Log::open(&settings).unwrap();
        log.write(&settings, b"more\n").unwrap();
        assert_eq!(dir.lines("audit"), ["more"], "a length that was found counts");
        assert_eq!([dir.lines("audit.1"), dir.lines("audit.2")], [["line8"], ["line7"]]);
        assert_eq!(std::fs::read_dir(&dir.0).unwrap().count(), 3);
    }

    #[test]
    fn each_line_is_one_whatever_is_in_it() {
        let dir = Dir::new("lines");
        let (audit, writer) = Audit::open(dir.settings(1 << 20, 0)).unwrap();
        let mut entry = audit.begin().unwrap();
        entry.line.request_id = "a\"}\n{\"operation\":\"b\u{2028}\u{7f}".into();
        entry.line.pool("ci\nx");
        entry.end(Outcome::Applied, 201, None);
        let entry = audit.begin().unwrap();
        drop(entry);
        writer.end();
        let lines = dir.lines("audit");
        let read = |line: &String| serde_json::from_str::<serde_json::Value>(line).unwrap();
        let [first, second] = &lines.iter().map(read).collect::<Vec<_>>()[..] else {
            panic!("{lines:?}")
        };
        assert_eq!(first["request_id"], "a\"}\n{\"operation\":\"b\u{2028}\u{7f}");
        assert_eq!((&first["outcome"], &first["status"]), (&"applied".into(), &201.into()));
        assert!(first["pool"].is_null(), "no pool can be called that");
        assert_eq!(second["outcome"], "unknown", "nobody was left to say");
    }

    /// Nothing is changed that could not be told: a place is taken first, and there are so many.
    #[test]
    fn without_a_place_there_is_no_change() {
        let dir = Dir::new("places");
        let (audit, writer) = Audit::open(dir.settings(1 << 30, 0)).unwrap();
        let places: Vec<_> = (0..QUEUE_MAX + 10).filter_map(|_| audit.begin()).collect();
        assert_eq!((places.len(), audit.told().1), (QUEUE_MAX, 10));
        drop(places);
        writer.end();
        assert_eq!(dir.lines("audit").len(), QUEUE_MAX);
    }

    #[test]
    fn a_log_that_cannot_be_written_refuses_until_it_can() {
        let dir = Dir::new("fails");
        let below = dir.0.join("below");
        std::fs::create_dir(&below).unwrap();
        let settings = Settings { path: below.join("audit"), file_max: 1, keep: 0 };
        let (audit, writer) = Audit::open(settings).unwrap();
        audit.begin().unwrap().end(Outcome::Applied, 201, None);
        while audit.told().0 < 1 {
            std::thread::yield_now();
        }
        // The next line begins another file, whose directory is no longer there.
        std::fs::remove_dir_all(&below).unwrap();
        audit.begin().unwrap().end(Outcome::Applied, 202, None);
        while !audit.told().2 {
            std::thread::yield_now();
        }
        assert!(audit.begin().is_none());
        std::fs::create_dir(&below).unwrap();
        while audit.told().2 {
            writer.thread.thread().unpark();
            std::thread::yield_now();
        }
        assert!(audit.begin().is_some(), "and what was told meanwhile is there:");
        writer.end();
        let text = std::fs::read_to_string(below.join("audit")).unwrap_or_default();
        assert_eq!((text.lines().count(), audit.told().0), (1, 3), "{text}");
        assert!(text.contains("unknown"), "the last line has a file of its own: {text}");
    }

    #[test]
    fn a_link_is_not_followed_and_others_cannot_read() {
        use std::os::unix::fs::PermissionsExt;
        let dir = Dir::new("link");
        let elsewhere = dir.0.join("elsewhere");
        std::fs::write(&elsewhere, "").unwrap();
        std::os::unix::fs::symlink(&elsewhere, dir.0.join("audit")).unwrap();
        assert!(Audit::open(dir.settings(1, 0)).is_err());
        std::fs::remove_file(dir.0.join("audit")).unwrap();
        let (_audit, writer) = Audit::open(dir.settings(1, 0)).unwrap();
        let mode = std::fs::metadata(dir.0.join("audit")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        writer.end();
    }
}
