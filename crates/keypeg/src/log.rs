//! The log of a server on stderr, and every other line that a server prints.
//!
//! No line can end or block the thread that writes it: each goes into a bounded queue, and a thread
//! of the stream writes it (`log/stream.rs`). A line that the stream cannot take is lost and
//! counted. With the format `json` each line is one object, also a message that is no part of the
//! log. Does not know what the lines say.

mod stream;

use crate::clock;
use crate::failure::{Failure, exit};
use crate::variables;
use clap::error::Error as UsageError;
use keypeg_client::UnixMs;
use serde::Deserialize;
use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use stream::LineQueue;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

static STDERR: LineQueue = LineQueue::new(lost_note);
static STDOUT: LineQueue = LineQueue::new(plain_lost_note);
/// Whether the lines on stderr are JSON.
static IS_JSON: AtomicBool = AtomicBool::new(false);

/// How long the end of the process waits for the lines that are still in the queues.
const FLUSH_TIME: Duration = Duration::from_millis(500);

/// The format of the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "toml::Value")]
pub enum LogFormat {
    /// A line of text: time, level, target, message and fields.
    #[default]
    Text,
    /// A line of JSON: one object with the members `timestamp`, `level`, `target` and `message`, and
    /// one for each field.
    Json,
}

/// Starts the threads that write to stderr and stdout. From then on no line blocks its caller. If a
/// thread cannot start, its stream gets direct writes, and each line of the log counts as lost.
pub fn start_streams() {
    // The failure shows in the metric of lost lines.
    let _ = stream::start(&STDERR, "keypeg-stderr", io::stderr());
    let _ = stream::start(&STDOUT, "keypeg-stdout", io::stdout());
}

/// Sets the format of every further line on stderr.
pub(crate) fn set_format(format: LogFormat) {
    IS_JSON.store(format == LogFormat::Json, Ordering::Relaxed);
}

/// Sends the log to stderr, at the level that `KEYPEG_LOG` names (`info` when it is not set). To be
/// called after [`start_streams`].
pub fn log_to_stderr(format: LogFormat) -> Result<(), Failure> {
    set_format(format);
    let level = std::env::var(variables::LOG).unwrap_or_else(|_| "info".into());
    let filter = EnvFilter::builder().parse(&level).map_err(|error| {
        let message = format!(
            "KEYPEG_LOG={level:?} is not a log filter: {error}; use a level such as info or debug"
        );
        Failure::new(exit::CONFIG, message)
    })?;
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(LogLines)
        // It would report its own errors with `eprintln!`, which panics.
        .log_internal_errors(false)
        .with_ansi(false);
    match format {
        LogFormat::Text => lines.init(),
        LogFormat::Json => {
            lines.json().flatten_event(true).with_current_span(false).with_span_list(false).init();
        }
    }
    Ok(())
}

/// Prints a line on stderr, for a person: not part of the log. A command writes it itself, a server
/// queues it.
pub(crate) fn report(line: &str) {
    report_text(format!("{line}\n").into_bytes());
}

/// Like [`report`], for text that has its line ends.
pub(crate) fn report_text(text: Vec<u8>) {
    let text = if IS_JSON.load(Ordering::Relaxed) {
        json_line("ERROR", String::from_utf8_lossy(&text).trim_end())
    } else {
        text
    };
    if let Err(text) = STDERR.push(text) {
        // With stderr closed there is no other place to report to.
        let _ = io::stderr().write_all(&text);
    }
}

/// Returns a line that is no part of the log in the form of one.
fn json_line(level: &str, message: &str) -> Vec<u8> {
    let timestamp = UnixMs(clock::wall_ms());
    let message = message.strip_prefix("keypeg: ").unwrap_or(message);
    let line = serde_json::json!({
        "timestamp": timestamp, "level": level, "target": "keypeg", "message": message,
    });
    format!("{line}\n").into_bytes()
}

/// Returns the note in place of lines that stderr lost.
fn lost_note(lost: u64) -> Vec<u8> {
    if IS_JSON.load(Ordering::Relaxed) {
        return json_line("WARN", &format!("{lost} lines were lost here"));
    }
    plain_lost_note(lost)
}

fn plain_lost_note(lost: u64) -> Vec<u8> {
    format!("keypeg: {lost} lines were lost here\n").into_bytes()
}

/// Prints a line on stdout. A command writes it itself, a server queues it.
pub fn print_line(line: &str) {
    if let Err(text) = STDOUT.push(format!("{line}\n").into_bytes()) {
        let mut out = io::stdout().lock();
        // The process continues when stdout is closed.
        let _ = out.write_all(&text).and_then(|()| out.flush());
    }
}

/// Reports an invalid command line of `serve`, in colour if stderr is a terminal.
pub fn report_usage(error: &UsageError) {
    let text = error.render();
    let is_terminal = io::stderr().is_terminal();
    let text = if is_terminal { text.ansi().to_string() } else { text.to_string() };
    report_text(text.into_bytes());
}

/// Waits until the queued lines are written, for half a second at most for each stream. To be
/// called before the process ends.
pub fn flush_streams() {
    for queue in [&STDERR, &STDOUT] {
        queue.flush(FLUSH_TIME);
    }
}

/// Like [`flush_streams`], for a tenth of that time: for an end that an operator waits for.
pub(crate) fn flush_streams_briefly() {
    STDERR.flush(FLUSH_TIME / 10);
}

/// Returns how many lines were lost since the start.
pub(crate) fn lines_lost() -> u64 {
    STDERR.lost() + STDOUT.lost()
}

/// Queues each line of the log.
#[derive(Clone, Copy, Debug)]
struct LogLines;

impl<'a> MakeWriter<'a> for LogLines {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        *self
    }
}

impl Write for LogLines {
    /// Takes one line: the log formats each one completely before it writes it.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if STDERR.push(line.to_vec()).is_err() {
            STDERR.count_lost();
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    #[test]
    fn a_message_that_is_no_part_of_the_log_is_one_line_of_json_too() {
        let line = json_line("ERROR", "keypeg: thread a panicked\n  at \"x\"");
        let (last, object) = line.split_last().unwrap();
        assert_eq!(*last, b'\n');
        assert!(!object.contains(&b'\n'));
        let object: Value = serde_json::from_slice(object).unwrap();
        assert_eq!(object["message"], "thread a panicked\n  at \"x\"");
        assert_eq!((&object["level"], &object["target"]), (&"ERROR".into(), &"keypeg".into()));
        assert!(object["timestamp"].as_str().unwrap().ends_with('Z'));
    }
}
