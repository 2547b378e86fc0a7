//! What a budget may be asked to be.

use std::time::Duration;

use claimcheck_common::config::Prices;
use claimcheck_common::domain::{Budget, Money};
use serde::Deserialize;
use serde::de::{Deserializer, Error};
use utoipa::ToSchema;

use super::number::Whole;
use crate::error::ApiError;

/// Longest period: ten years.
const PERIOD_MAX: i64 = 3660 * 86_400;
const TOKENS_MAX: i64 = 1_000_000_000_000;

/// A budget: of tokens, of money, or of both.
#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, expecting = "a JSON object")]
#[schema(as = NewBudget, example = json!({"token_budget": 1_000_000, "budget_duration": 86400}))]
pub struct BudgetIn {
    /// Most tokens that jobs may use, of prompts and generated (none).
    #[schema(value_type = Option<u64>, minimum = 0, maximum = 1_000_000_000_000_i64)]
    pub token_budget: Option<Whole<0, TOKENS_MAX>>,
    /// Most money that they may cost, in the unit of the service's prices (none).
    #[schema(value_type = Option<f64>, minimum = 0, maximum = 1_000_000_000)]
    pub max_budget: Option<MoneyIn>,
    /// Seconds after which both may be used anew (never).
    #[schema(value_type = Option<u32>, minimum = 1, maximum = 316_224_000)]
    pub budget_duration: Option<Whole<1, PERIOD_MAX>>,
}

impl BudgetIn {
    /// The budget; `None` if nothing is limited.
    pub fn valid(self, prices: &Prices) -> Result<Option<Budget>, ApiError> {
        let cost = self.max_budget.map(|MoneyIn(most)| most);
        if cost.is_some() && prices.is_empty() {
            let message =
                "`max_budget` needs prices, and this service has none (CLAIMCHECK_PRICES); use `token_budget`.";
            return Err(ApiError::invalid("max_budget", message));
        }
        let tokens = self.token_budget.map(|most| most.get().unsigned_abs());
        let period = self.budget_duration.map(|seconds| seconds.get().unsigned_abs());
        if tokens.is_none() && cost.is_none() {
            if period.is_some() {
                let message = "`budget_duration` needs a `token_budget` or a `max_budget`.";
                return Err(ApiError::invalid("budget_duration", message));
            }
            return Ok(None);
        }
        Ok(Some(Budget {
            tokens,
            cost,
            period: period.map(Duration::from_secs),
        }))
    }
}

/// An amount of money.
#[derive(Debug, Clone, Copy)]
pub struct MoneyIn(Money);

impl<'de> Deserialize<'de> for MoneyIn {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Money::from_units(f64::deserialize(deserializer)?)
            .map(Self)
            .map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str, prices: &str) -> Result<Option<Budget>, String> {
        let body: BudgetIn = serde_json::from_str(json).map_err(|error| error.to_string())?;
        let prices: Prices = serde_json::from_value(prices.into()).unwrap();
        body.valid(&prices).map_err(|error| error.to_string())
    }

    #[test]
    fn a_budget_has_tokens_or_money_and_perhaps_a_period() {
        let budget = read(
            r#"{"token_budget": 5, "max_budget": 0.1, "budget_duration": 60}"#,
            "*=1:1",
        )
        .unwrap();
        assert_eq!(
            budget,
            Some(Budget {
                tokens: Some(5),
                cost: Some(Money::from_nanos(100_000_000)),
                period: Some(Duration::from_mins(1)),
            })
        );
        assert_eq!(read("{}", "").unwrap(), None);
        for bad in [
            r#"{"budget_duration": 60}"#,
            r#"{"token_budget": -1}"#,
            r#"{"token_budget": 1.5}"#,
            r#"{"max_budget": -0.1}"#,
            r#"{"max_budget": 1e10}"#,
            r#"{"max_budget": "5"}"#,
            r#"{"token_budget": 1, "budget_duration": 0}"#,
            r#"{"token_budget": 1, "spent": 0}"#,
        ] {
            assert!(read(bad, "*=1:1").is_err(), "{bad}");
        }
    }

    #[test]
    fn money_is_not_limited_where_nothing_has_a_price() {
        assert!(
            read(r#"{"max_budget": 1}"#, "")
                .unwrap_err()
                .contains("CLAIMCHECK_PRICES")
        );
    }
}
