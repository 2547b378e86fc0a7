//! The probes. Liveness looks at nothing: a process that answers is alive, and restarting it would not mend Postgres.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Serialize;
use utoipa::ToSchema;

use crate::app::AppState;
use crate::health::{Checks, Reach};

/// A one-word state.
#[derive(Debug, Serialize, ToSchema)]
pub struct Alive {
    /// `ok`, `started` or `starting`.
    pub status: &'static str,
}

/// Ready or not.
#[derive(Debug, Serialize, ToSchema)]
pub struct Readiness {
    /// `ready`, `stopping` or `not_ready`.
    pub status: &'static str,
    /// What was found.
    pub checks: Checks,
}

/// Alive?
#[utoipa::path(get, path = "/healthz", tag = "Service", responses(
    (status = 200, body = Alive, description = "The process answers"),
))]
pub async fn healthz() -> Json<Alive> {
    Json(Alive { status: "ok" })
}

/// Ready for requests?
///
/// Only Postgres decides; RabbitMQ and Redis are reported.
#[utoipa::path(get, path = "/readyz", tag = "Service", responses(
    (status = 200, body = Readiness, description = "Send requests"),
    (status = 503, body = Readiness, description = "Send none: the database is away, or the process is stopping"),
))]
pub async fn readyz(State(state): State<AppState>) -> (StatusCode, Json<Readiness>) {
    let checks = state.health.checks().await;
    let (code, status) = if state.stopping.is_cancelled() {
        (StatusCode::SERVICE_UNAVAILABLE, "stopping")
    } else if checks.postgres == Reach::Up {
        (StatusCode::OK, "ready")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "not_ready")
    };
    (code, Json(Readiness { status, checks }))
}

/// Started?
///
/// 200 once the database with its schema was seen, and from then on for good.
#[utoipa::path(get, path = "/startupz", tag = "Service", responses(
    (status = 200, body = Alive, description = "Started"),
    (status = 503, body = Alive, description = "The database or its schema was not seen yet"),
))]
pub async fn startupz(State(state): State<AppState>) -> (StatusCode, Json<Alive>) {
    if state.health.has_started().await {
        (StatusCode::OK, Json(Alive { status: "started" }))
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, Json(Alive { status: "starting" }))
    }
}
