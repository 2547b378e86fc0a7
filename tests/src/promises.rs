//! What must hold of the tables at any time, whatever happened before: the invariants that the fault tests, the random walk
//! and the tests without guards share.
//!
//! [`watch`] adds a history to a test's database, written by a trigger; [`broken`] reads everything and says what does not hold.

use claimcheck_common::domain::JobStatus;
use claimcheck_common::store::Pool;

use crate::World;

/// A promise, and the query for the jobs that break it.
const PROMISES: [(&str, &str); 10] = [
    (
        "an ended job has one event and one audit row of its ending, an unfinished one has none",
        "SELECT j.id::text FROM jobs j
         LEFT JOIN LATERAL (SELECT count(*) AS all_of_them, count(*) FILTER (WHERE type = 'job.' || j.status) AS fitting
             FROM events WHERE job_id = j.id AND type <> 'job.started') event ON true
         LEFT JOIN LATERAL (SELECT count(*) AS all_of_them, count(*) FILTER (WHERE action = 'job.' || j.status) AS fitting
             FROM audit_log WHERE subject = j.id
                 AND action IN ('job.completed', 'job.failed', 'job.cancelled', 'job.expired')) audit ON true
         CROSS JOIN LATERAL (SELECT (j.finished_at IS NOT NULL)::int AS of_them) due
         WHERE event.all_of_them <> due.of_them OR event.fitting <> due.of_them
             OR audit.all_of_them <> due.of_them OR audit.fitting <> due.of_them",
    ),
    (
        "a queued job is in the outbox or with the broker",
        "SELECT id::text FROM jobs j WHERE status = 'queued'
             AND NOT EXISTS (SELECT FROM outbox o WHERE o.job_id = j.id)
             AND NOT EXISTS (SELECT FROM released r WHERE r.job_id = j.id)",
    ),
    (
        "what is noted as released is queued",
        "SELECT r.job_id::text FROM released r LEFT JOIN jobs j ON j.id = r.job_id WHERE j.status IS DISTINCT FROM 'queued'",
    ),
    (
        "every attempt but the newest has ended by a failure or a rescue",
        "SELECT id::text FROM jobs j
         CROSS JOIN LATERAL (SELECT attempt - count(*) AS open FROM audit_log
             WHERE subject = j.id AND action IN ('job.rescued', 'job.attempt_failed')) attempts
         WHERE open < 0 OR attempt > fence OR attempt > max_attempts
             OR open > CASE WHEN status IN ('scheduled', 'queued') THEN 0 ELSE 1 END
             OR open < CASE WHEN status IN ('in_progress', 'cancelling', 'completed') THEN 1 ELSE 0 END",
    ),
    (
        "a failed job has a dead letter and no other has",
        "SELECT j.id::text FROM jobs j LEFT JOIN dead_letters d ON d.job_id = j.id
         WHERE (j.status = 'failed') <> (d.job_id IS NOT NULL)",
    ),
    (
        "a dead letter is done again by one job, which says so",
        "SELECT d.job_id::text FROM dead_letters d LEFT JOIN jobs j ON j.id = d.redriven_as
         WHERE (d.redriven_at IS NULL) <> (d.redriven_as IS NULL) OR d.redriven_as IS NOT NULL AND j.retry_of <> d.job_id",
    ),
    (
        "a completed job has an output; of an erased one nothing is left, of any other the input",
        "SELECT j.id::text FROM jobs j LEFT JOIN job_inputs i ON i.job_id = j.id LEFT JOIN job_outputs o ON o.job_id = j.id
         WHERE (j.erased_at IS NULL) <> (i.job_id IS NOT NULL) OR j.erased_at IS NOT NULL AND o.job_id IS NOT NULL
             OR j.status = 'completed' AND j.erased_at IS NULL AND o.job_id IS NULL",
    ),
    (
        "no text outlives its job",
        "SELECT job_id::text FROM (SELECT job_id FROM job_inputs UNION ALL SELECT job_id FROM job_outputs) texts
         WHERE NOT EXISTS (SELECT FROM jobs j WHERE j.id = texts.job_id)",
    ),
    (
        "an order that was sent under one key is one job",
        "SELECT min(j.id::text) FROM jobs j JOIN job_inputs i ON i.job_id = j.id
         WHERE j.retry_of IS NULL AND i.metadata ? 'order' GROUP BY j.user_id, i.metadata ->> 'order' HAVING count(*) > 1",
    ),
    (
        "of a budget that is reserved what its unfinished jobs reserve, and spent what those used that ended in the period",
        "SELECT b.id::text FROM budgets b
         CROSS JOIN LATERAL (SELECT coalesce(sum(tokens), 0) AS tokens, coalesce(sum(cost), 0) AS cost, count(*) AS jobs
             FROM reservations WHERE budget_id = b.id) kept
         CROSS JOIN LATERAL (SELECT coalesce(sum(j.prompt_tokens
                     + (i.parameters ->> 'max_tokens')::bigint * (i.parameters ->> 'n')::bigint), 0) AS tokens, count(*) AS jobs
             FROM jobs j JOIN job_inputs i ON i.job_id = j.id
             WHERE b.id IN (j.tenant_id, j.project_id, j.api_key_id) AND j.finished_at IS NULL) open
         CROSS JOIN LATERAL (SELECT coalesce(sum(prompt_tokens + completion_tokens), 0) AS tokens FROM receipts
             WHERE b.id IN (tenant_id, project_id, api_key_id)
                 AND finished_at >= budget_period(b.period_began_at, b.period_seconds)) used
         WHERE b.reserved_tokens <> kept.tokens OR b.reserved_cost <> kept.cost OR kept.jobs <> open.jobs
             OR kept.tokens <> open.tokens OR used.tokens <> CASE
                 WHEN budget_period(b.period_began_at, b.period_seconds) > b.period_began_at THEN 0 ELSE b.spent_tokens END",
    ),
];

const HISTORY: &str = "
    CREATE TABLE job_history (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, job_id uuid NOT NULL, was text, became text NOT NULL, ended jsonb);
    GRANT SELECT ON job_history TO PUBLIC;
    CREATE FUNCTION lasting(job jobs) RETURNS jsonb LANGUAGE sql IMMUTABLE AS
        $$ SELECT to_jsonb(job) - '{erase_at,erased_at}'::text[] $$;
    CREATE FUNCTION write_history() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN
        INSERT INTO job_history (job_id, was, became, ended)
        VALUES (NEW.id, CASE TG_OP WHEN 'UPDATE' THEN OLD.status END, NEW.status,
                CASE WHEN NEW.finished_at IS NOT NULL THEN lasting(NEW) END);
        RETURN NULL;
    END $$;
    CREATE TRIGGER history_begins AFTER INSERT ON jobs FOR EACH ROW EXECUTE FUNCTION write_history();
    CREATE TRIGGER history AFTER UPDATE ON jobs FOR EACH ROW WHEN (OLD.status <> NEW.status)
        EXECUTE FUNCTION write_history();";

/// Lets the world's database write down every change of a job's status. Changes before it are not known to [`broken`].
pub async fn watch(world: &World) {
    world.execute_as_owner(HISTORY).await;
}

/// The promises that do not hold, each with a job that breaks it.
///
/// # Panics
/// If the database does not answer.
pub async fn broken(pool: &Pool) -> Vec<String> {
    let mut broken = Vec::new();
    for (promise, sql) in PROMISES {
        let found: Option<String> = sqlx::query_scalar(sql)
            .fetch_optional(pool)
            .await
            .expect("a valid query");
        broken.extend(found.map(|id| format!("not so for {id}: {promise}")));
    }
    let watched: bool = sqlx::query_scalar("SELECT to_regclass('job_history') IS NOT NULL")
        .fetch_one(pool)
        .await
        .expect("a valid query");
    if watched {
        broken.extend(broken_history(pool).await);
    }
    broken
}

async fn broken_history(pool: &Pool) -> Vec<String> {
    let changes: Vec<(String, Option<String>, String)> =
        sqlx::query_as("SELECT job_id::text, was, became FROM job_history ORDER BY id")
            .fetch_all(pool)
            .await
            .expect("a valid query");
    let illegal = changes
        .into_iter()
        .filter(|(_, was, became)| !is_legal(was.as_deref(), became));
    let mut broken: Vec<_> = illegal
        .map(|(id, was, became)| format!("{id} went from {} to {became}", was.as_deref().unwrap_or("nothing")))
        .collect();
    let rewritten: Option<String> = sqlx::query_scalar(
        "SELECT h.job_id::text FROM job_history h JOIN jobs j ON j.id = h.job_id
         WHERE h.ended IS NOT NULL AND h.ended <> lasting(j)",
    )
    .fetch_optional(pool)
    .await
    .expect("a valid query");
    broken.extend(rewritten.map(|id| format!("not so for {id}: what has ended never changes")));
    broken
}

/// Whether the diagram has this arrow; a job begins as scheduled or queued.
fn is_legal(was: Option<&str>, became: &str) -> bool {
    let Ok(became) = became.parse::<JobStatus>() else {
        return false;
    };
    match was {
        None => matches!(became, JobStatus::Scheduled | JobStatus::Queued),
        Some(was) => was.parse::<JobStatus>().is_ok_and(|was| was.transition(became).is_ok()),
    }
}
