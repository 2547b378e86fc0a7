//! Doing an ended job again: always as a new job, since terminal states never change.

use sqlx::PgConnection;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use super::audit::By;
use super::idempotency::{Answer, Claim, Render};
use super::jobs::{self, JobView};
use super::once::{Once, once};
use super::quota::{After, Asked, Refusal};
use super::row::{get, ids, unsigned};
use super::selection::{Chunk, Selection, lock_chunk};
use super::{Pool, StoreError, StoreResult, budgets, quota};
use crate::config::Prices;
use crate::domain::{ApiKeyId, Id, JobId, ProjectId, Tokens};

/// Who wants jobs done again, and within which bounds.
#[derive(Debug, Clone)]
pub struct Asker {
    /// For the audit log.
    pub by: By,
    /// Most jobs of a tenant that may wait, unless it has a limit of its own.
    pub queue_limit: Option<u32>,
    /// What tokens cost now.
    pub prices: Prices,
    /// The API key that the request showed: the new jobs count as its own. Without one they count as the old jobs' keys'.
    pub api_key_id: Option<ApiKeyId>,
    /// How the request is known when it comes again.
    pub claim: Option<Claim>,
}

/// What an ended job is done again for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// For its result: the new job is its `retry_of`.
    Retry,
    /// To hold its tokens against the first ones: the new job is its `replay_of`.
    Replay,
}

/// Renders the answer to a chunk.
pub type RenderChunk = fn(&Chunk) -> Answer;

/// What became of a wish to do a job again.
#[derive(Debug)]
pub enum Retried {
    /// The new job.
    Accepted(Box<JobView>),
    /// It has not ended.
    Running,
    /// Its prompt is erased.
    Erased,
    /// It has no tokens that a replay could be held against.
    NoTokens,
    /// The project has no such job.
    Unknown,
    /// There is no room for it.
    Refused(Refusal),
}

/// Does one ended job again: same prompt, parameters (the seed too) and model revision, a full count of attempts, no
/// deadline. `render` makes the answer that a repeated request will be shown.
pub async fn retry(
    pool: &Pool,
    project: ProjectId,
    id: JobId,
    purpose: Purpose,
    asker: Asker,
    render: Render,
) -> StoreResult<Once<Retried>> {
    let answer = move |retried: &Retried| match retried {
        Retried::Accepted(view) => Some((Some(view.key.id), render(view))),
        _ => None,
    };
    let claim = asker.claim.clone();
    once(pool, claim, answer, move |connection| {
        let asker = asker.clone();
        Box::pin(async move {
            let row = sqlx::query(
                "SELECT finished_at IS NOT NULL AS ended, erased_at IS NOT NULL AS erased,
                     EXISTS (SELECT FROM job_outputs o WHERE o.job_id = jobs.id AND o.tokens IS NOT NULL) AS has_tokens
                 FROM jobs WHERE id = $1 AND project_id = $2 FOR SHARE",
            )
            .bind(id.uuid())
            .bind(project.uuid())
            .fetch_optional(&mut *connection)
            .await?;
            let Some(row) = row else { return Ok(Retried::Unknown) };
            if !get::<bool, _>(&row, "ended")? {
                return Ok(Retried::Running);
            }
            if get(&row, "erased")? {
                return Ok(Retried::Erased);
            }
            if purpose == Purpose::Replay && !get::<bool, _>(&row, "has_tokens")? {
                return Ok(Retried::NoTokens);
            }
            let again = run_again(connection, &[id], purpose, &asker).await?;
            if let Some((_, refusal)) = again.refused {
                return Ok(Retried::Refused(refusal));
            }
            let Some((_, new)) = again.made.first() else {
                return Ok(Retried::Erased);
            };
            let view = jobs::get(connection, project, *new)
                .await?
                .ok_or_else(|| StoreError::contradiction("a job vanished within its own transaction"))?;
            Ok(Retried::Accepted(Box::new(view)))
        })
    })
    .await
}

/// Does one chunk of the selected ended jobs again; those whose prompt is erased are passed over. It stops at the first job
/// that has no room.
///
/// Without a claim not for repeating blindly: who asks again from the start makes new jobs again.
pub async fn retry_selected(
    pool: &Pool,
    selection: Selection,
    asker: Asker,
    render: RenderChunk,
) -> StoreResult<Once<Chunk>> {
    let claim = asker.claim.clone();
    let answer = move |chunk: &Chunk| Some((None, render(chunk)));
    once(pool, claim, answer, move |connection| {
        let (selection, asker) = (selection.clone(), asker.clone());
        Box::pin(async move {
            let rows = lock_chunk(connection, &selection, "j.id", "j.finished_at IS NOT NULL").await?;
            let old: Vec<JobId> = ids(&rows, "id")?;
            let again = run_again(connection, &old, Purpose::Retry, &asker).await?;
            Ok(again.chunk(&old, selection.after))
        })
    })
    .await
}

/// The new jobs for ended ones.
#[derive(Debug)]
pub(super) struct Again {
    /// The old job and the new one.
    pub(super) made: Vec<(JobId, JobId)>,
    /// The first old job that is not done again because there is no room, and why.
    refused: Option<(JobId, Refusal)>,
}

impl Again {
    /// As the answer to a request for `old`, ascending, that began after `after`.
    pub(super) fn chunk(&self, old: &[JobId], after: Option<JobId>) -> Chunk {
        let count = self.made.len() as u64;
        let Some((stop, refusal)) = self.refused else {
            return Chunk::of(count, old);
        };
        let before = old.partition_point(|id| *id < stop);
        Chunk {
            count,
            // Where nothing was done, the next call begins where this one did.
            last: old[..before].last().copied().or(after),
            has_more: true,
            refused: Some(refusal),
        }
    }
}

/// Makes a new job for each ended one of `old`, ascending, whose prompt is still there, up to the first that has no room.
pub(super) async fn run_again(
    connection: &mut PgConnection,
    old: &[JobId],
    purpose: Purpose,
    asker: &Asker,
) -> StoreResult<Again> {
    let rows = sqlx::query(
        "SELECT j.id, j.tenant_id, j.project_id, j.api_key_id, j.model, j.prompt_tokens,
             (i.parameters ->> 'max_tokens')::bigint * (i.parameters ->> 'n')::bigint AS completion_tokens
         FROM jobs j JOIN job_inputs i ON i.job_id = j.id
         -- Locked, so that none is erased between here and its copy.
         WHERE j.id = ANY($1) AND j.finished_at IS NOT NULL AND j.erased_at IS NULL ORDER BY j.id FOR SHARE OF j",
    )
    .bind(old.iter().map(|id| id.uuid()).collect::<Vec<_>>())
    .fetch_all(&mut *connection)
    .await?;
    let wanted: Vec<_> = rows.iter().map(|row| again(row, asker)).collect::<StoreResult<_>>()?;
    let old: Vec<JobId> = ids(&rows, "id")?;
    let decision = quota::decide(connection, &wanted, After::Stop).await?;
    let mut verdicts = old.iter().zip(&decision.verdicts);
    let refused = verdicts.find_map(|(id, verdict)| Some((*id, verdict.err()?)));
    let made: Vec<_> = old
        .iter()
        .zip(&wanted)
        .take_while(|(id, _)| refused.is_none_or(|(stop, _)| **id < stop))
        .map(|(id, one)| (*id, one.job))
        .collect();
    budgets::reserve(connection, &decision.reserved).await?;
    insert(connection, &made, purpose, asker).await?;
    Ok(Again { made, refused })
}

/// What the new job for an ended one asks room for.
fn again(row: &PgRow, asker: &Asker) -> StoreResult<Asked> {
    let key: Option<Uuid> = get(row, "api_key_id")?;
    Ok(Asked {
        job: JobId::new(),
        tenant: Id::from_uuid(get(row, "tenant_id")?),
        project: Id::from_uuid(get(row, "project_id")?),
        key: asker.api_key_id.or(key.map(Id::from_uuid)),
        queue_limit: asker.queue_limit,
        tokens: Tokens {
            prompt: unsigned(row, "prompt_tokens")?.into(),
            completion: get::<i64, _>(row, "completion_tokens")?.unsigned_abs(),
        },
        price: asker.prices.of(get(row, "model")?),
    })
}

/// Writes the rows of new jobs, by (old, new) ids.
async fn insert(
    connection: &mut PgConnection,
    pairs: &[(JobId, JobId)],
    purpose: Purpose,
    Asker { by, api_key_id, .. }: &Asker,
) -> StoreResult<()> {
    if pairs.is_empty() {
        return Ok(());
    }
    let (old, new): (Vec<Uuid>, Vec<Uuid>) = pairs.iter().map(|(old, new)| (old.uuid(), new.uuid())).unzip();
    sqlx::query(
        "WITH pair AS MATERIALIZED (
             SELECT * FROM unnest($1::uuid[], $2::uuid[]) AS pair (old, new)
         ), made AS (
             INSERT INTO jobs (id, retry_of, replay_of, tenant_id, project_id, user_id, api_key_id, model, model_revision,
                               class, status, priority, max_attempts, prompt_tokens, store, ttl, requested_model)
             SELECT pair.new, CASE WHEN NOT $4 THEN j.id END, CASE WHEN $4 THEN j.id END, j.tenant_id, j.project_id,
                 j.user_id, coalesce($8, j.api_key_id), j.model, j.model_revision, j.class, 'queued', j.priority, j.max_attempts,
                 j.prompt_tokens, j.store, j.ttl, j.requested_model
             FROM pair JOIN jobs j ON j.id = pair.old
             RETURNING *
         ), input AS (
             INSERT INTO job_inputs (job_id, prompt, parameters, metadata, encoded)
             SELECT made.id, i.prompt, i.parameters, i.metadata, i.encoded
             FROM made JOIN pair ON pair.new = made.id JOIN job_inputs i ON i.job_id = pair.old
         ), webhook AS (
             INSERT INTO job_webhooks (job_id, endpoint_id, lane, url, events, payload)
             SELECT made.id, w.endpoint_id, w.lane, w.url, w.events, w.payload
             FROM made JOIN job_webhooks w ON w.job_id = made.retry_of
         ), message AS (
             INSERT INTO outbox (job_id, model, class, tenant_id, priority)
             SELECT id, model, class, tenant_id, priority FROM made
         )
         INSERT INTO audit_log (tenant_id, actor, credential, address, request_id, action, subject, details)
         SELECT tenant_id, $3, $5, $6, $7, CASE WHEN $4 THEN 'job.replayed' ELSE 'job.retried' END, id,
             jsonb_build_object(CASE WHEN $4 THEN 'replay_of' ELSE 'retry_of' END, coalesce(retry_of, replay_of))
         FROM made",
    )
    .bind(old)
    .bind(new)
    .bind(&by.actor)
    .bind(purpose == Purpose::Replay)
    .bind(by.credential())
    .bind(by.address())
    .bind(by.request_id())
    .bind(api_key_id.map(Id::uuid))
    .execute(connection)
    .await?;
    Ok(())
}
