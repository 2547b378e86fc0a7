//! Every route and every layer, on one page. The OpenAPI document is generated from this same list.
//!
//! From the outside in: name, measure and log the request ([`middleware::observe`]) → catch panics → refuse beyond the
//! room for open requests → give up after the time limit → recognise the caller and ask for what the route needs
//! ([`crate::access`]) → handler (validate, one change, reply).

use std::time::Duration;

use axum::extract::DefaultBodyLimit;
use axum::middleware::from_fn_with_state;
use axum::routing::{get, put};
use axum::{Extension, Router};
use tower::util::option_layer;
use tower_http::catch_panic::CatchPanicLayer;
use utoipa::OpenApi as _;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::access::Need::{
    Admin, Auditor, Batches, Credential, Generate, JobsRead, JobsWrite, Keys, Nothing, User, Webhooks,
};
use crate::access::Needs;
use crate::app::AppState;
use crate::docs::{self, ApiDoc};
use crate::error::{ApiError, Problem};
use crate::extract::origin;
use crate::middleware::{Bounds, bound};
use crate::routes::{
    aliases, api_keys, audit, batch_results, batches, bulk_jobs, cancel_job, completions, create_batch, dead_letters,
    delete_job, files, get_job, get_model, get_place, health, identities, job_events, jwks, list_events, list_jobs,
    list_models, logout, members, metrics, openapi, operators, project_limits, projects, put_job, receipt, register,
    replay_job, responses, retry_job, root, service_accounts, sign_in, submit_job, token, tokenize, upload_file, usage,
    users, webhook_endpoints, webhook_log, webhook_secrets,
};
use crate::uploads::UPLOAD_TIME;
use crate::{middleware, transport};

/// A request is given up after this.
const TIME_LIMIT: Duration = Duration::from_secs(30);
/// One that may wait for a job, after this: the longest `wait` and some room.
const WAITING_TIME_LIMIT: Duration = Duration::from_secs(90);
/// One that generates while its caller waits, after this: its own limit and some room.
const GENERATION_TIME_LIMIT: Duration = completions::WAIT_MAX.saturating_add(Duration::from_secs(30));
/// An upload, after this: its own limit, and room to clear up after one that was too slow.
const UPLOAD_TIME_LIMIT: Duration = UPLOAD_TIME.saturating_add(Duration::from_secs(30));
/// Uploads at the same time: each holds a few pieces of a file in memory.
const UPLOADS: usize = 16;
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
        // One layer: each `layer` is a box that every request clones with all that is inside, and each function two more.
        .layer((
            from_fn_with_state(state.stopping.clone(), middleware::observe),
            from_fn_with_state(state.limits.clone(), origin::locate),
            from_fn_with_state(state.transport.clone(), transport::guard),
            option_layer(state.transport.cors()),
            transport::compression(),
            CatchPanicLayer::custom(middleware::panicked),
            Extension(state.doorkeeper.clone()),
        ))
        .with_state(state)
}

/// The OpenAPI document, as `/openapi.json` serves it.
pub fn document() -> utoipa::openapi::OpenApi {
    documented().into_openapi()
}

// Each route says what it needs of its caller (`access.rs`); one that says nothing is found by a test.
#[expect(clippy::too_many_lines, reason = "a list, to be read on one page")]
fn documented() -> OpenApiRouter<AppState> {
    // Who this is and how it is; open to everybody.
    let service = OpenApiRouter::new()
        .routes(routes!(root::root).needs(Nothing))
        .routes(routes!(root::version).needs(Nothing))
        .routes(routes!(health::healthz).needs(Nothing))
        .routes(routes!(health::readyz).needs(Nothing))
        .routes(routes!(health::startupz).needs(Nothing))
        .routes(routes!(metrics::metrics).needs(Nothing))
        .routes(routes!(receipt::receipt_keys).needs(Nothing))
        .layer(from_fn_with_state(Bounds::of_time(TIME_LIMIT), bound));

    let accounts = OpenApiRouter::new()
        .routes(routes!(register::register).needs(Nothing))
        .routes(routes!(token::token).needs(Nothing))
        .routes(routes!(jwks::jwks).needs(Nothing))
        .routes(routes!(sign_in::list_providers).needs(Nothing))
        .routes(routes!(sign_in::start).needs(Nothing))
        .routes(routes!(sign_in::callback).needs(Nothing))
        .routes(routes!(sign_in::link).needs(User))
        .routes(routes!(identities::list_identities).needs(User))
        .routes(routes!(identities::unlink).needs(User))
        .routes(routes!(logout::logout).needs(User))
        .routes(routes!(logout::change_password).needs(User))
        .routes(routes!(api_keys::create_key, api_keys::list_keys).needs(Keys))
        .routes(routes!(api_keys::get_key, api_keys::revoke_key).needs(Keys))
        .routes(routes!(api_keys::rotate_key).needs(Keys))
        .routes(routes!(api_keys::set_budget).needs(Keys));

    let projects = OpenApiRouter::new()
        .routes(routes!(projects::create_project, projects::list_projects).needs(User))
        .routes(
            routes!(
                projects::get_project,
                projects::rename_project,
                projects::archive_project
            )
            .needs(User),
        )
        .routes(routes!(project_limits::get_limits, project_limits::set_limits).needs(User))
        .routes(routes!(members::add_member, members::list_members).needs(User))
        .routes(routes!(members::remove_member).needs(User))
        .routes(routes!(service_accounts::create_account, service_accounts::list_accounts).needs(User))
        .routes(routes!(service_accounts::revoke_account).needs(User))
        .routes(routes!(service_accounts::rotate_account).needs(User));

    let jobs = OpenApiRouter::new()
        .routes(routes!(submit_job::submit_job).needs(Generate))
        .routes(routes!(list_jobs::list_jobs).needs(JobsRead))
        .routes(routes!(put_job::put_job).needs(Generate))
        .routes(routes!(cancel_job::cancel_job).needs(JobsWrite))
        .routes(routes!(get_place::get_place).needs(JobsRead))
        .routes(routes!(job_events::job_events).needs(JobsRead))
        .routes(routes!(retry_job::retry_job).needs(Generate))
        .routes(routes!(receipt::get_receipt).needs(JobsRead))
        .routes(routes!(usage::usage).needs(JobsRead))
        .routes(routes!(bulk_jobs::cancel_jobs).needs(JobsWrite))
        .routes(routes!(bulk_jobs::retry_jobs).needs(Generate))
        // Two names that jobs may have as well.
        .route("/v1/jobs/cancel", put(put_job::put_job).needs(Generate))
        .route("/v1/jobs/retry", put(put_job::put_job).needs(Generate))
        .routes(routes!(dead_letters::list_dead_letters).needs(JobsRead))
        .routes(routes!(audit::list_audit).needs(Keys));

    let webhooks = OpenApiRouter::new()
        .routes(routes!(webhook_endpoints::create_endpoint, webhook_endpoints::list_endpoints).needs(Webhooks))
        .routes(
            routes!(
                webhook_endpoints::get_endpoint,
                webhook_endpoints::change_endpoint,
                webhook_endpoints::delete_endpoint
            )
            .needs(Webhooks),
        )
        .routes(routes!(webhook_secrets::get_secret).needs(Webhooks))
        .routes(routes!(webhook_secrets::rotate_secret).needs(Webhooks))
        .routes(routes!(webhook_secrets::send_example).needs(Webhooks))
        .routes(routes!(webhook_log::list_deliveries).needs(Webhooks))
        .routes(routes!(webhook_log::get_delivery).needs(Webhooks))
        .routes(routes!(webhook_log::resend).needs(Webhooks))
        .routes(routes!(webhook_log::recover).needs(Webhooks))
        .routes(routes!(webhook_log::get_stats).needs(Webhooks))
        .routes(routes!(list_events::list_events).needs(Webhooks));

    let batches = OpenApiRouter::new()
        .routes(routes!(files::list_files).needs(Batches))
        .routes(routes!(files::get_file, files::delete_file).needs(Batches))
        .routes(routes!(files::file_content).needs(Batches))
        .routes(routes!(create_batch::create_batch, batches::list_batches).needs(Batches))
        .routes(routes!(batches::get_batch).needs(Batches))
        .routes(routes!(batches::cancel_batch).needs(Batches))
        .routes(routes!(batches::pause_batch).needs(Batches))
        .routes(routes!(batches::resume_batch).needs(Batches))
        .routes(routes!(create_batch::retry_batch).needs(Batches))
        .routes(routes!(batch_results::batch_results).needs(Batches));

    let operators = OpenApiRouter::new()
        .routes(routes!(dead_letters::redrive).needs(Admin))
        .routes(routes!(operators::list_pauses).needs(Auditor))
        .routes(routes!(operators::pause, operators::resume).needs(Admin))
        .routes(routes!(operators::list_workers).needs(Auditor))
        .routes(routes!(operators::drain_worker).needs(Admin))
        .routes(routes!(operators::set_limits).needs(Admin))
        .routes(routes!(aliases::list_aliases).needs(Auditor))
        .routes(routes!(aliases::set_alias, aliases::remove_alias).needs(Admin))
        .routes(routes!(users::list_users).needs(Auditor))
        .routes(routes!(users::change_user).needs(Admin));

    let models = OpenApiRouter::new()
        .routes(routes!(tokenize::tokenize).needs(Credential))
        .routes(routes!(list_models::list_models).needs(Credential))
        .routes(routes!(get_model::get_model).needs(Credential))
        .route(
            "/v1/models/{owner}/{name}",
            get(get_model::get_owned_model).needs(Credential),
        );

    let quick = accounts
        .merge(projects)
        .merge(jobs)
        .merge(webhooks)
        .merge(batches)
        .merge(operators)
        .merge(models)
        .layer(from_fn_with_state(Bounds::new(OPEN_REQUESTS, TIME_LIMIT), bound));

    // A file of any size is read piece by piece.
    let uploads = OpenApiRouter::new()
        .routes(routes!(upload_file::upload_file).needs(Batches))
        .layer(DefaultBodyLimit::disable())
        .layer(from_fn_with_state(Bounds::new(UPLOADS, UPLOAD_TIME_LIMIT), bound));

    let waiting_bounds = Bounds::new(WAITING_REQUESTS, WAITING_TIME_LIMIT);
    let waiting = OpenApiRouter::new()
        .routes(routes!(get_job::get_job).needs(JobsRead))
        .routes(routes!(delete_job::delete_job).needs(JobsWrite))
        .routes(routes!(replay_job::replay_job).needs(Generate))
        .routes(routes!(replay_job::get_replay).needs(JobsRead))
        .layer(from_fn_with_state(waiting_bounds.clone(), bound));

    // The caller waits until the text is there.
    let generation = OpenApiRouter::new()
        .routes(routes!(completions::create_completion).needs(Generate))
        .routes(routes!(responses::create_response).needs(Generate))
        .routes(routes!(responses::get_response).needs(JobsRead))
        .routes(routes!(responses::delete_response).needs(JobsWrite))
        .routes(routes!(responses::cancel_response).needs(JobsWrite))
        .layer(from_fn_with_state(waiting_bounds.within(GENERATION_TIME_LIMIT), bound));

    OpenApiRouter::with_openapi(ApiDoc::openapi())
        .merge(service)
        .merge(quick)
        .merge(uploads)
        .merge(waiting)
        .merge(generation)
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
pub(crate) mod tests;
