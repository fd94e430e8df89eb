//! Errors in TOML files that people write: their lines, and names that are almost right.
//!
//! Every error is in our own words and begins with a line. Knows nothing of what the files mean.

use toml::Spanned;
use toml::de::DeTable;

/// Two names that are less similar are not proposed for each other, from 0 to 1.
const SIMILAR: f64 = 0.8;

/// Parses a text; the error begins with its line.
pub(crate) fn parse(text: &str) -> Result<Spanned<DeTable<'_>>, String> {
    DeTable::parse(text).map_err(|error| syntax_error(text, &error))
}

/// Returns the error for a text that is not TOML.
pub(crate) fn syntax_error(text: &str, error: &toml::de::Error) -> String {
    let line = error.span().map_or(1, |span| line_at(text, span.start));
    let message = error.message();
    if message.contains("recursion") {
        return format!("line {line}: too many levels of brackets or dots");
    }
    format!("line {line} is not valid TOML: {message}")
}

/// Returns the line of a byte offset, from 1.
pub(crate) fn line_at(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1
}

/// Returns the error for a name that no field has.
pub(crate) fn unknown_field<'a>(
    name: &str,
    known: impl Iterator<Item = &'a str> + Clone,
) -> String {
    let name: String = name.chars().take(64).collect();
    if let Some(nearest) = nearest(&name, known.clone()) {
        return format!("unknown field `{name}`: write `{nearest}` if you mean that");
    }
    let known: Vec<_> = known.collect();
    format!("unknown field `{name}`: the fields are {}", known.join(", "))
}

/// Returns the most similar of the known names, if one is similar.
pub(crate) fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let similarity = |known: &&str| strsim::jaro_winkler(name, known);
    let nearest = known.max_by(|a, b| similarity(a).total_cmp(&similarity(b)))?;
    (similarity(&nearest) >= SIMILAR).then_some(nearest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_is_almost_right_is_proposed() {
        let known = ["listen", "lease_ttl", "keepalive_ttl", "audit_mib", "tokens"];
        for (name, expected) in [
            ("lease-ttl", Some("lease_ttl")),
            ("lease_tll", Some("lease_ttl")),
            ("keep_alive_ttl", Some("keepalive_ttl")),
            ("token", Some("tokens")),
            ("Listen", Some("listen")),
            ("colour", None),
            ("", None),
        ] {
            assert_eq!(nearest(name, known.into_iter()), expected, "{name}");
        }
        assert!(unknown_field("colour", known.into_iter()).contains("lease_ttl, keepalive_ttl"));
        assert!(unknown_field(&"x".repeat(10_000), known.into_iter()).len() < 300);
    }
}
