//! The audit log: one line of JSON per requested change, with the caller and the outcome.
//!
//! A change reserves its place in the queue of lines before it is made, so that no change lacks its
//! line. Refusals at admission are summed up. A separate thread writes the lines. Knows nothing of
//! HTTP or access tokens.

mod file;
mod line;
mod queue;
mod refusals;
mod writer;

pub(crate) use file::Settings as AuditSettings;
pub(crate) use line::{Line, Outcome};
pub(crate) use queue::{Audit, AuditCounters, Entry, Refusal};
pub(crate) use writer::AuditWriter;

use crate::failure::{Failure, exit};
use crate::permissions::{Trusted, Verdict, examine_way};
use file::LogFile;
use queue::{QUEUE_MAX, State};
use std::io;
use std::sync::Arc;
use tokio::sync::mpsc;

/// Opens the log file and starts the writing thread.
pub(crate) fn open(settings: AuditSettings) -> Result<(Audit, AuditWriter), Failure> {
    let path = settings.path.clone();
    // Not refused: a log in a shared volume is better than none.
    if let Ok(Verdict::Exposed(reason) | Verdict::Doubtful(reason)) =
        examine_way(&path, "file", Trusted::own())
    {
        tracing::warn!("audit log {}: {reason}", path.display());
    }
    let log = LogFile::open(settings).map_err(|error| {
        let is_denied = error.kind() == io::ErrorKind::PermissionDenied;
        let code = if is_denied { exit::PERMISSION } else { exit::CANNOT_CREATE };
        let path = path.display();
        Failure::new(code, format!("cannot open the audit log {path}: {error}; check --audit"))
    })?;
    let (lines, messages) = mpsc::channel(QUEUE_MAX);
    let state = Arc::<State>::default();
    let writer = AuditWriter::start(log, (lines.clone(), messages), Arc::clone(&state))?;
    Ok((Audit::new(lines, state), writer))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;
    use crate::share::CallerId;
    use keypeg_testkit::TempDir;

    fn settings(dir: &TempDir, file_max: u64, keep: u32) -> AuditSettings {
        AuditSettings { path: dir.path().join("audit"), file_max, keep }
    }

    fn lines(dir: &TempDir, name: &str) -> Vec<String> {
        let text = std::fs::read_to_string(dir.path().join(name)).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn an_entry_is_one_line_whatever_it_contains() {
        let dir = TempDir::new();
        let (audit, writer) = open(settings(&dir, 1 << 20, 0)).unwrap();
        let mut entry = audit.begin().unwrap();
        entry.line.request_id = "a\"}\n{\"operation\":\"b\u{2028}\u{7f}".into();
        entry.line.pool("ci\nx");
        entry.line.holder = Some("a\"}\n\u{202e}".into());
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
        assert_eq!(first["holder"], "a\"}\n\u{202e}");
        assert_eq!(second["outcome"], "unknown", "the entry was dropped");
    }

    /// A change without a line must not happen: the queue has `QUEUE_MAX` places, reserved first.
    #[test]
    fn a_change_without_a_place_in_the_queue_is_refused() {
        let dir = TempDir::new();
        let (audit, writer) = open(settings(&dir, 1 << 30, 0)).unwrap();
        let entries: Vec<_> = (0..QUEUE_MAX + 10).filter_map(|_| audit.begin()).collect();
        assert_eq!((entries.len(), audit.counters().refused), (QUEUE_MAX, 10));
        drop(entries);
        writer.end();
        assert_eq!(lines(&dir, "audit").len(), QUEUE_MAX);
    }

    /// While all places are taken the first refusal of a caller has no line of its own.
    #[test]
    fn each_refusal_is_in_a_line_when_the_log_ends_and_all_lines_count() {
        let dir = TempDir::new();
        let (audit, writer) = open(settings(&dir, 1 << 30, 0)).unwrap();
        let caller = CallerId::of_address(Some([192, 0, 2, 1].into()));
        let refuse = || {
            let at = clock::stopwatch();
            audit.refused(&caller, Refusal { status: 401, code: "unauthorized", at }, |_| {});
        };
        let entries: Vec<_> = (0..QUEUE_MAX).map(|_| audit.begin().unwrap()).collect();
        refuse();
        drop(entries);
        refuse();
        writer.end();
        let lines = lines(&dir, "audit");
        assert_eq!(audit.counters().written, lines.len() as u64);
        assert_eq!(lines.len(), QUEUE_MAX + 1);
        let last: serde_json::Value = serde_json::from_str(lines.last().unwrap()).unwrap();
        assert_eq!((&last["count"], &last["address"]), (&2.into(), &"192.0.2.1".into()));
    }

    #[test]
    fn a_log_that_cannot_be_written_refuses_changes_until_it_can() {
        let dir = TempDir::new();
        let below = dir.path().join("below");
        std::fs::create_dir(&below).unwrap();
        let settings = AuditSettings { path: below.join("audit"), file_max: 1, keep: 0 };
        let (audit, writer) = open(settings).unwrap();
        audit.begin().unwrap().end(Outcome::Applied, 201, None);
        while audit.counters().written < 1 {
            std::thread::yield_now();
        }
        // The next line rotates the file, whose directory no longer exists.
        let entry = audit.begin().unwrap();
        std::fs::remove_dir_all(&below).unwrap();
        entry.end(Outcome::Applied, 202, None);
        while !audit.counters().is_failing {
            std::thread::yield_now();
        }
        assert!(audit.begin().is_none());
        std::fs::create_dir(&below).unwrap();
        while audit.counters().is_failing {
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
        let Err(refused) = open(settings(&dir, 1, 0)) else { panic!("the link is followed") };
        assert!(refused.to_string().contains("it is a symbolic link"), "{refused}");
        std::fs::remove_file(dir.path().join("audit")).unwrap();
        let (_audit, writer) = open(settings(&dir, 1, 0)).unwrap();
        let mode = std::fs::metadata(dir.path().join("audit")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        writer.end();
    }
}
