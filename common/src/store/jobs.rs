//! Reading jobs as their owner sees them.

use std::collections::BTreeMap;
use std::slice;
use std::str::FromStr;
use std::time::Duration;

use futures::TryStreamExt;
use sqlx::postgres::PgRow;
use sqlx::postgres::types::PgInterval;
use sqlx::{PgExecutor, Row, ValueRef};
use time::OffsetDateTime;

use super::row::{get as column, json, parse, present, unsigned};
use super::submit::JobOptions;
use super::{StoreError, StoreResult};
use crate::domain::{
    Choice, Class, GenerationParams, Id, JobError, JobId, JobKey, JobStatus, ModelRef, ProjectId, Prompt, Usage,
};

/// A job with everything its owner may see.
#[derive(Debug, Clone)]
pub struct JobView {
    /// The job and its newest claim.
    pub key: JobKey,
    /// Where it stands.
    pub status: JobStatus,
    /// Which weights.
    pub model: ModelRef,
    /// The alias that led to them.
    pub requested_model: Option<String>,
    /// Which queue.
    pub class: Class,
    /// How often it was claimed.
    pub attempt: u32,
    /// What was sent; `None` once it is erased.
    pub input: Option<JobInput>,
    /// What came of it; also the part that a cancelled job had generated.
    pub choices: Option<Vec<Choice>>,
    /// Prompt tokens, and what was generated so far as it was settled.
    pub usage: Usage,
    /// Why it failed.
    pub error: Option<JobError>,
    /// Why the attempt before failed, while it is to be tried again.
    pub last_error: Option<JobError>,
    /// Why it does not run yet, if it waits.
    pub waiting: Option<WaitingReason>,
    /// The ended job that it does again.
    pub retry_of: Option<JobId>,
    /// The ended job whose tokens it is held against.
    pub replay_of: Option<JobId>,
    /// When it must be done, how often it is tried, what is kept of it.
    pub options: JobOptions,
    /// When its texts were erased.
    pub erased_at: Option<OffsetDateTime>,
    /// When it was accepted.
    pub created_at: OffsetDateTime,
    /// It is not run before this time.
    pub available_at: OffsetDateTime,
    /// When its first prefill began.
    pub started_at: Option<OffsetDateTime>,
    /// When a caller asked to stop it.
    pub cancel_requested_at: Option<OffsetDateTime>,
    /// When it ended.
    pub finished_at: Option<OffsetDateTime>,
}

/// Why a job does not run yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WaitingReason {
    /// Its time has not come.
    Scheduled,
    /// Its last attempt failed, and the next one comes after a pause.
    Backoff,
    /// An operator has paused its class, its model or its tenant, or its owner the batch that it is a line of.
    Paused,
    /// No worker that serves its model was heard of lately.
    WorkerUnhealthy,
    /// Its tenant has as many jobs with the broker and the workers as its limit allows, over all queues.
    RateLimit,
    /// Others are in front of it.
    Capacity,
}

impl WaitingReason {
    /// The shown form.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Scheduled => "scheduled",
            Self::Backoff => "backoff",
            Self::Paused => "paused",
            Self::WorkerUnhealthy => "worker_unhealthy",
            Self::RateLimit => "rate_limit",
            Self::Capacity => "capacity",
        }
    }
}

impl FromStr for WaitingReason {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        [
            Self::Scheduled,
            Self::Backoff,
            Self::Paused,
            Self::WorkerUnhealthy,
            Self::RateLimit,
            Self::Capacity,
        ]
        .into_iter()
        .find(|reason| reason.as_str() == text)
        .ok_or_else(|| format!("`{text}` is no reason to wait"))
    }
}

/// What the caller sent.
#[derive(Debug, Clone)]
pub struct JobInput {
    /// The text or tokens.
    pub prompt: Prompt,
    /// How to continue it.
    pub params: GenerationParams,
    /// The caller's own notes.
    pub metadata: Option<BTreeMap<String, String>>,
}

/// A page of jobs ends before its outputs come to more bytes of JSON than this, unless it is one job.
const OUTPUTS_MAX: usize = 8 << 20;

/// Which jobs of a project a list shows.
#[derive(Debug, Clone, Default)]
pub struct JobFilter {
    /// Only jobs in this state.
    pub status: Option<JobStatus>,
    /// Only jobs of this model name.
    pub model: Option<String>,
}

/// Which part of a list, newest first.
#[derive(Debug, Clone, Copy)]
pub struct Page {
    /// Only jobs older than this one.
    pub after: Option<JobId>,
    /// At most this many.
    pub limit: u32,
}

/// Why the job `j` does not run yet, as SQL.
macro_rules! waiting_reason {
    () => {
        concat!(
            "CASE WHEN j.status = 'scheduled' THEN 'scheduled'
              WHEN j.status <> 'queued' THEN NULL
              WHEN ", crate::store::operators::is_paused!("j.model", "j.class", "j.tenant_id"), " THEN 'paused'
              WHEN j.available_at > now() THEN CASE
                  -- A paused batch puts its waiting jobs off.
                  WHEN j.class = 'batch' AND EXISTS (SELECT FROM batch_items i JOIN batches b ON b.id = i.batch_id
                                                     WHERE i.id = j.id AND b.holding) THEN 'paused'
                  ELSE 'backoff' END
              WHEN NOT EXISTS (SELECT FROM workers w WHERE w.model = j.model AND w.ready_at IS NOT NULL AND NOT w.draining
                                   AND w.last_seen_at > now() - interval '30 seconds') THEN 'worker_unhealthy'
              -- Counted as the relay counts, only where the tenant has a limit; what is released has its turn. The
              -- outbox is not asked: a statement that makes a job does not see the row that it writes there.
              WHEN (SELECT NOT EXISTS (SELECT FROM released w WHERE w.job_id = j.id) AND l.max_running <= (
                        SELECT count(*) FROM (
                            SELECT a.id FROM jobs a
                            WHERE a.status IN ('in_progress', 'cancelling') AND a.tenant_id = l.tenant_id
                            UNION ALL
                            SELECT a.job_id FROM released a WHERE a.tenant_id = l.tenant_id
                            LIMIT l.max_running
                        ) counted)
                    FROM tenant_limits l
                    WHERE l.tenant_id = j.tenant_id AND l.max_running IS NOT NULL) THEN 'rate_limit'
              ELSE 'capacity' END AS waiting"
        )
    };
}
pub(super) use waiting_reason;

const VIEW: &str = concat!(
    "SELECT j.*, i.prompt, i.parameters, i.metadata, o.choices, ",
    waiting_reason!(),
    " FROM jobs j LEFT JOIN job_inputs i ON i.job_id = j.id LEFT JOIN job_outputs o ON o.job_id = j.id "
);

/// One job of a project. A foreign job does not exist.
pub async fn get(executor: impl PgExecutor<'_>, project: ProjectId, id: JobId) -> StoreResult<Option<JobView>> {
    let row = sqlx::query(sqlx::AssertSqlSafe(format!(
        "{VIEW} WHERE j.id = $1 AND j.project_id = $2"
    )))
    .bind(id.uuid())
    .bind(project.uuid())
    .fetch_optional(executor)
    .await?;
    row.as_ref().map(view).transpose()
}

/// What a page was given of what it asked for.
#[derive(Debug)]
pub struct Listed {
    /// Newest first.
    pub jobs: Vec<JobView>,
    /// Whether the page ended before its limit, since its outputs came to 8 MiB.
    pub cut_short: bool,
}

/// A page of a project's jobs, newest first.
///
/// Put together from a page of each model and state: each walks its own part of an index, whatever the project's size. An index
/// without models or states would be written up to three times a job and read by lists alone. A model that had jobs is never taken
/// out of `models`.
pub async fn list(
    executor: impl PgExecutor<'_>,
    project: ProjectId,
    filter: &JobFilter,
    page: Page,
) -> StoreResult<Listed> {
    // Conditions are written out only where they apply: the planner then sees the index that fits.
    let models = if filter.model.is_some() {
        "SELECT $2::text AS model"
    } else {
        "SELECT DISTINCT name AS model FROM models WHERE $2::text IS NULL"
    };
    let after = if page.after.is_some() {
        "AND id < $3"
    } else {
        "AND $3::uuid IS NULL"
    };
    let states = filter.status.as_ref().map_or(&JobStatus::ALL[..], slice::from_ref);
    let pages = states.iter().map(|status| {
        // Which of the two indexes: what has ended is kept apart.
        let ended = if status.is_terminal() { "NOT NULL" } else { "NULL" };
        format!(
            "SELECT page.id FROM wanted CROSS JOIN LATERAL (
                 SELECT id FROM jobs WHERE project_id = $1 AND model = wanted.model AND status = '{status}'
                     AND finished_at IS {ended} {after}
                 ORDER BY id DESC LIMIT $4) page"
        )
    });
    let pages = pages.collect::<Vec<_>>().join(" UNION ALL ");
    let mut rows = sqlx::query(sqlx::AssertSqlSafe(format!(
        "WITH wanted AS MATERIALIZED ({models})
         {VIEW} WHERE j.id = ANY (ARRAY(SELECT id FROM ({pages}) found ORDER BY id DESC LIMIT $4)) ORDER BY j.id DESC"
    )))
    .bind(project.uuid())
    .bind(filter.model.as_deref())
    .bind(page.after.map(Id::uuid))
    .bind(i64::from(page.limit))
    // Planned anew for what is asked: one plan for every project and model walks the whole list for the rare one.
    .persistent(false)
    .fetch(executor);
    let mut listed = Listed {
        jobs: Vec::new(),
        cut_short: false,
    };
    let mut outputs = 0;
    // Row by row: many long outputs are never in memory together.
    while let Some(row) = rows.try_next().await? {
        outputs += output_bytes(&row)?;
        if outputs > OUTPUTS_MAX && !listed.jobs.is_empty() {
            listed.cut_short = true;
            break;
        }
        listed.jobs.push(view(&row)?);
    }
    Ok(listed)
}

/// How long a job's output is, as it came from the database.
fn output_bytes(row: &PgRow) -> StoreResult<usize> {
    let output = row.try_get_raw("choices")?;
    Ok(if output.is_null() {
        0
    } else {
        output.as_bytes().map_err(StoreError::contradiction)?.len()
    })
}

fn view(row: &PgRow) -> StoreResult<JobView> {
    let input = json(row, "prompt")?
        .map(|prompt| {
            let params = present(json(row, "parameters")?, "parameters")?;
            StoreResult::Ok(JobInput {
                prompt,
                params,
                metadata: json(row, "metadata")?,
            })
        })
        .transpose()?;
    Ok(JobView {
        key: JobKey {
            id: Id::from_uuid(column(row, "id")?),
            fence: column(row, "fence")?,
        },
        status: parse(row, "status")?,
        model: ModelRef {
            name: column(row, "model")?,
            revision: column(row, "model_revision")?,
        },
        requested_model: column(row, "requested_model")?,
        class: parse(row, "class")?,
        attempt: unsigned(row, "attempt")?,
        input,
        choices: json(row, "choices")?,
        usage: Usage::new(unsigned(row, "prompt_tokens")?, unsigned(row, "completion_tokens")?),
        error: json(row, "error")?,
        last_error: json(row, "last_error")?,
        waiting: waiting(row)?,
        retry_of: column::<Option<_>, _>(row, "retry_of")?.map(Id::from_uuid),
        replay_of: column::<Option<_>, _>(row, "replay_of")?.map(Id::from_uuid),
        options: options(row)?,
        erased_at: column(row, "erased_at")?,
        created_at: column(row, "created_at")?,
        available_at: column(row, "available_at")?,
        started_at: column(row, "started_at")?,
        cancel_requested_at: column(row, "cancel_requested_at")?,
        finished_at: column(row, "finished_at")?,
    })
}

/// What [`waiting_reason`] answered.
pub(super) fn waiting(row: &PgRow) -> StoreResult<Option<WaitingReason>> {
    column::<Option<&str>, _>(row, "waiting")?
        .map(str::parse)
        .transpose()
        .map_err(StoreError::contradiction)
}

fn options(row: &PgRow) -> StoreResult<JobOptions> {
    let ttl: Option<PgInterval> = column(row, "ttl")?;
    Ok(JobOptions {
        priority: column(row, "priority")?,
        deadline_at: column(row, "deadline_at")?,
        start_by: column(row, "start_by")?,
        max_attempts: unsigned(row, "max_attempts")?,
        store: column(row, "store")?,
        // Written from a duration, so neither months nor days stand in it.
        ttl: ttl.map(|ttl| Duration::from_micros(ttl.microseconds.unsigned_abs())),
        // No fact of the job: it stands apart, for as long as somebody waits.
        attended: None,
    })
}
