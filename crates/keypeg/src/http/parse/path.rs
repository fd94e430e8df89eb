//! Paths: percent-encoding, and the names and ids in them. An invalid name or id cannot exist, so it
//! is reported as an unknown one.

use crate::http::error::Problem;
use keypeg_client::Code;
use keypeg_core::{KeyId, KeyRef, LeaseId, PoolName, Refusal};
use keypeg_store::RequestError;

/// Decodes the percent-encoded characters that need no escape (RFC 3986, 2.3), and keeps other
/// escapes. A slash is never part of a name, so an encoded one is refused by its own text.
pub(crate) fn unescape_unreserved(path: &str) -> Result<String, Problem> {
    let malformed = |detail| Problem::new(Code::Malformed, detail);
    let mut plain = String::with_capacity(path.len());
    let mut rest = path;
    while let Some((before, escape)) = rest.split_once('%') {
        plain.push_str(before);
        let digits = escape.get(..2).filter(|two| two.bytes().all(|b| b.is_ascii_hexdigit()));
        let Some(digits) = digits else {
            return Err(malformed("The path has a % without two hexadecimal digits behind it."));
        };
        let byte = u8::from_str_radix(digits, 16).expect("invariant: two hexadecimal digits");
        match byte {
            b'/' => {
                let detail = "The path has an encoded slash (%2F), which no name or id contains.";
                return Err(malformed(detail));
            }
            _ if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) => {
                plain.push(char::from(byte));
            }
            _ => plain.extend(["%", digits]),
        }
        rest = &escape[2..];
    }
    Ok(plain + rest)
}

/// Parses a pool name. An invalid name is reported as an unknown pool.
pub(crate) fn pool_name(text: &str) -> Result<PoolName, Problem> {
    PoolName::parse(text)
        .ok_or_else(|| Problem::refused(&RequestError::Refused(Refusal::UnknownPool)))
}

/// Parses a key id. An invalid id is reported as an unknown key.
pub(crate) fn key_ref(text: &str) -> Result<KeyRef, Problem> {
    KeyId::parse(text)
        .map(KeyRef::Id)
        .ok_or_else(|| Problem::refused(&RequestError::Refused(Refusal::UnknownKey)))
}

/// Parses a lease id. An invalid id is reported as an ended lease.
pub(crate) fn lease_id(text: &str) -> Result<LeaseId, Problem> {
    LeaseId::parse(text).ok_or_else(|| Problem::lease_ended(None))
}

/// Parses the number of a shard; `None` unless it is below `shards`.
pub(crate) fn shard_number(text: &str, shards: usize) -> Option<usize> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let number = text.parse().ok().filter(|number| *number < shards);
    number.filter(|_| is_number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shard_is_a_number_below_the_number_of_shards() {
        for (text, number) in [("0", Some(0)), ("15", Some(15)), ("16", None), ("03", Some(3))] {
            assert_eq!(shard_number(text, 16), number, "{text}");
        }
        for text in ["", "+1", "-1", "x", "1.0", "99999999999999999999999"] {
            assert_eq!(shard_number(text, 16), None, "{text}");
        }
    }

    #[test]
    fn only_characters_that_need_no_escape_are_decoded() {
        for (path, plain) in [
            ("/v1/pools/ci%2D1", Some("/v1/pools/ci-1")),
            ("/%76%31/pools/%7e%5F%2e%30%5A", Some("/v1/pools/~_.0Z")),
            ("/a%20b%C3%A4%25%00", Some("/a%20b%C3%A4%25%00")),
            ("/%2%31", None),
            ("/%", None),
            ("/%4", None),
            ("/%zz", None),
            ("/%+1", None),
            ("/a%2Fb", None),
            ("/a%2fb", None),
        ] {
            let found = unescape_unreserved(path);
            assert_eq!(found.as_deref().ok(), plain, "{path}");
        }
    }
}
