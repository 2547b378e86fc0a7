//! `POST /v1/files`: a file is uploaded, for a batch.

use axum::Json;
use axum::extract::multipart::Multipart;
use axum::extract::{FromRequest, Request, State};
use utoipa::ToSchema;

use crate::app::AppState;
use crate::docs::{BadBody, NeedsToken, Trouble};
use crate::error::{ApiError, Problem};
use crate::extract::Caller;
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
/// The lines of a batch, as a multipart form. The lines themselves are checked when a batch is made of them.
#[utoipa::path(post, path = "/v1/files", tag = "Batches",
    request_body(content = UploadForm, content_type = "multipart/form-data"),
    responses(
        (status = 200, body = FileBody, description = "The file"),
        BadBody, NeedsToken, Trouble,
    ))]
pub async fn upload_file(
    State(state): State<AppState>,
    caller: Caller,
    request: Request,
) -> Result<Json<FileBody>, ApiError> {
    let parts = Multipart::from_request(request, &()).await.map_err(|_| {
        let message = "Send the file as multipart/form-data, with a boundary in the Content-Type header.";
        ApiError::UnsupportedMedia(Problem::new("unsupported_media_type", message).at("content-type"))
    })?;
    let file = state.uploads.receive(&caller, parts).await?;
    Ok(Json(FileBody::from(&file)))
}
