//! Every route and every layer, on one page. The OpenAPI document is generated from this same list.
//!
//! From the outside in: name, measure and log the request ([`middleware::observe`]) → catch panics → refuse beyond the
//! room for open requests → give up after the time limit → handler (authenticate, validate, one change, reply).

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::middleware::{from_fn, from_fn_with_state};
use tokio::sync::Semaphore;
use tower_http::catch_panic::CatchPanicLayer;
use utoipa::OpenApi as _;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::app::AppState;
use crate::docs::{self, ApiDoc};
use crate::error::{ApiError, Problem};
use crate::middleware;
use crate::routes::{
    bulk_jobs, cancel_job, dead_letters, delete_job, get_job, get_model, get_place, health, list_jobs, list_models,
    metrics, openapi, operators, put_job, register, retry_job, root, submit_job, token,
};

/// A request is given up after this.
const TIME_LIMIT: Duration = Duration::from_secs(30);
/// One that may wait for a job, after this: the longest `wait` and some room.
const WAITING_TIME_LIMIT: Duration = Duration::from_secs(90);
/// Requests at work at the same time, probes apart.
const OPEN_REQUESTS: usize = 1024;
/// Requests that wait for a job at the same time; they hold neither a thread nor a database connection.
const WAITING_REQUESTS: usize = 3072;

/// The whole HTTP face.
pub fn router(state: AppState) -> Router {
    let (router, document) = documented().split_for_parts();
    router
        .merge(openapi::router(&document))
        .merge(docs::pages())
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(CatchPanicLayer::custom(middleware::panicked))
        .layer(from_fn(middleware::observe))
        .layer(from_fn_with_state(state.stopping.clone(), middleware::part))
        .with_state(state)
}

/// The OpenAPI document, as `/openapi.json` serves it.
pub fn document() -> utoipa::openapi::OpenApi {
    documented().into_openapi()
}

fn documented() -> OpenApiRouter<AppState> {
    // Who this is and how it is; open to everybody.
    let service = OpenApiRouter::new()
        .routes(routes!(root::root))
        .routes(routes!(root::version))
        .routes(routes!(health::healthz))
        .routes(routes!(health::readyz))
        .routes(routes!(health::startupz))
        .routes(routes!(metrics::metrics))
        .layer(from_fn_with_state(TIME_LIMIT, middleware::time_limit));

    let accounts = OpenApiRouter::new()
        .routes(routes!(register::register))
        .routes(routes!(token::token));

    let jobs = OpenApiRouter::new()
        .routes(routes!(submit_job::submit_job, list_jobs::list_jobs))
        .routes(routes!(put_job::put_job))
        .routes(routes!(cancel_job::cancel_job))
        .routes(routes!(get_place::get_place))
        .routes(routes!(retry_job::retry_job))
        .routes(routes!(bulk_jobs::cancel_jobs))
        .routes(routes!(bulk_jobs::retry_jobs))
        .routes(routes!(dead_letters::list_dead_letters));

    // For admins: each handler asks for the role first.
    let operators = OpenApiRouter::new()
        .routes(routes!(dead_letters::redrive))
        .routes(routes!(operators::list_pauses))
        .routes(routes!(operators::pause, operators::resume))
        .routes(routes!(operators::list_workers))
        .routes(routes!(operators::drain_worker))
        .routes(routes!(operators::set_limits));

    let models = OpenApiRouter::new()
        .routes(routes!(list_models::list_models))
        .routes(routes!(get_model::get_model))
        .route(
            "/v1/models/{owner}/{name}",
            axum::routing::get(get_model::get_owned_model),
        );

    let quick = accounts
        .merge(jobs)
        .merge(operators)
        .merge(models)
        .layer(from_fn_with_state(TIME_LIMIT, middleware::time_limit))
        .layer(from_fn_with_state(
            Arc::new(Semaphore::new(OPEN_REQUESTS)),
            middleware::admit,
        ));

    let waiting = OpenApiRouter::new()
        .routes(routes!(get_job::get_job, delete_job::delete_job))
        .layer(from_fn_with_state(WAITING_TIME_LIMIT, middleware::time_limit))
        .layer(from_fn_with_state(
            Arc::new(Semaphore::new(WAITING_REQUESTS)),
            middleware::admit,
        ));

    OpenApiRouter::with_openapi(ApiDoc::openapi())
        .merge(service)
        .merge(quick)
        .merge(waiting)
}

async fn not_found() -> ApiError {
    ApiError::NotFound(Problem::new(
        "not_found",
        "There is nothing at this path; /docs lists what there is.",
    ))
}

async fn method_not_allowed() -> ApiError {
    ApiError::MethodNotAllowed
}

#[cfg(test)]
mod tests;
