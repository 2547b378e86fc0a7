//! How a submit is answered for which there is no room, and how an answer tells what is left of a budget.

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use claimcheck_common::domain::BudgetStanding;
use claimcheck_common::store::budgets::{Holder, OverBudget};
use claimcheck_common::store::quota::Refusal;

use crate::error::{ApiError, Problem};
use crate::limits::seconds;

/// The word for programs.
pub const fn code(refusal: &Refusal) -> &'static str {
    match refusal {
        Refusal::Queue(_) => "quota_exceeded",
        Refusal::Budget(_) => "budget_exceeded",
    }
}

/// 429, with what the caller can do.
pub fn refused(refusal: Refusal) -> ApiError {
    match refusal {
        Refusal::Queue(limit) => ApiError::TooMany(Problem::new(
            code(&refusal),
            format!("You have {limit} jobs waiting, which is as many as you may; submit again when some have run."),
        )),
        Refusal::Budget(over) => over_budget(over),
    }
}

fn over_budget(over: OverBudget) -> ApiError {
    let OverBudget {
        holder,
        standing,
        tokens,
        cost,
    } = over;
    let whose = match holder {
        Holder::Tenant => "your organization's",
        Holder::Project => "this project's",
        Holder::Key => "this API key's",
    };
    let (asked, left, most) = if over.is_of_tokens() {
        let most = standing.budget.tokens.unwrap_or_default();
        let left = standing.left_tokens().unwrap_or_default();
        (format!("{tokens} tokens"), left.to_string(), most.to_string())
    } else {
        let most = standing.budget.cost.unwrap_or_default();
        (
            cost.to_string(),
            standing.left().unwrap_or_default().to_string(),
            most.to_string(),
        )
    };
    let then = match standing.renews_in {
        _ if over.is_beyond_all() => "send less at a time, or ask for a greater budget".to_owned(),
        Some(wait) => format!(
            "lower `max_tokens`, or come again in {} s, when it is renewed",
            seconds(wait)
        ),
        None => "lower `max_tokens`, or ask for a greater budget: it is not renewed".to_owned(),
    };
    let problem = Problem::new(
        "budget_exceeded",
        format!("This may use {asked}, and {left} are left of {whose} budget of {most}; {then}."),
    );
    ApiError::OverBudget {
        problem,
        retry_after: standing.renews_in.filter(|_| !over.is_beyond_all()).map(seconds),
        standing: Box::new(standing),
    }
}

/// Writes what is left of the nearest budget, as OpenAI names it.
pub fn write_tokens(headers: &mut HeaderMap, standing: &BudgetStanding) {
    let (Some(most), Some(left)) = (standing.budget.tokens, standing.left_tokens()) else {
        return;
    };
    let reset = standing.renews_in.map(|wait| format!("{}ms", wait.as_millis()));
    for (name, value) in [
        ("x-ratelimit-limit-tokens", Some(most.to_string())),
        ("x-ratelimit-remaining-tokens", Some(left.to_string())),
        ("x-ratelimit-reset-tokens", reset),
    ] {
        if let Some(value) = value.and_then(|value| HeaderValue::from_str(&value).ok()) {
            headers.insert(HeaderName::from_static(name), value);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use axum::response::IntoResponse;
    use claimcheck_common::domain::{Budget, Money};

    fn over(most: u64, spent: u64, renews_in: Option<u64>) -> OverBudget {
        OverBudget {
            holder: Holder::Key,
            standing: BudgetStanding {
                budget: Budget {
                    tokens: Some(most),
                    cost: None,
                    period: renews_in.map(Duration::from_secs),
                },
                spent_tokens: spent,
                spent: Money::default(),
                reserved_tokens: 0,
                reserved: Money::default(),
                renews_in: renews_in.map(Duration::from_secs),
            },
            tokens: 100,
            cost: Money::default(),
        }
    }

    #[test]
    fn a_budget_that_is_renewed_says_when_and_one_that_is_not_stops_the_retry_loops() {
        let renewed = refused(Refusal::Budget(over(1000, 950, Some(60)))).into_response();
        assert_eq!(renewed.status(), 429);
        assert_eq!(renewed.headers()["retry-after"], "60");
        assert_eq!(renewed.headers()["x-ratelimit-limit-tokens"], "1000");
        assert_eq!(renewed.headers()["x-ratelimit-remaining-tokens"], "50");
        assert_eq!(renewed.headers()["x-ratelimit-reset-tokens"], "60000ms");
        assert!(!renewed.headers().contains_key("x-should-retry"));
        for hopeless in [over(1000, 950, None), over(99, 0, Some(60))] {
            let answer = refused(Refusal::Budget(hopeless)).into_response();
            assert_eq!(answer.status(), 429);
            assert!(!answer.headers().contains_key("retry-after"));
            assert_eq!(answer.headers()["x-should-retry"], "false");
        }
    }

    #[test]
    fn a_refusal_says_what_is_left_and_what_to_do() {
        let message = |over| match refused(Refusal::Budget(over)) {
            ApiError::OverBudget { problem, .. } => problem.message,
            _ => String::new(),
        };
        let told = message(over(1000, 950, Some(60)));
        assert!(
            told.contains("100 tokens, and 50 are left of this API key's budget of 1000"),
            "{told}"
        );
        let mut money = over(1000, 0, None);
        money.standing.budget = Budget {
            tokens: None,
            cost: Some(Money::from_nanos(1_500_000_000)),
            period: None,
        };
        money.cost = Money::from_nanos(2_000_000_000);
        let told = message(money);
        assert!(
            told.contains("2.00, and 1.50 are left") && told.contains("budget of 1.50"),
            "{told}"
        );
    }
}
