//! The log of a server on stderr, and every other line that a server prints.
//!
//! No line can end or block the thread that writes it: each goes into a bounded queue, and a thread
//! of the stream writes it (`log/stream.rs`). A line that the stream cannot take is lost and
//! counted. Does not know what the lines say.

mod stream;

use crate::failure::{Failure, exit};
use crate::variables;
use clap::error::Error as UsageError;
use std::io::{self, IsTerminal, Write};
use std::time::Duration;
use stream::LineQueue;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

static STDERR: LineQueue = LineQueue::new();
static STDOUT: LineQueue = LineQueue::new();

/// How long the end of the process waits for the lines that are still in the queues.
const FLUSH_TIME: Duration = Duration::from_millis(500);

/// Starts the threads that write to stderr and stdout. From then on no line blocks its caller. If a
/// thread cannot start, its stream gets direct writes, and each line of the log counts as lost.
pub fn start_streams() {
    // The failure shows in the metric of lost lines.
    let _ = stream::start(&STDERR, "keypeg-stderr", io::stderr());
    let _ = stream::start(&STDOUT, "keypeg-stdout", io::stdout());
}

/// Sends the log to stderr, at the level that `KEYPEG_LOG` names (`info` when it is not set). To be
/// called after [`start_streams`].
pub fn log_to_stderr() -> Result<(), Failure> {
    let level = std::env::var(variables::LOG).unwrap_or_else(|_| "info".into());
    let filter = EnvFilter::builder().parse(&level).map_err(|error| {
        let message = format!(
            "KEYPEG_LOG={level:?} is not a log filter: {error}; use a level such as info or debug"
        );
        Failure::new(exit::CONFIG, message)
    })?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(LogLines)
        // It would report its own errors with `eprintln!`, which panics.
        .log_internal_errors(false)
        .with_ansi(false)
        .init();
    Ok(())
}

/// Prints a line on stderr, for a person: not part of the log. A command writes it itself, a server
/// queues it.
pub(crate) fn report(line: &str) {
    report_text(format!("{line}\n").into_bytes());
}

/// Like [`report`], for text that has its line ends.
pub(crate) fn report_text(text: Vec<u8>) {
    if let Err(text) = STDERR.push(text) {
        // With stderr closed there is no other place to report to.
        let _ = io::stderr().write_all(&text);
    }
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
