//! `POST /v1/jobs`: a prompt becomes a job. The job, its outbox row and the idempotency claim commit in one transaction,
//! and nothing is answered before. The relay (`relay.rs`) carries it on.

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::Response;
use bytes::Bytes;
use claimcheck_common::domain::JobId;
use claimcheck_common::store::idempotency::{self, Answer, Claim, ClaimedBy};
use claimcheck_common::store::jobs::JobView;
use claimcheck_common::store::models::ServedModel;
use claimcheck_common::store::submit::{NewJob, Submission, Submitted};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;

use crate::app::AppState;
use crate::docs::{BadBody, NeedsToken, Trouble};
use crate::dry_run::{self, DryRunBody};
use crate::error::{ApiError, ErrorBody};
use crate::extract::{Caller, Metered, RawJson, json, trace};
use crate::idempotent::{KEEP_KEY, answered, answered_before, json_answer, replayed};
use crate::prefer;
use crate::refusal::refused;
use crate::screen;
use crate::validate::idempotency as validate;
use crate::validate::job::{SubmitJob, ValidJob};
use crate::validate::text::Text;
use crate::view::JobBody;
use crate::waiting::delivered;
use crate::webhooks;

/// Seconds after which a first look is worth while.
pub(super) const LOOK_AFTER: &str = "1";

/// Submit a job
///
/// Answers at once; collect the result at the `Location`. With an `Idempotency-Key` a repeated request gets the first
/// answer again for 24 hours, and no second job.
#[utoipa::path(post, path = "/v1/jobs", tag = "Jobs", request_body = SubmitJob,
    params(
        ("Idempotency-Key" = Option<String>, Header, description = "1 to 255 visible ASCII characters"),
        ("Prefer" = Option<String>, Header, description = "`wait=20`: answer with the ended job if it ends within so many \
            seconds (25 at most), as 200"),
    ),
    responses(
        (status = 200, body = DryRunBody, description = "What it would come to (`dry_run`); or the ended job (`Prefer`)"),
        (status = 202, body = JobBody, description = "Accepted", headers(
            ("Location" = String, description = "Where the job is"),
            ("Retry-After" = u32, description = "Seconds until a first look is worth while"),
            ("idempotent-replayed" = bool, description = "Present if this answer was given before"),
        )),
        (status = 404, body = ErrorBody, description = "The model is not served (`model_not_found`)"),
        (status = 409, body = ErrorBody, description = "The first request with this key is still at work"),
        (status = 422, body = ErrorBody, description = "The key was used with another body"),
        (status = 429, body = ErrorBody, description = "As many jobs wait as may (`quota_exceeded`), or a budget has too little left (`budget_exceeded`)"),
        BadBody, NeedsToken, Trouble,
    ))]
pub async fn submit_job(
    State(state): State<AppState>,
    Metered(caller): Metered,
    headers: HeaderMap,
    RawJson(raw): RawJson,
) -> Result<Response, ApiError> {
    if let Some(asked) = dry_run::wanted(&raw)? {
        let job = prepare(&state, &caller, &headers, asked).await?;
        return dry_run::answer(&state, &[job]).await;
    }
    let by = validate::claimed_by(&headers, KEEP_KEY)?;
    match accept(&state, &caller, &headers, &raw, by).await? {
        Submitted::Accepted(view, _) => match prefer::wait(&headers) {
            Some(wait) => prefer::ended_within(&state, &caller, *view, wait).await,
            None => answered(render(&view)),
        },
        Submitted::Found(view) => {
            delivered(&state, &view).await?;
            answered(render(&view)).map(replayed)
        }
        Submitted::Before(before) => answered_before(before),
        Submitted::Refused(refusal) => Err(refused(refusal)),
    }
}

/// From the raw body to a committed job. What was sent before is known before it is read: a request that was good once
/// gets its answer again even if it would be refused now.
pub(super) async fn accept(
    state: &AppState,
    caller: &Caller,
    headers: &HeaderMap,
    raw: &Bytes,
    by: Option<ClaimedBy>,
) -> Result<Submitted, ApiError> {
    let claim = by.map(|by| Claim {
        user_id: caller.claimant(),
        project_id: caller.project_id,
        request_sha256: Sha256::digest(raw).into(),
        by,
    });
    if let Some(claim) = &claim
        && let Some(earlier) = idempotency::earlier(&state.pool, claim).await?
    {
        return Ok(earlier);
    }
    let job = prepare(state, caller, headers, json::parse(raw)?).await?;
    commit(state, caller, Submission { job, claim }).await
}

/// Checks a request against its model and the clock.
pub(crate) async fn prepare(
    state: &AppState,
    caller: &Caller,
    headers: &HeaderMap,
    mut request: SubmitJob,
) -> Result<NewJob, ApiError> {
    let webhook = webhooks::of_job(state, caller, request.webhook.take()).await?;
    let name = request.model.as_ref().map(Text::as_str);
    let served = state.catalog.find(name, caller.notes.names()).await?;
    let hits = screen::prompt(state, caller, &served, &mut request.prompt.0).await?;
    let (prompt_tokens, encoded) = state.catalog.encode(&served, &request.prompt.0).await?;
    let now = OffsetDateTime::now_utc().unix_timestamp();
    let valid = request.into_valid(prompt_tokens, served.limits(), now)?;
    screen::sampling(state, &valid.params)?;
    caller.may_generate(&served.model.name, served.alias.as_deref(), valid.params.max_tokens)?;
    Ok(NewJob {
        encoded,
        webhook,
        hits,
        ..new_job(state, caller, served, valid, trace::parent(headers))
    })
}

/// Records a checked request; the answer will say what is left of the budget.
pub(crate) async fn commit(state: &AppState, caller: &Caller, submission: Submission) -> Result<Submitted, ApiError> {
    let submitted = state.intake.submit(submission).await?;
    if let Submitted::Accepted(_, Some(standing)) = &submitted {
        caller.notes.set_budget(*standing);
    }
    Ok(submitted)
}

fn new_job(
    state: &AppState,
    caller: &Caller,
    served: ServedModel,
    valid: ValidJob,
    traceparent: Option<String>,
) -> NewJob {
    NewJob {
        id: JobId::new(),
        tenant_id: caller.tenant_id,
        project_id: caller.project_id,
        user_id: caller.user_id,
        api_key_id: caller.key().map(|key| key.id),
        price: state.prices.of(&served.model.name),
        model: served.model,
        requested_model: served.alias,
        class: valid.class,
        prompt: valid.prompt,
        prompt_tokens: valid.prompt_tokens,
        encoded: None,
        params: valid.params,
        metadata: (!valid.metadata.is_empty()).then_some(valid.metadata),
        scheduled_at: valid.scheduled_at,
        options: valid.options,
        queue_limit: state.max_queued,
        traceparent,
        webhook: None,
        origin: caller.origin.clone(),
        hits: Vec::new(),
    }
}

/// The answer to an accepted job, and to its request whenever it is repeated.
pub fn render(view: &JobView) -> Answer {
    let headers = [
        (header::LOCATION, format!("/v1/jobs/{}", view.key.id)),
        (header::RETRY_AFTER, LOOK_AFTER.to_owned()),
    ];
    json_answer(StatusCode::ACCEPTED, headers, &JobBody::from(view))
}
