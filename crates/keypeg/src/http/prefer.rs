//! `Prefer: wait=N` (RFC 7240): a wish, so what cannot be read of it is as if it were not there.

use hyper::header::HeaderMap;

/// How many seconds the client would wait for its answer. The first `wait` counts.
pub(super) fn wait_s(headers: &HeaderMap) -> Option<u64> {
    let preferences = headers.get_all("prefer").iter().filter_map(|value| value.to_str().ok());
    let mut preferences = preferences.flat_map(split);
    preferences.find_map(|preference| {
        // Parameters of a preference are none of ours.
        let preference = preference.split(';').next().unwrap_or_default();
        let (name, value) = preference.split_once('=')?;
        name.trim().eq_ignore_ascii_case("wait").then(|| seconds(value.trim()))
    })?
}

/// Cuts a list at its commas, but for those within quotes.
fn split(list: &str) -> impl Iterator<Item = &str> {
    let (mut quoted, mut escaped) = (false, false);
    list.split(move |c| {
        let cuts = c == ',' && !quoted;
        quoted ^= c == '"' && !escaped;
        escaped = quoted && c == '\\' && !escaped;
        cuts
    })
}

/// Reads digits, with or without quotes; more than fit are as good as the most that fit.
fn seconds(text: &str) -> Option<u64> {
    let bare = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text);
    let digits = !bare.is_empty() && bare.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| bare.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::header::HeaderValue;

    #[test]
    fn the_first_wait_counts_and_nonsense_does_not() {
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
