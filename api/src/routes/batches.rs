//! `GET /v1/batches`, `GET /v1/batches/{id}`, and what steers one: cancel, pause, resume.

use axum::Json;
use axum::extract::State;
use claimcheck_common::store::batches::{self, BatchView};

use super::paging::{LIMIT_MAX, Limit, after};
use crate::app::AppState;
use crate::docs::{NeedsToken, Trouble};
use crate::error::{ApiError, ErrorBody};
use crate::extract::path::{BatchIdPath, batch_not_found};
use crate::extract::{Caller, Query};
use crate::view::{BatchBody, BatchList};

/// List batches
#[utoipa::path(get, path = "/v1/batches", tag = "Batches",
    params(
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 100, description = "Batches on a page (20)"),
        ("after" = Option<String>, Query, description = "Only batches older than this id"),
    ),
    responses(
        (status = 200, body = BatchList, description = "A page, newest first"),
        (status = 400, body = ErrorBody, description = "A parameter is unknown or beyond its limit"),
        NeedsToken, Trouble,
    ))]
pub async fn list_batches(
    State(state): State<AppState>,
    caller: Caller,
    query: Query,
) -> Result<Json<BatchList>, ApiError> {
    let query = query.only(&["limit", "after"])?;
    let limit = Limit::of(&query, LIMIT_MAX)?;
    let after = after(&query, "a batch")?;
    let mut found = batches::list(&state.pool, caller.project_id, after, limit.look_for()).await?;
    let has_more = limit.cut(&mut found);
    let data: Vec<_> = found.iter().map(BatchBody::from).collect();
    Ok(Json(BatchList {
        object: "list",
        first_id: data.first().map(|batch| batch.id.clone()),
        last_id: data.last().map(|batch| batch.id.clone()),
        data,
        has_more,
    }))
}

/// Get a batch
///
/// Its counts move while it runs.
#[utoipa::path(get, path = "/v1/batches/{id}", tag = "Batches",
    params(("id" = String, Path, description = "The batch's id")),
    responses(
        (status = 200, body = BatchBody, description = "The batch"),
        (status = 404, body = ErrorBody, description = "No such batch, or not yours"),
        NeedsToken, Trouble,
    ))]
pub async fn get_batch(
    State(state): State<AppState>,
    caller: Caller,
    BatchIdPath(id): BatchIdPath,
    query: Query,
) -> Result<Json<BatchBody>, ApiError> {
    query.only(&[])?;
    shown(batches::get(&state.pool, caller.project_id, id).await?)
}

/// Cancel a batch
///
/// What runs is stopped, what was done is kept: the files hold every line. Safe to repeat; a batch that is finalizing or has
/// ended stays as it is.
#[utoipa::path(post, path = "/v1/batches/{id}/cancel", tag = "Batches",
    params(("id" = String, Path, description = "The batch's id")),
    responses(
        (status = 200, body = BatchBody, description = "The batch as it is now"),
        (status = 404, body = ErrorBody, description = "No such batch, or not yours"),
        NeedsToken, Trouble,
    ))]
pub async fn cancel_batch(
    State(state): State<AppState>,
    caller: Caller,
    BatchIdPath(id): BatchIdPath,
    query: Query,
) -> Result<Json<BatchBody>, ApiError> {
    query.only(&[])?;
    shown(batches::request_cancel(&state.pool, caller.project_id, id, caller.by()).await?)
}

/// Pause a batch
///
/// None of its lines is taken up until it is resumed; those that run go on. Its window goes on as well. Safe to repeat.
#[utoipa::path(post, path = "/v1/batches/{id}/pause", tag = "Batches",
    params(("id" = String, Path, description = "The batch's id")),
    responses(
        (status = 200, body = BatchBody, description = "The batch as it is now"),
        (status = 404, body = ErrorBody, description = "No such batch, or not yours"),
        NeedsToken, Trouble,
    ))]
pub async fn pause_batch(
    State(state): State<AppState>,
    caller: Caller,
    BatchIdPath(id): BatchIdPath,
    query: Query,
) -> Result<Json<BatchBody>, ApiError> {
    query.only(&[])?;
    shown(batches::pause(&state.pool, caller.project_id, id, caller.by()).await?)
}

/// Resume a batch
///
/// Safe to repeat.
#[utoipa::path(post, path = "/v1/batches/{id}/resume", tag = "Batches",
    params(("id" = String, Path, description = "The batch's id")),
    responses(
        (status = 200, body = BatchBody, description = "The batch as it is now"),
        (status = 404, body = ErrorBody, description = "No such batch, or not yours"),
        NeedsToken, Trouble,
    ))]
pub async fn resume_batch(
    State(state): State<AppState>,
    caller: Caller,
    BatchIdPath(id): BatchIdPath,
    query: Query,
) -> Result<Json<BatchBody>, ApiError> {
    query.only(&[])?;
    shown(batches::resume(&state.pool, caller.project_id, id, caller.by()).await?)
}

fn shown(batch: Option<BatchView>) -> Result<Json<BatchBody>, ApiError> {
    Ok(Json(BatchBody::from(&batch.ok_or_else(batch_not_found)?)))
}
