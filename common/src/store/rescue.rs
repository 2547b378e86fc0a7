//! Rescue: what becomes of jobs whose lease ran out, and of messages that the broker lost.

use std::time::Duration;

use sqlx::postgres::PgRow;
use sqlx::{PgConnection, PgExecutor};

use super::pool::rehearsal;
use super::row::{column, get, parse, unsigned};
use super::settle::{Settlement, settle};
use super::{Pool, StoreResult, transaction};
use crate::domain::{Id, JobError, JobKey, JobStatus, QueueName};

/// Rows in one transaction.
pub const CHUNK: i64 = 500;

/// A job whose worker was not heard of in time.
#[derive(Debug, Clone, Copy)]
pub struct LapsedJob {
    /// The job and the claim that lapsed.
    pub key: JobKey,
    /// `in_progress` or `cancelling`.
    pub status: JobStatus,
    /// How often it was claimed.
    pub attempt: u32,
    /// How often it may be claimed.
    pub max_attempts: u32,
}

/// What the rescuer did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rescued {
    /// Back in the outbox.
    pub requeued: u64,
    /// Ended as failed or cancelled.
    pub ended: u64,
}

impl LapsedJob {
    /// The ending this lapse means, or `None` if the job gets another attempt.
    pub fn ending(&self) -> Option<Settlement> {
        if self.status == JobStatus::Cancelling {
            return Some(Settlement::cancelled(self.key));
        }
        (self.attempt >= self.max_attempts).then(|| {
            let message = format!(
                "None of {} attempts was finished: each time the worker stopped.",
                self.max_attempts
            );
            Settlement::failed(self.key, JobError::server("attempts_exhausted", message))
        })
    }
}

/// Takes one chunk of lapsed jobs and sends each back to the outbox or to its end.
pub async fn rescue_lapsed(pool: &Pool) -> StoreResult<Rescued> {
    transaction(pool, |connection| Box::pin(rescue(connection))).await
}

/// Does the same to a chunk and takes it all back: fails where the database takes no writes, though it may be read.
pub async fn rehearse(pool: &Pool) -> StoreResult<()> {
    rehearsal(pool, |connection| Box::pin(rescue(connection))).await
}

async fn rescue(connection: &mut PgConnection) -> StoreResult<Rescued> {
    let rows = sqlx::query(
        // SKIP LOCKED: what is locked is being settled, beaten for or rescued by another right now.
        "SELECT id, fence, status, attempt, max_attempts FROM jobs
         WHERE status IN ('in_progress', 'cancelling') AND lease_expires_at < now()
         ORDER BY id LIMIT $1 FOR UPDATE SKIP LOCKED",
    )
    .bind(CHUNK)
    .fetch_all(&mut *connection)
    .await?;
    let (mut endings, mut again) = (Vec::new(), Vec::new());
    for row in &rows {
        let job = lapsed(row)?;
        match job.ending() {
            Some(ending) => endings.push(ending),
            None => again.push(job.key.id.uuid()),
        }
    }
    count_lapses(connection, &endings).await?;
    let ended = settle(connection, &endings, "service").await?.len() as u64;
    // A lapse is not the job's fault: it is available at once. Locked already, in id order.
    let done = sqlx::query(
        "WITH requeued AS (
             UPDATE jobs SET status = 'queued', lapses = lapses + 1, worker_id = NULL, lease_expires_at = NULL,
                 available_at = now(), dispatches = 0
             WHERE id = ANY($1) RETURNING *
         ), audit AS (
             INSERT INTO audit_log (tenant_id, actor, action, subject)
             SELECT tenant_id, 'service', 'job.rescued', id FROM requeued
         )
         INSERT INTO outbox (job_id, model, class, tenant_id, priority, deadline_at)
         SELECT id, model, class, tenant_id, priority, deadline_at FROM requeued",
    )
    .bind(&again)
    .execute(connection)
    .await?;
    Ok(Rescued {
        requeued: done.rows_affected(),
        ended,
    })
}

/// Before these jobs end: what is written of their ends tells of this lapse as well. Their rows are locked.
async fn count_lapses(connection: &mut PgConnection, endings: &[Settlement]) -> StoreResult<()> {
    if !endings.is_empty() {
        sqlx::query("UPDATE jobs SET lapses = lapses + 1 WHERE id = ANY($1)")
            .bind(column(endings, |ending| ending.key.id.uuid()))
            .execute(connection)
            .await?;
    }
    Ok(())
}

fn lapsed(row: &PgRow) -> StoreResult<LapsedJob> {
    Ok(LapsedJob {
        key: JobKey {
            id: Id::from_uuid(get(row, "id")?),
            fence: get(row, "fence")?,
        },
        status: parse(row, "status")?,
        attempt: unsigned(row, "attempt")?,
        max_attempts: unsigned(row, "max_attempts")?,
    })
}

/// How long the database has been up. A lease can only be judged by a clock that ran all the while.
pub async fn database_uptime(executor: impl PgExecutor<'_>) -> StoreResult<Duration> {
    let seconds: f64 = sqlx::query_scalar("SELECT extract(epoch FROM now() - pg_postmaster_start_time())::float8")
        .fetch_one(executor)
        .await?;
    Ok(Duration::from_secs_f64(seconds.max(0.0)))
}

/// A queue with jobs that the broker should be holding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReleasedQueue {
    /// Model and class.
    pub queue: QueueName,
    /// Messages that were confirmed and whose jobs no worker has claimed, or not all.
    pub messages: u64,
}

/// The message of a job that was rescued is overdue after this part of the time: as like as not it went to the very worker that is
/// silent, if nobody has closed that worker's connection.
const SOONER_IF_RESCUED: u32 = 100;

/// The queues where some job was released longer than `after` ago and still waits: there a message may be lost.
pub async fn overdue_queues(executor: impl PgExecutor<'_>, after: Duration) -> StoreResult<Vec<ReleasedQueue>> {
    let rows = sqlx::query(
        "SELECT model, class, count(DISTINCT coalesce(message, job_id))::int AS messages FROM released GROUP BY model, class
         HAVING bool_or(released_at < now() - CASE WHEN rescued THEN $2::interval ELSE $1::interval END)",
    )
    .bind(after)
    .bind(after / SOONER_IF_RESCUED)
    .fetch_all(executor)
    .await?;
    rows.iter()
        .map(|row| {
            let queue = QueueName {
                model: get(row, "model")?,
                class: parse(row, "class")?,
            };
            Ok(ReleasedQueue {
                queue,
                messages: unsigned(row, "messages")?.into(),
            })
        })
        .collect()
}

/// Writes new outbox rows for the jobs of at most `missing` messages of a queue, the longest released first. The interval doubles
/// each time, so that a queue which is only long is not doubled again and again. Answers how many were written.
pub async fn reemit(pool: &Pool, queue: QueueName, missing: u64, after: Duration) -> StoreResult<u64> {
    transaction(pool, move |connection| {
        let queue = queue.clone();
        Box::pin(async move {
            let done = sqlx::query(
                "WITH overdue AS MATERIALIZED (
                     SELECT j.id, coalesce(r.message, r.job_id) AS message, r.released_at
                     FROM released r JOIN jobs j ON j.id = r.job_id
                     WHERE r.model = $1 AND r.class = $2
                         AND r.released_at < now() - CASE WHEN r.rescued THEN $5::interval ELSE $3::interval END
                             * power(2, least(j.dispatches, 7))
                         AND NOT EXISTS (SELECT FROM outbox o WHERE o.job_id = j.id)
                 ), missing AS (
                     SELECT message FROM overdue GROUP BY message ORDER BY min(released_at) LIMIT $4
                 ), locked AS MATERIALIZED (
                     SELECT j.id FROM jobs j JOIN overdue USING (id) JOIN missing USING (message) WHERE j.status = 'queued'
                     ORDER BY j.id FOR UPDATE OF j SKIP LOCKED
                 ), recalled AS (
                     DELETE FROM released r USING locked l WHERE r.job_id = l.id
                 ), again AS (
                     UPDATE jobs j SET dispatches = dispatches + 1 FROM locked WHERE j.id = locked.id RETURNING j.*
                 )
                 INSERT INTO outbox (job_id, model, class, tenant_id, priority, deadline_at)
                 SELECT id, model, class, tenant_id, priority, deadline_at FROM again",
            )
            .bind(queue.model)
            .bind(queue.class.as_str())
            .bind(after)
            .bind(missing.cast_signed())
            .bind(after / SOONER_IF_RESCUED)
            .execute(connection)
            .await?;
            Ok(done.rows_affected())
        })
    })
    .await
}
