//! Budgets: set, read, drawn on by new jobs, and settled with what those used.
//!
//! A new job reserves the most that it may use, in the transaction that records it; its end turns that into what it did use, in
//! the transaction that ends it (`settle.rs`). So the sums hold whatever is killed: reserved is what unfinished jobs reserve, spent is
//! what the jobs used that ended in the period. Rows of budgets are locked last and in id order; who has none locks none.

use std::collections::BTreeMap;
use std::time::Duration;

use sqlx::postgres::PgRow;
use sqlx::{PgConnection, PgExecutor};
use uuid::Uuid;

use super::StoreResult;
use super::quota::Asked;
use super::row::{column, get};
use crate::domain::{Budget, BudgetStanding, JobId, Money, Price};

/// Who has the budget that had too little left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holder {
    /// The organization.
    Tenant,
    /// The project.
    Project,
    /// The API key that the request showed.
    Key,
}

/// A budget has too little left for a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OverBudget {
    /// Whose.
    pub holder: Holder,
    /// As it was before the job.
    pub standing: BudgetStanding,
    /// The most tokens that the job may use.
    pub tokens: u64,
    /// What they cost.
    pub cost: Money,
}

impl OverBudget {
    /// Whether it is the tokens that are too few; otherwise it is the money.
    pub fn is_of_tokens(&self) -> bool {
        self.standing.left_tokens().is_some_and(|left| left < self.tokens)
    }

    /// Whether the job is beyond the budget even if nothing of it is used.
    pub fn is_beyond_all(&self) -> bool {
        let Budget { tokens, cost, .. } = self.standing.budget;
        tokens.is_some_and(|most| most < self.tokens) || cost.is_some_and(|most| most < self.cost)
    }
}

/// What one job is to reserve of one budget.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reservation {
    job: JobId,
    budget: Uuid,
    tokens: u64,
    cost: Money,
    price: Price,
}

/// Budgets that are locked, as they are after what was taken from them.
#[derive(Debug, Default)]
pub(super) struct Locked(BTreeMap<Uuid, BudgetStanding>);

impl Locked {
    /// Of rows of `budgets`, with `renews_in` and what was spent in this period.
    pub(super) fn add(&mut self, row: &PgRow) -> StoreResult<()> {
        self.0.insert(get(row, "id")?, standing(row)?);
        Ok(())
    }

    /// Takes the most that a job may use from all its budgets, or from none.
    pub(super) fn take(&mut self, asked: &Asked) -> Result<Vec<Reservation>, OverBudget> {
        if self.0.is_empty() {
            return Ok(Vec::new());
        }
        let (tokens, cost) = (asked.tokens.total(), asked.price.of(asked.tokens));
        for (holder, id) in holders(asked) {
            let Some(standing) = self.0.get(&id) else { continue };
            let short = standing.left_tokens().is_some_and(|left| left < tokens)
                || standing.left().is_some_and(|left| left < cost);
            if short {
                return Err(OverBudget {
                    holder,
                    standing: *standing,
                    tokens,
                    cost,
                });
            }
        }
        let mut made = Vec::new();
        for (_, budget) in holders(asked) {
            let Some(standing) = self.0.get_mut(&budget) else {
                continue;
            };
            standing.reserved_tokens += tokens;
            standing.reserved = Money::from_nanos(standing.reserved.nanos() + cost.nanos());
            made.push(Reservation {
                job: asked.job,
                budget,
                tokens,
                cost,
                price: asked.price,
            });
        }
        Ok(made)
    }

    /// Of the budgets that a job counts against, the one with the fewest tokens left.
    pub(super) fn nearest(&self, asked: &Asked) -> Option<BudgetStanding> {
        let own = holders(asked).into_iter().filter_map(|(_, id)| self.0.get(&id));
        own.filter(|standing| standing.budget.tokens.is_some())
            .min_by_key(|standing| standing.left_tokens())
            .copied()
    }
}

/// Whose budgets a job counts against.
pub(super) fn holders(asked: &Asked) -> Vec<(Holder, Uuid)> {
    let tenant = (Holder::Tenant, asked.tenant.uuid());
    let project = (Holder::Project, asked.project.uuid());
    let key = asked.key.map(|key| (Holder::Key, key.uuid()));
    [Some(tenant), Some(project), key].into_iter().flatten().collect()
}

/// Writes reservations. Their budgets are locked by this transaction, and have room.
pub(super) async fn reserve(connection: &mut PgConnection, made: &[Reservation]) -> StoreResult<()> {
    if made.is_empty() {
        return Ok(());
    }
    let signed = |value: u64| value.cast_signed();
    sqlx::query(
        "WITH made AS MATERIALIZED (
             SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[])
                 AS made (job_id, budget_id, tokens, cost, prompt_price, completion_price)
         ), kept AS (
             INSERT INTO reservations (job_id, budget_id, tokens, cost, prompt_price, completion_price) SELECT * FROM made
         )
         UPDATE budgets b SET reserved_tokens = b.reserved_tokens + sums.tokens, reserved_cost = b.reserved_cost + sums.cost
         FROM (SELECT budget_id, sum(tokens)::bigint AS tokens, sum(cost)::bigint AS cost FROM made GROUP BY 1) sums
         WHERE b.id = sums.budget_id",
    )
    .bind(column(made, |one| one.job.uuid()))
    .bind(column(made, |one| one.budget))
    .bind(column(made, |one| signed(one.tokens)))
    .bind(column(made, |one| signed(one.cost.nanos())))
    .bind(column(made, |one| signed(one.price.prompt)))
    .bind(column(made, |one| signed(one.price.completion)))
    .execute(connection)
    .await?;
    Ok(())
}

/// Clauses of a statement that ends jobs: `settled` are the rows of those jobs with their `choices`, `$ids` the parameter that
/// holds their ids. What they reserved is given back, and what they used, as their receipts tell it, is spent.
macro_rules! settled {
    ($ids:literal) => {
        concat!(
            // By the parameter, so that whatever is planned goes by the index.
            "unreserved AS (
                 DELETE FROM reservations r USING settled s WHERE r.job_id = ANY(",
            $ids,
            ") AND s.id = r.job_id
                 RETURNING r.budget_id, r.tokens, r.cost,
                     CASE WHEN s.choices IS NULL THEN 0 ELSE s.prompt_tokens END + s.completion_tokens AS used_tokens,
                     CASE WHEN s.choices IS NULL THEN 0 ELSE s.prompt_tokens * r.prompt_price END
                         + s.completion_tokens * r.completion_price AS used_cost
             ), freed AS MATERIALIZED (
                 SELECT budget_id, sum(tokens)::bigint AS tokens, sum(cost)::bigint AS cost,
                     sum(used_tokens)::bigint AS used_tokens, sum(used_cost)::bigint AS used_cost
                 FROM unreserved GROUP BY budget_id
             ), held AS MATERIALIZED (
                 SELECT id FROM budgets WHERE id IN (SELECT budget_id FROM freed) ORDER BY id FOR NO KEY UPDATE
             ), spent AS (
                 UPDATE budgets b SET reserved_tokens = b.reserved_tokens - f.tokens, reserved_cost = b.reserved_cost - f.cost,
                     spent_tokens = f.used_tokens
                         + CASE WHEN budget_period(b.period_began_at, b.period_seconds) > b.period_began_at THEN 0 ELSE b.spent_tokens END,
                     spent_cost = f.used_cost
                         + CASE WHEN budget_period(b.period_began_at, b.period_seconds) > b.period_began_at THEN 0 ELSE b.spent_cost END,
                     period_began_at = budget_period(b.period_began_at, b.period_seconds)
                 FROM freed f, held h WHERE b.id = f.budget_id AND h.id = f.budget_id
             )"
        )
    };
}
pub(super) use settled;

/// A budget's columns as they are now, whenever it was last written.
macro_rules! columns_now {
    () => {
        "id, max_tokens, max_cost, period_seconds, reserved_tokens, reserved_cost,
         CASE WHEN budget_period(period_began_at, period_seconds) > period_began_at THEN 0 ELSE spent_tokens END AS spent_tokens,
         CASE WHEN budget_period(period_began_at, period_seconds) > period_began_at THEN 0 ELSE spent_cost END AS spent_cost,
         extract(epoch FROM budget_period(period_began_at, period_seconds) + interval '1 second' * period_seconds - now())::float8
             AS renews_in"
    };
}
pub(super) use columns_now;

fn standing(row: &PgRow) -> StoreResult<BudgetStanding> {
    let unsigned = |column| StoreResult::Ok(get::<i64, _>(row, column)?.max(0).cast_unsigned());
    let most = |column| StoreResult::Ok(get::<Option<i64>, _>(row, column)?.map(i64::cast_unsigned));
    let period: Option<i32> = get(row, "period_seconds")?;
    let renews_in: Option<f64> = get(row, "renews_in")?;
    Ok(BudgetStanding {
        budget: Budget {
            tokens: most("max_tokens")?,
            cost: most("max_cost")?.map(Money::from_nanos),
            period: period.map(|seconds| Duration::from_secs(seconds.unsigned_abs().into())),
        },
        spent_tokens: unsigned("spent_tokens")?,
        spent: Money::from_nanos(unsigned("spent_cost")?),
        reserved_tokens: unsigned("reserved_tokens")?,
        reserved: Money::from_nanos(unsigned("reserved_cost")?),
        renews_in: renews_in.map(|seconds| Duration::from_secs_f64(seconds.max(0.0))),
    })
}

/// How much is used of the budgets of these tenants, projects and API keys, of those that have one.
pub async fn find(executor: impl PgExecutor<'_>, holders: Vec<Uuid>) -> StoreResult<BTreeMap<Uuid, BudgetStanding>> {
    let rows = sqlx::query(concat!("SELECT ", columns_now!(), " FROM budgets WHERE id = ANY($1)"))
        .bind(holders)
        .fetch_all(executor)
        .await?;
    rows.iter().map(|row| Ok((get(row, "id")?, standing(row)?))).collect()
}

/// Gives a tenant, a project or an API key a budget, another one, or none any more. What it has spent and reserved stays; another period begins
/// now. Jobs from before its first budget do not count against it.
pub(super) async fn set(
    connection: &mut PgConnection,
    tenant: Uuid,
    holder: Uuid,
    budget: Option<Budget>,
) -> StoreResult<()> {
    let Some(budget) = budget else {
        sqlx::query("DELETE FROM budgets WHERE id = $1")
            .bind(holder)
            .execute(connection)
            .await?;
        return Ok(());
    };
    let seconds = |period: Duration| i32::try_from(period.as_secs()).unwrap_or(i32::MAX);
    sqlx::query(
        "INSERT INTO budgets AS b (id, tenant_id, max_tokens, max_cost, period_seconds) VALUES ($1, $2, $3, $4, $5)
         ON CONFLICT (id) DO UPDATE SET max_tokens = excluded.max_tokens, max_cost = excluded.max_cost,
             period_seconds = excluded.period_seconds,
             period_began_at = CASE WHEN b.period_seconds IS DISTINCT FROM excluded.period_seconds THEN now()
                 ELSE b.period_began_at END",
    )
    .bind(holder)
    .bind(tenant)
    .bind(budget.tokens.map(u64::cast_signed))
    .bind(budget.cost.map(|cost| cost.nanos().cast_signed()))
    .bind(budget.period.map(seconds))
    .execute(connection)
    .await?;
    Ok(())
}
