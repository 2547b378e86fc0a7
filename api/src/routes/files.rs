//! `GET /v1/files`, `GET` and `DELETE /v1/files/{id}`, `GET /v1/files/{id}/content`: what was uploaded, and what batches came to.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use claimcheck_common::domain::FilePurpose;
use claimcheck_common::store::files::{self, Deleted, FilePage};

use super::paging::{Limit, after};
use crate::app::AppState;
use crate::docs::{NeedsToken, Trouble};
use crate::error::{ApiError, ErrorBody, Problem};
use crate::extract::path::{FileIdPath, file_not_found};
use crate::extract::{Caller, Query};
use crate::view::{DeletedFile, FileBody, FileList};

/// As many as OpenAI's lists may hold.
const LIMIT_MAX: u32 = 10_000;

/// List files
#[utoipa::path(get, path = "/v1/files", tag = "Batches",
    params(
        ("purpose" = Option<String>, Query, description = "`batch` or `batch_output`"),
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 10_000, description = "Files on a page (20)"),
        ("after" = Option<String>, Query, description = "Only files behind this id"),
        ("order" = Option<String>, Query, description = "`desc`, newest first (the default), or `asc`"),
    ),
    responses(
        (status = 200, body = FileList, description = "A page"),
        (status = 400, body = ErrorBody, description = "A parameter is unknown or beyond its limit"),
        NeedsToken, Trouble,
    ))]
pub async fn list_files(
    State(state): State<AppState>,
    caller: Caller,
    query: Query,
) -> Result<Json<FileList>, ApiError> {
    let query = query.only(&["purpose", "limit", "after", "order"])?;
    let limit = Limit::of(&query, LIMIT_MAX)?;
    let page = FilePage {
        purpose: query.get("purpose", |text| {
            text.parse::<FilePurpose>()
                .map_err(|_| "must be `batch` or `batch_output`".to_owned())
        })?,
        after: after(&query, "a file")?,
        limit: limit.look_for(),
        ascending: query.get("order", order)?.unwrap_or(false),
    };
    let mut found = files::list(&state.pool, caller.project_id, page).await?;
    let has_more = limit.cut(&mut found);
    let data: Vec<_> = found.iter().map(FileBody::from).collect();
    Ok(Json(FileList {
        object: "list",
        first_id: data.first().map(|file| file.id.clone()),
        last_id: data.last().map(|file| file.id.clone()),
        data,
        has_more,
    }))
}

fn order(text: &str) -> Result<bool, String> {
    match text {
        "asc" => Ok(true),
        "desc" => Ok(false),
        _ => Err("must be `asc` or `desc`".to_owned()),
    }
}

/// Get a file
#[utoipa::path(get, path = "/v1/files/{id}", tag = "Batches",
    params(("id" = String, Path, description = "The file's id")),
    responses(
        (status = 200, body = FileBody, description = "The file"),
        (status = 404, body = ErrorBody, description = "No such file, or not yours"),
        NeedsToken, Trouble,
    ))]
pub async fn get_file(
    State(state): State<AppState>,
    caller: Caller,
    FileIdPath(id): FileIdPath,
    query: Query,
) -> Result<Json<FileBody>, ApiError> {
    query.only(&[])?;
    let file = files::get(&state.pool, caller.project_id, id).await?;
    Ok(Json(FileBody::from(&file.ok_or_else(file_not_found)?)))
}

/// Read a file
///
/// Its bytes as they are, streamed.
#[utoipa::path(get, path = "/v1/files/{id}/content", tag = "Batches",
    params(("id" = String, Path, description = "The file's id")),
    responses(
        (status = 200, body = String, content_type = "application/octet-stream", description = "The file's bytes"),
        (status = 404, body = ErrorBody, description = "No such file, or not yours"),
        NeedsToken, Trouble,
    ))]
pub async fn file_content(
    State(state): State<AppState>,
    caller: Caller,
    FileIdPath(id): FileIdPath,
    query: Query,
) -> Result<Response, ApiError> {
    query.only(&[])?;
    let file = files::get(&state.pool, caller.project_id, id).await?;
    let file = file.ok_or_else(file_not_found)?;
    let bytes = state.files.read(id, 0).await?;
    let mut response = Body::from_stream(bytes).into_response();
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/octet-stream"),
    );
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(file.bytes));
    headers.insert(header::CONTENT_DISPOSITION, HeaderValue::from_static("attachment"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("private, no-store"));
    Ok(response)
}

/// Delete a file
///
/// At once and for good. A file that an unfinished batch reads stays.
#[utoipa::path(delete, path = "/v1/files/{id}", tag = "Batches",
    params(("id" = String, Path, description = "The file's id")),
    responses(
        (status = 200, body = DeletedFile, description = "It is gone"),
        (status = 404, body = ErrorBody, description = "No such file, or not yours"),
        (status = 409, body = ErrorBody, description = "An unfinished batch reads it (`file_in_use`)"),
        NeedsToken, Trouble,
    ))]
pub async fn delete_file(
    State(state): State<AppState>,
    caller: Caller,
    FileIdPath(id): FileIdPath,
    query: Query,
) -> Result<Json<DeletedFile>, ApiError> {
    query.only(&[])?;
    match files::delete(&state.pool, caller.project_id, id).await? {
        Deleted::Done => state.uploads.remove(id).await,
        Deleted::InUse => {
            let message = "A batch that has not ended reads this file; cancel the batch or wait for its end.";
            return Err(ApiError::Conflict(Problem::new("file_in_use", message).at("id")));
        }
        Deleted::Unknown => return Err(file_not_found()),
    }
    Ok(Json(DeletedFile {
        id: id.to_string(),
        object: "file",
        deleted: true,
    }))
}
