//! Logs and metrics: what a process says about itself.
//!
//! A log line has a readable message and queryable fields, and a failure is logged once, where it is handled. Metrics are
//! recorded through the `metrics` facade and rendered in Prometheus' text format.

use std::sync::OnceLock;

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::{LogFormat, TelemetryConfig};

/// Seconds, from a millisecond to the longest wait.
const SECONDS: [f64; 14] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0,
];
/// Rows and tokens of a step, jobs of a group.
const COUNTS: [f64; 11] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0];

/// Sends log lines to standard error. A second call changes nothing (tests start several services in one process).
pub fn init(config: &TelemetryConfig) {
    // lapin and sqlx's pool speak of every lost connection on their own; whoever used it logs it, once.
    let filter =
        EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info,lapin=off,sqlx_core::pool=warn"));
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    let _already_set = match config.log {
        LogFormat::Pretty => lines.finish().try_init(),
        LogFormat::Json => lines.json().flatten_event(true).finish().try_init(),
    };
}

/// The process's metrics, installed at the first call. The facade has one recorder a process, hence this one static.
pub fn metrics() -> PrometheusHandle {
    static RECORDER: OnceLock<PrometheusHandle> = OnceLock::new();
    RECORDER
        .get_or_init(|| {
            PrometheusBuilder::new()
                .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS)
                .and_then(|builder| builder.set_buckets(&COUNTS))
                .and_then(PrometheusBuilder::install_recorder)
                .expect("the buckets are not empty and nothing else installs a recorder")
        })
        .clone()
}
