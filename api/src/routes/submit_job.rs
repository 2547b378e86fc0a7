//! `POST /v1/jobs`: a prompt becomes a job. The job, its outbox row and the idempotency claim commit in one transaction,
//! and nothing is answered before. The relay (`relay.rs`) carries it on.

use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use claimcheck_common::domain::JobId;
use claimcheck_common::store::models::ServedModel;
use claimcheck_common::store::submit::{self, IdempotencyKey, NewJob, Submitted};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;

use crate::app::AppState;
use crate::docs::{BadBody, NeedsToken, Trouble};
use crate::error::{ApiError, ErrorBody, Problem};
use crate::extract::{Caller, Json, trace};
use crate::validate::idempotency;
use crate::validate::job::{ModelLimits, SubmitJob, ValidJob};
use crate::validate::text::Text;
use crate::view::{JobBody, Rendered};

/// Says that this answer was given before.
const IDEMPOTENT_REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");
/// How long a key is remembered.
const KEEP_KEY: Duration = Duration::from_hours(24);
/// Seconds after which a first look is worth while.
const LOOK_AFTER: HeaderValue = HeaderValue::from_static("1");

/// Submit a job
///
/// Answers at once; collect the result at the `Location`. With an `Idempotency-Key` a repeated request gets the first
/// answer again for 24 hours, and no second job.
#[utoipa::path(post, path = "/v1/jobs", tag = "Jobs", security(("bearer" = [])), request_body = SubmitJob,
    params(("Idempotency-Key" = Option<String>, Header, description = "1 to 255 visible ASCII characters")),
    responses(
        (status = 202, body = JobBody, description = "Accepted", headers(
            ("Location" = String, description = "Where the job is"),
            ("Retry-After" = u32, description = "Seconds until a first look is worth while"),
            ("idempotent-replayed" = bool, description = "Present if this answer was given before"),
        )),
        (status = 404, body = ErrorBody, description = "The model is not served (`model_not_found`)"),
        (status = 409, body = ErrorBody, description = "The first request with this key is still at work"),
        (status = 422, body = ErrorBody, description = "The key was used with another body"),
        BadBody, NeedsToken, Trouble,
    ))]
pub async fn submit_job(
    State(state): State<AppState>,
    caller: Caller,
    headers: HeaderMap,
    body: Json<SubmitJob>,
) -> Result<Response, ApiError> {
    let key = idempotency::key(&headers)?;
    let request = body.value;
    let served = state.catalog.find(request.model.as_ref().map(Text::as_str)).await?;
    let prompt_tokens = state.catalog.count_tokens(&served, &request.prompt.0).await?;
    let now = OffsetDateTime::now_utc().unix_timestamp();
    let valid = request.into_valid(prompt_tokens, limits(&served), now)?;
    let job = new_job(&caller, served, valid, trace::parent(&headers));
    let claim = key.map(|key| claim(key, &body.raw));
    let submitted = submit::submit(&state.pool, job, claim, |view| {
        serde_json::to_value(JobBody::from(view)).unwrap_or_default()
    })
    .await?;
    match submitted {
        Submitted::Accepted(view) => {
            state.submitted.notify_one();
            let rendered = Rendered::new(&view).map_err(ApiError::internal)?;
            Ok(answer(StatusCode::ACCEPTED, view.key.id, rendered.body.into()))
        }
        Submitted::Replayed { status, body, job_id } => {
            let status = StatusCode::from_u16(status).map_err(ApiError::internal)?;
            let mut response = answer(status, job_id, body.to_string().into());
            response
                .headers_mut()
                .insert(IDEMPOTENT_REPLAYED, HeaderValue::from_static("true"));
            Ok(response)
        }
        Submitted::KeyReused => Err(ApiError::Unprocessable(
            Problem::new(
                "idempotency_key_reused",
                "This Idempotency-Key was used with another request body; use a new key for a new request.",
            )
            .at(idempotency::HEADER),
        )),
        Submitted::KeyInFlight => Err(ApiError::Conflict(
            Problem::new(
                "idempotency_key_in_flight",
                "The first request with this Idempotency-Key is still being processed; wait for its answer.",
            )
            .at(idempotency::HEADER),
        )),
    }
}

fn limits(served: &ServedModel) -> ModelLimits {
    ModelLimits {
        context_length: served.context_length,
        vocab_size: served.vocabulary_size,
    }
}

fn new_job(caller: &Caller, served: ServedModel, valid: ValidJob, traceparent: Option<String>) -> NewJob {
    NewJob {
        id: JobId::new(),
        tenant_id: caller.tenant_id,
        project_id: caller.project_id,
        user_id: caller.user_id,
        model: served.model,
        class: valid.class,
        prompt: valid.prompt,
        prompt_tokens: valid.prompt_tokens,
        params: valid.params,
        metadata: (!valid.metadata.is_empty()).then_some(valid.metadata),
        scheduled_at: valid.scheduled_at,
        options: valid.options,
        traceparent,
    }
}

fn claim(key: String, raw: &Bytes) -> IdempotencyKey {
    IdempotencyKey {
        key,
        request_sha256: Sha256::digest(raw).into(),
        keep: KEEP_KEY,
    }
}

pub(super) fn answer(status: StatusCode, id: JobId, body: Bytes) -> Response {
    let mut response = (status, body).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::RETRY_AFTER, LOOK_AFTER);
    if let Ok(location) = HeaderValue::from_str(&format!("/v1/jobs/{id}")) {
        headers.insert(header::LOCATION, location);
    }
    response
}
