//! A budget as its holder sees it.

use claimcheck_common::domain::{BudgetStanding, Money};
use serde::Serialize;
use time::OffsetDateTime;
use utoipa::ToSchema;

/// A budget, and what is used of it.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = Budget)]
pub struct BudgetBody {
    /// Most tokens; null for no limit.
    #[schema(required)]
    pub token_budget: Option<u64>,
    /// Most money; null for no limit.
    #[schema(required)]
    pub max_budget: Option<f64>,
    /// Seconds after which it may be used anew; null for never.
    #[schema(required)]
    pub budget_duration: Option<u64>,
    /// Tokens of jobs that have ended in this period.
    pub spent_tokens: u64,
    /// What they cost.
    pub spent: f64,
    /// The most tokens that jobs may use which have not ended.
    pub reserved_tokens: u64,
    /// What those cost at most.
    pub reserved: f64,
    /// When it may be used anew.
    #[schema(required)]
    pub renews_at: Option<i64>,
}

impl From<BudgetStanding> for BudgetBody {
    fn from(standing: BudgetStanding) -> Self {
        let now = OffsetDateTime::now_utc();
        Self {
            token_budget: standing.budget.tokens,
            max_budget: standing.budget.cost.map(Money::units),
            budget_duration: standing.budget.period.map(|period| period.as_secs()),
            spent_tokens: standing.spent_tokens,
            spent: standing.spent.units(),
            reserved_tokens: standing.reserved_tokens,
            reserved: standing.reserved.units(),
            renews_at: standing.renews_in.map(|wait| (now + wait).unix_timestamp()),
        }
    }
}
