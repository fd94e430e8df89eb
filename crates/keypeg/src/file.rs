//! The configuration file: TOML whose keys are the long flags, with `_` in place of `-`.
//!
//! Every error names the file, the line, the key, its value and the allowed values. An unknown key
//! is refused: in practice it is a spelling mistake.

use crate::config::{duration_ms, max_queued};
use crate::failure::{Failure, exit};
use serde::Deserialize;
use std::fs;
use std::io::{self, ErrorKind, Read as _};
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use toml::{Spanned, Value};

/// The largest configuration file, in bytes.
const FILE_MAX: u64 = 1 << 20;

/// The options in the file; one that the file omits is `None`.
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

/// The file's values before they are checked, each with its position.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFile {
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
    /// Reads the file at `path`.
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
            Failure::new(
                code,
                format!(
                    "cannot read the configuration file {}: {error}; check --config",
                    path.display()
                ),
            )
        })?;
        Self::parse(&text)
            .map_err(|error| Failure::new(exit::CONFIG, format!("{}{error}", path.display())))
    }

    /// Parses the file's text; an error message begins with its line.
    fn parse(text: &str) -> Result<Self, String> {
        let raw: RawFile = toml::from_str(text).map_err(|error| {
            let line = error.span().map_or(String::new(), |span| line_at(text, span.start));
            format!("{line}: {}", error.message())
        })?;
        let values = Values { text };
        Ok(Self {
            listen: values.string("listen", raw.listen, "ADDR:PORT", |s| s.parse().ok())?,
            data: values.path("data", raw.data)?,
            existing: values.boolean("existing", raw.existing)?,
            ephemeral: values.boolean("ephemeral", raw.ephemeral)?,
            lease_ttl_ms: values.duration_ms("lease_ttl", raw.lease_ttl)?,
            keepalive_ttl_ms: values.duration_ms("keepalive_ttl", raw.keepalive_ttl)?,
            max_queued: values.max_queued("max_queued", raw.max_queued)?,
            tokens: values.path("tokens", raw.tokens)?,
            audit: values.path("audit", raw.audit)?,
            audit_mib: values.number("audit_mib", raw.audit_mib, 1..=65_536)?,
            audit_keep: values.number("audit_keep", raw.audit_keep, 0..=1_000)?,
            allow_hosts: values.value(
                "allow_host",
                raw.allow_host,
                "an array of names",
                |value| {
                    let names =
                        value.as_array()?.iter().map(|name| name.as_str().map(str::to_owned));
                    names.collect()
                },
            )?,
            insecure_listen: values.boolean("insecure_listen", raw.insecure_listen)?,
        })
    }
}

/// Checks values; its errors name the value's line in `text`.
struct Values<'a> {
    text: &'a str,
}

impl Values<'_> {
    fn value<T>(
        &self,
        key: &str,
        raw: Option<Spanned<Value>>,
        allowed: &str,
        parse: impl FnOnce(&Value) -> Option<T>,
    ) -> Result<Option<T>, String> {
        let Some(raw) = raw else { return Ok(None) };
        let value = raw.get_ref();
        let line = line_at(self.text, raw.span().start);
        let error = || format!("{line}: {key} = {value} is not valid: it must be {allowed}");
        parse(value).map(Some).ok_or_else(error)
    }

    fn string<T>(
        &self,
        key: &str,
        raw: Option<Spanned<Value>>,
        allowed: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<Option<T>, String> {
        self.value(key, raw, &format!("{allowed}, in quotes"), |value| parse(value.as_str()?))
    }

    fn path(&self, key: &str, raw: Option<Spanned<Value>>) -> Result<Option<PathBuf>, String> {
        self.string(key, raw, "a path", |text| (!text.is_empty()).then(|| text.into()))
    }

    fn number(
        &self,
        key: &str,
        raw: Option<Spanned<Value>>,
        range: RangeInclusive<u32>,
    ) -> Result<Option<u32>, String> {
        let allowed = format!("{} to {}", range.start(), range.end());
        self.value(key, raw, &allowed, |value| {
            u32::try_from(value.as_integer()?).ok().filter(|number| range.contains(number))
        })
    }

    fn boolean(&self, key: &str, raw: Option<Spanned<Value>>) -> Result<Option<bool>, String> {
        self.value(key, raw, "true or false", Value::as_bool)
    }

    fn duration_ms(&self, key: &str, raw: Option<Spanned<Value>>) -> Result<Option<u64>, String> {
        let allowed = "1ms to 168h, such as 500ms, 2s, 5m or 1h";
        self.string(key, raw, allowed, |text| duration_ms(text).ok())
    }

    fn max_queued(&self, key: &str, raw: Option<Spanned<Value>>) -> Result<Option<usize>, String> {
        let text = |value: &Value| value.as_integer().map(|count| count.to_string());
        self.value(key, raw, "16 to 16384", |value| max_queued(&text(value)?).ok())
    }
}

/// Reads a file of at most `FILE_MAX` bytes.
fn text(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    fs::File::open(path)?.take(FILE_MAX + 1).read_to_string(&mut text)?;
    if text.len() as u64 > FILE_MAX {
        let message = format!("the file is larger than {FILE_MAX} bytes");
        return Err(io::Error::new(ErrorKind::FileTooLarge, message));
    }
    Ok(text)
}

/// Returns ` line N` for the line at a byte offset, N from 1.
fn line_at(text: &str, offset: usize) -> String {
    format!(" line {}", text[..offset].matches('\n').count() + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_read() {
        let text = "# all\nlisten = \"[::1]:9\"\ndata = 'd'\nexisting = false\nephemeral = true\n\
                    lease_ttl = \"2s\"\nkeepalive_ttl = \"1h\"\nmax_queued = 64\n\
                    insecure_listen = false\ntokens = 't'\naudit = 'a'\naudit_mib = 1\n\
                    audit_keep = 0\nallow_host = ['h']\n";
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
    fn errors_name_line_key_value_and_range() {
        for (text, says) in [
            ("\nlease_ttl = \"soon\"", &["line 2", "lease_ttl", "\"soon\"", "1ms to 168h"][..]),
            ("lease_ttl = 5", &["line 1", "lease_ttl = 5", "in quotes"]),
            ("lease_ttl = \"169h\"", &["line 1", "\"169h\"", "1ms to 168h"]),
            ("ephemeral = \"yes\"", &["line 1", "ephemeral", "\"yes\"", "true or false"]),
            ("audit_mib = 0", &["line 1", "audit_mib = 0", "1 to 65536"]),
            ("allow_host = \"a\"", &["line 1", "allow_host", "an array of names"]),
            ("data = \"\"", &["line 1", "data", "a path"]),
            ("\n\nlisten = \"8000\"", &["line 3", "listen", "\"8000\"", "ADDR:PORT"]),
            ("\nlease-ttl = \"1s\"", &["line 2", "lease-ttl", "lease_ttl"]),
            ("listen = \"[::1]:9\"\nlisten = \"[::1]:9\"", &["line 2", "duplicate key"]),
            ("[server]\nlisten = 1", &["line 1", "server"]),
            ("listen = ", &["line 1"]),
        ] {
            let error = File::parse(text).expect_err(text);
            for word in says {
                assert!(error.contains(word), "{text:?}: {error}");
            }
        }
    }
}
