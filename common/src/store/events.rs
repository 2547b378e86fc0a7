//! Events: what callers may hear of. Whoever writes one hands it on by that: a trigger of its migration writes the deliveries
//! to all who want it in the same transaction (`webhooks/`).
//!
//! Jobs' endings are written by [`super::settle`], everything else by [`record`].

use sqlx::postgres::PgRow;
use sqlx::{PgConnection, PgExecutor};
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use super::StoreResult;
use super::row::get;
use crate::domain::{EventId, EventType, Id, JobId, ProjectId};

/// Events that are committed later than one that was drawn after them: no transaction takes longer.
const LATEST_COMMIT: Duration = Duration::minutes(1);

/// An event that is no job's.
#[derive(Debug, Clone)]
pub struct NewEvent {
    /// Who may hear of it.
    pub project: ProjectId,
    /// What happened.
    pub kind: EventType,
    /// What it is about: an object with `id`, `object`, `status` and `url` (`/v1/…`).
    pub data: serde_json::Value,
}

/// An event as it is stored.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// The `webhook-id`.
    pub id: EventId,
    /// What happened. A text, since a newer release may know more kinds.
    pub kind: String,
    /// Whose event it is.
    pub job: Option<JobId>,
    /// What it shows besides.
    pub data: Option<serde_json::Value>,
    /// When it happened.
    pub created_at: OffsetDateTime,
}

/// Writes events within the caller's transaction.
pub async fn record(connection: &mut PgConnection, events: &[NewEvent]) -> StoreResult<()> {
    if events.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "INSERT INTO events (id, project_id, type, data) SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::jsonb[])",
    )
    .bind(events.iter().map(|_| EventId::new().uuid()).collect::<Vec<_>>())
    .bind(events.iter().map(|event| event.project.uuid()).collect::<Vec<_>>())
    .bind(events.iter().map(|event| event.kind.as_str()).collect::<Vec<_>>())
    .bind(events.iter().map(|event| &event.data).collect::<Vec<_>>())
    .execute(connection)
    .await?;
    Ok(())
}

/// Writes `job.started` for the rows `$changed` of a statement on jobs that began with it, where somebody asked for it, as a
/// CTE. Where nobody did it costs two look-ups by index.
macro_rules! starts {
    ($changed:literal, $began:literal) => {
        concat!(
            "start AS (
                 INSERT INTO events (project_id, type, job_id)
                 SELECT j.project_id, 'job.started', j.id FROM ", $changed, " j
                 WHERE ", $began, " AND (
                     EXISTS (SELECT FROM webhook_endpoints p WHERE p.project_id = j.project_id
                                 AND 'job.started' = ANY (p.events) AND p.deleted_at IS NULL)
                     OR EXISTS (SELECT FROM job_webhooks w WHERE w.job_id = j.id AND 'job.started' = ANY (w.events)))
             )"
        )
    };
}
pub(super) use starts;

/// Gives events that came with a dump from another cluster a place before all that are written here: their transaction numbers are
/// those of that cluster, and the feed would wait until this one has used as many.
pub(super) async fn settle_in(connection: &mut PgConnection) -> StoreResult<()> {
    sqlx::query("UPDATE events SET xid = '0' WHERE xid >= pg_snapshot_xmax(pg_current_snapshot())")
        .execute(connection)
        .await?;
    Ok(())
}

/// A page of a project's events, the oldest first, from behind `after` on.
///
/// The order is that of the transactions that wrote them, up to the oldest one that is still at work: what is committed later
/// than what was drawn after it comes later here, and a reader passes over nothing. Reading on from an event that is forgotten by
/// now may show some events twice.
pub async fn feed(
    pool: &super::Pool,
    project: ProjectId,
    after: Option<EventId>,
    kind: Option<EventType>,
    limit: u32,
) -> StoreResult<Vec<Event>> {
    let (xid, id) = match after {
        None => ("0".to_owned(), Uuid::nil()),
        Some(after) => place(pool, project, after).await?,
    };
    let rows = sqlx::query(
        "SELECT id, type, job_id, data, created_at FROM events
         WHERE project_id = $1 AND (xid, id) > ($2::text::xid8, $3) AND xid < pg_snapshot_xmin(pg_current_snapshot())
             AND audience IS NULL AND ($4::text IS NULL OR type = $4)
         ORDER BY xid, id LIMIT $5",
    )
    .bind(project.uuid())
    .bind(xid)
    .bind(id)
    .bind(kind.map(EventType::as_str))
    .bind(i64::from(limit))
    .fetch_all(pool)
    .await?;
    rows.iter().map(event).collect()
}

/// One event of a project.
pub async fn find(executor: impl PgExecutor<'_>, project: ProjectId, id: EventId) -> StoreResult<Option<Event>> {
    let row = sqlx::query("SELECT id, type, job_id, data, created_at FROM events WHERE id = $1 AND project_id = $2")
        .bind(id.uuid())
        .bind(project.uuid())
        .fetch_optional(executor)
        .await?;
    row.as_ref().map(event).transpose()
}

/// Where an event stands in the feed, or where those begin that may be newer than a forgotten one.
async fn place(pool: &super::Pool, project: ProjectId, after: EventId) -> StoreResult<(String, Uuid)> {
    let known: Option<String> = sqlx::query_scalar("SELECT xid::text FROM events WHERE id = $1 AND project_id = $2")
        .bind(after.uuid())
        .bind(project.uuid())
        .fetch_optional(pool)
        .await?;
    if let Some(xid) = known {
        return Ok((xid, after.uuid()));
    }
    let before: String = sqlx::query_scalar("SELECT pg_snapshot_xmin(pg_current_snapshot())::text")
        .fetch_one(pool)
        .await?;
    let since: Option<(String, Uuid)> =
        sqlx::query_as("SELECT xid::text, id FROM events WHERE project_id = $1 AND id >= $2 ORDER BY xid, id LIMIT 1")
            .bind(project.uuid())
            .bind(first_id(time_of(after) - LATEST_COMMIT))
            .fetch_optional(pool)
            .await?;
    if let Some((xid, id)) = since {
        // One before it, so that it is shown itself.
        return Ok((xid, Uuid::from_u128(id.as_u128().saturating_sub(1))));
    }
    // There is nothing newer: what comes, comes by a transaction that was at work when we looked, or by a later one.
    Ok((before, Uuid::nil()))
}

/// When an event's id was drawn.
fn time_of(id: EventId) -> OffsetDateTime {
    let millis = (id.uuid().as_u128() >> 80).cast_signed();
    OffsetDateTime::from_unix_timestamp_nanos(millis * 1_000_000).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

/// The least id of a time: the first 48 bits of an id are milliseconds.
pub(super) fn first_id(at: OffsetDateTime) -> Uuid {
    let millis = (at.unix_timestamp_nanos() / 1_000_000).max(0);
    Uuid::from_u128(millis.cast_unsigned() << 80)
}

pub(super) fn event(row: &PgRow) -> StoreResult<Event> {
    Ok(Event {
        id: Id::from_uuid(get(row, "id")?),
        kind: get(row, "type")?,
        job: get::<Option<_>, _>(row, "job_id")?.map(Id::from_uuid),
        data: get(row, "data")?,
        created_at: get(row, "created_at")?,
    })
}
