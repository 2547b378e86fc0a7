//! Where a waiting job stands, and when it may begin.
//!
//! Both follow from the release window, the heads of the tenants' lists and the latest endings: nothing here reads a table
//! whole, however long the lists are.

use sqlx::{PgConnection, Row};
use uuid::Uuid;

use super::jobs::WaitingReason;
use super::row::get;
use super::{Pool, StoreResult};
use crate::domain::{JobId, ProjectId};

/// Beyond this place in its tenant's own list a job's position is only known to be at least so much.
const EXACT_UP_TO: i64 = 1000;
/// The endings that the pace is taken from: the newest of them, at most this many and this old.
const PACE_JOBS: i64 = 200;
const PACE_SECONDS: i64 = 600;

/// Where a waiting job stands.
#[derive(Debug, Clone, PartialEq)]
pub struct Place {
    /// Jobs that are to be taken up before it.
    pub ahead: u64,
    /// `false`: at least so many.
    pub exact: bool,
    /// Why it does not run yet.
    pub reason: Option<WaitingReason>,
    /// Jobs of its model and class that ended in a second, lately. `None` if there were too few to tell.
    pub pace: Option<f64>,
}

/// When a job may begin, in seconds from now.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Eta {
    /// As likely later as earlier.
    pub p50: f64,
    /// In nine cases of ten no later.
    pub p90: f64,
}

impl Place {
    /// The time until all that are ahead have ended at the present pace, and one slot more is free.
    ///
    /// Endings come like raindrops, so the wait for the n-th is gamma distributed; its quantiles are those of Wilson and
    /// Hilferty, "The Distribution of Chi-Square" (1931).
    pub fn eta(&self) -> Option<Eta> {
        let pace = self.pace.filter(|_| self.exact)?;
        let endings = self.ahead as f64 + 1.0;
        let quantile = |z: f64| {
            let spread = 1.0 / (9.0 * endings);
            endings * (1.0 - spread + z * spread.sqrt()).powi(3) / pace
        };
        Some(Eta {
            p50: quantile(0.0),
            p90: quantile(1.281_551_6),
        })
    }
}

/// The place of a project's job: `None` if there is no such job, `Some(None)` if it does not wait.
pub async fn find(pool: &Pool, project: ProjectId, id: JobId) -> StoreResult<Option<Option<Place>>> {
    let Some(job) = super::jobs::get(pool, project, id).await? else {
        return Ok(None);
    };
    if job.waiting.is_none() {
        return Ok(Some(None));
    }
    let mut connection = pool.acquire().await?;
    let (ahead, exact) = ahead(&mut connection, id.uuid()).await?;
    let pace = pace(&mut connection, &job.model.name, job.class.as_str()).await?;
    Ok(Some(Some(Place {
        ahead,
        exact,
        reason: job.waiting,
        pace,
    })))
}

/// How many go first, and whether that is all.
async fn ahead(connection: &mut PgConnection, id: Uuid) -> StoreResult<(u64, bool)> {
    let row = sqlx::query(
        "WITH RECURSIVE me AS MATERIALIZED (
             SELECT j.model, j.class, j.tenant_id, r.released_at, o.id AS outbox_id
             FROM jobs j LEFT JOIN released r ON r.job_id = j.id LEFT JOIN outbox o ON o.job_id = j.id
             WHERE j.id = $1 LIMIT 1
         ), inside AS MATERIALIZED (
             SELECT r.tenant_id, count(*) AS jobs,
                 count(*) FILTER (WHERE me.released_at IS NULL OR r.released_at < me.released_at) AS earlier
             FROM released r, me WHERE r.model = me.model AND r.class = me.class GROUP BY r.tenant_id
         ), own AS MATERIALIZED (
             -- The place in the tenant's own list, in the relay's order.
             SELECT count(*) AS looked, coalesce(max(place) FILTER (WHERE id = outbox_id), $2 + 1) AS place FROM (
                 SELECT o.id, me.outbox_id, row_number() OVER (ORDER BY o.priority DESC, o.deadline_at, o.job_id) AS place
                 FROM me CROSS JOIN LATERAL (
                     SELECT * FROM outbox o
                     WHERE o.model = me.model AND o.class = me.class AND o.tenant_id = me.tenant_id
                     ORDER BY priority DESC, deadline_at, job_id LIMIT $2
                 ) o
             ) list
         ), turn AS MATERIALIZED (
             SELECT own.place + coalesce((SELECT jobs FROM inside WHERE tenant_id = me.tenant_id), 0) AS turn FROM own, me
         ), tenant AS (
             SELECT first.tenant_id FROM me CROSS JOIN LATERAL (
                 -- Joined plainly, all that wait would be read to find the first.
                 SELECT o.tenant_id FROM outbox o WHERE o.model = me.model AND o.class = me.class
                 ORDER BY o.tenant_id LIMIT 1
             ) first
             UNION ALL
             SELECT next.tenant_id FROM tenant CROSS JOIN me CROSS JOIN LATERAL (
                 SELECT o.tenant_id FROM outbox o
                 WHERE o.model = me.model AND o.class = me.class AND o.tenant_id > tenant.tenant_id
                 ORDER BY o.tenant_id LIMIT 1
             ) next
         ), others AS (
             -- Each other tenant gets as many turns as this job has to wait for, if it has so many jobs.
             SELECT sum(list.jobs) AS jobs FROM tenant CROSS JOIN me CROSS JOIN turn
             LEFT JOIN inside ON inside.tenant_id = tenant.tenant_id
             CROSS JOIN LATERAL (
                 SELECT count(*) AS jobs FROM (
                     SELECT FROM outbox o
                     WHERE o.model = me.model AND o.class = me.class AND o.tenant_id = tenant.tenant_id
                     LIMIT greatest(turn.turn - 1 - coalesce(inside.jobs, 0), 0)
                 ) counted
             ) list
             WHERE tenant.tenant_id <> me.tenant_id
         )
         SELECT (coalesce((SELECT sum(earlier) FROM inside), 0)
                 + CASE WHEN me.released_at IS NULL THEN own.place - 1 + coalesce(others.jobs, 0) ELSE 0 END)::int8 AS ahead,
             me.released_at IS NOT NULL OR own.place <= $2 AS exact
         FROM me, own, others",
    )
    .bind(id)
    .bind(EXACT_UP_TO)
    .fetch_one(connection)
    .await?;
    Ok((row.try_get::<i64, _>("ahead")?.cast_unsigned(), get(&row, "exact")?))
}

async fn pace(connection: &mut PgConnection, model: &str, class: &str) -> StoreResult<Option<f64>> {
    let pace: Option<f64> = sqlx::query_scalar(
        "SELECT (count(*) FILTER (WHERE model = $1 AND class = $2)
                 / nullif(extract(epoch FROM now() - min(finished_at)), 0))::float8
         FROM (
             SELECT model, class, finished_at FROM jobs
             WHERE finished_at > now() - make_interval(secs => $4) AND started_at IS NOT NULL
             ORDER BY finished_at DESC LIMIT $3
         ) newest",
    )
    .bind(model)
    .bind(class)
    .bind(PACE_JOBS)
    .bind(PACE_SECONDS as f64)
    .fetch_one(connection)
    .await?;
    Ok(pace.filter(|pace| *pace > 0.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(ahead: u64, pace: Option<f64>) -> Place {
        Place {
            ahead,
            exact: true,
            reason: Some(WaitingReason::Capacity),
            pace,
        }
    }

    #[test]
    fn the_quantiles_are_those_of_the_gamma_distribution() {
        // One ending at one a second: the exponential distribution, whose quantiles are ln 2 and ln 10.
        let next = place(0, Some(1.0)).eta().unwrap();
        assert!(
            (next.p50 - 0.693).abs() < 0.02 && (next.p90 - 2.303).abs() < 0.03,
            "{next:?}"
        );
        // A hundred: nearly the normal distribution around 100 with a deviation of 10.
        let far = place(99, Some(1.0)).eta().unwrap();
        assert!(
            (far.p50 - 99.67).abs() < 0.1 && (far.p90 - 113.0).abs() < 0.3,
            "{far:?}"
        );
        assert!((place(99, Some(2.0)).eta().unwrap().p50 - far.p50 / 2.0).abs() < 1e-9);
    }

    #[test]
    fn without_a_pace_or_an_exact_place_nothing_is_promised() {
        assert_eq!(place(3, None).eta(), None);
        let vague = Place {
            exact: false,
            ..place(3, Some(1.0))
        };
        assert_eq!(vague.eta(), None);
    }
}
