//! `keypeg token new`: generates a token, prints it once, and stores only its hash; or makes the
//! entry of a client certificate, which needs no token.
//!
//! An entry is checked with the whole token file before it is added, so the file stays valid.

use super::token_commands::{self, ListTokens, RevokeToken};
use super::token_entry::parse_timestamp;
use super::tokens::{self, PREFIX, TOKEN_LEN, TokenHash};
use crate::SystemRandom;
use crate::clock;
use crate::duration::parse_ms;
use crate::failure::{Failure, exit, is_full};
use crate::number::number;
use crate::permissions::Trusted;
use crate::streams;
use clap::{Args, Subcommand};
use keypeg_client::UnixMs;
use keypeg_core::RandomSource;
use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

/// A command on access tokens.
#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Create a token; print it, and its entry for the token file, which contains only the hash
    ///
    /// The token cannot be printed again. With --certificate the entry names client certificates,
    /// and there is no token.
    New(NewToken),
    /// List the entries of a token file, without their hashes
    List(ListTokens),
    /// Remove an entry from a token file: a server that uses the file refuses the token
    Revoke(RevokeToken),
}

/// The name, permissions and limits of a new token.
#[derive(Debug, Args)]
pub struct NewToken {
    /// Name of the token, 1 to 64 characters: A-Z, a-z, 0-9, `-`, `.` or `_`
    #[arg(long, value_name = "NAME")]
    name: String,
    /// Pool name, or a prefix ending in *; may be repeated
    #[arg(long = "pool", value_name = "POOL", required = true)]
    pools: Vec<String>,
    /// Scope: read, lend, keys, force, reveal, verify, metrics or admin; may be repeated
    ///
    /// read: list pools and keys without their values, and read events. lend: acquire, renew and
    /// release leases, keep keys alive. keys: generate, import, label and delete keys. force:
    /// force-release or quarantine a key by its id. reveal: read the value of a key without a
    /// lease. verify: ask whether a value is a leased key. metrics: read the metrics. admin:
    /// everything, and the only scope that can create, change and delete pools.
    #[arg(long = "scope", value_name = "SCOPE", required = true)]
    scopes: Vec<String>,
    /// Expiry time, such as 2027-01-01T00:00:00Z, or a time from now, such as 30d [default: never]
    #[arg(long, value_name = "TIME")]
    expires_at: Option<String>,
    /// Limit on requests per second [default: none]
    #[arg(long, value_name = "N", value_parser = number(1..=tokens::PER_SECOND_MAX))]
    requests_per_second: Option<u32>,
    /// Limit on simultaneous leases, including acquires that wait for a key [default: none]
    #[arg(long, value_name = "N", value_parser = number(1..=tokens::LEASES_MAX))]
    max_leases: Option<u32>,
    /// Name of a client certificate, in place of a token; may be repeated
    ///
    /// A DNS name or URI of the certificate, or its common name if it has neither. The server needs
    /// --tls-client-ca.
    #[arg(long = "certificate", value_name = "NAME")]
    certificates: Vec<String>,
    /// Token file to add the entry to, created if it does not exist; only the token is printed
    #[arg(long, value_name = "FILE")]
    tokens: Option<PathBuf>,
}

impl TokenCommand {
    /// Runs the command and prints its result to stdout.
    pub fn run(&self) -> Result<(), Failure> {
        let options = match self {
            Self::New(options) => options,
            Self::List(options) => return options.run(),
            Self::Revoke(options) => return options.run(),
        };
        if !options.certificates.is_empty() {
            return options.add_certificates();
        }
        let mut bytes = [0; TOKEN_LEN];
        SystemRandom::new().fill(&mut bytes);
        let mut token = PREFIX.to_owned();
        for byte in bytes {
            write!(token, "{byte:02x}").expect("invariant: writing to a string never fails");
        }
        let hash = TokenHash::of(token.as_bytes());
        let entry = options.entry(&format!("sha256 = \"{hash}\""))?;
        let failed = |error: io::Error| {
            let message = format!("cannot write to stdout: {error}; the token was not added");
            Failure::new(exit::IO, message)
        };
        streams::require_open().map_err(failed)?;
        let Some(path) = &options.tokens else {
            return streams::print(&format!("{token}\n\n{entry}")).map_err(failed);
        };
        let added = add(path, &entry)?;
        // The token is shown only now: an entry without its token would be of no use.
        streams::print(&format!("{token}\n")).map_err(|error| {
            // An entry that stays gives no access: its token is unknown.
            let _ = added.undo(path);
            failed(error)
        })
    }
}

impl NewToken {
    /// Prints the entry of client certificates, or adds it to the token file.
    fn add_certificates(&self) -> Result<(), Failure> {
        let names = tokens::certificate_names(&self.certificates);
        let names = names.map_err(|message| Failure::new(exit::USAGE, message))?;
        for name in names.iter().filter(|name| Path::new(&***name).is_file()) {
            streams::print_message(&format!(
                "{name} is a file: the entry is for certificates with this name, not for that file"
            ));
        }
        // A name has no control characters, so TOML requires no other escapes.
        let quoted =
            |name: &str| format!("\"{}\"", name.replace('\\', "\\\\").replace('"', "\\\""));
        let names: Vec<_> = names.iter().map(|name| quoted(name)).collect();
        let field = match &*names {
            [name] => format!("certificate = {name}"),
            names => format!("certificate = [{}]", names.join(", ")),
        };
        let entry = self.entry(&field)?;
        // Two names that differ only in case are the same name.
        tokens::Tokens::parse(&entry, None).map_err(|error| Failure::new(exit::USAGE, error))?;
        let Some(path) = &self.tokens else {
            let failed = |error| Failure::new(exit::IO, format!("cannot write to stdout: {error}"));
            return streams::print(&entry).map_err(failed);
        };
        add(path, &entry).map(drop)
    }

    /// Returns an entry for the token file; `proof` is its field with a hash or with certificates.
    fn entry(&self, proof: &str) -> Result<String, Failure> {
        let invalid = |message| Failure::new(exit::USAGE, message);
        tokens::check_name(&self.name).map_err(invalid)?;
        for pool in &self.pools {
            tokens::parse_pools(pool).map_err(invalid)?;
        }
        for scope in &self.scopes {
            tokens::parse_scope(scope).map_err(invalid)?;
        }
        let end = self.expires_at.as_deref().map(|end| expiry(end, clock::wall_ms()));
        let end = end.transpose().map_err(invalid)?;
        if end.is_some_and(|end| end.0 <= clock::wall_ms()) {
            streams::print_message("the time of --expires-at has passed: the token is not valid");
        }
        // None of these values contains a character that TOML requires to be escaped.
        let list = |all: &[String]| {
            let all: Vec<_> = all.iter().map(|each| format!("\"{each}\"")).collect();
            all.join(", ")
        };
        let mut entry = format!(
            "[[token]]\nname = \"{}\"\n{proof}\npools = [{}]\nscopes = [{}]\n",
            self.name,
            list(&self.pools),
            list(&self.scopes),
        );
        if let Some(end) = end {
            entry.extend(["expires_at = \"", &end.to_string(), "\"\n"]);
        }
        if let Some(per_second) = self.requests_per_second {
            entry.extend(["requests_per_second = ", &per_second.to_string(), "\n"]);
        }
        if let Some(max) = self.max_leases {
            entry.extend(["max_leases = ", &max.to_string(), "\n"]);
        }
        Ok(entry)
    }
}

/// Parses a time of expiry: a timestamp, a date, or a length of time from now.
fn expiry(text: &str, now_ms: u64) -> Result<UnixMs, String> {
    let end = match parse_ms(text) {
        Some(length) => now_ms.saturating_add(length),
        None => parse_timestamp(text).map_err(|error| format!("{error}, or a time such as 30d"))?,
    };
    // A later timestamp has no text form.
    let max = parse_timestamp("9999-12-30T00:00:00Z")?;
    Ok(UnixMs(end.min(max)))
}

/// An entry that is added to a token file.
///
/// It is appended, not written to a new file: the file can be a mount of its own, or be in a
/// directory where this user cannot create another one.
struct Added {
    file: File,
    is_new: bool,
    /// The lengths of the file before and after.
    lengths: (u64, u64),
}

impl Added {
    /// Appends the text of the entry, durably. A full disk can leave a part of it.
    fn write(&mut self, text: &str) -> io::Result<()> {
        let before = self.file.metadata()?.len();
        self.lengths = (before, before + text.len() as u64);
        // In one write, so that a server that watches the file sees the whole entry or none of it.
        self.file.write_all(text.as_bytes())?;
        self.file.sync_all()
    }

    /// Removes the entry again, or the part of it that was written, unless another program has
    /// written to the file since. Returns false if the file is not as it was.
    fn undo(&self, path: &Path) -> bool {
        let (before, after) = self.lengths;
        if !self.file.metadata().is_ok_and(|found| (before..=after).contains(&found.len())) {
            return false;
        }
        let undone = if self.is_new {
            std::fs::remove_file(path)
        } else {
            self.file.set_len(before).and_then(|()| self.file.sync_all())
        };
        undone.is_ok()
    }
}

/// Appends an entry to the token file, if the result is valid: an existing name is refused.
fn add(path: &Path, entry: &str) -> Result<Added, Failure> {
    let failed = |error: io::Error| {
        let (code, step) = if error.kind() == ErrorKind::PermissionDenied {
            (exit::PERMISSION, "check --tokens")
        } else if is_full(&error) {
            (exit::CANNOT_CREATE, "nothing was changed: free space there")
        } else if error.raw_os_error() == Some(Errno::LOOP.raw_os_error()) {
            (exit::CANNOT_CREATE, "it is a symbolic link: name the file itself")
        } else {
            (exit::CANNOT_CREATE, "check --tokens")
        };
        Failure::new(code, format!("cannot add the token to {}: {error}; {step}", path.display()))
    };
    // Root may prepare the file of a server that runs as another user, the owner of the file.
    let trusted = Trusted::and_owner_of(path);
    // Before the file is opened: a command that revokes a token replaces it. An error shows there.
    let locked = token_commands::lock(path).ok();
    let flags = OFlags::RDWR | OFlags::APPEND | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let created = open(path, flags | OFlags::CREATE | OFlags::EXCL, Mode::RUSR | Mode::WUSR);
    let is_new = created.is_ok();
    if let Ok(file) = &created {
        // Whatever the umask is, the server must be able to read the file.
        rustix::fs::fchmod(file, Mode::RUSR | Mode::WUSR).map_err(|error| failed(error.into()))?;
    }
    let file = match created {
        Err(Errno::EXIST) => open(path, flags, Mode::empty()),
        created => created,
    };
    let file = file.map_err(|error| failed(error.into()))?;
    let _locked = match locked {
        None => token_commands::lock(path).ok(),
        locked => locked,
    };
    let before = super::read_token_file(path, trusted).map_err(|error| {
        if is_new {
            // A token file must not remain in a directory where others could replace it.
            let _ = std::fs::remove_file(path);
        }
        error.into_failure(path)
    });
    let before = before?.text;
    let addition = if before.is_empty() { entry.to_owned() } else { format!("\n{entry}") };
    if let Err(error) = tokens::Tokens::parse(&format!("{before}{addition}"), None) {
        let path = path.display();
        let message = format!("token file {path}: {error}; the token was not added");
        return Err(Failure::new(exit::CONFIG, message));
    }
    let mut added = Added { file: File::from(file), is_new, lengths: (0, 0) };
    match added.write(&addition) {
        Ok(()) => Ok(added),
        Err(error) if added.undo(path) => Err(failed(error)),
        Err(error) => Err(Failure::new(
            exit::CANNOT_CREATE,
            format!(
                "cannot add the token to {0}: {error}; {0} may end with a part of the entry: remove \
                 that part in an editor",
                path.display()
            ),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_expires_at_a_timestamp_a_date_or_after_a_time() {
        let now = parse_timestamp("2026-12-02T00:00:00Z").unwrap();
        for (text, end) in [
            ("2027-01-01T00:00:00Z", "2027-01-01T00:00:00.000Z"),
            ("2027-01-01T01:00:00+01:00", "2027-01-01T00:00:00.000Z"),
            ("2027-01-01", "2027-01-01T00:00:00.000Z"),
            ("30d", "2027-01-01T00:00:00.000Z"),
            ("52w", "2027-12-01T00:00:00.000Z"),
            ("75000000h", "9999-12-30T00:00:00.000Z"),
        ] {
            assert_eq!(expiry(text, now).expect(text).to_string(), end, "{text}");
        }
        for (text, says) in [
            ("30", "is not a timestamp such as 2027-01-01T00:00:00Z, or a time such as 30d"),
            ("tomorrow", "is not a timestamp"),
            ("2027-13-01", "is not a timestamp"),
        ] {
            let error = expiry(text, now).unwrap_err();
            assert!(error.contains(says), "{text}: {error}");
        }
    }
}
