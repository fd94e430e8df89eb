//! The error type of the program, and the exit codes of sysexits.h.
//!
//! Every module builds its own [`Failure`].

use std::fmt;
use std::io::{self, ErrorKind};

/// Exit codes, as defined by sysexits.h.
pub mod exit {
    /// The server does not accept requests: the answer of `keypeg health`.
    pub const UNHEALTHY: u8 = 1;
    /// The command line is invalid.
    pub const USAGE: u8 = 64;
    /// The data directory is damaged or has a newer format, or the server refused the input.
    pub const DATA: u8 = 65;
    /// A named file, a required data directory, or a named pool, key or lease does not exist.
    pub const NO_INPUT: u8 = 66;
    /// The address is in use, or the server cannot be reached.
    pub const UNAVAILABLE: u8 = 69;
    /// The server failed while processing the request.
    pub const SOFTWARE: u8 = 70;
    /// A call to the operating system failed.
    pub const OS: u8 = 71;
    /// A limit on keys, pools or disk space is reached, or a file cannot be created.
    pub const CANNOT_CREATE: u8 = 73;
    /// Reading or writing failed, on disk or stdout.
    pub const IO: u8 = 74;
    /// Retry later: another process uses the data directory, or no key is available.
    pub const TEMPORARY: u8 = 75;
    /// The response is not from a Keypeg server.
    pub const PROTOCOL: u8 = 76;
    /// Not permitted: a port below 1024, a file, or a missing or insufficient access token.
    pub const PERMISSION: u8 = 77;
    /// The configuration is invalid.
    pub const CONFIG: u8 = 78;
    /// A defect: a panic ended the process. The code that Rust programs have for it.
    pub const PANIC: u8 = 101;
}

/// The reason why the program ends, as a message for users, and its exit code.
#[derive(Debug)]
pub struct Failure {
    /// One of [`exit`].
    pub exit: u8,
    message: String,
}

impl Failure {
    /// Creates a failure; the message names the next step where there is one.
    pub fn new(exit: u8, message: impl Into<String>) -> Self {
        Self { exit, message: message.into() }
    }
}

/// Returns true if the disk or a quota is full, or a file has reached the limit of `ulimit -f`.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge
    )
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}
