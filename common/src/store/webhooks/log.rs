//! The delivery log, as a project sees it: what was sent, each attempt, and sending again.

use std::time::Duration;

use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, PgConnection};
use time::OffsetDateTime;
use uuid::Uuid;

use super::CHANNEL;
use crate::domain::{DeliveryStatus, EndpointId, EventId, Id, JobId};
use crate::store::events::first_id;
use crate::store::row::{get, ids, parse, unsigned};
use crate::store::{Pool, StoreResult, transaction};

/// Most events that one call recovers.
pub const RECOVER_CHUNK: u32 = 500;
/// An event's id is drawn on another clock than its time, and a little earlier.
const CLOCKS: time::Duration = time::Duration::minutes(5);

/// A delivery in the log.
#[derive(Debug, Clone)]
pub struct Logged {
    /// Of which event: together with the endpoint it names the delivery.
    pub event: EventId,
    /// The event's type; `None` once it is forgotten.
    pub kind: Option<String>,
    /// Of which job, if it is a job's.
    pub job: Option<JobId>,
    /// Where it stands.
    pub status: DeliveryStatus,
    /// How often it was tried.
    pub attempts: u32,
    /// When it is tried again.
    pub next_at: Option<OffsetDateTime>,
    /// When it was written.
    pub created_at: OffsetDateTime,
    /// When it was taken or given up.
    pub ended_at: Option<OffsetDateTime>,
    /// Status of the last answer.
    pub status_code: Option<u16>,
    /// What went wrong in the last attempt.
    pub error: Option<String>,
}

/// An attempt in the log.
#[derive(Debug, Clone)]
pub struct LoggedAttempt {
    /// 1 is the first.
    pub number: u32,
    /// When it began.
    pub started_at: OffsetDateTime,
    /// Until the answer's head came or none would come.
    pub latency_ms: Option<u32>,
    /// Of the answer.
    pub status_code: Option<u16>,
    /// A word for what went wrong.
    pub error: Option<String>,
    /// A sentence about it.
    pub message: Option<String>,
    /// The first bytes of the answer.
    pub answer: Option<String>,
}

/// What an endpoint did in the last day.
#[derive(Debug, Clone, Copy)]
pub struct Stats {
    /// Deliveries that are on their way.
    pub pending: i64,
    /// Deliveries that were taken.
    pub delivered: i64,
    /// Deliveries that were given up.
    pub failed: i64,
    /// Attempts.
    pub attempts: i64,
    /// Attempts that came to nothing.
    pub attempts_failed: i64,
    /// Half of the answers came within this many milliseconds.
    pub latency_p50: Option<f64>,
    /// 95 of a hundred answers did.
    pub latency_p95: Option<f64>,
    /// When the last delivery was taken.
    pub last_delivered_at: Option<OffsetDateTime>,
}

/// How far recovering has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recovered {
    /// Events that are sent again.
    pub count: usize,
    /// Where the next call goes on.
    pub last: Option<EventId>,
    /// Whether there may be more.
    pub has_more: bool,
}

/// A page of an endpoint's deliveries, the newest event first.
pub async fn list(
    pool: &Pool,
    endpoint: EndpointId,
    status: Option<DeliveryStatus>,
    after: Option<EventId>,
    limit: u32,
) -> StoreResult<Vec<Logged>> {
    // Written out, so that the planner sees the index that fits.
    let wanted = status.map_or_else(String::new, |status| format!("AND d.status = '{}'", status.as_str()));
    let rows = sqlx::query(AssertSqlSafe(format!(
        "{LOGGED} WHERE d.endpoint_id = $1 AND ($2::uuid IS NULL OR d.event_id < $2) {wanted}
         ORDER BY d.event_id DESC LIMIT $3"
    )))
    .bind(endpoint.uuid())
    .bind(after.map(EventId::uuid))
    .bind(i64::from(limit))
    .fetch_all(pool)
    .await?;
    rows.iter().map(logged).collect()
}

const LOGGED: &str = "
    SELECT d.*, e.type, e.job_id, a.status_code, a.error FROM webhook_deliveries d
    LEFT JOIN events e ON e.id = d.event_id
    LEFT JOIN LATERAL (SELECT status_code, error FROM webhook_attempts a WHERE a.endpoint_id = d.endpoint_id
        AND a.event_id = d.event_id ORDER BY number DESC LIMIT 1) a ON true";

/// One delivery with all its attempts, the first one first.
pub async fn find(
    pool: &Pool,
    endpoint: EndpointId,
    event: EventId,
) -> StoreResult<Option<(Logged, Vec<LoggedAttempt>)>> {
    let row = sqlx::query(AssertSqlSafe(format!(
        "{LOGGED} WHERE d.endpoint_id = $1 AND d.event_id = $2"
    )))
    .bind(endpoint.uuid())
    .bind(event.uuid())
    .fetch_optional(pool)
    .await?;
    let Some(row) = row else { return Ok(None) };
    let attempts =
        sqlx::query("SELECT * FROM webhook_attempts WHERE endpoint_id = $1 AND event_id = $2 ORDER BY number")
            .bind(endpoint.uuid())
            .bind(event.uuid())
            .fetch_all(pool)
            .await?;
    let attempts = attempts.iter().map(attempt).collect::<StoreResult<_>>()?;
    Ok(Some((logged(&row)?, attempts)))
}

/// Sends an event of the endpoint's project again, or for the first time; one that is being sent already is left to that. `false`:
/// there is no such event, or none that goes there.
pub async fn resend(pool: &Pool, endpoint: EndpointId, event: EventId) -> StoreResult<bool> {
    transaction(pool, move |connection| {
        Box::pin(async move {
            let known: Option<String> = sqlx::query_scalar(
                "UPDATE webhook_deliveries SET status = CASE status WHEN 'sending' THEN status ELSE 'ready' END,
                     next_at = CASE status WHEN 'sending' THEN next_at END, ended_at = NULL, tries = 0
                 WHERE endpoint_id = $1 AND event_id = $2 RETURNING status",
            )
            .bind(endpoint.uuid())
            .bind(event.uuid())
            .fetch_optional(&mut *connection)
            .await?;
            let mut found = known.is_some();
            if !found {
                let made = sqlx::query(
                    "INSERT INTO webhook_deliveries (endpoint_id, event_id, lane)
                     SELECT p.id, e.id, p.id FROM webhook_endpoints p JOIN events e ON e.project_id = p.project_id
                     WHERE p.id = $1 AND e.id = $2 AND p.url IS NOT NULL AND e.audience IS NULL ON CONFLICT DO NOTHING",
                )
                .bind(endpoint.uuid())
                .bind(event.uuid())
                .execute(&mut *connection)
                .await?;
                found = made.rows_affected() == 1;
            }
            wake(connection).await?;
            Ok(found)
        })
    })
    .await
}

/// Sends again what was given up of the events that were written from `since` to `until`, and what was never sent to this endpoint
/// though it would be today; the oldest first, from behind `after` on, and at most [`RECOVER_CHUNK`].
pub async fn recover(
    pool: &Pool,
    endpoint: EndpointId,
    since: OffsetDateTime,
    until: OffsetDateTime,
    after: Option<EventId>,
) -> StoreResult<Recovered> {
    transaction(pool, move |connection| {
        Box::pin(async move {
            let rows = sqlx::query(
                "WITH given_up AS (
                     SELECT d.event_id AS id FROM webhook_deliveries d
                     WHERE d.endpoint_id = $1 AND d.status = 'failed' AND d.event_id > $2 AND d.event_id < $3
                         AND d.created_at >= $4 AND d.created_at < $5 ORDER BY 1 LIMIT $6
                 ), missed AS (
                     SELECT e.id FROM webhook_endpoints p JOIN events e ON e.project_id = p.project_id
                     WHERE p.id = $1 AND p.url IS NOT NULL AND e.id > $2 AND e.id < $3 AND e.created_at >= $4 AND e.created_at < $5
                         AND e.audience IS NULL AND webhook_wants(p.events, e.type)
                         AND NOT EXISTS (SELECT FROM webhook_deliveries d WHERE d.endpoint_id = $1 AND d.event_id = e.id)
                     ORDER BY 1 LIMIT $6
                 ), wanted AS MATERIALIZED (
                     SELECT id FROM given_up UNION SELECT id FROM missed ORDER BY id LIMIT $6
                 ), sent AS (
                     INSERT INTO webhook_deliveries (endpoint_id, event_id, lane) SELECT $1, id, $1 FROM wanted
                     ON CONFLICT (endpoint_id, event_id) DO UPDATE SET status = 'ready', tries = 0, ended_at = NULL
                     WHERE webhook_deliveries.status = 'failed'
                 )
                 SELECT id FROM wanted ORDER BY id",
            )
            .bind(endpoint.uuid())
            .bind(after.map_or_else(|| first_id(since - CLOCKS), EventId::uuid))
            .bind(first_id(until + CLOCKS))
            .bind(since)
            .bind(until)
            .bind(i64::from(RECOVER_CHUNK))
            .fetch_all(&mut *connection)
            .await?;
            wake(connection).await?;
            let events: Vec<EventId> = ids(&rows, "id")?;
            Ok(Recovered {
                count: events.len(),
                last: events.last().copied(),
                has_more: events.len() == RECOVER_CHUNK as usize,
            })
        })
    })
    .await
}

/// What an endpoint did in the last day.
pub async fn stats(pool: &Pool, endpoint: EndpointId) -> StoreResult<Stats> {
    let row = sqlx::query(
        "WITH delivery AS MATERIALIZED (
             SELECT event_id, status, ended_at FROM webhook_deliveries WHERE endpoint_id = $1 AND event_id >= $2
         ), attempt AS (
             SELECT a.latency_ms, a.error, a.status_code FROM webhook_attempts a
             WHERE a.endpoint_id = $1 AND a.event_id >= $2
         )
         SELECT (SELECT count(*) FROM delivery WHERE status IN ('ready', 'sending', 'waiting')) AS pending,
             (SELECT count(*) FROM delivery WHERE status = 'delivered') AS delivered,
             (SELECT count(*) FROM delivery WHERE status = 'failed') AS failed,
             (SELECT max(ended_at) FROM delivery WHERE status = 'delivered') AS last_delivered_at,
             count(*) AS attempts, count(error) AS attempts_failed,
             percentile_cont(0.5) WITHIN GROUP (ORDER BY latency_ms) FILTER (WHERE status_code IS NOT NULL) AS p50,
             percentile_cont(0.95) WITHIN GROUP (ORDER BY latency_ms) FILTER (WHERE status_code IS NOT NULL) AS p95
         FROM attempt",
    )
    .bind(endpoint.uuid())
    .bind(first_id(OffsetDateTime::now_utc() - time::Duration::days(1)))
    .fetch_one(pool)
    .await?;
    Ok(Stats {
        pending: get(&row, "pending")?,
        delivered: get(&row, "delivered")?,
        failed: get(&row, "failed")?,
        attempts: get(&row, "attempts")?,
        attempts_failed: get(&row, "attempts_failed")?,
        latency_p50: get(&row, "p50")?,
        latency_p95: get(&row, "p95")?,
        last_delivered_at: get(&row, "last_delivered_at")?,
    })
}

/// Deletes one chunk of deliveries that ended longer than `keep` ago, with their attempts; and then what is left of endpoints that
/// were deleted as long ago. Answers how many deliveries went.
pub async fn forget(pool: &Pool, keep: Duration, chunk: i64) -> StoreResult<u64> {
    let done = sqlx::query(
        "DELETE FROM webhook_deliveries WHERE (endpoint_id, event_id) IN (
             SELECT endpoint_id, event_id FROM webhook_deliveries WHERE ended_at < now() - $1::interval
             ORDER BY ended_at LIMIT $2)",
    )
    .bind(keep)
    .bind(chunk)
    .execute(pool)
    .await?;
    sqlx::query(
        "DELETE FROM webhook_endpoints p WHERE deleted_at < now() - $1::interval
             AND NOT EXISTS (SELECT FROM webhook_deliveries d WHERE d.endpoint_id = p.id)",
    )
    .bind(keep)
    .execute(pool)
    .await?;
    Ok(done.rows_affected())
}

async fn wake(connection: &mut PgConnection) -> StoreResult<()> {
    sqlx::query("SELECT pg_notify($1, '')")
        .bind(CHANNEL)
        .execute(connection)
        .await?;
    Ok(())
}

fn logged(row: &PgRow) -> StoreResult<Logged> {
    let next_at: Option<OffsetDateTime> = get(row, "next_at")?;
    let status: DeliveryStatus = parse(row, "status")?;
    Ok(Logged {
        event: Id::from_uuid(get::<Uuid, _>(row, "event_id")?),
        kind: get(row, "type")?,
        job: get::<Option<_>, _>(row, "job_id")?.map(Id::from_uuid),
        status,
        attempts: unsigned(row, "attempt")?,
        next_at: next_at.filter(|_| status == DeliveryStatus::Waiting),
        created_at: get(row, "created_at")?,
        ended_at: get(row, "ended_at")?,
        status_code: status_code(row)?,
        error: get(row, "error")?,
    })
}

fn attempt(row: &PgRow) -> StoreResult<LoggedAttempt> {
    Ok(LoggedAttempt {
        number: unsigned(row, "number")?,
        started_at: get(row, "started_at")?,
        latency_ms: get::<Option<i32>, _>(row, "latency_ms")?.map(i32::cast_unsigned),
        status_code: status_code(row)?,
        error: get(row, "error")?,
        message: get(row, "message")?,
        answer: get(row, "answer")?,
    })
}

fn status_code(row: &PgRow) -> StoreResult<Option<u16>> {
    Ok(get::<Option<i32>, _>(row, "status_code")?.and_then(|code| u16::try_from(code).ok()))
}
