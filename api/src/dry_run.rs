//! `dry_run: true`: what a submit would come to. The request passes every check that a real one passes; nothing is stored,
//! not even its idempotency key.

use axum::Json;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use claimcheck_common::domain::{ApiKeyId, BudgetStanding, Money};
use claimcheck_common::store::submit::NewJob;
use claimcheck_common::store::{budgets, outlook};
use serde::Serialize;
use utoipa::ToSchema;

use crate::app::AppState;
use crate::error::ApiError;
use crate::extract::json;
use crate::validate::job::SubmitJob;

/// What a submit would come to.
#[derive(Debug, Serialize, ToSchema)]
pub struct DryRunBody {
    /// Always `dry_run`.
    pub object: &'static str,
    /// The model's name.
    pub model: String,
    /// Jobs that would be made.
    pub jobs: usize,
    /// Tokens of the prompt, of all prompts together.
    pub prompt_tokens: u64,
    /// Most tokens that would be generated, all choices together.
    pub max_completion_tokens: u64,
    /// Both.
    pub max_total_tokens: u64,
    /// Whether it would be accepted, and run as things stand.
    pub feasible: bool,
    /// What stands in the way: `quota_exceeded` or `budget_exceeded` (it would be refused), `paused` or `worker_unhealthy` (it would wait).
    #[schema(required)]
    pub obstacle: Option<&'static str>,
    /// The tenant's quota of waiting jobs.
    pub quota: QuotaBody,
}

/// A quota.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Quota)]
pub struct QuotaBody {
    /// Most jobs that may wait; null for no limit.
    #[schema(required)]
    pub max_queued: Option<u32>,
    /// Jobs that wait.
    pub waiting: u32,
}

/// The request, if it is a dry run.
pub fn wanted(raw: &Bytes) -> Result<Option<SubmitJob>, ApiError> {
    // Most bodies are spared a second reading.
    if !std::str::from_utf8(raw).is_ok_and(|text| text.contains("dry_run")) {
        return Ok(None);
    }
    let request: SubmitJob = json::parse(raw)?;
    Ok((request.dry_run == Some(true)).then_some(request))
}

/// Says what these jobs of one request would come to.
pub async fn answer(state: &AppState, jobs: &[NewJob]) -> Result<Response, ApiError> {
    let first = jobs
        .first()
        .ok_or_else(|| ApiError::internal("a request without a job"))?;
    let (place, model) = ((first.tenant_id, first.project_id), &first.model.name);
    let outlook = outlook::find(&state.pool, place, model, first.class, first.queue_limit).await?;
    let room = outlook.max_queued.map(|most| most.saturating_sub(outlook.waiting));
    let room = [room, outlook.project_room].into_iter().flatten().min();
    let over_budget = is_over_budget(state, jobs).await?;
    let obstacle = if room.is_some_and(|room| (room as usize) < jobs.len()) {
        Some("quota_exceeded")
    } else if over_budget {
        Some("budget_exceeded")
    } else if outlook.paused {
        Some("paused")
    } else {
        (!outlook.served).then_some("worker_unhealthy")
    };
    let prompt_tokens = jobs.iter().map(|job| u64::from(job.prompt_tokens)).sum();
    let new_tokens = |job: &NewJob| u64::from(job.params.max_tokens) * u64::from(job.params.n);
    let max_completion_tokens = jobs.iter().map(new_tokens).sum();
    Ok(Json(DryRunBody {
        object: "dry_run",
        model: model.clone(),
        jobs: jobs.len(),
        prompt_tokens,
        max_completion_tokens,
        max_total_tokens: prompt_tokens + max_completion_tokens,
        feasible: obstacle.is_none(),
        obstacle,
        quota: QuotaBody {
            max_queued: outlook.max_queued,
            waiting: outlook.waiting,
        },
    })
    .into_response())
}

/// Whether all that the jobs of one caller may use is more than is left of a budget.
async fn is_over_budget(state: &AppState, jobs: &[NewJob]) -> Result<bool, ApiError> {
    let holders = jobs.first().map(|job| {
        let key = job.api_key_id.map(ApiKeyId::uuid);
        let others = [Some(job.tenant_id.uuid()), Some(job.project_id.uuid())];
        others.into_iter().chain([key]).flatten().collect()
    });
    let standings = budgets::find(&state.pool, holders.unwrap_or_default()).await?;
    let tokens: u64 = jobs.iter().map(|job| job.most_tokens().total()).sum();
    let cost = jobs.iter().map(|job| job.price.of(job.most_tokens()).nanos()).sum();
    let short = |standing: &BudgetStanding| {
        standing.left_tokens().is_some_and(|left| left < tokens)
            || standing.left().is_some_and(|left| left < Money::from_nanos(cost))
    };
    Ok(standings.values().any(short))
}
