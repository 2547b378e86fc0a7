//! `POST /v1/batches` and `POST /v1/batches/{id}/retry`: a batch is accepted. The worker checks its lines and does them
//! (`worker/src/batches/`).

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use claimcheck_common::batch::{ENDPOINT, LINES_MAX};
use claimcheck_common::domain::{BatchId, CompletionWindow, FileId};
use claimcheck_common::store::batches::{self, Asked, BatchView, Created, NewBatch, Source};
use claimcheck_common::store::files;
use claimcheck_common::store::idempotency::{Answer, Claim, ClaimedBy};
use claimcheck_common::store::once::Once;

use crate::app::AppState;
use crate::docs::{BadBody, NeedsToken, Trouble};
use crate::error::{ApiError, ErrorBody, Problem};
use crate::extract::path::{BatchIdPath, batch_not_found};
use crate::extract::{Caller, Query, RawJson};
use crate::idempotent::{KEEP_KEY, answered, answered_before, bound_to, json_answer, repeated, replayed};
use crate::validate::batch::{self as validate, CreateBatch, ValidBatch, ValidLines, unknown_file};
use crate::validate::idempotency::claimed_by;
use crate::view::{BatchBody, BatchDryRunBody, FeasibilityBody};

/// Create a batch
///
/// Does every line of an uploaded file, or of `requests`, as a job of class `batch`, within its window. All lines are checked
/// before the first is done: one that is not in order fails the batch, with every such line in `errors`. A window in which they
/// cannot be done whatever happens is refused (`window_infeasible`); with `dry_run` the answer says whether it would be.
#[utoipa::path(post, path = "/v1/batches", tag = "Batches", request_body = CreateBatch,
    params(("Idempotency-Key" = Option<String>, Header, description = "1 to 255 visible ASCII characters")),
    responses(
        (status = 200, body = BatchBody, description = "The batch; with `dry_run` `{object: \"dry_run\", lines, completion_window, feasible, \
            obstacle, feasibility}`", headers(
            ("Location" = String, description = "Where the batch is"),
            ("idempotent-replayed" = bool, description = "Present if this answer was given before"),
        )),
        (status = 409, body = ErrorBody, description = "The first request with this key is still at work"),
        (status = 422, body = ErrorBody, description = "The key was used with another body"),
        BadBody, NeedsToken, Trouble,
    ))]
pub async fn create_batch(
    State(state): State<AppState>,
    caller: Caller,
    headers: HeaderMap,
    RawJson(raw): RawJson,
) -> Result<Response, ApiError> {
    let request = Known::of(&caller, &headers, "batch", &raw)?;
    if let Some(answer) = repeated(&state, request.claim.as_ref()).await? {
        return Ok(answer);
    }
    let valid = validate::read(&raw)?;
    if valid.dry_run {
        return foresee(&state, &caller, valid, &request).await;
    }
    let (file, is_inline) = match valid.lines {
        ValidLines::File(id) => (id, false),
        ValidLines::Inline(text, lines) => (
            state.uploads.keep(&caller, "requests.jsonl", text, lines).await?.id,
            true,
        ),
    };
    let batch = NewBatch {
        metadata: valid
            .metadata
            .map(|metadata| metadata.0)
            .filter(|metadata| !metadata.is_empty()),
        output_ttl: valid.output_ttl,
        ..new_batch(&caller, Source::File(file), valid.window, &request)
    };
    let created = batches::create(&state.pool, batch, request.claim, render).await;
    let is_used = matches!(&created, Ok(Once::Done(Created::Accepted(_))));
    if is_inline && created.is_ok() && !is_used {
        files::delete(&state.pool, caller.project_id, file).await?;
        state.uploads.remove(file).await;
    }
    answer(created?)
}

/// Says what would come of it.
async fn foresee(state: &AppState, caller: &Caller, valid: ValidBatch, request: &Known) -> Result<Response, ApiError> {
    let (asked, source) = match valid.lines {
        ValidLines::File(id) => (Asked::File(id), Source::File(id)),
        // The lines are here; there is no file yet that the batch would read.
        ValidLines::Inline(_, lines) => (Asked::Inline(lines), Source::File(FileId::new())),
    };
    let batch = new_batch(caller, source, valid.window.clone(), request);
    match batches::foresee(&state.pool, batch, asked).await? {
        Ok((lines, forecast)) => Ok(Json(BatchDryRunBody::new(lines, &valid.window, &forecast)).into_response()),
        Err(refused) => answer(Once::Done(refused)),
    }
}

/// Retry a batch's failed lines
///
/// Makes a new batch of the lines of an ended one that came to no output, from the same file, with the same window.
#[utoipa::path(post, path = "/v1/batches/{id}/retry", tag = "Batches",
    params(
        ("id" = String, Path, description = "The ended batch's id"),
        ("Idempotency-Key" = Option<String>, Header, description = "1 to 255 visible ASCII characters"),
    ),
    responses(
        (status = 200, body = BatchBody, description = "The new batch; its `retry_of` names the other", headers(
            ("Location" = String, description = "Where the new batch is"),
        )),
        (status = 404, body = ErrorBody, description = "No such batch, or not yours"),
        (status = 409, body = ErrorBody, description = "It has not ended (`batch_not_ended`), no line of it failed \
            (`nothing_failed`), its input is gone, or the first request with this key is still at work"),
        (status = 422, body = ErrorBody, description = "The key was used with another request"),
        NeedsToken, Trouble,
    ))]
pub async fn retry_batch(
    State(state): State<AppState>,
    caller: Caller,
    BatchIdPath(id): BatchIdPath,
    query: Query,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    query.only(&[])?;
    let request = Known::of(&caller, &headers, &format!("retry {id}"), &Bytes::new())?;
    let old = batches::get(&state.pool, caller.project_id, id).await?;
    let old = old.ok_or_else(batch_not_found)?;
    let window = CompletionWindow::parse(&old.completion_window);
    let window = window.ok_or_else(|| ApiError::internal("a stored window does not read"))?;
    let batch = NewBatch {
        metadata: old.metadata,
        ..new_batch(&caller, Source::FailedOf(id), window, &request)
    };
    let created = batches::create(&state.pool, batch, request.claim, render).await?;
    match created {
        Once::Done(Created::UnknownFile) => Err(ApiError::Conflict(Problem::new(
            "file_not_found",
            "The batch's input file is gone; upload it again and make a new batch.",
        ))),
        created => answer(created),
    }
}

/// How a request is known when it comes again.
struct Known {
    claim: Option<Claim>,
    sdk_retry: Option<u32>,
    sha256: [u8; 32],
}

impl Known {
    fn of(caller: &Caller, headers: &HeaderMap, what: &str, raw: &Bytes) -> Result<Self, ApiError> {
        let sha256 = bound_to(what, raw);
        let by = claimed_by(headers, KEEP_KEY)?;
        let sdk_retry = match &by {
            Some(ClaimedBy::SdkRetry(retry)) => Some(*retry),
            _ => None,
        };
        let claim = by.filter(|by| matches!(by, ClaimedBy::Key(..))).map(|by| Claim {
            user_id: caller.claimant(),
            project_id: caller.project_id,
            request_sha256: sha256,
            by,
        });
        Ok(Self {
            claim,
            sdk_retry,
            sha256,
        })
    }
}

fn new_batch(caller: &Caller, source: Source, window: CompletionWindow, request: &Known) -> NewBatch {
    NewBatch {
        id: BatchId::new(),
        tenant_id: caller.tenant_id,
        project_id: caller.project_id,
        user_id: caller.user_id,
        by: caller.by(),
        api_key_id: caller.key().map(|key| key.id),
        endpoint: ENDPOINT.to_owned(),
        source,
        window,
        metadata: None,
        output_ttl: None,
        request_sha256: request.sha256,
        sdk_retry: request.sdk_retry,
        lines_max: LINES_MAX,
    }
}

fn answer(created: Once<Created>) -> Result<Response, ApiError> {
    let created = match created {
        Once::Done(created) => created,
        Once::Before(before) => return answered_before(before),
    };
    let conflict = |code, message| Err(ApiError::Conflict(Problem::new(code, message)));
    match created {
        Created::Accepted(view) => answered(render(&view)),
        Created::Found(view) => answered(render(&view)).map(replayed),
        Created::UnknownFile => Err(unknown_file()),
        Created::WrongPurpose => Err(ApiError::invalid(
            "input_file_id",
            "This file is a batch's output; upload the input with purpose `batch`.",
        )),
        Created::WrongLength(lines) => {
            let message =
                format!("This file has {lines} lines; a batch takes 1 to {LINES_MAX}. Make several batches of it.");
            Err(ApiError::Invalid(
                Problem::new("too_many_lines", message).at("input_file_id"),
            ))
        }
        Created::Infeasible(forecast) => {
            let message = FeasibilityBody::from(forecast.as_ref()).message;
            let problem = Problem::new("window_infeasible", message).at("completion_window");
            Err(ApiError::Invalid(problem))
        }
        Created::UnknownBatch => Err(batch_not_found()),
        Created::Running => conflict("batch_not_ended", "The batch has not ended; cancel it or wait."),
        Created::NothingFailed => conflict("nothing_failed", "No line of this batch was taken up and failed."),
    }
}

/// The answer to an accepted batch, and to its request whenever it is repeated.
fn render(view: &BatchView) -> Answer {
    let place = (header::LOCATION, format!("/v1/batches/{}", view.id));
    json_answer(StatusCode::OK, [place], &BatchBody::from(view))
}
