//! Streams that take no line, as the stderr of a server: each in the way of one mistake or fault of
//! an operator.

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::pipe::{PipeFlags, pipe_with};
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::process::Stdio;

/// What is wrong with the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BadStderr {
    /// `2>&-`
    Closed,
    /// `2>/dev/full`: each write fails.
    DevFull,
    /// A pipe that is full, and that nothing reads.
    FullPipe,
    /// The same, with `O_NONBLOCK`.
    FullNonBlockingPipe,
    /// `2>&1 | head -1`
    ReaderLeaves,
}

impl BadStderr {
    pub(crate) const ALL: [Self; 5] = [
        Self::Closed,
        Self::DevFull,
        Self::FullPipe,
        Self::FullNonBlockingPipe,
        Self::ReaderLeaves,
    ];

    /// Returns the program and arguments that must run the server.
    pub(crate) fn words(self) -> &'static [&'static str] {
        match self {
            Self::Closed => &["sh", "-c", "exec \"$@\" 2>&-", "sh"],
            Self::DevFull | Self::FullPipe | Self::FullNonBlockingPipe | Self::ReaderLeaves => {
                &["env"]
            }
        }
    }

    /// Returns the stream, and the end of the pipe that the test must keep open.
    pub(crate) fn open(self) -> (Stdio, Option<OwnedFd>) {
        match self {
            Self::Closed => (Stdio::null(), None),
            Self::DevFull => (File::options().write(true).open("/dev/full").unwrap().into(), None),
            Self::FullPipe | Self::FullNonBlockingPipe => {
                let (reader, writer) = full_pipe(self == Self::FullPipe);
                (writer.into(), Some(reader))
            }
            Self::ReaderLeaves => {
                let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
                std::thread::spawn(move || File::from(reader).read(&mut [0; 64]));
                (writer.into(), None)
            }
        }
    }
}

/// Returns a pipe without room for one more byte.
fn full_pipe(is_blocking: bool) -> (OwnedFd, OwnedFd) {
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    let flags = fcntl_getfl(&writer).unwrap();
    fcntl_setfl(&writer, flags | OFlags::NONBLOCK).unwrap();
    while rustix::io::write(&writer, &[b'x'; 4096]).is_ok() {}
    if is_blocking {
        fcntl_setfl(&writer, flags).unwrap();
    }
    (reader, writer)
}
