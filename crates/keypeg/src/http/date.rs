//! The Date header of responses.
//!
//! A wall clock outside the years that the header can express is shown as 1970 or later; it must
//! not end a request.

use crate::clock;
use jiff::Timestamp;
use jiff::fmt::rfc2822::DateTimePrinter;

/// The current second as a Date header (RFC 9110, 5.6.7).
#[derive(Debug)]
pub(super) struct HttpDate {
    pub(super) text: String,
    /// How long the text stays right, in milliseconds.
    pub(super) valid_ms: u64,
}

impl HttpDate {
    /// Formats the current time.
    pub(super) fn now() -> Self {
        Self::at(clock::wall_ms())
    }

    fn at(wall_ms: u64) -> Self {
        let instant = i64::try_from(wall_ms).ok();
        let instant = instant.and_then(|ms| Timestamp::from_millisecond(ms).ok());
        let text = DateTimePrinter::new().timestamp_to_rfc9110_string(&instant.unwrap_or_default());
        Self { text: text.unwrap_or_default(), valid_ms: 1_000 - wall_ms % 1_000 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_clock_has_a_date() {
        for (wall_ms, text) in [
            (0, "Thu, 01 Jan 1970 00:00:00 GMT"),
            (1_795_700_000_999, "Thu, 26 Nov 2026 13:33:20 GMT"),
            (u64::MAX, "Thu, 01 Jan 1970 00:00:00 GMT"),
        ] {
            assert_eq!(HttpDate::at(wall_ms).text, text);
        }
        assert_eq!(HttpDate::at(1_795_700_000_999).valid_ms, 1);
    }
}
