//! Rates: how many requests may come in a time.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer};

/// So many requests in so much time; they may come at once, and come back one by one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    limit: u32,
    period: Duration,
}

/// A text that is no rate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no rate: write `100/min` (or /s, /h, /d), from 1 to 1,000,000 requests, or `unlimited`")]
pub struct RateParseError(String);

impl Rate {
    /// The most requests of a rate.
    pub const MOST: u32 = 1_000_000;

    /// `limit` requests, 1 to [`Self::MOST`], in `period`.
    pub fn new(limit: u32, period: Duration) -> Option<Self> {
        ((1..=Self::MOST).contains(&limit) && period >= Duration::from_secs(1)).then_some(Self { limit, period })
    }

    /// Requests in a period, which are also those that may come at once.
    pub const fn limit(self) -> u32 {
        self.limit
    }

    /// The period.
    pub const fn period(self) -> Duration {
        self.period
    }

    /// The time after which one more may come.
    pub fn gap(self) -> Duration {
        self.period / self.limit
    }

    /// As it reads: `60/min`.
    pub fn written(self) -> String {
        let unit = match self.period.as_secs() {
            1 => "s",
            60 => "min",
            3600 => "h",
            _ => "d",
        };
        format!("{}/{unit}", self.limit)
    }

    /// The rate at a part of itself, never less than one request.
    #[must_use]
    pub fn at(self, part: f64) -> Self {
        let limit = (f64::from(self.limit) * part.clamp(0.0, 1.0)).floor() as u32;
        Self {
            limit: limit.max(1),
            ..self
        }
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = match self.period.as_secs() {
            1 => "second",
            60 => "minute",
            3600 => "hour",
            86400 => "day",
            seconds => return write!(f, "{} in {seconds} seconds", self.limit),
        };
        write!(f, "{} a {unit}", self.limit)
    }
}

impl FromStr for Rate {
    type Err = RateParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || RateParseError(text.chars().take(64).collect());
        let (limit, unit) = text.split_once('/').ok_or_else(error)?;
        let seconds = match unit {
            "s" => 1,
            "min" => 60,
            "h" => 3600,
            "d" => 86400,
            _ => return Err(error()),
        };
        let limit = limit.parse().map_err(|_| error())?;
        Self::new(limit, Duration::from_secs(seconds)).ok_or_else(error)
    }
}

/// A rate, or none: `100/min`, `unlimited`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allowance(pub Option<Rate>);

impl Allowance {
    /// As many as come.
    pub const UNLIMITED: Self = Self(None);

    /// So many in a minute.
    pub const fn per_minute(limit: u32) -> Self {
        let period = Duration::from_mins(1);
        Self(Some(Rate { limit, period }))
    }
}

impl FromStr for Allowance {
    type Err = RateParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "unlimited" => Ok(Self::UNLIMITED),
            text => text.parse().map(|rate| Self(Some(rate))),
        }
    }
}

impl<'de> Deserialize<'de> for Allowance {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_rate_reads_as_it_is_written_in_the_configuration() {
        let rate: Rate = "100/min".parse().unwrap();
        assert_eq!((rate.limit(), rate.period()), (100, Duration::from_mins(1)));
        assert_eq!(rate.gap(), Duration::from_millis(600));
        assert_eq!(rate.to_string(), "100 a minute");
        assert_eq!("unlimited".parse::<Allowance>().unwrap(), Allowance::UNLIMITED);
        for bad in ["", "100", "0/min", "-1/min", "1/week", "1000001/s", "1/min ", "x/s"] {
            assert!(bad.parse::<Allowance>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_part_of_a_rate_is_never_nothing() {
        let rate: Rate = "10/min".parse().unwrap();
        assert_eq!(rate.at(0.5).limit(), 5);
        assert_eq!(rate.at(0.0).limit(), 1);
        assert_eq!(rate.at(7.0).limit(), 10);
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in ".*") {
            let _ = text.parse::<Allowance>();
        }
    }
}
