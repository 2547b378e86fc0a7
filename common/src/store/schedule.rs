//! Scheduled jobs whose time has come.

use super::rescue::CHUNK;
use super::{Pool, StoreResult, transaction};

/// Makes due jobs `queued` and writes their outbox rows in one commit. Answers how many.
pub async fn promote_due(pool: &Pool) -> StoreResult<u64> {
    transaction(pool, |connection| {
        Box::pin(async move {
            let done = sqlx::query(
                "WITH due AS MATERIALIZED (
                     SELECT id FROM jobs WHERE status = 'scheduled' AND available_at <= now()
                     ORDER BY available_at LIMIT $1
                 ), locked AS MATERIALIZED (
                     SELECT j.id FROM jobs j JOIN due USING (id) WHERE j.status = 'scheduled'
                     ORDER BY j.id FOR UPDATE OF j SKIP LOCKED
                 ), promoted AS (
                     UPDATE jobs j SET status = 'queued' FROM locked WHERE j.id = locked.id
                     RETURNING j.*
                 )
                 INSERT INTO outbox (job_id, model, class, tenant_id, priority, deadline_at)
                 SELECT id, model, class, tenant_id, priority, deadline_at FROM promoted",
            )
            .bind(CHUNK)
            .execute(connection)
            .await?;
            Ok(done.rows_affected())
        })
    })
    .await
}
