//! Health and metrics of a worker, for probes and for Prometheus. Nothing else is served here.
//!
//! `/healthz`: the process answers. `/startupz`: the model is loaded. `/readyz`: work is taken. `/metrics`.

use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use claimcheck_common::telemetry;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::health::Health;

/// Samples of histograms are folded this often, so that they do not pile up where nobody scrapes.
const UPKEEP: Duration = Duration::from_secs(5);

#[derive(Clone)]
struct Service {
    health: Health,
    metrics: PrometheusHandle,
}

/// Serves until `stop`. Open connections are cut then: a probe that hangs must not hold a stopping worker.
pub async fn serve(listener: TcpListener, health: Health, stop: CancellationToken) -> std::io::Result<()> {
    let metrics = telemetry::metrics();
    let routes = Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/startupz", get(startup))
        .route("/readyz", get(readiness))
        .route(
            "/metrics",
            get(async |State(service): State<Service>| service.metrics.render()),
        )
        .with_state(Service {
            health,
            metrics: metrics.clone(),
        });
    let upkeep = async {
        loop {
            tokio::time::sleep(UPKEEP).await;
            metrics.run_upkeep();
        }
    };
    tokio::select! {
        () = stop.cancelled() => Ok(()),
        () = upkeep => Ok(()),
        outcome = axum::serve(listener, routes).into_future() => outcome,
    }
}

async fn startup(State(service): State<Service>) -> (StatusCode, String) {
    answer(service.health.starting())
}

async fn readiness(State(service): State<Service>) -> (StatusCode, String) {
    answer(service.health.not_ready())
}

fn answer(missing: Option<&'static str>) -> (StatusCode, String) {
    match missing {
        None => (StatusCode::OK, "ok\n".to_owned()),
        Some(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
    }
}
