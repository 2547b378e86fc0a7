//! `GET /v1/batches/{id}/results`: what a batch's lines have come to so far, while it runs and afterwards.

use std::collections::VecDeque;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use claimcheck_common::batch::output;
use claimcheck_common::domain::{BatchId, BatchItemId, BatchStatus};
use claimcheck_common::store::{Pool, StoreError, batch_results, batches};
use futures::stream;

use crate::app::AppState;
use crate::docs::{NeedsToken, Trouble};
use crate::error::{ApiError, ErrorBody};
use crate::extract::path::{BatchIdPath, batch_not_found};
use crate::extract::{Caller, Query};

/// Lines that are read at a time: an output may be as large as a megabyte.
const PAGE: u32 = 50;

/// Read a batch's results
///
/// One line of JSON for each line that has ended, in that order: `{id, custom_id, response, error}`, as in the files. Ends with
/// the last of them; go on later with `after`.
#[utoipa::path(get, path = "/v1/batches/{id}/results", tag = "Batches",
    params(
        ("id" = String, Path, description = "The batch's id"),
        ("after" = Option<String>, Query, description = "Only lines that ended after the one with this `id` (`batch_req_…`)"),
    ),
    responses(
        (status = 200, body = String, content_type = "application/x-ndjson", description = "The results"),
        (status = 400, body = ErrorBody, description = "`after` is no `id` of a line of this batch that has ended"),
        (status = 404, body = ErrorBody, description = "No such batch, or not yours"),
        NeedsToken, Trouble,
    ))]
pub async fn batch_results(
    State(state): State<AppState>,
    caller: Caller,
    BatchIdPath(id): BatchIdPath,
    query: Query,
) -> Result<Response, ApiError> {
    let wrong = || "must be the `id` of a line of this batch that has ended".to_owned();
    let after = query
        .only(&["after"])?
        .get("after", |text| text.parse::<BatchItemId>().map_err(|_| wrong()))?;
    let batch = batches::get(&state.pool, caller.project_id, id).await?;
    let batch = batch.ok_or_else(batch_not_found)?;
    let after = match after {
        None => 0,
        Some(item) => batch_results::place_of(&state.pool, id, item)
            .await?
            .ok_or_else(|| ApiError::invalid("after", format!("`after` {}.", wrong())))?,
    };
    let mut response = Body::from_stream(lines(state.pool.clone(), id, after, batch.ending)).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("private, no-store"));
    Ok(response)
}

/// The lines, page by page, as the caller reads them: no connection is held in between.
fn lines(
    pool: Pool,
    batch: BatchId,
    after: u32,
    ending: Option<BatchStatus>,
) -> impl futures::Stream<Item = Result<Bytes, StoreError>> {
    let begin = (after, VecDeque::new(), false);
    stream::try_unfold(begin, move |(mut after, mut page, mut is_last)| {
        let pool = pool.clone();
        async move {
            if page.is_empty() && !is_last {
                page = batch_results::ended_after(&pool, batch, after, PAGE).await?.into();
                is_last = page.len() < PAGE as usize;
            }
            let Some(result) = page.pop_front() else {
                return Ok(None);
            };
            after = result.seq;
            let line = output::render(&result, ending).map_err(|error| StoreError::interrupted(error.to_string()))?;
            Ok(Some((Bytes::from(line), (after, page, is_last))))
        }
    })
}
