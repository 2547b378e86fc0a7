//! Budgets: how many tokens and how much money may be used in a time, and what tokens cost.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// An amount of money in billionths of the installation's currency unit: whatever its prices are written in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Money(u64);

/// A text or number that is no amount.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("must be an amount from 0 to 1,000,000,000 with at most 9 decimals")]
pub struct MoneyError;

impl Money {
    /// The greatest amount, a billion units.
    pub const MOST: Self = Self(1_000_000_000 * Self::UNIT);
    const UNIT: u64 = 1_000_000_000;

    /// So many billionths.
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Billionths.
    pub const fn nanos(self) -> u64 {
        self.0
    }

    /// The amount nearest to a number of units, if it is in the range.
    pub fn from_units(units: f64) -> Result<Self, MoneyError> {
        if !(0.0..=1e9).contains(&units) {
            return Err(MoneyError);
        }
        Ok(Self((units * Self::UNIT as f64).round() as u64))
    }

    /// As JSON shows it.
    pub fn units(self) -> f64 {
        self.0 as f64 / Self::UNIT as f64
    }
}

impl fmt::Display for Money {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, part) = (self.0 / Self::UNIT, self.0 % Self::UNIT);
        let decimals = format!("{part:09}");
        // Two decimals at least, as money is written.
        let kept = decimals.trim_end_matches('0').len().max(2);
        write!(f, "{whole}.{}", &decimals[..kept])
    }
}

impl FromStr for Money {
    type Err = MoneyError;

    fn from_str(text: &str) -> Result<Self, MoneyError> {
        let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
        let digits = |text: &str, most: usize| {
            (1..=most).contains(&text.len()) && text.bytes().all(|digit| digit.is_ascii_digit())
        };
        if !digits(whole, 10) || !digits(part, 9) {
            return Err(MoneyError);
        }
        let (whole, nanos): (u64, u64) = (
            whole.parse().map_err(|_| MoneyError)?,
            format!("{part:0<9}").parse().map_err(|_| MoneyError)?,
        );
        let money = Self(whole * Self::UNIT + nanos);
        (money <= Self::MOST).then_some(money).ok_or(MoneyError)
    }
}

/// What a token of a prompt and a generated one cost, in billionths of the unit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Price {
    /// A token of a prompt.
    pub prompt: u64,
    /// A generated token.
    pub completion: u64,
}

impl Price {
    /// Most units for a million tokens: whatever jobs a tenant has, their cost stays within what is counted in.
    const MOST_PER_MILLION: Money = Money(10_000 * Money::UNIT);

    /// From the prices of a million tokens, which have at most three decimals.
    pub fn per_million(prompt: Money, completion: Money) -> Option<Self> {
        let token = |million: Money| {
            let whole = million.nanos().is_multiple_of(1_000_000) && million <= Self::MOST_PER_MILLION;
            whole.then(|| million.nanos() / 1_000_000)
        };
        Some(Self {
            prompt: token(prompt)?,
            completion: token(completion)?,
        })
    }

    /// What so many tokens cost.
    pub const fn of(self, tokens: Tokens) -> Money {
        let cost = self.prompt.saturating_mul(tokens.prompt);
        Money(cost.saturating_add(self.completion.saturating_mul(tokens.completion)))
    }
}

/// Tokens of one job.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tokens {
    /// Of the prompt.
    pub prompt: u64,
    /// Generated, all choices together.
    pub completion: u64,
}

impl Tokens {
    /// Both.
    pub const fn total(self) -> u64 {
        self.prompt + self.completion
    }
}

/// What may be used; at least one of the two is limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// Most tokens.
    pub tokens: Option<u64>,
    /// Most money.
    pub cost: Option<Money>,
    /// After this time it may be used anew; `None`: once.
    pub period: Option<Duration>,
}

/// How much of a budget is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BudgetStanding {
    /// What may be used.
    pub budget: Budget,
    /// Tokens of jobs that ended in this period.
    pub spent_tokens: u64,
    /// What they cost.
    pub spent: Money,
    /// Most tokens that jobs may still use which have not ended.
    pub reserved_tokens: u64,
    /// What those cost at most.
    pub reserved: Money,
    /// The time until it may be used anew.
    pub renews_in: Option<Duration>,
}

impl BudgetStanding {
    /// Tokens that are left; `None` if they are not limited.
    pub fn left_tokens(&self) -> Option<u64> {
        let used = self.spent_tokens + self.reserved_tokens;
        self.budget.tokens.map(|most| most.saturating_sub(used))
    }

    /// Money that is left; `None` if it is not limited.
    pub fn left(&self) -> Option<Money> {
        let used = self.spent.nanos() + self.reserved.nanos();
        let left = |most: Money| Money(most.nanos().saturating_sub(used));
        self.budget.cost.map(left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn money_reads_as_it_is_written() {
        for (text, nanos, shown) in [
            ("0.15", 150_000_000, "0.15"),
            ("5", 5_000_000_000, "5.00"),
            ("0.000000001", 1, "0.000000001"),
            ("1000000000", Money::MOST.nanos(), "1000000000.00"),
        ] {
            let money: Money = text.parse().unwrap();
            assert_eq!((money.nanos(), money.to_string().as_str()), (nanos, shown));
        }
        for bad in [
            "",
            ".",
            "1.",
            ".5",
            "-1",
            "+1",
            "1e3",
            "1,5",
            "0.0000000001",
            "1000000000.1",
            "99999999999",
        ] {
            assert!(bad.parse::<Money>().is_err(), "{bad}");
        }
        for bad in [f64::NAN, -0.1, 1e9 + 1.0, f64::INFINITY] {
            assert!(Money::from_units(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_price_is_of_a_million_tokens_and_whole_for_one() {
        let price =
            |prompt: &str, completion: &str| Price::per_million(prompt.parse().unwrap(), completion.parse().unwrap());
        let cost = price("0.15", "0.6").unwrap().of(Tokens {
            prompt: 1_000_000,
            completion: 500_000,
        });
        assert_eq!(cost.to_string(), "0.45");
        assert!(price("0.0001", "0").is_none() && price("0", "10000.001").is_none());
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in ".*") {
            let _ = text.parse::<Money>();
        }

        #[test]
        fn what_is_shown_reads_again(nanos in 0..=Money::MOST.nanos()) {
            prop_assert_eq!(Money(nanos).to_string().parse::<Money>(), Ok(Money(nanos)));
        }
    }
}
