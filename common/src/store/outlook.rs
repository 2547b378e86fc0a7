//! What stands in a job's way before there is a job: for requests that only ask.

use sqlx::{PgExecutor, Row};

use super::quota::waiting;
use super::{StoreResult, operators};
use crate::domain::{Class, ProjectId, TenantId};

/// Counting stops here: whoever has so many waiting needs no exact number.
const COUNT_MAX: i64 = 100_000;

/// How a new job of a tenant would fare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outlook {
    /// An operator has paused its class, its model or its tenant.
    pub paused: bool,
    /// A worker that serves the model was heard of lately.
    pub served: bool,
    /// Most jobs of the tenant that may wait.
    pub max_queued: Option<u32>,
    /// Jobs of the tenant that wait.
    pub waiting: u32,
    /// How many more jobs of the project may wait, if it has a limit of its own.
    pub project_room: Option<u32>,
}

/// Looks at pauses, workers and quotas. `max_queued` is the limit of a tenant that has none of its own.
pub async fn find(
    executor: impl PgExecutor<'_>,
    (tenant, project): (TenantId, ProjectId),
    model: &str,
    class: Class,
    max_queued: Option<u32>,
) -> StoreResult<Outlook> {
    let row = sqlx::query(concat!(
        "SELECT ",
        operators::is_paused!("$2", "$3", "$1"),
        " AS paused,
             EXISTS (SELECT FROM workers w WHERE w.model = $2 AND w.ready_at IS NOT NULL AND NOT w.draining
                         AND w.last_seen_at > now() - interval '30 seconds') AS served,
             (SELECT max_queued FROM tenant_limits WHERE tenant_id = $1) AS max_queued,
             ",
        waiting!("p.organization_id = $1", "$4"),
        "::int AS waiting,
             (SELECT greatest(0, l.max_queued - ",
        waiting!("p.id = $5", "l.max_queued"),
        "::int) FROM project_limits l WHERE l.project_id = $5) AS project_room",
    ))
    .bind(tenant.uuid())
    .bind(model)
    .bind(class.as_str())
    .bind(COUNT_MAX)
    .bind(project.uuid())
    .fetch_one(executor)
    .await?;
    let own: Option<i32> = row.try_get("max_queued")?;
    Ok(Outlook {
        paused: row.try_get("paused")?,
        served: row.try_get("served")?,
        max_queued: own.map(i32::cast_unsigned).or(max_queued),
        waiting: row.try_get::<i32, _>("waiting")?.cast_unsigned(),
        project_room: row.try_get::<Option<i32>, _>("project_room")?.map(i32::cast_unsigned),
    })
}
