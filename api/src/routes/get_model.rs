//! `GET /v1/models/{name}`: one model. Names of the hub hold a slash; both `%2F` and a plain slash lead here.

use axum::Json;
use axum::extract::{Path, State};
use claimcheck_common::catalog::Unfound;

use crate::app::AppState;
use crate::docs::{NeedsToken, Trouble};
use crate::error::{ApiError, ErrorBody};
use crate::extract::Query;
use crate::routes::list_models::ModelBody;
use crate::validate::text::check;

/// Get a model
#[utoipa::path(get, path = "/v1/models/{name}", tag = "Models",
    params(("name" = String, Path, description = "The model's name")),
    responses(
        (status = 200, body = ModelBody, description = "The model"),
        (status = 404, body = ErrorBody, description = "The model is not served"),
        NeedsToken, Trouble,
    ))]
pub async fn get_model(
    State(state): State<AppState>,
    name: Result<Path<String>, axum::extract::rejection::PathRejection>,
    query: Query,
) -> Result<Json<ModelBody>, ApiError> {
    query.only(&[])?;
    let Path(name) = name.map_err(|_| not_found("?"))?;
    find(&state, &name).await
}

/// The same for `owner/name`.
pub async fn get_owned_model(
    State(state): State<AppState>,
    name: Result<Path<(String, String)>, axum::extract::rejection::PathRejection>,
    query: Query,
) -> Result<Json<ModelBody>, ApiError> {
    query.only(&[])?;
    let Path((owner, name)) = name.map_err(|_| not_found("?"))?;
    find(&state, &format!("{owner}/{name}")).await
}

async fn find(state: &AppState, name: &str) -> Result<Json<ModelBody>, ApiError> {
    check(name, 1, 256).map_err(|_| not_found(name))?;
    Ok(Json(ModelBody::from(&state.catalog.name(name).await?)))
}

fn not_found(name: &str) -> ApiError {
    ApiError::NotFound(Unfound::Unknown(name.to_owned()).problem())
}
