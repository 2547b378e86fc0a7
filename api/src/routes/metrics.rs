//! `GET /metrics`: this process in Prometheus' text format.

use axum::http::header;
use axum::response::IntoResponse;
use claimcheck_common::telemetry;

/// Metrics
#[utoipa::path(get, path = "/metrics", tag = "Service", responses(
    (status = 200, body = String, content_type = "text/plain", description = "Prometheus' text format"),
))]
pub async fn metrics() -> impl IntoResponse {
    (
        [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")],
        telemetry::metrics().render(),
    )
}
