//! Numbers with their range in the type, refused while they are read.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, Unexpected, Visitor};
use time::OffsetDateTime;

/// A whole number from `MIN` to `MAX`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Whole<const MIN: i64, const MAX: i64>(i64);

impl<const MIN: i64, const MAX: i64> Whole<MIN, MAX> {
    /// The number, if it is in the range.
    pub const fn new(value: i64) -> Option<Self> {
        if MIN <= value && value <= MAX {
            Some(Self(value))
        } else {
            None
        }
    }

    /// The number.
    pub const fn get(self) -> i64 {
        self.0
    }
}

impl<'de, const MIN: i64, const MAX: i64> Deserialize<'de> for Whole<MIN, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(WholeVisitor::<MIN, MAX>)
    }
}

struct WholeVisitor<const MIN: i64, const MAX: i64>;

impl<const MIN: i64, const MAX: i64> Visitor<'_> for WholeVisitor<MIN, MAX> {
    type Value = Whole<MIN, MAX>;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "a whole number from {MIN} to {MAX}")
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Self::Value, E> {
        if (MIN..=MAX).contains(&value) {
            Ok(Whole(value))
        } else {
            Err(E::invalid_value(Unexpected::Signed(value), &self))
        }
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Self::Value, E> {
        match i64::try_from(value) {
            Ok(value) => self.visit_i64(value),
            Err(_) => Err(E::invalid_value(Unexpected::Unsigned(value), &self)),
        }
    }
}

/// A number from `MIN` to `MAX`, both included.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Between<const MIN: i32, const MAX: i32>(f32);

/// A number from 0 to `MAX`, both included.
pub type UpTo<const MAX: i32> = Between<0, MAX>;

impl<const MIN: i32, const MAX: i32> Between<MIN, MAX> {
    /// The number, if it is in the range.
    pub const fn new(value: i32) -> Option<Self> {
        if MIN <= value && value <= MAX {
            Some(Self(value as f32))
        } else {
            None
        }
    }

    /// The number.
    pub const fn get(self) -> f32 {
        self.0
    }
}

impl<'de, const MIN: i32, const MAX: i32> Deserialize<'de> for Between<MIN, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(BetweenVisitor::<MIN, MAX>)
    }
}

struct BetweenVisitor<const MIN: i32, const MAX: i32>;

impl<const MIN: i32, const MAX: i32> Visitor<'_> for BetweenVisitor<MIN, MAX> {
    type Value = Between<MIN, MAX>;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "a number from {MIN} to {MAX}")
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Self::Value, E> {
        if (f64::from(MIN)..=f64::from(MAX)).contains(&value) {
            // Adding zero turns -0 into 0.
            Ok(Between(value as f32 + 0.0))
        } else {
            Err(E::invalid_value(Unexpected::Float(value), &self))
        }
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Self::Value, E> {
        self.visit_f64(value as f64)
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Self::Value, E> {
        self.visit_f64(value as f64)
    }
}

/// The seconds of a Unix time, up to the year 9999: within the years that Postgres knows.
pub type UnixTime = Whole<0, 253_402_300_799>;

/// Reads a Unix time from a query parameter; the error says what is wanted.
pub fn unix_time(text: &str) -> Result<OffsetDateTime, String> {
    let seconds = text.parse().ok().and_then(UnixTime::new);
    seconds
        .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds.get()).ok())
        .ok_or_else(|| "must be Unix seconds, from 0 to the year 9999".to_owned())
}

/// Reads a whole number within `range` from a query parameter; the error says what is wanted.
pub fn from_text(text: &str, range: std::ops::RangeInclusive<u32>) -> Result<u32, String> {
    match text.parse::<u32>() {
        // Rust reads "+5" as well, which in a query is a space before a 5.
        Ok(value) if range.contains(&value) && text.bytes().all(|digit| digit.is_ascii_digit()) => Ok(value),
        _ => Err(format!(
            "must be a whole number from {} to {}",
            range.start(),
            range.end()
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::from_str;

    type Small = Whole<1, 5>;

    #[test]
    fn whole_numbers_within_the_range_pass_and_all_others_name_it() {
        assert_eq!(from_str::<Small>("1").unwrap().get(), 1);
        assert_eq!(from_str::<Small>("5").unwrap().get(), 5);
        for bad in [
            "0",
            "6",
            "-1",
            "2.5",
            "2.0",
            "\"3\"",
            "true",
            "[]",
            "18446744073709551615",
            "1e99",
        ] {
            let error = from_str::<Small>(bad).unwrap_err().to_string();
            assert!(error.contains("a whole number from 1 to 5"), "{bad}: {error}");
        }
    }

    #[test]
    fn the_whole_range_of_a_seed_is_readable() {
        type Seed = Whole<{ i64::MIN }, { i64::MAX }>;
        for seed in [i64::MIN, 0, i64::MAX] {
            assert_eq!(from_str::<Seed>(&seed.to_string()).unwrap().get(), seed);
        }
        assert!(from_str::<Seed>("9223372036854775808").is_err());
    }

    #[test]
    fn fractions_pass_up_to_the_limit() {
        assert!((from_str::<UpTo<2>>("0.7").unwrap().get() - 0.7).abs() < 1e-6);
        assert!(from_str::<UpTo<2>>("2").is_ok());
        assert!(from_str::<UpTo<2>>("-0.0").unwrap().get().is_sign_positive());
        for bad in ["-0.1", "2.0001", "-1", "3", "\"1\"", "null"] {
            let error = from_str::<UpTo<2>>(bad).unwrap_err().to_string();
            assert!(error.contains("a number from 0 to 2"), "{bad}: {error}");
        }
    }

    #[test]
    fn a_range_may_begin_below_zero() {
        assert!((from_str::<Between<-2, 2>>("-2").unwrap().get() + 2.0).abs() < f32::EPSILON);
        let error = from_str::<Between<-2, 2>>("-2.1").unwrap_err().to_string();
        assert!(error.contains("a number from -2 to 2"), "{error}");
    }

    #[test]
    fn a_unix_time_lies_in_years_that_postgres_knows() {
        assert!(unix_time("0").is_ok() && unix_time("253402300799").is_ok());
        for bad in [
            "-1",
            "253402300800",
            "-300000000000",
            "9223372036854775807",
            "1.5",
            "now",
            "",
        ] {
            assert!(unix_time(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_query_number_takes_digits_only() {
        assert_eq!(from_text("20", 1..=100), Ok(20));
        for bad in ["", "0", "101", "+5", " 5", "5.0", "-1", "ten", "99999999999"] {
            assert!(from_text(bad, 1..=100).is_err(), "{bad}");
        }
    }
}
