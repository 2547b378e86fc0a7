//! What an organization lets one of its projects use, beside what it may use as a whole: a rate, jobs that wait, a budget.

use sqlx::{PgConnection, PgExecutor};

use super::audit::{self, By, Entry};
use super::projects::Project;
use super::row::get;
use super::{Pool, StoreError, StoreResult, budgets, transaction};
use crate::domain::{Budget, Id, Money, ProjectId, Rate, UserId};

/// A project's own limits. `None` leaves it to the organization's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ProjectLimits {
    /// Requests that generate, of all its callers together.
    pub rate: Option<Rate>,
    /// Jobs that wait.
    pub max_queued: Option<u32>,
}

/// A project's limits, its budget apart ([`budgets::find`]).
pub async fn find(executor: impl PgExecutor<'_>, project: ProjectId) -> StoreResult<ProjectLimits> {
    let row = sqlx::query("SELECT rate, max_queued FROM project_limits WHERE project_id = $1")
        .bind(project.uuid())
        .fetch_optional(executor)
        .await?;
    let Some(row) = row else {
        return Ok(ProjectLimits::default());
    };
    Ok(ProjectLimits {
        rate: rate(get(&row, "rate")?)?,
        max_queued: get::<Option<i32>, _>(&row, "max_queued")?.map(i32::cast_unsigned),
    })
}

/// Projects that have a rate of their own.
pub async fn rates(executor: impl PgExecutor<'_>) -> StoreResult<Vec<(ProjectId, Rate)>> {
    let rows = sqlx::query("SELECT project_id, rate FROM project_limits WHERE rate IS NOT NULL")
        .fetch_all(executor)
        .await?;
    let rates = rows.iter().map(|row| {
        let project = Id::from_uuid(get(row, "project_id")?);
        StoreResult::Ok(rate(get(row, "rate")?)?.map(|rate| (project, rate)))
    });
    rates.filter_map(Result::transpose).collect()
}

fn rate(text: Option<String>) -> StoreResult<Option<Rate>> {
    let rate = text.map(|text| text.parse().map_err(StoreError::contradiction));
    rate.transpose()
}

/// Sets a project's limits for its organization, and writes it down. `false` if the user is not the organization's own: whoever it
/// limits does not lift the limit.
pub async fn set(
    pool: &Pool,
    seen: Project,
    user: UserId,
    limits: ProjectLimits,
    budget: Option<Budget>,
    by: By,
) -> StoreResult<bool> {
    transaction(pool, move |connection| {
        let (seen, by) = (seen.clone(), by.clone());
        Box::pin(async move { put(connection, &seen, user, limits, budget, &by).await })
    })
    .await
}

async fn put(
    connection: &mut PgConnection,
    seen: &Project,
    user: UserId,
    limits: ProjectLimits,
    budget: Option<Budget>,
    by: &By,
) -> StoreResult<bool> {
    let rate = limits.rate.map(Rate::written);
    let done = sqlx::query(
        "INSERT INTO project_limits (project_id, rate, max_queued)
         SELECT p.id, $3, $4 FROM projects p JOIN users u ON u.tenant_id = p.organization_id
         WHERE p.id = $1 AND u.id = $2 AND NOT u.is_service
         ON CONFLICT (project_id) DO UPDATE SET rate = excluded.rate, max_queued = excluded.max_queued",
    )
    .bind(seen.id.uuid())
    .bind(user.uuid())
    .bind(&rate)
    .bind(limits.max_queued.map(u32::cast_signed))
    .execute(&mut *connection)
    .await?;
    if done.rows_affected() == 0 {
        return Ok(false);
    }
    budgets::set(&mut *connection, seen.tenant_id.uuid(), seen.id.uuid(), budget).await?;
    let details = serde_json::json!({
        "rate": rate, "max_queued": limits.max_queued, "token_budget": budget.and_then(|budget| budget.tokens),
        "max_budget": budget.and_then(|budget| budget.cost).map(Money::units),
        "budget_duration": budget.and_then(|budget| budget.period).map(|period| period.as_secs()),
    });
    let entry = Entry::done(Some(seen.tenant_id), "project.limited", Some(seen.id.uuid())).with(details);
    audit::record(connection, by, entry).await?;
    Ok(true)
}
