//! Query strings: percent-decoding, and parameters that may each appear once, so that every error
//! names its parameter.
//!
//! Knows of a route's parameters only `limit`, which all listings share. No error repeats a value: it
//! may be a secret.

use super::json::echo;
use crate::http::error::Problem;
use keypeg_fields::{Field, IntegerField, LIMIT};

/// A query's parameters.
#[derive(Debug, Default)]
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    /// Reads a query that has only known parameters, each at most once.
    pub(crate) fn read(query: Option<&str>, known: &[&str]) -> Result<Self, Problem> {
        let mut parameters = Self::default();
        for pair in query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let name = decoded(name);
            let allowed = match known {
                [] => "no parameters".into(),
                known => known.join(", "),
            };
            if !known.contains(&name.as_str()) {
                let name = echo(&name);
                let hint = if known.is_empty() { " Fields go into the JSON body." } else { "" };
                let detail = format!("Unknown parameter {name}; allowed: {allowed}.{hint}");
                return Err(Problem::invalid(name, allowed, detail));
            }
            if parameters.0.iter().any(|(other, _)| *other == name) {
                return Err(Problem::out_of_range(&name, "given at most once"));
            }
            parameters.0.push((name, decoded(value)));
        }
        Ok(parameters)
    }

    /// Returns a parameter's value.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str())
    }
}

impl Query {
    /// Returns the most items that the client wants on a page; `default` if it sends no `limit`.
    pub(crate) fn limit(&self, default: usize) -> Result<usize, Problem> {
        self.integer(&LIMIT, default)
    }

    /// Returns an integer parameter, which is small; `default` if the client does not send it.
    pub(crate) fn integer(
        &self,
        field: &'static IntegerField,
        default: usize,
    ) -> Result<usize, Problem> {
        self.get(field.name).map_or(Ok(default), |text| {
            let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            let number = is_number.then(|| text.parse().ok()).flatten();
            let number = number.filter(|&number| field.allows(number));
            number
                .and_then(|number| usize::try_from(number).ok())
                .ok_or_else(|| Problem::not_allowed(Field::Integer(field)))
        })
    }
}

/// Decodes `application/x-www-form-urlencoded` text. An invalid escape is kept as it is.
pub(crate) fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        rest = after;
        match (first, after) {
            (b'+', _) => bytes.push(b' '),
            (b'%', [high, low, after @ ..]) => match (nibble(*high), nibble(*low)) {
                (Some(high), Some(low)) => {
                    bytes.push(high << 4 | low);
                    rest = after;
                }
                _ => bytes.push(b'%'),
            },
            (byte, _) => bytes.push(*byte),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn nibble(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|nibble| u8::try_from(nibble).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_decoded_like_a_form() {
        for (text, plain) in [
            ("abc", "abc"),
            ("a+b%20c", "a b c"),
            ("%2B%26%3d%25", "+&=%"),
            ("%C3%A4", "ä"),
            ("100%", "100%"),
            ("%4", "%4"),
            ("%zz%4a", "%zzJ"),
            ("%ff", "\u{fffd}"),
        ] {
            assert_eq!(decoded(text), plain, "{text:?}");
        }
    }
}
