//! Why the program ends early, and the exit codes of sysexits.h it ends with.

use keypeg_engine::StartError;
use std::fmt;

/// Exit codes, as sysexits.h has them.
pub mod exit {
    /// The command line is wrong.
    pub const USAGE: u8 = 64;
    /// The data directory's content is damaged, or of a newer version.
    pub const DATA: u8 = 65;
    /// A file that was named, or a data directory that must be there, is not.
    pub const NO_INPUT: u8 = 66;
    /// Something needed is taken or unavailable: the address is in use.
    pub const UNAVAILABLE: u8 = 69;
    /// The server failed at the request.
    pub const SOFTWARE: u8 = 70;
    /// The operating system would not give what every program gets.
    pub const OS: u8 = 71;
    /// There is no room for more keys, pools or data.
    pub const CANNOT_CREATE: u8 = 73;
    /// The disk failed, or stdout.
    pub const IO: u8 = 74;
    /// Try again later: another process has the data directory, or no key is free.
    pub const TEMPORARY: u8 = 75;
    /// What answered is no Keypeg.
    pub const PROTOCOL: u8 = 76;
    /// Not permitted, such as a port below 1024.
    pub const PERMISSION: u8 = 77;
    /// The configuration is refused.
    pub const CONFIG: u8 = 78;
}

/// Why the program ends, for people, and what it exits with.
#[derive(Debug)]
pub struct Failure {
    /// One of [`exit`].
    pub exit: u8,
    message: String,
}

impl Failure {
    /// Makes one; the message says what to do where something can be done.
    pub fn new(exit: u8, message: impl Into<String>) -> Self {
        Self { exit, message: message.into() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        let exit = match &error {
            StartError::InUse { .. } => exit::TEMPORARY,
            StartError::NotFound { .. } => exit::NO_INPUT,
            StartError::Corrupt(_) => exit::DATA,
            StartError::Io { .. } => exit::IO,
        };
        Self::new(exit, error.to_string())
    }
}
