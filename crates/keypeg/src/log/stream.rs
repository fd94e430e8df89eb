//! One output stream: a bounded queue of lines, and the thread that writes them.
//!
//! Adding a line never waits for the stream: no system call is made under the lock. The thread
//! waits until the stream can take more, so a full pipe blocks only this thread. A line that does
//! not fit into the queue, or that the stream refuses, is lost and counted; the next line that is
//! written states the number.

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::{Errno, write};
use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Bytes of lines that may wait to be written.
const QUEUE_MAX: usize = 1 << 20;
/// Bytes of one write: `PIPE_BUF` of Linux. A pipe that poll(2) reports as writable takes as many
/// without blocking.
const WRITE_MAX: usize = 4_096;
/// The pause after a stream was reported as writable and refused the write for now.
const RETRY: Duration = Duration::from_millis(10);

/// The queue of one stream.
#[derive(Debug)]
pub(super) struct LineQueue {
    state: Mutex<State>,
    changed: Condvar,
    lost: AtomicU64,
    /// Returns the line in place of a number of lost lines.
    note: fn(u64) -> Vec<u8>,
}

#[derive(Debug)]
struct State {
    lines: VecDeque<Vec<u8>>,
    /// The bytes of `lines`.
    bytes: usize,
    /// Whether the thread that writes has started.
    is_started: bool,
    /// Whether the thread is writing a line that it has taken.
    is_writing: bool,
}

impl LineQueue {
    pub(super) const fn new(note: fn(u64) -> Vec<u8>) -> Self {
        let state =
            State { lines: VecDeque::new(), bytes: 0, is_started: false, is_writing: false };
        Self { state: Mutex::new(state), changed: Condvar::new(), lost: AtomicU64::new(0), note }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a line, or counts it as lost. Without a thread returns the line.
    pub(super) fn push(&self, line: Vec<u8>) -> Result<(), Vec<u8>> {
        let mut state = self.lock();
        if !state.is_started {
            return Err(line);
        }
        if state.bytes + line.len() > QUEUE_MAX {
            self.count_lost();
            return Ok(());
        }
        state.bytes += line.len();
        state.lines.push_back(line);
        drop(state);
        self.changed.notify_all();
        Ok(())
    }

    pub(super) fn count_lost(&self) {
        self.lost.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns the number of lines that were lost.
    pub(super) fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Waits until all lines are written or lost, for `time` at most.
    pub(super) fn flush(&self, time: Duration) {
        let has_more =
            |state: &mut State| state.is_started && (state.is_writing || !state.lines.is_empty());
        drop(self.changed.wait_timeout_while(self.lock(), time, has_more));
    }

    /// Waits for the next line; the line before it is written or lost.
    fn next(&self) -> Vec<u8> {
        let mut state = self.lock();
        state.is_writing = false;
        self.changed.notify_all();
        let is_empty = |state: &mut State| state.lines.is_empty();
        let state = self.changed.wait_while(state, is_empty);
        let mut state = state.unwrap_or_else(PoisonError::into_inner);
        let line = state.lines.pop_front().expect("invariant: the queue has a line");
        state.bytes -= line.len();
        state.is_writing = true;
        line
    }
}

/// Starts the thread that writes the lines of a queue, if it does not run yet.
pub(super) fn start(
    queue: &'static LineQueue,
    name: &str,
    stream: impl AsFd + Send + 'static,
) -> io::Result<()> {
    let mut state = queue.lock();
    if !state.is_started {
        let run = move || run(queue, &stream);
        std::thread::Builder::new().name(name.into()).spawn(run)?;
        state.is_started = true;
    }
    Ok(())
}

fn run(queue: &LineQueue, stream: &impl AsFd) {
    let mut end = StreamEnd::default();
    loop {
        let line = queue.next();
        let lost = queue.lost();
        let text = end.text_of(&line, lost, queue.note);
        let written = write_all(stream, &text);
        if written < text.len() {
            queue.count_lost();
        }
        end.advance(&text, written, lost);
    }
}

/// What the stream contains so far, as far as the next line depends on it.
#[derive(Debug, Default)]
struct StreamEnd {
    /// Whether the stream ends in a part of a line: a full disk took no more.
    is_torn: bool,
    /// How many lost lines the stream has reported.
    reported: u64,
}

impl StreamEnd {
    /// Returns the text to write for a line, when `lost` lines have been lost.
    fn text_of(&self, line: &[u8], lost: u64, note: fn(u64) -> Vec<u8>) -> Vec<u8> {
        let mut text = if self.is_torn { vec![b'\n'] } else { Vec::new() };
        if lost > self.reported {
            text.extend_from_slice(&note(lost - self.reported));
        }
        text.extend_from_slice(line);
        text
    }

    /// Notes that `written` bytes of such a text are in the stream.
    fn advance(&mut self, text: &[u8], written: usize, lost: u64) {
        if written == text.len() {
            self.reported = lost;
        }
        self.is_torn = text[..written].last().map_or(self.is_torn, |last| *last != b'\n');
    }
}

/// Writes all bytes, and waits for the stream while it is full. Returns how many bytes it took
/// before an error.
fn write_all(stream: &impl AsFd, bytes: &[u8]) -> usize {
    let mut written = 0;
    while written < bytes.len() {
        // An error of poll(2) shows in the write.
        let _ = poll(&mut [PollFd::new(stream, PollFlags::OUT)], None);
        let end = bytes.len().min(written + WRITE_MAX);
        match write(stream, &bytes[written..end]) {
            Ok(0) => break,
            Ok(len) => written += len,
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => std::thread::park_timeout(RETRY),
            Err(_) => break,
        }
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
    use rustix::pipe::{PipeFlags, pipe_with};
    use std::fs::File;
    use std::io::Read;
    use std::os::fd::OwnedFd;

    fn note(lost: u64) -> Vec<u8> {
        format!("keypeg: {lost} lines were lost here\n").into_bytes()
    }

    fn queue() -> &'static LineQueue {
        Box::leak(Box::new(LineQueue::new(note)))
    }

    /// Fills a pipe, and leaves it blocking or not.
    fn full_pipe(is_blocking: bool) -> (OwnedFd, OwnedFd, usize) {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let flags = fcntl_getfl(&writer).unwrap();
        fcntl_setfl(&writer, flags | OFlags::NONBLOCK).unwrap();
        let mut filled = 0;
        while let Ok(len) = write(&writer, &[b'x'; WRITE_MAX]) {
            filled += len;
        }
        if is_blocking {
            fcntl_setfl(&writer, flags).unwrap();
        }
        (reader, writer, filled)
    }

    #[test]
    fn a_full_pipe_blocks_no_one_and_gets_its_lines_later() {
        for is_blocking in [true, false] {
            let (reader, writer, filled) = full_pipe(is_blocking);
            let queue = queue();
            start(queue, "test", writer).unwrap();
            let line = |number: usize| format!("line {number}\n").into_bytes();
            for number in 0..200_000 {
                queue.push(line(number)).unwrap();
            }
            queue.flush(Duration::from_millis(1));
            let lost = usize::try_from(queue.lost()).unwrap();
            assert!(lost > 50_000, "the queue is bounded: {lost}");
            let end = b"the last line\n";
            let mut reader = File::from(reader);
            reader.read_exact(&mut vec![0; filled]).unwrap();
            let mut text = Vec::new();
            while !text.ends_with(&line(199_999 - lost)) {
                let mut part = [0; 4096];
                let len = reader.read(&mut part).unwrap();
                text.extend_from_slice(&part[..len]);
            }
            queue.push(end.to_vec()).unwrap();
            while !text.ends_with(end) {
                let mut part = [0; 4096];
                let len = reader.read(&mut part).unwrap();
                text.extend_from_slice(&part[..len]);
            }
            let text = String::from_utf8(text).unwrap();
            let lines: Vec<_> = text.lines().filter(|line| line.starts_with("line ")).collect();
            assert_eq!(lines.len(), 200_000 - lost);
            let note = format!("keypeg: {lost} lines were lost here\n");
            assert_eq!(text.matches(&note).count(), 1);
        }
    }

    #[test]
    fn lines_that_a_stream_refuses_are_counted_and_nothing_else() {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        drop(reader);
        for stream in [writer, File::options().write(true).open("/dev/full").unwrap().into()] {
            let queue = queue();
            assert_eq!(queue.push(vec![1]), Err(vec![1]), "no thread has started");
            start(queue, "test", stream).unwrap();
            for _ in 0..100 {
                queue.push(b"line\n".to_vec()).unwrap();
            }
            queue.flush(Duration::from_mins(1));
            assert_eq!(queue.lost(), 100);
        }
    }

    /// Before the process ends, the last line must be out, and the end must not be delayed.
    #[test]
    fn a_flush_waits_for_the_line_that_is_being_written_and_no_longer() {
        let (reader, writer, filled) = full_pipe(true);
        let queue = queue();
        start(queue, "test", writer).unwrap();
        queue.push(b"line\n".to_vec()).unwrap();
        while !queue.lock().lines.is_empty() {
            std::thread::yield_now();
        }
        let (done, flushed) = std::sync::mpsc::sync_channel(1);
        std::thread::spawn(move || {
            queue.flush(Duration::from_mins(10));
            done.send(())
        });
        let early = flushed.recv_timeout(Duration::from_millis(50));
        assert!(early.is_err(), "the line is taken from the queue, and not written");
        File::from(reader).read_exact(&mut vec![0; filled + 5]).unwrap();
        flushed.recv_timeout(Duration::from_mins(1)).expect("the line is written");
    }

    #[test]
    fn a_torn_line_is_ended_and_lost_lines_are_reported_once() {
        let mut end = StreamEnd::default();
        let mut stream = Vec::new();
        for (line, lost, written) in [
            ("one\n", 0, 4),
            ("two\n", 0, 2),
            ("three\n", 1, 0),
            ("four\n", 2, usize::MAX),
            ("five\n", 2, usize::MAX),
        ] {
            let text = end.text_of(line.as_bytes(), lost, note);
            let written = written.min(text.len());
            stream.extend_from_slice(&text[..written]);
            end.advance(&text, written, lost);
        }
        let stream = String::from_utf8(stream).unwrap();
        assert_eq!(stream, "one\ntw\nkeypeg: 2 lines were lost here\nfour\nfive\n");
    }
}
