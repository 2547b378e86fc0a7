//! Jobs that waited too long end as expired, before they cost a step.

use super::rescue::CHUNK;
use super::row::get;
use super::settle::{Settlement, deadline_exceeded, settle};
use super::{Pool, StoreResult, transaction};
use crate::domain::{Id, JobError, JobKey};

/// Ends one chunk of waiting jobs whose `deadline_at` has passed, or whose `start_by` has passed before any attempt. Answers
/// how many.
pub async fn expire_waiting(pool: &Pool) -> StoreResult<u64> {
    transaction(pool, |connection| {
        Box::pin(async move {
            let rows = sqlx::query(
                "SELECT id, fence, coalesce(deadline_at <= now(), false) AS late FROM jobs
                 WHERE status IN ('scheduled', 'queued') AND (deadline_at IS NOT NULL OR start_by IS NOT NULL)
                     AND least(deadline_at, CASE WHEN fence = 0 THEN start_by END) <= now()
                 ORDER BY id LIMIT $1 FOR UPDATE SKIP LOCKED",
            )
            .bind(CHUNK)
            .fetch_all(&mut *connection)
            .await?;
            let endings = rows
                .iter()
                .map(|row| {
                    let key = JobKey {
                        id: Id::from_uuid(get(row, "id")?),
                        fence: get(row, "fence")?,
                    };
                    let error = if get(row, "late")? {
                        deadline_exceeded()
                    } else {
                        JobError::server("not_started_in_time", "No attempt had begun by the job's `start_by`.")
                    };
                    Ok(Settlement::expired(key, error))
                })
                .collect::<StoreResult<Vec<_>>>()?;
            Ok(settle(connection, &endings, "service").await?.len() as u64)
        })
    })
    .await
}
