//! The `Prefer: wait=N` header (RFC 7240). It is a preference, so an unreadable value is ignored
//! and never an error.

use hyper::header::HeaderMap;

/// Returns how many seconds the client is willing to wait. The first `wait` counts.
pub(crate) fn wait_s(headers: &HeaderMap) -> Option<u64> {
    let preferences = headers.get_all("prefer").iter().filter_map(|value| value.to_str().ok());
    let mut preferences = preferences.flat_map(split);
    preferences.find_map(|preference| {
        // The server knows no parameters of a preference.
        let preference = preference.split(';').next().unwrap_or_default();
        let (name, value) = preference.split_once('=')?;
        name.trim().eq_ignore_ascii_case("wait").then(|| seconds(value.trim()))
    })?
}

/// Splits a list at its commas, except those in quotes.
fn split(list: &str) -> impl Iterator<Item = &str> {
    let (mut quoted, mut escaped) = (false, false);
    list.split(move |c| {
        let is_separator = c == ',' && !quoted;
        quoted ^= c == '"' && !escaped;
        escaped = quoted && c == '\\' && !escaped;
        is_separator
    })
}

/// Parses digits, with or without quotes; a number too large saturates.
fn seconds(text: &str) -> Option<u64> {
    let unquoted = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text);
    let is_number = !unquoted.is_empty() && unquoted.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| unquoted.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::header::HeaderValue;

    #[test]
    fn the_first_wait_counts_and_unreadable_values_are_ignored() {
        for (values, expected) in [
            (&[][..], None),
            (&["wait=10"], Some(10)),
            (&["WAIT = 10 "], Some(10)),
            (&["wait=\"10\""], Some(10)),
            (&["respond-async, wait=7; foo=bar"], Some(7)),
            (&["respond-async", "wait=7"], Some(7)),
            (&["wait=1, wait=2"], Some(1)),
            (&["foo=\"a, wait=3\", wait=4"], Some(4)),
            (&["foo=\"\\\", wait=3\", wait=4"], Some(4)),
            (&["wait=0"], Some(0)),
            (&["wait=99999999999999999999999"], Some(u64::MAX)),
            (&["wait"], None),
            (&["wait="], None),
            (&["wait=-1"], None),
            (&["wait=1.5"], None),
            (&["wait=+1"], None),
            (&["wait=ten"], None),
            (&["awaits=10"], None),
        ] {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append("prefer", HeaderValue::from_static(value));
            }
            assert_eq!(wait_s(&headers), expected, "{values:?}");
        }
    }
}
