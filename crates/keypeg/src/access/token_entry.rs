//! The `[[token]]` entries of a token file: their fields and the types of these.
//!
//! An error names the line, the field and how to write it. A list of one name may be a string, and
//! a timestamp may be unquoted. Knows nothing of what a token may do.

use crate::toml_text::{self, line_at, unknown_field};
use keypeg_client::UnixMs;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// The fields of an entry.
const FIELDS: [&str; 8] = [
    "name",
    "sha256",
    "certificate",
    "pools",
    "scopes",
    "expires_at",
    "requests_per_second",
    "max_leases",
];

/// A `[[token]]` entry whose values have the right types.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) name: String,
    /// The hashes of its tokens. Without any, it has certificates.
    pub(super) sha256: Option<Vec<String>>,
    /// The names of its client certificates.
    pub(super) certificates: Option<Vec<String>>,
    pub(super) pools: Vec<String>,
    pub(super) scopes: Vec<String>,
    /// Milliseconds since 1970.
    pub(super) expires_at: Option<u64>,
    pub(super) requests_per_second: Option<u32>,
    pub(super) max_leases: Option<u32>,
}

/// Reads the entries of a token file.
pub(super) fn entries(text: &str) -> Result<Vec<Entry>, String> {
    let file = toml_text::parse(text)?;
    let mut entries = Vec::new();
    for (name, value) in file.get_ref() {
        let line = line_at(text, name.span().start);
        let name: &str = name.get_ref();
        if name != "token" {
            let hint = if FIELDS.contains(&name) {
                format!("field `{name}` is not in an entry: write [[token]] above it")
            } else {
                unknown_field(name, ["token"].into_iter())
            };
            return Err(format!("line {line}: {hint}"));
        }
        if let Some(all) = value.get_ref().as_array() {
            for value in all {
                let table = value.get_ref().as_table().ok_or_else(|| wrong_token(line))?;
                entries.push(entry(text, value.span().start, table)?);
            }
        } else {
            let table = value.get_ref().as_table().ok_or_else(|| wrong_token(line))?;
            entries.push(entry(text, value.span().start, table)?);
        }
    }
    Ok(entries)
}

fn wrong_token(line: usize) -> String {
    format!("line {line}: write each token as an entry that begins with the line [[token]]")
}

fn entry(text: &str, start: usize, table: &DeTable<'_>) -> Result<Entry, String> {
    for name in table.keys() {
        if !FIELDS.contains(&&**name.get_ref()) {
            let line = line_at(text, name.span().start);
            let error = unknown_field(name.get_ref(), FIELDS.into_iter());
            return Err(format!("line {line}: {error}"));
        }
    }
    let fields = Fields { text, start, table };
    let name = fields.required("name", |value| {
        value.as_str().map(str::to_owned).ok_or_else(|| "must be a string, in quotes".into())
    })?;
    if !table.contains_key("sha256") && !table.contains_key("certificate") {
        let line = line_at(text, start);
        let missing = "missing field `sha256` (or `certificate`) in this [[token]]";
        return Err(format!("line {line}: {missing}"));
    }
    Ok(Entry {
        name,
        sha256: fields.optional("sha256", |value| {
            list(value, "must be 64 hexadecimal digits in quotes, or a list of such strings")
        })?,
        certificates: fields.optional("certificate", |value| {
            list(value, "must be the name of a client certificate in quotes, or a list of names")
        })?,
        pools: fields.required("pools", |value| {
            list(value, "must be a list of names in quotes, such as [\"ci-*\", \"default\"]")
        })?,
        scopes: fields.required("scopes", |value| {
            list(value, "must be a list of names in quotes, such as [\"lend\", \"read\"]")
        })?,
        expires_at: fields.optional("expires_at", timestamp)?,
        requests_per_second: fields.optional("requests_per_second", number)?,
        max_leases: fields.optional("max_leases", number)?,
    })
}

/// The fields of an entry that begins at a byte offset.
struct Fields<'a> {
    text: &'a str,
    start: usize,
    table: &'a DeTable<'a>,
}

impl Fields<'_> {
    fn optional<T>(
        &self,
        name: &str,
        read: impl FnOnce(&DeValue<'_>) -> Result<T, String>,
    ) -> Result<Option<T>, String> {
        let Some(value) = self.table.get(name) else { return Ok(None) };
        let read = read(Spanned::get_ref(value));
        let line = line_at(self.text, value.span().start);
        read.map(Some).map_err(|what| format!("line {line}: {name}: {what}"))
    }

    fn required<T>(
        &self,
        name: &str,
        read: impl FnOnce(&DeValue<'_>) -> Result<T, String>,
    ) -> Result<T, String> {
        let missing = || {
            let line = line_at(self.text, self.start);
            format!("line {line}: missing field `{name}` in this [[token]]")
        };
        self.optional(name, read)?.ok_or_else(missing)
    }
}

/// Reads a list of strings, or one string.
fn list(value: &DeValue<'_>, allowed: &str) -> Result<Vec<String>, String> {
    let one = |value: &DeValue<'_>| value.as_str().map(str::to_owned);
    let list = match value.as_array() {
        Some(all) => all.iter().map(|each| one(each.get_ref())).collect(),
        None => one(value).map(|one| vec![one]),
    };
    list.ok_or_else(|| allowed.to_owned())
}

/// Reads a whole number; its range is checked with the token.
fn number(value: &DeValue<'_>) -> Result<u32, String> {
    let integer = value.as_integer().map(|integer| (integer.as_str().replace('_', ""), integer));
    let number = integer.map(|(digits, integer)| u64::from_str_radix(&digits, integer.radix()));
    match number {
        // Too large a number is refused with its range.
        Some(Ok(number)) => Ok(u32::try_from(number).unwrap_or(u32::MAX)),
        _ => Err("must be a whole number above 0, without quotes".into()),
    }
}

/// Parses a timestamp such as `2027-01-01T00:00:00Z`, or a date, which begins at midnight UTC; in
/// milliseconds since 1970.
pub(super) fn parse_timestamp(text: &str) -> Result<u64, String> {
    let invalid = || format!("{text:?} is not a timestamp such as 2027-01-01T00:00:00Z");
    let is_date = text.len() == 10;
    let full = if is_date { format!("{text}T00:00:00Z") } else { text.to_owned() };
    let parsed = serde_json::from_value::<UnixMs>(full.into());
    parsed.map(|timestamp| timestamp.0).map_err(|_| invalid())
}

/// Reads a timestamp, in quotes or not.
fn timestamp(value: &DeValue<'_>) -> Result<u64, String> {
    if let Some(text) = value.as_str() {
        return parse_timestamp(text);
    }
    let datetime = value.as_datetime();
    let datetime = datetime.ok_or("must be a timestamp, such as 2027-01-01T00:00:00Z")?;
    if datetime.date.is_some() && datetime.time.is_some() && datetime.offset.is_none() {
        return Err(format!("{datetime} has no time zone: add Z for UTC, as in {datetime}Z"));
    }
    parse_timestamp(&datetime.to_string())
}
