//! Requests whose callers wait at the open connection: a job for each prompt, known again when the request is repeated.
//!
//! Each part has a claim of its own, made from the request's: a retry finds what the first try had committed and commits
//! the rest. While a caller is here its jobs are attended (`attendance.rs`).

use axum::http::HeaderMap;
use claimcheck_common::domain::{JobId, JobStatus};
use claimcheck_common::store::idempotency::{self, Answer, Before, Claim, ClaimedBy};
use claimcheck_common::store::jobs::JobView;
use claimcheck_common::store::submit::{NewJob, Submission, Submitted};
use futures::future::try_join_all;
use sha2::{Digest, Sha256};

use crate::app::AppState;
use crate::attendance::Attending;
use crate::error::{ApiError, Problem};
use crate::extract::Caller;
use crate::idempotent::{KEEP_KEY, answered_before};
use crate::refusal::refused;
use crate::routes::submit_job::{commit, prepare};
use crate::validate::idempotency::claimed_by;
use crate::validate::job::SubmitJob;

/// A job that this request's caller waits for.
pub struct Part {
    /// The job.
    pub id: JobId,
    /// `None` for a job that goes on without its caller.
    pub attending: Option<Attending>,
}

/// A request to be carried out.
pub struct Parts<'a> {
    /// What handlers share.
    pub state: &'a AppState,
    /// Who asks.
    pub caller: &'a Caller,
    /// The request's.
    pub headers: &'a HeaderMap,
    /// The route: an idempotency key is bound to it.
    pub route: &'a str,
    /// The raw body.
    pub raw: &'a [u8],
    /// Whether the jobs are to end when their caller hangs up.
    pub attended: bool,
}

enum Found {
    Earlier(JobId),
    New(Box<NewJob>, Option<Claim>),
}

impl Parts<'_> {
    /// Checks all requests, then commits what is new of them. Nothing is committed unless all are in order.
    pub async fn submit(&self, requests: Vec<SubmitJob>) -> Result<Vec<Part>, ApiError> {
        let by = claimed_by(self.headers, KEEP_KEY)?;
        let several = requests.len() > 1;
        let mut found = Vec::with_capacity(requests.len());
        for (number, request) in requests.into_iter().enumerate() {
            let part = self.look(number, request, by.clone()).await;
            found.push(part.map_err(|error| if several { of_prompt(number, error) } else { error })?);
        }
        try_join_all(found.into_iter().map(|part| self.take_up(part))).await
    }

    async fn look(&self, number: usize, request: SubmitJob, by: Option<ClaimedBy>) -> Result<Found, ApiError> {
        let claim = by.map(|by| self.claim(number, by));
        if let Some(claim) = &claim
            && let Some(earlier) = idempotency::earlier(&self.state.pool, claim).await?
        {
            match earlier {
                // It came back too late for that job: it gets another one.
                Submitted::Found(job) if was_stopped(&job) => {}
                other => return Ok(Found::Earlier(job_of(other)?)),
            }
        }
        let mut job = prepare(self.state, self.caller, self.headers, request).await?;
        job.options.attended = self.attended.then_some(self.state.attendance.lease());
        Ok(Found::New(Box::new(job), claim))
    }

    async fn take_up(&self, found: Found) -> Result<Part, ApiError> {
        let (id, new) = match found {
            Found::Earlier(id) => (id, false),
            Found::New(job, claim) => match commit(self.state, self.caller, Submission { job: *job, claim }).await? {
                Submitted::Accepted(job, _) => (job.key.id, true),
                other => (job_of(other)?, false),
            },
        };
        let attendance = &self.state.attendance;
        let attending = match (self.attended, new) {
            (false, _) => None,
            (true, true) => Some(attendance.enter(id)),
            (true, false) => Some(attendance.resume(&self.state.pool, id).await?),
        };
        Ok(Part { id, attending })
    }

    fn claim(&self, number: usize, by: ClaimedBy) -> Claim {
        let by = match by {
            // No caller's key has a space in it.
            ClaimedBy::Key(key, keep) if number > 0 => ClaimedBy::Key(format!("{key} {number}"), keep),
            by => by,
        };
        let digest = Sha256::new()
            .chain_update(self.route)
            .chain_update([0])
            .chain_update(number.to_string())
            .chain_update([0])
            .chain_update(self.raw);
        Claim {
            user_id: self.caller.claimant(),
            project_id: self.caller.project_id,
            request_sha256: digest.finalize().into(),
            by,
        }
    }
}

fn was_stopped(job: &JobView) -> bool {
    matches!(job.status, JobStatus::Cancelled | JobStatus::Cancelling)
}

/// The job of a request that was carried out, now or before.
fn job_of(submitted: Submitted) -> Result<JobId, ApiError> {
    match submitted {
        Submitted::Accepted(job, _) | Submitted::Found(job) => Ok(job.key.id),
        Submitted::Refused(refusal) => Err(refused(refusal)),
        Submitted::Before(Before::Replayed(answer)) => {
            place(&answer).ok_or_else(|| ApiError::internal("a kept answer names no job"))
        }
        Submitted::Before(before) => match answered_before(before) {
            Err(error) => Err(error),
            Ok(_) => Err(ApiError::internal("a request in flight has an answer")),
        },
    }
}

fn place(answer: &Answer) -> Option<JobId> {
    answer.headers.get("location")?.rsplit('/').next()?.parse().ok()
}

/// Blames the prompt among several that is at fault.
fn of_prompt(number: usize, error: ApiError) -> ApiError {
    let place = format!("prompt[{number}]");
    match error {
        ApiError::Invalid(problem) => {
            let param = match problem.param.as_deref().and_then(|param| param.strip_prefix("prompt")) {
                Some(rest) => format!("{place}{rest}"),
                None => return ApiError::Invalid(problem),
            };
            let message = problem.message.replacen("`prompt", &format!("`{place}"), 1);
            ApiError::Invalid(Problem::new(problem.code, message).at(param))
        }
        error => error,
    }
}
