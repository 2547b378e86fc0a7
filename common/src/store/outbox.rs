//! The outbox as the relay sees it: which queues have due rows, how many may go, which went.
//!
//! The relay's transaction stays open while it publishes, for five seconds at most: a relay that dies gives its rows
//! back by itself.

use sqlx::postgres::PgRow;
use sqlx::{Connection, PgConnection, Postgres, Transaction};
use uuid::Uuid;

use super::pool::{Settings, kept_plans};
use super::row::{column, get, parse, unsigned};
use super::{Pool, StoreResult, operators};
use crate::domain::{JobId, QueueName};

const RELAYING: Settings = kept_plans!("synchronous_commit = off");

/// A job that waits to be published.
#[derive(Debug, Clone)]
pub struct OutboxRow {
    /// The row.
    pub id: i64,
    /// The job it is about.
    pub job_id: JobId,
    /// W3C trace context of the request that made it.
    pub traceparent: Option<String>,
}

/// Which rows of a queue a relay looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// At all, in the order in which they may go. What went is passed over as well until it is vacuumed, and comes first in that order.
    All,
    /// At those from this id on, for a relay that left none before it: the cost follows what is new. If more than may be taken are new, at all.
    From(i64),
}

/// What a relay may publish of a queue.
#[derive(Debug)]
pub struct Taken {
    /// The rows, in the order in which they go.
    pub rows: Vec<OutboxRow>,
    /// Whether there are others among those that were looked at, due or not; where none was taken, in the whole queue.
    pub left: bool,
}

/// Begins a relay's transaction. It is not flushed at its commit: what a crash undoes is published once more, and a message that
/// comes twice finds nothing to claim.
pub async fn begin(connection: &mut PgConnection) -> StoreResult<Transaction<'_, Postgres>> {
    Ok(connection.begin_with(RELAYING.begin).await?)
}

/// The queues that have rows, due or not.
pub async fn queues(pool: &Pool) -> StoreResult<Vec<QueueName>> {
    let rows = sqlx::query(
        // A loose index scan: one probe a queue, however many rows wait.
        "WITH RECURSIVE queue AS (
             (SELECT model, class FROM outbox ORDER BY model, class LIMIT 1)
             UNION ALL
             SELECT next.model, next.class FROM queue CROSS JOIN LATERAL (
                 SELECT o.model, o.class FROM outbox o WHERE (o.model, o.class) > (queue.model, queue.class)
                 ORDER BY o.model, o.class LIMIT 1
             ) next
         )
         SELECT model, class FROM queue",
    )
    .fetch_all(pool)
    .await?;
    rows.iter()
        .map(|row| {
            Ok(QueueName {
                model: get(row, "model")?,
                class: parse(row, "class")?,
            })
        })
        .collect()
}

/// Takes at most `most` of the due rows while the queue's window has room, and locks them until the transaction ends.
///
/// The window is counted from rows (what is released and not yet claimed) and shared out between tenants: whoever has
/// the fewest jobs in it is next, so that one with 50,000 rows stands behind another's single one. Within a tenant
/// priority counts, then the deadline, then the job's age: what is rescued or tried again has its old place. What is paused, or beyond its tenant's `max_running` over all queues,
/// stays. One relay at a time serves a queue, so that two of them do not fill the same room twice; an empty answer also means that
/// another one is at it. (Two that serve two queues at the same moment may each take a tenant's last running jobs.)
pub async fn take(
    connection: &mut PgConnection,
    queue: &QueueName,
    look: Look,
    window: u32,
    most: u32,
) -> StoreResult<Taken> {
    let name = format!("relay:{}:{}", queue.model, queue.class.as_str());
    let locked: bool = sqlx::query_scalar("SELECT pg_try_advisory_xact_lock(hashtextextended($1, 0))")
        .bind(name)
        .fetch_one(&mut *connection)
        .await?;
    let mut rows = Vec::new();
    if locked {
        rows = look_at(connection, queue, look, window, most).await?;
        if look != Look::All && there(&rows)?.is_some_and(|there| there > most) {
            rows = look_at(connection, queue, Look::All, window, most).await?;
        }
    }
    let left = match there(&rows)? {
        Some(there) => there as usize > rows.len(),
        None => has_rows(connection, queue).await?,
    };
    let rows = rows.iter().map(taken).collect::<StoreResult<_>>()?;
    Ok(Taken { rows, left })
}

async fn look_at(
    connection: &mut PgConnection,
    queue: &QueueName,
    look: Look,
    window: u32,
    most: u32,
) -> StoreResult<Vec<PgRow>> {
    let statement = match look {
        Look::All => sqlx::query(TAKE_OF_ALL),
        Look::From(_) => sqlx::query(TAKE_OF_NEW),
    };
    let mut statement = statement
        .bind(&queue.model)
        .bind(queue.class.as_str())
        .bind(i64::from(window))
        .bind(i64::from(most));
    if let Look::From(first) = look {
        statement = statement.bind(first);
    }
    Ok(statement.fetch_all(connection).await?)
}

/// How many rows were there to be taken, counted no further than one beyond the most; `None` if none was taken.
fn there(rows: &[PgRow]) -> StoreResult<Option<u32>> {
    rows.first().map(|row| unsigned(row, "there")).transpose()
}

fn taken(row: &PgRow) -> StoreResult<OutboxRow> {
    Ok(OutboxRow {
        id: get(row, "id")?,
        job_id: JobId::from_uuid(get(row, "job_id")?),
        traceparent: get(row, "traceparent")?,
    })
}

/// Takes of these rows, whose tenants are found so: of each tenant no more rows than could be taken.
macro_rules! take_of {
    ($rows:literal, $tenants:literal) => {
        concat!(
            "WITH RECURSIVE ", $tenants, ", inside AS MATERIALIZED (
             SELECT tenant_id, count(*) AS jobs FROM released WHERE model = $1 AND class = $2 GROUP BY tenant_id
         ), room AS MATERIALIZED (
             SELECT greatest(least($3 - coalesce(sum(jobs), 0), $4), 0)::bigint AS jobs FROM inside
         ), elsewhere AS MATERIALIZED (
             -- In other queues; read only where a tenant has a limit, and no longer than all windows together.
             SELECT tenant_id, count(*) AS jobs FROM released WHERE (model, class) <> ($1, $2) GROUP BY tenant_id
         ), share AS MATERIALIZED (
             SELECT tenant.tenant_id, coalesce(inside.jobs, 0) AS jobs,
                 CASE WHEN limits.max_running IS NOT NULL THEN limits.max_running - (
                     SELECT count(*) FROM jobs j
                     WHERE j.status IN ('in_progress', 'cancelling') AND j.tenant_id = tenant.tenant_id
                 ) - coalesce((SELECT e.jobs FROM elsewhere e WHERE e.tenant_id = tenant.tenant_id), 0) END AS most
             FROM tenant LEFT JOIN inside USING (tenant_id) LEFT JOIN tenant_limits limits USING (tenant_id)
             WHERE NOT ", operators::is_paused!("$1", "$2", "tenant.tenant_id"), "
         ), turn AS MATERIALIZED (
             SELECT next.*, share.jobs + next.place AS turn
             FROM share CROSS JOIN room CROSS JOIN LATERAL (
                 SELECT id, job_id, priority, deadline_at,
                     row_number() OVER (ORDER BY priority DESC, deadline_at, job_id) AS place
                 FROM (
                     SELECT id, job_id, priority, deadline_at FROM ", $rows, " o
                     WHERE o.model = $1 AND o.class = $2 AND o.tenant_id = share.tenant_id AND o.available_at <= now()
                     ORDER BY priority DESC, deadline_at, job_id LIMIT room.jobs
                 ) first
             ) next
             WHERE share.most IS NULL OR share.jobs + next.place <= share.most
         ), there AS MATERIALIZED (
             -- Once: the planner would count anew for each row that is taken.
             SELECT count(*)::int AS rows FROM (SELECT FROM ", $rows, " WHERE model = $1 AND class = $2 LIMIT $4 + 1) r
         )
         SELECT o.id, o.job_id, o.traceparent, there.rows AS there FROM (
             SELECT * FROM turn ORDER BY turn, priority DESC, deadline_at, job_id LIMIT (SELECT jobs FROM room)
         ) chosen CROSS JOIN LATERAL (
             -- Looked up one by one: the planner would rather read the whole outbox.
             SELECT id, job_id, traceparent FROM outbox WHERE id = chosen.id FOR UPDATE SKIP LOCKED
         ) o CROSS JOIN there
         ORDER BY chosen.turn, chosen.priority DESC, chosen.deadline_at, chosen.job_id"
        )
    };
}

// The tenants by a loose index scan: the cost follows the window and the number of tenants, not the length of their lists.
const TAKE_OF_ALL: &str = take_of!(
    "outbox",
    "tenant AS (
         (SELECT tenant_id FROM outbox WHERE model = $1 AND class = $2 ORDER BY tenant_id LIMIT 1)
         UNION ALL
         SELECT next.tenant_id FROM tenant CROSS JOIN LATERAL (
             SELECT o.tenant_id FROM outbox o
             WHERE o.model = $1 AND o.class = $2 AND o.tenant_id > tenant.tenant_id ORDER BY o.tenant_id LIMIT 1
         ) next
     )"
);
// By the ids alone: the index of the queues begins with what went.
const TAKE_OF_NEW: &str = take_of!(
    "new",
    "new AS MATERIALIZED (
         SELECT id, job_id, model, class, tenant_id, available_at, priority, deadline_at FROM outbox
         WHERE id >= $5 AND (model = $1) IS TRUE AND (class = $2) IS TRUE ORDER BY id LIMIT $4 + 1
     ), tenant AS (SELECT DISTINCT tenant_id FROM new)"
);

/// Deletes taken rows whose messages were confirmed and not returned, and notes the release of jobs that still wait. With each row
/// goes the id of the message that its job went in: the first of that message's jobs.
///
/// The jobs' rows are locked but not written: a claim that comes now waits, and finds what is noted here by a statement that begins
/// when it has the lock ([`super::claim`]).
pub async fn confirm(connection: &mut PgConnection, sent: &[(&OutboxRow, JobId)]) -> StoreResult<()> {
    sqlx::query(
        "WITH gone AS (
             DELETE FROM outbox WHERE id = ANY($1)
         ), waiting AS MATERIALIZED (
             SELECT j.id, j.model, j.class, j.tenant_id, j.lapses > 0 AS rescued, sent.message
             -- A job may have two rows: it was claimed though its message was not recorded, and came back.
             FROM (SELECT DISTINCT ON (job_id) * FROM unnest($2::uuid[], $3::uuid[]) AS sent (job_id, message)) sent
                 JOIN jobs j ON j.id = sent.job_id
             WHERE j.id = ANY($2) AND (j.status = 'queued') IS TRUE ORDER BY j.id FOR NO KEY UPDATE OF j
         )
         INSERT INTO released (job_id, model, class, tenant_id, rescued, message)
         SELECT id, model, class, tenant_id, rescued, message FROM waiting
         ON CONFLICT (job_id) DO UPDATE SET released_at = excluded.released_at, message = excluded.message",
    )
    .bind(column(sent, |(row, _)| row.id))
    .bind(column(sent, |(row, _)| row.job_id.uuid()))
    .bind(column(sent, |(_, message)| message.uuid()))
    .execute(connection)
    .await?;
    Ok(())
}

/// Whether a queue has rows, due or not.
async fn has_rows(connection: &mut PgConnection, queue: &QueueName) -> StoreResult<bool> {
    Ok(
        sqlx::query_scalar("SELECT EXISTS (SELECT FROM outbox WHERE model = $1 AND class = $2)")
            .bind(&queue.model)
            .bind(queue.class.as_str())
            .fetch_one(connection)
            .await?,
    )
}

/// Forgets within the caller's transaction that these jobs were released. Their rows are locked, by a statement before.
pub(super) async fn recall(connection: &mut PgConnection, ids: &[Uuid]) -> StoreResult<()> {
    if !ids.is_empty() {
        sqlx::query("DELETE FROM released WHERE job_id = ANY($1)")
            .bind(ids)
            .execute(connection)
            .await?;
    }
    Ok(())
}

/// Rows that wait for the broker, for the metrics.
pub async fn depth(pool: &Pool) -> StoreResult<i64> {
    Ok(sqlx::query_scalar("SELECT count(*) FROM outbox")
        .fetch_one(pool)
        .await?)
}
