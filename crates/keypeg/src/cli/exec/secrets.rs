//! The secrets of `exec`, kept away from its command, which runs as the same user.
//!
//! The kernel shows the environment with which a program was started, in `/proc/PID/environ`, for
//! as long as the program runs, whatever it removes from it. So `exec` starts itself again in the
//! same process without them, and reads the access token from a pipe. Knows no server.

use super::options::ExecArgs;
use super::processes::OWN_PROGRAM;
use crate::cli::server::TOKEN_FILE_VARIABLE;
use crate::cli::tls::{CLIENT_CERT_VARIABLE, CLIENT_KEY_VARIABLE};
use crate::failure::{Failure, exit};
use crate::variables;
use rustix::pipe::{PipeFlags, pipe_with};
use std::fs::{File, canonicalize, metadata};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

/// The variables that a command does not get: the access token, the client certificate, and what an
/// `exec` around this one has passed to it.
pub(super) const NOT_FOR_COMMANDS: [&str; 7] = [
    variables::TOKEN,
    variables::TOKEN_DESCRIPTOR,
    TOKEN_FILE_VARIABLE,
    CLIENT_CERT_VARIABLE,
    CLIENT_KEY_VARIABLE,
    variables::KEY,
    variables::LEASE_ID,
];
/// The variables among them whose value is a secret.
const SECRET: [&str; 3] = [variables::TOKEN, variables::KEY, variables::LEASE_ID];

impl ExecArgs {
    /// Takes the secrets out of the environment of this process. If there are any, the program
    /// starts again, so this returns only without secrets or with an error.
    pub(crate) fn hide_secrets(&mut self) -> Result<(), Failure> {
        if let Some(path) =
            self.server.connection.token_file.as_deref().filter(|path| is_inherited(path))
        {
            let message = format!(
                "the command would inherit {}, an open file with the access token: name the file \
                 itself with --token-file, or set {}",
                path.display(),
                variables::TOKEN
            );
            return Err(Failure::new(exit::USAGE, message));
        }
        if let Some(descriptor) = std::env::var_os(variables::TOKEN_DESCRIPTOR) {
            let descriptor = descriptor.to_str().and_then(|number| number.parse().ok());
            let token = descriptor.ok_or(io::ErrorKind::InvalidInput.into()).and_then(take);
            let failed = |error| failure("read the access token from a pipe", &error);
            self.server.connection.given_token = Some(token.map_err(failed)?);
        }
        if SECRET.iter().all(|name| std::env::var_os(name).is_none()) {
            // Started again as /proc/self/exe, the process would be named exe.
            let _ = rustix::thread::set_name(c"keypeg");
            return Ok(());
        }
        let token = if self.server.connection.token_file.is_none() {
            self.server.connection.token()?
        } else {
            None
        };
        let pipe = token.as_deref().map(filled_pipe).transpose();
        let pipe = pipe.map_err(|error| failure("pass the access token on", &error))?;
        Err(failure("start keypeg again without its access token", &start_again(pipe.as_ref())))
    }
}

/// Starts this program again in this process; returns only if that fails.
fn start_again(pipe: Option<&OwnedFd>) -> io::Error {
    let mut arguments = std::env::args_os();
    let mut program = Command::new(OWN_PROGRAM);
    program.arg0(arguments.next().unwrap_or_else(|| "keypeg".into())).args(arguments);
    for name in SECRET {
        program.env_remove(name);
    }
    if let Some(pipe) = pipe {
        program.env(variables::TOKEN_DESCRIPTOR, pipe.as_raw_fd().to_string());
    }
    program.exec()
}

/// Returns the end of a pipe, kept open by execve, from which the token can be read once.
fn filled_pipe(token: &str) -> io::Result<OwnedFd> {
    let (read, write) = pipe_with(PipeFlags::empty())?;
    // The token has at most 4096 bytes, which fit into every pipe.
    File::from(write).write_all(token.as_bytes())?;
    Ok(read)
}

/// Reads the token from an inherited pipe, and closes it, so that the command does not inherit it.
fn take(descriptor: i32) -> io::Result<String> {
    let mut token = String::new();
    File::open(format!("/proc/self/fd/{descriptor}"))?.read_to_string(&mut token)?;
    nix::unistd::close(descriptor)?;
    Ok(token)
}

/// Returns whether a path names a file that a shell has opened, such as `/dev/fd/3`. A pipe is
/// empty after it was read; a file would still have its content when the command reads it.
fn is_inherited(path: &Path) -> bool {
    let target = |path: &Path| {
        let directory = canonicalize(path.parent()?).ok()?;
        Some(directory.join(path.file_name()?))
    };
    if !metadata(path).is_ok_and(|file| file.is_file()) {
        return false;
    }
    let Some(mut found) = target(path) else { return false };
    while let Some(next) = found.read_link().ok().filter(|_| !is_descriptor(&found)) {
        let Some(next) = target(&found.with_file_name(next)) else { return false };
        found = next;
    }
    is_descriptor(&found)
}

fn is_descriptor(path: &Path) -> bool {
    path.starts_with("/proc") && path.parent().is_some_and(|directory| directory.ends_with("fd"))
}

fn failure(what: &str, error: &io::Error) -> Failure {
    Failure::new(exit::OS, format!("cannot {what}: {error}"))
}
