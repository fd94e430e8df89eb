//! Instants and durations on the wire: RFC 3339 in UTC with exactly three decimals, and seconds as
//! a JSON number.
//!
//! Both are stored as whole milliseconds, so a value does not change between server and client.

use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;

/// An instant: milliseconds since 1970-01-01 UTC, written `2026-11-22T21:30:00.000Z`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnixMs(pub u64);

/// A duration in milliseconds, written as a number of seconds: `60`, `0.5`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Seconds {
    /// The duration in milliseconds.
    pub ms: u64,
}

impl UnixMs {
    /// Returns the instant as RFC 3339; one after the year 9999 as the end of that year.
    pub fn text(self) -> [u8; 24] {
        let instant = i64::try_from(self.0)
            .ok()
            .and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok())
            .unwrap_or(jiff::Timestamp::MAX);
        let at = jiff::tz::Offset::UTC.to_datetime(instant);
        let mut text = *b"0000-00-00T00:00:00.000Z";
        let mut write = |place: std::ops::Range<usize>, number: i16| {
            let mut rest = number.unsigned_abs();
            for digit in text[place].iter_mut().rev() {
                *digit += (rest % 10) as u8;
                rest /= 10;
            }
        };
        write(0..4, at.year());
        write(5..7, at.month().into());
        write(8..10, at.day().into());
        write(11..13, at.hour().into());
        write(14..16, at.minute().into());
        write(17..19, at.second().into());
        write(20..23, at.millisecond());
        text
    }
}

impl fmt::Display for UnixMs {
    /// Writes RFC 3339; an instant after the year 9999 is written as the end of that year.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(std::str::from_utf8(&self.text()).map_err(|_| fmt::Error)?)
    }
}

impl Serialize for UnixMs {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for UnixMs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let instant: jiff::Timestamp = text.parse().map_err(D::Error::custom)?;
        u64::try_from(instant.as_millisecond()).map(Self).map_err(D::Error::custom)
    }
}

impl Seconds {
    /// Converts from milliseconds.
    pub fn from_ms(ms: u64) -> Self {
        Self { ms }
    }

    /// Converts from seconds, rounded up to milliseconds. A number that is not above zero becomes
    /// zero, and one that does not fit becomes the maximum.
    pub fn from_number(seconds: f64) -> Self {
        let ms = seconds * 1_000.0;
        // 0.14 s is 140 ms, although the product is slightly more: do not round it up to 141.
        let nearest = ms.round();
        let is_whole = (ms - nearest).abs() <= nearest.abs() * 4.0 * f64::EPSILON;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "the cast saturates at zero and the maximum, as documented"
        )]
        let ms = if is_whole { nearest } else { ms.ceil() } as u64;
        Self { ms }
    }
}

impl Serialize for Seconds {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.ms.is_multiple_of(1_000) {
            return serializer.serialize_u64(self.ms / 1_000);
        }
        #[expect(clippy::cast_precision_loss, reason = "exact below 285 000 years")]
        serializer.serialize_f64(self.ms as f64 / 1_000.0)
    }
}

impl<'de> Deserialize<'de> for Seconds {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Number;
        impl Visitor<'_> for Number {
            type Value = Seconds;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number of seconds")
            }

            fn visit_u64<E: Error>(self, seconds: u64) -> Result<Seconds, E> {
                Ok(Seconds::from_ms(seconds.saturating_mul(1_000)))
            }

            fn visit_f64<E: Error>(self, seconds: f64) -> Result<Seconds, E> {
                Ok(Seconds::from_number(seconds))
            }
        }
        deserializer.deserialize_any(Number)
    }
}

#[cfg(feature = "openapi")]
mod schemas {
    use super::{Seconds, UnixMs};
    use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
    use std::borrow::Cow;

    impl JsonSchema for UnixMs {
        fn inline_schema() -> bool {
            true
        }

        fn schema_name() -> Cow<'static, str> {
            "Instant".into()
        }

        fn json_schema(_: &mut SchemaGenerator) -> Schema {
            json_schema!({
                "type": "string",
                "format": "date-time",
                "pattern": r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{3}Z$",
            })
        }
    }

    impl JsonSchema for Seconds {
        fn inline_schema() -> bool {
            true
        }

        fn schema_name() -> Cow<'static, str> {
            "Seconds".into()
        }

        fn json_schema(_: &mut SchemaGenerator) -> Schema {
            json_schema!({ "type": "number", "minimum": 0 })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instants_have_three_decimals_and_parse_back() {
        for (ms, text) in [
            (0, "\"1970-01-01T00:00:00.000Z\""),
            (1_795_383_000_000, "\"2026-11-22T21:30:00.000Z\""),
            (1_795_383_000_007, "\"2026-11-22T21:30:00.007Z\""),
            (951_782_400_000, "\"2000-02-29T00:00:00.000Z\""),
            (4_107_542_399_999, "\"2100-02-28T23:59:59.999Z\""),
            (253_402_207_200_999, "\"9999-12-30T22:00:00.999Z\""),
        ] {
            assert_eq!(serde_json::to_string(&UnixMs(ms)).unwrap(), text);
            assert_eq!(serde_json::from_str::<UnixMs>(text).unwrap(), UnixMs(ms));
        }
        assert!(UnixMs(u64::MAX).to_string().starts_with("9999-12-30T"));
        for ms in (0..253_402_207_200_999).step_by(86_400_001 * 97) {
            let instant = jiff::Timestamp::from_millisecond(ms).unwrap();
            let ms = u64::try_from(ms).unwrap();
            assert_eq!(UnixMs(ms).to_string(), format!("{instant:.3}"));
        }
    }

    #[test]
    fn whole_seconds_are_integers_and_all_milliseconds_parse_back() {
        for (ms, text) in [(0, "0"), (60_000, "60"), (500, "0.5"), (1, "0.001"), (1_234, "1.234")] {
            assert_eq!(serde_json::to_string(&Seconds::from_ms(ms)).unwrap(), text);
        }
        for ms in 0..100_000 {
            let text = serde_json::to_string(&Seconds::from_ms(ms)).unwrap();
            assert_eq!(serde_json::from_str::<Seconds>(&text).unwrap().ms, ms, "{text}");
        }
    }

    #[test]
    fn numbers_are_rounded_up_to_milliseconds() {
        for (seconds, ms) in [
            (0.001, 1),
            (0.000_1, 1),
            (0.001_000_001, 2),
            (0.14, 140),
            (0.001_1, 2),
            (604_800.0, 604_800_000),
            (0.0, 0),
            (-1.0, 0),
            (1e300, u64::MAX),
        ] {
            assert_eq!(Seconds::from_number(seconds).ms, ms, "{seconds}");
        }
    }
}
