//! What operators do to the whole: pause and resume, drain workers, set tenants' limits, see who works.

use sqlx::PgExecutor;
use sqlx::postgres::PgRow;
use time::OffsetDateTime;

use super::audit::{self, By, Entry};
use super::row::{get, unsigned};
use super::{Pool, StoreResult, budgets, transaction};
use crate::domain::{Budget, Id, Money, TenantId, WorkerId};

/// What can be paused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PauseScope {
    /// All jobs of a class.
    Class,
    /// All jobs of a model name.
    Model,
    /// All jobs of a tenant.
    Tenant,
}

impl PauseScope {
    /// The stored and shown form.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Class => "class",
            Self::Model => "model",
            Self::Tenant => "tenant",
        }
    }
}

/// Something that is paused.
#[derive(Debug, Clone)]
pub struct Pause {
    /// `class`, `model` or `tenant`.
    pub scope: String,
    /// Which one; a tenant's uuid.
    pub value: String,
    /// Since when.
    pub created_at: OffsetDateTime,
}

/// Whether something of a job is paused, as SQL of its model, class and tenant, which are parameters or qualified columns. The function
/// of that name is for the release before: it is planned anew in each statement that calls it, for longer than most of them run.
///
/// Whether anything is paused at all is looked up once a statement, and mostly nothing is.
macro_rules! is_paused {
    ($model:literal, $class:literal, $tenant:literal) => {
        concat!(
            "(EXISTS (SELECT FROM pauses) AND EXISTS (SELECT FROM pauses p WHERE p.scope = 'class' AND p.value = ",
            $class,
            " OR p.scope = 'model' AND p.value = ",
            $model,
            " OR p.scope = 'tenant' AND p.value = ",
            $tenant,
            "::text))"
        )
    };
}
pub(super) use is_paused;

/// A worker as operators see it.
#[derive(Debug, Clone)]
pub struct Worker {
    /// One life of one process.
    pub id: WorkerId,
    /// The model's name.
    pub model: String,
    /// When the process started.
    pub started_at: OffsetDateTime,
    /// When its model was loaded.
    pub ready_at: Option<OffsetDateTime>,
    /// When it was last heard of.
    pub last_seen_at: OffsetDateTime,
    /// Heard of within the last half minute.
    pub alive: bool,
    /// Takes no more jobs and ends when those it has are done.
    pub draining: bool,
    /// Jobs in its hands.
    pub jobs: u32,
}

/// A model whose workers start again and again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CrashLoop {
    /// The model's name.
    pub model: String,
    /// Starts in the last ten minutes that came to a silent end.
    pub starts: u32,
}

/// Pauses or resumes, and writes it down. Safe to repeat.
pub async fn set_pause(
    pool: &Pool,
    scope: PauseScope,
    value: String,
    paused: bool,
    by: impl Into<By>,
) -> StoreResult<()> {
    let by = by.into();
    transaction(pool, move |connection| {
        let (scope, value, by) = (scope.as_str(), value.clone(), by.clone());
        Box::pin(async move {
            let sql = if paused {
                "INSERT INTO pauses (scope, value, created_by) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING"
            } else {
                "DELETE FROM pauses WHERE scope = $1 AND value = $2 AND $3::uuid IS NOT NULL"
            };
            sqlx::query(sql)
                .bind(scope)
                .bind(&value)
                .bind(by.user().unwrap_or_default())
                .execute(&mut *connection)
                .await?;
            let action = if paused { "pause.set" } else { "pause.lifted" };
            let details = serde_json::json!({"scope": scope, "value": value});
            let entry = Entry::done(None, action, None).with(details);
            audit::record(connection, &by, entry).await
        })
    })
    .await
}

/// All that is paused.
pub async fn pauses(executor: impl PgExecutor<'_>) -> StoreResult<Vec<Pause>> {
    let rows = sqlx::query("SELECT scope, value, created_at FROM pauses ORDER BY scope, value")
        .fetch_all(executor)
        .await?;
    rows.iter()
        .map(|row| {
            Ok(Pause {
                scope: get(row, "scope")?,
                value: get(row, "value")?,
                created_at: get(row, "created_at")?,
            })
        })
        .collect()
}

/// Workers that were heard of within the last ten minutes, newest first.
pub async fn workers(executor: impl PgExecutor<'_>) -> StoreResult<Vec<Worker>> {
    let rows = sqlx::query(
        "SELECT w.*, w.last_seen_at > now() - interval '30 seconds' AS alive,
             (SELECT count(*)::int FROM jobs j WHERE j.status IN ('in_progress', 'cancelling') AND j.worker_id = w.id) AS jobs
         FROM workers w WHERE w.last_seen_at > now() - interval '10 minutes' ORDER BY w.started_at DESC",
    )
    .fetch_all(executor)
    .await?;
    rows.iter().map(worker).collect()
}

/// Models with three or more workers that fell silent within the last ten minutes without having been told to stop.
pub async fn crash_loops(executor: impl PgExecutor<'_>) -> StoreResult<Vec<CrashLoop>> {
    let rows = sqlx::query(
        "SELECT model, count(*)::int AS starts FROM workers
         WHERE started_at > now() - interval '10 minutes' AND last_seen_at < now() - interval '10 seconds'
             AND last_seen_at - started_at < interval '1 minute'
         GROUP BY model HAVING count(*) >= 3 ORDER BY model",
    )
    .fetch_all(executor)
    .await?;
    rows.iter()
        .map(|row| {
            Ok(CrashLoop {
                model: get(row, "model")?,
                starts: unsigned(row, "starts")?,
            })
        })
        .collect()
}

/// Tells a worker to take no more jobs and to end when those it has are done. `false` if nobody knows it.
pub async fn drain(pool: &Pool, worker: WorkerId, by: impl Into<By>) -> StoreResult<bool> {
    let by = by.into();
    transaction(pool, move |connection| {
        let by = by.clone();
        Box::pin(async move {
            let done = sqlx::query("UPDATE workers SET draining = true WHERE id = $1")
                .bind(worker.uuid())
                .execute(&mut *connection)
                .await?;
            if done.rows_affected() == 0 {
                return Ok(false);
            }
            let entry = Entry::done(None, "worker.drained", Some(worker.uuid()));
            audit::record(connection, &by, entry).await?;
            Ok(true)
        })
    })
    .await
}

/// A tenant's own limits. `None` leaves it to the configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TenantLimits {
    /// The plan, by its name in the configuration.
    pub plan: Option<String>,
    /// Jobs that wait.
    pub max_queued: Option<u32>,
    /// Jobs with the broker or a worker.
    pub max_running: Option<u32>,
    /// Tokens in the prompts of waiting jobs of batches.
    pub max_batch_tokens: Option<u64>,
    /// What it may use. `None` is no budget: the configuration has none.
    pub budget: Option<Budget>,
}

/// Sets a tenant's own limits, and writes it down. `false` if there is no such tenant.
pub async fn set_limits(pool: &Pool, tenant: TenantId, limits: TenantLimits, by: impl Into<By>) -> StoreResult<bool> {
    let by = by.into();
    transaction(pool, move |connection| {
        let (limits, by) = (limits.clone(), by.clone());
        Box::pin(async move {
            let set = sqlx::query(
                "INSERT INTO tenant_limits (tenant_id, max_queued, max_running, plan, max_batch_tokens)
                 SELECT id, $2, $3, $4, $5 FROM organizations WHERE id = $1
                 ON CONFLICT (tenant_id) DO UPDATE SET max_queued = excluded.max_queued, max_running = excluded.max_running,
                     plan = excluded.plan, max_batch_tokens = excluded.max_batch_tokens",
            )
            .bind(tenant.uuid())
            .bind(limits.max_queued.map(u32::cast_signed))
            .bind(limits.max_running.map(u32::cast_signed))
            .bind(&limits.plan)
            .bind(limits.max_batch_tokens.map(u64::cast_signed))
            .execute(&mut *connection)
            .await?;
            if set.rows_affected() == 0 {
                return Ok(false);
            }
            budgets::set(&mut *connection, tenant.uuid(), tenant.uuid(), limits.budget).await?;
            let details = serde_json::json!({
                "max_queued": limits.max_queued, "max_running": limits.max_running, "plan": limits.plan,
                "max_batch_tokens": limits.max_batch_tokens, "token_budget": limits.budget.and_then(|budget| budget.tokens),
                "max_budget": limits.budget.and_then(|budget| budget.cost).map(Money::units),
                "budget_duration": limits.budget.and_then(|budget| budget.period).map(|period| period.as_secs()),
            });
            let entry = Entry::done(None, "tenant.limited", Some(tenant.uuid())).with(details);
            audit::record(connection, &by, entry).await?;
            Ok(true)
        })
    })
    .await
}

fn worker(row: &PgRow) -> StoreResult<Worker> {
    Ok(Worker {
        id: Id::from_uuid(get(row, "id")?),
        model: get(row, "model")?,
        started_at: get(row, "started_at")?,
        ready_at: get(row, "ready_at")?,
        last_seen_at: get(row, "last_seen_at")?,
        alive: get(row, "alive")?,
        draining: get(row, "draining")?,
        jobs: unsigned(row, "jobs")?,
    })
}
