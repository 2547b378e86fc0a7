//! `POST /v1/files`: a file is uploaded, for a batch.

use axum::extract::multipart::Multipart;
use axum::extract::{FromRequest, Request, State};
use axum::response::Response;
use claimcheck_common::store::once::Once;
use utoipa::ToSchema;

use crate::app::AppState;
use crate::docs::{BadBody, NeedsToken, Trouble};
use crate::error::{ApiError, ErrorBody, Problem};
use crate::extract::Caller;
use crate::idempotent::{answered, answered_before, claim};
use crate::uploads::render;
use crate::view::FileBody;

/// What a multipart form holds.
#[derive(ToSchema)]
#[allow(dead_code, reason = "only describes the form in the OpenAPI document")]
pub struct UploadForm {
    /// `batch`.
    purpose: String,
    /// JSONL: one request a line, each of at most 1 MiB; at most 200 MiB.
    #[schema(value_type = String, format = Binary)]
    file: String,
    /// `created_at`, if the file is to go by itself.
    #[schema(rename = "expires_after[anchor]")]
    anchor: Option<String>,
    /// When it is to go: 3,600 to 2,592,000 seconds later.
    #[schema(rename = "expires_after[seconds]")]
    seconds: Option<u32>,
}

/// Upload a file
///
/// The lines of a batch, as a multipart form. The lines themselves are checked when a batch is made of them. An `Idempotency-Key` is
/// bound to the file's bytes and name and its expiry, not to how the form is written.
#[utoipa::path(post, path = "/v1/files", tag = "Batches",
    request_body(content = UploadForm, content_type = "multipart/form-data"),
    params(("Idempotency-Key" = Option<String>, Header, description = "1 to 255 visible ASCII characters")),
    responses(
        (status = 200, body = FileBody, description = "The file", headers(
            ("idempotent-replayed" = bool, description = "Present if this answer was given before"),
        )),
        (status = 409, body = ErrorBody, description = "The first request with this key is still at work"),
        (status = 422, body = ErrorBody, description = "The key was used with another request"),
        BadBody, NeedsToken, Trouble,
    ))]
pub async fn upload_file(
    State(state): State<AppState>,
    caller: Caller,
    request: Request,
) -> Result<Response, ApiError> {
    // What the key is bound to is seen in the parts.
    let claim = claim(&caller, request.headers(), "file", &[])?;
    let parts = Multipart::from_request(request, &()).await.map_err(|_| {
        let message = "Send the file as multipart/form-data, with a boundary in the Content-Type header.";
        ApiError::UnsupportedMedia(Problem::new("unsupported_media_type", message).at("content-type"))
    })?;
    match state.uploads.receive(&caller, claim, parts).await? {
        Once::Done(file) => answered(render(&file)),
        Once::Before(before) => answered_before(before),
    }
}
