//! Lengths of time as people write them: in flags, in variables and in the configuration file.
//!
//! `jiff` reads the text. The range and the error message are defined here. This file does not
//! depend on any option.

use jiff::fmt::friendly::{Spacing, SpanParser, SpanPrinter};
use jiff::{SignedDuration, SpanRelativeTo};
use keypeg_fields::DURATION_MAX_MS;
use serde::Deserialize;
use std::str::FromStr;
use std::time::Duration;
use toml::Value;

const MS_PER_HOUR: u64 = 3_600_000;

/// A length of time in whole milliseconds, from `MIN_MS` to 7 days.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Value")]
pub struct HumanDuration<const MIN_MS: u64 = 1>(u64);

impl<const MIN_MS: u64> HumanDuration<MIN_MS> {
    /// Returns the length in milliseconds.
    pub fn ms(self) -> u64 {
        self.0
    }
}

impl<const MIN_MS: u64> FromStr for HumanDuration<MIN_MS> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let in_range = |ms: &u64| (MIN_MS..=DURATION_MAX_MS).contains(ms);
        parse_ms(text).filter(in_range).map(Self).ok_or_else(|| {
            let max_hours = DURATION_MAX_MS / MS_PER_HOUR;
            let is_bare = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            let fix = if is_bare && text.len() <= 9 {
                format!(": write {text}s for {text} seconds")
            } else {
                String::new()
            };
            format!(
                "must be {MIN_MS}ms to {max_hours}h with a unit, such as 500ms, 90s, 1m30s or \
                 7d{fix}"
            )
        })
    }
}

impl<const MIN_MS: u64> TryFrom<Value> for HumanDuration<MIN_MS> {
    type Error = String;

    fn try_from(value: Value) -> Result<Self, String> {
        let Value::String(text) = &value else {
            let shown = value.as_integer().map(|number| number.to_string()).unwrap_or_default();
            let parsed = shown.parse::<Self>();
            return Err(parsed.err().map_or_else(String::new, |allowed| allowed + ", in quotes"));
        };
        text.parse().map_err(|allowed| format!("{allowed}, in quotes"))
    }
}

/// Parses a length such as `500ms`, `1.5s`, `1m30s`, `2h` or `30d`, in milliseconds. Returns `None`
/// for other text, a negative length, and a part of a millisecond. A day has 24 hours.
pub(crate) fn parse_ms(text: &str) -> Option<u64> {
    let span = SpanParser::new().parse_span(text).ok()?;
    let duration = span.to_duration(SpanRelativeTo::days_are_24_hours()).ok()?;
    let is_whole = duration.subsec_nanos() % 1_000_000 == 0;
    is_whole.then(|| u64::try_from(duration.as_millis()).ok())?
}

/// Returns a length of time as an option takes it, such as `1m30s`. Above a minute, a part of a
/// second counts as a whole one.
pub(crate) fn shown(length: Duration) -> String {
    const MINUTE: Duration = Duration::from_mins(1);
    let whole = Duration::from_secs(length.as_secs());
    let rounded = match length {
        _ if length > MINUTE && length > whole => whole.saturating_add(Duration::from_secs(1)),
        _ => length,
    };
    let rounded = SignedDuration::try_from(rounded).unwrap_or(SignedDuration::MAX);
    SpanPrinter::new().spacing(Spacing::None).duration_to_string(&rounded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_has_a_unit_and_may_have_several() {
        for (text, ms) in [
            ("1ms", 1),
            ("500ms", 500),
            ("90s", 90_000),
            ("1.5s", 1_500),
            ("1m30s", 90_000),
            ("1m 30s", 90_000),
            ("60 s", 60_000),
            ("5m", 300_000),
            ("2h", 7_200_000),
            ("1 hour", 3_600_000),
            ("1d", 86_400_000),
            ("30d", 2_592_000_000),
            ("0s", 0),
        ] {
            assert_eq!(parse_ms(text), Some(ms), "{text}");
        }
        for bad in ["", "5", "1.5", "s", "-1s", "1s ago", "1.5ms", "1us", "1mo", "1y", "P1D", "∞"]
        {
            assert_eq!(parse_ms(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_duration_is_shown_as_an_option_takes_it() {
        for (us, text) in [
            (0, "0s"),
            (500_000, "500ms"),
            (2_000_000, "2s"),
            (59_900_000, "59s900ms"),
            (60_000_000, "1m"),
            (90_000_001, "1m31s"),
            (3_600_000_000, "1h"),
            (604_800_000_000, "168h"),
        ] {
            assert_eq!(shown(Duration::from_micros(us)), text);
            assert!(parse_ms(text).is_some(), "{text}");
        }
    }

    #[test]
    fn a_duration_has_a_range() {
        for text in ["168h", "7d", "1w", "167h59m60s"] {
            assert_eq!(text.parse(), Ok(HumanDuration::<1>(604_800_000)), "{text}");
        }
        assert_eq!("0ms".parse(), Ok(HumanDuration::<0>(0)));
        for bad in ["0s", "169h", "8d", "30d", "7d1ms", "99999999999999999999h"] {
            let error = bad.parse::<HumanDuration<1>>().unwrap_err();
            assert!(error.contains("1ms to 168h") && error.contains("500ms"), "{bad:?}: {error}");
            assert!(!error.contains("write"), "{bad:?}: {error}");
        }
        let error = "60".parse::<HumanDuration<0>>().unwrap_err();
        assert!(error.ends_with(": write 60s for 60 seconds"), "{error}");
    }
}
