//! Whole numbers as people write them in options: a parser for clap, and its error text.
//!
//! Each option that takes a number states its range here, so that the refusal of any other text
//! names the allowed values. Options of the server, which the configuration file has too, are
//! [`Bounded`](crate::options::value::Bounded) instead.

use std::ops::RangeInclusive;
use std::str::FromStr;

/// Returns a parser of whole numbers in a range. A range up to `u64::MAX` has no upper end in the
/// error text.
pub(crate) fn number<T>(
    range: RangeInclusive<T>,
) -> impl Fn(&str) -> Result<T, String> + Clone + Send + Sync + 'static
where
    T: FromStr + PartialOrd + Copy + Into<u64> + Send + Sync + 'static,
{
    move |text: &str| {
        let number = text.parse().ok().filter(|number| range.contains(number));
        number.ok_or_else(|| {
            let (min, max): (u64, u64) = ((*range.start()).into(), (*range.end()).into());
            match max {
                u64::MAX => format!("must be a whole number of at least {min}"),
                _ => format!("must be a whole number from {min} to {max}"),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_outside_its_range_is_refused_with_the_range() {
        let parse = number(8_u8..=128);
        assert_eq!((parse("8"), parse("128")), (Ok(8), Ok(128)));
        for bad in ["7", "129", "256", "-1", "8s", "8.0", " 8", "x", ""] {
            assert_eq!(parse(bad), Err("must be a whole number from 8 to 128".into()), "{bad:?}");
        }
        let parse = number(1..=u64::MAX);
        assert_eq!(parse("18446744073709551615"), Ok(u64::MAX));
        for bad in ["0", "18446744073709551616", "1k"] {
            assert_eq!(parse(bad), Err("must be a whole number of at least 1".into()), "{bad:?}");
        }
    }
}
