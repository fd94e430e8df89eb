//! `keypeg token list` and `keypeg token revoke`: reads the entries of a token file, and removes one.
//!
//! The file is replaced as a whole, so a server that watches it sees all of the old text or all of
//! the new one. The other entries keep their bytes, with their comments.

use super::token_entry::{self, Entry};
use super::tokens::Tokens;
use crate::clock;
use crate::failure::{Failure, exit};
use crate::output::{Fit, OutputArgs, RowPrinter, printed};
use crate::permissions::Trusted;
use crate::streams;
use clap::Args;
use keypeg_client::UnixMs;
use rustix::fs::{FlockOperation, Mode, OFlags, fchown, flock, fstat, open, stat};
use rustix::process::{Gid, Uid};
use serde::Serialize;
use std::fs::{File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use toml_edit::{DocumentMut, Item, Table, Value};

/// The options of `keypeg token list`.
#[derive(Debug, Args)]
pub struct ListTokens {
    /// Token file
    #[arg(long, env = "KEYPEG_TOKENS", value_name = "FILE")]
    tokens: PathBuf,
    /// How the list is printed.
    #[command(flatten)]
    output: OutputArgs,
}

/// The options of `keypeg token revoke`.
#[derive(Debug, Args)]
pub struct RevokeToken {
    /// Name of the token
    name: String,
    /// Token file
    #[arg(long, env = "KEYPEG_TOKENS", value_name = "FILE")]
    tokens: PathBuf,
}

/// An entry as it is printed: without its hashes, from which a token that a person chose could be
/// guessed.
#[derive(Debug, Serialize)]
struct TokenRow {
    name: String,
    /// `valid` or `expired`, by the wall clock of this machine.
    state: &'static str,
    pools: String,
    scopes: String,
    expires_at: Option<UnixMs>,
    requests_per_second: Option<u32>,
    max_leases: Option<u32>,
    /// How many tokens and certificates the entry accepts.
    tokens: usize,
    certificates: Option<String>,
}

const COLUMNS: &[(&str, Fit)] = &[
    ("name", Fit::Text),
    ("state", Fit::Whole),
    ("pools", Fit::Text),
    ("scopes", Fit::Text),
    ("expires_at", Fit::Whole),
    ("requests_per_second", Fit::Whole),
    ("max_leases", Fit::Whole),
    ("tokens", Fit::Whole),
    ("certificates", Fit::Text),
];

impl ListTokens {
    /// Prints the entries.
    pub(super) fn run(&self) -> Result<(), Failure> {
        let rows: Vec<_> = read(&self.tokens)?.entries.into_iter().map(TokenRow::of).collect();
        let mut printer = RowPrinter::new(&self.output, Some("tokens"), COLUMNS);
        printed(printer.print(&rows).and_then(|()| printer.finish())).map(drop)
    }
}

impl TokenRow {
    fn of(entry: Entry) -> Self {
        let is_expired = entry.expires_at.is_some_and(|end| end <= clock::wall_ms());
        Self {
            name: entry.name,
            state: if is_expired { "expired" } else { "valid" },
            pools: entry.pools.join(", "),
            scopes: entry.scopes.join(", "),
            expires_at: entry.expires_at.map(UnixMs),
            requests_per_second: entry.requests_per_second,
            max_leases: entry.max_leases,
            tokens: entry.sha256.map_or(0, |hashes| hashes.len()),
            certificates: entry.certificates.map(|names| names.join(", ")),
        }
    }
}

impl RevokeToken {
    /// Removes the entry.
    pub(super) fn run(&self) -> Result<(), Failure> {
        let (path, name) = (&*self.tokens, &*self.name);
        let locked = lock(path)?;
        let TokenFileEntries { text, entries } = read(path)?;
        let shown = path.display();
        if !entries.iter().any(|entry| entry.name == name) {
            let names: Vec<_> = entries.iter().map(|entry| &*entry.name).collect();
            let message = format!("no token {name:?} in {shown}: it has {}", names.join(", "));
            return Err(Failure::new(exit::NO_INPUT, message));
        }
        if entries.len() == 1 {
            let message = format!(
                "{name:?} is the only token in {shown}: without any entry the file is invalid, and \
                 a server would go on with the old one; add another token first, or stop the server"
            );
            return Err(Failure::new(exit::CONFIG, message));
        }
        let text = without(&text, name).filter(|text| Tokens::parse(text, None).is_ok());
        let text = text.ok_or_else(|| {
            let message = format!("cannot remove {name:?} from {shown}: remove it in an editor");
            Failure::new(exit::SOFTWARE, message)
        })?;
        replace(path, &locked, &text).map_err(|error| {
            let message = format!(
                "cannot replace {shown}: {error}; the token is still valid: check --tokens, and its \
                 directory"
            );
            Failure::new(exit::CANNOT_CREATE, message)
        })?;
        streams::print_message(&format!(
            "revoked {name:?}: a server that uses {shown} refuses it within a second"
        ));
        Ok(())
    }
}

/// A valid token file.
struct TokenFileEntries {
    text: String,
    entries: Vec<Entry>,
}

fn read(path: &Path) -> Result<TokenFileEntries, Failure> {
    // Root may read the file of a server that runs as another user, the owner of the file.
    let file = super::read_token_file(path, Trusted::and_owner_of(path));
    let file = file.map_err(|error| error.into_failure(path))?;
    for warning in file.warnings {
        streams::print_message(&format!("token file {}: {warning}", path.display()));
    }
    let invalid =
        |error| Failure::new(exit::CONFIG, format!("token file {}: {error}", path.display()));
    Tokens::parse(&file.text, None).map_err(invalid)?;
    let entries = token_entry::entries(&file.text).map_err(invalid)?;
    Ok(TokenFileEntries { text: file.text, entries })
}

/// Opens a token file to change it, and waits until no other command changes it.
pub(super) fn lock(path: &Path) -> Result<File, Failure> {
    let failed = |error: rustix::io::Errno| {
        let (code, step) = match error {
            rustix::io::Errno::ACCESS => (exit::PERMISSION, "; check --tokens"),
            rustix::io::Errno::NOENT => (exit::NO_INPUT, "; check --tokens"),
            rustix::io::Errno::LOOP => {
                (exit::CANNOT_CREATE, "; it is a symbolic link: name the file itself")
            }
            _ => (exit::IO, "; check --tokens"),
        };
        Failure::new(code, format!("token file {}: {error}{step}", path.display()))
    };
    loop {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = open(path, flags, Mode::empty()).map_err(failed)?;
        flock(&file, FlockOperation::LockExclusive).map_err(failed)?;
        let (locked, present) = (fstat(&file).map_err(failed)?, stat(path).map_err(failed)?);
        // Another command has replaced the file meanwhile: its lock is on the new one.
        if (locked.st_dev, locked.st_ino) == (present.st_dev, present.st_ino) {
            return Ok(file.into());
        }
    }
}

/// Returns a token file without one entry; `None` if the file does not have it.
fn without(text: &str, name: &str) -> Option<String> {
    let mut document: DocumentMut = text.parse().ok()?;
    let is_it = |of: Option<&Item>| of.and_then(Item::as_str) == Some(name);
    match document.get_mut("token")? {
        Item::ArrayOfTables(tables) => {
            let index = tables.iter().position(|table| is_it(table.get("name")))?;
            let kept = kept_comments(tables.get(index)?, index == 0);
            tables.remove(index);
            match tables.get_mut(index) {
                Some(next) => {
                    let prefix = comments(next);
                    next.decor_mut().set_prefix(kept + &prefix);
                }
                None => document.set_trailing(kept + document.trailing().as_str()?),
            }
        }
        Item::Value(Value::Array(list)) => {
            let found = list.iter().position(|value| {
                let table = value.as_inline_table();
                table.and_then(|table| table.get("name")?.as_str()) == Some(name)
            });
            list.remove(found?);
        }
        Item::None | Item::Value(_) | Item::Table(_) => return None,
    }
    Some(document.to_string())
}

/// Returns the comments and blank lines before an entry.
fn comments(entry: &Table) -> String {
    let prefix = entry.decor().prefix();
    prefix.and_then(|prefix| prefix.as_str()).unwrap_or_default().to_owned()
}

/// Returns which of the comments before an entry stay without it: those that a blank line separates
/// from it, and all at the begin of the file, which can be about the whole file.
fn kept_comments(entry: &Table, is_first: bool) -> String {
    let mut comments = comments(entry);
    if !is_first {
        let own = comments.rfind("\n\n").map_or(0, |blank| blank + 1);
        comments.truncate(own);
    }
    comments
}

/// Replaces a file durably by one with another text, and the same owner and mode.
fn replace(path: &Path, old: &File, text: &str) -> io::Result<()> {
    let parent = path.parent().filter(|parent| *parent != Path::new(""));
    let parent = parent.unwrap_or(Path::new("."));
    let old = fstat(old)?;
    let mut new = tempfile::Builder::new().prefix(".tokens-").tempfile_in(parent)?;
    new.write_all(text.as_bytes())?;
    fchown(new.as_file(), Some(Uid::from_raw(old.st_uid)), Some(Gid::from_raw(old.st_gid)))?;
    new.as_file().set_permissions(Permissions::from_mode(old.st_mode & 0o777))?;
    new.as_file().sync_all()?;
    new.persist(path)?;
    File::open(parent)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_other_entries_keep_their_bytes_and_comments() {
        let text = "# Tokens of the team\n\n# first\n[[token]]\nname = \"a\"\nsha256 = [\n  \"1\", \
                    # old\n]\n\n# second\n[[token]]\nname = 'b' # CI\npools   = \"*\"\n\n# third\n\
                    [[token]]\nname = \"c\"\n";
        let (head, rest) = text.split_once("[[token]]\nname = \"a\"").unwrap();
        let (a, rest) = rest.split_once("\n# second").unwrap();
        let (b, c) = rest.split_once("\n# third").unwrap();
        let a = format!("{head}[[token]]\nname = \"a\"{a}");
        assert_eq!(without(text, "a"), Some(format!("{head}\n# second{b}\n# third{c}")));
        assert_eq!(without(text, "b"), Some(format!("{a}\n# third{c}")));
        assert_eq!(without(text, "c"), Some(format!("{a}\n# second{b}")));
        assert_eq!(without(text, "d"), None);
        let inline = "token = [{ name = \"a\" }, { name = \"b\" }]\n";
        assert_eq!(without(inline, "a").as_deref(), Some("token = [ { name = \"b\" }]\n"));
        assert_eq!(without("", "a"), None);
    }
}
