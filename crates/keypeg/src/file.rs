//! The configuration file: TOML whose keys are the long flags, with `_` for `-`.
//!
//! Every complaint names the file, the line, the key, its value and what it may be. A key that is
//! not known is refused: it is a spelling mistake, not a wish.

use crate::config::{length_ms, max_queued};
use crate::failure::{Failure, exit};
use serde::Deserialize;
use std::fs;
use std::io::{self, ErrorKind, Read as _};
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use toml::{Spanned, Value};

/// The largest file, in bytes.
const FILE_MAX: u64 = 1 << 20;

/// What the file says; what it leaves out is `None`.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct File {
    pub(crate) listen: Option<SocketAddr>,
    pub(crate) data: Option<PathBuf>,
    pub(crate) existing: Option<bool>,
    pub(crate) ephemeral: Option<bool>,
    pub(crate) lease_ttl_ms: Option<u64>,
    pub(crate) keepalive_ttl_ms: Option<u64>,
    pub(crate) max_queued: Option<usize>,
    pub(crate) tokens: Option<PathBuf>,
    pub(crate) audit: Option<PathBuf>,
    pub(crate) audit_mib: Option<u32>,
    pub(crate) audit_keep: Option<u32>,
    pub(crate) allow_hosts: Option<Vec<String>>,
    pub(crate) insecure_listen: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Given {
    listen: Option<Spanned<Value>>,
    data: Option<Spanned<Value>>,
    existing: Option<Spanned<Value>>,
    ephemeral: Option<Spanned<Value>>,
    lease_ttl: Option<Spanned<Value>>,
    keepalive_ttl: Option<Spanned<Value>>,
    max_queued: Option<Spanned<Value>>,
    tokens: Option<Spanned<Value>>,
    audit: Option<Spanned<Value>>,
    audit_mib: Option<Spanned<Value>>,
    audit_keep: Option<Spanned<Value>>,
    allow_host: Option<Spanned<Value>>,
    insecure_listen: Option<Spanned<Value>>,
}

impl File {
    /// Reads it from `path`.
    pub(crate) fn read(path: &Path) -> Result<Self, Failure> {
        let text = text(path).map_err(|error| {
            let code = [
                (ErrorKind::NotFound, exit::NO_INPUT),
                (ErrorKind::PermissionDenied, exit::PERMISSION),
                (ErrorKind::InvalidData, exit::CONFIG),
                (ErrorKind::FileTooLarge, exit::CONFIG),
            ]
            .into_iter()
            .find(|(kind, _)| *kind == error.kind())
            .map_or(exit::IO, |(_, code)| code);
            Failure::new(code, format!("reading {}: {error}", path.display()))
        })?;
        Self::parse(&text)
            .map_err(|wrong| Failure::new(exit::CONFIG, format!("{}{wrong}", path.display())))
    }

    /// Reads it from its text; an error begins with where it is.
    fn parse(text: &str) -> Result<Self, String> {
        let given: Given = toml::from_str(text).map_err(|error| {
            let at = error.span().map_or(String::new(), |span| line(text, span.start));
            format!("{at}: {}", error.message())
        })?;
        let read = Read { text };
        Ok(Self {
            listen: read.string("listen", given.listen, "ADDR:PORT", |s| s.parse().ok())?,
            data: read.path("data", given.data)?,
            existing: read.boolean("existing", given.existing)?,
            ephemeral: read.boolean("ephemeral", given.ephemeral)?,
            lease_ttl_ms: read.length("lease_ttl", given.lease_ttl)?,
            keepalive_ttl_ms: read.length("keepalive_ttl", given.keepalive_ttl)?,
            max_queued: read.queued("max_queued", given.max_queued)?,
            tokens: read.path("tokens", given.tokens)?,
            audit: read.path("audit", given.audit)?,
            audit_mib: read.number("audit_mib", given.audit_mib, 1..=65_536)?,
            audit_keep: read.number("audit_keep", given.audit_keep, 0..=1_000)?,
            allow_hosts: read.value(
                "allow_host",
                given.allow_host,
                "an array of names",
                |value| {
                    let names =
                        value.as_array()?.iter().map(|name| name.as_str().map(str::to_owned));
                    names.collect()
                },
            )?,
            insecure_listen: read.boolean("insecure_listen", given.insecure_listen)?,
        })
    }
}

/// Reads values out of a text, to which errors point.
struct Read<'a> {
    text: &'a str,
}

impl Read<'_> {
    fn value<T>(
        &self,
        key: &str,
        given: Option<Spanned<Value>>,
        allowed: &str,
        read: impl FnOnce(&Value) -> Option<T>,
    ) -> Result<Option<T>, String> {
        let Some(given) = given else { return Ok(None) };
        let value = given.get_ref();
        let at = line(self.text, given.span().start);
        let wrong = || format!("{at}: {key} = {value}: it must be {allowed}");
        read(value).map(Some).ok_or_else(wrong)
    }

    fn string<T>(
        &self,
        key: &str,
        given: Option<Spanned<Value>>,
        allowed: &str,
        read: impl FnOnce(&str) -> Option<T>,
    ) -> Result<Option<T>, String> {
        self.value(key, given, &format!("{allowed}, in quotes"), |value| read(value.as_str()?))
    }

    fn path(&self, key: &str, given: Option<Spanned<Value>>) -> Result<Option<PathBuf>, String> {
        self.string(key, given, "a path", |text| (!text.is_empty()).then(|| text.into()))
    }

    fn number(
        &self,
        key: &str,
        given: Option<Spanned<Value>>,
        range: RangeInclusive<u32>,
    ) -> Result<Option<u32>, String> {
        let allowed = format!("{}..{}", range.start(), range.end());
        self.value(key, given, &allowed, |value| {
            u32::try_from(value.as_integer()?).ok().filter(|number| range.contains(number))
        })
    }

    fn boolean(&self, key: &str, given: Option<Spanned<Value>>) -> Result<Option<bool>, String> {
        self.value(key, given, "true or false", Value::as_bool)
    }

    fn length(&self, key: &str, given: Option<Spanned<Value>>) -> Result<Option<u64>, String> {
        let allowed = "1ms to 168h, such as 500ms, 2s, 5m or 1h";
        self.string(key, given, allowed, |text| length_ms(text).ok())
    }

    fn queued(&self, key: &str, given: Option<Spanned<Value>>) -> Result<Option<usize>, String> {
        let text = |value: &Value| value.as_integer().map(|count| count.to_string());
        self.value(key, given, "16 to 16384", |value| max_queued(&text(value)?).ok())
    }
}

/// Reads a text that is no larger than a configuration can be.
fn text(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    fs::File::open(path)?.take(FILE_MAX + 1).read_to_string(&mut text)?;
    if text.len() as u64 > FILE_MAX {
        let message = format!("it is larger than {FILE_MAX} bytes");
        return Err(io::Error::new(ErrorKind::FileTooLarge, message));
    }
    Ok(text)
}

/// Names the line that a position is in.
fn line(text: &str, at: usize) -> String {
    format!(" line {}", text[..at].matches('\n').count() + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_read() {
        let text = "# all\nlisten = \"[::1]:9\"\ndata = 'd'\nexisting = false\nephemeral = true\n\
                    lease_ttl = \"2s\"\nkeepalive_ttl = \"1h\"\nmax_queued = 64\ninsecure_listen = false\n\
                    tokens = 't'\naudit = 'a'\naudit_mib = 1\naudit_keep = 0\nallow_host = ['h']\n";
        let file = File {
            max_queued: Some(64),
            listen: Some("[::1]:9".parse().unwrap()),
            data: Some("d".into()),
            existing: Some(false),
            ephemeral: Some(true),
            lease_ttl_ms: Some(2_000),
            keepalive_ttl_ms: Some(3_600_000),
            tokens: Some("t".into()),
            audit: Some("a".into()),
            audit_mib: Some(1),
            audit_keep: Some(0),
            allow_hosts: Some(vec!["h".into()]),
            insecure_listen: Some(false),
        };
        assert_eq!(File::parse(text), Ok(file));
        assert_eq!(File::parse(""), Ok(File::default()));
    }

    #[test]
    fn mistakes_are_named_with_line_key_value_and_range() {
        for (text, says) in [
            ("\nlease_ttl = \"soon\"", &["line 2", "lease_ttl", "\"soon\"", "1ms to 168h"][..]),
            ("lease_ttl = 5", &["line 1", "lease_ttl = 5", "in quotes"]),
            ("lease_ttl = \"169h\"", &["line 1", "\"169h\"", "1ms to 168h"]),
            ("ephemeral = \"yes\"", &["line 1", "ephemeral", "\"yes\"", "true or false"]),
            ("audit_mib = 0", &["line 1", "audit_mib = 0", "1..65536"]),
            ("allow_host = \"a\"", &["line 1", "allow_host", "an array of names"]),
            ("data = \"\"", &["line 1", "data", "a path"]),
            ("\n\nlisten = \"8000\"", &["line 3", "listen", "\"8000\"", "ADDR:PORT"]),
            ("\nlease-ttl = \"1s\"", &["line 2", "lease-ttl", "lease_ttl"]),
            ("listen = \"[::1]:9\"\nlisten = \"[::1]:9\"", &["line 2", "duplicate key"]),
            ("[server]\nlisten = 1", &["line 1", "server"]),
            ("listen = ", &["line 1"]),
        ] {
            let wrong = File::parse(text).expect_err(text);
            for word in says {
                assert!(wrong.contains(word), "{text:?}: {wrong}");
            }
        }
    }
}
