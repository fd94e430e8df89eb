//! The configuration file: TOML whose keys are the fields of [`Options`].
//!
//! Every error names the file, the line, the key, its value and the allowed values. An unknown key
//! is refused: in practice it is a spelling mistake. The options are defined in `options.rs`.

use crate::failure::{Failure, exit};
use crate::options::Options;
use crate::permissions::{Trusted, Verdict, examine_file, examine_way};
use crate::text_file;
use crate::toml_text::{self, line_at, unknown_field};
use clap::{Args as _, Command};
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, ErrorKind, Read as _};
use std::path::Path;
use toml::{Spanned, Value};

/// The kind of an error about a file that another user could change.
const EXPOSED: ErrorKind = ErrorKind::InvalidInput;
/// The largest configuration file, in bytes.
const FILE_MAX: u64 = 1 << 20;

/// Reads the options of the file at `path`. The file names the token file and the data directory,
/// so no other user may be able to change or replace it.
pub(crate) fn read(path: &Path) -> Result<Options, Failure> {
    let text = text(path).map_err(|error| {
        let code = [
            (ErrorKind::NotFound, exit::NO_INPUT),
            (ErrorKind::PermissionDenied, exit::PERMISSION),
            (ErrorKind::InvalidData, exit::CONFIG),
            (ErrorKind::FileTooLarge, exit::CONFIG),
            (EXPOSED, exit::CONFIG),
        ]
        .into_iter()
        .find(|(kind, _)| *kind == error.kind())
        .map_or(exit::IO, |(_, code)| code);
        let path = path.display();
        let message = format!("cannot read the configuration file {path}: {error}; check --config");
        Failure::new(code, message)
    })?;
    parse(&text).map_err(|error| Failure::new(exit::CONFIG, format!("{}{error}", path.display())))
}

/// Parses the file's text; an error message begins with its line.
fn parse(text: &str) -> Result<Options, String> {
    let table = toml_text::parse(text).map_err(|error| format!(" {error}"))?;
    let flags = Options::augment_args(Command::new("serve"));
    let names = flags.get_arguments().filter_map(|flag| flag.get_long());
    let known: Vec<_> =
        names.filter(|name| *name != "config").map(|name| name.replace('-', "_")).collect();
    let known = known.iter().map(String::as_str);
    for (name, value) in table.get_ref() {
        if known.clone().all(|known| known != name.get_ref()) {
            let line = line_at(text, name.span().start);
            let error = unknown_field(name.get_ref(), known);
            let is_section = value.get_ref().is_table();
            let section = if is_section { "; the options are in no section" } else { "" };
            return Err(format!(" line {line}: {error}{section}"));
        }
    }
    toml::from_str(text).map_err(|error| {
        let message = error.message();
        let Some(span) = error.span() else { return format!(": {message}") };
        let line = line_at(text, span.start);
        match value_at(text, span.start) {
            Some((key, value)) => {
                format!(" line {line}: {key} = {value} is not valid: it {message}")
            }
            None => format!(" line {line}: {message}"),
        }
    })
}

/// Returns the value at a byte offset and its key, if the text is valid TOML.
fn value_at(text: &str, offset: usize) -> Option<(String, Value)> {
    let table: BTreeMap<String, Spanned<Value>> = toml::from_str(text).ok()?;
    let mut values = table.into_iter();
    let (key, value) = values.find(|(_, value)| value.span().contains(&offset))?;
    Some((key, value.into_inner()))
}

/// Reads a file of at most `FILE_MAX` bytes.
fn text(path: &Path) -> io::Result<String> {
    let trusted = Trusted::own();
    refuse_exposed(examine_way(path, "file", trusted)?)?;
    let file = fs::File::open(path)?;
    refuse_exposed(examine_file(rustix::fs::fstat(&file)?, trusted))?;
    let mut bytes = Vec::new();
    file.take(FILE_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_MAX {
        let message = format!("the file is larger than {FILE_MAX} bytes");
        return Err(io::Error::new(ErrorKind::FileTooLarge, message));
    }
    let text = text_file::decode(bytes);
    text.map_err(|error| io::Error::new(ErrorKind::InvalidData, error.to_string()))
}

fn refuse_exposed(verdict: Verdict) -> io::Result<()> {
    match verdict {
        Verdict::Safe | Verdict::Doubtful(_) => Ok(()),
        Verdict::Exposed(reason) => Err(io::Error::new(EXPOSED, reason)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_line_key_value_and_range() {
        for (text, says) in [
            ("\nlease_ttl = \"soon\"", &["line 2", "lease_ttl", "\"soon\"", "1ms to 168h"][..]),
            ("lease_ttl = 5", &["line 1", "lease_ttl = 5", "in quotes"]),
            ("lease_ttl = \"169h\"", &["line 1", "\"169h\"", "1ms to 168h"]),
            ("ephemeral = \"yes\"", &["line 1", "ephemeral", "\"yes\"", "true or false"]),
            ("audit_mib = 0", &["line 1", "audit_mib = 0", "1 to 65536"]),
            ("allow_host = \"a\"", &["line 1", "allow_host", "an array of names"]),
            ("allow_host = [\n\"a:1\"\n]", &["line 1", "allow_host", "\"a:1\"", "without scheme"]),
            ("data = \"\"", &["line 1", "data", "a path"]),
            ("\n\nlisten = \"8000\"", &["line 3", "listen", "\"8000\"", "ADDR:PORT"]),
            ("\nlease-ttl = \"1s\"", &["line 2: unknown field `lease-ttl`: write `lease_ttl`"]),
            (
                "lease_ttl = \"60\"",
                &["line 1", "1ms to 168h", "write 60s for 60 seconds, in quotes"],
            ),
            ("lease_ttl = 60", &["line 1", "write 60s for 60 seconds, in quotes"]),
            (
                "[server]\nlisten = \"a\"",
                &["unknown field `server`", "the options are in no section"],
            ),
            ("ephemeral = \"true\"", &["must be true or false, without quotes"]),
            ("audit_mib = \"64\"", &["must be 1 to 65536, without quotes"]),
            ("listen = 127.0.0.1:8000", &["line 1 is not valid TOML"]),
            ("listen = \"[::1]:9\"\nlisten = \"[::1]:9\"", &["line 2", "duplicate key"]),
            ("[server]\nlisten = 1", &["line 1", "server"]),
            ("config = \"other\"", &["line 1", "unknown field `config`"]),
            ("listen = ", &["line 1"]),
        ] {
            let error = parse(text).expect_err(text);
            for word in says {
                assert!(error.contains(word), "{text:?}: {error}");
            }
        }
    }
}
