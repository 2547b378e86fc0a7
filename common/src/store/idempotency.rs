//! Knowing a request that was sent before: by its key, by the caller's own id for the job, or as the retry of a client
//! library that sends no key.
//!
//! A transaction-level advisory lock tells "in flight" from "done": whoever holds it has not committed yet. Looking comes
//! after locking, in a statement of its own, or a commit in between would be missed.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use sqlx::types::Json;
use sqlx::{PgConnection, PgExecutor};
use uuid::Uuid;

use super::jobs::{self, JobView};
use super::rescue::CHUNK;
use super::row::{column, get};
use super::submit::{Submission, Submitted};
use super::{Pool, StoreResult, transaction};
use crate::domain::{JobId, ProjectId, UserId};

/// For so long after a request its retry may find the job; also later, while its caller is waited for (`attend.rs`). Client
/// libraries wait for seconds between their attempts.
const RETRY_WITHIN: Duration = Duration::from_mins(1);
/// A retry waits for so long for the request before it, if that one is about to commit.
const RETRY_WAIT: &str = "5s";

/// How a submit is known when it comes again.
#[derive(Debug, Clone)]
pub struct Claim {
    /// Whose request it is; also the credential that an SDK's retry must share.
    pub user_id: UserId,
    /// Where its job belongs.
    pub project_id: ProjectId,
    /// SHA-256 of the raw body.
    pub request_sha256: [u8; 32],
    /// By what.
    pub by: ClaimedBy,
}

/// What tells that two requests are one.
#[derive(Debug, Clone)]
pub enum ClaimedBy {
    /// The user's promise that equal keys mean the same request; the answer is kept for so long.
    Key(String, Duration),
    /// The project's own name for the job, for as long as there is the job.
    ClientId(String),
    /// A library that counts how often it sends a request: 0 at first.
    SdkRetry(u32),
}

/// The answer to an accepted submit, as it is shown again to whoever repeats the request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The headers that speak of the job.
    pub headers: BTreeMap<String, String>,
    /// The body, JSON.
    pub body: String,
}

/// What became of a request that was sent before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Before {
    /// It was accepted: this was its answer.
    Replayed(Answer),
    /// Its key or id was used with another request.
    Reused,
    /// The first one is not committed yet.
    InFlight,
}

/// A claim whose request was carried out, and what is kept of it.
#[derive(Debug)]
pub(super) struct Kept<'a> {
    pub(super) claim: &'a Claim,
    /// The one job that it made.
    pub(super) job_id: Option<JobId>,
    pub(super) answer: Answer,
}

/// Renders a newly stored job.
pub type Render = fn(&JobView) -> Answer;

impl Claim {
    /// The caller's own word for the request.
    fn name(&self) -> &str {
        match &self.by {
            ClaimedBy::Key(name, _) | ClaimedBy::ClientId(name) => name,
            ClaimedBy::SdkRetry(_) => "",
        }
    }

    /// What names the claim among all; the locks' names are shared by all versions of the code.
    fn lock(&self) -> String {
        let (user, project) = (self.user_id.uuid(), self.project_id.uuid());
        match &self.by {
            ClaimedBy::Key(key, _) => format!("idempotency:{user}:{key}"),
            ClaimedBy::ClientId(id) => format!("client_id:{project}:{id}"),
            ClaimedBy::SdkRetry(_) => format!("sdk:{user}:{}", hex::encode(self.request_sha256)),
        }
    }
}

/// What came of the same request before, if it is done. To be asked before the request is checked: what was accepted once
/// may not be acceptable now (a time that has passed), and yet its answer stays the same.
pub async fn earlier(pool: &Pool, claim: &Claim) -> StoreResult<Option<Submitted>> {
    match &claim.by {
        ClaimedBy::Key(..) => Ok(keys(pool, &[(0, claim)]).await?.pop().map(|(_, found)| found.into())),
        ClaimedBy::ClientId(_) => {
            let mut connection = pool.acquire().await?;
            let found = client_ids(&mut connection, &[(0, claim)]).await?.pop();
            Ok(found.map(|(_, found)| found))
        }
        ClaimedBy::SdkRetry(0) => Ok(None),
        ClaimedBy::SdkRetry(retry) => retried(pool, claim.clone(), *retry).await,
    }
}

/// The newest job of the same credential and body that no retry of this number has found.
async fn retried(pool: &Pool, claim: Claim, retry: u32) -> StoreResult<Option<Submitted>> {
    transaction(pool, move |connection| {
        let claim = claim.clone();
        Box::pin(async move {
            sqlx::query("SELECT set_config('lock_timeout', $1, true)")
                .bind(RETRY_WAIT)
                .execute(&mut *connection)
                .await?;
            // Those who are about to make such a job hold it shared, until they have committed.
            sqlx::query("SELECT pg_advisory_xact_lock(hashtextextended($1, 0))")
                .bind(claim.lock())
                .execute(&mut *connection)
                .await?;
            let found: Option<Uuid> = sqlx::query_scalar(
                "UPDATE sdk_requests SET retry = $3 WHERE job_id = (
                     SELECT job_id FROM sdk_requests
                     WHERE credential = $1 AND request_sha256 = $2 AND retry < $3
                         AND (created_at > now() - $4::interval
                              OR EXISTS (SELECT FROM attended_jobs a WHERE a.job_id = sdk_requests.job_id))
                     ORDER BY created_at DESC, job_id DESC LIMIT 1)
                 RETURNING job_id",
            )
            .bind(claim.user_id.uuid())
            .bind(&claim.request_sha256[..])
            .bind(retry.cast_signed())
            .bind(RETRY_WITHIN)
            .fetch_optional(&mut *connection)
            .await?;
            let Some(found) = found else { return Ok(None) };
            let view = jobs::get(connection, claim.project_id, JobId::from_uuid(found)).await?;
            Ok(view.map(|view| Submitted::Found(Box::new(view))))
        })
    })
    .await
}

/// Takes a single claim by key until the transaction ends. `None`: its request is to be carried out.
pub(super) async fn take_one(connection: &mut PgConnection, claim: &Claim) -> StoreResult<Option<Before>> {
    let free: bool = sqlx::query_scalar("SELECT pg_try_advisory_xact_lock(hashtextextended($1, 0))")
        .bind(claim.lock())
        .fetch_one(&mut *connection)
        .await?;
    if !free {
        return Ok(Some(Before::InFlight));
    }
    Ok(keys(connection, &[(0, claim)]).await?.pop().map(|(_, found)| found))
}

/// Takes the claims of a group of submits until the transaction ends. Each gets `None` if it is to be carried out, else
/// what became of it.
pub(super) async fn take(
    connection: &mut PgConnection,
    submissions: &[Submission],
) -> StoreResult<Vec<Option<Submitted>>> {
    let mut outcomes: Vec<Option<Submitted>> = submissions.iter().map(|_| None).collect();
    let mut seen = HashSet::new();
    let (mut taken, mut shared) = (Vec::new(), Vec::new());
    for (place, submission) in submissions.iter().enumerate() {
        match &submission.claim {
            Some(claim) if matches!(claim.by, ClaimedBy::SdkRetry(_)) => shared.push(claim.lock()),
            // A transaction gets its own locks again, hence this look at the neighbours.
            Some(claim) if !seen.insert(claim.lock()) => outcomes[place] = Some(Before::InFlight.into()),
            Some(claim) => taken.push((place, claim)),
            None => {}
        }
    }
    if !shared.is_empty() {
        // Missed only while a retry of the same body looks, and that one is not ours.
        sqlx::query(
            "SELECT pg_try_advisory_xact_lock_shared(hashtextextended(name, 0)) FROM unnest($1::text[]) AS name",
        )
        .bind(shared)
        .execute(&mut *connection)
        .await?;
    }
    if taken.is_empty() {
        return Ok(outcomes);
    }
    let names: Vec<_> = taken.iter().map(|(_, claim)| claim.lock()).collect();
    let locks = sqlx::query(
        "SELECT place, pg_try_advisory_xact_lock(hashtextextended(name, 0)) AS free
         FROM unnest($1::text[]) WITH ORDINALITY AS claim (name, place)",
    )
    .bind(names)
    .fetch_all(&mut *connection)
    .await?;
    for row in &locks {
        if !get::<bool, _>(row, "free")? {
            let (place, _) = taken[get::<i64, _>(row, "place")? as usize - 1];
            outcomes[place] = Some(Before::InFlight.into());
        }
    }
    let of = |wanted: fn(&ClaimedBy) -> bool| -> Vec<(usize, &Claim)> {
        let free = taken.iter().filter(|(place, _)| outcomes[*place].is_none());
        free.filter(|(_, claim)| wanted(&claim.by)).copied().collect()
    };
    let by_key = of(|by| matches!(by, ClaimedBy::Key(..)));
    let by_id = of(|by| matches!(by, ClaimedBy::ClientId(_)));
    for (place, found) in keys(&mut *connection, &by_key).await? {
        outcomes[place] = Some(found.into());
    }
    for (place, found) in client_ids(connection, &by_id).await? {
        outcomes[place] = Some(found);
    }
    Ok(outcomes)
}

async fn keys(executor: impl PgExecutor<'_>, claims: &[(usize, &Claim)]) -> StoreResult<Vec<(usize, Before)>> {
    if claims.is_empty() {
        return Ok(Vec::new());
    }
    let rows = sqlx::query(
        "SELECT asked.place, k.request_sha256, k.response_status, k.response_headers, k.response_body::text AS body
         FROM unnest($1::uuid[], $2::text[]) WITH ORDINALITY AS asked (user_id, key, place)
         JOIN idempotency_keys k ON k.user_id = asked.user_id AND k.key = asked.key
         WHERE k.expires_at > now()",
    )
    .bind(column(claims, |(_, claim)| claim.user_id.uuid()))
    .bind(column(claims, |(_, claim)| claim.name()))
    .fetch_all(executor)
    .await?;
    rows.iter()
        .map(|row| {
            let (place, claim) = claims[get::<i64, _>(row, "place")? as usize - 1];
            if get::<Vec<u8>, _>(row, "request_sha256")? != claim.request_sha256 {
                return Ok((place, Before::Reused));
            }
            let headers: Json<BTreeMap<String, String>> = get(row, "response_headers")?;
            let answer = Answer {
                status: get::<i16, _>(row, "response_status")?.cast_unsigned(),
                headers: headers.0,
                body: get(row, "body")?,
            };
            Ok((place, Before::Replayed(answer)))
        })
        .collect()
}

async fn client_ids(connection: &mut PgConnection, claims: &[(usize, &Claim)]) -> StoreResult<Vec<(usize, Submitted)>> {
    if claims.is_empty() {
        return Ok(Vec::new());
    }
    let rows = sqlx::query(
        "SELECT asked.place, c.request_sha256, c.job_id
         FROM unnest($1::uuid[], $2::text[]) WITH ORDINALITY AS asked (project_id, client_id, place)
         JOIN client_jobs c ON c.project_id = asked.project_id AND c.client_id = asked.client_id",
    )
    .bind(column(claims, |(_, claim)| claim.project_id.uuid()))
    .bind(column(claims, |(_, claim)| claim.name()))
    .fetch_all(&mut *connection)
    .await?;
    let mut found = Vec::with_capacity(rows.len());
    for row in &rows {
        let (place, claim) = claims[get::<i64, _>(row, "place")? as usize - 1];
        if get::<Vec<u8>, _>(row, "request_sha256")? != claim.request_sha256 {
            found.push((place, Before::Reused.into()));
            continue;
        }
        let id = JobId::from_uuid(get(row, "job_id")?);
        // Between the two statements the job may have been forgotten, and its name with it.
        if let Some(view) = jobs::get(&mut *connection, claim.project_id, id).await? {
            found.push((place, Submitted::Found(Box::new(view))));
        }
    }
    Ok(found)
}

/// Writes down the claims of the jobs that were made, each with what its repetition is to be answered.
pub(super) async fn keep(
    connection: &mut PgConnection,
    made: &[(&Submission, &JobView)],
    render: Render,
) -> StoreResult<()> {
    let of = |wanted: fn(&ClaimedBy) -> bool| -> Vec<(&Claim, &JobView)> {
        let claims = made
            .iter()
            .filter_map(|(submission, view)| Some((submission.claim.as_ref()?, *view)));
        claims.filter(|(claim, _)| wanted(&claim.by)).collect()
    };
    let by_key = of(|by| matches!(by, ClaimedBy::Key(..)));
    let kept: Vec<Kept<'_>> = by_key
        .iter()
        .map(|(claim, view)| Kept {
            claim,
            job_id: Some(view.key.id),
            answer: render(view),
        })
        .collect();
    keep_answers(connection, &kept).await?;
    keep_client_ids(connection, &of(|by| matches!(by, ClaimedBy::ClientId(_)))).await?;
    keep_sdk_requests(connection, &of(|by| matches!(by, ClaimedBy::SdkRetry(_)))).await
}

/// Writes down what repeated requests with these keys are to be answered.
pub(super) async fn keep_answers(connection: &mut PgConnection, made: &[Kept<'_>]) -> StoreResult<()> {
    if made.is_empty() {
        return Ok(());
    }
    let (names, keeps): (Vec<&str>, Vec<f64>) = made
        .iter()
        .filter_map(|kept| match &kept.claim.by {
            ClaimedBy::Key(key, keep) => Some((key.as_str(), keep.as_secs_f64())),
            _ => None,
        })
        .unzip();
    sqlx::query(
        "INSERT INTO idempotency_keys (user_id, key, request_sha256, job_id, response_status, response_headers,
                                       response_body, expires_at)
         SELECT user_id, key, sha, job_id, status, headers, body::json, now() + make_interval(secs => keep)
         FROM unnest($1::uuid[], $2::text[], $3::bytea[], $4::uuid[], $5::smallint[], $6::jsonb[], $7::text[], $8::float8[])
             AS made (user_id, key, sha, job_id, status, headers, body, keep)
         ON CONFLICT (user_id, key) DO UPDATE SET request_sha256 = excluded.request_sha256, job_id = excluded.job_id,
             response_status = excluded.response_status, response_headers = excluded.response_headers,
             response_body = excluded.response_body, created_at = now(), expires_at = excluded.expires_at",
    )
    .bind(column(made, |kept| kept.claim.user_id.uuid()))
    .bind(names)
    .bind(column(made, |kept| kept.claim.request_sha256.to_vec()))
    .bind(column(made, |kept| kept.job_id.map(JobId::uuid)))
    .bind(column(made, |kept| kept.answer.status.cast_signed()))
    .bind(column(made, |kept| Json(&kept.answer.headers)))
    .bind(column(made, |kept| kept.answer.body.as_str()))
    .bind(keeps)
    .execute(connection)
    .await?;
    Ok(())
}

async fn keep_client_ids(connection: &mut PgConnection, made: &[(&Claim, &JobView)]) -> StoreResult<()> {
    if made.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "INSERT INTO client_jobs (project_id, client_id, request_sha256, job_id)
         SELECT * FROM unnest($1::uuid[], $2::text[], $3::bytea[], $4::uuid[])",
    )
    .bind(column(made, |(claim, _)| claim.project_id.uuid()))
    .bind(column(made, |(claim, _)| claim.name()))
    .bind(column(made, |(claim, _)| claim.request_sha256.to_vec()))
    .bind(column(made, |(_, view)| view.key.id.uuid()))
    .execute(connection)
    .await?;
    Ok(())
}

async fn keep_sdk_requests(connection: &mut PgConnection, made: &[(&Claim, &JobView)]) -> StoreResult<()> {
    if made.is_empty() {
        return Ok(());
    }
    let retry = |claim: &Claim| match claim.by {
        ClaimedBy::SdkRetry(retry) => retry.cast_signed(),
        _ => 0,
    };
    sqlx::query(
        "INSERT INTO sdk_requests (credential, request_sha256, job_id, retry)
         SELECT * FROM unnest($1::uuid[], $2::bytea[], $3::uuid[], $4::integer[])",
    )
    .bind(column(made, |(claim, _)| claim.user_id.uuid()))
    .bind(column(made, |(claim, _)| claim.request_sha256.to_vec()))
    .bind(column(made, |(_, view)| view.key.id.uuid()))
    .bind(column(made, |(claim, _)| retry(claim)))
    .execute(connection)
    .await?;
    Ok(())
}

/// Deletes one chunk of requests whose retries are no longer expected. Answers how many.
pub async fn forget_sdk_requests(pool: &Pool) -> StoreResult<u64> {
    let done = sqlx::query(
        "DELETE FROM sdk_requests WHERE job_id IN (
             SELECT job_id FROM sdk_requests WHERE created_at < now() - $1::interval
                 AND NOT EXISTS (SELECT FROM attended_jobs a WHERE a.job_id = sdk_requests.job_id)
             ORDER BY created_at LIMIT $2)",
    )
    .bind(RETRY_WITHIN)
    .bind(CHUNK)
    .execute(pool)
    .await?;
    Ok(done.rows_affected())
}
